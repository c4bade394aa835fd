"""Scenes with known truth: roughness spectra, areas, profiles and determinism."""

import json
import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from command_lines import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import erf, gamma, kv
from typer.testing import Result

from sembench import phantom
from sembench.errors import InputError
from sembench.optics import generator

LINES: dict[str, Any] = {
    "height": 96,
    "width": 128,
    "pitch": 24.0,
    "duty": 0.5,
    "sigma": 0.0,
    "xi": 10.0,
    "hurst": 0.6,
    "edge_sigma": 1.0,
    "low": 50.0,
    "high": 200.0,
}


def rng(name: str = "P001") -> np.random.Generator:
    return generator(7, name, "scene")


def test_palasantzas_psd_integrates_to_the_variance() -> None:
    area, _ = quad(lambda f: float(phantom.palasantzas_psd(np.array(f), 1.5, 12.0, 0.7)), 0, np.inf)
    assert 2 * area == pytest.approx(1.5**2, rel=1e-6)


@pytest.mark.parametrize("hurst", [0.4, 0.8])
def test_rough_edges_have_the_matern_autocorrelation_and_variance(hurst: float) -> None:
    sigma, xi, rows = 1.3, 6.0, 128
    stream = rng()
    edges = np.stack([phantom.rough_edge(stream, rows, sigma, xi, hurst) for _ in range(3000)])
    lags = np.array([2, 8, 20, 40, 80])
    measured = np.array([np.mean(edges[:, :-lag] * edges[:, lag:]) for lag in lags])
    r = lags / 4 / xi
    matern = sigma**2 * 2 ** (1 - hurst) / gamma(hurst) * r**hurst * kv(hurst, r)
    cut = 2 * quad(lambda f: float(phantom.palasantzas_psd(np.array(f), sigma, xi, hurst)), 2, np.inf)[0]
    assert np.mean(edges**2) == pytest.approx(sigma**2 - cut, rel=0.025)
    np.testing.assert_allclose(measured, matern, atol=0.03 * sigma**2)


def test_rough_edge_spectrum_agrees_with_the_formula_bin_by_bin() -> None:
    sigma, xi, hurst, rows = 1.0, 5.0, 0.6, 256
    stream = rng()
    edges = np.stack([phantom.rough_edge(stream, rows, sigma, xi, hurst) for _ in range(2000)])
    taper = np.hanning(edges.shape[1])
    power = np.mean(np.abs(np.fft.rfft(edges * taper)) ** 2, axis=0) * 0.25 / np.sum(taper**2)
    frequency = np.fft.rfftfreq(edges.shape[1], 0.25)
    some = slice(4, 200)
    ratio = power[some] / phantom.palasantzas_psd(frequency[some], sigma, xi, hurst)
    assert np.abs(ratio.mean() - 1) < 0.01
    assert ratio.std() < 0.05


def test_rough_edge_is_not_periodic() -> None:
    stream = rng()
    edges = np.stack([phantom.rough_edge(stream, 256, 1.0, 10.0, 0.7) for _ in range(500)])
    assert abs(np.mean(edges[:, 0] * edges[:, -1])) < 0.15


def test_edge_profile_is_the_error_function_and_its_integral_the_integral() -> None:
    u = np.linspace(-6, 6, 49)
    np.testing.assert_allclose(phantom.edge_profile(u, 1.3), 0.5 * (1 + erf(u / 1.3 / math.sqrt(2))), atol=1e-12)
    for sigma, rim in [(1.3, 0.4), (0.0, 0.4), (0.6, 0.0)]:
        for end in (-1.0, 0.5, 4.0):
            area = sum(
                quad(lambda v: float(phantom.edge_profile(np.array(v), sigma, rim, 2.5)), a, b)[0]  # noqa: B023
                for a, b in [(-15, min(0, end)), (min(0, end), end)]
            )
            assert float(phantom.edge_integral(np.array(end), sigma, rim, 2.5)) == pytest.approx(area, abs=1e-6)


def test_rim_profile_is_the_blurred_exponential() -> None:
    grid = np.arange(-30, 60, 0.002)
    sharp = (grid > 0) * (1 + 0.5 * np.exp(-np.maximum(grid, 0) / 3))
    for u in (-1.0, 0.3, 2.0):
        kernel = np.exp(-0.5 * ((u - grid) / 1.2) ** 2) / 1.2 / math.sqrt(2 * math.pi)
        assert float(phantom.edge_profile(np.array(u), 1.2, 0.5)) == pytest.approx(
            np.sum(sharp * kernel) * 0.002, abs=1e-3
        )


@pytest.mark.parametrize("edge_sigma", [0.0, 0.8, 2.0])
def test_straight_lines_are_exactly_area_sampled(edge_sigma: float) -> None:
    scene = phantom.lines(rng(), **{**LINES, "edge_sigma": edge_sigma})
    row = (scene.image[40].astype(float) - 50) / 150
    x = np.arange(128)
    left = np.array(scene.truth["left_px"])[:, 40]
    period = left[0] - 24 * np.arange(-12, 12)[:, None]

    def integral(u: np.ndarray) -> np.ndarray:
        return np.maximum(u, 0) if edge_sigma == 0 else phantom.edge_integral(u, edge_sigma)

    expected = np.zeros(128)
    for edge, sign in ((period, 1), (period + 12, -1)):
        expected += np.sum(sign * (integral(x + 0.5 - edge) - integral(x - 0.5 - edge)), axis=0)
    np.testing.assert_allclose(row, expected, atol=3e-5)
    start = math.ceil(left[0])
    assert row[start : start + 96].mean() == pytest.approx(0.5, abs=1e-5)


def test_line_truth_without_roughness() -> None:
    truth = phantom.lines(rng(), **{**LINES, "duty": 0.4, "tilt_deg": 2.0}).truth
    cosine = math.cos(math.radians(2))
    assert truth["cd_px"] == pytest.approx(9.6 * cosine, abs=1e-9)
    assert truth["pitch_px"] == pytest.approx(24 * cosine, abs=1e-9)
    assert truth["tilt_deg"] == pytest.approx(2, abs=1e-9)
    assert truth["lwr_px"] == pytest.approx(0, abs=1e-9)
    assert truth["ler_px"] == pytest.approx(0, abs=1e-9)
    assert truth["cd_std_px"] == pytest.approx(0, abs=1e-9)


def test_line_area_in_each_row_is_the_true_width() -> None:
    rough = {**LINES, "sigma": 1.2, "hurst": 0.4, "width": 192, "pitch": 48.0}
    scene = phantom.lines(rng(), **rough)
    left, right = np.array(scene.truth["left_px"]), np.array(scene.truth["right_px"])
    image = (scene.image.astype(float) - 50) / 150
    for i in range(len(left)):
        first, last = int(left[i].mean()) - 12, int(right[i].mean()) + 13
        np.testing.assert_allclose(image[:, first:last].sum(axis=1), right[i] - left[i], atol=2e-3)


def test_line_roughness_of_many_edges_is_what_was_asked_for() -> None:
    truth = phantom.lines(
        rng(), **{**LINES, "height": 1024, "width": 1024, "pitch": 20.0, "sigma": 0.9, "xi": 6.0}
    ).truth
    assert truth["ler_px"] == pytest.approx(2.7, rel=0.06)
    assert truth["lwr_px"] == pytest.approx(math.sqrt(2) * truth["ler_px"], rel=0.05)
    widths = np.array(truth["right_px"]) - np.array(truth["left_px"])
    assert truth["lwr_px"] == pytest.approx(3 * math.sqrt(np.mean(np.var(widths, axis=1))), rel=1e-9)


def test_a_sub_pixel_shift_of_the_phase_moves_image_and_truth() -> None:
    class Phase:
        def __init__(self, phase: float) -> None:
            self.phase, self.stream = phase, rng()

        def uniform(self, low: float, high: float) -> float:
            return self.phase

        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return self.stream.standard_normal(shape)

    rough = {**LINES, "sigma": 0.8}
    one, other = (phantom.lines(cast(np.random.Generator, Phase(phase)), **rough) for phase in (5.0, 5.375))
    moved = np.array(other.truth["left_px"]) - np.array(one.truth["left_px"])
    np.testing.assert_allclose(moved, 0.375, atol=1e-9)
    first, last = 14, 110
    columns = np.arange(128)[None, first:last]
    gained = (one.image - other.image)[:, first:last].astype(float)
    whole = phantom.lines(cast(np.random.Generator, Phase(6.0)), **rough).image
    np.testing.assert_allclose(whole[:, 1:], one.image[:, :-1], atol=2e-3)
    assert np.sum(gained * columns) / 96 / 150 == pytest.approx(-0.375 * 4 * 12, rel=0.05)


def test_transposed_lines_are_the_transpose() -> None:
    upright = phantom.lines(rng(), **LINES, tilt_deg=1.0)
    lying = phantom.lines(rng(), **{**LINES, "height": 128, "width": 96}, tilt_deg=1.0, transposed=True)
    np.testing.assert_array_equal(lying.image, upright.image.T)
    assert lying.truth["left_px"] == upright.truth["left_px"]


@settings(max_examples=25, deadline=None)
@given(
    pitch=st.floats(8, 40),
    duty=st.floats(0.3, 0.7),
    edge_sigma=st.floats(0, 2),
    tilt=st.floats(-5, 5),
    share=st.floats(0, 0.15),
    hurst=st.floats(0.2, 1.0),
)
def test_any_lines_stay_in_range_and_hold_their_duty(
    pitch: float, duty: float, edge_sigma: float, tilt: float, share: float, hurst: float
) -> None:
    sigma = share * pitch * min(duty, 1 - duty)
    chosen = {"pitch": pitch, "duty": duty, "edge_sigma": edge_sigma, "sigma": sigma, "hurst": hurst}
    scene = phantom.lines(rng(), **{**LINES, **chosen}, tilt_deg=tilt)
    assert scene.image.dtype == np.float32
    assert scene.image.shape == (96, 128)
    assert scene.image.min() >= 49.9
    assert scene.image.max() <= 200.1
    left, right = np.array(scene.truth["left_px"]), np.array(scene.truth["right_px"])
    assert left.min() >= -0.5
    assert right.max() <= 127.5
    assert (right > left).all()
    assert (left[1:] > right[:-1]).all()
    assert abs(scene.truth["cd_px"] - duty * pitch) < 0.05 * pitch + 3 * sigma


def test_one_disc_has_the_mean_gray_of_its_area() -> None:
    canvas = phantom._Canvas(96, 96, 1.0, 0.0)
    for radius in (6.0, 17.3):
        canvas.field[:] = 0
        phantom._paint_disc(canvas, 47.31, 48.77, radius, 0.0, 0.0, 100.0)
        assert canvas.image().astype(float).sum() == pytest.approx(100 * math.pi * radius**2, rel=1e-3)


def test_particle_areas_and_separation() -> None:
    scene = phantom.particles(
        rng(), height=256, width=256, diameter=30.0, covered=0.2, edge_sigma=0.7, low=0.0, high=100.0
    )
    y, x = np.indices((256, 256))
    whole = [one for one in scene.truth["particles"] if one["complete"]]
    assert len(whole) > 5
    assert not any(one["overlapped"] for one in scene.truth["particles"])
    sizes, near = [], np.full((256, 256), np.inf)
    for one in scene.truth["particles"]:
        near = np.minimum(near, np.hypot(x - one["x_px"], y - one["y_px"]) - one["diameter_px"] / 2)
    assert scene.image[near > 4].max() < 0.01
    assert scene.image[near < -4].min() > 99.99
    np.testing.assert_allclose(scene.image[np.abs(near) < 0.03], 50, atol=4)
    for one in whole:
        others = [other for other in scene.truth["particles"] if other is not one]
        gap = min(
            math.hypot(one["x_px"] - o["x_px"], one["y_px"] - o["y_px"]) - (one["diameter_px"] + o["diameter_px"]) / 2
            for o in others
        )
        assert gap >= 2
        sizes.append(one["diameter_px"])
    assert scene.truth["diameter_px"] == pytest.approx(np.mean(sizes))


def test_overlapping_particles_hide_what_lies_below() -> None:
    scene = phantom.particles(
        rng(), height=128, width=128, diameter=24.0, covered=0.6, edge_sigma=0.8, overlapping=True, shading=0.8
    )
    assert any(one["overlapped"] for one in scene.truth["particles"])
    assert not scene.truth["particles"][-1]["overlapped"]


def test_contact_area_and_radii() -> None:
    scene = phantom.contacts(
        rng(), height=160, width=160, pitch=50.0, diameter=26.0, edge_sigma=0.9, ellipticity=1.2, sigma=0.5,
        pillars=True, low=0.0, high=100.0,
    )  # fmt: skip
    angle = np.radians(scene.truth["angle_deg"])
    whole = [one for one in scene.truth["contacts"] if one["complete"]]
    assert len(whole) >= 4
    for one in whole:
        radii = np.array(one["radii_px"])
        x, y = round(one["x_px"]), round(one["y_px"])
        if not (22 <= x < 138 and 22 <= y < 138):
            continue
        box = scene.image[y - 22 : y + 23, x - 22 : x + 23].astype(float)
        assert box.sum() / 100 == pytest.approx(np.pi * np.mean(radii**2), rel=2e-3)
        ellipse = 0.5 / np.hypot(np.cos(angle) / one["cd_x_px"], np.sin(angle) / one["cd_y_px"])
        assert 3 * np.std(radii - ellipse) == pytest.approx(one["roughness_px"], rel=1e-6)
        assert one["diameter_px"] == pytest.approx(math.sqrt(one["cd_x_px"] * one["cd_y_px"]))
    assert whole[0]["cd_x_px"] / whole[0]["cd_y_px"] == pytest.approx(1.2)


def test_contacts_report_the_spread_of_the_complete_ones() -> None:
    truth = phantom.contacts(
        rng(), height=512, width=512, pitch=32.0, diameter=16.0, edge_sigma=1.0, diameter_sigma=0.4
    ).truth
    sizes = [one["diameter_px"] for one in truth["contacts"] if one["complete"]]
    assert truth["lcdu_px"] == pytest.approx(3 * np.std(sizes, ddof=1))
    assert truth["lcdu_px"] == pytest.approx(1.2, rel=0.2)
    assert truth["diameter_px"] == pytest.approx(16, abs=0.1)


def test_grain_areas_fill_the_image_and_gray_levels_are_theirs() -> None:
    scene = phantom.grains(rng(), height=160, width=160, diameter=32.0, edge_sigma=0.5)
    for one in scene.truth["grains"]:
        x, y = round(one["x_px"]), round(one["y_px"])
        if 3 < x < 156 and 3 < y < 156 and one["area_px2"] > 500:
            assert scene.image[y, x] == pytest.approx(one["gray"], abs=2)
    flat = phantom._Canvas(160, 160, 0.5, 0.0)
    assert flat.image().max() == 0
    even = phantom.grains(rng(), height=160, width=160, diameter=32.0, edge_sigma=0.5, low=100.0, high=100.001)
    np.testing.assert_allclose(even.image.mean(), 100, atol=0.05)
    assert even.truth["diameter_px"] == pytest.approx(32, rel=0.2)


def test_a_fibre_follows_its_centre_line() -> None:
    scene = phantom.fibres(
        rng(), height=200, width=200, diameter=16.0, covered=0.05, edge_sigma=0.8, shading=0.0, low=0.0, high=200.0
    )
    top = scene.truth["fibres"][-1]
    u = np.arange(-300, 300)
    v = np.zeros(u.size)
    for wavelength, amplitude, phase in zip(top["wavelength_px"], top["amplitude_px"], top["phase"], strict=True):
        v += amplitude * (np.sin(2 * np.pi * u / wavelength + phase) - np.sin(phase))
    turn = math.radians(top["direction_deg"])
    x = np.rint(top["x_px"] + u * math.cos(turn) - v * math.sin(turn)).astype(int)
    y = np.rint(top["y_px"] + u * math.sin(turn) + v * math.cos(turn)).astype(int)
    seen = (x >= 0) & (x < 200) & (y >= 0) & (y < 200)
    assert seen.sum() > 50
    np.testing.assert_allclose(scene.image[y[seen], x[seen]], 200, atol=0.1)


@pytest.mark.parametrize("number", range(1, 11))
def test_corpus_scenes_are_deterministic_varied_and_in_range(number: int) -> None:
    case_id = f"P{number:03d}"
    scene = phantom.corpus_scene(2604, case_id, 256)
    again = phantom.corpus_scene(2604, case_id, 256)
    np.testing.assert_array_equal(scene.image, again.image)
    assert json.loads(json.dumps(scene.truth, allow_nan=False)) == again.truth
    assert scene.truth["kind"] == phantom.CORPUS_KINDS[(number - 1) % 5]
    assert scene.image.min() >= 20
    assert scene.image.max() <= 235
    assert scene.image.std() > 10
    assert np.mean((scene.image <= 20) | (scene.image >= 235)) < 0.02
    assert np.abs(phantom.corpus_scene(2605, case_id, 256).image - scene.image).mean() > 3


def test_corpus_scenes_are_quick() -> None:
    best = []
    for number in range(1, 6):
        times = []
        for _ in range(3):
            start = time.process_time()
            phantom.corpus_scene(1, f"P{number:03d}")
            times.append(time.process_time() - start)
        best.append(min(times))
    assert max(best) < 1.0
    assert np.mean(best) < 0.4


def test_pixel_size_repeats_lengths_in_nm() -> None:
    scene = phantom.with_pixel_size(phantom.lines(rng(), **LINES), 0.8)
    assert scene.truth["pixel_size_nm"] == 0.8
    assert scene.truth["cd_nm"] == pytest.approx(0.8 * scene.truth["cd_px"])
    with pytest.raises(InputError, match="pixel size"):
        phantom.with_pixel_size(scene, 0.0)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"pitch": 4.0}, "pitch"),
        ({"pitch": math.nan}, "pitch"),
        ({"duty": 1.0}, "duty"),
        ({"height": 63}, "height"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": 3.0}, "sixth"),
        ({"hurst": 0.0}, "hurst"),
        ({"low": 200.0, "high": 100.0}, "high"),
        ({"tilt_deg": 11.0}, "tilt"),
        ({"rim": 0.9, "high": 250.0}, "above 255"),
        ({"edge_sigma": -0.1}, "edge_sigma"),
    ],
)
def test_lines_refuse_what_is_out_of_range(changed: dict[str, float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        phantom.lines(rng(), **{**LINES, **changed})


@pytest.mark.parametrize("case_id", ["", "P", "P000", "x1", "P1b"])
def test_corpus_refuses_an_unknown_case(case_id: str) -> None:
    with pytest.raises(InputError, match="case id"):
        phantom.corpus_scene(0, case_id)


def command(*words: str) -> Result:
    import typer

    from sembench.commands.phantom import phantom as function

    app = typer.Typer()
    app.command()(function)
    return invoke(app, *words)


@pytest.mark.parametrize("kind", phantom.CORPUS_KINDS)
def test_command_writes_image_and_truth(kind: str, tmp_path: Path) -> None:
    image, truth = tmp_path / "scene.npy", tmp_path / "scene.json"
    words = (kind, "-o", str(image), "--truth", str(truth), "--seed", "3", "--width", "128", "--height", "96")
    result = command(*words, "--pixel-size", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["kind"] == kind
    stored = json.loads(truth.read_text(encoding="utf-8"))
    assert stored["pixel_size_nm"] == 2
    clean = np.load(image, allow_pickle=False)
    assert clean.shape == (96, 128)
    assert command(*words, "--contrast-to-noise", "8").exit_code == 0
    assert np.std(np.load(image, allow_pickle=False) - clean) == pytest.approx(120 / 8, rel=0.05)


def test_command_refuses_options_of_another_kind(tmp_path: Path) -> None:
    result = command("grains", "-o", str(tmp_path / "scene.npy"), "--tilt", "1")
    assert isinstance(result.exception, InputError)
    assert "--tilt" in str(result.exception)
