"""`sembench publish` and `sembench verify` from the command line, with workers in processes of their own."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sembench.cases import fields
from sembench.commands import main
from sembench.leaderboard import eligibility
from sembench.leaderboard.rows import read_rows

PROTOCOL = """
name = "small"
version = 3
title = "Small cases"
question = "Does the leaderboard hold?"
seed = 7
published = true
time_limit_s = 60

[data]
set = "semcorpus"
size = 192
also = ["phantom"]

[degradation]
name = "paper"

[metrics]
primary = "psnr"
names = ["psnr"]
"""
Tell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a command line; its exit code, stdout and stderr."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sembench", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small run on simulated scenes, taken for real ones; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.toml").write_text(PROTOCOL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PHANTOM_CASES", 3)
        patch.setattr(eligibility, "SIMULATED", ())
        asked = ["--restorer", "input,gaussian", "--protocol", folder / "small.toml", "--data", "phantom"]
        told = ["sembench", "run", *asked, "--out", folder / "run", "--workers", 1, "--json"]
        patch.setattr(sys, "argv", [str(word) for word in told])
        with pytest.raises(SystemExit) as left:
            main()
        assert not left.value.code
        yield folder / "run"


def test_a_run_is_published_and_verified_by_whoever_has_its_images(run: Path, tmp_path: Path, tell: Tell) -> None:
    board = tmp_path / "leaderboard"
    code, out, _ = tell("publish", run, "--to", board, "--sample", 1, "--restore", 0)
    assert code == 0
    assert "added    gaussian" in out
    assert "proven     scores       2 of 6 scored again (1 cases, 2 rows): 2 exactly" in out
    code, out, _ = tell("verify", board, "--images", run, "--sample", 3, "--restore", 1, "--seed", 4, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["seed"] == 4
    outcomes = {finding["check"]: finding["outcome"] for finding in told["findings"]}
    assert set(outcomes.values()) == {"proven", "not proven"}
    assert {name for name, outcome in outcomes.items() if outcome == "not proven"} == {"protocol"}


def test_a_flipped_byte_is_one_line_and_exit_code_1(run: Path, tmp_path: Path, tell: Tell) -> None:
    board = tmp_path / "leaderboard"
    assert tell("publish", run, "--to", board, "--sample", 0, "--json")[0] == 0
    path = board / read_rows(board / "small-v3.csv")[0].bundle / "cases.csv"
    path.write_bytes(path.read_bytes().replace(b"ok", b"OK", 1))
    code, out, err = tell("verify", board, "--sample", 0)
    assert code == 1
    assert "failed     checksums" in out
    assert err.count("\n") == 1
    assert "cases.csv: was changed" in err


def test_a_submission_tells_what_changes(run: Path, tmp_path: Path, tell: Tell) -> None:
    board, new = tmp_path / "leaderboard", tmp_path / "new"
    assert tell("publish", run, "--to", board, "--sample", 0, "--restorer", "input")[0] == 0
    assert tell("publish", run, "--to", new, "--sample", 0, "--restorer", "gaussian")[0] == 0
    code, out, _ = tell("verify", board, "--submission", new, "--sample", 0)
    assert code == 0
    assert "added    small-v3.csv  gaussian" in out
    assert "rank 1–2 (a)" in out
    whole = shutil.copytree(board, tmp_path / "whole")
    assert tell("publish", run, "--to", whole, "--sample", 0, "--restorer", "gaussian")[0] == 0
    code, out, _ = tell("verify", whole, "--base", board, "--sample", 0, "--json")
    assert code == 0
    assert [change["what"] for change in json.loads(out)["changes"]] == ["added", "moved"]


def test_what_cannot_be_done_is_one_line(
    run: Path, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eligibility, "SIMULATED", ("phantom",))
    for code, *arguments in (
        (2, "publish", run, "--to", tmp_path / "to"),
        (2, "publish", run, "--to", tmp_path / "to", "--restorer", "gausian"),
        (2, "publish", tmp_path, "--to", tmp_path / "to"),
        (2, "verify", tmp_path),
        (2, "verify", run, "--submission", run, "--base", run),
        (2, "verify", run, "--sample", -1),
    ):
        found, _, err = tell(*arguments)
        assert found == code
        assert err.count("\n") == 1, err
    assert not (tmp_path / "to").exists()
