"""The records of a run: one JSON line a (row, case), appended and synced, so that nothing computed is lost."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from sembench.errors import InputError, WriteError

Record = dict[str, Any]
Key = tuple[str, str]
RECORDS = "records.jsonl"
FLAT = "flat.jsonl"
"""Records on flat fields, in a run's folder beside those of its cases."""
LEFT_OUT = "left_out"
"""Status of a case that cannot be trusted, whoever restores it: counted, in no mean, not tried again."""


def key(record: Record) -> Key:
    """What a record is about: its row and its case."""
    return record["row"], record["case"]


class Records:
    """The records file of one run or shard; the last record of a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_key: dict[Key, Record] = {}
        self._load()

    def _load(self) -> None:
        try:
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(self.path, len(whole))
        except FileNotFoundError:
            return
        except OSError as error:
            raise WriteError(
                f"{self.path}: cannot be read and written ({error.strerror}): free it, or give another --out"
            ) from error
        self._by_key = _parsed(self.path, whole)

    def __contains__(self, wanted: Key) -> bool:
        return wanted in self._by_key

    def get(self, wanted: Key) -> Record | None:
        """The record of (row, case), if there is one."""
        return self._by_key.get(wanted)

    def all(self) -> list[Record]:
        """Every record, the newest of each key, in order of first appearance."""
        return list(self._by_key.values())

    def append(self, record: Record) -> None:
        """Append one record and sync it to the disk; a line that does not fit is taken back (WriteError)."""
        line = (json.dumps(record, sort_keys=True) + "\n").encode()
        descriptor = None
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(28, "no space left on the device")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        except OSError as error:
            raise WriteError(
                f"{self.path}: cannot be written ({error.strerror}): make room and run again to resume"
            ) from error
        finally:
            if descriptor is not None:
                os.close(descriptor)
        self._by_key[key(record)] = record


def read_records(path: Path) -> tuple[list[Record], bool]:
    """The records of a file that is left as it is, the newest of each key; and whether its last line is torn.

    A torn last line is no record: a run may be writing it. Raises InputError where the file cannot be read or another
    line is no record.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give the folder of a run with records") from error
    whole = content[: content.rfind(b"\n") + 1]
    return list(_parsed(path, whole).values()), len(whole) < len(content)


def _parsed(path: Path, whole: bytes) -> dict[Key, Record]:
    """The newest record of each key, in order of first appearance; every line must be one."""
    by_key: dict[Key, Record] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            if not all(isinstance(record[name], str) for name in ("row", "case", "status")):
                raise TypeError
            by_key[key(record)] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}: line {number} is not a record ({type(error).__name__}): "
                "remove that line to redo its case, or start over with --fresh"
            ) from error
    return by_key


def pending(
    records: Records, rows: Iterable[str], cases: Iterable[str], *, retry_failed: bool = False
) -> dict[str, list[str]]:
    """For each case the rows that have no record yet, or a failed one that is to be retried."""
    rows = list(rows)
    todo: dict[str, list[str]] = {}
    for case in cases:
        missing = []
        for row in rows:
            record = records.get((row, case))
            if record is None or (retry_failed and record["status"] == "failed"):
                missing.append(row)
        if missing:
            todo[case] = missing
    return todo


def fetch_stored(record: Record, source: Path, out: Path) -> None:
    """Bring the file of a record into `out`, as a link where the disk allows; it must be the one that was scored.

    source, out: run folders. Raises InputError where it is missing or another one, WriteError.
    """
    for name in ("image", "embeddings"):
        if name not in record:
            continue
        sha256 = record.get(f"{name}_sha256")
        path = PurePosixPath(str(record[name]))
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise InputError(f"{source}: record of {key(record)} names {path}, outside of its folder: not taken")
        target = out / path
        if sha256 and _sha256(target) == sha256:
            continue
        if not sha256 or _sha256(source / path) != sha256:
            raise InputError(f"{source / path}: missing, or not the file that was scored: run it again")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            try:
                os.link(source / path, partial)
            except OSError:
                shutil.copyfile(source / path, partial)
            partial.replace(target)
            partial.unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"{target}: cannot be written ({error.strerror}): make room and try again") from error


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
