"""`sembench verify`: what is proven of a run, a bundle, a leaderboard or a submission, and what is not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sembench.commands.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sembench.leaderboard.claims import Finding
    from sembench.leaderboard.rows import Published
    from sembench.leaderboard.submission import Change

COLOURS = {"proven": "green", "failed": "bold red", "not proven": "yellow"}


def verify(
    target: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE|LEADERBOARD", help="What to verify.")],
    submission: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder of new rows and bundles: check it against the leaderboard TARGET."),
    ] = None,
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The leaderboard as it was: check what is other in TARGET, and tell what changes."),
    ] = None,
    images: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--images", help="A run folder with the restored images; may be given again."),
    ] = None,
    sample: Annotated[int, typer.Option(min=0, help="Cases whose stored images are scored again, for every row.")] = 3,
    restore: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Cases restored again, for every row.", show_default="1, of a leaderboard 0"),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Which cases are drawn.", show_default="another at each call, which is told"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check digests, checksums and scores, and say what was proven and what could not be. Exit 1 where one is wrong."""
    import json
    import secrets
    from dataclasses import asdict

    from rich.console import Console

    from sembench.errors import CheckError, InputError
    from sembench.leaderboard.claims import Depth
    from sembench.leaderboard.submission import review
    from sembench.leaderboard.verify import is_leaderboard
    from sembench.leaderboard.verify import verify as verify_target

    if submission is not None and base is not None:
        raise InputError("--submission and --base: give one of them, both say what TARGET is compared with")
    seed = secrets.randbelow(10**6) if seed is None else seed
    again = restore if restore is not None else int(not (submission or base or is_leaderboard(target)))
    changes: tuple[Change, ...] = ()
    with StepProgress(Console(stderr=True, highlight=False), "reading") as listener:
        depth = Depth(sample, again, seed, tuple(images or ()), listener)
        if submission is not None or base is not None:
            found = review(submission or target, base or target, depth, whole=submission is None)
            findings, changes = found.findings, found.changes
        else:
            findings = tuple(verify_target(target, depth))
    if json_:
        told: dict[str, Any] = {"target": str(target), "seed": seed}
        told["findings"] = [asdict(finding) for finding in findings]
        told["changes"] = [_plain(change) for change in changes]
        typer.echo(json.dumps(told, indent=2, allow_nan=False))
    else:
        show(findings, seed)
        _show_changes(changes)
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if failed:
        raise CheckError(f"{target}: {len(failed)} of {len(findings)} findings are wrong, the first: {failed[0].told}")


class StepProgress(Progress):
    """Progress of one step of verification after another."""

    def __call__(self, what: str, done: int, total: int) -> None:
        if done:
            self.show(what, done, total)
        else:
            self.begin(what, total)


def show(findings: "Iterable[Finding]", seed: int) -> None:
    """A line for each finding under its subject, then how many there are of each kind."""
    from collections import Counter

    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    subject = ""
    counts: Counter[str] = Counter()
    for finding in findings:
        if finding.subject != subject:
            subject = finding.subject
            console.print(escape(subject), soft_wrap=True)
        counts[finding.outcome] += 1
        line = f"  [{COLOURS[finding.outcome]}]{finding.outcome:10}[/] {finding.check:12} {escape(finding.told)}"
        console.print(line, soft_wrap=True)
    text = ", ".join(f"{counts[outcome]} {outcome}" for outcome in COLOURS if counts[outcome])
    console.print(f"{text}; cases were drawn with --seed {seed}", style="dim", soft_wrap=True)


def _show_changes(changes: "Sequence[Change]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for change in changes:
        name = f"{change.row.label} ({change.row.row}, {change.row.data})"
        before, after = (_standing(row, change.primary) for row in (change.before, change.after))
        parts = [part for part in (before, after) if part]
        console.print(f"{change.what:9}{escape(f'{change.table}  {name}')}: {' -> '.join(parts)}", soft_wrap=True)


def _standing(row: "Published | None", primary: str) -> str:
    """A row's mean and rank in a few words."""
    if row is None:
        return ""
    score = row.scores.get(primary)
    mean = "no value" if score is None or score.interval is None else f"{primary} {score.interval.mean:.4f}"
    if row.rank is None:
        return f"{mean}, unranked"
    rank = str(row.rank[0]) if row.rank[0] == row.rank[1] else f"{row.rank[0]}–{row.rank[1]}"
    return f"{mean}, rank {rank} ({row.letters})"


def _plain(change: "Change") -> dict[str, Any]:
    """A change as plain values."""
    rows = {}
    for name, row in (("before", change.before), ("after", change.after)):
        score = row.scores.get(change.primary) if row else None
        rows[name] = row and {
            "bundle": row.bundle,
            "mean": score.interval.mean if score and score.interval else None,
            "rank": row.rank,
            "letters": row.letters,
        }
    about = {"table": change.table, "what": change.what, "restorer": change.row.restorer, "row": change.row.row}
    return {**about, "metric": change.primary, **rows}
