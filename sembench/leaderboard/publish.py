"""From a run to the leaderboard: rows merged into the table, bundles beside it, nothing lost on the way."""

import shutil
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sembench.comparison import row_labels
from sembench.errors import CheckError, InputError, SembenchError
from sembench.execution.folder import exclusive
from sembench.execution.plan import trained_on
from sembench.execution.recorded import RecordedRun, read_run
from sembench.leaderboard.bundle import (
    FOLDER,
    LARGEST_STATE,
    STATE,
    bundle_files,
    digest,
    read_bundle,
    write_bundle,
)
from sembench.leaderboard.claims import Claim, Depth, Finding, check_claim
from sembench.leaderboard.eligibility import find_state, refusals, row_refusals, shipped_states, variant_of
from sembench.leaderboard.ranking import protocol_of, ranked, row_of
from sembench.leaderboard.rows import Published, as_csv, columns_of, read_rows, table_name
from sembench.micrograph import write_atomically
from sembench.protocol import Protocol
from sembench.registry import find_method, suggestion

LOCK_SECONDS = 120.0
"""How long to wait for another publisher."""


@dataclass(frozen=True, eq=False)
class Publication:
    """What was published: the table, its rows before and after, and what verifying the run found.

    left_out: why each row of the run that is not eligible was not published.
    """

    table: Path
    before: tuple[Published, ...]
    after: tuple[Published, ...]
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()


def publish(
    folder: Path, leaderboard: Path, depth: Depth, *, restorers: Sequence[str] = (), states: str = ""
) -> Publication:
    """Verify a run and merge its rows into the leaderboard; a row of equal data and id is replaced.

    restorers: only these (names, row ids or labels), each of which must be eligible; if empty, all rows of the folder
    that are. states: where fitted states that neither ship with a package nor fit into a bundle are to be had. Raises
    InputError for a run of which nothing can be published or a table that cannot be read, CheckError where verifying
    failed, WriteError where nothing can be written; the leaderboard then stays as it was.
    """
    run = read_run(folder)
    protocol = protocol_of(run)
    run = _chosen(_completed(run, protocol), restorers)
    problems = refusals(run, protocol)
    sources, left_out = _eligible(run, states)
    if restorers or not sources:
        problems += left_out
    if problems:
        more = f" (the first of {len(problems)} reasons)" if len(problems) > 1 else ""
        raise InputError(f"{folder}: not published: {problems[0]}{more}")
    run = _reduced(run, sources.keys())
    findings = check_claim(Claim(run, depth, (folder, *depth.images), published=True), str(folder))
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if failed:
        raise CheckError(f"{folder}: not published: {failed[0].check}: {failed[0].told} ({len(failed)} checks failed)")
    bundles = [bundle_files(run, row, *sources[row.row_id]) for row in run.rows]
    table, columns = leaderboard / table_name(protocol.name, protocol.version), columns_of(protocol)
    with _locked(leaderboard):
        before = read_rows(table) if table.is_file() else []
        if before and tuple(before[0].scores) != columns:
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
            write_atomically(table, as_csv(after, columns))
        except BaseException:
            _remove(leaderboard, {place.name for place in written} - {Path(row.bundle).name for row in before})
            raise
        _remove(leaderboard, {Path(row.bundle).name for row in before} - {Path(row.bundle).name for row in after})
    return Publication(table, tuple(before), tuple(after), tuple(findings), tuple(left_out))


def _completed(run: RecordedRun, protocol: Protocol) -> RecordedRun:
    """The run with what is told of rows since it was made, and of sets, a case each, only the one asked for last."""
    told = []
    for described, row in zip(run.description["rows"], run.rows, strict=True):
        added: dict[str, Any] = {}
        if "variant" not in described:
            try:
                method = find_method(row.name)
                fit = (described.get("fit") or {}).get("identity")
                added = {"variant": variant_of(method, row.settings, fit, protocol)}
                added |= {"trained_on": list(trained_on(method, method.cls.Settings(**row.settings)))}
            except (SembenchError, ValueError):
                added = {"variant": {}, "trained_on": []}
        told.append({**described, **added})
    rows = tuple(
        replace(row, variant=described["variant"], trained_on=tuple(described["trained_on"]))
        for described, row in zip(told, run.rows, strict=True)
    )
    asked = run.description.get("cases")
    kept = run.records
    if protocol.scope == "set" and isinstance(asked, list):
        kept = tuple(record for record in kept if record["case"] in asked)
    return replace(run, rows=rows, description={**run.description, "rows": told}, records=kept)


def _eligible(run: RecordedRun, states: str) -> tuple[dict[str, tuple[str, bytes]], list[str]]:
    """Row id -> its `state_source`, of each row that may be published; and why the others may not."""
    refused = row_refusals(run)
    sources, left_out = {}, []
    for told in run.description["rows"]:
        try:
            if told["row"] in refused:
                raise InputError(refused[told["row"]])
            sources[str(told["row"])] = state_source(told, states)
        except InputError as error:
            left_out.append(str(error))
    return sources, left_out


def _chosen(run: RecordedRun, restorers: Sequence[str]) -> RecordedRun:
    """The run reduced to rows of these names, ids or labels; InputError for one that it does not hold."""
    if not restorers:
        return run
    labels = row_labels(run.rows)
    names = {row.row_id: {row.name, row.row_id, labels[row.row_id]} for row in run.rows}
    known = set().union(*names.values())
    for name in restorers:
        if name not in known:
            raise InputError(f"--restorer {name}: not in {run.folder}: {suggestion(name, known)}")
    return _reduced(run, {row_id for row_id, own in names.items() if own & {*restorers}})


def _reduced(run: RecordedRun, ids: Collection[str]) -> RecordedRun:
    """The run with these rows alone."""
    rows = tuple(row for row in run.rows if row.row_id in ids)
    described = [told for told in run.description["rows"] if told["row"] in ids]
    records, flat = (tuple(record for record in some if record["row"] in ids) for some in (run.records, run.flat))
    return replace(run, rows=rows, description={**run.description, "rows": described}, records=records, flat=flat)


def state_source(described: dict[str, Any], states: str) -> tuple[str, bytes]:
    """Where a row's fitted state is to be had, and its content where that is its own bundle; "" without a fit.

    Shipped in a package, else where `states` says, else in the bundle, if it is small enough; else InputError.
    """
    sha256 = (described.get("fit") or {}).get("state_sha256")
    if sha256 is None:
        return "", b""
    path = find_state(described["restorer"], sha256)
    if path and path.parent == shipped_states(described["restorer"]):
        return f"shipped: {path.parent.parent.name}/states/{path.name}", b""
    if states:
        return states, b""
    if path and path.stat().st_size <= LARGEST_STATE:
        return f"bundle: {STATE}", path.read_bytes()
    lies = f"has more than {LARGEST_STATE:,} bytes" if path else "is not in the cache"
    raise InputError(
        f"{described['row']}: its fitted state ships with no restorer and {lies}: say with --states URL where it is to "
        "be had, or leave the row out with --restorer"
    )


def _locked(leaderboard: Path) -> AbstractContextManager[None]:
    busy = "another publisher is at work there: try again when it has ended"
    return exclusive(leaderboard, busy=busy, mend="give another place with --to", wait_s=LOCK_SECONDS)


def _remove(leaderboard: Path, names: set[str]) -> None:
    """Take away bundles that no row of the table names any more."""
    for name in names:
        shutil.rmtree(leaderboard / FOLDER / name, ignore_errors=True)
