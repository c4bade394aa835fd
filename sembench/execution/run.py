"""One run, from the plan to the summary: workers, progress, records, resume."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sembench.cases import CaseSpec
from sembench.errors import WriteError
from sembench.execution import cluster, fits, local
from sembench.execution.description import describe
from sembench.execution.folder import locked, read_description
from sembench.execution.kept import kept_rows
from sembench.execution.records import FLAT, RECORDS, Record, Records, fetch_stored, key, pending
from sembench.execution.request import FitListener, Listener, RunPlan, RunRequest
from sembench.execution.reuse import Reusable, counted, of_this_code
from sembench.execution.worker import STORE_FAILED, Bundle, Job
from sembench.restorer import FitProgress


def execute(
    plan: RunPlan,
    request: RunRequest,
    on_record: Listener | None = None,
    on_fit: FitListener | None = None,
    reusable: Sequence[Reusable] = (),
) -> list[Record]:
    """Do what is missing, fits first, then case by case; the records of this plan's rows and cases in table order.

    reusable: what need not be done, as another run did it. Raises InputError for a folder of another run, WriteError
    where nothing can be written; whatever was recorded before stays, and the same request goes on from there.
    """
    with locked(plan.folder, fresh=request.fresh):
        read_description(plan.folder, plan.digest)
        flat = plan.flat
        of_cases, of_flat = Records(plan.folder / RECORDS), Records(plan.folder / FLAT)
        kept = kept_rows(plan, request, of_cases.all()) | kept_rows(flat, request, of_flat.all())
        missing = [one for one in reusable if key(one.record) not in (of_flat if one.flat else of_cases)]
        taken, of_unknown_code = of_this_code(plan, missing, on_fit)
        kept |= of_unknown_code
        describe(plan, request, kept)
        fetched = []
        for one in taken:
            records = of_flat if one.flat else of_cases
            if key(one.record) not in records:
                fetch_stored(one.record, one.folder, plan.folder)
                records.append(one.record)
                fetched.append(one)
        if reusable and on_fit:
            on_fit("", None, counted(fetched))
        parts = [
            _Part(one, records, _todo(one, request, records), told)
            for one, records, told in ((plan, of_cases, on_record), (flat, of_flat, None))
        ]
        wanted = {row_id for part in parts for row_ids in part.todo.values() for row_id in row_ids}
        if wanted:
            states = _fit(plan, wanted, on_fit)
            if states or wanted & kept:
                describe(plan, request, kept, wanted, states)
            _work(plan, request, parts, states, on_fit)
        return select(plan, parts[0].records)


@dataclass(frozen=True)
class _Part:
    """Cases of a run whose records lie together: what is still to be done of them, and who is told."""

    plan: RunPlan
    records: Records
    todo: dict[str, list[str]]
    told: Listener | None


def flat_records(plan: RunPlan) -> list[Record]:
    """What the run's folder tells of the plan's rows on flat fields; as it stands, so maybe nothing."""
    return select(plan.flat, Records(plan.folder / FLAT))


def _todo(plan: RunPlan, request: RunRequest, records: Records) -> dict[str, list[str]]:
    """For each case the rows that are missing, to be retried, or no longer whole."""
    rows, cases = (row.row_id for row in plan.rows), (spec.case_id for spec in plan.cases.specs)
    todo = pending(records, rows, cases, retry_failed=request.retry_failed)
    _check_stored(plan, records, todo)
    return todo


def _fit(plan: RunPlan, wanted: set[str], on_fit: FitListener | None) -> dict[str, fits.FittedState]:
    """The states of the rows that are still to be run, made where they are missing: one after the other, here."""
    states = {}
    for row_id in sorted(wanted & plan.fit_plans.keys()):
        fit = plan.fit_plans[row_id]
        name = fit.method.name
        notices: list[str] = []
        found = fits.find(fit, notices)
        for notice in notices:
            if on_fit:
                on_fit(name, None, notice)
        if found is None:
            if on_fit:
                on_fit(name, None, "")
            found = fits.ensure(fit, None if on_fit is None else partial(_tell_fit, on_fit, name))
        states[row_id] = found
    return states


def _tell_fit(on_fit: FitListener, name: str, told: FitProgress) -> None:
    on_fit(name, told, "")


def select(plan: RunPlan, records: Records) -> list[Record]:
    """The records of the plan's rows and cases, by row and then by case id."""
    found = (records.get((row.row_id, spec.case_id)) for row in plan.rows for spec in _by_id(plan.cases.specs))
    return [record for record in found if record is not None]


def _by_id(specs: tuple[CaseSpec, ...]) -> list[CaseSpec]:
    return sorted(specs, key=lambda spec: spec.case_id)


def _check_stored(plan: RunPlan, records: Records, todo: dict[str, list[str]]) -> None:
    """A record whose restored image has vanished, or that lacks a metric that can be had by now, is done again."""
    for spec in plan.cases.specs:
        for row in plan.rows:
            record = records.get((row.row_id, spec.case_id))
            if record and record["status"] == "ok" and not plan.is_whole(record):
                todo.setdefault(spec.case_id, []).append(row.row_id)


def _work(
    plan: RunPlan,
    request: RunRequest,
    parts: Sequence[_Part],
    states: dict[str, fits.FittedState],
    on_notice: FitListener | None,
) -> None:
    """Run every pending (row, case); rows share their case, but of a set each row may go to another worker."""
    files = {row_id: (state.path.resolve(), state.sha256) for row_id, state in states.items()}
    job = Job(plan.protocol, plan.metrics, plan.weights, plan.folder.resolve(), files, request.device)
    rows = {row.row_id: row for row in plan.rows}
    bundles = []
    for spec, row_ids in ((spec, part.todo.get(spec.case_id, ())) for part in parts for spec in part.plan.cases.specs):
        shared = tuple(rows[row_id] for row_id in row_ids)
        together = [shared] if plan.protocol.scope == "case" else [(row,) for row in shared]
        bundles += [Bundle(spec, own) for own in together if own]
    part_of = {spec.case_id: part for part in parts for spec in part.plan.cases.specs}
    left = {id(part): sum(map(len, part.todo.values())) for part in parts}

    def keep(record: Record) -> None:
        if record["status"] == STORE_FAILED:
            raise WriteError(record["reason"])
        part = part_of[record["case"]]
        part.records.append(record)
        left[id(part)] -= 1
        if part.told:
            part.told(record, left[id(part)])

    if request.scheduler:
        tell = on_notice and partial(on_notice, "", None)
        cluster.work(request.scheduler, bundles, job, keep, tell)
    else:
        local.work(bundles, job, 1 if request.device != "cpu" else request.workers, keep)
