"""`sembench run`: restorers through a protocol, a table and a picture at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sembench.execution.records import Record
    from sembench.execution.run import RunPlan
    from sembench.results import SummaryRow

DEFAULT_RESTORERS = (
    "input,gaussian,median,tv,richardson_lucy,wiener,bm3d,blind_wiener,affine,gaussian_affine,ideal_wiener"
)


def run(
    restorer: Annotated[
        str, typer.Option(help="Names or FILE.py:Class, separated by commas.", show_default="all classical methods")
    ] = DEFAULT_RESTORERS,
    protocol: Annotated[str, typer.Option(help="Name of a protocol, or a TOML file.")] = "s2s",
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Data set, `phantom`, or a folder of focused images.", show_default="the protocol's"),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run folder.", show_default="runs/<protocol>-<data>-<digest>"),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Only the first N cases, taken in turn from all groups.", show_default="all"),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Worker processes, one thread each.", show_default="the number of cores"),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="[restorer.]key=value; may be given again.", metavar="KEY=VALUE"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: forget what the run folder holds.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cases again.")] = False,
    require_real: Annotated[
        bool, typer.Option("--require-real", help="Stop where the real images cannot be had.")
    ] = False,
    crop_bottom: Annotated[
        str, typer.Option(help="Data bar of a folder's images: auto (6.67 %), 0, rows or a fraction.")
    ] = "auto",
    skip_unavailable: Annotated[
        bool, typer.Option("--skip-unavailable", help="Leave out restorers that cannot run here.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run restorers through a protocol; the same command again goes on where it stopped."""
    import os

    from rich.console import Console
    from rich.markup import escape

    from sembench.errors import CasesFailed, InputError
    from sembench.execution.run import RunRequest, command_line, execute, prepare

    names = tuple(name.strip() for name in restorer.split(",") if name.strip())
    if not names:
        raise InputError("--restorer is empty: name one at least, see `sembench list`")
    request = RunRequest(
        restorers=names,
        protocol=protocol,
        data=data,
        out=out,
        limit=limit,
        workers=workers if workers is not None else os.cpu_count() or 1,
        settings=tuple(set_ or ()),
        fresh=fresh,
        retry_failed=retry_failed,
        require_real=require_real,
        crop_bottom=crop_bottom,
        skip_unavailable=skip_unavailable or restorer == DEFAULT_RESTORERS,
        command=command_line(),
    )
    notes = Console(stderr=True, highlight=False)
    plan = prepare(request)
    for notice in plan.notices:
        notes.print(f"[yellow]notice:[/] {escape(notice)}", soft_wrap=True)
    if dry_run:
        _show_plan(plan, json_)
        return
    try:
        with _progress(plan, notes) as listener:
            records = execute(plan, request, listener)
    except KeyboardInterrupt:
        notes.print(
            f"interrupted; what is done lies in {plan.folder}: the same command goes on from there",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(130) from None
    summary = write_derived(plan, records)
    if json_:
        import json

        from sembench.results import as_json

        typer.echo(json.dumps(as_json(summary, plan.folder), indent=2))
    else:
        _show_summary(plan, summary)
    failed = [record for record in records if record["status"] == "failed"]
    for record in failed[:5]:
        what = escape(f"{record['restorer']} on {record['case']}: {record['reason']}")
        notes.print(f"[red]failed:[/] {what}", soft_wrap=True)
    if failed:
        raise CasesFailed(
            f"{len(failed)} of {len(records)} cases failed, the rest is in {plan.folder}; "
            "reasons in cases.csv, again with --retry-failed"
        )


def write_derived(plan: "RunPlan", records: "list[Record]") -> "list[SummaryRow]":
    """Remake every file of the run folder that follows from its records; returns the summary in table order."""
    from sembench import results
    from sembench.registry import METRICS, plugin

    primary_name = plan.protocol.metrics.primary
    if primary_name not in plan.metrics:
        primary_name = plan.metrics[0]
    primary = plugin(METRICS, primary_name).load()
    summary = results.ordered(results.summarise(plan.rows, records, plan.metrics), primary)
    results.write_cases(plan.folder / "cases.csv", plan.rows, records, plan.metrics)
    results.write_summary(plan.folder / "summary.csv", summary, plan.metrics)
    _draw(plan, summary, records, primary_name)
    return summary


def _draw(plan: "RunPlan", summary: "list[SummaryRow]", records: "list[Record]", primary_name: str) -> None:
    from sembench import figures
    from sembench.cases import make_case
    from sembench.micrograph import read_grid_png
    from sembench.registry import METRICS, plugin

    primary = plugin(METRICS, primary_name).load()
    label = f"{primary.title} ({primary.unit})" if primary.unit else primary.title
    where = f"{plan.protocol.name} on {plan.cases.data}"
    rows, controls = [], {}
    for line in summary:
        interval = line.metrics[primary_name]
        if interval is None:
            continue
        if line.row.kind == "control":
            if line.row.name != "oracle":
                controls[line.row.name] = interval.mean
        else:
            rows.append((line.row.name, interval.mean, interval.low, interval.high))
    if rows:
        figures.intervals(
            plan.folder / "figures" / f"{primary_name}.png", f"{where}: mean and 95 % interval", label, rows, controls
        )
    spec = plan.cases.specs[0]
    solved = {r["row"]: r for r in records if r["case"] == spec.case_id and r["status"] == "ok"}
    if not solved:
        return
    case = make_case(plan.protocol, spec)
    images, captions = {}, {}
    if not any(line.row.name == "input" for line in summary):
        images["input"] = case.degraded
    for line in sorted(summary, key=lambda line: line.row.name != "input"):
        record = solved.get(line.row.row_id)
        if record is None:
            continue
        images[line.row.name] = read_grid_png(plan.folder / record["image"])
        value = record["metrics"].get(primary_name)
        captions[line.row.name] = "" if value is None else f"{value:.2f} {primary.unit}".rstrip()
    images["reference"] = case.reference
    figures.panel(
        plan.folder / "figures" / "panel.png",
        f"{where}, case {spec.case_id}; under each name: {label}",
        images,
        captions,
        case.reference,
    )


class _progress:
    """Progress of a run: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, plan: "RunPlan", notes: "Console") -> None:
        self.total = len(plan.rows) * len(plan.cases.specs)
        self.notes = notes
        self.done = self.failed = 0

    def __enter__(self) -> "_progress":
        import time

        self.started = self.reported = time.monotonic()
        self.bar = None
        if self.notes.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), console=self.notes, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("starting workers", total=None, rate="")
        return self

    def __call__(self, record: "Record") -> None:
        import time

        self.done += 1
        self.failed += record["status"] == "failed"
        now = time.monotonic()
        rate = self.done / (now - self.started)
        text = f"{rate:.1f}/s" + (f", {self.failed} failed" if self.failed else "")
        if self.bar:
            self.bar.update(self.task, completed=self.done, total=self.total, description=record["restorer"], rate=text)
        elif now - self.reported > 10:
            self.reported = now
            left = (self.total - self.done) / rate
            self.notes.print(f"{self.done} of {self.total} ({text}, about {left:.0f} s left): {record['restorer']}")

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()


def _show_plan(plan: "RunPlan", json_: bool) -> None:
    import json

    described = {
        "run": str(plan.folder),
        "protocol": plan.protocol.name,
        "data": plan.cases.data,
        "cases": len(plan.cases.specs),
        "restorers": [row.row_id for row in plan.rows],
        "metrics": list(plan.metrics),
    }
    if json_:
        typer.echo(json.dumps(described, indent=2))
        return
    for key, value in described.items():
        typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _show_summary(plan: "RunPlan", summary: "list[SummaryRow]") -> None:
    from rich.console import Console
    from rich.table import Table

    from sembench.registry import METRICS, plugin

    specs = {name: plugin(METRICS, name).load() for name in plan.metrics}
    cases, groups = len(plan.cases.specs), len({spec.group for spec in plan.cases.specs})
    table = Table(
        title=f"{plan.protocol.name} v{plan.protocol.version}: {cases} cases in {groups} groups of {plan.cases.data}",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("restorer")
    shown = [name for name in specs if not name.startswith(("match_", "residual_"))]
    arrows = {"higher": " ↑", "lower": " ↓", "none": ""}
    for name in shown:
        unit = f"\n{specs[name].unit}" if specs[name].unit else ""
        table.add_column(f"{name}{arrows[specs[name].better]}{unit}", justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    table.add_column("time\ns/case", justify="right")
    for index, line in enumerate(summary):
        following = summary[index + 1].row.kind if index + 1 < len(summary) else line.row.kind
        label = f"[dim]{line.row.name} (control)[/]" if line.row.kind == "control" else line.row.name
        table.add_row(
            label,
            *(_cell(line, name) for name in shown),
            str(line.failed) if line.failed else "",
            "" if line.seconds is None else f"{line.seconds:.2f}",
            end_section=following != line.row.kind,
        )
    console = Console(width=max(Console().width, 60 + 15 * len(shown)) if not Console().is_terminal else None)
    console.print(table)
    console.print(
        "mean and half width of the 95 % interval over groups; raw psnr rewards undoing gain and offset, the matched "
        "metrics do not; controls are told the truth and are not ranked",
        style="dim",
        soft_wrap=True,
    )
    if plan.cases.data == "phantom":
        console.print("[yellow]phantom[/]: these are simulated scenes, not micrographs", soft_wrap=True)
    console.print(
        f"run folder: {plan.folder}  (cases.csv, summary.csv, figures/panel.png)", soft_wrap=True, markup=False
    )


def _cell(line: "SummaryRow", name: str) -> str:
    interval = line.metrics[name]
    if interval is None:
        return "–"
    digits = 3 if abs(interval.mean) < 2 else 2
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} ±{(interval.high - interval.low) / 2:.{digits}f}"
