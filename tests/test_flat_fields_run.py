"""A run shows flat fields to its restorers beside the cases, and keeps what comes back apart from them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROTOCOL = """
name = "small"
version = 1
title = "Small cases"
question = "What is drawn where there is nothing?"
seed = 7

[data]
set = "semcorpus"
size = 192
fields = "s2s_fields"

[degradation]
name = "paper"

[metrics]
primary = "psnr"
names = ["psnr"]
"""

METHODS = '''
import numpy as np
from scipy.ndimage import gaussian_filter
from sembench.restorer import Restorer

class Painter(Restorer):
    """Takes the noise for particles."""
    def restore(self, image, /):
        smooth = gaussian_filter(image, 3)
        return np.clip(image.mean() + 60 * (smooth > np.percentile(smooth, 90)), 0, 255).astype(np.float32)

class Sulky(Restorer):
    """Refuses flat fields."""
    def restore(self, image, /):
        if gaussian_filter(image, 4).std() < 3:
            raise ValueError("nothing there")
        return image
'''


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.toml").write_text(PROTOCOL)
    (tmp_path / "methods.py").write_text(METHODS)
    monkeypatch.setenv("SEMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEMBENCH_DATA", raising=False)
    return tmp_path


def run(bench: Path, *words: str) -> subprocess.CompletedProcess[str]:
    names = "input,gaussian,methods.py:Painter,methods.py:Sulky"
    words = ("run", "--protocol", "small.toml", "--restorer", names, "--data", "phantom", "--out", "out", *words)
    return subprocess.run(
        [sys.executable, "-m", "sembench", *words, "--limit", "4", "--workers", "1"],
        cwd=bench, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=250,
    )  # fmt: skip


def test_flat_fields_are_told_beside_the_cases_and_are_in_no_mean(bench: Path) -> None:
    done = run(bench)
    assert done.returncode == 0, done.stderr
    assert "invented_structure" in done.stdout.replace("\n", "_")
    cases = [json.loads(line) for line in (bench / "out" / "records.jsonl").read_text().splitlines()]
    assert {record["case"] for record in cases} == {"P001", "P002", "P003", "P004"}
    assert all(set(record["metrics"]) == {"psnr"} for record in cases)
    flat = list(csv.DictReader((bench / "out" / "flat.csv").open()))
    assert {line["case"] for line in flat} == {"flat-P001", "flat-P002", "flat-P003"}
    told = {}
    for line in flat:
        told.setdefault(line["restorer"], []).append(line["invented_structure"])
    assert told["input"] == ["1.0"] * 3
    assert all(float(value) == pytest.approx(0.894, abs=0.03) for value in told["gaussian"])
    assert all(float(value) > 2 for value in told["Painter"])
    assert told["Sulky"] == [""] * 3
    assert "3✗" in next(line for line in done.stdout.splitlines() if "Sulky" in line)
    assert "invented" not in (bench / "out" / "summary.csv").read_text()
    before = (bench / "out" / "flat.jsonl").read_bytes()
    again = run(bench, "--json")
    assert (bench / "out" / "flat.jsonl").read_bytes() == before
    rows = {row["restorer"]: row["metrics"] for row in json.loads(again.stdout)["rows"]}
    assert rows["input"]["invented_structure"]["mean"] == 1
    assert rows["input"]["psnr"]["n"] == 4
