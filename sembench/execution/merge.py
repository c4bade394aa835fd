"""Shards, or runs of other restorers, joined into one run folder: every record once, every image beside it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sembench.errors import InputError
from sembench.execution.folder import locked, read_description, write_description
from sembench.execution.plan import SHARD_MARK, Row
from sembench.execution.provenance import codes, versions
from sembench.execution.recorded import RecordedRun, read_run
from sembench.execution.records import FLAT, RECORDS, Key, Record, fetch_stored, key
from sembench.micrograph import write_atomically
from sembench.protocol import Protocol

TIMINGS = ("seconds", "peak_memory_mb", "traceback", "environment", "device")
"""What two records of one result may differ in: how long it took, and where."""
OWN = ("shard", "environment", "git", "command", "started")
"""What each merged run keeps of its own description."""
OTHER_LIBRARIES = "its shards ran under other versions of libraries, see `shards`"
OTHER_CODE = (
    "more than one state of its code made its records, see `code_sha256_also` in run.json: run again, with --fresh, "
    "those that the old code made"
)
UNKNOWN_CODE = "what code made some of its records is not known, so that run.json names none"


class _Fit(BaseModel):
    state_sha256: str | None = None


class _Row(BaseModel):
    fit: _Fit = _Fit()


class _Description(BaseModel):
    """What a merge reads of run.json beside what `read_run` has checked."""

    model_config = ConfigDict(extra="allow")

    digest: str
    protocol: Protocol
    protocol_digest: str
    data_digest: str
    metrics: list[str] = Field(min_length=1)
    rows: list[_Row]
    started: str = ""
    cases: list[str] = []
    limit: int | None = None
    notices: list[str] = []
    environments: dict[str, dict[str, Any]] = {}
    shard: str | None = Field(None, pattern=r"^[0-9]{1,5}/[1-9][0-9]{0,4}$")
    shards: "list[_Shard]" = []


class _Shard(BaseModel):
    shard: str | None = Field(None, pattern=r"^[0-9]{1,5}/[1-9][0-9]{0,4}$")
    environment: dict[str, Any] | None = None
    started: str


@dataclass(frozen=True, eq=False)
class Merged:
    """What came of a merge.

    missing: (row, case) of the runs' cases without a record; shards: those not given, i/n; notices: what the runs that
    were merged do not have in common, a line each.
    """

    folder: Path
    protocol: Protocol
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    records: tuple[Record, ...]
    missing: tuple[Key, ...]
    shards: tuple[str, ...]
    notices: tuple[str, ...] = ()


def merged_folder(folders: Sequence[Path]) -> Path:
    """The folder of the run whose shards these are; InputError where their names do not tell it."""
    wholes = set()
    for folder in folders:
        name, mark, _ = folder.resolve().name.rpartition(SHARD_MARK)
        if not (name and mark):
            raise InputError(f"{folder}: not named as a shard: give --out FOLDER")
        wholes.add(folder.parent / name)
    if len(wholes) > 1:
        raise InputError(f"{folders[0]} and others are not the shards of one run by their names: give --out FOLDER")
    return wholes.pop()


def merge(folders: Sequence[Path], out: Path, on_file: Callable[[int, int], None] | None = None) -> Merged:
    """Join run folders into `out`, which may hold such a run already; the folders themselves stay as they are.

    A case that failed in one and was solved in another counts as solved. The same folders again change nothing.
    on_file: told of how many records the files are there, and how many there are.
    Raises InputError where the folders are not of one protocol, version and data, were scored by other metrics or
    fitted apart, tell different results of one case, or lack an image; WriteError where `out` cannot be written.
    """
    sources = [folder for folder in dict.fromkeys(map(Path.resolve, folders)) if folder != out.resolve()]
    runs = [read_run(folder) for folder in sources]
    if not runs:
        raise InputError("merge: give the folders of the shards")
    _check_alike(runs)
    with locked(out):
        before = read_description(out, runs[0].description["digest"])
        if before and (out / RECORDS).is_file():
            runs.insert(0, read_run(out))
            _check_alike(runs)
        records = _joined((run, run.records) for run in runs)
        flat = _joined((run, run.flat) for run in runs)
        description, notices = _described(runs)
        everything = (*records.values(), *flat.values())
        for done, (record, run) in enumerate(everything, 1):
            if run.folder != out:
                fetch_stored(record, run.folder, out)
            if on_file:
                on_file(done, len(everything))
        write_description(out, description)
        if flat:
            _write(out / FLAT, flat)
        ordered = _write(out / RECORDS, records)
    known = {row.row_id: row for run in runs for row in run.rows}
    rows = tuple(known[row["row"]] for row in description["rows"])
    wanted = [(row.row_id, case) for row in rows for case in description["cases"]]
    return Merged(
        out,
        Protocol(**description["protocol"]),
        rows,
        tuple(description["metrics"]),
        tuple(ordered),
        tuple(name for name in wanted if name not in records),
        tuple(_absent(description["shards"])),
        tuple(notices),
    )


def _check_alike(runs: Iterable[RecordedRun]) -> None:
    for run in runs:
        try:
            _Description(**run.description)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise InputError(
                f"{run.folder / 'run.json'}: not a run description, {where}: {error.errors()[0]['msg']}: run it again"
            ) from error
    first, *others = runs
    for run in others:
        for name, what in (
            ("digest", "another protocol, version or data"),
            ("protocol_digest", "another protocol or version"),
            ("data_digest", "other data"),
            ("metrics", "other metrics: equal extras and weights make them equal"),
        ):
            one, other = first.description.get(name), run.description.get(name)
            if one != other:
                one, other = (str(value)[:8] if name != "metrics" else value for value in (one, other))
                raise InputError(f"{run.folder}: {name} {other}, while {first.folder} has {one} ({what}): not merged")


def _write(path: Path, records: Mapping[Key, tuple[Record, RecordedRun]]) -> list[Record]:
    ordered = [records[name][0] for name in sorted(records)]
    write_atomically(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in ordered).encode())
    return ordered


def _joined(told: Iterable[tuple[RecordedRun, Iterable[Record]]]) -> dict[Key, tuple[Record, RecordedRun]]:
    joined: dict[Key, tuple[Record, RecordedRun]] = {}
    for run, records in told:
        for record in records:
            name = key(record)
            for metric, value in record.get("metrics", {}).items():
                if value is not None and type(value) not in (int, float):
                    raise InputError(f"{run.folder}: {metric} of {name[0]} on {name[1]} is {value!r}: run it again")
            if name not in joined or (joined[name][0]["status"] == "failed" and record["status"] != "failed"):
                joined[name] = record, run
            elif record["status"] != "failed" and _result(record) != _result(joined[name][0]):
                raise InputError(
                    f"{run.folder}: another result of {name[0]} on {name[1]} than in {joined[name][1].folder}: "
                    "leave out one of the two"
                )
    return joined


def _result(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in TIMINGS}


def _described(runs: Sequence[RecordedRun]) -> tuple[dict[str, Any], list[str]]:
    """run.json of the whole: rows, cases, notices of all, how each shard was made; and in what the runs differ.

    Neither depends on the order of the runs, or on whether they come at once or one by one.
    """
    descriptions = [run.description for run in runs]
    notices = {str(notice) for told in descriptions for notice in told.get("notices", ())}
    own = {}
    for told in descriptions:
        for shard in told.get("shards") or [
            {**{name: told.get(name) for name in OWN}, "started": str(told.get("started", ""))}
        ]:
            own[json.dumps(shard, sort_keys=True)] = shard
    shards = [own[name] for name in sorted(own)]
    rows, differences = [], []
    for name in sorted({str(row["row"]) for told in descriptions for row in told["rows"]}):
        code, in_part = _code_of(name, runs)
        told = {key: value for key, value in _row_of(name, runs).items() if key not in code}
        rows.append(told | {key: value for key, value in code.items() if value})
        if code["code_sha256_also"]:
            differences.append(f"{name}: {OTHER_CODE}")
        if in_part or f"{name}: {UNKNOWN_CODE}" in notices:
            differences.append(f"{name}: {UNKNOWN_CODE}")
    if len({json.dumps(_versions(shard), sort_keys=True) for shard in shards}) > 1:
        differences.append(OTHER_LIBRARIES)
    earlier = {notice for notice in notices if not notice.endswith((OTHER_CODE, UNKNOWN_CODE, OTHER_LIBRARIES))}
    limits = [told.get("limit") for told in descriptions]
    first = min(shards, key=lambda shard: (str(shard["started"]), json.dumps(shard, sort_keys=True)))
    whole = {
        **descriptions[0],
        **{name: first.get(name) for name in OWN if name != "shard"},
        "rows": rows,
        "cases": sorted({case for told in descriptions for case in told.get("cases", ())}),
        "limit": None if None in limits else max(limit for limit in limits if limit is not None),
        "notices": [*sorted(earlier), *differences],
        "environments": {name: told for run in descriptions for name, told in run.get("environments", {}).items()},
        "shards": shards,
    }
    whole.pop("shard", None)
    return whole, differences


def _told_of(name: str, runs: Iterable[RecordedRun]) -> list[tuple[RecordedRun, dict[str, Any]]]:
    """What each run says of a row, if it does."""
    return [(run, told) for run in runs for told in run.description["rows"] if told["row"] == name]


def _row_of(name: str, runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """What run.json of the whole says of a row: what a run says that has its fit, where one has."""
    told = _told_of(name, runs)
    fitted = [(run, row) for run, row in told if _fitted(row.get("fit", {}))]
    for run, row in fitted:
        if row["fit"]["state_sha256"] != fitted[0][1]["fit"]["state_sha256"]:
            raise InputError(
                f"{run.folder}: {name} was fitted apart from the other runs, so that its numbers are another "
                "method's: fit it once, in a cache that all shards see, and run this one again with --fresh"
            )
    return min((row for _, row in fitted or told), key=lambda row: json.dumps(row, sort_keys=True))


def _code_of(name: str, runs: Sequence[RecordedRun]) -> tuple[dict[str, Any], bool]:
    """What run.json of the whole says of the code that made a row's records, and whether only some of it is known.

    Of several states of the code all are told, as of a run that went on after a change; where one is not known, none.
    """
    told = _told_of(name, runs)
    made = [row for run, row in told if any(one["row"] == name for one in (*run.records, *run.flat))]
    made = made or [row for _, row in told]
    known = [codes(row) for row in made]
    first, *also = sorted({digest for some in known for digest in some}) if all(known) else [None]
    brought = {row["distribution"] for row in made if isinstance(row.get("distribution"), str)}
    alike = len(brought) == 1 and all("distribution" in row for row in made)
    code = {"code_sha256": first, "code_sha256_also": also, "distribution": brought.pop() if alike else None}
    return code, any(known) and not all(known)


def _fitted(told: dict[str, Any]) -> bool:
    return bool(told.get("state_sha256"))


def _versions(shard: dict[str, Any]) -> dict[str, Any]:
    environment = shard.get("environment") or {}
    return {name: environment.get(name) for name in versions()}


def _absent(shards: Sequence[dict[str, Any]]) -> list[str]:
    """The shards that n says there are and nobody gave."""
    given = {shard["shard"] for shard in shards if shard.get("shard")}
    counts = {str(shard).partition("/")[2] for shard in given}
    return [f"{i}/{n}" for n in sorted(counts) for i in range(1, int(n) + 1) if f"{i}/{n}" not in given]
