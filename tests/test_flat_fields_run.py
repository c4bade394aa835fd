"""A run shows flat fields to its restorers beside the cases, and keeps what comes back apart from them."""

import csv
import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command_lines import call
from small import protocol_file, records_of

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
def bench(tmp_path: Path, no_data: Path) -> Path:
    protocol_file(tmp_path, metrics=("psnr",), data={"fields": "s2s_fields"}, fixed={})
    (tmp_path / "methods.py").write_text(METHODS)
    return tmp_path


def run(bench: Path, *words: str) -> CompletedProcess[str]:
    """A run of four cases."""
    names = "input,gaussian,methods.py:Painter,methods.py:Sulky"
    words = ("run", "--protocol", "small.toml", "--restorer", names, "--data", "phantom", "--out", "out", *words)
    return call(bench, *words, "--limit", "4", "--workers", "1")


def test_flat_fields_are_told_beside_the_cases_and_are_in_no_mean(bench: Path) -> None:
    done = run(bench)
    assert done.returncode == 0, done.stderr
    assert "invented_structure" in done.stdout.replace("\n", "_")
    cases = records_of(bench / "out")
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
