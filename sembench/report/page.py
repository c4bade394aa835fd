"""report.html of a run folder: one page that needs nothing but itself, its links to images aside."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sembench.cases import PHANTOM, STAND_IN
from sembench.comparison import Comparison, compare_rows, row_labels
from sembench.errors import InputError
from sembench.execution.records import LEFT_OUT, Record
from sembench.execution.request import RunPlan
from sembench.marks import cd_biases, marks
from sembench.metrics.table import MetricSpec
from sembench.micrograph import write_atomically
from sembench.pages import crosses, words
from sembench.pages.document import png_uri, render
from sembench.pages.numbers import counted
from sembench.pages.pairs import pair_table
from sembench.pages.standings import Line, Standings, beside, column, standings
from sembench.report.pictures import Drawing, Pictures
from sembench.results import SummaryRow, in_stratum

NAME = "report.html"


@dataclass(frozen=True)
class CaseCell:
    """What the table of cases says of one restorer: value, image (relative path), or why there is none."""

    value: float | None
    image: str
    reason: str


def write_report(
    plan: RunPlan,
    records: Sequence[Record],
    summary: Sequence[SummaryRow],
    strata: Mapping[str, Sequence[SummaryRow]],
    primary: MetricSpec,
    shown: Pictures,
) -> Path:
    """Write report.html of a run; summary and strata as in the CSV files beside it; returns its path."""
    labels = row_labels(plan.rows)
    comparison = _compared(plan, records, primary)
    found = marks(plan.rows, records)
    biases = cd_biases(plan.rows, records)
    main = _standings(plan, "summary", _caption(plan, records, comparison), summary, records, comparison)
    apart = [
        _standings(plan, f"stratum-{number}", _caption_apart(stratum, records), part, in_stratum(records, stratum), "")
        for number, (stratum, part) in enumerate(strata.items(), 1)
    ]
    description = json.loads((plan.folder / "run.json").read_text(encoding="utf-8"))
    html = render(
        "report.html",
        {
            "protocol": plan.protocol,
            "data": plan.cases.data,
            "phantom": plan.cases.data in (PHANTOM, STAND_IN),
            "notices": plan.notices,
            "limit": description.get("limit"),
            "words": words.summary(comparison, labels, plan.rows, records, found, biases),
            "table": main,
            "strata": apart,
            "pairs": pair_table("pairs", comparison),
            "shown": shown,
            "drawings": [(drawing, *_drawn(plan.folder, drawing)) for drawing in shown.drawings],
            "primary": main.primary,
            "cases": _cases(plan, summary, records, primary.name),
            "case_columns": [(labels[line.row.row_id], line.row.kind) for line in summary],
            "failures": _failures(records, labels),
            "left_out": _left_out(records),
            "settings": [(labels[line.row.row_id], _settings(line, description)) for line in summary],
            "provenance": _provenance(description),
            "files": [name for name in _files(plan, strata) if (plan.folder / name).is_file()],
        },
    )
    path = plan.folder / NAME
    write_atomically(path, html.encode("utf-8", "backslashreplace"))
    return path


def _compared(plan: RunPlan, records: Sequence[Record], primary: MetricSpec) -> Comparison | str:
    """The comparison by the primary metric, or why there is none."""
    if plan.protocol.scope == "set":
        return "the protocol scores one set of tiles, so that there are no cases to compare on"
    try:
        return compare_rows(plan.rows, records, primary)
    except InputError as error:
        return str(error)


def _caption(plan: RunPlan, records: Sequence[Record], comparison: Comparison | str) -> str:
    if plan.protocol.scope == "set":
        return "Mean over the seeds of KMeans; one set of tiles, so that there is no interval."
    text = f"{_counted(records)}. Mean and 95 % interval over groups, which alone are independent."
    if isinstance(comparison, str):
        return text
    return f"{text} {words.basis(comparison.cases, len(comparison.contenders), len(comparison.unranked))}"


def _caption_apart(stratum: str, records: Sequence[Record]) -> str:
    return f"{stratum} alone: {_counted(in_stratum(records, stratum))}. Mean and 95 % interval over groups."


def _counted(records: Iterable[Record]) -> str:
    scored = {record["case"]: record["group"] for record in records if record["status"] != LEFT_OUT}
    return f"{counted(len(scored), 'case')} in {counted(len(set(scored.values())), 'group')}"


def _standings(
    plan: RunPlan,
    key: str,
    caption: str,
    summary: Sequence[SummaryRow],
    records: Sequence[Record],
    comparison: Comparison | str,
) -> Standings:
    name = plan.protocol.metrics.primary if plan.protocol.metrics.primary in plan.metrics else plan.metrics[0]
    listed = [metric for metric in plan.protocol.metrics.table or plan.metrics if metric in plan.metrics]
    flat = [metric for metric in summary[0].metrics if metric not in plan.metrics] if summary else []
    others = beside([*listed, *flat], name)
    if flat:
        caption += f" {' and '.join(flat)}: of a flat field with the cases' noise, not ranked."
    shown = [name, *(other.name for other in others)]
    places = {} if isinstance(comparison, str) else {one.row_id: one for one in comparison.contenders}
    out = {} if isinstance(comparison, str) else {one.row_id: one.reason for one in comparison.unranked}
    told = {} if isinstance(comparison, str) else marks(plan.rows, records)
    labels = row_labels(plan.rows)
    lines = []
    for line in summary:
        row = line.row
        own = [record for record in records if record["row"] == row.row_id]
        contender = places.get(row.row_id)
        lines.append(
            Line(
                row.row_id,
                labels[row.row_id],
                row.kind,
                line.metrics,
                {
                    metric: crosses.Cross(line.undefined[metric]) if metric in flat else crosses.undefined(own, metric)
                    for metric in shown
                    if line.undefined[metric]
                },
                contender.letters if contender else "",
                contender.rank if contender else None,
                contender.rank_without_group if contender else None,
                crosses.failed(own),
                told.get(row.row_id, ()),
                line.seconds,
                row.budget,
                " ".join(sorted({record["device"] for record in own if record.get("device")})),
                crosses.values(own, name),
                unranked=out.get(row.row_id, ""),
            )
        )
    return standings(key, caption, column(name), others, lines)


def _cases(
    plan: RunPlan, summary: Sequence[SummaryRow], records: Iterable[Record], name: str
) -> list[tuple[str, str, list[CaseCell | None]]]:
    """Case, group, and a cell for each line of the summary; cases left out for everybody are not among them."""
    by_case: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["status"] != LEFT_OUT:
            by_case.setdefault(record["case"], {})[record["row"]] = record
    lines = []
    for case, own in sorted(by_case.items()):
        group = next(iter(own.values()))["group"]
        found = (own.get(line.row.row_id) for line in summary)
        lines.append((case, group, [_cell(record, name) if record else None for record in found]))
    return lines


def _cell(record: Record, name: str) -> CaseCell:
    if record["status"] != "ok":
        return CaseCell(None, "", str(record.get("reason", "")))
    value = record["metrics"].get(name)
    reason = str(record.get("undefined", {}).get(name, "no value")) if value is None else ""
    return CaseCell(value, str(record.get("image", "")), reason)


def _failures(records: Iterable[Record], labels: Mapping[str, str]) -> list[tuple[str, str, str]]:
    return [
        (labels[record["row"]], record["case"], record.get("reason", ""))
        for record in records
        if record["status"] == "failed"
    ]


def _left_out(records: Iterable[Record]) -> list[tuple[str, str]]:
    return sorted({(record["case"], record.get("reason", "")) for record in records if record["status"] == LEFT_OUT})


def _drawn(folder: Path, drawing: Drawing) -> tuple[str, int, int]:
    """A figure's file as an address that holds it, and the size (px) to show it at."""
    content = (folder / drawing.file).read_bytes()
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return png_uri(content), width * 4 // 5, height * 4 // 5


def _settings(line: SummaryRow, description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What defines a row: its id, settings, code, and where it learns what it learned from."""
    row = line.row
    told = [("row", row.row_id), ("kind", row.kind)]
    told += [(name, _text(value)) for name, value in sorted(row.settings.items())]
    if row.budget:
        told.append(("budget", row.budget))
    stated: dict[str, Any] = next((own for own in description.get("rows", ()) if own["row"] == row.row_id), {})
    for name, heading in (("distribution", "package"), ("code_sha256", "code, SHA-256")):
        if stated.get(name):
            told.append((heading, _text(stated[name])))
    told += [(f"fit, {name}", _text(value)) for name, value in stated.get("fit", {}).items() if name != "report"]
    report = stated.get("fit", {}).get("report") or {}
    told += [(f"fit, {name}", _text(value)) for name, value in report.items() if not isinstance(value, list | dict)]
    return told


def _provenance(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    environment, git = description.get("environment", {}), description.get("git")
    libraries = environment.get("libraries", {})
    told = [
        ("command", " ".join(description.get("command", ()))),
        ("started", description.get("started", "")),
        ("protocol digest", description.get("protocol_digest", "")),
        ("data digest", description.get("data_digest", "")),
        ("sembench", environment.get("sembench", "")),
        ("Python", environment.get("python", "")),
        ("platform", environment.get("platform", "")),
        ("processor", environment.get("processor", "")),
        ("libraries", ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))),
    ]
    if git:
        told.append(("commit", f"{git.get('commit')}{'' if git.get('clean') else ', with changes'}"))
    return [(name, _text(value)) for name, value in told if value]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _files(plan: RunPlan, strata: Mapping[str, Any]) -> list[str]:
    return ["run.json", "records.jsonl", "cases.csv", "summary.csv", *(f"summary-{name}.csv" for name in strata)]
