"""What can be proven of a run folder, a bundle or a whole leaderboard, and what cannot."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from sembench.errors import InputError, SembenchError
from sembench.execution.provenance import environment_digest
from sembench.execution.recorded import RecordedRun, read_run
from sembench.leaderboard.bundle import CHECKSUMS, FOLDER, digest, read_bundle
from sembench.leaderboard.claims import SHOWN, Claim, Depth, Finding, Outcome, check_claim
from sembench.leaderboard.ranking import differing, protocol_of, ranked, row_of
from sembench.leaderboard.rows import Published, read_rows, table_name
from sembench.protocol import digest_of


def verify(target: Path, depth: Depth) -> list[Finding]:
    """Check a run folder, a bundle or a leaderboard; InputError where the target is none of them."""
    if (target / "records.jsonl").is_file():
        return verify_run(target, depth)
    if (target / CHECKSUMS).is_file():
        return verify_bundle(target, depth)
    if is_leaderboard(target):
        return verify_leaderboard(target, depth)
    raise InputError(f"{target}: neither a run folder, nor a bundle, nor a leaderboard: give one of these")


def is_leaderboard(folder: Path) -> bool:
    """Whether a folder holds tables or bundles and is no run."""
    known = (folder / "records.jsonl", folder / CHECKSUMS)
    return not any(path.is_file() for path in known) and (any(folder.glob("*.csv")) or (folder / FOLDER).is_dir())


def verify_run(folder: Path, depth: Depth) -> list[Finding]:
    """Check a run folder."""
    try:
        run = read_run(folder)
    except InputError as error:
        return [Finding(str(folder), "schema", "failed", str(error))]
    torn: Outcome = "not proven" if run.torn else "proven"
    text = f"{len(run.rows)} rows, {len(run.records)} records" + (", and a last line that is torn" if run.torn else "")
    return [
        Finding(str(folder), "schema", torn, text),
        *check_claim(Claim(run, depth, (folder, *depth.images)), str(folder)),
    ]


def verify_bundle(folder: Path, depth: Depth) -> list[Finding]:
    """Check a bundle by itself."""
    try:
        run = read_bundle(folder)
    except InputError as error:
        return [Finding(str(folder), "checksums", "failed", str(error))]
    kept = Finding(str(folder), "checksums", "proven", f"{run.rows[0].row_id}: every file has its SHA-256")
    return [kept, *check_claim(Claim(run, depth, (folder, *depth.images), published=True), str(folder))]


def verify_leaderboard(folder: Path, depth: Depth) -> list[Finding]:
    """Check every table and bundle of a leaderboard."""
    findings: list[Finding] = []
    named: set[str] = set()
    for path in sorted(folder.glob("*.csv")):
        try:
            rows = read_rows(path)
        except InputError as error:
            findings.append(Finding(path.name, "schema", "failed", str(error)))
            continue
        findings.append(Finding(path.name, "schema", "proven", f"{len(rows)} rows"))
        named |= {row.bundle for row in rows}
        findings += verify_rows(folder, path.name, rows, depth)
    if not any(finding.check == "schema" and finding.outcome == "failed" for finding in findings):
        spare = {f"{FOLDER}/{found.name}" for found in (folder / FOLDER).glob("*") if found.is_dir()} - named
        findings += [
            Finding(name, "bundles", "failed", "no row names this bundle: remove it") for name in sorted(spare)
        ]
    return findings


def verify_rows(
    folder: Path, table: str, rows: Sequence[Published], depth: Depth, *, complete: bool = True
) -> list[Finding]:
    """Check rows of a table against their bundles in the folder, and all that the bundles claim.

    complete: whether these are all rows of the table, so that letters and ranks must follow from them.
    """
    tell = partial(Finding, table)
    runs, findings = read_bundles(folder, table, rows)
    sound = [row for row in rows if row.bundle in runs]
    if sound:
        findings.append(tell("checksums", "proven", f"{len(sound)} of {len(rows)} bundles have their SHA-256"))
    for row in sound:
        try:
            odd = differing(row, row_of(runs[row.bundle], row.bundle_sha256), placed=False)
            protocol = protocol_of(runs[row.bundle])
            if table_name(protocol.name, protocol.version) != table:
                odd.append(f"protocol (its bundle is of {protocol.name} v{protocol.version})")
        except (SembenchError, KeyError, TypeError, ValueError, AttributeError) as error:
            odd = [f"everything ({' '.join(str(error).split())[:200]})"]
        if odd:
            findings.append(tell("rows", "failed", f"{row.row}: not as its bundle has it in {', '.join(odd[:SHOWN])}"))
    if sound and not any(finding.check == "rows" for finding in findings):
        findings.append(tell("rows", "proven", f"{len(sound)} rows are what their bundles give"))
    if any(finding.outcome == "failed" for finding in findings) or not complete:
        findings.append(tell("ranks", "not proven", "letters and ranks follow from all rows together, as they are"))
    else:
        odd_places = [
            f"{row.row}: letters or ranks are not what follows from the rows: {', '.join(odd)}"
            for row, placed in zip(
                *(sorted(some, key=lambda r: r.key) for some in (rows, ranked(rows, runs))), strict=True
            )
            if (odd := differing(row, placed, placed=True))
        ]
        findings += [tell("ranks", "failed", text) for text in odd_places[:SHOWN]]
        if not odd_places:
            findings.append(tell("ranks", "proven", "letters and ranks follow from the rows"))
    for merged, folders in _merged([runs[row.bundle] for row in sound]):
        findings += check_claim(Claim(merged, depth, (*folders, *depth.images), published=True), table)
    return findings


def read_bundles(folder: Path, table: str, rows: Iterable[Published]) -> tuple[dict[str, RecordedRun], list[Finding]]:
    """What the bundles of rows hold, and a finding for each that is missing or does not fit its checksums."""
    runs: dict[str, RecordedRun] = {}
    findings = []
    for row in rows:
        try:
            runs[row.bundle] = read_bundle(folder / row.bundle)
            content = (folder / row.bundle / CHECKSUMS).read_bytes()
        except (InputError, OSError) as error:
            findings.append(Finding(table, "checksums", "failed", str(error)))
            continue
        if digest({CHECKSUMS: content}) != row.bundle_sha256:
            del runs[row.bundle]
            findings.append(Finding(table, "checksums", "failed", f"{row.bundle}: is not the bundle of {row.row}"))
    return runs, findings


def _merged(runs: Iterable[RecordedRun]) -> list[tuple[RecordedRun, list[Path]]]:
    """Bundles of one protocol and equal data as one run, so that each case is made once for all; and their folders."""
    alike: dict[str, list[RecordedRun]] = {}
    for run in runs:
        same = [run.description.get(name) for name in ("protocol", "protocol_digest", "data", "data_digest")]
        alike.setdefault(digest_of(same), []).append(run)
    merged = []
    for own in alike.values():
        environments: dict[str, object] = {}
        for run in own:
            for name, told in run.description.get("environments", {}).items():
                if name not in environments or environment_digest(told) != name:
                    environments[name] = told
        rows = [told for run in own for told in run.description["rows"]]
        description = {**own[0].description, "rows": rows, "environments": environments}
        records = tuple(record for run in own for record in run.records)
        flat = tuple(record for run in own for record in run.flat)
        every = tuple(row for run in own for row in run.rows)
        joined = RecordedRun(own[0].folder, description, every, records, flat=flat)
        merged.append((joined, [run.folder for run in own]))
    return merged
