"""One run, from the plan to the summary: workers, progress, records, resume."""

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sembench.cases import CasePlan, CaseSpec, flat_fields, plan_cases
from sembench.datasets import cache
from sembench.errors import InputError, UnavailableError, WriteError
from sembench.execution import cluster, fits, local
from sembench.execution.folder import RUN_SCHEMA, described_rows, locked, read_description, write_description
from sembench.execution.plan import (
    Row,
    Shard,
    available_metrics,
    default_folder,
    only_fitted,
    plan_fits,
    plan_rows,
    run_digest,
)
from sembench.execution.provenance import (
    code_description,
    environment,
    environment_digest,
    git_state,
    made_by_other_code,
)
from sembench.execution.records import LEFT_OUT, Record, Records, fetch_stored, key, pending, read_records
from sembench.execution.worker import FLAT_METRICS, STORE_FAILED, Bundle, Job
from sembench.metrics import perceptual
from sembench.protocol import Protocol, load
from sembench.registry import find_method
from sembench.restorer import Budget, FitProgress

if TYPE_CHECKING:
    from sembench.execution.reuse import Reusable

RECORDS = "records.jsonl"
FLAT = "flat.jsonl"
"""Records on flat fields, in a run's folder beside those of its cases."""


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for."""

    restorers: tuple[str, ...]
    protocol: str
    data: str | None = None
    out: Path | None = None
    limit: int | None = None
    workers: int = 2
    settings: tuple[str, ...] = ()
    fresh: bool = False
    retry_failed: bool = False
    require_real: bool = False
    crop_bottom: str = "auto"
    skip_unavailable: bool = False
    budget: str | None = None
    pairs: int | None = None
    no_fit: bool = False
    device: str = "cpu"
    command: tuple[str, ...] = ()
    shard: Shard | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class RunPlan:
    """A request resolved: nothing has been written yet."""

    protocol: Protocol
    cases: CasePlan
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    weights: dict[str, Path]
    folder: Path
    notices: tuple[str, ...]
    fit_plans: dict[str, fits.FitPlan] = field(default_factory=dict)
    shard: Shard | None = None

    @property
    def digest(self) -> str:
        """Identity of the run folder."""
        return run_digest(self.protocol, self.cases)


Listener = Callable[[Record, int], None]
"""Told of each new record of a case, and how many are still to come."""

FitListener = Callable[[str, FitProgress | None, str], None]
"""Told before the cases: of each fit how far it has come (None: nothing yet), or a notice about a restorer."""


def prepare(request: RunRequest) -> RunPlan:
    """Resolve names, settings, data, weights and the folder; every refusal of a run comes from here."""
    if request.limit is not None and request.limit < 1:
        raise InputError(f"--limit {request.limit}: give 1 at least")
    if request.workers < 1:
        raise InputError(f"--workers {request.workers}: give 1 at least")
    check_device(request.device)
    protocol = load(request.protocol)
    budget = Budget.of(request.budget or protocol.budget)
    rows, row_notices = plan_rows(
        request.restorers, request.settings, protocol, skip_unavailable=request.skip_unavailable
    )
    cases = plan_cases(
        protocol,
        request.data,
        limit=request.limit,
        require_real=request.require_real,
        crop_bottom=request.crop_bottom,
    )
    rows, planned_fits = plan_fits(rows, protocol, cases.data, budget, pairs=request.pairs, device=request.device)
    if request.no_fit:
        rows, fit_notices = only_fitted(rows, planned_fits)
        row_notices += fit_notices
        planned_fits = {row.row_id: planned_fits[row.row_id] for row in rows if row.row_id in planned_fits}
    metrics, metric_notices = available_metrics(protocol)
    if metric_notices:
        perceptual.use_weights(find_weights()[0])
        metrics, metric_notices = available_metrics(protocol)
    if not metrics:
        raise UnavailableError(f"no metric of protocol {protocol.name!r} is available: {metric_notices[0]}")
    folder = request.out or default_folder(protocol, cases)
    if request.shard:
        cases, folder = request.shard.part(cases), request.shard.folder(folder)
    plan = RunPlan(
        protocol,
        cases,
        tuple(rows),
        tuple(metrics),
        perceptual.weights_in_use(),
        folder,
        (*cases.notices, *row_notices, *metric_notices),
        planned_fits,
        request.shard,
    )
    return plan if request.fresh else replace(plan, notices=(*plan.notices, *_told_of_other_code(plan, request)))


def check_device(device: str) -> None:
    """Refuse a device that torch has not here; `cpu` is told without torch."""
    if device == "cpu":
        return
    import torch

    if not (device == "cuda" or device.startswith("cuda:")):
        raise InputError(f"--device {device}: give cpu, cuda or cuda:N")
    number = device.partition(":")[2] or "0"
    if not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise UnavailableError(f"--device {device}: torch finds {torch.cuda.device_count()} such devices: give cpu")


def find_weights(*, download: bool = True) -> tuple[dict[str, Path], list[str]]:
    """Where the weights of the metrics lie, and why some cannot be had."""
    found, notices = {}, []
    for name in (perceptual.ALEXNET, perceptual.NIQE_PARAMETERS):
        try:
            path = cache.locate_weight(name, download=download)
        except UnavailableError as error:
            notices.append(str(error))
            continue
        if path is not None:
            found[name] = path
    return found, notices


def execute(
    plan: RunPlan,
    request: RunRequest,
    on_record: Listener | None = None,
    on_fit: FitListener | None = None,
    reusable: Sequence["Reusable"] = (),
) -> list[Record]:
    """Do what is missing, fits first, then case by case; the records of this plan's rows and cases in table order.

    reusable: what need not be done, as another run did it. Raises InputError for a folder of another run, WriteError
    where nothing can be written; whatever was recorded before stays, and the same request goes on from there.
    """
    with locked(plan.folder, fresh=request.fresh):
        read_description(plan.folder, plan.digest)
        flat = _on_flat_fields(plan)
        of_cases, of_flat = Records(plan.folder / RECORDS), Records(plan.folder / FLAT)
        kept = _kept(plan, request, of_cases.all()) | _kept(flat, request, of_flat.all())
        missing = [one for one in reusable if key(one.record) not in (of_flat if one.flat else of_cases)]
        taken, of_unknown_code = _of_this_code(plan, missing, on_fit)
        kept |= of_unknown_code
        _open_run(plan, request, kept)
        for one in taken:
            records = of_flat if one.flat else of_cases
            if key(one.record) not in records:
                fetch_stored(one.record, one.folder, plan.folder)
                records.append(one.record)
        parts = [
            _Part(one, records, _todo(one, request, records), told)
            for one, records, told in ((plan, of_cases, on_record), (flat, of_flat, None))
        ]
        wanted = {row_id for part in parts for row_ids in part.todo.values() for row_id in row_ids}
        if wanted:
            states = _fit(plan, wanted, on_fit)
            if states or wanted & kept:
                _open_run(plan, request, kept, wanted, states)
            _work(plan, request, parts, states)
        return select(plan, parts[0].records)


@dataclass(frozen=True)
class _Part:
    """Cases of a run whose records lie together: what is still to be done of them, and who is told."""

    plan: RunPlan
    records: Records
    todo: dict[str, list[str]]
    told: Listener | None


def _on_flat_fields(plan: RunPlan) -> RunPlan:
    """The same rows on flat fields with the noise of the first cases, in no mean; none of a set or a shard."""
    specs = flat_fields(plan.cases.specs) if plan.protocol.scope == "case" and plan.shard is None else ()
    return replace(plan, cases=replace(plan.cases, specs=specs), metrics=FLAT_METRICS)


def flat_records(plan: RunPlan) -> list[Record]:
    """What the run's folder tells of the plan's rows on flat fields; as it stands, so maybe nothing."""
    return select(_on_flat_fields(plan), Records(plan.folder / FLAT))


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
            if record and record["status"] == "ok" and not _whole(plan, record):
                todo.setdefault(spec.case_id, []).append(row.row_id)


def _whole(plan: RunPlan, record: Record) -> bool:
    stored = record.get("image") or record.get("embeddings", "")
    return set(plan.metrics) <= set(record.get("metrics", ())) and (plan.folder / stored).is_file()


def _kept(plan: RunPlan, request: RunRequest, records: Iterable[Record]) -> set[str]:
    """The rows of the plan of which records stay, other than of cases left out: what need not be made again."""
    rows, cases = {row.row_id for row in plan.rows}, {spec.case_id for spec in plan.cases.specs}

    def stays(record: Record) -> bool:
        if record["case"] not in cases:
            return True
        return _whole(plan, record) if record["status"] == "ok" else not request.retry_failed

    return {own["row"] for own in records if own["row"] in rows and own["status"] != LEFT_OUT and stays(own)}


def _told_of_other_code(plan: RunPlan, request: RunRequest) -> list[str]:
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
        for part, name in ((plan, RECORDS), (_on_flat_fields(plan), FLAT)):
            if (plan.folder / name).is_file():
                kept |= _kept(part, request, read_records(plan.folder / name)[0])
    except InputError:
        return []
    return [
        f"{row.name}: its code has changed since its records were made; they are kept: raise its `version`, or run "
        f"with --fresh{', which keeps what it has learnt' if row.row_id in plan.fit_plans else ''}"
        for row in changed
        if row.row_id in kept
    ]


def _of_this_code(
    plan: RunPlan, reusable: Sequence["Reusable"], on_fit: FitListener | None
) -> "tuple[list[Reusable], set[str]]":
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


def _open_run(
    plan: RunPlan,
    request: RunRequest,
    kept: Collection[str] = (),
    wanted: Collection[str] = (),
    states: dict[str, fits.FittedState] | None = None,
) -> None:
    """Write run.json; kept: rows of which records stay, wanted: rows of which this command makes some."""
    before = read_description(plan.folder, plan.digest)
    rows = described_rows(before)
    rows.update(
        {
            row.row_id: {
                **{"row": row.row_id, "restorer": row.name, "kind": row.kind, "settings": row.settings},
                **_method_description(
                    row, rows.get(row.row_id, {}), stands=row.row_id in kept, adds=row.row_id in wanted
                ),
                **_fit_description(plan, row, (states or {}).get(row.row_id), rows.get(row.row_id, {})),
            }
            for row in plan.rows
        }
    )
    here = environment()
    description = {
        "schema": RUN_SCHEMA,
        "digest": plan.digest,
        "protocol": plan.protocol.model_dump(mode="json"),
        "protocol_digest": plan.protocol.digest,
        "data": plan.cases.data,
        "data_digest": plan.cases.digest,
        "metrics": list(plan.metrics),
        "rows": [rows[name] for name in sorted(rows)],
        **_asked_of(plan, request, before),
        "notices": list(plan.notices),
        "environment": here,
        "environments": {**before.get("environments", {}), environment_digest(here): here},
        "git": git_state(),
        "command": list(request.command),
        "started": before.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if plan.shard:
        description["shard"] = str(plan.shard)
    if "shards" in before:
        description["shards"] = before["shards"]
    write_description(plan.folder, description)


def _asked_of(plan: RunPlan, request: RunRequest, before: dict[str, Any]) -> dict[str, Any]:
    """The cases of all commands of a folder and their limit, none where one had none; a set is one case, the last."""
    cases = [spec.case_id for spec in plan.cases.specs]
    known = before.get("cases")
    if not isinstance(known, list) or plan.protocol.scope == "set":
        return {"limit": request.limit, "cases": cases}
    limits = [limit for limit in (before.get("limit"), request.limit) if isinstance(limit, int)]
    return {"limit": max(limits) if len(limits) == 2 else None, "cases": list(dict.fromkeys([*known, *cases]))}


def _method_description(row: Row, known: dict[str, Any], *, stands: bool, adds: bool) -> dict[str, Any]:
    """What run.json says of a row's method: what its id follows from, the code of its records, and whose work it is.

    known, stands, adds: as for `code_description`.
    """
    method = find_method(row.target)
    cls = method.cls
    return {
        **code_description(method, known, stands=stands, adds=adds),
        "version": row.version,
        "source_sha256": row.source_sha256,
        "weights_sha256": row.weights_sha256,
        "trained_on": list(row.trained_on),
        "variant": row.variant,
        "summary": cls.summary(),
        "licence": cls.licence,
        "citation": cls.citation,
    }


def _fit_description(plan: RunPlan, row: Row, state: fits.FittedState | None, before: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a row's fit: its identity, and once there is a state that and how it was made."""
    if row.row_id not in plan.fit_plans:
        return {}
    if state is None:
        return {"fit": before.get("fit", {"identity": plan.fit_plans[row.row_id].identity})}
    told = {"state_sha256": state.sha256, "source": state.source, "report": state.report}
    return {"fit": {"identity": plan.fit_plans[row.row_id].identity, **told}}


def _work(plan: RunPlan, request: RunRequest, parts: Sequence[_Part], states: dict[str, fits.FittedState]) -> None:
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
        cluster.work(request.scheduler, bundles, job, keep)
    else:
        local.work(bundles, job, 1 if request.device != "cpu" else request.workers, keep)


def command_line() -> tuple[str, ...]:
    """The command as it was typed, without the path of the program."""
    return ("sembench", *sys.argv[1:])
