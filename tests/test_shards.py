"""Shards of a run and their merge: what an unsharded run tells, however the cases were spread."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_lines import succeed
from small import protocol_file, write_records

from sembench.commands import app, progress
from sembench.errors import InputError
from sembench.execution.merge import TIMINGS, Merged, merge, merged_folder
from sembench.execution.plan import Shard
from sembench.execution.prepare import prepare
from sembench.execution.records import Record, read_records
from sembench.execution.request import RunRequest
from sembench.execution.run import execute


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    told: dict[str, Any] = {"time_limit_s": 60, "data": {"fields": "s2s_fields"}}
    protocol_file(folder, seed=8, **told).rename(folder / "other.toml")
    protocol_file(folder, **told)
    return folder


def run(bench: Path, out: str, **options: Any) -> list[Record]:
    options = {"restorers": ("input", "gaussian"), "protocol": "small.toml", "limit": 4, "workers": 1, **options}
    options["protocol"] = str(bench / options["protocol"])
    request = RunRequest(data="phantom", out=bench / out, **options)
    return execute(prepare(request), request)


@pytest.fixture(scope="module")
def whole(bench: Path) -> list[Record]:
    return run(bench, "whole")


@pytest.fixture(scope="module")
def shards(bench: Path) -> list[Path]:
    for index in (1, 2, 3):
        run(bench, "parts", shard=Shard(index, 3))
    return sorted(bench.glob("parts-shard-*"))


def told(records: Any) -> list[Record]:
    """Records without what may differ, in one order."""
    kept = [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]
    return sorted(kept, key=lambda record: (record["row"], record["case"]))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(shards: list[Path], to: Path) -> list[Path]:
    return [Path(shutil.copytree(shard, to / shard.name)) for shard in shards]


def test_merged_shards_are_the_unsharded_run(
    bench: Path, whole: list[Record], shards: list[Path], tmp_path: Path
) -> None:
    assert [path.name for path in shards] == [f"parts-shard-{index}-of-3" for index in (1, 2, 3)]
    assert [len(read_records(path / "records.jsonl")[0]) for path in shards] == [4, 2, 2]
    merged = merge(shards, tmp_path / "out")
    assert (merged.missing, merged.shards) == ((), ())
    assert told(merged.records) == told(whole)
    assert told(read_records(tmp_path / "out" / "records.jsonl")[0]) == told(whole)
    for image in (record["image"] for record in whole):
        assert (tmp_path / "out" / image).read_bytes() == (bench / "whole" / image).read_bytes()
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (bench / "whole", tmp_path / "out"))
    assert sorted(one["cases"]) == other["cases"]
    for name in ("digest", "protocol", "rows", "metrics", "limit", "environment"):
        assert one[name] == other[name], name
    assert [shard["shard"] for shard in other["shards"]] == ["1/3", "2/3", "3/3"]


def test_merging_again_in_another_order_and_bit_by_bit_changes_no_byte(shards: list[Path], tmp_path: Path) -> None:
    merge(shards, tmp_path / "out")
    before = contents(tmp_path / "out")
    merge([*shards[::-1], tmp_path / "out"], tmp_path / "out")
    assert contents(tmp_path / "out") == before
    first = merge(shards[:1], tmp_path / "bits")
    assert first.shards == ("2/3", "3/3")
    merge(shards[1:], tmp_path / "bits")
    assert contents(tmp_path / "bits") == before


def test_the_unsharded_command_finds_nothing_left_to_do(
    bench: Path, whole: list[Record], shards: list[Path], tmp_path: Path
) -> None:
    merge(shards, tmp_path / "out")
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    again = run(bench, str(tmp_path / "out"))
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before
    assert [(r["row"], r["case"]) for r in again] == [(r["row"], r["case"]) for r in whole]
    assert len(json.loads((tmp_path / "out" / "run.json").read_text())["shards"]) == 3


def test_flat_fields_of_runs_of_other_restorers_are_joined_too(bench: Path, tmp_path: Path) -> None:
    run(bench, "whole")
    parts = [bench / "only-input", bench / "only-gaussian"]
    for part in parts:
        run(bench, part.name, restorers=(part.name.removeprefix("only-"),))
    merge(parts, tmp_path / "out")
    flat = [read_records(folder / "flat.jsonl")[0] for folder in (tmp_path / "out", bench / "whole")]
    assert told(flat[0]) == told(flat[1])
    assert {record["restorer"] for record in flat[0]} == {"input", "gaussian"}
    assert all((tmp_path / "out" / record["image"]).is_file() for record in flat[0])


def test_a_listener_hears_how_many_are_still_to_come(bench: Path, tmp_path: Path) -> None:
    def left(limit: int) -> list[int]:
        heard: list[int] = []
        request = RunRequest(
            ("input", "gaussian"), str(bench / "small.toml"), "phantom", tmp_path / "run", limit=limit, workers=1
        )
        execute(prepare(request), request, lambda record, left: heard.append(left))
        return heard

    assert left(1) == [1, 0]
    assert left(3) == [3, 2, 1, 0]
    assert left(3) == []


def test_what_is_missing_is_told(shards: list[Path], tmp_path: Path) -> None:
    parts = copied(shards[:2], tmp_path)
    lines = (parts[0] / "records.jsonl").read_text().splitlines(keepends=True)
    lost = json.loads(lines[-1])
    (parts[0] / "records.jsonl").write_text("".join(lines[:-1]) + '{"torn')
    merged = merge(parts, tmp_path / "out")
    assert merged.missing == ((lost["row"], lost["case"]),)
    assert merged.shards == ("3/3",)


def test_a_case_solved_elsewhere_counts_as_solved(shards: list[Path], tmp_path: Path) -> None:
    parts = [*copied(shards[:1], tmp_path), Path(shutil.copytree(shards[0], tmp_path / "failed"))]
    records = read_records(parts[1] / "records.jsonl")[0]
    failed = {**{name: records[0][name] for name in ("row", "case", "group", "kind", "restorer")}, "status": "failed"}
    (parts[1] / "records.jsonl").write_text(json.dumps({**failed, "reason": "a bad node"}) + "\n")
    for order in (parts, parts[::-1]):
        merged: Merged = merge(order, tmp_path / f"from-{order[0].name}")
        assert told(merged.records) == told(records)


def spoilt(folder: Path, change: Callable[[Record], Record]) -> None:
    records = [change(record) for record in read_records(folder / "records.jsonl")[0]]
    write_records(folder, records)


def described(folder: Path, **change: Any) -> None:
    before = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**before, **change}))


def other_result(folder: Path) -> None:
    spoilt(folder, lambda record: {**record, "metrics": {**record["metrics"], "psnr": 1.0}})


def lost_image(folder: Path) -> None:
    next((folder / "restored").rglob("*.png")).unlink()


def changed_image(folder: Path) -> None:
    next((folder / "restored").rglob("*.png")).write_bytes(b"another")


def escaping_image(folder: Path) -> None:
    spoilt(folder, lambda record: {**record, "image": "../stolen.png"})


def fitted_apart(folder: Path) -> None:
    rows = json.loads((folder / "run.json").read_text())["rows"]
    described(folder, rows=[{**row, "fit": {"state_sha256": folder.name}} for row in rows])


def with_code(folder: Path, name: str, *digests: str) -> None:
    """Let run.json say that this code made the records of a restorer; none: that nobody knows."""
    rows = json.loads((folder / "run.json").read_text())["rows"]
    for row in rows:
        if row["restorer"] == name:
            first, also = digests[:1], digests[1:]
            for key, value in (("code_sha256", "".join(first)), ("code_sha256_also", list(also))):
                row.pop(key, None)
                row |= {key: value} if value else {}
    described(folder, rows=rows)


@pytest.mark.parametrize(
    ("codes", "whole", "says"),
    [
        ((("a",), ("a",), ("a",)), ["a"], ""),
        ((("b",), ("a",), ("b",)), ["a", "b"], "more than one state of its code made its records"),
        ((("b",), ("a", "c"), ("b",)), ["a", "b", "c"], "more than one state of its code made its records"),
        ((("a",), (), ("b",)), [], "what code made some of its records is not known"),
        (((), (), ()), [], ""),
    ],
)
def test_a_merge_tells_of_every_code_that_made_records(
    shards: list[Path], tmp_path: Path, codes: tuple[tuple[str, ...], ...], whole: list[str], says: str
) -> None:
    parts = copied(shards, tmp_path)
    for part, digests in zip(parts, codes, strict=True):
        with_code(part, "gaussian", *digests)
    merged = merge(parts, tmp_path / "out")
    assert [notice.partition(": ")[2].startswith(says) for notice in merged.notices] == [True] * bool(says)
    assert all(notice.startswith("gaussian-") for notice in merged.notices)
    description = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [notice for notice in description["notices"] if "code" in notice] == [*merged.notices]
    gaussian, plain = description["rows"]
    assert [*filter(None, [gaussian.get("code_sha256")]), *gaussian.get("code_sha256_also", [])] == whole
    assert "code_sha256" in plain
    assert "code_sha256_also" not in plain
    before = contents(tmp_path / "out")
    for number, order in enumerate(
        ([parts], [parts[::-1]], [[part] for part in parts], [[part] for part in parts[::-1]])
    ):
        for some in order:
            merge(some, tmp_path / f"out{number}")
        assert contents(tmp_path / f"out{number}") == before


def test_a_shard_without_records_of_a_row_says_nothing_of_its_code(shards: list[Path], tmp_path: Path) -> None:
    parts = copied(shards[:2], tmp_path)
    with_code(parts[1], "gaussian", "other")
    records = [record for record in read_records(parts[1] / "records.jsonl")[0] if record["restorer"] != "gaussian"]
    write_records(parts[1], records)
    merged = merge(parts, tmp_path / "out")
    assert merged.notices == ()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows"][0]["code_sha256"] != "other"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ((other_result,), "another result of"),
        ((lost_image,), "missing, or not the file that was scored"),
        ((changed_image,), "missing, or not the file that was scored"),
        ((escaping_image, escaping_image), "outside of its folder"),
        ((fitted_apart, fitted_apart), "was fitted apart"),
        ((lambda folder: described(folder, metrics=["psnr"]),), "other metrics"),
        ((lambda folder: described(folder, digest="0" * 64),), "another protocol, version or data"),
        ((lambda folder: described(folder, limit="many"),), "limit"),
        ((lambda folder: described(folder, shards=[{}]),), "shards"),
        ((lambda folder: (folder / "run.json").write_text("[1"),), "not a run description"),
        ((lambda folder: (folder / "records.jsonl").write_text("{}\n"),), "line 1 is not a record"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    shards: list[Path], tmp_path: Path, spoil: tuple[Callable[[Path], object], ...], says: str
) -> None:
    parts = [Path(shutil.copytree(shards[0], tmp_path / "twin")), *copied(shards[:1], tmp_path)]
    for part, change in zip(parts, spoil, strict=False):
        change(part)
    with pytest.raises(InputError, match=says) as refusal:
        merge(parts, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "stolen.png").exists()
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_another_protocol_is_refused_with_both_digests(bench: Path, shards: list[Path], tmp_path: Path) -> None:
    run(bench, "other", protocol="other.toml", limit=1, restorers=("input",))
    digests = [json.loads((folder / "run.json").read_text())["digest"][:8] for folder in (shards[0], bench / "other")]
    with pytest.raises(InputError) as refusal:
        merge([shards[0], bench / "other"], tmp_path / "out")
    assert all(digest in str(refusal.value) for digest in digests)
    merge(shards, tmp_path / "taken")
    with pytest.raises(InputError, match=digests[0]):
        merge([bench / "other"], tmp_path / "taken")


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", "1.5/3", "1/³"])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        Shard.parse(text)


def test_every_case_is_in_one_shard_and_no_shard_is_empty(bench: Path) -> None:
    request = RunRequest(restorers=("input",), protocol=str(bench / "small.toml"), data="phantom", limit=7)
    cases = prepare(request).cases
    parts = [Shard(index, 3).part(cases).specs for index in (1, 2, 3)]
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    assert sorted(spec.case_id for part in parts for spec in part) == sorted(spec.case_id for spec in cases.specs)
    with pytest.raises(InputError, match="7 cases"):
        Shard(1, 8).part(cases)


def test_the_whole_run_is_named_by_its_shards() -> None:
    assert merged_folder([Path("runs/a-shard-1-of-2"), Path("runs/a-shard-2-of-2")]) == Path("runs/a")
    for folders in ([Path("runs/a-shard-1-of-2"), Path("runs/b-shard-2-of-2")], [Path("runs/a")]):
        with pytest.raises(InputError, match="--out"):
            merged_folder(folders)


def test_the_command_writes_tables_and_tells_what_is_missing(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = copied(shards[:2], tmp_path)
    done = succeed(app, "merge", *parts, "--json", standalone_mode=False)
    told = json.loads(done.stdout)
    assert told["run"] == str(tmp_path / "parts")
    assert (told["records"], told["failed"], told["missing"], told["shards_not_given"]) == (6, 0, [], ["3/3"])
    assert len((tmp_path / "parts" / "cases.csv").read_text().splitlines()) == 1 + 6
    assert len((tmp_path / "parts" / "summary.csv").read_text().splitlines()) == 1 + 2
    done = succeed(app, "merge", *parts, "--out", tmp_path / "out", standalone_mode=False)
    assert "6 records of 2 restorers, 0 failed" in done.output
    assert "shards 3/3 were not given" in done.output
    monkeypatch.setattr(progress, "SECONDS_A_LINE", -1.0)
    with_code(parts[0], "gaussian", "other")
    done = succeed(app, "merge", *parts, "--out", tmp_path / "two", standalone_mode=False)
    assert "6 of 6 (" in done.stderr
    assert "notice: gaussian-" in done.stderr
    assert ": more than one state of its code made its records" in done.stderr
