"""What may be published: whole runs on real images, with budgets in steps and states that others can have."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sembench.cases import PHANTOM, STAND_IN
from sembench.datasets.cache import cache_folder
from sembench.errors import InputError
from sembench.execution.recorded import RecordedRun
from sembench.protocol import Protocol
from sembench.registry import find_method
from sembench.restorer import BUDGETS

SIMULATED = (PHANTOM, STAND_IN)


def refusals(run: RecordedRun, protocol: Protocol) -> list[str]:
    """Why a run, or what a bundle holds of one, cannot be published, one line each; nothing where it can."""
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
    return problems + _unfinished(run) + _timed(told["rows"])


def _unfinished(run: RecordedRun) -> list[str]:
    """Rows without a record of every case, or without the state that they were to learn."""
    cases = {record["case"] for record in run.records}
    if isinstance(run.description.get("cases"), list):
        cases |= set(run.description["cases"])
    counts = Counter(record["row"] for record in run.records)
    short = [row for row in run.rows if counts[row.row_id] < len(cases)]
    problems = [f"{row.row_id} has {counts[row.row_id]} of {len(cases)} cases: run it again to go on" for row in short]
    fits = {told["row"]: told["fit"] for told in run.description["rows"] if told.get("fit")}
    return problems + [
        f"{name} has no fitted state: run it again" for name in fits if not fits[name].get("state_sha256")
    ]


def _timed(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Rows that learned for so many minutes, which is another amount on every machine."""
    problems = []
    for row in rows:
        name, steps, *_ = ((row.get("fit") or {}).get("identity") or {}).get("budget") or ("standard", 0)
        if name not in BUDGETS or steps is None:
            known = ", ".join(BUDGETS)
            problems.append(
                f"{row['row']} learned with a budget of {name}, which no other machine can repeat: give {known}"
            )
    return problems


def find_state(name: str, sha256: Any) -> Path | None:
    """The state of that SHA-256 among those that ship with a restorer's package or lie in the cache."""
    for folder in (shipped_states(name), *sorted(cache_folder().glob(f"fits/{name}-*"))):
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
