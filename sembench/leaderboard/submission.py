"""Rows submitted to a leaderboard: checked like published ones, and set beside what stood before."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sembench.errors import InputError
from sembench.execution.recorded import RecordedRun
from sembench.leaderboard.bundle import artefact
from sembench.leaderboard.claims import Depth, Finding
from sembench.leaderboard.ranking import PLACED, protocol_of, ranked
from sembench.leaderboard.rows import Published, read_rows
from sembench.leaderboard.verify import read_bundles, verify_rows


@dataclass(frozen=True)
class Change:
    """A row before and after, None where there is none; primary: the metric by which its table ranks."""

    table: str
    primary: str
    before: Published | None
    after: Published | None

    @property
    def what(self) -> str:
        """added, removed, replaced (by another bundle), or moved: only its letters or ranks are others."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "moved" if self.before.bundle == self.after.bundle else "replaced"

    @property
    def row(self) -> Published:
        """The row as it is now, or as it was."""
        row = self.after or self.before
        if row is None:
            raise InputError("a change without a row")
        return row


@dataclass(frozen=True)
class Review:
    """What was found, and what the submission changes."""

    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]


def review(submitted: Path, base: Path, depth: Depth, *, whole: bool) -> Review:
    """Check the rows in which a submitted folder differs from the leaderboard that it is for.

    whole: whether the folder is the leaderboard as it is to be, so that what it lacks is removed and ranks must follow
    from it; else it holds new rows with their bundles alone. Raises InputError where there is no table in it.
    """
    tables = sorted(submitted.glob("*.csv"))
    if not tables:
        raise InputError(f"{submitted}: holds no table of rows: give a folder as `sembench publish` writes it")
    findings: list[Finding] = []
    changes: list[Change] = []
    for path in tables:
        try:
            rows = read_rows(path)
            before = read_rows(base / path.name) if (base / path.name).is_file() else []
        except InputError as error:
            findings.append(Finding(path.name, "schema", "failed", str(error)))
            continue
        known = {(row.key, row.bundle_sha256) for row in before}
        new = [row for row in rows if (row.key, row.bundle_sha256) not in known]
        findings.append(Finding(path.name, "schema", "proven", f"{len(rows)} rows, {len(new)} of them new"))
        if new or whole:
            findings += verify_rows(submitted, path.name, rows if whole else new, depth, complete=whole)
        runs, _ = read_bundles(submitted, path.name, new)
        old, broken = read_bundles(base, path.name, before)
        findings += [Finding(path.name, "base", "failed", finding.told) for finding in broken]
        findings += _duplicates(path.name, new, {**old, **runs}, before)
        kept = {row.key for row in rows} if whole else {row.key for row in (*before, *rows)}
        after = {row.key: row for row in (*before, *new) if row.key in kept and row.bundle in {**old, **runs}}
        changes += _changes(path.name, before, ranked(after.values(), {**old, **runs}), {**old, **runs})
    if whole:
        gone = sorted({path.name for path in base.glob("*.csv")} - {path.name for path in tables})
        findings += [Finding(name, "schema", "failed", "the whole table is removed") for name in gone]
    return Review(tuple(findings), tuple(changes))


def _duplicates(
    table: str, new: Iterable[Published], runs: Mapping[str, RecordedRun], before: Sequence[Published]
) -> list[Finding]:
    """New rows whose restored images are, every one of them, those of another row."""
    seen: dict[frozenset[tuple[str, str]], Published] = {}
    replaced = {row.key for row in new}
    found = []
    for row in (*(row for row in before if row.key not in replaced), *new):
        run = runs.get(row.bundle)
        if run is None:
            continue
        images = frozenset((r["case"], artefact(r)[1]) for r in run.records if r["status"] == "ok")
        other = seen.setdefault(images, row)
        if other is not row and images and row.key in replaced:
            text = f"{row.row}: restored images are all those of {other.row}: the same method under another name"
            found.append(Finding(table, "duplicates", "failed", text))
    return found or [Finding(table, "duplicates", "proven", "no row repeats another")]


def _changes(
    table: str, before: Sequence[Published], after: Sequence[Published], runs: Mapping[str, RecordedRun]
) -> list[Change]:
    """Rows that came, went, were replaced or moved, in the order of the table."""
    old, new = ({row.key: row for row in rows} for rows in (before, after))
    told = []
    for key in sorted(old.keys() | new.keys(), key=lambda key: (new.get(key) or old[key]).restorer):
        one, other = old.get(key), new.get(key)
        moved = one and other and any(getattr(one, name) != getattr(other, name) for name in ("bundle", *PLACED))
        if one is None or other is None or moved:
            run = runs.get((other or one).bundle)  # type: ignore[union-attr]
            told.append(Change(table, protocol_of(run).metrics.primary if run else "", one, other))
    return told
