"""Which records of a run's folder stay, and which of them were made before their restorer's code was changed."""

from collections.abc import Iterable

from sembench.errors import InputError
from sembench.execution.folder import described_rows, read_description
from sembench.execution.provenance import made_by_other_code
from sembench.execution.records import FLAT, LEFT_OUT, RECORDS, Record, read_records
from sembench.execution.request import RunPlan, RunRequest
from sembench.registry import find_method


def kept_rows(plan: RunPlan, request: RunRequest, records: Iterable[Record]) -> set[str]:
    """The rows of the plan of which records stay, other than of cases left out: what need not be made again."""
    rows, cases = {row.row_id for row in plan.rows}, {spec.case_id for spec in plan.cases.specs}

    def stays(record: Record) -> bool:
        if record["case"] not in cases:
            return True
        return plan.is_whole(record) if record["status"] == "ok" else not request.retry_failed

    return {own["row"] for own in records if own["row"] in rows and own["status"] != LEFT_OUT and stays(own)}


def told_of_other_code(plan: RunPlan, request: RunRequest) -> list[str]:
    """A notice for each row of which records stay that were made before its restorer's code was changed.

    Of a folder that cannot be read nothing is told: the run itself refuses it.
    """
    try:
        known = described_rows(read_description(plan.folder, plan.digest))
        old = [row for row in plan.rows if row.row_id in known]
        changed = [row for row in old if made_by_other_code(find_method(row.target), known[row.row_id])]
        if not changed:
            return []
        kept: set[str] = set()
        for part, name in ((plan, RECORDS), (plan.flat, FLAT)):
            if (plan.folder / name).is_file():
                kept |= kept_rows(part, request, read_records(plan.folder / name)[0])
    except InputError:
        return []
    return [
        f"{row.name}: its code has changed since its records were made; they are kept: raise its `version`, or run "
        f"with --fresh{', which keeps what it has learnt' if row.row_id in plan.fit_plans else ''}"
        for row in changed
        if row.row_id in kept
    ]
