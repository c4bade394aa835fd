"""A run folder read back, as it stands: what was run, and its records; nothing is changed there."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from sembench.errors import InputError
from sembench.execution.folder import RUN_SCHEMA
from sembench.execution.plan import Row
from sembench.execution.records import FLAT, RECORDS, Record, key, read_records
from sembench.execution.request import RunPlan


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """What a run folder holds: its description (run.json), rows and records. torn: the last line is cut short.

    flat: the records of its rows on flat fields.
    """

    folder: Path
    description: dict[str, Any]
    rows: tuple[Row, ...]
    records: tuple[Record, ...] = field(repr=False)
    torn: bool = False
    flat: tuple[Record, ...] = field(default=(), repr=False)


class _Row(BaseModel):
    row: str
    restorer: str
    kind: str
    settings: dict[str, Any]
    trained_on: list[str] = []
    variant: dict[str, Any] = {}


class _Protocol(BaseModel):
    name: str


class _Description(BaseModel):
    """What every reader of run.json relies on."""

    version: int = Field(alias="schema")
    protocol: _Protocol
    protocol_digest: str
    data_digest: str
    rows: list[_Row]


class _Record(BaseModel):
    """What every reader of a record relies on."""

    restorer: str
    group: str
    metrics: dict[str, Any] = {}
    inapplicable: list[str] = []
    seconds: dict[str, float] = {}
    reason: str = ""


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, and where, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".replace("\n", " ")


def parse_description(content: bytes, path: Path) -> tuple[dict[str, Any], tuple[Row, ...]]:
    """What a run.json says, and its rows; InputError, one line, where it is none; path: its name in errors."""
    try:
        description = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a run description ({type(error).__name__}): run again with --fresh") from error
    schema = description.get("schema") if isinstance(description, dict) else None
    if schema is not None and schema != RUN_SCHEMA:
        raise InputError(f"{path}: is of schema {schema}, this version reads {RUN_SCHEMA}: use the sembench it is of")
    try:
        told = _Description.model_validate(description, strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: not a run description ({_first(error)}): run again with --fresh") from error
    return description, tuple(map(_row, told.rows))


def _row(told: _Row) -> Row:
    declared = tuple(told.trained_on)
    return Row(told.restorer, "", told.kind, told.settings, told.row, trained_on=declared, variant=told.variant)


def read_run(folder: Path) -> RecordedRun:
    """Read a run folder, also one that is still being written; InputError, one line, where it is none or is damaged."""
    path = folder / "run.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{folder}: not a run folder, run.json cannot be read ({error.strerror})") from error
    description, rows = parse_description(content, path)
    records, torn = read_records(folder / RECORDS)
    if not records:
        raise InputError(f"{folder}: holds no record yet: run it first, or wait for its first case")
    flat, flat_torn = read_records(folder / FLAT) if (folder / FLAT).is_file() else ([], False)
    known = {row.row_id for row in rows}
    for record in (*records, *flat):
        if record["row"] not in known:
            raise InputError(
                f"{folder}: record of {key(record)} fits no row of run.json: remove its line and run again"
            )
        try:
            _Record.model_validate(record, strict=True)
        except ValidationError as error:
            raise InputError(
                f"{folder}: record of {record.get('restorer')} on {record['case']} is damaged ({_first(error)}): "
                "remove its line and run again"
            ) from error
    return RecordedRun(folder, description, rows, tuple(records), torn or flat_torn, tuple(flat))


def whole_run(plan: RunPlan) -> tuple[RunPlan, list[Record]]:
    """The plan of a run's command with every row that its folder holds, and the records of all, by row and case.

    Rows of the command come first; they replace those of the same restorer, settings and variant that earlier code
    made. Of sets, which are a case each, only the plan's own counts. Raises InputError as `read_run`.
    """
    run = read_run(plan.folder)
    told = {str(row["row"]): row for row in run.description["rows"]}
    asked = {spec.case_id for spec in plan.cases.specs}
    by_row: dict[str, list[Record]] = {}
    for record in sorted(run.records, key=lambda record: str(record["case"])):
        if plan.protocol.scope == "case" or record["case"] in asked:
            by_row.setdefault(record["row"], []).append(record)
    known = [replace(row, budget=_budget(told[row.row_id])) for row in run.rows if row.row_id in by_row]
    own = {_about(row) for row in plan.rows}
    rows = (*plan.rows, *(row for row in known if _about(row) not in own))
    return replace(plan, rows=rows), [record for row in rows for record in by_row.get(row.row_id, ())]


def _about(row: Row) -> str:
    """What a row is a row of, whatever code and weights made it."""
    return json.dumps([row.name, row.settings, row.variant, row.budget], sort_keys=True)


def _budget(described: dict[str, Any]) -> str:
    """The name of the budget with which a row of run.json learned; empty where it did not."""
    identity = (described.get("fit") or {}).get("identity") or {}
    return str((identity.get("budget") or [""])[0])
