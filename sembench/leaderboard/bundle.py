"""A bundle: what is published of one row beside its line, read back as a run of that row alone."""

import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sembench.errors import InputError, WriteError
from sembench.execution.plan import Row
from sembench.execution.recorded import RecordedRun, parse_description
from sembench.execution.records import LEFT_OUT, Record
from sembench.execution.worker import FLAT_METRICS
from sembench.leaderboard.rows import LARGEST_FIELD
from sembench.micrograph import write_atomically

FOLDER = "bundles"
DESCRIPTION, CASES, FLAT, CHECKSUMS = "run.json", "cases.csv", "flat.csv", "checksums.txt"
STATE = "state.safetensors"
LARGEST_STATE = 5_000_000
"""Bytes that a fitted state may have to lie in a bundle."""

OF_THE_RUN = ("schema", "protocol", "protocol_digest", "data", "data_digest", "metrics", "git", "started")
"""What a bundle's run.json takes over from the run's as it is."""

BEFORE = ("case", "group", "status")
AFTER = (
    *("seconds", "peak_memory_mb", "device", "environment", "input_sha256", "reference_sha256"),
    *("artefact", "artefact_sha256", "state_sha256", "undefined", "inapplicable", "detail", "reason"),
)
DETAIL = ("alignment", "tiles", "tile_groups")
MEND = "take the published bundle back"


def artefact(record: Record) -> tuple[str, str]:
    """The stored restored image or embeddings of a record: its path in the run folder and its SHA-256; "" for none."""
    for kind in ("image", "embeddings"):
        if record.get(kind):
            return str(record[kind]), str(record.get(f"{kind}_sha256", ""))
    return "", ""


def expected_artefact(row_id: str, case_id: str) -> tuple[str, str]:
    """Where the restored image, or the embeddings, of a row's case must lie."""
    return f"restored/{row_id}/{case_id}.png", f"embeddings/{row_id}/{case_id}.npy"


def bundle_files(run: RecordedRun, row: Row, state_from: str = "", state: bytes = b"") -> dict[str, bytes]:
    """The files of a row's bundle by name; state_from: where its fitted state is to be had, if it has one.

    state: the fitted state itself, where it is to lie in the bundle.
    """
    records, flat = (
        sorted((record for record in some if record["row"] == row.row_id), key=lambda r: str(r["case"]))
        for some in (run.records, run.flat)
    )
    described = next(told for told in run.description["rows"] if told["row"] == row.row_id)
    if "fit" in described:
        described = described | {"fit": described["fit"] | {"state_from": state_from}}
    known = run.description.get("environments", {})
    used = {str(record.get("environment", "")) for record in (*records, *flat)} & known.keys()
    description = {name: run.description[name] for name in OF_THE_RUN if name in run.description}
    description |= {"rows": [described], "environments": {digest: known[digest] for digest in sorted(used)}}
    files = {
        DESCRIPTION: (json.dumps(description, indent=2, sort_keys=True) + "\n").encode(),
        CASES: _as_csv(records, run.description["metrics"]),
        **({FLAT: _as_csv(flat, FLAT_METRICS)} if flat else {}),
        **({STATE: state} if state else {}),
    }
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    sums |= dict(path for record in (*records, *flat) if (path := artefact(record))[0])
    files[CHECKSUMS] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    return files


def _as_csv(records: Iterable[Record], metrics: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*BEFORE, *metrics, *AFTER])
    for record in records:
        values = record.get("metrics", {})
        inapplicable = record.get("inapplicable", ())
        undefined = {name: why for name, why in record.get("undefined", {}).items() if name not in inapplicable}
        detail = {name: record[name] for name in DETAIL if name in record}
        path, sha256 = artefact(record)
        seconds = record.get("seconds", {})
        writer.writerow(
            [
                *(record[name] for name in BEFORE),
                *(_number(values.get(name)) for name in metrics),
                _number(seconds.get("restore", seconds.get("embed"))),
                _number(record.get("peak_memory_mb")),
                *(record.get(name) or "" for name in ("device", "environment", "input_sha256", "reference_sha256")),
                *(path, sha256, record.get("state_sha256", "")),
                *(json.dumps(told, sort_keys=True) if told else "" for told in (undefined,)),
                " ".join(inapplicable),
                json.dumps(detail, sort_keys=True) if detail else "",
                record.get("reason", ""),
            ]
        )
    return text.getvalue().encode("utf-8", "backslashreplace")


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of a bundle's checksums, by which all of its content is known."""
    return hashlib.sha256(files[CHECKSUMS]).hexdigest()


def place(sha256: str) -> str:
    """Where the bundle of a digest lies beside its table: bundles/<the first 16 digits>."""
    return f"{FOLDER}/{sha256[:16]}"


def write_bundle(leaderboard: Path, files: Mapping[str, bytes]) -> Path:
    """Write a bundle beside the tables, the checksums last; WriteError leaves nothing behind that was not there."""
    folder = leaderboard / place(digest(files))
    new = not folder.exists()
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except WriteError:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def read_bundle(folder: Path) -> RecordedRun:
    """The row of a bundle and its records, as of a run; InputError, one line, where anything does not fit its checksum.

    Records are as in the run, less what only resuming needs.
    """
    contents = {CHECKSUMS: _content(folder / CHECKSUMS)}
    name = hashlib.sha256(contents[CHECKSUMS]).hexdigest()[:16]
    if folder.resolve().name != name:
        raise InputError(f"{folder / CHECKSUMS}: was changed: the folder's name must be {name}, its digest: {MEND}")
    sums = _checksums(contents[CHECKSUMS], folder / CHECKSUMS)
    for name in (DESCRIPTION, CASES, *(name for name in (FLAT, STATE) if name in sums or (folder / name).exists())):
        contents[name] = _content(folder / name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if sums.pop(name, None) != found:
            raise InputError(f"{folder / name}: was changed: {CHECKSUMS} does not give its SHA-256 {found[:8]}: {MEND}")
    description, rows = parse_description(contents[DESCRIPTION], folder / DESCRIPTION)
    metrics = description.get("metrics")
    if len(rows) != 1 or not isinstance(metrics, list) or not all(isinstance(metric, str) for metric in metrics):
        raise InputError(f"{folder / DESCRIPTION}: a bundle is of one row and tells its metrics: {MEND}")
    records = _read_csv(contents[CASES], folder / CASES, rows[0], metrics)
    flat = _read_csv(contents[FLAT], folder / FLAT, rows[0], FLAT_METRICS) if FLAT in contents else []
    if STATE in contents and len(contents[STATE]) > LARGEST_STATE:
        raise InputError(f"{folder / STATE}: has more than {LARGEST_STATE:,} bytes: name a URL with --states instead")
    stored = dict(artefact(record) for record in (*records, *flat) if artefact(record)[0])
    if stored != sums:
        odd = sorted({path for path, _ in stored.items() ^ sums.items()})[0]
        raise InputError(f"{folder}: {CASES} and {CHECKSUMS} disagree on {odd}: {MEND}")
    return RecordedRun(folder, description, rows, tuple(records), flat=tuple(flat))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): {MEND}") from error


def _checksums(content: bytes, path: Path) -> dict[str, str]:
    """Path -> SHA-256 of lines as sha256sum writes them."""
    sums: dict[str, str] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if found is None or found[2] in sums:
            raise InputError(f"{path}: line {number} is not `<sha256>  <path>`, each path once: {MEND}")
        sums[found[2]] = found[1]
    return sums


def _read_csv(content: bytes, path: Path, row: Row, metrics: Sequence[str]) -> list[Record]:
    limit = csv.field_size_limit(LARGEST_FIELD)
    try:
        lines = list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a table of cases ({error}): {MEND}") from error
    finally:
        csv.field_size_limit(limit)
    header = [*BEFORE, *metrics, *AFTER]
    if not lines or lines[0] != header:
        raise InputError(f"{path}: its columns are not those of the metrics of {DESCRIPTION}: {MEND}")
    records: dict[str, Record] = {}
    for number, cells in enumerate(lines[1:], 2):
        try:
            record = _record(dict(zip(header, cells, strict=True)), row, metrics)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not a case ({error}): {MEND}") from error
        if record["case"] in records:
            raise InputError(f"{path}: line {number}: case {record['case']} stands there twice: {MEND}")
        records[record["case"]] = record
    if not records:
        raise InputError(f"{path}: holds no case: {MEND}")
    return list(records.values())


def _record(cells: dict[str, str], row: Row, metrics: Sequence[str]) -> Record:
    """A line as a record; ValueError or TypeError says what is wrong."""
    record: Record = {"schema": 1, "row": row.row_id, "restorer": row.name, "kind": row.kind}
    record |= {name: cells[name] for name in BEFORE}
    record |= {name: cells[name] for name in ("device", "environment", "state_sha256") if cells[name]}
    if cells["status"] in ("failed", LEFT_OUT):
        return record | {"reason": cells["reason"]}
    if cells["status"] != "ok":
        raise ValueError(f"status {cells['status']!r}")
    undefined = json.loads(cells["undefined"] or "{}")
    inapplicable = cells["inapplicable"].split()
    if not isinstance(undefined, dict) or not all(isinstance(why, str) for why in undefined.values()):
        raise ValueError("undefined is no JSON object of reasons")
    record["metrics"] = {name: _read_number(cells[name]) for name in metrics}
    record |= {"undefined": undefined, "inapplicable": inapplicable}
    record |= {"input_sha256": cells["input_sha256"], "reference_sha256": cells["reference_sha256"] or None}
    kind, step = ("embeddings", "embed") if cells["artefact"].startswith("embeddings/") else ("image", "restore")
    record |= {kind: cells["artefact"], f"{kind}_sha256": cells["artefact_sha256"]}
    if cells["artefact"] not in expected_artefact(row.row_id, cells["case"]):
        raise ValueError(f"artefact {cells['artefact']!r}")
    if (seconds := _read_number(cells["seconds"])) is not None:
        record["seconds"] = {step: seconds}
    if (memory := _read_number(cells["peak_memory_mb"])) is not None:
        record["peak_memory_mb"] = memory
    return record | _detail(cells["detail"])


def _read_number(cell: str) -> float | None:
    value = float(cell) if cell else None
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{cell} is not finite")
    return value


def _detail(cell: str) -> dict[str, Any]:
    detail = json.loads(cell or "{}")
    if not isinstance(detail, dict) or not set(detail) <= set(DETAIL):
        raise ValueError("detail is not known")
    return detail
