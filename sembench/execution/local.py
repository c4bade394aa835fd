"""Worker processes of this machine: one thread each; a case stays with one of them, and a lost one costs one case."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from sembench.errors import UnavailableError
from sembench.execution.plan import Row
from sembench.execution.records import Record
from sembench.execution.worker import Bundle, Job, lost, solve, start
from sembench.processes import interrupts_held, one_thread

if TYPE_CHECKING:
    from pebble import ProcessPool

QUEUED_CASES = 2
"""Cases handed to a worker ahead of the one it works on, so that it never waits."""

LOOK_S = 1.0
"""How often to look whether a worker is still there."""

STARTS = 3
"""How often in a row a worker that dies before it takes anything is started again."""


class Lane:
    """One worker process, which does in order what it is given; one that dies is started anew."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pool = worker_pool(job)
        self._given: deque[tuple[Bundle, Row, Future[Record]]] = deque()
        self._died = 0

    def give(self, bundle: Bundle) -> None:
        """Queue every row of a case."""
        for row in bundle.rows:
            self._given.append((bundle, row, self._scheduled(row, bundle)))

    @property
    def cases(self) -> int:
        """Cases given that are not yet done."""
        return len({id(bundle) for bundle, _, _ in self._given})

    @property
    def awaited(self) -> Future[Record] | None:
        """The future of the next record; None where nothing is left."""
        return self._given[0][2] if self._given else None

    def next_record(self) -> Record:
        """The next record, waited for; where its worker was lost, the record that says so.

        A worker that dies before it takes anything costs no case. Raises UnavailableError where that goes on.
        """
        from pebble import ProcessExpired

        while isinstance(outcome(self._pool, self._given[0][2]), BrokenProcessPool):
            self._start_again()
        self._died = 0
        bundle, row, future = self._given.popleft()
        try:
            return future.result()
        except FutureTimeout:
            limit = f"{self._job.protocol.time_limit_s:g} s"
            return lost(row, bundle.spec, f"took longer than the time limit of {limit} and was stopped")
        except ProcessExpired as error:
            return lost(row, bundle.spec, f"killed its worker (exit code {error.exitcode})")
        except Exception as error:
            return lost(row, bundle.spec, f"{type(error).__name__}: {error}")

    @property
    def broken(self) -> bool:
        """Whether its worker died before it took anything. A pool that broke tells not every future of it."""
        return not self._pool.active

    def _scheduled(self, row: Row, bundle: Bundle) -> Future[Record]:
        """A future of the row's record; one that is broken already where the worker died since it was last asked."""
        try:
            return self._pool.schedule(solve, args=(row, bundle.spec), timeout=self._job.protocol.time_limit_s)
        except RuntimeError as error:
            broken: Future[Record] = Future()
            broken.set_exception(BrokenProcessPool(str(error)))
            return broken

    def _start_again(self) -> None:
        """Another worker, and all that was given once more, in order."""
        self._died += 1
        if self._died > STARTS:
            raise UnavailableError(
                f"worker processes die while they start, {self._died} times in a row (out of memory?): what is done is "
                "kept: give --workers 1, or more memory, and run again"
            )
        self._pool.stop()
        self._pool.join()
        self._pool = worker_pool(self._job)
        with one_thread(), interrupts_held():
            self._given = deque((bundle, row, self._scheduled(row, bundle)) for bundle, row, _ in self._given)

    def end(self, *, at_once: bool) -> None:
        """Let the worker finish, or stop it where it is."""
        self._pool.stop() if at_once else self._pool.close()

    def join(self) -> None:
        """Wait until the worker is gone."""
        self._pool.join()


def outcome(pool: "ProcessPool", future: Future[Record]) -> BaseException | None:
    """The exception of a future, waited for, None where it has a result; BrokenProcessPool where the pool broke."""
    while True:
        try:
            return future.exception(timeout=LOOK_S)
        except FutureTimeout:
            if not pool.active:
                return BrokenProcessPool()


def worker_pool(job: Job) -> "ProcessPool":
    """A pool of one worker process, which starts with the first task."""
    import multiprocessing

    from pebble import ProcessPool

    context = multiprocessing.get_context("spawn")
    return ProcessPool(max_workers=1, context=context, initializer=start, initargs=(job,))


def work(bundles: Iterable[Bundle], job: Job, workers: int, keep: Callable[[Record], None]) -> None:
    """Do every bundle in so many processes and hand each record to `keep`; what that raises ends the work."""
    left = deque(bundles)
    lanes = []
    whole = False

    def fill(lane: Lane) -> None:
        while left and lane.cases < QUEUED_CASES:
            lane.give(left.popleft())

    with one_thread():
        try:
            with interrupts_held():
                for _ in range(min(workers, len(left))):
                    lanes.append(Lane(job))
                    fill(lanes[-1])
            while awaited := [lane.awaited for lane in lanes if lane.awaited]:
                wait(awaited, timeout=LOOK_S, return_when=FIRST_COMPLETED)
                for lane in lanes:
                    while lane.awaited and (lane.awaited.done() or lane.broken):
                        keep(lane.next_record())
                        fill(lane)
            whole = True
        finally:
            for lane in lanes:
                lane.end(at_once=not whole)
            for lane in lanes:
                lane.join()
