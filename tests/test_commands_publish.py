"""`sembench publish` and `sembench verify` from the command line, with workers in processes of their own."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from command_lines import Tell, exit_code
from small import protocol_file

from sembench.cases import fields
from sembench.commands import progress
from sembench.leaderboard import eligibility
from sembench.leaderboard.rows import read_rows

published_protocol = partial(
    protocol_file, version=3, published=True, time_limit_s=60, metrics=("psnr",), data={"also": ["phantom"]}, fixed={}
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small run on simulated scenes, taken for real ones; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    protocol = published_protocol(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PHANTOM_CASES", 3)
        patch.setattr(eligibility, "SIMULATED", ())
        asked = ("--restorer", "input,gaussian", "--protocol", protocol, "--data", "phantom", "--out", folder / "run")
        assert exit_code(patch, "run", *asked, "--workers", 1, "--json") == 0
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


QUICK = """
from sembench.restorer import Restorer

class Quick(Restorer):
    \"\"\"Gives the image back.\"\"\"
    def restore(self, image, /):
        return image
"""


@pytest.fixture(scope="module")
def with_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of seven restorers out of a file, one of which has all cases, and of one of ours; not to be changed."""
    folder = tmp_path_factory.mktemp("file")
    published_protocol(folder)
    names = ["Quick", *(f"Quick{number}" for number in range(6))]
    (folder / "quick.py").write_text(QUICK + "".join(f"class {name}(Quick):\n    pass\n" for name in names[1:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PHANTOM_CASES", 3)
        patch.setattr(eligibility, "SIMULATED", ())
        patch.chdir(folder)
        for chosen, limit in ((names[1:], 2), (names[:1], 3)):
            methods = ",".join(f"quick.py:{name}" for name in chosen) + (",input" if limit == 3 else "")
            asked = ("--restorer", methods, "--protocol", "small.toml", "--data", "phantom", "--limit", limit)
            assert exit_code(patch, "run", *asked, "--out", "run", "--workers", 1, "--json") == 0
        yield folder / "run"


def test_a_restorer_out_of_a_file_is_told_once_and_shortly(with_file: Path, tell: Tell) -> None:
    code, out, _ = tell("verify", with_file, "--sample", 1, "--restore", 1, "--seed", 1)
    assert code == 0, out
    assert out.count("restorer Quick is a file (FILE.py:Class) that is not at hand") == 1
    assert "known are" not in out
    assert "unknown restorer" not in out
    told = json.loads(tell("verify", with_file, "--sample", 0, "--restore", 1, "--seed", 1, "--json")[1])["findings"]
    unrestored = [one["told"] for one in told if one["check"] == "restoration" and one["outcome"] == "not proven"]
    assert unrestored == [
        "7 rows cannot be restored again, see identity: Quick, Quick0, Quick1, Quick2, Quick3 and 2 more"
    ]
    flat = [one["told"] for one in told if one["check"] == "flat fields" and one["outcome"] == "not proven"]
    assert flat == ["7 rows cannot be restored again, see restoration"]
    assert any(one["check"] == "restoration" and one["outcome"] == "proven" for one in told)


def test_how_many_rows_lack_cases_is_told(with_file: Path, tell: Tell) -> None:
    told = json.loads(tell("verify", with_file, "--sample", 0, "--restore", 0, "--json")[1])["findings"]
    (short,) = [one["told"] for one in told if one["check"] == "data"]
    assert "not every row has all 3 cases: " in short
    assert short.count(" 2,") + short.count(" 2 ") == 5
    assert short.endswith(" and 1 more")


def test_verify_tells_how_far_it_is_on_stderr(
    run: Path, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", -1.0)
    code, out, err = tell("verify", run, "--sample", 3, "--restore", 1, "--json")
    assert code == 0
    assert json.loads(out)["findings"]
    for text in ("1 of 6 (", "): images", "6 of 6 (", "): scores again", "2 of 2 (", "): restoring again"):
        assert text in err, text
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 1e6)
    assert tell("verify", run, "--sample", 0, "--restore", 0)[2] == ""


def test_publish_tells_how_far_it_is_on_stderr(
    run: Path, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_A_LINE", -1.0)
    code, out, err = tell("publish", run, "--to", tmp_path / "to", "--sample", 1, "--json")
    assert code == 0
    assert json.loads(out)["rows"]
    for text in ("1 of 6 (", "6 of 6 (", "): images", "2 of 2 (", "): scores again"):
        assert text in err, text
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 1e6)
    assert tell("publish", run, "--to", tmp_path / "to", "--sample", 0)[2] == ""


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
