"""`sembench run`: restorers through a protocol, a table and a picture at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sembench.commands.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sembench.comparison import Comparison
    from sembench.execution.records import Record
    from sembench.execution.request import RunPlan
    from sembench.restorer import FitProgress
    from sembench.results import SummaryRow

DEFAULT_RESTORERS = (
    "input,gaussian,median,tv,richardson_lucy,wiener,bm3d,blind_wiener,affine,gaussian_affine,ideal_wiener"
)

UNRANKED = "unranked"

WIDEST_MARK = 20
"""Characters of letters and marks in a line."""

FEWEST_TO_STACK = 8
"""Beyond so many metrics their names stand in several lines, so that the table stays narrow."""


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
    reuse: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="A run on the same cases, whose records of methods that do not learn are taken over; "
            "may be given again.",
            metavar="RUN",
        ),
    ] = None,
    require_real: Annotated[
        bool, typer.Option("--require-real", help="Stop where the real images cannot be had.")
    ] = False,
    crop_bottom: Annotated[
        str, typer.Option(help="Data bar of a folder's images: auto (6.67 %), 0, rows or a fraction.")
    ] = "auto",
    skip_unavailable: Annotated[
        bool, typer.Option("--skip-unavailable", help="Leave out restorers that cannot run here.")
    ] = False,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="How long methods may learn: quick, standard, long, or 10min.", show_default="the protocol's"
        ),
    ] = None,
    pairs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0, help="How many real pairs methods are fine-tuned on (real_pairs).", show_default="the protocol's"
        ),
    ] = None,
    no_fit: Annotated[
        bool, typer.Option("--no-fit", help="Leave out restorers that would have to be fitted first.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda or cuda:N.")] = "cpu",
    shard: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only the i-th of n parts of the cases, in a folder of its own; see `merge`.", metavar="I/N"),
    ] = None,
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Work on the cluster of this dask scheduler instead of --workers.", metavar="ADDRESS"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run restorers through a protocol; the same command again goes on where it stopped."""
    import os

    from rich.console import Console
    from rich.markup import escape

    from sembench.comparison import row_labels
    from sembench.errors import CasesFailed, InputError
    from sembench.execution.plan import Shard
    from sembench.execution.prepare import prepare
    from sembench.execution.recorded import whole_run
    from sembench.execution.request import RunRequest, command_line
    from sembench.execution.reuse import counted, reusable
    from sembench.execution.run import execute, flat_records
    from sembench.report import write_derived
    from sembench.results import ordered, ordering_metric, summarise, with_flat_fields

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
        budget=budget,
        pairs=pairs,
        no_fit=no_fit,
        device=device,
        command=command_line(),
        shard=None if shard is None else Shard.parse(shard),
        scheduler=scheduler,
    )
    notes = Console(stderr=True, highlight=False)
    plan = prepare(request)
    for notice in plan.notices:
        notes.print(f"[yellow]notice:[/] {escape(notice)}", soft_wrap=True)
    if dry_run:
        _show_plan(plan, json_)
        return
    taken = [one for folder in reuse or () for one in reusable(plan, folder, device)]
    if reuse and not taken:
        notes.print(counted(taken), soft_wrap=True, markup=False)
    try:
        with CaseProgress(notes) as listener:
            records = execute(plan, request, listener, FitReporter(notes), taken)
    except KeyboardInterrupt:
        notes.print(
            f"interrupted; what is done lies in {plan.folder}: the same command goes on from there",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(130) from None
    whole, everything = whole_run(plan)
    summary = write_derived(whole, everything)
    if len(everything) > len(records):
        summary = ordered(summarise(plan.rows, records, plan.metrics), ordering_metric(plan.protocol, plan.metrics))
    summary = with_flat_fields(summary, flat_records(plan))
    if json_:
        import json

        from sembench.results import as_json

        typer.echo(json.dumps(as_json(summary, plan.folder), indent=2))
    else:
        _show_summary(plan, summary, records)
        labels = row_labels(whole.rows)
        others = [labels[row.row_id] for row in whole.rows[len(plan.rows) :]]
        if others:
            told = f"its report and tables also hold {', '.join(others)}, of earlier commands"
            Console().print(told, soft_wrap=True, markup=False)
    failed = [record for record in records if record["status"] == "failed"]
    for record in failed[:5]:
        what = escape(f"{record['restorer']} on {record['case']}: {record['reason']}")
        notes.print(f"[red]failed:[/] {what}", soft_wrap=True)
    if failed:
        raise CasesFailed(
            f"{len(failed)} of {len(records)} cases failed, the rest is in {plan.folder}; "
            "reasons in cases.csv, again with --retry-failed"
        )


class CaseProgress(Progress):
    """Progress of the cases of a run."""

    def __init__(self, notes: "Console") -> None:
        super().__init__(notes, "starting workers")
        self.done = self.failed = 0

    def __call__(self, record: "Record", left: int) -> None:
        self.done += 1
        self.failed += record["status"] == "failed"
        self.show(record["restorer"], self.done, self.done + left, self.failed)


class FitReporter:
    """Progress of fits in plain lines: every ten seconds, and at each validation."""

    def __init__(self, notes: "Console") -> None:
        self.notes = notes
        self.reported = 0.0

    def __call__(self, name: str, told: "FitProgress | None", notice: str) -> None:
        import time

        from rich.markup import escape

        if told is None:
            text = f"[yellow]notice:[/] {escape(notice)}" if notice else f"fitting {escape(name)}"
            self.notes.print(text, soft_wrap=True)
            return
        steps = f" of {told.steps}" if told.steps else ""
        validation = f", validation {told.validation:.5f}" if told.validation is not None else ""
        now = time.monotonic()
        if now - self.reported > 10 or told.validation is not None:
            self.reported = now
            self.notes.print(
                f"{escape(name)}: step {told.step}{steps}, about {told.seconds_left:.0f} s left, loss {told.loss:.5f}"
                f"{validation}, {told.waiting:.0%} of the time waiting for patches",
                soft_wrap=True,
            )


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
    if plan.fit_plans:
        from sembench.execution.fits import find

        found = {row_id: find(fit) for row_id, fit in plan.fit_plans.items()}
        described["fits"] = [f"{row_id}: {state.source if state else 'to be made'}" for row_id, state in found.items()]
    if json_:
        typer.echo(json.dumps(described, indent=2))
        return
    for key, value in described.items():
        typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _show_summary(plan: "RunPlan", summary: "list[SummaryRow]", records: "list[Record]") -> None:
    from rich.console import Console
    from rich.markup import escape

    from sembench.cases import PHANTOM, STAND_IN
    from sembench.comparison import TOO_FEW_GROUPS
    from sembench.marks import marks
    from sembench.results import in_stratum, ordering_metric, strata, summarise

    primary = ordering_metric(plan.protocol, plan.metrics).name
    found = _compared(plan, records)
    standing = _standing(found)
    marked = {name: ", ".join(mark.short for mark in own) for name, own in marks(plan.rows, records).items()}
    below = [line for line in summary if standing.get(line.row.row_id) == UNRANKED]
    ranked = [line for line in summary if line not in below and line.row.kind != "control"]
    summary = [*ranked, *below, *(line for line in summary if line.row.kind == "control")]
    listed = plan.protocol.metrics.table or plan.metrics
    shown = [name for name in listed if name in plan.metrics and not name.startswith(("match_", "residual_"))]
    shown += [name for name in summary[0].metrics if name not in plan.metrics]
    console = Console()
    where = f"{plan.protocol.name} v{plan.protocol.version}"
    title = f"{where}: {_counted(records)} of {plan.cases.data}"
    table = _summary_table(title, summary, shown, primary, standing, marked)
    if not console.is_terminal:
        console = Console(width=max(console.width, Console(width=10_000).measure(table).maximum))
    hidden: list[str] = []
    while len(shown) > 1 and Console(width=10_000).measure(table).maximum > console.width:
        hidden.insert(0, next(name for name in reversed(shown) if name != primary))
        shown.remove(hidden[0])
        table = _summary_table(title, summary, shown, primary, standing, marked)
    console.print(table)
    for stratum in strata(records):
        part = {line.row.row_id: line for line in summarise(plan.rows, in_stratum(records, stratum), plan.metrics)}
        title = f"{where}, {stratum} alone: {_counted(in_stratum(records, stratum))}"
        of_cases = [name for name in shown if name in plan.metrics]
        console.print(_summary_table(title, [part[line.row.row_id] for line in summary], of_cases, primary))
    if hidden:
        console.print(f"for want of width without {', '.join(hidden)}: see summary.csv", style="dim", soft_wrap=True)
    reasons = {record["case"]: record["reason"] for record in records if record["status"] == "left_out"}
    for reason in reasons.values():
        console.print(f"left out: {reason}", soft_wrap=True, markup=False)
    aligned = {record["case"]: record["alignment"] for record in records if record.get("alignment")}
    for case, alignment in aligned.items():
        for warning in alignment.get("warnings", ()):
            console.print(f"[yellow]warning:[/] {escape(f'{case}: {warning}')}", soft_wrap=True)
    remarks = _of_intervals(summary, shown, primary)
    if plan.protocol.scope == "set":
        remarks = ["mean and standard deviation over the seeds of KMeans; one set of tiles, so no interval"]
    if "psnr_matched" in shown:
        remarks.append("raw psnr rewards undoing gain and offset, the matched metrics do not")
    if "lwr_unbiased_error" in plan.metrics:
        remarks.append("unbiased roughness is void after a denoiser")
    if "invented_structure" in shown:
        remarks.append("invented_structure: of a flat field with the cases' noise, 0 flat, 1 as the input, not ranked")
    if found and found.separable:
        remarks.append(f"letters: on {primary}, those who share one are not told apart")
    elif found:
        remarks.append(f"{TOO_FEW_GROUPS}: {found.too_few}, so nothing can be told apart on {primary}")
    if below:
        remarks.append("unranked: no value on more than a tenth of the cases, so the mean is of other cases")
    if any(line.undefined[name] for line in summary for name in shown):
        remarks.append("✗: so many cases could not be measured and are in no mean")
    if plan.protocol.scope == "case":
        remarks.append("controls are told the truth and are not ranked")
    console.print("; ".join(remarks), style="dim", soft_wrap=True)
    if plan.cases.data in (PHANTOM, STAND_IN):
        console.print("[yellow]phantom[/]: these are simulated scenes, not micrographs", soft_wrap=True)
    pictures = ", ".join(f"figures/{path.name}" for path in sorted((plan.folder / "figures").glob("*.png")))
    console.print(
        f"run folder: {plan.folder}  (report.html, cases.csv, summary.csv, {pictures})", soft_wrap=True, markup=False
    )


def _counted(records: "list[Record]") -> str:
    """How many cases in how many groups were scored, and how many were left out."""
    from sembench.pages.numbers import counted

    for record in records:
        if "tiles" in record:
            return f"{record['tiles']} tiles in {record['tile_groups']} groups"
    scored = {record["case"]: record["group"] for record in records if record["status"] != "left_out"}
    left_out = len({record["case"] for record in records if record["status"] == "left_out"})
    text = f"{counted(len(scored), 'case')} in {counted(len(set(scored.values())), 'group')}"
    return f"{text} ({left_out} left out)" if left_out else text


def _of_intervals(summary: "list[SummaryRow]", shown: list[str], primary: str) -> list[str]:
    """What the numbers of the table are, and where the intervals are that it does not show."""

    def has_interval(name: str) -> bool:
        return any(interval.low is not None for line in summary if (interval := line.metrics[name]))

    if has_interval(primary):
        told = [f"mean, in brackets the 95 % interval of {primary} over groups"]
    else:
        reasons = {interval.method for line in summary if (interval := line.metrics[primary])}
        told = ["mean", *(f"no interval of {primary}: {reason}" for reason in sorted(reasons))]
    if any(name != primary and has_interval(name) for name in shown):
        told.append("those of the other metrics are in summary.csv and report.html")
    return told


def _compared(plan: "RunPlan", records: "list[Record]") -> "Comparison | None":
    """The restorers by the metric that orders them; None where they cannot be compared."""
    from sembench.comparison import compare_rows
    from sembench.errors import InputError
    from sembench.results import ordering_metric

    if plan.protocol.scope == "set":
        return None
    try:
        return compare_rows(plan.rows, records, ordering_metric(plan.protocol, plan.metrics))
    except InputError:
        return None


def _standing(found: "Comparison | None") -> dict[str, str]:
    """Row id -> compact letters of each ranked restorer, UNRANKED for others; nothing where none can be compared."""
    if found is None:
        return {}
    letters = {contender.row_id: contender.letters for contender in found.contenders}
    return letters | {out.row_id: UNRANKED for out in found.unranked}


def _summary_table(
    title: str,
    summary: "list[SummaryRow]",
    shown: list[str],
    primary: str,
    standing: dict[str, str] | None = None,
    marked: dict[str, str] | None = None,
) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from sembench.comparison import row_labels
    from sembench.pages.numbers import decimals
    from sembench.registry import METRICS, plugin

    places = decimals(line.metrics[primary] for line in summary if line.row.kind != "control")
    labels = row_labels([line.row for line in summary])
    beside = {"letters": standing, "marks": marked}
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("restorer", no_wrap=True)
    for heading, own in beside.items():
        if own:
            table.add_column(heading, max_width=WIDEST_MARK)
    arrows = {"higher": " ↑", "lower": " ↓", "none": ""}
    for name in shown:
        metric = plugin(METRICS, name).load()
        unit = f"\n{metric.unit}" if metric.unit else ""
        heading = name.replace("_", "\n") if len(shown) > FEWEST_TO_STACK else name
        table.add_column(f"{heading}{arrows[metric.better]}{unit}", justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    table.add_column("time\ns/case", justify="right", no_wrap=True)
    for index, line in enumerate(summary):
        following = summary[index + 1].row.kind if index + 1 < len(summary) else line.row.kind
        name = escape(labels[line.row.row_id])
        table.add_row(
            f"[dim]{name} (control)[/]" if line.row.kind == "control" else name,
            *(escape(own.get(line.row.row_id, "")) for own in beside.values() if own),
            *(escape(_cell(line, name, places if name == primary else None)) for name in shown),
            str(line.failed) if line.failed else "",
            "" if line.seconds is None else f"{line.seconds:.2f}",
            end_section=following != line.row.kind,
        )
    return table


def _cell(line: "SummaryRow", name: str, places: int | None) -> str:
    """A mean; places: the decimals of the limits that stand beside it, or None."""
    interval = line.metrics[name]
    crosses = f"{line.undefined[name]}✗" if line.undefined[name] else ""
    if interval is None:
        return crosses or "–"
    digits = 3 if abs(interval.mean) < 2 else 2
    limits = places is not None and interval.low is not None and interval.high is not None
    text = f"{interval.mean:.{max(digits, places) if places is not None and limits else digits}f}"
    if limits:
        text += f" [{interval.low:.{places}f}, {interval.high:.{places}f}]"
    spread = line.metrics.get(f"{name}_spread")
    if spread is not None:
        text += f" ±{spread.mean:.{digits}f}"
    return f"{text} {crosses}".rstrip()
