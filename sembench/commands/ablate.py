"""`sembench ablate`: what each part of a learned method is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sembench.ablation import Ablation, Finding
    from sembench.execution.records import Record
    from sembench.execution.request import Listener


def ablate(
    variants: Annotated[str, typer.Argument(help="TOML list of variants, or a restorer that brings one: semfm.")],
    protocol: Annotated[str, typer.Option(help="Where they are compared.")] = "s2s_validation",
    budget: Annotated[str, typer.Option(help="How long each may learn: quick, standard, long, or 10min.")] = "quick",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run folder.", show_default="runs/<protocol>-<data>-<digest>"),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="As for `sembench run`.", show_default="the protocol's"),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Only the first N cases.", show_default="all"),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Worker processes.", show_default="the number of cores"),
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda or cuda:N.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="Print the ablation as JSON.")] = False,
) -> None:
    """Fit variants at one budget and table paired differences from the first; the same command goes on."""
    import json
    import os

    from rich.console import Console
    from rich.markup import escape

    from sembench import ablation
    from sembench.commands.run import FitReporter
    from sembench.execution.request import RunRequest, command_line

    listed = ablation.variant_list(variants)
    request = RunRequest(
        restorers=(),
        protocol=protocol,
        data=data,
        out=out,
        limit=limit,
        workers=workers if workers is not None else os.cpu_count() or 1,
        budget=budget,
        device=device,
        command=command_line(),
    )
    notes = Console(stderr=True, highlight=False)
    plans = ablation.plan(listed, request)
    for notice in dict.fromkeys(notice for one in plans for notice in one.notices):
        notes.print(f"[yellow]notice:[/] {escape(notice)}", soft_wrap=True)
    found = ablation.ablate(listed, plans, request, _Counter(notes), FitReporter(notes))
    if json_:
        typer.echo(json.dumps(ablation.as_json(found), indent=2))
        return
    _show(found, f"{protocol}, budget {budget}")


class _Counter:
    """Progress of the cases of a variant, in a plain line every ten seconds."""

    def __init__(self, notes: "Console") -> None:
        self.notes, self.reported = notes, 0.0

    def __call__(self, name: str) -> "Listener":
        def told(record: "Record", left: int) -> None:
            import time

            if time.monotonic() - self.reported > 10:
                self.reported = time.monotonic()
                self.notes.print(f"{name}: {left} cases left", soft_wrap=True, markup=False)

        return told


def _show(found: "Ablation", where: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    from sembench.comparison import TOO_FEW_GROUPS

    console = Console()
    table = _table(found, where)
    if not console.is_terminal:
        console = Console(width=max(console.width, Console(width=10_000).measure(table).maximum))
    console.print(table)
    for notice in found.notices:
        console.print(f"notice: {notice}", soft_wrap=True, markup=False)
    remarks = ["differences from the first line with their 95 % interval over groups, each of its pair alone"]
    if not found.separable:
        remarks.append(f"{TOO_FEW_GROUPS} by sign flips: the intervals are all there is")
    console.print("; ".join(remarks), style="dim", soft_wrap=True)
    console.print(
        f"run folder: {escape(str(found.folder))}  (ablation.csv, cases.csv)", soft_wrap=True, highlight=False
    )


def _table(found: "Ablation", where: str) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    title = f"{found.title}\n{where}: {found.cases} cases in {found.groups} groups"
    table = Table(title=escape(title), title_justify="left", header_style="bold")
    table.add_column("variant", no_wrap=True)
    arrows = {"higher": " ↑", "lower": " ↓", "none": ""}
    for metric in found.metrics:
        unit = f"\n{metric.unit}" if metric.unit else ""
        table.add_column(f"{metric.name}{arrows[metric.better]}{unit}", justify="right", no_wrap=True)
        table.add_column(f"difference{unit}", justify="right", no_wrap=True)
    table.add_column("trained\nparameters", justify="right", no_wrap=True)
    table.add_column("fit\nsteps", justify="right", no_wrap=True)
    table.add_column("fit\ns", justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    for line in found.rows:
        cells = [text for metric in found.metrics for text in _cells(line.findings[metric.name])]
        trained, steps, seconds = (line.fit.get(key) for key in ("parameters_trained", "steps", "seconds"))
        told = [f"{trained:,}" if trained else "", str(steps or ""), f"{seconds:.0f}" if seconds else ""]
        table.add_row(escape(line.variant.name), *cells, *told, str(line.failed or ""))
    return table


def _cells(finding: "Finding | None") -> tuple[str, str]:
    if finding is None:
        return "–", "–"
    between = finding.difference
    if between is None:
        return f"{finding.mean.mean:.4f}", ""
    text = f"{between.mean:+.4f}"
    if between.low is not None:
        text += f" [{between.low:+.4f}, {between.high:+.4f}]"
    return f"{finding.mean.mean:.4f}", text
