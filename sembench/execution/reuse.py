"""Records of another run on the same cases, so that methods that do not learn need not run again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sembench.errors import InputError
from sembench.execution.folder import described_rows
from sembench.execution.provenance import environment, environment_digest, made_by_other_code
from sembench.execution.recorded import read_run
from sembench.execution.records import Record
from sembench.execution.request import FitListener, RunPlan
from sembench.registry import find_method

NEITHER_CASES_NOR_SCORES = (
    *("name", "version", "title", "question", "published", "order", "time_limit_s"),
    *("budget", "statistics", "fine_tuning", "metrics"),
)
"""Parts of a protocol on which neither its cases nor the scores of a given method depend."""


class Reusable(NamedTuple):
    """A record of the run in `folder`; flat: whether it is of a flat field."""

    record: Record
    folder: Path
    flat: bool


def reusable(plan: RunPlan, folder: Path, device: str = "cpu") -> list[Reusable]:
    """What a run can take from the folder of another instead of computing it.

    Solved cases of rows that do not learn, of this very environment and device, with all metrics that are wanted.
    Raises InputError where the two runs do not have the same cases.
    """
    run = read_run(folder)
    if run.description["data_digest"] != plan.cases.digest or _decisive(run.description["protocol"]) != _decisive(
        plan.protocol.model_dump(mode="json")
    ):
        raise InputError(
            f"--reuse {folder}: its cases ({run.description['protocol']['name']} on {run.description.get('data')}) are "
            f"not those of {plan.protocol.name} on {plan.cases.data}: give a run with the same images, seed and margin"
        )
    rows = {row.row_id for row in plan.rows} - plan.fit_plans.keys()
    here = environment_digest(environment())
    cases = {spec.case_id for spec in plan.cases.specs}
    found = []
    for record, flat in (*((one, False) for one in run.records), *((one, True) for one in run.flat)):
        whole = flat or (record["case"] in cases and set(plan.metrics) <= set(record.get("metrics", ())))
        same = record.get("environment") == here and record.get("device") == device
        if record["row"] in rows and record["status"] == "ok" and whole and same:
            found.append(Reusable(record, folder, flat))
    return found


def of_this_code(
    plan: RunPlan, reusable: Sequence[Reusable], on_fit: FitListener | None
) -> tuple[list[Reusable], set[str]]:
    """What is taken of other runs, less what is known to be of other code, which is told; and rows of unknown code."""
    by_source: dict[tuple[Path, str], list[Reusable]] = {}
    for one in reusable:
        by_source.setdefault((one.folder, one.record["row"]), []).append(one)
    described = {
        folder: described_rows(json.loads((folder / "run.json").read_bytes()))
        for folder in {folder for folder, _ in by_source}
    }
    rows = {row.row_id: row for row in plan.rows}
    taken, unknown = [], set()
    for (folder, row_id), own in by_source.items():
        name, known = rows[row_id].name, described[folder][row_id]
        if not made_by_other_code(find_method(rows[row_id].target), known):
            taken += own
            unknown |= set() if "code_sha256" in known else {row_id}
        elif on_fit:
            on_fit(name, None, f"{name}: {len(own)} records of {folder} are not taken: other code made them")
    return taken, unknown


def counted(taken: Sequence[Reusable]) -> str:
    """How many records were taken over, and of which restorers, in one line."""
    return f"reused, {len(taken)} records: {', '.join(sorted({one.record['restorer'] for one in taken})) or 'nothing'}"


def _decisive(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What of a protocol decides on cases and scores; `training` is what others learn from."""
    told = {name: value for name, value in protocol.items() if name not in NEITHER_CASES_NOR_SCORES}
    degradation = told.get("degradation")
    if isinstance(degradation, Mapping):
        told["degradation"] = {name: value for name, value in degradation.items() if name != "training"}
    return told
