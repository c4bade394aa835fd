"""From records to tables: cases.csv, summary.csv and the rows of the summary, always remade."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sembench.execution.plan import Row
from sembench.execution.records import LEFT_OUT, Record
from sembench.metrics.table import MetricSpec
from sembench.micrograph import write_atomically
from sembench.protocol import Protocol
from sembench.registry import METRICS, plugin
from sembench.statistics import Interval, mean_interval

CASE_COLUMNS = ("restorer", "variant", "row", "settings", "case", "group", "status")
ALIGNMENT_COLUMNS = {
    "shift_left_median_px": "residual_median_px",
    "shift_left_p95_px": "residual_p95_px",
    "estimators_differ_px": "disagreement_px",
    "input_to_reference_gain": "gain",
    "input_to_reference_offset": "offset",
}
"""Columns of pairs in cases.csv, and where an alignment's record has them."""


@dataclass(frozen=True)
class SummaryRow:
    """One restorer's line: how many cases it solved and failed, and for each metric the mean with its interval.

    undefined: for each metric the solved cases that it applies to and has no value for: shown as crosses.
    left_out: cases that could not be trusted, whoever restores them; they are in no mean.
    """

    row: Row
    solved: int
    failed: int
    metrics: dict[str, Interval | None]
    undefined: dict[str, int]
    seconds: float | None
    left_out: int = 0


def _seconds(record: Record) -> float | None:
    """What the restorer took, to restore a case or to embed a set."""
    seconds: dict[str, float] = record.get("seconds", {})
    return seconds.get("restore", seconds.get("embed"))


def strata(records: Iterable[Record]) -> list[str]:
    """The kinds of cases that are also reported apart: what stands before the bar in their groups; often none."""
    kinds = {record["group"].partition("|")[0] for record in records if "|" in record["group"]}
    return sorted(kinds) if len(kinds) > 1 else []


def in_stratum(records: Iterable[Record], stratum: str) -> list[Record]:
    """The records of one kind of cases."""
    return [record for record in records if record["group"].partition("|")[0] == stratum]


def summarise(rows: Sequence[Row], records: Iterable[Record], metrics: Sequence[str]) -> list[SummaryRow]:
    """The summary of each row; a metric without a single value has no interval."""
    by_row: dict[str, list[Record]] = {row.row_id: [] for row in rows}
    for record in records:
        by_row[record["row"]].append(record)
    summary = []
    for row in rows:
        solved = [record for record in by_row[row.row_id] if record["status"] == "ok"]
        intervals: dict[str, Interval | None] = {}
        undefined: dict[str, int] = {}
        for name in metrics:
            valued = [record for record in solved if record["metrics"].get(name) is not None]
            applicable = [record for record in solved if name not in record.get("inapplicable", ())]
            undefined[name] = len(applicable) - len(valued)
            intervals[name] = (
                mean_interval([r["metrics"][name] for r in valued], [r["group"] for r in valued]) if valued else None
            )
        times = sorted(seconds for seconds in map(_seconds, solved) if seconds is not None)
        seconds = times[len(times) // 2] if times else None
        left_out = sum(record["status"] == LEFT_OUT for record in by_row[row.row_id])
        failed = len(by_row[row.row_id]) - len(solved) - left_out
        summary.append(SummaryRow(row, len(solved), failed, intervals, undefined, seconds, left_out))
    return summary


def with_flat_fields(summary: Sequence[SummaryRow], flat: Sequence[Record]) -> list[SummaryRow]:
    """The summary, each row with the metrics of its flat fields too; nothing that is said of its cases changes."""
    names = sorted({name for record in flat for name in record.get("metrics", {})})
    told = {line.row.row_id: line for line in summarise([line.row for line in summary], flat, names)}
    return [
        replace(
            line,
            metrics=line.metrics | told[line.row.row_id].metrics,
            undefined=line.undefined
            | {name: count + told[line.row.row_id].failed for name, count in told[line.row.row_id].undefined.items()},
        )
        for line in summary
    ]


def ordered(summary: Sequence[SummaryRow], primary: MetricSpec) -> list[SummaryRow]:
    """Restorers by the primary metric, best first, then the controls likewise; what has no value comes last."""

    def place(line: SummaryRow) -> tuple[bool, bool, float]:
        interval = line.metrics.get(primary.name)
        value = 0.0 if interval is None else interval.mean
        return line.row.kind == "control", interval is None, -value if primary.better == "higher" else value

    return sorted(summary, key=place)


def as_json(summary: Sequence[SummaryRow], folder: Path) -> dict[str, Any]:
    """The summary as plain values: {run, rows: [{restorer, kind, metrics: {name: {mean, low, high, n, failed}}}]}."""
    return {
        "run": str(folder),
        "rows": [
            {
                "restorer": line.row.name,
                "row": line.row.row_id,
                "kind": line.row.kind,
                "settings": line.row.settings,
                "variant": line.row.variant,
                "solved": line.solved,
                "failed": line.failed,
                "left_out": line.left_out,
                "seconds_median": line.seconds,
                "metrics": {
                    name: {
                        "mean": interval.mean if interval else None,
                        "low": interval.low if interval else None,
                        "high": interval.high if interval else None,
                        "n": interval.n if interval else 0,
                        "groups": interval.groups if interval else 0,
                        "interval": interval.method if interval else "no value",
                        "failed": line.failed + line.undefined[name],
                    }
                    for name, interval in line.metrics.items()
                },
            }
            for line in summary
        ],
    }


def _settings_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def _write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _full(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def write_cases(path: Path, rows: Sequence[Row], records: Sequence[Record], metrics: Sequence[str]) -> None:
    """cases.csv: one row a restorer and case, full precision, then gray-level digests, seconds and the reason."""
    told = {row.row_id: (row.variant_told, row.row_id, _settings_text(row.settings)) for row in rows}
    aligned = ALIGNMENT_COLUMNS if any("alignment" in record for record in records) else {}
    step, file = ("embed", "embeddings") if any("tiles" in record for record in records) else ("restore", "image")
    header = [*CASE_COLUMNS, *metrics, *aligned, f"{step}_seconds", f"{file}_sha256", "reason"]
    lines = [
        [
            record["restorer"],
            *told[record["row"]],
            record["case"],
            record["group"],
            record["status"],
            *(_full(record.get("metrics", {}).get(name)) for name in metrics),
            *(_full(record.get("alignment", {}).get(key)) for key in aligned.values()),
            _full(_seconds(record)),
            record.get(f"{file}_sha256", ""),
            record.get("reason", ""),
        ]
        for record in records
    ]
    _write_csv(path, header, lines)


def ordering_metric(protocol: Protocol, metrics: Sequence[str]) -> MetricSpec:
    """The protocol's primary metric or, where it could not be computed, the first of those that could."""
    name = protocol.metrics.primary if protocol.metrics.primary in metrics else metrics[0]
    found: MetricSpec = plugin(METRICS, name).load()
    return found


def write_tables(
    folder: Path, protocol: Protocol, rows: Sequence[Row], metrics: Sequence[str], records: Sequence[Record]
) -> tuple[list[SummaryRow], dict[str, list[SummaryRow]], MetricSpec]:
    """Write cases.csv, summary.csv and one more for each kind of cases.

    Returns the summary in table order, that of each kind of cases, and the metric that orders them.
    """
    primary = ordering_metric(protocol, metrics)
    summary = ordered(summarise(rows, records, metrics), primary)
    apart = {kind: ordered(summarise(rows, in_stratum(records, kind), metrics), primary) for kind in strata(records)}
    write_cases(folder / "cases.csv", rows, records, metrics)
    write_summary(folder / "summary.csv", summary, metrics)
    for kind, part in apart.items():
        write_summary(folder / f"summary-{kind}.csv", part, metrics)
    return summary, apart, primary


def write_summary(path: Path, summary: Sequence[SummaryRow], metrics: Sequence[str]) -> None:
    """summary.csv: one row a restorer, each metric with mean, low, high and n, full precision."""
    parts = ("mean", "low", "high", "n")
    header = [
        "restorer",
        "kind",
        "variant",
        "row",
        "settings",
        "solved",
        "failed",
        "left_out",
        *(f"{name}_{part}" for name in metrics for part in parts),
    ]
    lines = []
    for line in summary:
        row = line.row
        cells: list[Any] = [row.name, row.kind, row.variant_told, row.row_id, _settings_text(row.settings)]
        cells += [line.solved, line.failed, line.left_out]
        for name in metrics:
            interval = line.metrics[name]
            if interval is None:
                cells += ["", "", "", 0]
            else:
                cells += [_full(interval.mean), _full(interval.low), _full(interval.high), interval.n]
        lines.append(cells)
    _write_csv(path, header, lines)
