"""`sembench ablate`: a list of variants, each fitted and run, and what the table says of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_lines import Tell
from small import LEARNING, protocol_file, records_of

from sembench.ablation import variant_list
from sembench.errors import InputError

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


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    """Three simulated cases of a small protocol that has training images."""
    file = protocol_file(tmp_path, metrics=("psnr", "psnr_matched"), data=LEARNING, fixed={})
    return ("--protocol", str(file), "--data", "phantom", "--limit", "3")


def test_differences_are_those_of_the_recorded_cases(tmp_path: Path, options: tuple[str, ...], tell: Tell) -> None:
    (tmp_path / "list.toml").write_text(LIST)
    command = ("ablate", tmp_path / "list.toml", *options, "--workers", "1", "--out", tmp_path / "run", "--json")
    code, out, _ = tell(*command)
    assert code == 0
    told = json.loads(out)
    lines = records_of(tmp_path / "run")
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
    assert tell(*command)[0] == 0
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
    tmp_path: Path, options: tuple[str, ...], tell: Tell
) -> None:
    (tmp_path / "list.toml").write_text(LIST.replace("sigma = 3.0", "sigma = 1.0"))
    for named, reason in ((tmp_path / "list.toml", "'fine' and 'coarse' are the same"), ("gaussian", "brings no list")):
        code, _, errors = tell("ablate", named, *options)
        assert code == 2
        assert reason in errors


def test_the_list_of_semfm_names_settings_that_exist() -> None:
    from sembench.registry import find_method, resolve_settings

    for variant in variant_list("semfm").variant:
        given = {key: str(value) for key, value in variant.settings.items()}
        resolve_settings(find_method(variant.restorer), given, "paper")
