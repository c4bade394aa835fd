"""`sembench render`: the leaderboard as one static page, and as tables of a README."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def render(
    folder: Annotated[Path, typer.Argument(metavar="LEADERBOARD", help="The leaderboard's folder.")],
    readme: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="Also put its tables between the markers of this file; may be given again.", show_default=False
        ),
    ] = None,
    images: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            "--images",
            metavar="RUN",
            help="A run folder whose restored images illustrate the rows, also one on the phantom; may be given again.",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write index.html of a leaderboard: one file, readable without a server or a network."""
    import json

    from sembench.errors import InputError
    from sembench.execution.recorded import read_run
    from sembench.leaderboard.render import illustrated, read_tabs, update_readme, write_page

    if (folder / "run.json").is_file():
        raise InputError(f"{folder}: is a run folder, its page is report.html: run the same command again to remake it")
    runs = [read_run(run) for run in images or ()]
    tabs, notices = illustrated(read_tabs(folder), runs)
    for notice in notices:
        typer.echo(f"notice: {notice}", err=True)
    page = write_page(folder, tabs)
    written = {str(path): update_readme(path, tabs) for path in readme or ()}
    if json_:
        typer.echo(json.dumps({"page": str(page), "readmes": written}, indent=2))
        return
    typer.echo(f"{page}")
    for path, names in written.items():
        typer.echo(f"{path}: {', '.join(names) or 'no marker <!-- sembench:leaderboard:NAME --> there'}")
