"""Pairs of real scans as cases: registered once, left out where not to be trusted, refused where they do not fit."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_lines import call
from scipy.ndimage import gaussian_filter, shift
from small import pair_folder, scene

from sembench import fast_scan, micrograph, protocol
from sembench.cases import STAND_IN, CaseLeftOut, plan_cases
from sembench.cases.pairs import PairSpec, Tile
from sembench.errors import InputError, UnavailableError
from sembench.execution.records import LEFT_OUT
from sembench.results import in_stratum, strata

S2R = protocol.load("s2r")


def test_a_folder_of_pairs_is_registered_and_the_residual_told(tmp_path: Path) -> None:
    plan = plan_cases(S2R, str(pair_folder(tmp_path / "mine")), crop_bottom="0")
    assert [spec.case_id for spec in plan.specs] == ["a", "b"]
    assert "2 pairs by name" in plan.notices[0]
    case = plan.specs[0].make(S2R)
    assert case.alignment is not None
    assert case.alignment["b0"] == pytest.approx(1.4, abs=0.1)
    assert case.reference is not None
    assert case.reference.shape == case.degraded.shape
    inner = (slice(16, -16), slice(16, -16))
    moved = shift(scene(3), (0.0, 1.4), order=3, mode="nearest")[inner]
    assert np.abs(case.reference[inner] - moved).mean() < 0.3 * np.abs(scene(3)[inner] - moved).mean()


def test_names_that_differ_are_paired_in_order_and_it_is_said(tmp_path: Path) -> None:
    plan = plan_cases(S2R, str(pair_folder(tmp_path / "mine", prefix="slow_")), crop_bottom="0")
    assert "by sorted order" in plan.notices[0]
    assert plan.specs[1].make(S2R).alignment is not None


def test_pairs_that_do_not_fit_are_refused_with_a_list(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "mine")
    micrograph.write(folder / "reference" / "b.tif", scene(4, 200), None)
    with pytest.raises(InputError, match=r"1 pairs of two sizes: b\.tif 256 x 256 px, b\.tif 200 x 200 px"):
        plan_cases(S2R, str(folder), crop_bottom="0")
    (folder / "reference" / "b.tif").unlink()
    with pytest.raises(InputError, match=r"2 images in input/ and 1 in reference/.*: b"):
        plan_cases(S2R, str(folder), crop_bottom="0")
    (folder / "reference" / "a.tif").unlink()
    with pytest.raises(InputError, match="no images in it"):
        plan_cases(S2R, str(folder), crop_bottom="0")
    (folder / "reference").rmdir()
    with pytest.raises(InputError, match="reference: no such folder"):
        plan_cases(S2R, str(folder), crop_bottom="0")


def test_images_without_references_have_no_reference(tmp_path: Path) -> None:
    micrograph.write(tmp_path / "one.tif", scene(1), (2.0, 2.0))
    plan = plan_cases(S2R, str(tmp_path), crop_bottom="0")
    assert "no references" in plan.notices[0]
    case = plan.specs[0].make(S2R)
    assert case.reference is None
    assert case.pixel_size_nm == pytest.approx((2.0, 2.0))


def test_a_reference_of_another_field_is_refused(tmp_path: Path) -> None:
    for name, number in (("input", 3), ("reference", 4)):
        micrograph.write(tmp_path / f"{name}.tif", scene(number), None)
    spec = PairSpec(
        "p", "p", (Tile(str(tmp_path / "input.tif"), None),), (Tile(str(tmp_path / "reference.tif"), None),), 12
    )
    with pytest.raises(CaseLeftOut, match="pair p: the reference shows another field"):
        spec.make(S2R)
    shown = replace(spec, demonstration=True).make(S2R)
    assert shown.reference is None
    assert shown.alignment is not None
    assert "goes without its reference" in shown.alignment["warnings"][0]


def test_swapped_input_and_reference_are_warned_of(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "mine", ("a",))
    for old, new in (("input", "spare"), ("reference", "input"), ("spare", "reference")):
        (folder / old).rename(folder / new)
    case = plan_cases(S2R, str(folder), crop_bottom="0").specs[0].make(S2R)
    assert case.alignment is not None
    assert "are the two swapped?" in case.alignment["warnings"][0]


def test_an_image_too_large_to_be_scored_as_a_whole_is_refused_before_it_is_read(tmp_path: Path) -> None:
    from tifffile import memmap

    folder = pair_folder(tmp_path / "mine")
    large = folder / "input" / "b.tif"
    memmap(large, shape=(17_400, 17_400), dtype=np.uint8).flush()
    assert large.stat().st_size > 300e6
    started = time.process_time()
    with pytest.raises(
        InputError, match=r"input/b\.tif: 17400 x 17400 px are 303 million.*67 million at most: cut"
    ) as no:
        plan_cases(S2R, str(folder), crop_bottom="0")
    assert "\n" not in str(no.value)
    large.rename(tmp_path / "b.tif")
    with pytest.raises(InputError, match="303 million"):
        plan_cases(S2R, str(tmp_path), crop_bottom="0")
    assert time.process_time() - started < 1


def test_a_folder_without_images_or_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in it"):
        plan_cases(S2R, str(tmp_path))
    for part in ("input", "reference"):
        (tmp_path / part).mkdir()
    with pytest.raises(InputError, match="input: no images in it"):
        plan_cases(S2R, str(tmp_path))
    folder = pair_folder(tmp_path / "mine")
    plan = plan_cases(S2R, str(folder), crop_bottom="0")
    (folder / "reference" / "b.tif").unlink()
    with pytest.raises(InputError, match=r"reference/b\.tif: there is no such file"):
        plan.specs[1].make(S2R)


SMALL = """
name = "small_pairs"
version = 1
title = "Small pairs"
question = "What is said of bad pairs?"
seed = 7
margin = 12

[data]
set = "kriss"
pairs = true

[degradation]
name = "none"

[alignment]
model = "affine"

[metrics]
primary = "psnr_matched"
names = ["psnr_matched"]
"""


def test_a_run_leaves_out_and_warns_and_goes_on(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path / "mine", ("good", "swapped", "wrong"))
    (folder / "input" / "swapped.tif").rename(tmp_path / "spare.tif")
    (folder / "reference" / "swapped.tif").rename(folder / "input" / "swapped.tif")
    (tmp_path / "spare.tif").rename(folder / "reference" / "swapped.tif")
    micrograph.write(folder / "reference" / "wrong.tif", scene(9), None)
    (tmp_path / "small.toml").write_text(SMALL)
    words = ("run", "--protocol", "small.toml", "--restorer", "input", "--data", "mine", "--crop-bottom", "0")
    done = call(tmp_path, *words, "--workers", "1", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "2 cases in 2 groups (1 left out)" in done.stdout
    assert "left out: pair wrong: the reference shows another field" in done.stdout
    assert "warning: swapped: the input is sharper" in done.stdout
    assert "warning: good" not in done.stdout


def test_tiles_make_one_image_and_a_hole_is_an_error(tmp_path: Path) -> None:
    whole = scene(4)
    tiles = []
    for row in (0, 128):
        for column in (0, 128):
            path = tmp_path / f"t{row}{column}.png"
            micrograph.write(path, whole[row : row + 128, column : column + 128], None)
            tiles.append(Tile(str(path), (0, 0, 0, 0), row, column))
    spec = PairSpec("p", "p", tuple(tiles), tuple(tiles), 12)
    case = spec.make(S2R)
    assert np.abs(case.degraded - np.rint(whole)).max() <= 0.51
    with pytest.raises(InputError, match="uncovered"):
        PairSpec("p", "p", tuple(tiles[:3]), tuple(tiles[:3]), 12).make(S2R)


def test_the_stand_in_is_named_so_and_refused_where_real_data_are_required() -> None:
    plan = plan_cases(S2R, "phantom", limit=4)
    assert plan.data == STAND_IN
    assert [spec.case_id for spec in plan.specs] == ["dwell01", "line01", "dwell02", "line02"]
    case = plan.specs[0].make(S2R)
    again = plan.specs[0].make(S2R)
    assert np.array_equal(case.degraded, again.degraded)
    with pytest.raises(UnavailableError):
        plan_cases(S2R, "phantom", require_real=True)


def test_the_simulated_fast_scan_has_the_measured_noise() -> None:
    pairs = [fast_scan.simulated_pair(2604, f"dwell{i:02d}") for i in (1, 2, 3)]
    for pair in pairs:
        flat = gaussian_filter(pair.reference, 3)
        noise = (pair.degraded - gaussian_filter(pair.degraded, 3))[8:-8, 8:-8]
        quiet = np.hypot(*np.gradient(flat))[8:-8, 8:-8] < 0.5
        level = flat[8:-8, 8:-8][quiet]
        if quiet.mean() < 0.1:
            continue
        expected = fast_scan.noise_variance(level).mean()
        assert noise[quiet].var() == pytest.approx(expected, rel=0.25)
        both = quiet[:, 1:] & quiet[:, :-1]
        correlation = np.corrcoef(noise[:, 1:][both], noise[:, :-1][both])[0, 1]
        assert 0.35 < correlation < 0.6


def test_kinds_of_pairs_are_told_apart_by_their_groups() -> None:
    records = [{"group": f"{kind}|site{i}", "case": f"{kind}{i}"} for kind in ("line", "dwell") for i in range(3)]
    assert strata(records) == ["dwell", "line"]
    assert len(in_stratum(records, "line")) == 3
    assert strata([{"group": "ampis"}, {"group": "silica"}]) == []
    assert LEFT_OUT not in ("ok", "failed")


@pytest.mark.data
def test_all_evaluation_pairs_of_kriss_are_planned(data_folder: Path) -> None:
    plan = plan_cases(S2R)
    assert plan.data == "kriss"
    assert len(plan.specs) == 50
    assert {spec.case_id.partition("_")[0] for spec in plan.specs[:2]} == {"dwell", "line"}
    case = plan.specs[0].make(S2R)
    assert case.alignment is not None
    assert case.alignment["trusted"]
    assert case.degraded.shape == (439, 509)
    assert case.pixel_size_nm == pytest.approx((5.8281, 5.8281), abs=1e-3)


@pytest.mark.data
def test_real_defocus_is_a_demonstration(data_folder: Path) -> None:
    plan = plan_cases(S2R, "deepfocus")
    assert "2 pairs, 1 site(s): a demonstration" in plan.notices[0]
    for spec in plan.specs:
        case = spec.make(S2R)
        assert case.alignment is not None
        assert case.alignment["trusted"] == (case.reference is not None)
