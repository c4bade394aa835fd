"""One run, from the plan to the summary: workers, progress, records, resume."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sembench import __version__
from sembench.cases import CasePlan, CaseSpec, plan_cases
from sembench.datasets import cache
from sembench.errors import InputError, UnavailableError, WriteError
from sembench.execution import fits
from sembench.execution.plan import Row, available_metrics, default_folder, plan_fits, plan_rows, run_digest
from sembench.execution.records import Record, Records, pending
from sembench.execution.worker import STORE_FAILED, THREAD_VARIABLES, Job, failure, solve, start
from sembench.metrics import perceptual
from sembench.micrograph import write_atomically
from sembench.protocol import Protocol, load
from sembench.restorer import Budget, FitProgress

RUN_SCHEMA = 1
LIBRARIES = (
    *("numpy", "scipy", "scikit-image", "scikit-learn", "imagecodecs"),
    *("torch", "torchvision", "lpips", "pyiqa", "bm3d", "bm4d"),
)
QUEUED_CASES = 2
"""Cases handed to a worker ahead of the one it works on, so that it never waits."""


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
    device: str = "cpu"
    command: tuple[str, ...] = ()


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

    @property
    def digest(self) -> str:
        """Identity of the run folder."""
        return run_digest(self.protocol, self.cases)


Listener = Callable[[Record], None]
FitListener = Callable[[str, FitProgress | None, str], None]
"""Told of each fit before the cases: the restorer, how far it has come (None: nothing yet), and a notice or nothing."""


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
    rows, planned_fits = plan_fits(rows, protocol, cases.data, budget, device=request.device)
    weights: dict[str, Path] = {}
    perceptual.use_weights(weights)
    metrics, metric_notices = available_metrics(protocol)
    if metric_notices:
        weights, _ = find_weights()
        perceptual.use_weights(weights)
        metrics, metric_notices = available_metrics(protocol)
    if not metrics:
        raise UnavailableError(f"no metric of protocol {protocol.name!r} is available: {metric_notices[0]}")
    folder = request.out or default_folder(protocol, cases)
    return RunPlan(
        protocol,
        cases,
        tuple(rows),
        tuple(metrics),
        weights,
        folder,
        (*cases.notices, *row_notices, *metric_notices),
        planned_fits,
    )


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
) -> list[Record]:
    """Do what is missing, fits first, then case by case; the records of this plan's rows and cases in table order.

    Raises InputError for a folder of another run, WriteError where nothing can be written; whatever was recorded
    before stays, and the same request goes on from there.
    """
    with _locked(plan.folder, fresh=request.fresh):
        _open_run(plan, request)
        records = Records(plan.folder / "records.jsonl")
        todo = pending(
            records,
            (row.row_id for row in plan.rows),
            (spec.case_id for spec in plan.cases.specs),
            retry_failed=request.retry_failed,
        )
        _check_stored(plan, records, todo)
        if todo:
            states = _fit(plan, {row_id for row_ids in todo.values() for row_id in row_ids}, on_fit)
            if states:
                _open_run(plan, request, states)
            workers = 1 if request.device != "cpu" else request.workers
            _work(plan, workers, request.device, todo, states, records, on_record)
        return select(plan, records)


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
            if not record or record["status"] != "ok":
                continue
            stored = record.get("image") or record.get("embeddings", "")
            whole = set(plan.metrics) <= set(record["metrics"]) and (plan.folder / stored).is_file()
            if not whole:
                todo.setdefault(spec.case_id, []).append(row.row_id)


@contextmanager
def _locked(folder: Path, *, fresh: bool) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{folder}: another run is writing there: wait for it, or give another --out") from error
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error.strerror}): give another folder with --out") from error
    try:
        if fresh:
            _clear(folder)
        yield
    finally:
        lock.release()


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, and only in a folder that is a run."""
    if not (folder / "run.json").is_file():
        return
    for name in ("restored", "embeddings", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("records.jsonl", "run.json", "cases.csv", "summary.csv"):
        (folder / name).unlink(missing_ok=True)


def _open_run(plan: RunPlan, request: RunRequest, states: dict[str, fits.FittedState] | None = None) -> None:
    path = plan.folder / "run.json"
    before: dict[str, Any] = {}
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            other = before["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: not a run description: start over with --fresh, or give another --out"
            ) from error
        if other != plan.digest:
            raise InputError(
                f"{plan.folder}: holds a run of digest {other[:8]}, this one is {plan.digest[:8]} "
                "(another protocol, version or data): give another --out, or --fresh"
            )
    elif (plan.folder / "records.jsonl").exists():
        raise InputError(f"{plan.folder}: holds records.jsonl and no run.json: put it back, or give another --out")
    rows = {row["row"]: row for row in before.get("rows", [])}
    rows.update(
        {
            row.row_id: {
                **{"row": row.row_id, "restorer": row.name, "kind": row.kind, "settings": row.settings},
                **_fit_description(plan, row, (states or {}).get(row.row_id), rows.get(row.row_id, {})),
            }
            for row in plan.rows
        }
    )
    description = {
        "schema": RUN_SCHEMA,
        "digest": plan.digest,
        "protocol": plan.protocol.model_dump(mode="json"),
        "protocol_digest": plan.protocol.digest,
        "data": plan.cases.data,
        "data_digest": plan.cases.digest,
        "metrics": list(plan.metrics),
        "rows": [rows[name] for name in sorted(rows)],
        "limit": request.limit,
        "notices": list(plan.notices),
        "environment": environment(),
        "git": _git_state(),
        "command": list(request.command),
        "started": before.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomically(path, (json.dumps(description, indent=2, sort_keys=True) + "\n").encode())


def _fit_description(plan: RunPlan, row: Row, state: fits.FittedState | None, before: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a row's fit: its identity, and once there is a state that and how it was made."""
    if row.row_id not in plan.fit_plans:
        return {}
    if state is None:
        return {"fit": before.get("fit", {"identity": plan.fit_plans[row.row_id].identity})}
    told = {"state_sha256": state.sha256, "source": state.source, "report": state.report}
    return {"fit": {"identity": plan.fit_plans[row.row_id].identity, **told}}


def environment() -> dict[str, Any]:
    """Versions of everything that numbers can depend on, and the machine's kind."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "sembench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "libraries": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git_state() -> dict[str, Any] | None:
    """Commit of the suite's own checkout and whether it is clean; None where it is installed from a wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": commit.stdout.strip() or None, "clean": not status.stdout.strip()}


@dataclass
class _Lane:
    """One worker process and the tasks that wait for it, in order."""

    pool: Any
    waiting: deque[tuple[Row, CaseSpec, Any]] = field(default_factory=deque)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Numeric libraries in the workers started here use one thread each."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Threads started here, and the workers that they start, never see Ctrl-C: the main thread alone ends a run."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    plan: RunPlan,
    workers: int,
    device: str,
    todo: dict[str, list[str]],
    states: dict[str, fits.FittedState],
    records: Records,
    on_record: Listener | None,
) -> None:
    """Run every pending (row, case).

    Each case stays with one worker, so that what its rows share is made once; of a set each row may go to another.
    """
    import multiprocessing
    from multiprocessing import resource_tracker

    from pebble import ProcessPool

    files = {row_id: (state.path.resolve(), state.sha256) for row_id, state in states.items()}
    job = Job(plan.protocol, plan.metrics, plan.weights, plan.folder.resolve(), files, device)
    rows = {row.row_id: row for row in plan.rows}
    whole = plan.protocol.scope == "case"
    bundles: deque[tuple[CaseSpec, list[str]]] = deque(
        (spec, row_ids)
        for spec in plan.cases.specs
        if spec.case_id in todo
        for row_ids in ([todo[spec.case_id]] if whole else [[row_id] for row_id in todo[spec.case_id]])
    )
    lock = threading.Lock()
    problem: list[BaseException] = []

    def next_bundle() -> tuple[CaseSpec, list[str]] | None:
        with lock:
            return bundles.popleft() if bundles and not problem else None

    def keep(record: Record) -> None:
        with lock:
            if problem:
                return
            if record["status"] == STORE_FAILED:
                raise WriteError(record["reason"])
            records.append(record)
            if on_record:
                on_record(record)

    def fill(lane: _Lane) -> None:
        while len({(spec.case_id, whole or row.row_id) for row, spec, _ in lane.waiting}) < QUEUED_CASES:
            bundle = next_bundle()
            if bundle is None:
                return
            spec, row_ids = bundle
            for row_id in row_ids:
                future = lane.pool.schedule(solve, args=(rows[row_id], spec), timeout=plan.protocol.time_limit_s)
                lane.waiting.append((rows[row_id], spec, future))

    def drive(lane: _Lane) -> None:
        try:
            fill(lane)
            while lane.waiting and not problem:
                row, spec, future = lane.waiting.popleft()
                keep(_result(future, row, spec, plan.protocol.time_limit_s))
                fill(lane)
        except BaseException as error:
            with lock:
                problem.append(error)

    with _one_thread():
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # starting it later would unblock the signals of the thread that does
        lanes = [
            _Lane(ProcessPool(max_workers=1, context=context, initializer=start, initargs=(job,)))
            for _ in range(min(workers, len(bundles)))
        ]
        threads = [threading.Thread(target=drive, args=(lane,), daemon=True) for lane in lanes]
        try:
            with _deaf_to_interrupts():
                for thread in threads:
                    thread.start()
            for thread in threads:
                while thread.is_alive() and not problem:
                    thread.join(0.2)
        except BaseException as error:
            problem.append(error)
            raise
        finally:
            for lane in lanes:
                lane.pool.stop() if problem else lane.pool.close()
            for lane in lanes:
                lane.pool.join()
    if problem:
        raise problem[0]


def _result(future: Any, row: Row, spec: CaseSpec, limit: float) -> Record:
    """A worker's record, or the record of how it was lost."""
    from pebble import ProcessExpired

    lost = {
        "schema": 1,
        "row": row.row_id,
        "restorer": row.name,
        "kind": row.kind,
        "case": spec.case_id,
        "group": spec.group,
    }
    try:
        return future.result()
    except FutureTimeout:
        return lost | failure(f"took longer than the time limit of {limit:g} s and was stopped")
    except ProcessExpired as error:
        return lost | failure(f"killed its worker (exit code {error.exitcode})")
    except Exception as error:
        return lost | failure(f"{type(error).__name__}: {error}")


def command_line() -> tuple[str, ...]:
    """The command as it was typed, without the path of the program."""
    return ("sembench", *sys.argv[1:])
