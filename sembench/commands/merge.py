"""`sembench merge`: the folders of shards as one run."""

from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer


def merge(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of shards, or of runs of one protocol.")
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the whole run; it may hold such a run already.", show_default="the shards' name"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Join the folders of `run --shard`; the same `run` without it then draws the figures, and does what is missing."""
    import json

    from rich.console import Console

    from sembench.commands.progress import Progress
    from sembench.execution.merge import merge as join
    from sembench.execution.merge import merged_folder
    from sembench.results import write_tables

    with Progress(Console(stderr=True, highlight=False), "reading") as progress:
        merged = join(runs, out or merged_folder(runs), partial(progress.show, "records"))
    write_tables(merged.folder, merged.protocol, merged.rows, merged.metrics, merged.records)
    failed = sum(record["status"] == "failed" for record in merged.records)
    if json_:
        told = {
            "run": str(merged.folder),
            "rows": [row.row_id for row in merged.rows],
            "records": len(merged.records),
            "failed": failed,
            "missing": [list(name) for name in merged.missing],
            "shards_not_given": list(merged.shards),
            "notices": list(merged.notices),
        }
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"{len(merged.records)} records of {len(merged.rows)} restorers, {failed} failed: {merged.folder}")
    for notice in merged.notices:
        typer.echo(f"notice: {notice}", err=True)
    if merged.shards:
        typer.echo(f"notice: shards {', '.join(merged.shards)} were not given", err=True)
    if merged.missing:
        row, case = merged.missing[0]
        typer.echo(
            f"notice: {len(merged.missing)} cases have no record, such as {row} on {case}: "
            "run their shard again, or the same command without --shard",
            err=True,
        )
