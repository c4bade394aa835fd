"""Worker processes of this machine: one thread each; a case stays with one of them, and a lost one costs one case."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout

from sembench.execution.plan import Row
from sembench.execution.records import Record
from sembench.execution.worker import Bundle, Job, lost, solve, start
from sembench.processes import interrupts_held, one_thread

QUEUED_CASES = 2
"""Cases handed to a worker ahead of the one it works on, so that it never waits."""


class Lane:
    """One worker process, which does in order what it is given; one that dies is started anew."""

    def __init__(self, job: Job) -> None:
        import multiprocessing

        from pebble import ProcessPool

        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(max_workers=1, context=context, initializer=start, initargs=(job,))
        self._limit_s = job.protocol.time_limit_s
        self._given: deque[tuple[Bundle, Row, Future[Record]]] = deque()

    def give(self, bundle: Bundle) -> None:
        """Queue every row of a case."""
        for row in bundle.rows:
            future = self._pool.schedule(solve, args=(row, bundle.spec), timeout=self._limit_s)
            self._given.append((bundle, row, future))

    @property
    def cases(self) -> int:
        """Cases given that are not yet done."""
        return len({id(bundle) for bundle, _, _ in self._given})

    @property
    def awaited(self) -> Future[Record] | None:
        """The future of the next record; None where nothing is left."""
        return self._given[0][2] if self._given else None

    def next_record(self) -> Record:
        """The next record, waited for; where its worker was lost, the record that says so."""
        from pebble import ProcessExpired

        bundle, row, future = self._given.popleft()
        try:
            return future.result()
        except FutureTimeout:
            return lost(row, bundle.spec, f"took longer than the time limit of {self._limit_s:g} s and was stopped")
        except ProcessExpired as error:
            return lost(row, bundle.spec, f"killed its worker (exit code {error.exitcode})")
        except Exception as error:
            return lost(row, bundle.spec, f"{type(error).__name__}: {error}")

    def end(self, *, at_once: bool) -> None:
        """Let the worker finish, or stop it where it is."""
        self._pool.stop() if at_once else self._pool.close()

    def join(self) -> None:
        """Wait until the worker is gone."""
        self._pool.join()


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
                wait(awaited, return_when=FIRST_COMPLETED)
                for lane in lanes:
                    while lane.awaited and lane.awaited.done():
                        keep(lane.next_record())
                        fill(lane)
            whole = True
        finally:
            for lane in lanes:
                lane.end(at_once=not whole)
            for lane in lanes:
                lane.join()
