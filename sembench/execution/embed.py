"""The record of a set: a vector for each clean tile, stored, and scored as it was stored."""

import hashlib
import io
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sembench.cases import TileSetSpec
from sembench.errors import InputError
from sembench.execution.records import Record
from sembench.metrics.clustering import Embedded, SetMetricSpec, evaluate_set
from sembench.micrograph import write_atomically
from sembench.processes import peak_memory_mb
from sembench.protocol import Protocol
from sembench.restorer import Image

Vectors = NDArray[np.float32]
"""float32 (tiles, features), finite."""

FOLDER = "embeddings"


def solve_set(
    embed: Callable[[Image], Any],
    spec: TileSetSpec,
    protocol: Protocol,
    metrics: Sequence[SetMetricSpec],
    folder: Path,
    row_id: str,
    seed: Callable[[str], None],
) -> Record:
    """Embed every tile, store the vectors in the run folder, score the stored file; the record's part that tells it.

    seed: called with a tile's id before it is embedded. Raises InputError where embed breaks its contract or the
    vectors cannot be scored, WriteError where they cannot be stored.
    """
    clock = [time.perf_counter()]
    tiles = list(spec.images(protocol))
    clock.append(time.perf_counter())
    vectors = embeddings(embed, tiles, seed)
    clock.append(time.perf_counter())
    path = Path(FOLDER) / row_id / f"{spec.case_id}.npy"
    sha256 = store(folder / path, vectors)
    clock.append(time.perf_counter())
    scores = evaluate_set(metrics, Embedded(load(folder / path, sha256), spec.groups))
    clock.append(time.perf_counter())
    return {
        "metrics": scores.values,
        "undefined": scores.reasons,
        "inapplicable": list(scores.inapplicable),
        "input_sha256": hashlib.sha256(b"".join(image.tobytes() for _, image in tiles)).hexdigest(),
        "embeddings": path.as_posix(),
        "embeddings_sha256": sha256,
        "seconds": dict(
            zip(("case", "embed", "store", "score"), (b - a for a, b in itertools.pairwise(clock)), strict=True)
        ),
        "peak_memory_mb": peak_memory_mb(),
    }


def embeddings(
    embed: Callable[[Image], Any], tiles: Sequence[tuple[str, Image]], seed: Callable[[str], None]
) -> Vectors:
    """The vector of each tile, one tile at a time; InputError names the tile whose vector is none."""
    rows: list[Vectors] = []
    for name, tile in tiles:
        image = tile.copy()
        image.setflags(write=False)
        seed(name)
        rows.append(_vector(embed(image), name))
        if not np.array_equal(image, tile):
            raise InputError(f"embed changed tile {name}: work on a copy")
        if rows[-1].shape != rows[0].shape:
            raise InputError(f"embed gave {len(rows[-1])} features for tile {name} and {len(rows[0])} before")
    return np.stack(rows)


def _vector(found: Any, name: str) -> Vectors:
    if not isinstance(found, np.ndarray):
        raise InputError(f"embed gave {type(found).__name__} for tile {name}, not an array")
    if found.ndim != 1 or not found.size or found.dtype.kind not in "fiu":
        raise InputError(f"embed gave {found.dtype} of shape {found.shape} for tile {name}, not a real vector")
    with np.errstate(over="ignore"):
        vector = found.astype(np.float32)
    broken = int(np.count_nonzero(~np.isfinite(vector)))
    if broken:
        raise InputError(f"embed gave {broken} values for tile {name} that are not finite (NaN or infinite)")
    return vector


def store(path: Path, vectors: Vectors) -> str:
    """Write the vectors as .npy under a temporary name, then rename; SHA-256 (hex) of the file's bytes."""
    content = io.BytesIO()
    np.save(content, vectors.astype("<f4"), allow_pickle=False)
    write_atomically(path, content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def load(path: Path, sha256: str) -> Vectors:
    """The vectors of a record; InputError where the file is missing or is not the one that was scored."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): run again to make it") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path}: not the embeddings that were scored: remove it and run again to make it")
    try:
        vectors = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: no array of numbers: remove it and run again to make it") from error
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
        raise InputError(f"{path}: not a vector for each tile: remove it and run again to make it")
    return vectors
