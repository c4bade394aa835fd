"""The run folder: who may write there, and its description, run.json."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sembench.errors import InputError, WriteError
from sembench.execution.records import FLAT, RECORDS
from sembench.micrograph import write_atomically

RUN_SCHEMA = 1


@contextmanager
def exclusive(folder: Path, *, busy: str, mend: str, wait_s: float = 0) -> Iterator[None]:
    """Make the folder and keep every other process that asks likewise out of it meanwhile.

    busy, mend: the ends of the errors' lines, what the other one does and what to do. wait_s: how long to wait (s).
    Raises InputError where another one holds it for longer, WriteError where it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise InputError(f"{folder}: {busy}") from error
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error.strerror}): {mend}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(folder: Path, *, fresh: bool = False) -> Iterator[None]:
    """Make the folder, empty it of an earlier run if `fresh`, and keep others from writing there meanwhile.

    Raises InputError where another run writes there, WriteError where nobody can.
    """
    busy = "another run is writing there: wait for it, or give another --out"
    with exclusive(folder, busy=busy, mend="give another folder with --out"):
        if fresh:
            _clear(folder)
        yield


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, and only in a folder that is a run."""
    if not (folder / "run.json").is_file():
        return
    for name in ("restored", "embeddings", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (RECORDS, FLAT, "flat.csv", "run.json", "cases.csv", "summary.csv", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("summary-*.csv"):
        path.unlink(missing_ok=True)


def read_description(folder: Path, digest: str) -> dict[str, Any]:
    """run.json of a folder that is to hold the run of this digest, {} where there is none yet; else InputError."""
    path = folder / "run.json"
    if not path.is_file():
        if (folder / RECORDS).exists():
            raise InputError(f"{folder}: holds records.jsonl and no run.json: put it back, or give another --out")
        return {}
    try:
        description: dict[str, Any] = json.loads(path.read_text())
        other = description["digest"]
        described_rows(description)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a run description: start over with --fresh, or give another --out") from error
    if other != digest:
        raise InputError(
            f"{folder}: holds a run of digest {str(other)[:8]}, this one is {digest[:8]} "
            "(another protocol, version or data): give another --out, or --fresh"
        )
    return description


def described_rows(description: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Row id -> what a run.json says of it."""
    return {row["row"]: row for row in description.get("rows", [])}


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write run.json whole or not at all."""
    write_atomically(folder / "run.json", (json.dumps(description, indent=2, sort_keys=True) + "\n").encode())
