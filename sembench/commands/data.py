"""`sembench data`: which image sets there are, fetch them, check them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from sembench.datasets.manifest import Dataset, ManifestRow

data_app = typer.Typer(rich_markup_mode=None, help="List, fetch and check the image sets.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
SetName = Annotated[
    str, typer.Argument(metavar="NAME", help="A set that `sembench data list` shows, or a manifest.csv.")
]


@data_app.command("list")
def list_sets(as_json: Json = False) -> None:
    """Show the sets: images a split, MB, what is here, licences."""
    from sembench.datasets.manifest import load_manifest, names

    summaries = [_summary(load_manifest(name)) for name in names()]
    if as_json:
        _print_json(summaries)
        return
    cells = [
        [
            summary["name"],
            ", ".join(f"{split} {count}" for split, count in summary["splits"].items()) or str(summary["files"]),
            f"{summary['megabytes']:.1f}",
            _presence(summary),
            ", ".join(summary["licences"]),
        ]
        for summary in summaries
    ]
    _print_table(["set", "images", "MB", "here", "licences"], cells)


@data_app.command("fetch")
def fetch(name: SetName, as_json: Json = False) -> None:
    """Download the files of a set that are not here; again after an interruption fetches only the rest."""
    from functools import partial

    from sembench.datasets.cache import locate
    from sembench.datasets.manifest import load_manifest
    from sembench.errors import UnavailableError

    dataset = load_manifest(name)
    rows = _unique(dataset)
    total = sum(row.bytes for row in rows)
    if not as_json:
        typer.echo(f"{dataset.name}: {len(rows)} files, {total / 1e6:.1f} MB; licences: {', '.join(_licences(rows))}")
    paths: dict[str, str] = {}
    failures: dict[str, str] = {}
    with _progress() as progress:
        task, before = progress.add_task(f"fetch {dataset.name}", total=total), 0
        for row in rows:
            try:
                found = locate(dataset, row, on_bytes=partial(_advance, progress, task, before, row.bytes))
                paths[row.file] = str(found)
            except UnavailableError as error:
                failures[row.file] = str(error)
            before += row.bytes
            progress.update(task, completed=before)
    if as_json:
        _print_json({"name": dataset.name, "files": paths, "failures": failures})
    else:
        typer.echo(f"{len(paths)} of {len(rows)} files of {dataset.name} are here")
    if failures:
        first = next(iter(failures.values()))
        raise UnavailableError(
            f"{len(failures)} of {len(rows)} files of {dataset.name} cannot be had; the first: {first}"
        )


@data_app.command("check")
def check(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One set; all where it is left out.")] = None,
    as_json: Json = False,
) -> None:
    """Check the files that are here by SHA-256, and that splits share neither groups nor content."""
    from sembench.datasets.manifest import load_manifest, names
    from sembench.errors import CheckError

    datasets = [load_manifest(name)] if name else [load_manifest(known) for known in names()]
    reports = [_check(dataset) for dataset in datasets]
    problems = [problem for report in reports for problem in report["problems"]]
    if as_json:
        _print_json(reports)
    else:
        cells = [
            [report["name"], f"{report['checked']} of {report['files']}", str(len(report["problems"]))]
            for report in reports
        ]
        _print_table(["set", "files checked", "problems"], cells)
        for problem in problems:
            typer.echo(problem)
    if problems:
        raise CheckError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in the data; the first: {problems[0]}")


def _check(dataset: "Dataset") -> dict[str, Any]:
    from sembench.datasets.cache import present_files
    from sembench.datasets.splits import check_content, check_groups
    from sembench.errors import SembenchError

    rows = _unique(dataset)
    problems, checked = check_groups(dataset), 0
    with _progress() as progress:
        task = progress.add_task(f"{dataset.name}: files", total=len(rows))
        for row in rows:
            present = present_files(dataset, row)
            checked += bool(present)
            problems += [problem for path in present if (problem := _content_problem(path, row))]
            progress.advance(task)
        if not problems and checked:
            task = progress.add_task(f"{dataset.name}: content shared between splits", total=None)
            try:
                findings = check_content(
                    dataset, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
                )
                problems += [f"{dataset.name}: {finding}" for finding in findings]
            except SembenchError as error:
                problems.append(str(error))
    return {"name": dataset.name, "files": len(rows), "checked": checked, "problems": problems}


def _content_problem(path: Path, row: "ManifestRow") -> str:
    """What is wrong with the content of a file; empty where nothing is."""
    from sembench.datasets.cache import content_sha256
    from sembench.errors import UnavailableError

    try:
        got = content_sha256(path)
    except UnavailableError as error:
        return str(error)
    if got == row.sha256:
        return ""
    return f"{path}: wrong content, SHA-256 {got[:12]} instead of {row.sha256[:12]}; remove it and fetch again"


def _summary(dataset: "Dataset") -> dict[str, Any]:
    from collections import Counter

    from sembench.datasets.cache import present_files
    from sembench.datasets.manifest import SPLITS

    rows = _unique(dataset)
    images = Counter(row.split for row in rows if row.role not in ("", "sidecar"))
    return {
        "name": dataset.name,
        "files": len(rows),
        "splits": {split: images[split] for split in SPLITS if images[split]},
        "megabytes": sum(row.bytes for row in rows) / 1e6,
        "present": sum(bool(present_files(dataset, row)) for row in rows),
        "licences": _licences(rows),
        "digest": dataset.digest,
    }


def _unique(dataset: "Dataset") -> "list[ManifestRow]":
    """The rows, each file once: a reference may serve several pairs."""
    return list({row.file: row for row in dataset.rows}.values())


def _licences(rows: "list[ManifestRow]") -> list[str]:
    return sorted({row.licence for row in rows})


def _presence(summary: dict[str, Any]) -> str:
    if summary["present"] == summary["files"]:
        return "yes"
    return f"{summary['present']} of {summary['files']}" if summary["present"] else "no"


def _progress() -> "Progress":
    """A bar on the error stream, shown on a terminal only and gone when done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _advance(progress: "Progress", task: "TaskID", before: int, size: int, done: int) -> None:
    """Move the bar within one file; `done` may run past its size by part of a chunk."""
    progress.update(task, completed=before + min(done, size))


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
