"""Training batches made ahead of a fit by processes of their own, the same whoever makes them."""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from sembench.errors import SembenchError
from sembench.micrograph import write_atomically
from sembench.processes import interrupts_held, one_thread
from sembench.restorer import Crops, Patch, TrainingSet

Arrays = dict[str, NDArray[Any]]

AHEAD = 3
"""Batches made ahead for each worker."""

SHARED = "SEMBENCH_BATCHES"
"""Environment variable: a folder where prepared batches are kept, so that fits on the same patches make them once."""


def patch_arrays(patch: Patch) -> Arrays:
    """What most methods learn from: clean, degraded and second, float32 (1, 224, 224), gray levels 0..255."""
    return {"clean": patch.clean[None], "degraded": patch.degraded[None], "second": patch.second[None]}


_source: tuple[TrainingSet, Callable[[Patch], Arrays], Crops]


def _start_worker(training: TrainingSet, prepare: Callable[[Patch], Arrays], crops: Crops) -> None:
    """A worker makes patches in one thread, is deaf to Ctrl-C, and ends soon after the fit that started it."""
    global _source
    _source = (training, prepare, crops)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def stack(patches: list[Patch], prepare: Callable[[Patch], Arrays]) -> Arrays:
    """The prepared patches as one batch: each named array of them stacked along a new first axis."""
    prepared = [prepare(patch) for patch in patches]
    return {name: np.stack([one[name] for one in prepared]) for name in prepared[0]}


def _make(step: int) -> Arrays:
    return made(*_source, step)


def made(training: TrainingSet, prepare: Callable[[Patch], Arrays], crops: Crops, step: int) -> Arrays:
    """The prepared batch of one step; where SEMBENCH_BATCHES names a folder it is kept there, or taken from there."""
    folder = os.environ.get(SHARED)
    if not folder:
        return stack(training.batch(step, crops=crops), prepare)
    kind = [training.digest, training.degradation, training.seed, training.budget.batch, crops]
    kind += [prepare.__module__, prepare.__qualname__]
    path = Path(folder) / hashlib.sha256(repr(kind).encode()).hexdigest()[:16] / f"{step}.safetensors"
    if path.is_file():
        kept: Arrays = load_file(path)
        return kept
    arrays = stack(training.batch(step, crops=crops), prepare)
    write_atomically(path, save(arrays))
    return arrays


class Batches:
    """The batches of a fit in order of steps, made ahead by processes of their own; the same whoever makes them."""

    def __init__(
        self, training: TrainingSet, prepare: Callable[[Patch], Arrays], crops: Crops, workers: int | None
    ) -> None:
        self.source = (training.for_worker(), prepare, crops)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = min(8, max(1, cores - 1)) if workers is None else workers
        self.cores_left = max(1, cores - self.workers)
        self.pool: ProcessPoolExecutor | None = None
        self.queue: deque[Future[Arrays]] = deque()
        self.step = 0

    def __enter__(self) -> "Batches":
        if self.workers:
            with one_thread(), interrupts_held():
                context = multiprocessing.get_context("spawn")
                self.pool = ProcessPoolExecutor(self.workers, context, _start_worker, self.source)
                for _ in range(self.workers):
                    self.pool.submit(os.getpid)
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def validation(self) -> list[Arrays]:
        """The fixed validation patches, prepared, in batches of eight."""
        patches = self.source[0].validation_patches()
        return [stack(patches[i : i + 8], self.source[1]) for i in range(0, len(patches), 8)]

    def start(self, step: int) -> None:
        """The step whose batch comes next."""
        self.step = step

    def next(self) -> Arrays:
        """The batch of the next step."""
        training, prepare, crops = self.source
        if self.pool is None:
            self.step += 1
            return made(training, prepare, crops, self.step - 1)
        while len(self.queue) < AHEAD * self.workers:
            self.queue.append(self.pool.submit(_make, self.step))
            self.step += 1
        try:
            return self.queue.popleft().result()
        except BrokenProcessPool as error:
            raise SembenchError(
                "the process that makes training patches was lost (out of memory?): run again to resume the fit"
            ) from error
