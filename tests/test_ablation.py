"""`sembench ablate`: a list of variants, each fitted and run, and what the table says of them."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sembench.ablation import variant_list
from sembench.commands import main
from sembench.errors import InputError

PROTOCOL = """
name = "small"
version = 1
title = "Small cases"
question = "Which one?"
seed = 7

[data]
set = "semcorpus"
size = 192
fields = "s2s_fields"
training_fields = "train_fields"

[degradation]
name = "paper"

[metrics]
primary = "psnr"
names = ["psnr", "psnr_matched"]
"""

LIST = """
title = "Gaussians"
[[variant]]
name = "fine"
restorer = "gaussian"
[[variant]]
name = "coarse"
restorer = "gaussian"
settings = { sigma = 3.0 }
[[variant]]
name = "nothing"
restorer = "input"
"""


def _ablate(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sembench", "ablate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_differences_are_those_of_the_recorded_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(PROTOCOL)
    (tmp_path / "list.toml").write_text(LIST)
    options = ("--protocol", str(tmp_path / "small.toml"), "--data", "phantom", "--limit", "3", "--workers", "1")
    command = (str(tmp_path / "list.toml"), *options, "--out", str(tmp_path / "run"), "--json")
    assert _ablate(monkeypatch, *command) == 0
    told = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    scores = {
        variant["variant"]: np.array(
            [line["metrics"]["psnr_matched"] for line in lines if line["row"] == variant["row"]]
        )
        for variant in told["variants"]
    }
    assert list(scores) == ["fine", "coarse", "nothing"]
    assert all(len(values) == 3 for values in scores.values())
    for variant in told["variants"]:
        finding = variant["metrics"]["psnr_matched"]
        assert finding["mean"] == pytest.approx(scores[variant["variant"]].mean())
        if variant["variant"] != "fine":
            expected = float((scores[variant["variant"]] - scores["fine"]).mean())
            assert finding["difference"] == pytest.approx(expected)
            assert finding["difference_low"] < expected < finding["difference_high"]
    records = (tmp_path / "run" / "records.jsonl").read_bytes()
    assert _ablate(monkeypatch, *command) == 0
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == records
    with (tmp_path / "run" / "ablation.csv").open(newline="") as file:
        assert [line["variant"] for line in csv.DictReader(file)] == ["fine", "coarse", "nothing"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("[[variant]]", "[variant]"), "variant"),
        (('"coarse"', '"fine"'), "'fine' is named twice"),
        (("settings = {", "setings = {"), "setings"),
        (("title =", "title"), "cannot be read"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = tmp_path / "list.toml"
    path.write_text(LIST.replace(*change))
    with pytest.raises(InputError, match=told):
        variant_list(str(path))


def test_equal_variants_and_methods_without_a_list_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(PROTOCOL)
    (tmp_path / "list.toml").write_text(LIST.replace("sigma = 3.0", "sigma = 1.0"))
    options = ("--protocol", str(tmp_path / "small.toml"), "--data", "phantom", "--limit", "3")
    assert _ablate(monkeypatch, str(tmp_path / "list.toml"), *options) == 2
    assert "'fine' and 'coarse' are the same" in capsys.readouterr().err
    assert _ablate(monkeypatch, "gaussian", *options) == 2
    assert "brings no list" in capsys.readouterr().err


def test_the_list_of_semfm_names_settings_that_exist() -> None:
    from sembench.registry import find_method, resolve_settings

    for variant in variant_list("semfm").variant:
        given = {key: str(value) for key, value in variant.settings.items()}
        resolve_settings(find_method(variant.restorer), given, "paper")
