"""Numbers made again: stored images scored anew and cases restored anew, one worker doing as a run's workers do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sembench.cases import CaseSpec
from sembench.execution.local import outcome, worker_pool
from sembench.execution.plan import Row, available_metrics
from sembench.execution.prepare import find_weights
from sembench.execution.records import Record
from sembench.execution.worker import Job, failure, rescore, solve
from sembench.metrics import perceptual
from sembench.processes import interrupts_held, one_thread
from sembench.protocol import Protocol
from sembench.registry import METRICS, plugin

RESTORED_TOLERANCE = 2e-3
"""Share of max(1, |value|) by which a metric of a case restored again in another environment may differ."""


@dataclass(frozen=True)
class Scoring:
    """A stored restored image, or stored embeddings, to be scored anew."""

    spec: CaseSpec
    stored: Path
    sha256: str


def score_again(job: Job, tasks: Iterable[Scoring]) -> Iterable[Record]:
    """The scores of each stored image, with the digests of what it was scored against, or why there are none."""
    return in_worker(job, rescore, [(task.spec, task.stored, task.sha256) for task in tasks])


def restore_again(job: Job, tasks: Iterable[tuple[Row, CaseSpec]]) -> Iterable[Record]:
    """The record of each case restored anew; the images go into the job's folder."""
    return in_worker(job, solve, list(tasks))


def in_worker(job: Job, function: Callable[..., Record], tasks: Sequence[tuple[Any, ...]]) -> Iterable[Record]:
    """What the function gives for each task in turn, in a process apart under the protocol's time limit."""
    from pebble import ProcessExpired

    with one_thread():
        pool = worker_pool(job)
        try:
            with interrupts_held():
                futures = [pool.schedule(function, args=task, timeout=job.protocol.time_limit_s) for task in tasks]
            for future in futures:
                error = outcome(pool, future)
                if isinstance(error, ProcessExpired | BrokenProcessPool | FutureTimeout):
                    yield failure(f"its worker was lost: {type(error).__name__}")
                else:
                    yield future.result()
            pool.close()
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.join()


def disagreement(recorded: Record, found: Record, tolerance: Callable[[str, float], float]) -> str | None:
    """The first thing in which a case made again is not as it was recorded; None where nothing is.

    tolerance: of a metric's name and recorded value, the difference that is accepted.
    """
    if found["status"] != "ok":
        return f"could not be made again: {found.get('reason')}"
    for what in ("input", "reference"):
        told, made = (record.get(f"{what}_sha256") for record in (recorded, found))
        if told != made:
            return f"its {what} is another image: SHA-256 {str(made)[:8]}, recorded {str(told)[:8]}"
    for name, value in recorded["metrics"].items():
        again = found["metrics"].get(name)
        if name not in found["metrics"]:
            continue
        if (value is None) != (again is None):
            return f"{name} is recorded as {_shown(value)} and comes out as {_shown(again)}"
        if value is not None and not abs(value - again) <= tolerance(name, value):
            return f"{name} is recorded as {value!r} and comes out as {again!r}"
    return None


def _shown(value: float | None) -> str:
    return "no value" if value is None else repr(value)


def exactly(name: str, value: float) -> float:
    """No difference: what an equal environment owes."""
    return 0.0


def by_metric(name: str, value: float) -> float:
    """What a metric may differ by on another machine, from the same pixels."""
    return float(plugin(METRICS, name).load().tolerance)


def after_restoring(name: str, value: float) -> float:
    """What a metric may differ by where another machine restored the case."""
    return max(by_metric(name, value), RESTORED_TOLERANCE * max(1.0, abs(value)))


def prepare_job(protocol: Protocol, folder: Path, states: Mapping[str, tuple[Path, str]] | None = None) -> Job:
    """What a worker needs to score, and with states to restore, cases of a protocol with the metrics at hand here."""
    metrics, missing = available_metrics(protocol)
    if missing:
        perceptual.use_weights(find_weights()[0])
        metrics, _ = available_metrics(protocol)
    return Job(protocol, tuple(metrics), perceptual.weights_in_use(), folder, states or {})
