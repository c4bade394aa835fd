"""What a worker process does: make a case, restore it, check the result, score it, store it."""

import hashlib
import itertools
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sembench import micrograph
from sembench.cases import Case, CaseLeftOut, CaseSpec, FlatSpec, TileSetSpec
from sembench.errors import InputError, WriteError
from sembench.execution.embed import load, solve_set
from sembench.execution.fits import load_state
from sembench.execution.plan import Row
from sembench.execution.provenance import environment, environment_digest
from sembench.execution.records import LEFT_OUT, Record
from sembench.metrics import perceptual
from sembench.metrics.clustering import Embedded, evaluate_set
from sembench.metrics.table import MetricCase, evaluate
from sembench.optics import generator
from sembench.processes import peak_memory_mb
from sembench.protocol import Protocol
from sembench.registry import METRICS, load_method, plugin
from sembench.restorer import Image, Truth, check_image

STORE_FAILED = "store_failed"
FLAT_METRICS = ("invented_structure",)
"""What is asked of a flat field, whatever the protocol asks of its cases."""


@dataclass(frozen=True)
class Job:
    """What every task of a run shares, handed to each worker once."""

    protocol: Protocol
    metrics: tuple[str, ...]
    weights: Mapping[str, Path]
    run_folder: Path
    states: Mapping[str, tuple[Path, str]] = field(default_factory=dict)
    device: str = "cpu"


@dataclass(frozen=True)
class Bundle:
    """What one worker does in one go: rows that share a case, which is made once for all of them."""

    spec: CaseSpec
    rows: tuple[Row, ...]


_job: Job


def start(job: Job, quiet: bool = True) -> None:
    """Prepare this process: one thread, no output from plugins, weights at hand."""
    global _job
    _job = job
    if quiet:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    perceptual.use_weights(dict(job.weights))


def _end_with(parent: int) -> None:
    """End this worker soon after the run that started it was killed, even in the middle of a case."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@lru_cache(maxsize=1)
def _made(spec: CaseSpec) -> tuple[Case, MetricCase, str | None, str | None] | CaseLeftOut:
    try:
        case = spec.make(_job.protocol)
    except CaseLeftOut as reason:
        return reason
    scoring = MetricCase(
        reference=case.reference,
        degraded=case.degraded,
        degradation=case.degradation,
        margin=_job.protocol.margin if case.margin is None else case.margin,
        pixel_size_nm=case.pixel_size_nm,
        truth=case.truth,
        flat=case.flat,
    )
    return case, scoring, _sha256(case.reference), _sha256(case.degraded)


def _case(spec: CaseSpec) -> tuple[Case, MetricCase, str | None, str | None]:
    """The case, how it is scored, and the digests of its reference and input; made once, left out once."""
    made = _made(spec)
    if isinstance(made, CaseLeftOut):
        raise made
    return made


def _method_of(row: Row) -> Any:
    return _method(row.target, json.dumps(row.settings), row.row_id)


@lru_cache(maxsize=64)
def _method(target: str, settings: str, row_id: str) -> Any:
    method = load_method(target, json.loads(settings))
    if method.kind == "restorer":
        method.device = _job.device
        if row_id in _job.states:
            method.state = load_state(*_job.states[row_id])
    return method


@lru_cache(maxsize=2)
def _metrics(names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(plugin(METRICS, name).load() for name in names)


def _sha256(image: Image | None) -> str | None:
    return None if image is None else hashlib.sha256(image.tobytes()).hexdigest()


def _seed_everything(row: Row, case_id: str) -> None:
    """Plugins that use a global random stream get the same one whatever ran before."""
    words = generator(_job.protocol.seed, case_id, f"restore:{row.row_id}").integers(0, 2**32, 4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(int(words[2]))


def restore(row: Row, case: Case) -> Image:
    """The restored image of one case on the grid; InputError where the method breaks its contract."""
    method = _method_of(row)
    check_image(case.degraded)
    image = case.degraded.copy()
    image.setflags(write=False)
    _seed_everything(row, case.case_id)
    if row.kind == "control":
        if case.reference is None:
            raise InputError(f"{row.name} is a control and needs a reference, which this image does not have")
        reference = case.reference.copy()
        reference.setflags(write=False)
        restored = method.restore(image, Truth(reference, case.degradation))
    else:
        restored = method.restore(image)
    if not np.array_equal(image, case.degraded):
        raise InputError(f"{row.name} changed its input image: work on a copy")
    if not isinstance(restored, np.ndarray):
        raise InputError(f"{row.name} returned {type(restored).__name__}, not an array")
    if restored.shape != case.degraded.shape:
        raise InputError(f"{row.name} returned shape {restored.shape} for an image of shape {case.degraded.shape}")
    if restored.dtype.kind not in "fiu":
        raise InputError(f"{row.name} returned values of type {restored.dtype}, not real numbers")
    broken = int(np.count_nonzero(~np.isfinite(restored)))
    if broken:
        raise InputError(f"{row.name} returned {broken} values that are not finite (NaN or infinite)")
    return micrograph.to_grid(restored)


@lru_cache(maxsize=1)
def _environment() -> str:
    """Digest of this process's own environment, which need not be that of the process that started the run."""
    return environment_digest(environment())


def _about(row: Row, spec: CaseSpec) -> Record:
    return {
        "schema": 1,
        "row": row.row_id,
        "restorer": row.name,
        "kind": row.kind,
        "case": spec.case_id,
        "group": spec.group,
    }


def solve(row: Row, spec: CaseSpec) -> Record:
    """One record: the restored image stored and scored, or the reason why not."""
    record: Record = {**_about(row, spec), "status": "ok", "device": _job.device, "environment": _environment()}
    if row.row_id in _job.states:
        record["state_sha256"] = _job.states[row.row_id][1]
    if isinstance(spec, TileSetSpec):
        size = {"tiles": len(spec.tiles), "tile_groups": len(set(spec.groups))}
        return record | size | _solve_set(row, spec)
    clock = [time.perf_counter()]
    try:
        case, scoring, reference_sha256, degraded_sha256 = _case(spec)
        clock.append(time.perf_counter())
        restored = restore(row, case)
        clock.append(time.perf_counter())
        names = FLAT_METRICS if isinstance(spec, FlatSpec) else _job.metrics
        scores = evaluate(_metrics(names), restored, scoring)
        clock.append(time.perf_counter())
    except CaseLeftOut as reason:
        record.update(status=LEFT_OUT, reason=str(reason))
        return record
    except BaseException as error:
        record.update(failure(f"{type(error).__name__}: {error}", traceback.format_exc()))
        return record
    path = Path("restored") / row.row_id / f"{spec.case_id}.png"
    try:
        image_sha256 = micrograph.write_grid_png(_job.run_folder / path, restored)
    except WriteError as error:
        record.update(status=STORE_FAILED, reason=str(error))
        return record
    clock.append(time.perf_counter())
    record.update(
        metrics=scores.values,
        undefined=scores.reasons,
        inapplicable=list(scores.inapplicable),
        reference_sha256=reference_sha256,
        input_sha256=degraded_sha256,
        image=path.as_posix(),
        image_sha256=image_sha256,
        seconds=dict(
            zip(
                ("case", "restore", "score", "store"),
                (b - a for a, b in itertools.pairwise(clock)),
                strict=True,
            )
        ),
        peak_memory_mb=peak_memory_mb(),
    )
    if case.alignment is not None:
        record["alignment"] = case.alignment
    return record


def _solve_set(row: Row, spec: TileSetSpec) -> Record:
    """The part of a record that tells of a set's embeddings, or the reason why there are none."""
    try:
        method = _method_of(row)
        return solve_set(
            method.embed, spec, _job.protocol, _metrics(_job.metrics), _job.run_folder, row.row_id,
            partial(_seed_everything, row),
        )  # fmt: skip
    except WriteError as error:
        return {"status": STORE_FAILED, "reason": str(error)}
    except BaseException as error:
        return failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def rescore(spec: CaseSpec, stored: Path, sha256: str) -> Record:
    """A stored restored image, or stored embeddings, scored anew: metrics and digests of the case, or why not."""
    digests: Sequence[str | None]
    try:
        if isinstance(spec, TileSetSpec):
            tiles = spec.images(_job.protocol)
            digests = None, hashlib.sha256(b"".join(image.tobytes() for _, image in tiles)).hexdigest()
            scores = evaluate_set(_metrics(_job.metrics), Embedded(load(stored, sha256), spec.groups))
        else:
            _, scoring, *digests = _case(spec)
            names = FLAT_METRICS if isinstance(spec, FlatSpec) else _job.metrics
            scores = evaluate(_metrics(names), micrograph.read_grid_png(stored), scoring)
    except CaseLeftOut as reason:
        return {"status": LEFT_OUT, "reason": str(reason)}
    except BaseException as error:
        return failure(f"{type(error).__name__}: {error}", traceback.format_exc())
    return {
        "status": "ok",
        "metrics": scores.values,
        "undefined": scores.reasons,
        "inapplicable": list(scores.inapplicable),
        "reference_sha256": digests[0],
        "input_sha256": digests[1],
    }


def lost(row: Row, spec: CaseSpec, reason: str) -> Record:
    """The record of a case whose worker could not tell."""
    return _about(row, spec) | failure(reason)


def failure(reason: str, trace: str = "") -> Record:
    """The part of a record that says why a case failed."""
    printable = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
    return {"status": "failed", "reason": printable[:500], "traceback": trace[-2000:]}
