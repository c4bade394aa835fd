"""Lines and spaces: numbers against phantoms of known truth, invariances, refusals, bad input."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from sembench import micrograph, phantom
from sembench.errors import InputError
from sembench.metrology.lines import LineMeasurement, measure_lines
from sembench.metrology.refusal import MeasurementRefused
from sembench.optics import generator

Image = NDArray[np.float64]
LINES: dict[str, Any] = {
    "height": 512,
    "width": 512,
    "pitch": 32.0,
    "duty": 0.5,
    "sigma": 1.0,
    "xi": 15.0,
    "hurst": 0.6,
    "edge_sigma": 1.2,
    "tilt_deg": 0.7,
}
LEVELS = 120.0


def scene(seed: int = 1, **changes: Any) -> phantom.Scene:
    return phantom.lines(generator(seed, "lines", "scene"), **{**LINES, **changes})


def noisy(image: NDArray[np.floating], contrast_to_noise: float, seed: int = 1, along: float = 0.0) -> Image:
    noise = generator(seed, "noise").standard_normal(image.shape)
    if along:
        noise = gaussian_filter1d(noise, along, axis=1)
        noise /= noise.std()
    return image + noise * LEVELS / contrast_to_noise


def true_edges(truth: dict[str, Any], found: LineMeasurement) -> Image:
    """True positions (rows, edges) of the lines found."""
    every = np.stack([truth["left_px"], truth["right_px"]], axis=1)
    first = int(np.abs(every[:, 0].mean(axis=1) - found.edge_positions[:, 0].mean()).argmin())
    return every[first : first + found.lines].reshape(found.edges, -1).T


def by_definition(edges: Image) -> dict[str, float]:
    """CD, pitch, LWR, LER, tilt of positions (rows, edges), written out from their definitions."""
    rows, count = edges.shape
    height = np.arange(rows) - (rows - 1) / 2
    slope = np.mean([np.polyfit(height, edges[:, k], 1)[0] for k in range(count)])
    cosine = math.cos(math.atan(slope))
    widths = (edges[:, 1::2] - edges[:, 0::2]) * cosine
    upright = (edges - slope * height[:, None]) * cosine
    pitches = [edges[:, k + 2].mean() - edges[:, k].mean() for k in range(count - 2)]
    return {
        "cd_mean": widths.mean(),
        "cd_std": widths.mean(axis=0).std(ddof=1),
        "pitch": float(np.mean(pitches)) * cosine,
        "lwr": 3 * math.sqrt(np.mean([np.var(widths[:, i]) for i in range(count // 2)])),
        "ler": 3 * math.sqrt(np.mean([np.var(upright[:, k]) for k in range(count)])),
        "tilt_deg": math.degrees(math.atan(slope)),
    }


@pytest.mark.parametrize(
    ("changes", "cd", "roughness"),
    [
        ({}, 0.01, 0.005),
        ({"pitch": 22.0, "duty": 0.35, "edge_sigma": 1.8, "sigma": 0.7}, 0.05, 0.01),
        ({"pitch": 22.0, "duty": 0.65, "edge_sigma": 1.8, "sigma": 0.7, "transposed": True}, 0.05, 0.01),
        ({"pitch": 60.0, "tilt_deg": -2.0, "edge_sigma": 0.8, "sigma": 2.0}, 0.01, 0.005),
        ({"tilt_deg": 8.0, "width": 640}, 0.02, 0.02),
    ],
)
def test_without_noise_all_numbers_are_the_truth(changes: dict[str, Any], cd: float, roughness: float) -> None:
    drawn = scene(**changes)
    found = measure_lines(drawn.image)
    truth = by_definition(true_edges(drawn.truth, found))
    assert found.orientation == ("horizontal" if changes.get("transposed") else "vertical")
    assert found.cd_mean == pytest.approx(truth["cd_mean"], abs=cd)
    assert found.cd_std == pytest.approx(truth["cd_std"], abs=cd)
    assert found.pitch == pytest.approx(truth["pitch"], abs=0.01)
    assert found.tilt_deg == pytest.approx(truth["tilt_deg"], abs=0.005)
    assert found.lwr == pytest.approx(truth["lwr"], rel=roughness)
    assert found.ler == pytest.approx(truth["ler"], rel=roughness)
    assert found.lwr_unbiased == pytest.approx(truth["lwr"], rel=2 * roughness)
    assert found.cd_over_pitch == pytest.approx(truth["cd_mean"] / truth["pitch"], rel=0.02)


@pytest.mark.parametrize(
    ("contrast", "duty", "cd", "roughness"),
    [(8.0, 0.5, 0.03, 0.01), (4.0, 0.5, 0.04, 0.02), (2.0, 0.5, 0.1, 0.06), (2.7, 0.35, 0.15, 0.08)],
)
def test_noise_is_taken_out_of_roughness(contrast: float, duty: float, cd: float, roughness: float) -> None:
    drawn = scene(duty=duty, height=768, width=768)
    found = measure_lines(noisy(drawn.image, contrast))
    truth = by_definition(true_edges(drawn.truth, found))
    assert found.lwr_unbiased is not None
    assert found.ler_unbiased is not None
    assert found.contrast_to_noise == pytest.approx(contrast, rel=0.03)
    assert found.cd_mean == pytest.approx(truth["cd_mean"], abs=cd)
    assert found.lwr > truth["lwr"] * (1 + 0.1 / contrast)
    assert found.lwr_unbiased == pytest.approx(truth["lwr"], rel=roughness)
    assert found.ler_unbiased == pytest.approx(truth["ler"], rel=roughness)
    apart = (found.edge_positions - true_edges(drawn.truth, found))[~found.lost]
    assert found.edge_noise == pytest.approx(apart.std(), rel=0.1)


def test_noise_correlated_across_the_lines_costs_precision_not_bias() -> None:
    drawn = scene(height=768, width=768)
    found = measure_lines(noisy(drawn.image, 4.0, along=1.0))
    truth = by_definition(true_edges(drawn.truth, found))
    assert found.cd_mean == pytest.approx(truth["cd_mean"], abs=0.04)
    assert found.lwr_unbiased == pytest.approx(truth["lwr"], rel=0.04)


def test_white_edges_of_known_sigma_give_their_lwr() -> None:
    rng = generator(3, "white")
    rows, lines, sigma = 600, 12, 0.8
    left = 20 + 40.0 * np.arange(lines)[:, None] + sigma * rng.standard_normal((lines, rows))
    right = 40 + 40.0 * np.arange(lines)[:, None] + sigma * rng.standard_normal((lines, rows))
    x = np.arange(40 * lines)[:, None, None]
    blur = 1.3 * math.sqrt(2)
    erf = np.vectorize(math.erf, otypes=[float])
    image = 0.5 * sum(erf((x[:, 0] - a) / blur) - erf((x[:, 0] - b) / blur) for a, b in zip(left, right, strict=True)).T
    found = measure_lines(image)
    samples = rows * found.lines
    assert found.lwr == pytest.approx(3 * sigma * math.sqrt(2), rel=4 / math.sqrt(2 * samples))
    assert found.ler == pytest.approx(3 * sigma, rel=4 / math.sqrt(4 * samples))
    truth = np.var(right - left, axis=1)
    assert found.lwr == pytest.approx(3 * math.sqrt(truth[: found.lines].mean()), rel=0.02)


def test_parseval_and_the_numbers_of_the_returned_edges() -> None:
    found = measure_lines(noisy(scene().image, 5.0))
    truth = by_definition(found.edge_positions)
    for name, value in truth.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-9), name
    assert 9 * found.width_spectrum.variance == pytest.approx(found.lwr**2, rel=1e-9)
    assert 9 * found.edge_spectrum.variance == pytest.approx(found.ler**2, rel=1e-9)
    assert found.lwr_from_spectrum < found.lwr
    assert found.line_cds.mean() == pytest.approx(found.cd_mean)


def plain(found: LineMeasurement) -> dict[str, Any]:
    record = found.as_record(None)
    return {name: value for name, value in record.items() if isinstance(value, float | int)}


SAME = [
    ("turned", lambda image: np.rot90(image), 1),
    ("mirrored left-right", lambda image: image[:, ::-1], -1),
    ("mirrored top-bottom", lambda image: image[::-1], -1),
    ("gray levels scaled and shifted", lambda image: 0.013 * image - 7, 1),
    ("negative", lambda image: 255 - image, 1),
]


@pytest.mark.parametrize(("name", "change", "tilt"), SAME, ids=[case[0] for case in SAME])
@pytest.mark.parametrize("duty", [0.5, 0.35])
def test_numbers_do_not_depend_on_how_the_image_is_held(name: str, change: Any, tilt: int, duty: float) -> None:
    image = noisy(scene(duty=duty, height=401, width=420, pitch=27.0, edge_sigma=1.6).image, 5.0)
    before = plain(measure_lines(image))
    after = plain(measure_lines(change(image), polarity="dark" if name == "negative" else "bright"))
    if name.startswith("gray"):
        after["noise_sigma"] /= 0.013
    if name == "turned":
        assert abs(after["tilt_deg"]) == pytest.approx(abs(before["tilt_deg"]), abs=1e-6)
    else:
        assert after["tilt_deg"] == pytest.approx(tilt * before["tilt_deg"], abs=1e-6)
    for key in before.keys() - {"tilt_deg"}:
        fitted = key in ("sigma_px", "xi_px", "hurst", "lwr_unbiased_px", "ler_unbiased_px")
        assert after[key] == pytest.approx(before[key], rel=1e-5 if fitted else 1e-6, abs=1e-6), key


def test_cropped_rows_change_roughness_within_the_sampling_error() -> None:
    image = noisy(scene(height=1024, xi=8.0).image, 6.0)
    whole, part = measure_lines(image), measure_lines(image[300:700])
    assert whole.lwr_unbiased is not None
    assert part.lwr_unbiased is not None
    assert abs(part.lwr_unbiased - whole.lwr_unbiased) < 3 * part.lwr_se
    assert part.cd_mean == pytest.approx(whole.cd_mean, abs=0.15)


def test_destroyed_rows_and_particles_are_found_and_bridged() -> None:
    drawn = scene(height=768, width=768)
    image = noisy(drawn.image, 5.0)
    rng = generator(4, "particles")
    for y, x in rng.integers(30, 700, (25, 2)):
        image[y : y + 12, x : x + 8] = 260
    found = measure_lines(image)
    truth = by_definition(true_edges(drawn.truth, found))
    assert 0.001 < found.lost_fraction < 0.05
    assert found.lwr_unbiased == pytest.approx(truth["lwr"], rel=0.03)


@pytest.mark.parametrize(("rim", "rim_length"), [(0.5, 3.0), (1.0, 3.0), (0.5, 5.0)])
def test_the_rim_mode_takes_off_what_a_bright_rim_adds(rim: float, rim_length: float) -> None:
    drawn = scene(rim=rim, rim_length=rim_length, high=140.0, pitch=44.0, edge_sigma=1.5)
    image = noisy(drawn.image, 6.0)
    plateau, found = measure_lines(image), measure_lines(image, level="rim")
    truth = by_definition(true_edges(drawn.truth, found))
    assert plateau.cd_mean - truth["cd_mean"] > 0.5
    assert any("bright rim" in flag for flag in plateau.flags)
    assert found.cd_mean == pytest.approx(truth["cd_mean"], abs=0.05)
    assert not any("rim" in flag for flag in found.flags)


def test_without_a_rim_the_rim_mode_changes_nothing_and_none_is_flagged() -> None:
    image = noisy(scene().image, 5.0)
    plateau, found = measure_lines(image), measure_lines(image, level="rim")
    assert found.cd_mean == pytest.approx(plateau.cd_mean, abs=0.03)
    assert not any("rim" in flag for flag in plateau.flags)


def test_hidden_roughness_is_not_reported() -> None:
    found = measure_lines(noisy(scene(edge_sigma=2.0, sigma=0.5, height=768).image, 1.2))
    assert found.lwr_unbiased is None
    assert found.ler_unbiased is None
    assert any("noise-limited" in flag for flag in found.flags)
    assert found.as_record(None)["lwr_unbiased_px"] is None
    assert found.cd_mean == pytest.approx(16, abs=0.3)


def test_without_a_fit_the_floor_stands_in_and_says_so() -> None:
    image = noisy(scene().image, 4.0)
    fitted, found = measure_lines(image), measure_lines(image, fit=False)
    assert found.model is None
    assert any("floor" in flag for flag in found.flags)
    assert found.lwr == fitted.lwr
    assert found.lwr_unbiased == pytest.approx(fitted.lwr_unbiased, rel=0.06)
    assert found.as_record(None)["sigma_px"] is None


def test_the_record_scales_with_the_pixel_size() -> None:
    found = measure_lines(noisy(scene(tilt_deg=2.0).image, 5.0))
    in_px, square = found.as_record(None), found.as_record((0.8, 0.8))
    json.dumps([in_px, square], allow_nan=False)
    for key in ("cd_mean", "lwr", "ler_unbiased", "pitch", "xi", "sigma", "lwr_se"):
        assert square[f"{key}_nm"] == pytest.approx(0.8 * in_px[f"{key}_px"])
        assert f"{key}_px" not in square
    assert square["pixel_size_nm"] == 0.8
    oblong = found.as_record((0.8, 1.6))
    assert math.tan(math.radians(oblong["tilt_deg"])) == pytest.approx(math.tan(math.radians(found.tilt_deg)) / 2)
    assert oblong["cd_mean_nm"] == pytest.approx(0.8 * found.cd_mean, rel=1e-3)
    assert oblong["xi_nm"] == pytest.approx(1.6 * in_px["xi_px"], rel=1e-3)
    with pytest.raises(InputError, match="pixel size"):
        found.as_record((0.0, 1.0))


def test_oblong_pixels_give_the_widths_of_square_ones() -> None:
    drawn = scene(height=800, tilt_deg=4.0, xi=30.0)
    fine = measure_lines(drawn.image).as_record((1.0, 1.0))
    coarse = measure_lines(drawn.image.reshape(400, 2, -1).mean(axis=1)).as_record((1.0, 2.0))
    for key in ("cd_mean_nm", "pitch_nm", "tilt_deg"):
        assert coarse[key] == pytest.approx(fine[key], abs=0.01)
    assert coarse["xi_nm"] == pytest.approx(fine["xi_nm"], rel=0.15)


def square_wave(pitch: float = 24.0, size: int = 400) -> Image:
    return np.tile((np.arange(size) % pitch < pitch / 2).astype(float), (size, 1))


def broken(kind: str) -> Image:
    """What is not lines and spaces that can be trusted."""
    rng = generator(5, kind)
    y, x = np.mgrid[:400, :400].astype(float)
    noise = rng.standard_normal((400, 400))
    lines = square_wave()
    half = lines.copy()
    half[200:] = 0.5
    jitter = np.stack([np.roll(row, shift) for row, shift in zip(lines, rng.integers(0, 24, 400), strict=True)])
    return {
        "white noise": noise,
        "blurred noise": gaussian_filter(noise, 4),
        "streaks": gaussian_filter(noise, (60, 2)),
        "ramp": x,
        "rings": np.sin(np.hypot(x - 200, y - 200) / 4),
        "chirp": np.sin(x**2 / 1600),
        "chessboard": (x // 16 + y // 16) % 2,
        "diagonal lines": np.sin((x + y) / 4),
        "dots": np.sin(x / 4) * np.sin(y / 4),
        "lines on half of the rows": half,
        "shifted rows": jitter,
        "random stripes": np.tile(np.cumsum(rng.random(400) < 0.06) % 2, (400, 1)),
        "lines under noise": lines + noise / 0.15,
        "lines blurred away": gaussian_filter1d(lines, 9, axis=1) + 0.005 * noise,
        "a sine": np.sin(2 * np.pi * x / 24),
        "two lines": square_wave(160),
        "pitch of 6 px": square_wave(6),
    }[kind]


KINDS = (
    *("white noise", "blurred noise", "streaks", "ramp", "rings", "chirp", "chessboard", "diagonal lines", "dots"),
    *(
        "lines on half of the rows",
        "shifted rows",
        "random stripes",
        "lines under noise",
        "lines blurred away",
        "a sine",
    ),
    *("two lines", "pitch of 6 px"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_lines_is_refused_with_a_reason(kind: str) -> None:
    with pytest.raises(MeasurementRefused) as refusal:
        measure_lines(broken(kind))
    assert str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["camera", "coins", "brick", "grass", "gravel", "page", "text", "moon", "checkerboard"]
)
def test_photographs_are_refused(name: str) -> None:
    try:
        image = getattr(skimage.data, name)()
    except (ImportError, OSError):
        pytest.skip("not shipped with this scikit-image")
    with pytest.raises(MeasurementRefused):
        measure_lines(image)


@pytest.mark.parametrize("pillars", [False, True])
def test_contacts_are_not_lines(pillars: bool) -> None:
    drawn = phantom.contacts(
        generator(6, "contacts"), height=400, width=400, pitch=36.0, diameter=18.0, edge_sigma=1.2, pillars=pillars
    )
    with pytest.raises(MeasurementRefused, match="two directions"):
        measure_lines(noisy(drawn.image, 6.0))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((40, 400)), "too small"),
        (np.full((100, 100), 3.0), "constant"),
        (np.where(np.eye(100) > 0, np.nan, square_wave(size=100)), "not finite"),
        (np.where(np.eye(100) > 0, np.inf, square_wave(size=100)), "not finite"),
        (np.zeros((100, 100, 3)), "not an image"),
        (square_wave(40, 100), "too few lines|no grating"),
    ],
)
def test_bad_input_is_refused_in_one_line(image: Image, reason: str) -> None:
    with pytest.raises(MeasurementRefused, match=reason):
        measure_lines(image)


def test_clipped_plateaus_are_refused_and_a_few_clipped_pixels_flagged() -> None:
    image = noisy(scene().image, 6.0)
    with pytest.raises(MeasurementRefused, match="saturated"):
        measure_lines(np.clip(image, 0, 165))
    found = measure_lines(np.clip(image, 0, 205))
    assert "gray levels clipped" in found.flags
    assert "gray levels clipped" not in measure_lines(image).flags


def test_unknown_names_are_input_errors() -> None:
    image = square_wave()
    with pytest.raises(InputError, match="polarity"):
        measure_lines(image, polarity="white")
    with pytest.raises(InputError, match="level"):
        measure_lines(image, level="half")


@pytest.mark.parametrize("contrast", [2.0, 4.0])
@pytest.mark.parametrize("index", range(4))
def test_good_lines_are_never_refused(contrast: float, index: int) -> None:
    rng = generator(8, f"good-{index}")
    pitch, duty = rng.uniform(20, 60), (0.35, 0.5, 0.65)[index % 3]
    drawn = scene(
        seed=index,
        pitch=pitch,
        duty=duty,
        sigma=min(rng.uniform(0.5, 2), min(duty, 1 - duty) * pitch / 8),
        edge_sigma=rng.uniform(0.8, 2),
        tilt_deg=rng.uniform(-2, 2),
        transposed=bool(index % 2),
    )
    found = measure_lines(noisy(drawn.image, contrast))
    assert found.lines >= 3
    assert found.lost_fraction < 0.03


REAL = [
    ("smile2_lines_test01.tif", 0.827009, 15.136, 25.633),
    ("smile2_lines_test02.tif", 0.8241992, 15.049, 25.620),
    ("smile2_lines_test03.tif", 0.8268229, 15.389, 25.058),
]
"""File, pixel size in nm, CD in px that SMILE2's own documentation shows, pitch in nm."""


@pytest.mark.data
@pytest.mark.parametrize(("file", "pixel_size", "cd", "pitch"), REAL)
def test_real_lines_have_the_published_width_at_the_published_level(
    file: str, pixel_size: float, cd: float, pitch: float, data_folder: Path
) -> None:
    image = micrograph.read(data_folder / "lines" / file, crop=(0, 64, 0, 0)).pixels
    found = measure_lines(image, level="smile2")
    assert found.cd_mean == pytest.approx(cd, abs=0.05)
    assert found.as_record((pixel_size, pixel_size))["pitch_nm"] == pytest.approx(pitch, abs=0.05)
    assert found.lines == 40
    assert 0.55 < found.level_fraction < 0.75


@pytest.mark.data
def test_micrographs_that_are_not_lines_are_refused(data_folder: Path) -> None:
    files = sorted((data_folder / "semcorpus").rglob("*.*"), key=lambda path: path.stat().st_size)
    images = [path for path in files if path.suffix in (".png", ".jpg", ".tif") and "litho-lines" not in path.name]
    for path in images[:40]:
        with pytest.raises(MeasurementRefused):
            measure_lines(micrograph.read(path).pixels)
