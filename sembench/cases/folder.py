"""A user's own folder of images as the source of cases: names, digests, and what its run is called."""

import contextlib
import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

from sembench import micrograph
from sembench.errors import InputError
from sembench.registry import DATASETS, plugins

LARGEST_PX = 2**26
"""Pixels of the largest image that is restored and scored as a whole: with registration and metrics some 10 GB."""


def named_images(folder: Path) -> dict[str, Path]:
    """The images of a folder by stem, or by whole name where stems repeat, in sorted order; InputError for none."""
    files = micrograph.list_images(folder)
    if not files:
        raise InputError(f"{folder}: no images in it (PNG, TIFF, JPEG, BMP)")
    stems = [micrograph.image_stem(file) for file in files]
    return dict(zip(stems if len(set(stems)) == len(stems) else [file.name for file in files], files, strict=True))


def file_sha256(path: Path) -> str:
    """SHA-256 of a user's file; InputError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): free it, or take it out of the folder") from error


def check_sizes(images: Iterable[tuple[Path, ...]]) -> None:
    """Refuse, before anything is computed, images that are too large, and images that belong together and differ.

    images: the files of each case. Raises InputError with a list.
    """
    unequal = []
    for files in images:
        sizes = [_size(file) for file in files]
        for file, (height, width) in zip(files, sizes, strict=True):
            if height * width > LARGEST_PX:
                raise InputError(
                    f"{file}: {width} x {height} px are {height * width / 1e6:.0f} million; an image is restored and "
                    f"scored as a whole, {LARGEST_PX / 1e6:.0f} million at most: cut it into fields of 8192 x 8192 px"
                )
        if len(set(sizes)) > 1:
            unequal.append(
                ", ".join(f"{file.name} {size[1]} x {size[0]} px" for file, size in zip(files, sizes, strict=True))
            )
    if unequal:
        more = f" and {len(unequal) - 4} more" if len(unequal) > 4 else ""
        raise InputError(f"{len(unequal)} pairs of two sizes: {'; '.join(unequal[:4])}{more}: give images of one size")


def _size(path: Path) -> tuple[int, int]:
    """Height and width (px), from the header alone where that tells them."""
    found = None
    with contextlib.suppress(Exception):
        if path.suffix.lower() in (".tif", ".tiff"):
            from tifffile import TiffFile

            with TiffFile(path) as tiff:
                found = tiff.pages.first.imagelength, tiff.pages.first.imagewidth
        elif path.suffix.lower() == ".png":
            with path.open("rb") as file:
                width, height = struct.unpack(">2I", file.read(24)[16:])
            found = height, width
    if found is not None:
        return found
    height, width = micrograph.read(path).pixels.shape
    return height, width


def data_name(folder: Path, reserved: str) -> str:
    """The folder's own name as that of its data, never one that stands for a data set or for simulated scenes."""
    name = folder.resolve().name
    return f"folder-{name}" if name in (reserved, *plugins(DATASETS)) else name
