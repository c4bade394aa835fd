"""`sembench data`: what is printed, what is on disk, and how it ends."""

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_lines import invoke
from PIL import Image

from sembench.commands.data import data_app
from sembench.datasets import cache, manifest
from sembench.errors import CheckError, InputError, UnavailableError

COLUMNS = ",".join(manifest.FULL_COLUMNS)
run = partial(invoke, data_app)


@pytest.fixture(autouse=True)
def unreachable(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither data nor a network."""
    monkeypatch.setattr(cache, "_unreachable", {"raw.githubusercontent.com", "download.pytorch.org"})


def save_scene(path: Path, seed: int, columns: slice = slice(None)) -> None:
    blocks = np.random.default_rng(seed).integers(0, 256, (30, 56)).astype(np.uint8)
    Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1)[:, columns]).save(path)


def own_set(folder: Path, *files: tuple[str, str, str]) -> str:
    """Write the manifest of files (name, split, group) that lie beside it."""
    lines = [COLUMNS]
    for name, split, group in files:
        content = (folder / name).read_bytes() if (folder / name).exists() else b"away"
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f'{name},,{digest},{len(content)},{split},image,,{group},,,8,,"0,0,0,0",CC0 [own],,,')
    path = folder / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_list_counts_images_a_split() -> None:
    result = run("list", "--json")
    sets = {entry["name"]: entry for entry in json.loads(result.stdout)}
    assert result.exit_code == 0
    assert set(manifest.SETS) <= set(sets)
    assert sets["kriss"]["splits"] == {"train": 16, "validation": 4, "evaluation": 100}
    assert sets["semcorpus"]["megabytes"] == pytest.approx(77.35, abs=0.01)
    assert sets["semcorpus"]["present"] == 0
    assert sets["deepfocus"]["files"] == 3
    assert sets["weights"]["splits"] == {}
    assert "semcorpus" in run("list").stdout


def test_fetch_takes_what_is_there_and_ends_with_the_rest(tmp_path: Path) -> None:
    save_scene(tmp_path / "a.png", 1)
    path = own_set(tmp_path, ("away.png", "train", "g1"), ("a.png", "train", "g1"))
    result = run("fetch", path, "--json")
    report = json.loads(result.stdout)
    assert isinstance(result.exception, UnavailableError)
    assert result.exception.exit_code == 4
    assert "1 of 2 files of mine cannot be had; the first: mine/away.png" in str(result.exception)
    assert report["files"] == {"a.png": str(tmp_path / "a.png")}
    assert list(report["failures"]) == ["away.png"]
    shown = run("fetch", path).stdout
    assert "CC0 [own]" in shown
    assert "1 of 2 files of mine are here" in shown


def test_fetch_without_network_names_the_mends() -> None:
    result = run("fetch", "lpips_example")
    assert isinstance(result.exception, UnavailableError)
    for words in ("3 of 3", "lpips_example/ex_ref.png", "SEMBENCH_DATA", "network"):
        assert words in str(result.exception)


def test_check_passes_what_is_right(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.png", "b.png")):
        save_scene(tmp_path / name, seed)
    path = own_set(tmp_path, ("a.png", "train", "g1"), ("b.png", "evaluation", "g2"))
    result = run("check", path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [{"name": "mine", "files": 2, "checked": 2, "problems": []}]


def test_check_finds_spoilt_content(tmp_path: Path) -> None:
    save_scene(tmp_path / "a.png", 1)
    path = own_set(tmp_path, ("a.png", "train", "g1"))
    (tmp_path / "a.png").write_bytes(b"spoilt")
    result = run("check", path)
    assert isinstance(result.exception, CheckError)
    assert result.exception.exit_code == 1
    assert "a.png: wrong content" in str(result.exception)


def test_check_finds_groups_and_content_in_two_splits(tmp_path: Path) -> None:
    save_scene(tmp_path / "a.png", 1, slice(0, 400))
    save_scene(tmp_path / "b.png", 1, slice(160, 560))
    shared = run("check", own_set(tmp_path, ("a.png", "train", "g1"), ("b.png", "evaluation", "g2")))
    assert isinstance(shared.exception, CheckError)
    assert "a.png (train) shares content with b.png (evaluation)" in str(shared.exception)
    grouped = run("check", own_set(tmp_path, ("a.png", "train", "g1"), ("b.png", "evaluation", "g1")))
    assert isinstance(grouped.exception, CheckError)
    assert "group g1 stands in evaluation and train" in str(grouped.exception)


def test_a_name_not_known_is_an_input_error() -> None:
    for command in ("fetch", "check"):
        result = run(command, "krss")
        assert isinstance(result.exception, InputError)
        assert "did you mean 'kriss'" in str(result.exception)


def test_importing_the_commands_is_light() -> None:
    heavy = "numpy scipy torch pydantic pooch rich.progress"
    code = f"import sys, sembench.commands.data; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.data
def test_check_of_real_lines(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMBENCH_DATA", str(data_folder))
    result = run("check", "lines", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [{"name": "lines", "files": 8, "checked": 8, "problems": []}]
