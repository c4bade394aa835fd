"""The leaderboard: what is published, what verifying proves, and what it says of a forgery."""

import contextlib
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small import protocol_file, records_of, write_records

from sembench import phantom, protocol
from sembench.cases import fields
from sembench.cases.flat import FIELDS
from sembench.errors import CheckError, InputError, WriteError
from sembench.execution import local, worker
from sembench.execution.plan import row_id
from sembench.execution.prepare import prepare
from sembench.execution.recorded import RecordedRun, read_run
from sembench.execution.request import RunRequest
from sembench.execution.run import execute
from sembench.leaderboard import claims, eligibility, recompute
from sembench.leaderboard.bundle import CHECKSUMS, bundle_files, digest, read_bundle, write_bundle
from sembench.leaderboard.claims import Depth, Finding
from sembench.leaderboard.publish import publish
from sembench.leaderboard.ranking import ranked, row_of
from sembench.leaderboard.render import markdown, read_tabs, write_page
from sembench.leaderboard.rows import as_csv, parse_rows, read_rows
from sembench.leaderboard.submission import review
from sembench.leaderboard.verify import verify
from sembench.registry import find_method, resolve_settings

published_protocol = partial(protocol_file, published=True, time_limit_s=60, data={"also": ["phantom"]})

PLUGIN = '''
from sembench.restorer import Restorer

class Sharp(Restorer):
    """Was trained on what it is scored by."""
    @classmethod
    def trained_on(cls, settings):
        return ("lpips",)
    def restore(self, image, /):
        return image
'''
RESTORERS = ("input", "gaussian", "median", "affine")
TABLE = "small-v1.csv"
CASES = 8
NOTHING = Depth(sample=0, restore=0)
METRICS = ("psnr", "ssim")
COLUMNS = (*METRICS, "invented_structure")


def _here(job: worker.Job, function: Callable[..., Any], tasks: list[tuple[Any, ...]]) -> list[Any]:
    """What a worker does, in this process, which is quicker."""
    worker._made.cache_clear()
    worker.start(job, quiet=False)
    return [function(*task) for task in tasks]


def _work(bundles: Any, job: worker.Job, workers: int, keep: Callable[[Any], None]) -> None:
    for record in _here(job, worker.solve, [(row, bundle.spec) for bundle in bundles for row in bundle.rows]):
        keep(record)


@pytest.fixture(scope="module")
def patched() -> Iterator[None]:
    """Few simulated cases, taken for real ones; workers in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PHANTOM_CASES", CASES)
        patch.setattr(phantom, "corpus_scene", lru_cache(phantom.corpus_scene))
        patch.setattr(eligibility, "SIMULATED", ())
        patch.setattr(local, "work", _work)
        patch.setattr(recompute, "in_worker", _here)
        yield


def _run(folder: Path, **asked: Any) -> Path:
    file = published_protocol(folder.parent)
    request = RunRequest(asked.pop("restorers", RESTORERS), str(file), "phantom", folder, workers=1, **asked)
    execute(prepare(request), request)
    return folder


@pytest.fixture(scope="module")
def run(patched: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that can be published; not to be changed."""
    return _run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run published; not to be changed."""
    folder = tmp_path_factory.mktemp("published") / "leaderboard"
    publish(run, folder, Depth(sample=CASES, restore=1, seed=1))
    return folder


@pytest.fixture
def leaderboard(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "leaderboard"))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _failed(findings: list[Finding]) -> dict[str, str]:
    told: dict[str, str] = {}
    for finding in findings:
        if finding.outcome == "failed":
            told[finding.check] = f"{told.get(finding.check, '')}{finding.told}\n"
    return told


def _unproven(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.outcome == "not proven"}


def _edit_records(folder: Path, edit: Callable[[dict[str, Any]], None], name: str = "records.jsonl") -> None:
    records = records_of(folder, name)
    for record in records:
        edit(record)
    write_records(folder, records, name)


def _edit_description(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "run.json"
    description = json.loads(path.read_text())
    edit(description)
    path.write_text(json.dumps(description))


# What is published


def test_rows_hold_the_means_of_the_records(run: Path, published: Path) -> None:
    rows = {row.restorer: row for row in read_rows(published / TABLE)}
    records = records_of(run)
    assert list(rows) == ["gaussian", "input", "median", "affine"]
    for name, row in rows.items():
        for metric in METRICS:
            values = [record["metrics"][metric] for record in records if record["restorer"] == name]
            interval = row.scores[metric].interval
            assert interval is not None
            assert interval.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert (interval.n, interval.groups, interval.method) == (CASES, CASES, "bootstrap-t")
            assert interval.low is not None
            assert interval.high is not None
            assert interval.low < interval.mean < interval.high
        assert (row.cases, row.solved, row.failed, row.left_out) == (CASES, CASES, 0, 0)


def test_restorers_are_ranked_and_controls_are_not(published: Path) -> None:
    rows = read_rows(published / TABLE)
    restorers = [row for row in rows if row.kind == "restorer"]
    means = {row.restorer: row.scores["psnr"].interval.mean for row in restorers if row.scores["psnr"].interval}
    best = max(restorers, key=lambda row: means[row.restorer])
    assert best.rank is not None
    assert best.rank[0] == 1
    assert "a" in best.letters
    for row in rows:
        assert (row.rank is None) == (row.kind == "control")
        assert row.ranked_cases == (CASES if row.kind == "restorer" else None)


def test_a_bundle_is_named_by_its_content_and_lists_the_images_that_lie_outside(run: Path, published: Path) -> None:
    for row in read_rows(published / TABLE):
        folder = published / row.bundle
        assert sorted(path.name for path in folder.iterdir()) == ["cases.csv", CHECKSUMS, "flat.csv", "run.json"]
        assert folder.name == hashlib.sha256((folder / CHECKSUMS).read_bytes()).hexdigest()[:16]
        sums = dict(reversed(line.split("  ", 1)) for line in (folder / CHECKSUMS).read_text().splitlines())
        assert len(sums) == 3 + CASES + FIELDS
        for name, sha256 in sums.items():
            place = run if name.startswith("restored/") else folder
            assert hashlib.sha256((place / name).read_bytes()).hexdigest() == sha256


def test_a_bundle_gives_back_the_records_of_its_row(run: Path, published: Path) -> None:
    row = next(row for row in read_rows(published / TABLE) if row.restorer == "median")
    found = {record["case"]: record for record in read_bundle(published / row.bundle).records}
    for record in read_run(run).records:
        if record["row"] == row.row:
            kept = {
                name: record[name] for name in ("metrics", "group", "image", "image_sha256", "input_sha256", "device")
            }
            assert {name: found[record["case"]][name] for name in kept} == kept


def test_publishing_again_changes_nothing(run: Path, leaderboard: Path) -> None:
    before = _content(leaderboard)
    publish(run, leaderboard, NOTHING)
    assert _content(leaderboard) == before


def test_publishing_in_parts_gives_the_same_as_at_once(run: Path, published: Path, tmp_path: Path) -> None:
    for name in reversed(RESTORERS):
        publish(run, tmp_path / "parts", NOTHING, restorers=(name,))
    assert _content(tmp_path / "parts") == _content(published)


def test_another_result_of_a_row_replaces_it_and_its_bundle(copied: Path, leaderboard: Path) -> None:
    _edit_records(copied, lambda record: record.update(seconds={"restore": 9.0}))
    done = publish(copied, leaderboard, NOTHING, restorers=("median",))
    rows = {row.restorer: row for row in done.after}
    assert rows["median"].seconds_median == 9.0
    assert {path.name for path in (leaderboard / "bundles").iterdir()} == {Path(row.bundle).name for row in done.after}
    assert len(rows) == len(RESTORERS)


def test_failed_cases_are_counted_with_their_reason(copied: Path, leaderboard: Path) -> None:
    def fail(record: dict[str, Any]) -> None:
        if record["restorer"] == "gaussian" and record["case"] == "P001":
            for name in ("metrics", "undefined", "image", "image_sha256"):
                del record[name]
            record.update(status="failed", reason='took, "too" long\u2028and <b>died</b>')

    _edit_records(copied, fail)
    done = publish(copied, leaderboard, NOTHING)
    rows = {row.restorer: row for row in done.after}
    assert (rows["gaussian"].solved, rows["gaussian"].failed) == (CASES - 1, 1)
    assert (rows["gaussian"].rank, rows["gaussian"].missing, rows["median"].ranked_cases) == (None, 1, CASES)
    (reason,) = [r["reason"] for r in read_bundle(leaderboard / rows["gaussian"].bundle).records if "reason" in r]
    assert "<b>died</b>" in reason
    assert not _failed(verify(leaderboard, NOTHING))


def test_flat_fields_are_published_beside_the_metrics_and_rank_nobody(run: Path, published: Path) -> None:
    flat = records_of(run, "flat.jsonl")
    rows = {row.restorer: row for row in read_rows(published / TABLE)}
    for name, row in rows.items():
        values = [record["metrics"]["invented_structure"] for record in flat if record["restorer"] == name]
        interval = row.scores["invented_structure"].interval
        assert interval is not None
        assert interval.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert interval.n == FIELDS
        assert row.cases == CASES
    mean = {name: row.scores["invented_structure"].interval for name, row in rows.items()}
    assert mean["input"] is not None
    assert mean["input"].mean == 1
    assert mean["gaussian"] is not None
    assert mean["gaussian"].mean < 1


def test_what_is_told_of_flat_fields_is_verified(run: Path, copied: Path, tmp_path: Path) -> None:
    path = copied / "flat.jsonl"
    lines = path.read_text().splitlines()

    def forge(**changed: Any) -> None:
        first = json.loads(lines[0])
        first.update(changed)
        path.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")

    sampled = Depth(sample=1, restore=0)
    assert not _failed(verify(copied, sampled))
    first = json.loads(lines[0])
    forge(metrics={"invented_structure": first["metrics"]["invented_structure"] * 0.5})
    assert "comes out as" in _failed(verify(copied, Depth(sample=FIELDS, restore=0)))["flat fields"]
    assert "comes out as" in _failed(verify(copied, Depth(sample=0, restore=FIELDS)))["flat fields"]
    forge(case="flat-P009")
    assert "no flat field" in _failed(verify(copied, NOTHING))["flat fields"]
    forge(image_sha256="0" * 64)
    assert "SHA-256" in _failed(verify(copied, NOTHING))["flat fields"]
    path.write_text("".join(f"{line}\n" for line in lines if first["row"] not in line))
    findings = verify(copied, NOTHING)
    assert not _failed(findings)
    assert any(f.check == "flat fields" and first["row"] in f.told for f in findings if f.outcome == "not proven")
    path.unlink()
    done = publish(copied, tmp_path / "to", NOTHING)
    assert all(row.scores["invented_structure"].interval is None for row in done.after)
    assert not _failed(verify(tmp_path / "to", NOTHING))


def test_a_restorer_that_lacks_more_than_a_tenth_of_the_cases_is_listed_unranked(
    copied: Path, leaderboard: Path
) -> None:
    def refuse(record: dict[str, Any]) -> None:
        if record["restorer"] == "gaussian" and record["case"] in ("P001", "P002"):
            record["metrics"]["psnr"] = None
            record["undefined"] = {"psnr": "refused"}

    _edit_records(copied, refuse)
    done = publish(copied, leaderboard, NOTHING)
    rows = {row.restorer: row for row in done.after}
    out = rows["gaussian"]
    assert (out.rank, out.letters, out.ranked_cases, out.missing) == (None, "", None, 2)
    assert (out.solved, out.scores["psnr"].undefined) == (CASES, 2)
    for name in ("input", "median"):
        assert (rows[name].ranked_cases, rows[name].missing) == (CASES, 0)
        assert rows[name].rank is not None
        assert rows[name].rank[1] <= 2
    assert rows["affine"].missing is None
    assert not _failed(verify(leaderboard, NOTHING))
    rows_told = read_rows(leaderboard / TABLE)
    spoilt = [replace(row, missing=0) if row.restorer == "gaussian" else row for row in rows_told]
    (leaderboard / TABLE).write_bytes(as_csv(spoilt, COLUMNS))
    assert "missing" in _failed(verify(leaderboard, NOTHING))["ranks"]


def test_what_a_row_is_a_variant_of_is_verified(copied: Path, leaderboard: Path) -> None:
    """Whoever leaves out that a setting is not the default, or claims one that is, is found by the installed method."""
    described = json.loads((copied / "run.json").read_text())["rows"]
    assert all(row["variant"] == {} and row["trained_on"] == [] for row in described)

    def claim(**told: Any) -> None:
        _edit_description(copied, lambda d: [row.update(told) for row in d["rows"] if row["restorer"] == "median"])

    claim(variant={"size": 7})
    assert "variant" in _failed(verify(copied, NOTHING))["identity"]
    with pytest.raises(CheckError, match="variant"):
        publish(copied, leaderboard, NOTHING)
    claim(variant={}, trained_on=["lpips"])
    assert "trained on" in _failed(verify(copied, NOTHING))["identity"]
    _edit_description(copied, lambda d: [row.pop(name) for row in d["rows"] for name in ("variant", "trained_on")])
    assert not _failed(verify(copied, NOTHING))
    publish(copied, leaderboard, NOTHING)
    assert all(row.variant == {} for row in read_rows(leaderboard / TABLE))


def _as_learned(copied: Path, sha256: str) -> tuple[str, dict[str, Any]]:
    """Make the run one in which median learned a state of that SHA-256: its new row id, and the fit told."""
    fit = {"identity": {"name": "median", "budget": ["standard", 4000, 4]}, "state_sha256": sha256, "report": {}}

    def learn(description: dict[str, Any]) -> None:
        for row in description["rows"]:
            if row["restorer"] == "median":
                row["fit"] = fit
                row["row"] = row_id("median", row["version"], row["settings"], fit=fit["identity"])

    (old,) = (row.row_id for row in read_run(copied).rows if row.name == "median")
    _edit_description(copied, learn)
    described = json.loads((copied / "run.json").read_text())["rows"]
    (new,) = (row["row"] for row in described if row["restorer"] == "median")
    (copied / "restored" / old).rename(copied / "restored" / new)

    def move(record: dict[str, Any]) -> None:
        if record["row"] == old:
            record.update(row=new, image=record["image"].replace(old, new))

    for name in ("records.jsonl", "flat.jsonl"):
        _edit_records(copied, move, name)
    return new, fit


def test_a_learned_row_needs_a_place_where_its_state_is_to_be_had(copied: Path, tmp_path: Path) -> None:
    new, fit = _as_learned(copied, "0" * 64)
    with pytest.raises(InputError, match="say with --states"):
        publish(copied, tmp_path / "to", NOTHING, restorers=("median",))
    done = publish(copied, tmp_path / "to", NOTHING, restorers=("median",), states="https://example.org/states")
    (row,) = done.after
    assert (row.state_sha256, row.state_from, row.budget) == ("0" * 64, "https://example.org/states", "standard")
    told = {f.check: f.told for f in done.findings if f.outcome == "not proven"}
    assert "not at hand" in told["states"]
    fit["identity"]["budget"] = ["10min", None, 4]
    _edit_description(copied, lambda told: [row.update(fit=fit) for row in told["rows"] if row["row"] == new])
    with pytest.raises(InputError, match="budget of 10min"):
        publish(copied, tmp_path / "to", NOTHING, restorers=("median",), states="x")


def test_a_small_state_that_ships_with_no_restorer_lies_in_the_bundle(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"what median learned"
    _as_learned(copied, hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("SEMBENCH_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "fits" / "median-1" / "state.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    to = tmp_path / "to"
    with monkeypatch.context() as small:
        small.setattr("sembench.leaderboard.publish.LARGEST_STATE", 5)
        with pytest.raises(InputError, match="has more than 5 bytes: say with --states"):
            publish(copied, to, NOTHING, restorers=("median",))
    (row,) = publish(copied, to, NOTHING, restorers=("median",)).after
    assert row.state_from == "bundle: state.safetensors"
    state = to / row.bundle / "state.safetensors"
    assert state.read_bytes() == content
    shutil.rmtree(tmp_path / "cache")
    for target in (to, to / row.bundle):
        proven = {finding.check: finding.told for finding in verify(target, NOTHING) if finding.outcome == "proven"}
        assert proven["states"].startswith("1 fitted states at hand")
    state.write_bytes(content + b"!")
    assert "was changed" in _failed(verify(to, NOTHING))["checksums"]
    state.unlink()
    assert "cannot be read" in _failed(verify(to, NOTHING))["checksums"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"limit": 5}, "--limit 5"),
        ({"data": "my_images"}, "'my_images'"),
        ({"shard": "1/2"}, "shard 1/2"),
        ({"metrics": ["ssim"]}, "primary metric psnr"),
        ({"schema": 2}, "schema 2"),
    ],
)
def test_what_is_not_to_be_published_is_refused_in_one_line(
    copied: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    _edit_description(copied, lambda description: description.update(change))
    with pytest.raises(InputError, match=reason) as refused:
        publish(copied, tmp_path / "to", NOTHING)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "to").exists()


def test_simulated_images_unpublished_protocols_and_unfinished_runs_are_refused(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (copied / "records.jsonl").read_text().splitlines(keepends=True)
    (copied / "records.jsonl").write_text("".join(lines)[:-5])
    with pytest.raises(InputError, match="torn"):
        publish(copied, tmp_path / "to", NOTHING)
    (copied / "records.jsonl").write_text("".join(lines))
    with monkeypatch.context() as patch:
        patch.setattr(eligibility, "SIMULATED", ("phantom",))
        with pytest.raises(InputError, match="simulated"):
            publish(copied, tmp_path / "to", NOTHING)
    _edit_description(copied, lambda description: description["protocol"].update(published=False))
    with pytest.raises(InputError, match="not one to publish"):
        publish(copied, tmp_path / "to", NOTHING)


def test_all_rows_of_a_folder_that_are_eligible_are_published_and_the_others_told(copied: Path, tmp_path: Path) -> None:
    lines = (copied / "records.jsonl").read_text().splitlines(keepends=True)
    last = json.loads(lines[-1])["restorer"]
    (copied / "records.jsonl").write_text("".join(lines[:-1]))
    done = publish(copied, tmp_path / "to", NOTHING)
    assert {row.restorer for row in done.after} == {*RESTORERS} - {last}
    (reason,) = done.left_out
    assert f"has {CASES - 1} of {CASES} cases" in reason
    assert not _failed(verify(tmp_path / "to", NOTHING))
    with pytest.raises(InputError, match=f"has {CASES - 1} of {CASES} cases"):
        publish(copied, tmp_path / "to", NOTHING, restorers=("median", last))
    for row in read_run(copied).rows:
        if row.name != last:
            done = publish(copied, tmp_path / row.name, NOTHING, restorers=(row.row_id,))
            assert [new.restorer for new in done.after] == [row.name]
    (copied / "records.jsonl").write_text(lines[0])
    with pytest.raises(InputError, match=r"not published: .* cases"):
        publish(copied, tmp_path / "none", NOTHING)
    assert not (tmp_path / "none").exists()


def test_of_two_codes_of_one_restorer_none_is_published_unless_it_is_named(copied: Path, tmp_path: Path) -> None:
    described = json.loads((copied / "run.json").read_text())["rows"]
    (median,) = (row for row in described if row["restorer"] == "median")
    newer = median | {"version": 2, "row": row_id("median", 2, median["settings"])}
    _edit_description(copied, lambda told: told["rows"].append(newer))
    shutil.copytree(copied / "restored" / median["row"], copied / "restored" / newer["row"])
    path = copied / "records.jsonl"
    path.write_text(
        path.read_text()
        + "".join(
            line.replace(median["row"], newer["row"]) + "\n"
            for line in path.read_text().splitlines()
            if median["row"] in line
        )
    )
    done = publish(copied, tmp_path / "to", NOTHING)
    assert {row.restorer for row in done.after} == {*RESTORERS} - {"median"}
    assert all("one restorer of other code" in reason for reason in done.left_out)
    assert len(done.left_out) == 2
    done = publish(copied, tmp_path / "to", NOTHING, restorers=(newer["row"],))
    assert {row.row for row in done.after if row.restorer == "median"} == {newer["row"]}


def test_a_run_that_verifying_finds_wrong_is_not_published(copied: Path, tmp_path: Path) -> None:
    _edit_records(copied, lambda record: record["metrics"].update(psnr=record["metrics"]["psnr"] + 0.001))
    with pytest.raises(CheckError, match="psnr is recorded as"):
        publish(copied, tmp_path / "to", Depth(sample=1, restore=0))
    assert not (tmp_path / "to").exists()


def test_a_method_that_was_trained_on_a_score_says_so_beside_its_rank(patched: None, tmp_path: Path) -> None:
    (tmp_path / "sharp.py").write_text(PLUGIN)
    folder = _run(tmp_path / "run", restorers=("input", "gaussian", f"{tmp_path / 'sharp.py'}:Sharp"))
    publish(folder, tmp_path / "board", NOTHING)
    rows = {row.restorer: row for row in read_rows(tmp_path / "board" / TABLE)}
    assert rows["Sharp"].marks.split("; ")[0] == "trained on LPIPS"
    assert "trained" not in rows["input"].marks + rows["gaussian"].marks
    assert not _failed(verify(tmp_path / "board", NOTHING))
    (tab,) = read_tabs(tmp_path / "board")
    header, *lines = (line.split(" | ") for line in markdown(tab).splitlines())
    column = header.index("marks")
    assert header[column - 1] == "rank"
    assert [line[0].strip("| ") for line in lines if "trained on LPIPS" in line[column]] == ["Sharp"]
    page = write_page(tmp_path / "board", [tab]).read_text()
    assert "its training minimised LPIPS or selected by it, as it declares" in page
    table = tmp_path / "board" / TABLE
    table.write_text(table.read_text().replace("trained on LPIPS", ""))
    assert "marks" in _failed(verify(tmp_path / "board", NOTHING))["ranks"]
    (tmp_path / "sharp.py").write_text(PLUGIN.replace('("lpips",)', '"lpips"'))
    with pytest.raises(InputError, match="trained_on gives no tuple of metric names"):
        _run(tmp_path / "other", restorers=(f"{tmp_path / 'sharp.py'}:Sharp",))


# Accidents


def test_publishers_at_once_lose_nothing(run: Path, published: Path, tmp_path: Path) -> None:
    problems = []

    def one(name: str) -> None:
        try:
            publish(run, tmp_path / "to", NOTHING, restorers=(name,))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in RESTORERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert _content(tmp_path / "to") == _content(published)


def test_a_full_disk_leaves_the_leaderboard_as_it_was(
    copied: Path, leaderboard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit_records(copied, lambda record: record.update(seconds={"restore": 9.0}))
    before = _content(leaderboard)
    write, left = Path.write_bytes, [0]

    def full(path: Path, content: bytes) -> int:
        if not left[0]:
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    for writes in range(4 * len(RESTORERS) + 1):
        left[0] = writes
        with pytest.raises(WriteError, match="No space left") as told:
            publish(copied, leaderboard, NOTHING)
        assert "\n" not in str(told.value)
        assert _content(leaderboard) == before
    left[0] = 4 * len(RESTORERS) + 1
    publish(copied, leaderboard, NOTHING)
    assert not _failed(verify(leaderboard, NOTHING))


def test_a_folder_that_cannot_be_written_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/leaderboard")):
        with pytest.raises(WriteError, match="cannot be written") as told:
            publish(run, place, NOTHING)
        assert "\n" not in str(told.value)


def _lines(text: str) -> list[str]:
    return text.split("\n")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: "", "empty"),
        (lambda text: "nonsense\n\x00,,\n", "column 'nonsense'"),
        (lambda text: text.replace("schema,", "", 1), "column 'row'"),
        (lambda text: text.replace("\n1,", "\n2,"), "schema 2"),
        (lambda text: text[: len(text) // 2], "cells"),
        (lambda text: text.replace(",restorer,", ",rest<b>orer</b>,", 3), "column 'rest<b>orer</b>'|kind"),
        (lambda text: "\n".join([*_lines(text)[:2], *_lines(text)[1:]]), "twice"),
        (lambda text: text.replace("bundles/", "../../bundles/"), "bundle"),
        (lambda text: "\n".join([_lines(text)[0], _lines(text)[1].replace("bootstrap-t", '"boot', 1)]), "published"),
        (lambda text: text.replace("28.", "nan", 1).replace("2", "inf", 1), "."),
    ],
)
def test_a_table_edited_to_nonsense_is_told_in_one_line_and_nothing_is_lost(
    run: Path, leaderboard: Path, spoil: Callable[[str], str], told: str
) -> None:
    path = leaderboard / TABLE
    path.write_text(spoil(path.read_text()))
    before = _content(leaderboard)
    with pytest.raises(InputError, match=told) as refused:
        publish(run, leaderboard, NOTHING)
    assert "\n" not in str(refused.value)
    assert _content(leaderboard) == before
    assert _failed(verify(leaderboard, NOTHING))


@given(st.text(max_size=300))
def test_reading_any_text_ends_in_rows_or_one_line(text: str) -> None:
    with contextlib.suppress(InputError):
        assert parse_rows(text, "table.csv") == []


def test_a_table_read_and_written_is_the_same(published: Path) -> None:
    assert as_csv(read_rows(published / TABLE), COLUMNS) == (published / TABLE).read_bytes()


# What is proven


def test_a_whole_leaderboard_is_proven_where_images_and_restorers_are_at_hand(run: Path, published: Path) -> None:
    findings = verify(published, Depth(sample=CASES, restore=2, seed=5, images=(run,)))
    assert not _failed(findings)
    assert _unproven(findings) == {"protocol"}  # `small` is not installed
    scored = next(finding.told for finding in findings if finding.check == "scores")
    assert f"{CASES * len(RESTORERS)} exactly" in scored


def test_without_images_and_restorers_it_says_what_is_not_proven(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_installed", lambda row, described: f"restorer {row.name} is not at hand")
    findings = verify(published, Depth(sample=2, restore=1))
    assert not _failed(findings)
    assert {"images", "scores", "restoration", "identity", "protocol", "flat fields"} == _unproven(findings)


def test_other_environments_are_compared_within_tolerances(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = Depth(sample=1, restore=1)
    _edit_records(copied, lambda r: r["metrics"].update(psnr=r["metrics"]["psnr"] + 5e-7))
    assert "scores" in _failed(verify(copied, depth))
    _edit_records(copied, lambda record: record.update(environment="0" * 16))
    findings = verify(copied, depth)
    assert not _failed(findings)
    assert "environment" in _unproven(findings)
    _edit_records(copied, lambda r: r["metrics"].update(psnr=r["metrics"]["psnr"] + 1e-5))
    assert "psnr is recorded as" in _failed(verify(copied, depth))["scores"]


def test_a_run_of_an_old_version_is_verified_as_far_as_it_goes(copied: Path) -> None:
    def forget(description: dict[str, Any]) -> None:
        del description["environments"]
        for row in description["rows"]:
            del row["version"]

    _edit_description(copied, forget)
    _edit_records(copied, lambda record: [record.pop(name) for name in ("environment", "device")] and None)
    findings = verify(copied, Depth(sample=1, restore=0))
    assert not _failed(findings)
    assert {"identity", "environment"} <= _unproven(findings)


# Tampering


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_byte_of_a_bundle_that_is_flipped_is_named(published: Path, data: st.DataObject) -> None:
    bundle = data.draw(st.sampled_from(sorted((published / "bundles").iterdir())))
    path = data.draw(st.sampled_from(sorted(bundle.iterdir())))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ data.draw(st.integers(1, 255))
    try:
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        told = _failed(verify(published, NOTHING))
        assert bundle.name in told["checksums"]
        assert "checksums" in _failed(verify(bundle, NOTHING))
    finally:
        path.write_bytes(content)


def test_an_edited_table_is_named(leaderboard: Path) -> None:
    path = leaderboard / TABLE
    rows = read_rows(path)
    for column, value in (("restorer", "mine"), ("failed", 1), ("licence", "CC0"), ("seconds_median", 0.0)):
        changes: dict[str, Any] = {column: value, **({"solved": CASES - 1} if column == "failed" else {})}
        path.write_bytes(as_csv([replace(rows[0], **changes), *rows[1:]], COLUMNS))
        assert column in _failed(verify(leaderboard, NOTHING))["rows"]
    path.write_bytes(as_csv([replace(rows[0], rank=(3, 3)), *rows[1:]], COLUMNS))
    assert rows[0].row in _failed(verify(leaderboard, NOTHING))["ranks"]
    path.write_bytes(as_csv(rows[1:], COLUMNS))
    assert "ranks" in _failed(verify(leaderboard, NOTHING))
    assert "no row names this bundle" in _failed(verify(leaderboard, NOTHING))["bundles"]


def test_tampering_with_a_run_is_named(run: Path, copied: Path) -> None:
    everything = Depth(sample=CASES, restore=1)
    one, other = sorted((copied / "restored").rglob("P00[12].png"))[:2]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert "SHA-256" in _failed(verify(copied, NOTHING))["images"]
    one.write_bytes(first)
    other.write_bytes(second)

    def swap(record: dict[str, Any]) -> None:
        shas = {record["case"]: record["image_sha256"] for record in read_run(run).records if record["row"] == own}
        if record["row"] == own and record["case"] in ("P001", "P002"):
            record["image_sha256"] = shas["P002" if record["case"] == "P001" else "P001"]

    own = one.parent.name
    one.write_bytes(second)
    other.write_bytes(first)
    _edit_records(copied, swap)
    assert not _failed(verify(copied, NOTHING))
    assert "comes out as" in _failed(verify(copied, everything))["scores"]


FORGERIES = ("score", "missing", "images", "rename", "setting", "group", "protocol", "kind", "sha256", "version")


def _forge(run: RecordedRun, what: str, number: int, amount: float) -> RecordedRun:
    """The run of one bundle with something else in it, as consistent as a forger can make it."""
    told = json.loads(json.dumps(run.description))
    records = json.loads(json.dumps(run.records))
    (described,) = told["rows"]
    record, other = records[number], records[(number + 1) % len(records)]
    if what == "score":
        record["metrics"]["ssim" if number % 2 else "psnr"] += amount
    elif what == "missing":
        record["metrics"]["ssim"] = None
    elif what == "images":
        record["image_sha256"], other["image_sha256"] = other["image_sha256"], record["image_sha256"]
        record["metrics"], other["metrics"] = other["metrics"], record["metrics"]
    elif what == "rename":
        described["restorer"] = "tv"
        described["settings"] = resolve_settings(find_method("tv"), {}).model_dump(mode="json")
    elif what == "setting":
        described["settings"] = {**described["settings"], "sigma": 7.0}
    elif what == "group":
        record["group"] = other["group"]
    elif what == "protocol":
        told["protocol"]["seed"] += 1
        told["protocol_digest"] = protocol.Protocol(**told["protocol"]).digest
    elif what == "kind":
        described["kind"] = "control"
    elif what == "sha256":
        record["image_sha256"] = hashlib.sha256(str(amount).encode()).hexdigest()
    elif what == "version":
        described["version"] += 1
    name = described["restorer"]
    described["row"] = row_id(name, described["version"], described["settings"])
    for changed in records:
        changed.update(row=described["row"], restorer=name, kind=described["kind"])
        changed["image"] = f"restored/{described['row']}/{changed['case']}.png"
    row = type(run.rows[0])(name, "", described["kind"], described["settings"], described["row"])
    return RecordedRun(run.folder, told, (row,), tuple(records))


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate),
)
@given(
    what=st.sampled_from(FORGERIES),
    number=st.integers(0, CASES - 1),
    amount=st.sampled_from([-1.0, 1e-5, 0.25]),
    name=st.sampled_from(["gaussian", "median"]),
)
def test_a_forger_who_mends_all_checksums_is_found_where_images_or_restorers_are_at_hand(
    run: Path,
    published: Path,
    tmp_path_factory: pytest.TempPathFactory,
    what: str,
    number: int,
    amount: float,
    name: str,
) -> None:
    rows = read_rows(published / TABLE)
    runs = {row.bundle: read_bundle(published / row.bundle) for row in rows}
    victim = next(row for row in rows if row.restorer == name)
    forged = _forge(runs[victim.bundle], what, number, amount)
    folder = tmp_path_factory.mktemp("forged")
    at_hand = folder / "images"
    source = run / "restored" / victim.row
    shutil.copytree(source, at_hand / "restored" / forged.rows[0].row_id)
    files = bundle_files(forged, forged.rows[0])
    place = write_bundle(folder / "leaderboard", files)
    new = row_of(read_bundle(place), digest(files))
    alone = folder / "leaderboard"
    (alone / TABLE).write_bytes(as_csv(ranked([new], {new.bundle: read_bundle(place)}), COLUMNS))
    cheap = verify(alone, NOTHING)
    assert not {"checksums", "rows", "ranks", "schema"} & set(_failed(cheap))
    if what not in ("protocol", "version", "setting"):  # these take the restorer, the row's images being their own
        with_images = verify(alone, Depth(sample=CASES, restore=0, images=(at_hand,)))
        assert _failed(with_images) or what == "rename"
    with_restorers = verify(alone, Depth(sample=0, restore=CASES))
    untold = "version" if what == "version" else "restorer" if what == "setting" and name == "median" else ""
    if untold:
        assert "identity" in _unproven(with_restorers)
    else:
        assert _failed(with_restorers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "_installed", lambda row, described: f"restorer {row.name} is not at hand")
        blind = verify(alone, Depth(sample=CASES, restore=CASES))
    assert _failed(blind) or {"scores", "restoration", "images"} <= _unproven(blind)


def test_a_changed_protocol_file_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _edit_description(copied, lambda description: description["protocol"].update(margin=3))
    assert "digest" in _failed(verify(copied, NOTHING))["protocol"]


def test_a_protocol_changed_where_it_is_installed_is_named(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = published_protocol(tmp_path)
    installed = claims.plugin

    class Entry:
        def load(self) -> Path:
            return file

    monkeypatch.setattr(claims, "plugins", lambda group: {"small": []})
    monkeypatch.setattr(claims, "plugin", lambda group, name: Entry() if name == "small" else installed(group, name))
    monkeypatch.setattr(claims, "load", lambda name: protocol.load(str(file)))
    found = {finding.check: finding for finding in verify(copied, NOTHING)}
    assert found["protocol"].outcome == "proven"
    published_protocol(tmp_path, seed=8)
    assert "small v1" in _failed(verify(copied, NOTHING))["protocol"]
    published_protocol(tmp_path)
    file.with_name("lock.toml").write_text(f'[protocols]\nsmall-v1 = "{"0" * 64}"\n')
    assert "released" in _failed(verify(copied, NOTHING))["protocol"]
    published_protocol(tmp_path, version=2)
    assert "protocol" in _unproven(verify(copied, NOTHING))


@pytest.mark.parametrize("name", ["run.json", "records.jsonl"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_a_run_ends_in_findings_or_one_line(
    run: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    folder = tmp_path / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in ("run.json", "records.jsonl"):
        shutil.copy(run / file, folder)
    told = json.loads((folder / "run.json").read_text())
    junk = data.draw(st.sampled_from([None, [], {}, "x", -1, 1e300, True, [None]]))
    if name == "run.json":
        key = data.draw(st.sampled_from(sorted(told)))
        told[key] = junk
        (folder / name).write_text(json.dumps(told))
    else:
        key = data.draw(st.sampled_from(["status", "metrics", "group", "image", "environment", "kind", "input_sha256"]))
        _edit_records(folder, lambda record: record.update({key: junk}))
    assert verify(folder, Depth(sample=1, restore=0))


# Submissions


def test_a_submission_is_checked_and_compared_with_what_stood_before(run: Path, tmp_path: Path) -> None:
    base, new = tmp_path / "base", tmp_path / "new"
    publish(run, base, NOTHING, restorers=("input", "gaussian"))
    publish(run, new, NOTHING, restorers=("median",))
    found = review(new, base, NOTHING, whole=False)
    assert not _failed(list(found.findings))
    told = {change.row.restorer: change for change in found.changes}
    assert told["median"].what == "added"
    assert told["median"].after is not None
    assert told["median"].after.rank is not None
    assert told["median"].after.ranked_cases == CASES
    assert all(change.what == "moved" for name, change in told.items() if name != "median")

    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    publish(run, whole, NOTHING, restorers=("median",))
    again = review(whole, base, NOTHING, whole=True)
    assert not _failed(list(again.findings))
    assert {change.row.restorer: change.after for change in again.changes} == {
        name: change.after for name, change in told.items()
    }
    assert [change.what for change in review(base, whole, NOTHING, whole=True).changes if not change.after] == [
        "removed"
    ]


def test_a_submission_that_repeats_a_row_under_another_name_is_named(
    run: Path, published: Path, tmp_path: Path
) -> None:
    victim = next(row for row in read_rows(published / TABLE) if row.restorer == "median")
    forged = _forge(read_bundle(published / victim.bundle), "rename", 0, 0)
    new = tmp_path / "new"
    files = bundle_files(forged, forged.rows[0])
    read = read_bundle(write_bundle(new, files))
    (new / TABLE).write_bytes(
        as_csv(ranked([row_of(read, digest(files))], {f"bundles/{read.folder.name}": read}), COLUMNS)
    )
    assert "another name" in _failed(list(review(new, published, NOTHING, whole=False).findings))["duplicates"]


def test_a_submission_without_its_bundle_or_with_a_wrong_row_is_named(published: Path, tmp_path: Path) -> None:
    new = Path(shutil.copytree(published, tmp_path / "new"))
    base = tmp_path / "base"
    base.mkdir()
    row = read_rows(new / TABLE)[0]
    shutil.rmtree(new / row.bundle)
    assert "cannot be read" in _failed(list(review(new, base, NOTHING, whole=False).findings))["checksums"]
    (new / TABLE).write_text("schema\n")
    assert "schema" in _failed(list(review(new, base, NOTHING, whole=False).findings))
    with pytest.raises(InputError, match="holds no table"):
        review(base, new, NOTHING, whole=False)
