"""The command line: one module a group of commands; words only, the work is done elsewhere."""

import io
import sys
from typing import Annotated

import typer

from sembench.commands.ablate import ablate as ablate_command
from sembench.commands.adapt import adapt as adapt_command
from sembench.commands.check import check as check_command
from sembench.commands.compare import compare as compare_command
from sembench.commands.data import data_app
from sembench.commands.doctor import doctor as doctor_command
from sembench.commands.images import degrade, restore
from sembench.commands.listing import list_plugins
from sembench.commands.measure import measure as measure_command
from sembench.commands.merge import merge as merge_command
from sembench.commands.phantom import phantom as phantom_command
from sembench.commands.publish import publish as publish_command
from sembench.commands.render import render as render_command
from sembench.commands.run import run as run_command
from sembench.commands.train import train as train_command
from sembench.commands.verify import verify as verify_command

app = typer.Typer(
    name="sembench",
    help="The open benchmark for restoring scanning electron micrographs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from sembench import __version__

        typer.echo(f"sembench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Restore micrographs, score restorations, publish results that others can verify."""


app.command("run")(run_command)
app.command("merge")(merge_command)
app.command("compare")(compare_command)
app.command("publish")(publish_command)
app.command("verify")(verify_command)
app.command("render")(render_command)
app.command("list")(list_plugins)
app.command("restore")(restore)
app.command("degrade")(degrade)
app.command("measure")(measure_command)
app.command("phantom")(phantom_command)
app.command("train")(train_command)
app.command("adapt")(adapt_command)
app.command("ablate")(ablate_command)
app.command("check")(check_command)
app.add_typer(data_app, name="data")
app.command("doctor")(doctor_command)


def main() -> None:
    """Run the command line; an error is one line on stderr and the exit code of its kind."""
    from sembench.errors import SembenchError

    debug = "--debug" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except SembenchError as error:
        if debug:
            raise
        print(f"sembench: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("sembench: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        _usage(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def _usage(message: str) -> None:
    """A command line that typer refuses: one line; where no command was given, the help that typer made."""
    if "\n" in message:
        print(message)
    else:
        print(f"sembench: {message.rstrip('.')}; try --help", file=sys.stderr)
    sys.exit(2)
