"""Print a run folder's table as Markdown: means with 95 % intervals, letters, controls apart, best first.

    python benchmarks/results_table.py RUN [METRIC ...]

METRIC: columns; those of the protocol's table where none is named.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sembench.comparison import compare_rows, row_labels
from sembench.errors import SembenchError
from sembench.execution.recorded import RecordedRun, read_run
from sembench.protocol import Protocol
from sembench.registry import METRICS, plugin
from sembench.results import SummaryRow, in_stratum, ordered, strata, summarise
from sembench.statistics import Interval


def cell(value: Interval | None, unit: str) -> str:
    """Mean and interval, two digits for dB and what is counted in pixels, three for shares."""
    if value is None:
        return "–"
    digits = 2 if unit else 3
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def table(lines: Sequence[SummaryRow], names: Sequence[str], labels: dict[str, str], letters: dict[str, str]) -> str:
    """One Markdown table, a line a row of the run."""
    specs = [plugin(METRICS, name).load() for name in names]
    units = [f" ({spec.unit})" if spec.unit else "" for spec in specs]
    heads = ["restorer", "letters", *(f"{spec.name}{unit}" for spec, unit in zip(specs, units, strict=True)), "failed"]
    rows = [
        [
            labels[line.row.row_id],
            letters.get(line.row.row_id, ""),
            *(cell(line.metrics.get(spec.name), spec.unit) for spec in specs),
            str(line.failed),
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


def apart(run: RecordedRun, names: Sequence[str], order: Sequence[str], labels: dict[str, str]) -> str:
    """One Markdown table of means (with intervals), a column a metric and kind of cases; order: row ids."""
    kinds, specs = strata(run.records), [plugin(METRICS, name).load() for name in names]
    parts = {kind: summarise(run.rows, in_stratum(run.records, kind), names) for kind in kinds}
    found = {(kind, line.row.row_id): line.metrics for kind, lines in parts.items() for line in lines}
    heads = [
        "restorer",
        *(f"{kind} {spec.name}" + f" ({spec.unit})" * bool(spec.unit) for spec in specs for kind in kinds),
    ]
    rows = [
        [labels[row], *(cell(found[kind, row].get(spec.name), spec.unit) for spec in specs for kind in kinds)]
        for row in order
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


def main(folder: Path, names: Sequence[str]) -> None:
    """Print the tables of restorers and of controls."""
    run = read_run(folder)
    protocol = Protocol(**run.description["protocol"])
    chosen = list(names or protocol.metrics.table or protocol.metrics.names)
    primary = plugin(METRICS, protocol.metrics.primary).load()
    lines = ordered(summarise(run.rows, run.records, [*dict.fromkeys([*chosen, primary.name])]), primary)
    found = compare_rows(run.rows, run.records, primary)
    letters = {contender.row_id: contender.letters for contender in found.contenders}
    labels = row_labels(run.rows)
    print(f"{found.cases} cases in {found.groups} groups, ordered by {primary.name}, to which the letters belong.\n")
    print(table([line for line in lines if line.row.kind != "control"], chosen, labels, letters))
    if strata(run.records):
        order = [line.row.row_id for line in lines if line.row.kind != "control"]
        print(f"\nKinds of cases apart:\n\n{apart(run, chosen, order, labels)}")
    controls = [line for line in lines if line.row.kind == "control"]
    if controls:
        print("\nControls, told the truth and not ranked:\n")
        print(table(controls, chosen, labels, {}))


if __name__ == "__main__":
    try:
        if len(sys.argv) < 2:
            sys.exit(__doc__)
        main(Path(sys.argv[1]), sys.argv[2:])
    except SembenchError as error:
        sys.exit(f"sembench: {error}")
