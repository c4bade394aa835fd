"""A user's own folder of images as the source of cases: names, digests, and what its run is called."""

import hashlib
from pathlib import Path

from sembench import micrograph
from sembench.errors import InputError
from sembench.registry import DATASETS, plugins


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


def data_name(folder: Path, reserved: str) -> str:
    """The folder's own name as that of its data, never one that stands for a data set or for simulated scenes."""
    name = folder.resolve().name
    return f"folder-{name}" if name in (reserved, *plugins(DATASETS)) else name
