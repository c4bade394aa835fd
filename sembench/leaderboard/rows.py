"""The table of a protocol's published rows: its columns, and how it is written and read."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sembench.errors import InputError
from sembench.execution.plan import Row
from sembench.execution.worker import FLAT_METRICS
from sembench.protocol import Protocol
from sembench.statistics import Interval
from sembench.statistics.ranks import Places

SCHEMA = 1
PLACES = ("rank", "rank_without_group")
SCORE_PARTS = ("mean", "low", "high", "n", "groups", "interval", "undefined")
LARGEST_FIELD = 2**24
"""Characters that a cell may have."""


@dataclass(frozen=True)
class Score:
    """A metric of a row: mean and interval over its cases (None: no value), and how many solved cases lack a value."""

    interval: Interval | None
    undefined: int


@dataclass(frozen=True)
class Published:
    """One published row: a restorer or control with its settings; "" and None where something is not known.

    row: as in the run folder; variant: in what it is not the protocol's own row of its restorer. cases: all of the run,
    left_out those that cannot be trusted. letters, rank (from, to), rank_without_group: on the protocol's primary
    metric among the ranked restorers of the table on equal data, over the ranked_cases that all of these solved;
    separable: whether there are groups enough to tell any two apart; missing: cases without a value of that metric, of
    those on which any restorer has one, too many of which leave a restorer unranked; marks: what must be known beside
    the rank.
    state_from: where the fitted state is to be had. environment: digest; the bundle holds the whole.
    bundle: its folder beside the table, named by bundle_sha256, the SHA-256 of its checksums. scores: metric -> score.
    """

    row: str
    restorer: str
    kind: str
    version: int | None
    settings: dict[str, Any]
    variant: dict[str, Any]
    data: str
    cases: int
    solved: int
    failed: int
    left_out: int
    groups: int
    letters: str
    rank: Places | None
    rank_without_group: Places | None
    ranked_cases: int | None
    ranked_groups: int | None
    separable: str
    missing: int | None
    marks: str
    budget: str
    fit_steps: int | None
    parameters: int | None
    multiply_adds_per_px: float | None
    fit_seconds: float | None
    fit_device: str
    device: str
    seconds_median: float | None
    peak_memory_mb: float | None
    state_sha256: str
    state_from: str
    weights_sha256: str
    source_sha256: str
    licence: str
    environment: str
    sembench: str
    commit: str
    started: str
    protocol_digest: str
    data_digest: str
    bundle: str
    bundle_sha256: str
    scores: dict[str, Score]

    @property
    def key(self) -> tuple[str, str]:
        """What the row is about: publishing the same again replaces it."""
        return self.data_digest, self.row

    @property
    def label(self) -> str:
        """The restorer's name, with its variant where it is not the protocol's own row."""
        return Row(self.restorer, "", self.kind, self.settings, self.row, variant=self.variant).label


def _columns() -> list[str]:
    names = ["schema"]
    for field in fields(Published):
        if field.name in PLACES:
            names += [f"{field.name}_low", f"{field.name}_high"]
        elif field.name != "scores":
            names.append(field.name)
    return names


COLUMNS = tuple(_columns())
"""Columns before those of the metrics."""


def columns_of(protocol: Protocol) -> tuple[str, ...]:
    """The metrics that a protocol's table has: its own, and those of flat fields, reported and not ranked."""
    flat = FLAT_METRICS if protocol.scope == "case" else ()
    return tuple(dict.fromkeys((*protocol.metrics.names, *flat)))


def table_name(protocol: str, version: int) -> str:
    """<protocol>-v<version>.csv"""
    return f"{protocol}-v{version}.csv"


def as_csv(rows: Iterable[Published], metrics: Sequence[str]) -> bytes:
    """The table, rows sorted by data set, kind, restorer and id, numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{metric}_{part}" for metric in metrics for part in SCORE_PARTS)])
    for row in sorted(rows, key=lambda row: (row.data, row.kind == "control", row.restorer, row.row, row.data_digest)):
        cells = [str(SCHEMA)]
        for field in fields(Published):
            value = getattr(row, field.name)
            if field.name in PLACES:
                cells += [str(place) for place in value] if value else ["", ""]
            elif field.name != "scores":
                cells.append(_told(value))
        for metric in metrics:
            score = row.scores[metric]
            interval = score.interval or Interval(math.nan, None, None, 0, 0, "")
            parts = (interval.low, interval.high, interval.n, interval.groups, interval.method, score.undefined)
            cells += [_told(interval.mean if score.interval else None), *map(_told, parts)]
        writer.writerow(cells)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _told(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return repr(value) if isinstance(value, float) else str(value)


def read_rows(path: Path) -> list[Published]:
    """The rows of a table, in its order; InputError, one line, names the line and column of what is not right."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): give a table that sembench published") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a table of published rows (not UTF-8): take the published file back") from error
    return parse_rows(text, str(path))


def parse_rows(text: str, file: str) -> list[Published]:
    """The rows of a table's text; file: its name in errors."""
    limit = csv.field_size_limit(LARGEST_FIELD)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"{file}: not a table of published rows ({error}): take the published file back") from error
    finally:
        csv.field_size_limit(limit)
    if not lines:
        raise InputError(f"{file}: is empty, not even a header: take the published file back")
    header, body = lines[0], lines[1:]
    for number, cells in enumerate(body, 2):
        if cells and header[:1] == ["schema"] and re.fullmatch(r"\d{1,9}", cells[0]) and int(cells[0]) > SCHEMA:
            raise InputError(
                f"{file}: line {number} is of schema {cells[0]}, this version reads {SCHEMA}: use a newer sembench"
            )
    metrics = _metrics(header, file)
    rows: dict[tuple[str, str], Published] = {}
    for number, cells in enumerate(body, 2):
        row = _Line(cells, header, f"{file}: line {number}").row(metrics)
        if row.key in rows:
            raise InputError(f"{file}: line {number}: {row.row} on {row.data} stands there twice: keep one of them")
        rows[row.key] = row
    return list(rows.values())


def _metrics(header: Sequence[str], file: str) -> list[str]:
    """The metrics of a header; InputError names the first column that is not the one expected."""
    metrics = [name.removesuffix("_mean") for name in header[len(COLUMNS) :: len(SCORE_PARTS)]]
    expected = [*COLUMNS, *(f"{metric}_{part}" for metric in metrics for part in SCORE_PARTS)]
    if list(header) != expected or len(set(metrics)) < len(metrics):
        pairs = zip([*header, *[""] * len(expected)], expected, strict=False)
        found, wanted = next(((found, wanted) for found, wanted in pairs if found != wanted), ("", ""))
        raise InputError(
            f"{file}: column {found or 'missing'!r} stands where {wanted or 'another metric'!r} should: "
            "take the published file back"
        )
    return metrics


class _Line:
    """One line of a table, cell by cell; InputError names the column."""

    def __init__(self, cells: Sequence[str], header: Sequence[str], where: str) -> None:
        self.where = where
        if len(cells) != len(header):
            raise InputError(f"{where} has {len(cells)} cells, the header {len(header)}: take the published file back")
        self.cells = dict(zip(header, cells, strict=True))

    def row(self, metrics: Sequence[str]) -> Published:
        """The row that the line tells of."""
        if self.cells["schema"] != str(SCHEMA):
            raise self.wrong("schema", f"{SCHEMA}")
        values: dict[str, Any] = {}
        for field in fields(Published):
            if field.name in PLACES:
                low, high = (self.count(f"{field.name}_{end}") for end in ("low", "high"))
                if (low is None) != (high is None) or (low is not None and high is not None and not 1 <= low <= high):
                    raise self.wrong(f"{field.name}_low", "two ranks, the lower first")
                values[field.name] = None if low is None else (low, high)
            elif field.name != "scores":
                values[field.name] = self.value(field.name, field.type)
        values["scores"] = {metric: self.score(metric) for metric in metrics}
        row = Published(**values)
        self.check(row)
        return row

    def check(self, row: Published) -> None:
        """What a row must be so that nothing beside its bundle is ever touched."""
        for column, pattern in (
            *(("restorer", ".+"), ("kind", "restorer|control"), ("row", r"[^/\\]+-[0-9a-f]{8}"), ("data", ".+")),
            *(("separable", "|yes|no"), ("bundle", "bundles/[0-9a-f]{16}"), ("bundle_sha256", "[0-9a-f]{64}")),
            *(("protocol_digest", "[0-9a-f]{64}"), ("data_digest", "[0-9a-f]{64}")),
        ):
            if not re.fullmatch(pattern, getattr(row, column)):
                raise self.wrong(column, pattern)
        if row.bundle != f"bundles/{row.bundle_sha256[:16]}":
            raise self.wrong("bundle", f"bundles/{row.bundle_sha256[:16]}")
        if row.solved + row.failed + row.left_out != row.cases:
            raise self.wrong("cases", "solved, failed and left out together")

    def value(self, column: str, kind: Any) -> Any:
        """A cell as its column's type."""
        if kind in (str,):
            return self.cells[column]
        if kind == dict[str, Any]:
            return self.json(column)
        if kind in (int, int | None):
            found = self.count(column)
            if found is None and kind is int:
                raise self.wrong(column, "a count")
            return found
        return self.number(column)

    def json(self, column: str) -> dict[str, Any]:
        """A JSON object."""
        try:
            found = json.loads(self.cells[column])
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self.wrong(column, "a JSON object")
        return found

    def count(self, column: str) -> int | None:
        """A whole number from 0 up, None for an empty cell."""
        cell = self.cells[column]
        if cell and not re.fullmatch(r"\d{1,18}", cell):
            raise self.wrong(column, "a count")
        return int(cell) if cell else None

    def number(self, column: str) -> float | None:
        """A finite number, None for an empty cell."""
        cell = self.cells[column]
        try:
            value = float(cell) if cell else None
        except ValueError:
            raise self.wrong(column, "a number") from None
        if value is not None and not math.isfinite(value):
            raise self.wrong(column, "a finite number")
        return value

    def score(self, metric: str) -> Score:
        """The cells of a metric."""
        mean, low, high = (self.number(f"{metric}_{part}") for part in ("mean", "low", "high"))
        n, groups, undefined = (self.count(f"{metric}_{part}") for part in ("n", "groups", "undefined"))
        if undefined is None:
            raise self.wrong(f"{metric}_undefined", "a count")
        if mean is None:
            return Score(None, undefined)
        if not n or not groups or (low is None) != (high is None):
            raise self.wrong(f"{metric}_n", "the cases, groups and both limits of a mean")
        return Score(Interval(mean, low, high, n, groups, self.cells[f"{metric}_interval"]), undefined)

    def wrong(self, column: str, wanted: str) -> InputError:
        """The error that says what stands in a column and what should."""
        cell = self.cells[column]
        shown = cell if len(cell) <= 40 else f"{cell[:40]}..."
        return InputError(f"{self.where}, column {column}: {shown!r} is not {wanted}: take the published file back")
