"""Files that a case needs on another machine: by path where it has the same file, else by content."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sembench.datasets import cache
from sembench.errors import SembenchError
from sembench.execution.records import Record
from sembench.execution.worker import Bundle, Job
from sembench.micrograph import sidecar_files, write_atomically

Contents = Mapping[str, bytes]
"""Content of files by SHA-256, as they lie on the disk."""


@dataclass(frozen=True)
class Parcel:
    """A file and what must lie beside it: `named` as the case names it, `folder` where it is, name and SHA-256 each."""

    named: str
    folder: str
    files: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The file's own name, the first."""
        return self.files[0][0]


def parcels(job: Job, bundle: Bundle) -> tuple[Parcel, ...]:
    """Every file that these cases read; one that cannot be read now is left out, and its case will say so."""
    named = [
        *_paths(bundle.spec),
        *(str(path) for path in job.weights.values()),
        *(str(path) for path, _ in job.states.values()),
        *(file for file, _ in (_file_target(row.target) for row in bundle.rows) if file),
    ]
    return tuple(parcel for parcel in map(_parcel, dict.fromkeys(named)) if parcel)


def _paths(value: Any) -> Iterator[str]:
    """The values of all fields named `path`, also of parts."""
    if isinstance(value, tuple):
        for part in value:
            yield from _paths(part)
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            inner = getattr(value, part.name)
            if part.name == "path":
                yield str(inner)
            else:
                yield from _paths(inner)


def _file_target(target: str) -> tuple[str, str]:
    """FILE.py and `:Class` of a target that names a file, else two empty strings."""
    file, colon, name = target.rpartition(":") if ".py:" in target else (target, "", "")
    return (file, colon + name) if file.endswith(".py") else ("", "")


def _parcel(named: str) -> Parcel | None:
    path = Path(named).resolve()
    beside = [] if path.suffix == ".py" else sidecar_files(path).values()
    try:
        files = tuple((file.name, cache.content_sha256(file)) for file in (path, *beside))
    except (OSError, SembenchError):
        return None
    return Parcel(named, str(path.parent), files)


def contents(parcel: Parcel) -> dict[str, bytes]:
    """The content of a parcel's files."""
    return {sha256: Path(parcel.folder, name).read_bytes() for name, sha256 in parcel.files}


def place(parcel: Parcel, shelf: Path, sent: Contents) -> Path | None:
    """Where the parcel's file is here: at its own path, or on the shelf, put there from what was sent; else None."""
    own = shelf / hashlib.sha256(json.dumps(parcel.files).encode()).hexdigest()[:16]
    for folder in (Path(parcel.folder), own):
        if _holds(folder, parcel):
            return folder / parcel.name
    if not all(sha256 in sent for _, sha256 in parcel.files):
        return None
    for name, sha256 in parcel.files:
        write_atomically(own / name, sent[sha256])
    return own / parcel.name


def _holds(folder: Path, parcel: Parcel) -> bool:
    try:
        return all(cache.content_sha256(folder / name) == sha256 for name, sha256 in parcel.files)
    except (OSError, SembenchError):
        return False


def relocated_job(job: Job, places: Mapping[str, str], run_folder: Path) -> Job:
    """The job with its files where they are here, and its results in another folder."""
    return replace(
        job,
        run_folder=run_folder,
        weights={name: Path(places.get(str(path), path)) for name, path in job.weights.items()},
        states={row: (Path(places.get(str(path), path)), sha256) for row, (path, sha256) in job.states.items()},
    )


def relocated_bundle(bundle: Bundle, places: Mapping[str, str]) -> Bundle:
    """The bundle with its files where they are here."""
    rows = []
    for row in bundle.rows:
        file, name = _file_target(row.target)
        rows.append(replace(row, target=places[file] + name) if file in places else row)
    return Bundle(_relocated(bundle.spec, places), tuple(rows))


def _relocated(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, tuple):
        return tuple(_relocated(part, places) for part in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
    moved = {
        name: places.get(str(inner), inner) if name == "path" else _relocated(inner, places)
        for name, inner in parts.items()
    }
    return replace(value, **moved) if moved != parts else value


def as_named(record: Record, places: Mapping[str, str]) -> Record:
    """The record with files named as at home, in what it says of a failure."""
    named = dict(record)
    for name in ("reason", "traceback"):
        for home, here in places.items():
            if name in named:
                named[name] = named[name].replace(here, home)
    return named
