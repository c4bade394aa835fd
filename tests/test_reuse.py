"""Records of another run: taken where they are the same case and method, computed where they are not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sembench.commands import app
from sembench.errors import InputError
from sembench.execution.prepare import prepare
from sembench.execution.records import Record, read_records
from sembench.execution.request import RunRequest
from sembench.execution.reuse import reusable
from sembench.execution.run import execute

PROTOCOL = """
name = "first"
version = 1
title = "Small cases"
question = "Does the bench run?"
seed = 7
time_limit_s = 60
data = { set = "semcorpus", size = 192, fields = "s2s_fields" }
degradation = { training = "paper", fixed = { rx = 2.0, ry = 2.0 } }
metrics = { primary = "psnr", names = ["psnr", "ssim"] }
"""
ALIKE = PROTOCOL.replace("first", "second").replace('"paper"', '"broad"').replace('"psnr", names', '"ssim", names')
OTHERS = {
    "seed": PROTOCOL.replace("seed = 7", "seed = 8"),
    "margin": PROTOCOL.replace("seed = 7", "seed = 7\nmargin = 4"),
    "size": PROTOCOL.replace("192", "200"),
    "degradation": PROTOCOL.replace("ry = 2.0", "ry = 2.5"),
}


def request(folder: Path, protocol: str, restorers: tuple[str, ...] = ("input", "gaussian")) -> RunRequest:
    path = folder / "asked.toml"
    path.write_text(protocol)
    return RunRequest(restorers=restorers, protocol=str(path), data="phantom", out=folder / "out", limit=2, workers=1)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    asked = request(folder, PROTOCOL)
    execute(prepare(asked), asked)
    return folder / "out"


def scores(records: list[Record]) -> dict[tuple[str, str], Any]:
    return {(record["row"], record["case"]): (record["metrics"], record["image_sha256"]) for record in records}


def test_what_is_taken_is_what_would_have_been_computed(first: Path, tmp_path: Path) -> None:
    asked = request(tmp_path, ALIKE, ("input", "gaussian", "median"))
    plan = prepare(asked)
    found = reusable(plan, first)
    assert sorted({one.record["restorer"] for one in found}) == ["gaussian", "input"]
    done: list[Record] = []
    told = execute(plan, asked, lambda record, left: done.append(record), None, found)
    assert {record["restorer"] for record in done} == {"median"}
    (tmp_path / "again").mkdir()
    again = request(tmp_path / "again", ALIKE, ("input", "gaussian", "median"))
    assert scores(told) == scores(execute(prepare(again), again))
    assert all((tmp_path / "out" / record["image"]).is_file() for record in told)
    assert read_records(tmp_path / "out" / "flat.jsonl")[0]


@pytest.mark.parametrize("changed", OTHERS)
def test_a_run_on_other_cases_is_refused(changed: str, first: Path, tmp_path: Path) -> None:
    plan = prepare(request(tmp_path, OTHERS[changed]))
    with pytest.raises(InputError, match=r"its cases \(first on phantom\) are not those of first on phantom"):
        reusable(plan, first)


def test_a_description_without_its_protocol_s_parts_is_of_other_cases(first: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(first, damaged)
    told = json.loads((damaged / "run.json").read_text())
    told["protocol"] = {"name": "first", "degradation": None}
    (damaged / "run.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="are not those of"):
        reusable(prepare(request(tmp_path, ALIKE)), damaged)


def test_only_what_was_solved_here_by_what_does_not_learn_is_taken(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare(request(tmp_path, ALIKE))
    assert len(reusable(plan, first)) == 2 * 2 + 2 * 2
    assert not reusable(plan, first, "cuda")
    more = prepare(request(tmp_path, ALIKE.replace('["psnr", "ssim"]', '["psnr", "ssim", "niqe"]')))
    if "niqe" in more.metrics:
        assert all(one.flat for one in reusable(more, first))
    monkeypatch.setattr("sembench.execution.reuse.environment_digest", lambda told: "another")
    assert not reusable(plan, first)


def test_an_image_that_changed_is_not_taken(first: Path, tmp_path: Path) -> None:
    plan = prepare(asked := request(tmp_path, ALIKE))
    found = reusable(plan, first)
    image = first / found[0].record["image"]
    content = image.read_bytes()
    image.write_bytes(content + b"0")
    try:
        with pytest.raises(InputError, match="not the file that was scored"):
            execute(plan, asked, None, None, found)
    finally:
        image.write_bytes(content)


def test_the_command_says_what_it_took(first: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.toml").write_text(ALIKE)
    words = ["run", "--protocol", str(tmp_path / "asked.toml"), "--data", "phantom", "--limit", "2", "--workers", "1"]
    words += ["--restorer", "input,gaussian"]

    def told(out: str, *reuse: Path) -> str:
        given = [word for run in reuse for word in ("--reuse", str(run))]
        result = CliRunner().invoke(app, [*words, *given, "--out", str(tmp_path / out)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "reused, 8 records: gaussian, input" in told("out", first)
    assert "reused, 0 records: nothing" in told("out", first), "all of them are there already"
    twin = Path(shutil.copytree(first, tmp_path / "twin"))
    assert "reused, 8 records: gaussian, input" in told("more", first, twin), "what both hold is taken once"
    result = CliRunner().invoke(app, [*words, "--reuse", str(tmp_path), "--out", str(tmp_path / "none")])
    assert result.exit_code != 0
    assert "not a run folder" in result.output or "not a run folder" in str(result.exception)
