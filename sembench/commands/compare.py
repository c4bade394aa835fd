"""`sembench compare`: which restorers are told apart, by how much, and which are not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sembench.comparison import Comparison
    from sembench.execution.recorded import RecordedRun
    from sembench.statistics.pairs import Pair
    from sembench.statistics.ranks import Places


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]", help="One run folder, or two of equal cases.")],
    metric: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which metric.", show_default="the protocol's primary one"),
    ] = None,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only the pairs with this restorer.", show_default="every pair"),
    ] = None,
    restorer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only these, separated by commas, and that of --against.", show_default="all"),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Draw the differences and their intervals into this PNG file."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare restorers pair by pair on the cases that all of them solved.

    Those without a value on more than a tenth of the cases are left out, unless they are named with --restorer.
    """
    import json

    from sembench.comparison import as_json, compare_runs
    from sembench.errors import InputError

    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"--plot {plot}: give a file that ends in .png")
    names = tuple(name.strip() for name in (restorer or "").split(",") if name.strip())
    if restorer is not None and not names:
        raise InputError("--restorer is empty: name two at least, or leave it out")
    run, comparison = compare_runs(runs, metric, names, against)
    pairs = comparison.pairs if against is None else comparison.against(against)
    if plot is not None:
        _draw(plot, run, comparison, pairs)
    if json_:
        typer.echo(json.dumps(as_json(run, comparison, pairs), indent=2, allow_nan=False))
    else:
        _show(run, comparison, pairs, "run" if len(runs) == 1 else "runs")


def _where(run: "RecordedRun", comparison: "Comparison") -> str:
    protocol = run.description["protocol"]
    name = f"{protocol['name']} v{protocol.get('version', '?')} on {run.description.get('data')}"
    return f"{name}: {_counted(comparison.cases, 'case')} in {_counted(comparison.groups, 'group')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _draw(path: Path, run: "RecordedRun", comparison: "Comparison", pairs: "Sequence[Pair]") -> None:
    from sembench import figures
    from sembench.comparison import equivalence_margin

    metric = comparison.metric
    unit = f" ({metric.unit})" if metric.unit else ""
    better = {"higher": ", higher is better", "lower": ", lower is better", "none": ""}[metric.better]
    rows = [(f"{pair.first} \u2212 {pair.second}", pair.interval, comparison.mark(pair)) for pair in pairs]
    label = f"difference of {metric.name}{unit}{better}"
    title = f"{_where(run, comparison)}\nmean difference and 95 % interval"
    figures.differences(path, title, label, rows, equivalence_margin(metric))


def _show(run: "RecordedRun", comparison: "Comparison", pairs: "Sequence[Pair]", where: str) -> None:
    from rich.console import Console

    from sembench.comparison import TOO_FEW_GROUPS, equivalence_margin

    console = Console()
    who = "ranked restorers" if comparison.unranked else "restorers"
    title = f"{_where(run, comparison)}, which all {len(comparison.contenders)} {who} solved"
    for table in (_standings(comparison, title), _pairs(comparison, pairs)):
        if not console.is_terminal:
            console = Console(width=max(console.width, Console(width=10_000).measure(table).maximum))
        console.print(table)
    for notice in comparison.notices:
        console.print(f"notice: {notice}", soft_wrap=True, markup=False)
    if not comparison.separable:
        console.print(f"{TOO_FEW_GROUPS}: {comparison.too_few}", soft_wrap=True)
    margin = equivalence_margin(comparison.metric)
    remarks = ["those who share a letter are not told apart"] if comparison.contenders[0].letters else []
    corrected = f"Holm's correction for {_counted(len(comparison.pairs), 'pair')}"
    if len(comparison.pairs) < comparison.pairs_in_run:
        which = "shown" if len(pairs) == len(comparison.pairs) else "of those chosen"
        told = f"{_counted(len(comparison.pairs), 'pair')} {which}, of {comparison.pairs_in_run} in the {where}"
        corrected = f"by Holm corrected for the {told}: choose before you look"
    remarks.append(f"p: the larger of sign flips of whole groups and bootstrap-t, {corrected}")
    remarks.append("intervals are of each pair alone")
    if margin is not None:
        unit = f" {comparison.metric.unit}" if comparison.metric.unit else ""
        remarks.append(f"equivalent: interval within ±{margin:g}{unit}")
    console.print("; ".join(remarks), style="dim", soft_wrap=True)


def _standings(comparison: "Comparison", title: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", header_style="bold")
    metric = comparison.metric
    unit = f"\n{metric.unit}" if metric.unit else ""
    arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[metric.better]
    table.add_column("restorer", no_wrap=True)
    table.add_column(f"{metric.name}{arrow}{unit}", justify="right", no_wrap=True)
    table.add_column("letters")
    for heading in ("rank", "rank, any\ngroup left out", "failed\ncases", "no value\ncases"):
        table.add_column(heading, justify="right", no_wrap=True)
    for contender in comparison.contenders:
        table.add_row(
            escape(contender.name),
            f"{contender.mean.mean:.4f}",
            contender.letters,
            _places(contender.rank),
            _places(contender.rank_without_group),
            str(contender.failed or ""),
            str(contender.undefined or ""),
            end_section=contender is comparison.contenders[-1] and not comparison.unranked,
        )
    for out in comparison.unranked:
        mean = "" if out.mean is None else f"{out.mean.mean:.4f}"
        counts = (str(out.failed or ""), str(out.undefined or ""))
        last = out is comparison.unranked[-1]
        table.add_row(escape(out.name), mean, "", "unranked", "", *counts, end_section=last)
    for name, interval in comparison.controls.items():
        table.add_row(f"[dim]{escape(name)} (control)[/]", f"{interval.mean:.4f}", "", "", "", "", "")
    return table


def _places(places: "Places | None") -> str:
    if places is None:
        return "–"
    return str(places[0]) if places[0] == places[1] else f"{places[0]}–{places[1]}"


def _pairs(comparison: "Comparison", pairs: "Sequence[Pair]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    unit = f"\n{comparison.metric.unit}" if comparison.metric.unit else ""
    table.add_column("restorer", no_wrap=True)
    table.add_column("less", no_wrap=True)
    table.add_column(f"difference{unit}", justify="right", no_wrap=True)
    table.add_column(f"95 % interval{unit}", justify="right", no_wrap=True)
    table.add_column("p (Holm)", justify="right", no_wrap=True)
    table.add_column("wins/losses/ties\ncases", justify="right", no_wrap=True)
    table.add_column("mark")
    for pair in pairs:
        interval = pair.interval
        between = "–" if interval.low is None else f"{interval.low:+.4f} to {interval.high:+.4f}"
        counts = "–" if pair.wins is None else f"{pair.wins}/{pair.losses}/{pair.ties}"
        table.add_row(
            escape(pair.first),
            escape(pair.second),
            f"{interval.mean:+.4f}",
            between,
            f"{pair.p_holm:.2g}",
            counts,
            comparison.mark(pair),
        )
    return table
