"""`sembench check`: does a plugin keep its contract?"""

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from sembench.checks import CheckResult
    from sembench.checks.run import Check

COLOURS = {"passed": "green", "failed": "bold red", "skipped": "dim", "expected": "yellow"}


def check(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A plugin's name, FILE.py:Class, or an installed package: all of it."),
    ],
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--only", metavar="NAME", help="Run this check alone; may be given again.", show_default="all"),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="A setting of the restorer; may be given again.", metavar="KEY=VALUE"),
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit a restorer that learns, for three steps; else a state that ships counts.")
    ] = False,
    time_limit: Annotated[float, typer.Option(min=1, max=36000, help="Seconds after which a check is stopped.")] = 300,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, progress on stderr.")] = False,
) -> None:
    """Check plugins against their contract; each check runs in a process apart. Exit 1 where one failed."""
    import json
    from contextlib import closing

    from rich.console import Console

    from sembench.checks import ProcessApart, checks_of, run_apart
    from sembench.errors import CheckError
    from sembench.execution.plan import split_settings

    settings = split_settings(set_ or (), [target])[target]
    with closing(ProcessApart(fresh=False)) as process:
        checks = checks_of(target, settings, only=tuple(only or ()), fit=fit, process=process)
        with _Progress(Console(stderr=json_, highlight=False), len(checks)) as progress:
            results = run_apart(checks, limit_s=time_limit, listener=progress, process=process)
    if json_:
        counts = dict.fromkeys(COLOURS, 0) | Counter(result.outcome for result in results)
        records = [result.as_record() for result in results]
        typer.echo(json.dumps({"target": target, "counts": counts, "checks": records}, indent=2))
    else:
        typer.echo(summary(results))
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        names = ", ".join(sorted({result.name for result in failed}))
        raise CheckError(f"{len(failed)} of {len(results)} checks of {target} failed: {names}")


def summary(results: "list[CheckResult]") -> str:
    """How many checks ran, passed and failed, and how many were skipped, and why."""
    counts = Counter(result.outcome for result in results)
    ran = len(results) - counts["skipped"]
    text = f"{ran} checks ran: {counts['passed']} passed, {counts['failed']} failed"
    if counts["expected"]:
        text += f", {counts['expected']} failed as declared"
    if counts["skipped"]:
        reasons = Counter(result.message for result in results if result.outcome == "skipped")
        text += f"; {counts['skipped']} skipped ({'; '.join(f'{n} {reason}' for reason, n in reasons.most_common())})"
    return text


class _Progress:
    """A line for each result; on a terminal also what is running."""

    def __init__(self, console: "Console", total: int) -> None:
        self.console, self.total, self.done, self.subject = console, total, 0, ""

    def __enter__(self) -> "_Progress":
        self.status = self.console.status("starting") if self.console.is_terminal else None
        if self.status:
            self.status.start()
        return self

    def __call__(self, check: "Check", result: "CheckResult | None") -> None:
        from rich.markup import escape

        if check.subject != self.subject:
            self.subject = check.subject
            self.console.print(escape(check.subject), soft_wrap=True)
        if result is None:
            if self.status:
                self.status.update(f"{self.done + 1} of {self.total}: {escape(check.name)}")
            return
        self.done += 1
        word = f"[{COLOURS[result.outcome]}]{result.outcome:8}[/]"
        line = f"  {word} {result.name:19} {result.seconds:6.1f} s  {escape(result.message)}"
        self.console.print(line.rstrip(), soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()
