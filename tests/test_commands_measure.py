"""`measure` on drawn scenes: its numbers against their truth, its files against its numbers, and what it refuses."""

import csv
import io
import json
import math
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import command_lines
import numpy as np
import pytest
import typer

from sembench import micrograph as mg
from sembench import phantom
from sembench.commands import measure as module
from sembench.commands.measure import measure
from sembench.errors import InputError, WriteError

APP = typer.Typer()
APP.command()(measure)
run, succeed, refuse = (partial(do, APP) for do in (command_lines.invoke, command_lines.succeed, command_lines.refuse))

LINE_KEYS = [
    "file", "refused", "kind", "polarity", "level", "orientation", "tilt_deg", "pixel_size_nm", "lines",
    "edges", "contrast_to_noise", "pitch_nm", "cd_mean_nm", "cd_std_nm", "cd_over_pitch", "lwr_nm", "lwr_se_nm",
    "ler_nm", "lwr_unbiased_nm", "ler_unbiased_nm", "edge_noise_nm", "sigma_nm", "xi_nm", "hurst",
    "lost_fraction", "flags",
]  # fmt: skip
CONTACT_KEYS = [
    "file", "refused", "kind", "polarity", "level", "pixel_size_nm", "count", "contrast_to_noise", "cd_x_nm",
    "cd_y_nm", "diameter_nm", "cer_nm", "lcdu_nm", "lost_fraction", "flags",
]  # fmt: skip


@cache
def line_scene(seed: int = 3, duty: float = 0.5, contrast: float = 8.0) -> phantom.Scene:
    rng = np.random.default_rng(seed)
    scene = phantom.lines(
        rng, height=300, width=280, pitch=26, duty=duty, sigma=0.8, xi=10, hurst=0.6, edge_sigma=1.2, tilt_deg=0.6
    )
    noisy = scene.image + rng.normal(0, 120 / contrast, scene.image.shape)
    return phantom.Scene(np.clip(noisy, 0, 255).astype(np.float32), scene.truth)


@cache
def contact_scene() -> phantom.Scene:
    """Bright pillars: the drawn holes turned over."""
    rng = np.random.default_rng(8)
    scene = phantom.contacts(
        rng, height=280, width=300, pitch=44, diameter=24, sigma=0.3, xi=6, hurst=0.6, edge_sigma=1.2
    )
    noisy = 255 - scene.image + rng.normal(0, 12, scene.image.shape)
    return phantom.Scene(np.clip(noisy, 0, 255).astype(np.float32), scene.truth)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "lines.tif"
    mg.write(path, line_scene().image, (0.8, 0.8))
    return path


def rows(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(succeed(*arguments, "--json").stdout)


def row(*arguments: object) -> dict[str, Any]:
    (only,) = rows(*arguments)
    return only


def refused(*arguments: object) -> str:
    """The reason of the only image's refusal; its numbers are all null."""
    found = row(*arguments)
    words = ("file", "refused", "kind", "polarity", "level", "flags", "pixel_size_nm")
    assert all(value is None for key, value in found.items() if key not in words)
    assert "\n" not in found["refused"]
    return found["refused"]


# Numbers


def test_numbers_of_lines_against_the_truth(image: Path) -> None:
    found = row(image)
    truth = line_scene().truth
    assert sorted(found) == sorted(LINE_KEYS)
    assert (found["file"], found["refused"], found["kind"]) == (str(image), None, "lines")
    assert (found["polarity"], found["level"], found["orientation"]) == ("bright", "plateau", "vertical")
    assert found["pixel_size_nm"] == 0.8
    assert found["edges"] == 2 * found["lines"]
    assert found["cd_mean_nm"] == pytest.approx(0.8 * truth["cd_px"], abs=0.8 * 0.04)
    assert found["pitch_nm"] == pytest.approx(0.8 * truth["pitch_px"], abs=0.8 * 0.05)
    assert found["tilt_deg"] == pytest.approx(truth["tilt_deg"], abs=0.03)
    assert found["lwr_unbiased_nm"] == pytest.approx(0.8 * truth["lwr_px"], rel=0.05)
    assert found["ler_unbiased_nm"] == pytest.approx(0.8 * truth["ler_px"], rel=0.05)
    assert found["contrast_to_noise"] == pytest.approx(8, rel=0.05)
    assert found["lwr_nm"] > found["lwr_unbiased_nm"] > 0


def test_lengths_scale_with_the_unit(image: Path, tmp_path: Path) -> None:
    mg.write(tmp_path / "plain.npy", line_scene().image)
    px = row(tmp_path / "plain.npy", "--pixels")
    nm = row(tmp_path / "plain.npy", "--pixel-size", "0.8")
    assert px["pixel_size_nm"] is None
    assert nm == {**row(image), "file": nm["file"]}
    lengths = [key for key in px if key.endswith("_px")]
    assert len(lengths) == 11
    for key in lengths:
        assert nm[f"{key[:-3]}_nm"] == pytest.approx(0.8 * px[key], rel=1e-9)
    for key in ("lines", "tilt_deg", "hurst", "cd_over_pitch", "contrast_to_noise"):
        assert nm[key] == pytest.approx(px[key], rel=1e-9)


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    mg.write(tmp_path / "plain.npy", line_scene().image)
    px = row(tmp_path / "plain.npy", "--pixels")
    nm = row(tmp_path / "plain.npy", "--pixel-size", "0.5,1")
    assert nm["pixel_size_nm"] == [0.5, 1.0]
    assert nm["cd_mean_nm"] == pytest.approx(0.5 * px["cd_mean_px"], rel=1e-3)
    assert nm["xi_nm"] == pytest.approx(1.0 * px["xi_px"], rel=1e-3)
    assert math.tan(math.radians(nm["tilt_deg"])) == pytest.approx(0.5 * math.tan(math.radians(px["tilt_deg"])))


def test_contacts_are_found_where_there_are_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "contacts.tif"
    scene = contact_scene()
    mg.write(path, scene.image, (2.0, 2.0))
    found = row(path)
    assert sorted(found) == sorted(CONTACT_KEYS)
    assert (found["kind"], found["level"]) == ("contacts", "plateau")
    assert found["diameter_nm"] == pytest.approx(2 * scene.truth["diameter_px"], abs=2 * 0.1)
    assert found == row(path, "--kind", "contacts")
    text = refused(path, "--kind", "lines")
    assert "two directions" in text
    assert sorted(row(path, "--kind", "lines")) == sorted(LINE_KEYS)


def test_dark_contacts_bring_the_hint_of_the_other_polarity(tmp_path: Path) -> None:
    mg.write(tmp_path / "holes.tif", 255 - contact_scene().image, (2.0, 2.0))
    assert "with --polarity dark it can be measured" in refused(tmp_path / "holes.tif")
    found = row(tmp_path / "holes.tif", "--polarity", "dark")
    assert found["diameter_nm"] == pytest.approx(2 * contact_scene().truth["diameter_px"], abs=0.2)


def test_a_data_bar_is_cut_off_where_the_whole_image_is_refused(tmp_path: Path) -> None:
    bar = np.full((21, 280), 255.0, np.float32)
    bar[6:14, 20:200] = 0
    mg.write(tmp_path / "bar.tif", np.vstack([line_scene().image, bar]), (0.8, 0.8))
    for options in ((), ("--crop-bottom", 21)):
        found = row(tmp_path / "bar.tif", *options)
        assert found["cd_mean_nm"] == pytest.approx(0.8 * line_scene().truth["cd_px"], abs=0.04)
    assert "no lines" in refused(tmp_path / "bar.tif", "--crop-bottom", 0)
    result = run(tmp_path / "bar.tif")
    assert "rows were cut off as a data bar" in result.output


# What is refused


def test_an_image_without_pixel_size(tmp_path: Path) -> None:
    mg.write(tmp_path / "plain.npy", line_scene().image)
    assert refused(tmp_path / "plain.npy") == (
        "no pixel size in the file: give --pixel-size NM, or --pixels for lengths in px"
    )
    result = succeed(tmp_path / "plain.npy")
    assert "refused" in result.stdout
    assert "--pixel-size" in result.stdout


def test_a_pixel_size_given_twice(image: Path) -> None:
    text = refused(image, "--pixel-size", 0.82)
    assert "0.82 nm" in text
    assert "0.8:" in text
    assert refused(image, "--pixel-size", "0.8,0.9")
    assert row(image, "--pixel-size", 0.805)["pixel_size_nm"] == 0.8
    assert "leave one" in refuse(InputError, image, "--pixel-size", 0.8, "--pixels")


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "x", "1,2,3", "1,-2", ""])
def test_a_pixel_size_that_is_none(image: Path, text: str) -> None:
    assert "above 0" in refuse(InputError, image, "--pixel-size", text)


def drawn(**given: Any) -> np.ndarray:
    settings: dict[str, Any] = {
        "height": 128, "width": 160, "pitch": 60, "duty": 0.5, "sigma": 0.5, "xi": 8, "hurst": 0.5, "edge_sigma": 1.2,
    }  # fmt: skip
    return phantom.lines(np.random.default_rng(0), **settings | given).image


def unfit_images() -> dict[str, tuple[np.ndarray, str]]:
    rng = np.random.default_rng(1)
    clipped = np.clip(3 * line_scene().image - 200, 0, 255).astype(np.float32)
    return {
        "three pitches do not fit": (drawn(), "no lines ("),
        "saturated": (clipped, "no lines (saturated: "),
        "black": (np.zeros((128, 128), np.float32), "no lines (image is constant), no contacts ("),
        "flat": (np.full((128, 128), 90, np.float32), "no lines ("),
        "noise": (rng.normal(120, 20, (128, 128)).astype(np.float32), "no lines ("),
        "tiny": (line_scene().image[:40, :40], "no lines ("),
    }


@pytest.mark.parametrize("name", unfit_images())
def test_images_that_cannot_be_measured(tmp_path: Path, name: str) -> None:
    pixels, reason = unfit_images()[name]
    mg.write(tmp_path / "i.tif", pixels, (1.0, 1.0))
    text = refused(tmp_path / "i.tif")
    assert text.startswith(reason)
    assert "no contacts (" in text
    assert text in " ".join(succeed(tmp_path / "i.tif").stdout.split())


def test_contacts_that_are_saturated_or_clipped(tmp_path: Path) -> None:
    pixels = contact_scene().image
    bright = float(np.percentile(pixels, 90))
    for name, factor in (("clipped", 1.05), ("saturated", 1.8)):
        scaled = np.clip(pixels * (factor * 230 / bright), 0, 255).astype(np.float32)
        mg.write(tmp_path / f"{name}.tif", scaled, (1.0, 1.0))
    assert any("clipped at gray level 255" in flag for flag in row(tmp_path / "clipped.tif")["flags"])
    assert "saturated" in refused(tmp_path / "saturated.tif")


def test_files_that_cannot_be_read_do_not_stop_the_others(image: Path, tmp_path: Path) -> None:
    unfinished = line_scene().image.copy()
    unfinished[3, 4] = np.nan
    np.save(tmp_path / "nan.npy", unfinished)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.tif").write_bytes(image.read_bytes()[:3000])
    names = ["nan.npy", "text.png", "cut.tif", "none.tif"]
    result = run(*(tmp_path / name for name in names), image, "--json")
    assert type(result.exception) is InputError
    assert str(result.exception).startswith("4 of 5 files cannot be read, first: ")
    *bad, good = json.loads(result.stdout)
    assert good["cd_mean_nm"] == row(image)["cd_mean_nm"]
    assert all(found["cd_mean_nm"] is None and "\n" not in found["refused"] for found in bad)
    assert "not finite" in bad[0]["refused"]
    assert "no such file" in bad[3]["refused"]
    mg.write(tmp_path / "noisy.tif", line_scene(4, 0.5, 3.0).image, (0.8, 0.8))
    shown = run(tmp_path / "nan.npy", tmp_path / "noisy.tif")
    assert f"flag: {tmp_path / 'noisy.tif'}: gray levels clipped" in shown.stdout
    assert "lines: 1 of 2 images" in shown.stdout
    for name in names:
        text = refuse(InputError, tmp_path / name)
        assert text.startswith(f"{tmp_path / name}: ")


def test_command_lines_that_are_wrong(image: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no image in this folder" in refuse(InputError, tmp_path / "empty")
    assert "given twice" in refuse(InputError, image, image)
    assert "given twice" in refuse(InputError, image, tmp_path)
    assert "no meaning for contacts" in refuse(InputError, image, "--kind", "contacts", "--level", "smile2")
    assert "crop-bottom 'some'" in refuse(InputError, image, "--crop-bottom", "some")
    assert "for example" in refuse(InputError, image, "--range", "9")
    for options in (["--polarity", "brigt"], ["--kind", "line"], ["--level", "50"]):
        result = run(image, *options)
        assert result.exit_code == 2
        assert options[1] in result.output
    assert run().exit_code == 2


def test_names_of_outputs_that_are_wrong(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tif"
    mg.write(other, line_scene().image, (0.8, 0.8))
    assert ".png" in refuse(InputError, image, "--overlay", tmp_path / "o.jpg")
    assert ".png or .csv" in refuse(InputError, image, "--psd", tmp_path / "o.pdf")
    assert "give a folder" in refuse(InputError, image, other, "--overlay", tmp_path / "o.png")
    assert ".csv" in refuse(InputError, image, "--edges", tmp_path / "o.txt")
    assert ".csv" in refuse(InputError, image, "--csv", tmp_path)
    twice = tmp_path / "o.csv"
    assert "written twice" in refuse(InputError, image, "--csv", twice, "--edges", twice)
    picture = tmp_path / "lines.png"
    mg.write(picture, line_scene().image)
    assert "overwrite" in refuse(InputError, picture, "--overlay", tmp_path, "--pixels")
    assert "written twice" in refuse(InputError, picture, image, "--overlay", tmp_path / "out", "--pixels")
    (tmp_path / "file").touch()
    assert "this is a file" in refuse(InputError, image, "--overlay", tmp_path / "file")
    refuse(WriteError, image, "--csv", tmp_path / "file" / "o.csv")
    assert "without --trend" in refuse(InputError, image, "--trend-plot", tmp_path / "t.png")


def test_the_command_imports_nothing_heavy() -> None:
    heavy = ("numpy", "scipy", "matplotlib", "rich.table", "torch", "pandas")
    code = f"import sys, sembench.commands.measure; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Files and tables


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_files_hold_what_was_measured(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--overlay", out / "o.png", "--psd", out / "p.csv", "--edges", out / "e.csv", "--csv", out / "all.csv"]
    found = row(image, *options)
    assert sorted(path.name for path in out.iterdir()) == ["all.csv", "e.csv", "o.png", "p.csv"]
    (line,) = table(out / "all.csv")
    assert {key: float(line[key]) for key in ("cd_mean_nm", "lwr_nm", "hurst")} == {
        key: found[key] for key in ("cd_mean_nm", "lwr_nm", "hurst")
    }
    assert list(line)[: len(LINE_KEYS)] == LINE_KEYS
    assert int(line["rows"]) == 300
    truth = line_scene().truth
    points = table(out / "e.csv")
    assert len(points) == 300 * found["edges"]
    left = {(int(p["feature"]), int(p["point"])): float(p["x_px"]) for p in points if p["edge"] == "left"}
    found_left = np.array([[left[line, y] for y in range(300)] for line in range(found["lines"])])
    nearest = int(np.argmin([abs(np.mean(edge) - found_left[0].mean()) for edge in truth["left_px"]]))
    errors = found_left - np.array(truth["left_px"])[nearest : nearest + found["lines"]]
    assert np.sqrt(np.mean(errors**2)) < 0.4
    assert abs(errors.mean()) < 0.05
    assert {float(p["y_px"]) for p in points} == set(range(300))
    spectra = table(out / "p.csv")
    step = float(spectra[1]["frequency_per_nm"])
    for name, key in (("edge", "ler_nm"), ("width", "lwr_nm")):
        power = sum(float(s[f"{name}_psd_nm3"]) for s in spectra)
        assert 9 * power * step == pytest.approx(found[key] ** 2, rel=1e-9)


def test_a_folder_has_one_row_an_image_and_a_picture_each(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    mg.write(folder / "b.tif", line_scene(1).image[:150], (0.8, 0.8))
    mg.write(folder / "c.tif", contact_scene().image, (0.8, 0.8))
    mg.write(folder / "d.tif", np.full((100, 100), 7.0), (0.8, 0.8))
    out = tmp_path / "out"
    options = ["--overlay", out / "o", "--psd", out / "p", "--csv", out / "all.csv", "--edges", out / "e.csv"]
    result = succeed(folder, image, *options)
    assert sorted(path.name for path in (out / "o").iterdir()) == ["b.png", "c.png", "lines.png"]
    assert sorted(path.name for path in (out / "p").iterdir()) == ["b.png", "lines.png"]
    assert [Path(line["file"]).name for line in table(out / "all.csv")] == [
        "b.tif", "c.tif", "d.tif", "lines.tif",
    ]  # fmt: skip
    assert {point["kind"] for point in table(out / "e.csv")} == {"lines", "contacts"}
    assert "lines: 2 of 4 images" in result.stdout
    assert "contacts: 1 of 4 images" in result.stdout
    assert f"refused: {folder / 'd.tif'}: " in result.stdout
    assert "nm" in result.stdout


def test_the_table_of_one_image_has_every_number_with_its_unit(image: Path) -> None:
    shown = succeed(image, "--pixels").stdout
    found = row(image, "--pixels")
    line = next(text for text in shown.splitlines() if text.strip().startswith("LWR, raw"))
    assert line.split()[2:5] == [f"{found['lwr_px']:.2f}", "px", f"±{found['lwr_se_px']:.3f}"]
    for part in ("CD, mean", "LER, unbiased", "bright vertical lines", "rows", "50 % between", "pixel size 0.8 nm"):
        assert part in shown


def test_progress_is_told_on_stderr(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mg.write(tmp_path / "b.tif", np.full((100, 100), 7.0), (0.8, 0.8))
    monkeypatch.setattr(module, "SECONDS_A_LINE", -1.0)
    result = succeed(tmp_path / "b.tif", image, "--json")
    assert "1 of 2 measured" in result.stderr
    assert len(json.loads(result.stdout)) == 2


# Trend


@pytest.fixture
def exposed(tmp_path: Path) -> Path:
    for dose, duty in ((36, 0.42), (38, 0.46), (40, 0.5), (42, 0.54), (44, 0.58)):
        mg.write(tmp_path / "in" / f"d{dose}.tif", line_scene(dose, duty).image, (0.8, 0.8))
    lines = "".join(f"d{dose}.tif,{dose}\n" for dose in (36, 38, 40, 42, 44))
    (tmp_path / "dose.csv").write_text(f"file,dose_mj_cm2\n{lines}")
    return tmp_path


def test_a_trend_is_fitted_and_drawn(exposed: Path) -> None:
    mg.write(exposed / "in" / "extra.tif", np.full((100, 100), 7.0), (0.8, 0.8))
    result = succeed(exposed / "in", "--trend", exposed / "dose.csv", "--json")
    found = json.loads(result.stdout)
    assert isinstance(found, list)
    assert "extra.tif: not in" in result.stderr
    assert (exposed / "dose-trend.png").is_file()
    fitted = {line["quantity"]: line for line in table(exposed / "dose-trend.csv")}
    assert sorted(fitted) == ["CD", "LWR raw", "LWR unbiased"]
    doses = [36, 38, 40, 42, 44]
    for name, key in (("CD", "cd_mean_nm"), ("LWR raw", "lwr_nm"), ("LWR unbiased", "lwr_unbiased_nm")):
        expected = np.polyfit(doses, [line[key] for line in found[:-1]], 2)
        np.testing.assert_allclose([float(fitted[name][f"c{i}"]) for i in (2, 1, 0)], expected, rtol=1e-6)
    slope = 0.02 * 26 * 0.8
    at_40 = float(fitted["CD"]["c1"]) + 2 * 40 * float(fitted["CD"]["c2"])
    assert at_40 == pytest.approx(slope, abs=0.02)


def test_a_trend_by_name_and_as_table(exposed: Path) -> None:
    plot = exposed / "plots" / "t.png"
    images = [exposed / "in" / f"d{dose}.tif" for dose in (36, 44)]
    (exposed / "two.csv").write_text("file,focus_nm\nd36.tif,-20\nd44.tif,30\n")
    shown = succeed(*images, "--trend", exposed / "two.csv", "--trend-plot", plot).stdout
    assert "focus (nm)" in shown
    assert sorted(path.name for path in plot.parent.iterdir()) == ["t.csv", "t.png"]
    (exposed / "one.csv").write_text("file,focus_nm\nd36.tif,-20\n")
    result = succeed(images[0], "--trend", exposed / "one.csv")
    assert "no trend" in result.stderr
    assert not (exposed / "one-trend.png").exists()


def test_trends_that_are_wrong(exposed: Path) -> None:
    (exposed / "bad.csv").write_text("file,dose\nz.tif,1\n")
    assert "z.tif is not among" in refuse(InputError, exposed / "in", "--trend", exposed / "bad.csv")
    (exposed / "bad.csv").write_text("file,dose\nd36.tif,nan\n")
    assert "not a finite number" in refuse(InputError, exposed / "in", "--trend", exposed / "bad.csv")
    (exposed / "bad.csv").write_text("file,dose\nd36.tif,1\nd36.tif,1\n")
    assert "twice" in refuse(InputError, exposed / "in", "--trend", exposed / "bad.csv")
    dose = exposed / "dose.csv"
    assert ".png" in refuse(InputError, exposed / "in", "--trend", dose, "--trend-plot", exposed / "t.pdf")
    assert "overwrite" in refuse(InputError, exposed / "in", "--trend", dose, "--trend-plot", exposed / "dose.png")


@pytest.mark.data
def test_real_lines_have_their_pitch(data_folder: Path) -> None:
    found = rows(*(data_folder / "lines" / f"smile2_lines_test0{i}.tif" for i in (1, 2, 3)), "--crop-bottom", 64)
    assert [line["pitch_nm"] for line in found] == pytest.approx([25.63, 25.62, 25.06], abs=0.05)
