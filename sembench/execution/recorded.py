"""A run folder read back, as it stands: what was run, and its records; nothing is changed there."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sembench.errors import InputError
from sembench.execution.plan import Row
from sembench.execution.records import Record, key, read_records
from sembench.execution.run import RUN_SCHEMA


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a run folder holds: its description (run.json), rows and records. torn: the last line is cut short."""

    folder: Path
    description: dict[str, Any]
    rows: tuple[Row, ...]
    records: tuple[Record, ...] = field(repr=False)
    torn: bool = False


def read_run(folder: Path) -> RecordedRun:
    """Read a run folder, also one that is still being written; InputError, one line, where it is none or is damaged."""
    path = folder / "run.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder}: not a run folder, run.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not a run description ({type(error).__name__}): run again with --fresh") from error
    try:
        schema = description["schema"]
        rows = tuple(Row(row["restorer"], "", row["kind"], row["settings"], row["row"]) for row in description["rows"])
        str(description["protocol"]["name"]), str(description["protocol_digest"]), str(description["data_digest"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a run description ({error}): run again with --fresh") from error
    if schema != RUN_SCHEMA:
        raise InputError(f"{path}: is of schema {schema}, this version reads {RUN_SCHEMA}: use the sembench it is of")
    records, torn = read_records(folder / "records.jsonl")
    if not records:
        raise InputError(f"{folder}: holds no record yet: run it first, or wait for its first case")
    known = {row.row_id for row in rows}
    for record in records:
        whole = isinstance(record.get("group"), str) and isinstance(record.get("metrics", {}), dict)
        if not whole or record["row"] not in known:
            raise InputError(
                f"{folder}: record of {key(record)} fits no row of run.json: remove its line and run again"
            )
    return RecordedRun(folder, description, rows, tuple(records), torn)
