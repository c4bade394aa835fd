"""From a run to the leaderboard: rows merged into the table, bundles beside it, nothing lost on the way."""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sembench.errors import CheckError, InputError
from sembench.execution.folder import exclusive
from sembench.execution.recorded import RecordedRun, read_run
from sembench.leaderboard.bundle import FOLDER, bundle_files, digest, read_bundle, write_bundle
from sembench.leaderboard.claims import Claim, Depth, Finding, check_claim
from sembench.leaderboard.eligibility import refusals, shipped_states
from sembench.leaderboard.ranking import protocol_of, ranked, row_of
from sembench.leaderboard.rows import Published, as_csv, read_rows, table_name
from sembench.micrograph import write_atomically
from sembench.registry import suggestion

LOCK_SECONDS = 120.0
"""How long to wait for another publisher."""


@dataclass(frozen=True, eq=False)
class Publication:
    """What was published: the table, its rows before and after, and what verifying the run found."""

    table: Path
    before: tuple[Published, ...]
    after: tuple[Published, ...]
    findings: tuple[Finding, ...]


def publish(
    folder: Path, leaderboard: Path, depth: Depth, *, restorers: Sequence[str] = (), states: str = ""
) -> Publication:
    """Verify a run and merge its rows into the leaderboard; a row of equal data and id is replaced.

    restorers: only these, all if empty. states: where fitted states that do not ship with a package are to be had.
    Raises InputError for a run that cannot be published or a table that cannot be read, CheckError where verifying
    failed, WriteError where nothing can be written; the leaderboard then stays as it was.
    """
    run = _chosen(read_run(folder), restorers)
    protocol = protocol_of(run)
    problems = refusals(run, protocol)
    if problems:
        more = f" (the first of {len(problems)} reasons)" if len(problems) > 1 else ""
        raise InputError(f"{folder}: not published: {problems[0]}{more}")
    sources = {told["row"]: state_source(told, states) for told in run.description["rows"]}
    findings = check_claim(Claim(run, depth, (folder, *depth.images), published=True), str(folder))
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if failed:
        raise CheckError(f"{folder}: not published: {failed[0].check}: {failed[0].told} ({len(failed)} checks failed)")
    bundles = [bundle_files(run, row, sources[row.row_id]) for row in run.rows]
    table = leaderboard / table_name(protocol.name, protocol.version)
    with _locked(leaderboard):
        before = read_rows(table) if table.is_file() else []
        if before and tuple(before[0].scores) != protocol.metrics.names:
            raise InputError(f"{table}: its metrics are not those of the protocol: take the published file back")
        runs = {row.bundle: read_bundle(leaderboard / row.bundle) for row in before}
        written = []
        try:
            for files in bundles:
                written.append(write_bundle(leaderboard, files))
            new = [row_of(read_bundle(place), digest(files)) for place, files in zip(written, bundles, strict=True)]
            runs |= {row.bundle: read_bundle(leaderboard / row.bundle) for row in new}
            merged = {row.key: row for row in (*before, *new)}
            after = ranked(merged.values(), runs)
            write_atomically(table, as_csv(after, protocol.metrics.names))
        except BaseException:
            _remove(leaderboard, {place.name for place in written} - {Path(row.bundle).name for row in before})
            raise
        _remove(leaderboard, {Path(row.bundle).name for row in before} - {Path(row.bundle).name for row in after})
    return Publication(table, tuple(before), tuple(after), tuple(findings))


def _chosen(run: RecordedRun, restorers: Sequence[str]) -> RecordedRun:
    """The run reduced to rows of these restorers; InputError for a name that it does not hold."""
    known = {row.name for row in run.rows}
    for name in restorers:
        if name not in known:
            raise InputError(f"--restorer {name}: not in {run.folder}: {suggestion(name, known)}")
    rows = tuple(row for row in run.rows if not restorers or row.name in restorers)
    ids = {row.row_id for row in rows}
    described = [told for told in run.description["rows"] if told["row"] in ids]
    records = tuple(record for record in run.records if record["row"] in ids)
    return replace(run, rows=rows, description={**run.description, "rows": described}, records=records)


def state_source(described: dict[str, Any], states: str) -> str:
    """Where a row's fitted state is to be had: shipped in a package, else where `states` says; "" without a fit."""
    sha256 = (described.get("fit") or {}).get("state_sha256")
    if sha256 is None:
        return ""
    folder = shipped_states(described["restorer"])
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return f"shipped: {path.parent.parent.name}/states/{path.name}"
    if not states:
        raise InputError(
            f"{described['row']}: its fitted state does not ship with the restorer: say with --states URL where it is "
            "to be had, or leave the row out with --restorer"
        )
    return states


def _locked(leaderboard: Path) -> AbstractContextManager[None]:
    busy = "another publisher is at work there: try again when it has ended"
    return exclusive(leaderboard, busy=busy, mend="give another place with --to", wait_s=LOCK_SECONDS)


def _remove(leaderboard: Path, names: set[str]) -> None:
    """Take away bundles that no row of the table names any more."""
    for name in names:
        shutil.rmtree(leaderboard / FOLDER / name, ignore_errors=True)
