"""`sembench publish`: a run's rows into the leaderboard, once they are verified."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    to: Annotated[Path, typer.Option(help="The leaderboard's folder.")] = Path("leaderboard"),
    restorer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Only these, by name or row id, separated by commas.", show_default="all that are eligible"),
    ] = None,
    states: Annotated[
        str,
        typer.Option(
            help="URL where fitted states are to be had that ship with no restorer and are too large for a bundle.",
            show_default=False,
        ),
    ] = "",
    sample: Annotated[int, typer.Option(min=0, help="Cases whose stored images are scored again first.")] = 3,
    restore: Annotated[int, typer.Option(min=0, help="Cases restored again first, for every row.")] = 0,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Which cases are drawn.", show_default="another at each call, which is told"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what was published as JSON.")] = False,
) -> None:
    """Verify a run, then write all its rows that are eligible, and their bundles; the same row again is replaced."""
    import json
    import secrets

    from rich.console import Console

    from sembench.commands.verify import StepProgress, show
    from sembench.leaderboard.claims import Depth
    from sembench.leaderboard.publish import publish as publish_run

    names = tuple(name.strip() for name in (restorer or "").split(",") if name.strip())
    seed = secrets.randbelow(10**6) if seed is None else seed
    with StepProgress(Console(stderr=True, highlight=False), "reading") as listener:
        done = publish_run(run, to, Depth(sample, restore, seed, listener=listener), restorers=names, states=states)
    before = {row.key: row.bundle for row in done.before}
    rows = [
        {"restorer": row.label, "row": row.row, "kind": row.kind, "bundle": row.bundle, "what": what}
        for row in done.after
        if (what := "added" if row.key not in before else "kept" if before[row.key] == row.bundle else "replaced")
    ]
    if json_:
        typer.echo(json.dumps({"table": str(done.table), "rows": rows, "left_out": list(done.left_out)}, indent=2))
        return
    show(done.findings, seed)
    for reason in done.left_out:
        typer.echo(f"notice: not published: {reason}", err=True)
    for row in rows:
        if row["what"] != "kept":
            typer.echo(f"{row['what']:9}{row['restorer']} ({row['row']}): {done.table.parent / row['bundle']}")
    kept = sum(row["what"] == "kept" for row in rows)
    typer.echo(f"{done.table}: {len(rows)} rows, {kept} of them as they were; commit the folder to publish it")
