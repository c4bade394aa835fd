"""What may be published: whole runs on real images, with budgets in steps and states that others can have."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sembench.cases import PHANTOM, STAND_IN
from sembench.datasets.cache import cache_folder
from sembench.errors import InputError
from sembench.execution.plan import variant
from sembench.execution.recorded import RecordedRun
from sembench.protocol import Protocol
from sembench.registry import MethodTarget, find_method
from sembench.restorer import BUDGETS

SIMULATED = (PHANTOM, STAND_IN)


def refusals(run: RecordedRun, protocol: Protocol) -> list[str]:
    """Why nothing of a run, or of what a bundle holds of one, can be published, one line each; see `row_refusals`."""
    told, data = run.description, run.description["data"]
    problems = []
    if not protocol.published:
        problems.append(f"protocol {protocol.name!r} is not one to publish results of")
    if data in SIMULATED:
        problems.append(f"its images are simulated ({data}) and stand in for real ones: run it on {protocol.data.set}")
    elif data not in (protocol.data.set, *(protocol.data.also or ())):
        problems.append(f"its images are of {data!r}, not of a data set of protocol {protocol.name!r}")
    if told.get("shard"):
        problems.append(f"it is shard {told['shard']} of a run: merge the shards first")
    if told.get("limit") is not None:
        problems.append(f"it was limited by --limit {told['limit']}: run it again without")
    if run.torn:
        problems.append("its last record is torn: run it again to go on")
    if protocol.metrics.primary not in told["metrics"]:
        problems.append(f"it lacks the protocol's primary metric {protocol.metrics.primary}: see `sembench doctor`")
    return problems


def row_refusals(run: RecordedRun) -> dict[str, str]:
    """Row id -> why that row cannot be published, of each that cannot."""
    problems: dict[str, list[str]] = {}
    for row_id, problem in (*_unfinished(run), *_timed(run.description["rows"]), *_doubled(run)):
        problems.setdefault(row_id, []).append(problem)
    return {row_id: told[0] for row_id, told in problems.items()}


def _unfinished(run: RecordedRun) -> Iterator[tuple[str, str]]:
    """Rows without a record of every case, or without the state that they were to learn."""
    cases = {record["case"] for record in run.records}
    if isinstance(run.description.get("cases"), list):
        cases |= set(run.description["cases"])
    counts = Counter(record["row"] for record in run.records)
    for row in run.rows:
        if counts[row.row_id] < len(cases):
            yield row.row_id, f"{row.row_id} has {counts[row.row_id]} of {len(cases)} cases: run it again to go on"
    for told in run.description["rows"]:
        if told.get("fit") and not told["fit"].get("state_sha256"):
            yield told["row"], f"{told['row']} has no fitted state: run it again"


def _timed(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Rows that learned for so many minutes, which is another amount on every machine."""
    for row in rows:
        name, steps, *_ = ((row.get("fit") or {}).get("identity") or {}).get("budget") or ("standard", 0)
        if name not in BUDGETS or steps is None:
            known = ", ".join(BUDGETS)
            told = f"{row['row']} learned with a budget of {name}, which no other machine can repeat: give {known}"
            yield row["row"], told


def _doubled(run: RecordedRun) -> Iterator[tuple[str, str]]:
    """Rows of one restorer, settings and variant that other code or weights made: nobody could tell them apart."""
    alike: dict[str, list[str]] = {}
    for row in run.rows:
        alike.setdefault(json.dumps([row.name, row.settings, row.variant], sort_keys=True), []).append(row.row_id)
    for names in alike.values():
        for name in names if len(names) > 1 else ():
            yield name, f"{' and '.join(names)} are one restorer of other code or weights: give --restorer and one id"


def variant_of(
    method: MethodTarget, settings: Mapping[str, Any], fit: Mapping[str, Any] | None, protocol: Protocol
) -> dict[str, Any]:
    """The variant that a row's settings and the identity of its fit, if it has one, make with the installed method."""
    budget, *_ = (fit or {}).get("budget") or (None,)
    return variant(method, settings, protocol, budget=budget, pairs=None if fit is None else fit.get("pairs", 0))


def find_state(name: str, sha256: Any, folders: Iterable[Path] = ()) -> Path | None:
    """The state of that SHA-256: shipped with the restorer's package, or in the cache or one of these folders."""
    for folder in (shipped_states(name), *sorted(cache_folder().glob(f"fits/{name}-*")), *folders):
        for path in sorted(folder.glob("*.safetensors")) if folder else ():
            if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                return path
    return None


def shipped_states(name: str) -> Path | None:
    """The folder of the states that ship with a restorer's package; None where the restorer is not installed."""
    try:
        module = sys.modules[find_method(name).cls.__module__]
    except (InputError, KeyError):
        return None
    return Path(module.__file__).parent / "states" if module.__file__ else None
