"""An image restored in tiles where memory may not do for all of it at once."""

import math
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from sembench.restorer import Image

BYTES_A_PIXEL = 1024
"""What a restorer is taken to need for a pixel: a network's 64 channels of 4 bytes in four layers at once."""

SHARE_OF_MEMORY = 0.5
"""Share of the free memory that one restoration may take."""

SMALLEST_TILE = 256
"""Side (px) that tiles have at least where memory decides."""

CGROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
"""Where Linux tells a container's limit, its use, and the name of what of that can be taken back; versions 2 and 1."""


def tile_side(shape: tuple[int, ...], overlap: int, free_bytes: int) -> int | None:
    """Side (px) of the tiles in which an image is to be restored by the memory that is free; None: at once.

    shape: of the image; overlap: px around a tile that are restored with it.
    """
    pixels = int(SHARE_OF_MEMORY * free_bytes / BYTES_A_PIXEL)
    if math.prod(shape) <= pixels:
        return None
    return max(SMALLEST_TILE, math.isqrt(pixels) - 2 * overlap)


def restore_tiles(
    restore: Callable[[Image], Image],
    image: Image,
    overlap: int,
    side: int,
    on_tile: Callable[[int, int], None] | None = None,
) -> Image:
    """Restore (H, W) in tiles of `side` px at most, each with `overlap` px around it, which are cut off again.

    A tile ends where the image ends, so that a pixel sees what it sees in the whole image, up to `overlap` px away.
    side: 64 at least. on_tile: told how many tiles are done, and of how many. Raises ValueError where a tile comes
    back in another shape.
    """
    places = list(product(*(list(pairwise(_cuts(length, side))) for length in image.shape)))
    restored = np.empty(image.shape, np.float32)
    for done, ((top, bottom), (left, right)) in enumerate(places, 1):
        y, x = max(0, top - overlap), max(0, left - overlap)
        seen = np.ascontiguousarray(image[y : bottom + overlap, x : right + overlap])
        seen.flags.writeable = False
        made = np.asarray(restore(seen))
        if made.shape != seen.shape:
            raise ValueError(f"result of shape {made.shape} for a tile of shape {seen.shape}")
        restored[top:bottom, left:right] = made[top - y : bottom - y, left - x : right - x]
        if on_tile:
            on_tile(done, len(places))
    return restored


def tile_count(shape: tuple[int, ...], side: int | None) -> int:
    """How many tiles an image is restored in; side: None where it is restored at once."""
    return 1 if side is None else math.prod(len(_cuts(length, side)) - 1 for length in shape)


def _cuts(length: int, side: int) -> list[int]:
    """Where tiles of about equal sides begin, and the end."""
    number = math.ceil(length / side)
    return [round(i * length / number) for i in range(number + 1)]


def free_memory(control: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may take: what the machine has free, or what is left to its container (Linux)."""
    import psutil

    free = [int(psutil.virtual_memory().available)]
    for limit, used, reclaimable in CGROUPS:
        try:
            left = int((control / limit).read_text()) - int((control / used).read_text())
        except (OSError, ValueError):
            continue
        free.append(left + _entry((control / limit).with_name("memory.stat"), reclaimable))
    return max(0, min(free))


def _entry(file: Path, name: str) -> int:
    """The number behind a name in a file of such lines; 0 where there is none."""
    try:
        words = file.read_text().split()
        return int(words[words.index(name) + 1])
    except (OSError, ValueError, IndexError):
        return 0
