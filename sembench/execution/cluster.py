"""Cases on the workers of a dask scheduler, each in a process of its own as at home; results come back by content.

A dask worker keeps a worker process (`local.Lane`) for each of its threads, so that time limits, lost processes and
silenced output are those of a local run. What dask itself sends is pickled: a scheduler and its workers are trusted.
"""

import logging
import multiprocessing
import multiprocessing.util
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from sembench.errors import InputError, SembenchError, UnavailableError
from sembench.execution import shipping
from sembench.execution.local import Lane
from sembench.execution.provenance import versions
from sembench.execution.records import Record
from sembench.execution.worker import Bundle, Job, lost
from sembench.micrograph import write_atomically
from sembench.processes import THREAD_VARIABLES

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_S = 20

LOOK_S = 0.5
"""How often to look whether the scheduler has workers."""

TELL_AFTER_S = 2.0
"""After so long without workers that is told; again after twice as long each time."""

LONGEST_SILENCE_S = 600.0
"""So long at most until it is told again."""

STORED = ("image", "embeddings")
"""Keys of a record that name the file stored beside it."""


@dataclass(frozen=True)
class Order:
    """What every case of one run shares: a token of this run, the job, and the versions that every worker must have."""

    token: str
    job: Job
    versions: dict[str, Any]


@dataclass(frozen=True)
class Lacking:
    """What a worker answers that has not all files of a case."""

    parcels: tuple[shipping.Parcel, ...]


Solved = list[tuple[Record, dict[str, bytes]]]
"""Each record with the content of the file that it names, by path in the run folder."""


def work(
    address: str,
    bundles: Iterable[Bundle],
    job: Job,
    keep: Callable[[Record], None],
    tell: Callable[[str], None] | None = None,
) -> None:
    """Do every bundle on the workers of a scheduler and hand each record to `keep`; what that raises ends the work.

    A case whose worker died is tried elsewhere, as often as the scheduler's `allowed-failures` says, and at last once
    more alone, as dask gives up what only waited for a dying worker too; then it has failed.
    tell: hears, in another thread, that the scheduler has no workers, and for how long.
    Raises UnavailableError where the scheduler cannot be reached or is lost, InputError where a worker has other
    versions of libraries.
    """
    with _connected(address) as client, _wait_told(client, address, tell):
        run = _Run(client, address, Order(uuid.uuid4().hex, job, versions()), keep)
        try:
            for bundle in run.do(bundles):
                if run.do([bundle]):
                    for row in bundle.rows:
                        keep(lost(row, bundle.spec, "every worker that took it died"))
        finally:
            run.close()


@dataclass(frozen=True)
class _Task:
    """A bundle on its way: all files that it needs, and those to be sent along."""

    bundle: Bundle
    parcels: tuple[shipping.Parcel, ...]
    sent: frozenset[shipping.Parcel] = frozenset()


class _Run:
    """One run on the workers of a scheduler, seen from where it was started."""

    def __init__(self, client: "Client", address: str, order: Order, keep: Callable[[Record], None]) -> None:
        self._client, self._address, self._order, self._keep = client, address, order, keep
        self._running: dict[Future[Any], _Task] = {}
        self._contents: WeakValueDictionary[str, Future[Any]] = WeakValueDictionary()

    def do(self, bundles: Iterable[Bundle]) -> list[Bundle]:
        """Do these bundles; those that no worker survived are given back."""
        from distributed import KilledWorker, as_completed

        killed = []
        futures = [self._submit(_Task(bundle, shipping.parcels(self._order.job, bundle))) for bundle in bundles]
        completed = as_completed(futures, loop=self._client.loop)
        for future in completed:
            task = self._running.pop(future)
            try:
                answer = self._answer(future)
            except KilledWorker:
                killed.append(task.bundle)
                continue
            if isinstance(answer, Lacking):
                completed.add(self._submit(replace(task, sent=task.sent | set(answer.parcels))))
                continue
            for record, files in answer:
                for path, content in files.items():
                    write_atomically(self._order.job.run_folder / path, content)
                self._keep(record)
        return killed

    def _submit(self, task: _Task) -> "Future[Any]":
        contents = {sha256: future for parcel in task.sent for sha256, future in self._sent(parcel).items()}
        key = f"sembench-{uuid.uuid4().hex}"
        future = self._client.submit(_solve, self._order, task.bundle, task.parcels, contents, pure=False, key=key)
        self._running[future] = task
        return future

    def _answer(self, future: "Future[Any]") -> Solved | Lacking:
        from distributed import CancelledError, KilledWorker
        from distributed.comm.core import CommClosedError

        try:
            answer: Solved | Lacking = future.result()
        except (KilledWorker, SembenchError):
            raise
        except (CancelledError, CommClosedError) as error:
            raise UnavailableError(f"{self._address}: the scheduler was lost: run again to resume") from error
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise UnavailableError(f"{self._address}: a worker takes no cases ({what}): mend it there") from error
        return answer

    def _sent(self, parcel: shipping.Parcel) -> "dict[str, Future[Any]]":
        """A parcel's contents as tasks, which the scheduler makes again where a worker that held them dies."""
        futures = {sha256: self._contents[sha256] for _, sha256 in parcel.files if sha256 in self._contents}
        if len(futures) == len(parcel.files):
            return futures
        try:
            contents = shipping.contents(parcel)
        except OSError as error:
            raise InputError(f"{parcel.named}: cannot be read any more ({error.strerror}): put it back") from error
        for sha256, content in contents.items():
            if sha256 not in futures:
                key = f"sembench-content-{uuid.uuid4().hex}"
                futures[sha256] = self._client.submit(_content, content, pure=False, key=key)
                self._contents[sha256] = futures[sha256]
        return futures

    def close(self) -> None:
        """Give up what is under way, and end the processes that rest on the workers."""
        with suppress(Exception):
            self._client.cancel(list(self._running))
            self._client.run(_close, self._order.token)


@contextmanager
def _connected(address: str) -> "Iterator[Client]":
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise UnavailableError("--scheduler needs dask: pip install 'sembench[cluster]'") from error
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
        _silence("distributed", "tornado", "asyncio")
        try:
            with warnings.catch_warnings(action="ignore"):
                client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UnavailableError(f"--scheduler {address}: cannot be reached ({reason}): give HOST:PORT") from error
        try:
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=5)


@contextmanager
def _wait_told(client: "Client", address: str, tell: Callable[[str], None] | None) -> Iterator[None]:
    """Inside, whoever asks to be told hears when the scheduler has no workers, and when it has some again."""
    if tell is None:
        yield
        return
    over = threading.Event()
    watching = threading.Thread(target=_watch_workers, args=(client, address, tell, over), daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join(timeout=1)


def _watch_workers(client: "Client", address: str, tell: Callable[[str], None], over: threading.Event) -> None:
    seen, next_s = time.monotonic(), TELL_AFTER_S
    while not over.wait(LOOK_S):
        try:
            workers = len(client.nthreads())
        except Exception:  # whether the scheduler is lost is found where results are awaited
            continue
        now = time.monotonic()
        if workers:
            if next_s > TELL_AFTER_S:
                tell(f"{address} has {workers} worker{'s' * (workers > 1)} now: the run goes on")
            seen, next_s = now, TELL_AFTER_S
        elif now - seen >= next_s:
            tell(
                f"{address} has had no worker for {next_s:g} s, the run waits for one: start some where sembench is "
                f"installed, with `dask worker {address}` or as your cluster does it"
            )
            next_s += min(next_s, LONGEST_SILENCE_S)


def _silence(*families: str) -> None:
    """Whatever these log is told by errors of our own; dask gives some of their loggers a level apart."""
    for name in (*families, *(name for name in logging.root.manager.loggerDict if name.split(".")[0] in families)):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _content(content: bytes) -> bytes:
    return content


_at_rest: dict[str, list[tuple[Lane, Path]]] = {}
_lanes: set[Lane] = set()
_taking = threading.Lock()


def _solve(
    order: Order, bundle: Bundle, parcels: tuple[shipping.Parcel, ...], contents: Mapping[str, bytes]
) -> Solved | Lacking:
    """On a worker: the records of a bundle, or which files it lacks."""
    from distributed import get_worker

    here = versions()
    if here != order.versions:
        raise InputError(
            f"worker {get_worker().address} has other versions ({_difference(order.versions, here)}): install the same"
        )
    shelf = Path(get_worker().local_directory) / "sembench"
    found = {parcel: shipping.place(parcel, shelf, contents) for parcel in parcels}
    lacking = tuple(parcel for parcel, path in found.items() if path is None)
    if lacking:
        return Lacking(lacking)
    places = {parcel.named: str(path) for parcel, path in found.items() if str(path) != parcel.named}
    moved = shipping.relocated_bundle(bundle, places)
    solved = []
    with _lane(order, places, shelf) as (lane, folder):
        lane.give(moved)
        for _ in moved.rows:
            record = shipping.as_named(lane.next_record(), places)
            solved.append((record, _collected(record, folder)))
    return solved


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    flat = [{**told, **told["libraries"]} for told in (one, other)]
    names = [name for name in (*flat[0], *flat[1]) if name != "libraries" and flat[0].get(name) != flat[1].get(name)]
    return ", ".join(f"{name} {flat[1].get(name)} for {flat[0].get(name)}" for name in dict.fromkeys(names))


@contextmanager
def _lane(order: Order, places: Mapping[str, str], shelf: Path) -> Iterator[tuple[Lane, Path]]:
    """A worker process at rest, or a new one, and the folder that it stores into; those of other runs are ended."""
    with _taking:
        for token in [token for token in _at_rest if token != order.token]:
            _end(_at_rest.pop(token))
        rested = _at_rest.setdefault(order.token, [])
        taken = rested.pop() if rested else None
    lane, folder = taken or _new_lane(order, places, shelf)
    try:
        yield lane, folder
    except BaseException:
        _end([(lane, folder)])
        raise
    with _taking:
        if order.token in _at_rest:
            _at_rest[order.token].append((lane, folder))
            return
    _end([(lane, folder)])


def _new_lane(order: Order, places: Mapping[str, str], shelf: Path) -> tuple[Lane, Path]:
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    # A worker under a nanny is a daemon, which Python forbids children.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    _end_lanes_with_this_process()
    folder = shelf / uuid.uuid4().hex
    lane = Lane(shipping.relocated_job(order.job, places, folder))
    _lanes.add(lane)
    return lane, folder


@cache
def _end_lanes_with_this_process() -> None:
    """A worker that ends, as when its scheduler is gone, waits for its processes; those of lanes wait for cases."""
    multiprocessing.util.Finalize(None, _end_all, exitpriority=1)


def _end_all() -> None:
    for lane in list(_lanes):
        lane.end(at_once=True)
        lane.join()


def _close(token: str) -> None:
    """On a worker: end the processes of a run that is over."""
    with _taking:
        _end(_at_rest.pop(token, []))


def _end(lanes: Iterable[tuple[Lane, Path]]) -> None:
    for lane, _ in lanes:
        _lanes.discard(lane)
        lane.end(at_once=True)
        lane.join()


def _collected(record: Record, folder: Path) -> dict[str, bytes]:
    """The content of the files that a record names, which are then removed here."""
    files = {}
    for name in STORED:
        if name in record:
            files[record[name]] = (folder / record[name]).read_bytes()
            (folder / record[name]).unlink()
    return files
