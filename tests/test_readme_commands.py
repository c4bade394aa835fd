"""The commands by which the README treats and measures a user's own images run as they stand there."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_lines import exit_code

from sembench import micrograph, phantom

README = Path(__file__).parents[1] / "README.md"
TOO_LONG = {
    "sembench adapt semfm": "hours; tests of `adapt` do it with a small budget",
    "sembench run --data folder/": "half a minute; tests of the cluster run on a folder",
    "sembench run --protocol metrology": "minutes; its scenes and metrics have tests of their own",
}


def commands(section: str) -> list[str]:
    """The lines of a section of the README that call sembench, those apart that take too long."""
    text = README.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("sembench ")]
    return [line for line in lines if not line.startswith(tuple(TOO_LONG))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README's commands name."""
    monkeypatch.chdir(tmp_path)
    micrograph.write(tmp_path / "micrograph.tif", phantom.corpus_scene(7, "T001", 320).image, (2.0, 2.0))
    doses = [["file", "dose_mj_cm2"]]
    for number in range(3):
        made = phantom.lines(
            np.random.default_rng(number),
            height=320,
            width=320,
            pitch=32,
            duty=0.4 + 0.05 * number,
            sigma=1,
            xi=12,
            hurst=0.6,
            edge_sigma=1.5,
        )
        noisy = made.image + np.random.default_rng(number).normal(0, 20, made.image.shape)
        scene = micrograph.to_grid(noisy)
        micrograph.write(tmp_path / "folder" / f"{number}.tif", scene, (2.0, 2.0))
        doses.append([f"{number}.tif", str(20 + number)])
    with (tmp_path / "dose.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(doses)
    return tmp_path


@pytest.mark.parametrize(
    ("section", "made"),
    [
        (
            "Your images",
            "restored.tif before-after.png out out.tif out-spread-gray-levels.tif blurred.tif lines.tif",
        ),
        ("Measure", "lines.tif edges.png psd.png all.csv dose-trend.png"),
    ],
)
def test_the_commands_of_a_section_run(section: str, made: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(section)
    assert len(found) >= 3
    for line in found:
        assert exit_code(monkeypatch, *shlex.split(line, comments=True)[1:]) == 0, line
    assert {*made.split()} <= {path.name for path in place.iterdir()}


def test_what_is_too_long_still_stands_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    assert [line for line in TOO_LONG if f"\n{line}" not in text] == []
