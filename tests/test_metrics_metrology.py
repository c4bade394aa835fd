"""Errors of a measurement against scenes whose edges are known to differ by a known amount."""

import math

import numpy as np
import pytest

from sembench import phantom
from sembench.line_scenes import LineTruth
from sembench.metrics.metrology import SPECS
from sembench.metrics.table import Evaluation, MetricCase, evaluate
from sembench.micrograph import to_grid
from sembench.restorer import Image

PITCH, CD, SIGMA = 40.0, 20.0, 0.8
METRICS = tuple(vars(SPECS).values())


def scene(cd: float = CD, sigma: float = SIGMA, *, transposed: bool = False) -> phantom.Scene:
    """The same rough lines whatever their width and amplitude: the random stream is the same."""
    return phantom.lines(
        np.random.default_rng(5), height=512, width=640, pitch=PITCH, duty=cd / PITCH, sigma=sigma, xi=15, hurst=0.6,
        edge_sigma=1.0, tilt_deg=0.4, transposed=transposed,
    )  # fmt: skip


def truth_of(made: phantom.Scene) -> LineTruth:
    left, right = (np.array(made.truth[name]) for name in ("left_px", "right_px"))
    edges = np.stack([left, right], axis=1).reshape(-1, left.shape[1]).T
    return LineTruth(edges, np.arange(left.shape[1], dtype=np.float64))


def scores(restored: Image, case: MetricCase) -> Evaluation:
    return evaluate(METRICS, to_grid(restored), case)


@pytest.fixture(scope="module")
def case() -> MetricCase:
    made = scene()
    image = to_grid(made.image)
    return MetricCase(image, image, pixel_size_nm=(2.0, 2.0), truth=truth_of(made))


def test_a_perfect_restoration_has_no_error(case: MetricCase) -> None:
    assert case.reference is not None
    values = scores(case.reference, case).values
    assert values["measured"] == 1
    for name, value in values.items():
        if name.endswith("_measured") or name.endswith("_measured_nm"):
            continue
        if not name.endswith("_truth") and name not in ("measured",):
            assert value == 0 or name == "lost_rows", name
    assert values["cd_error_truth"] == pytest.approx(0, abs=0.02)
    assert values["edge_placement_error_truth"] == pytest.approx(0, abs=0.03)
    assert values["lwr_error_truth"] == pytest.approx(0, abs=0.03)
    assert values["psd_log_distance_truth"] == pytest.approx(0, abs=0.1)


def test_wider_lines_show_as_a_cd_bias_and_nothing_else(case: MetricCase) -> None:
    values = scores(scene(cd=CD + 0.5).image, case).values
    assert values["cd_bias"] == pytest.approx(0.5, abs=0.01)
    assert values["cd_error"] == pytest.approx(0.5, abs=0.01)
    assert values["cd_bias_truth"] == pytest.approx(0.5, abs=0.02)
    assert values["cd_line_error"] == pytest.approx(0.5, abs=0.01)
    assert values["edge_placement_error"] == pytest.approx(0.25, abs=0.02)
    for name in ("lwr_error", "ler_error", "psd_error", "cd_std_error"):
        assert values[name] == pytest.approx(0, abs=0.02), name


def test_rougher_lines_show_in_lwr_ler_and_psd(case: MetricCase) -> None:
    made = scene(sigma=1.2 * SIGMA)
    before = scene().truth
    values = scores(made.image, case).values
    assert values["lwr_bias"] == pytest.approx(0.2 * before["lwr_px"], rel=0.03)
    assert values["ler_error"] == pytest.approx(0.2 * before["ler_px"], rel=0.03)
    assert values["psd_log_distance"] == pytest.approx(2 * math.log(1.2), rel=0.03)
    assert values["cd_error"] == pytest.approx(0, abs=0.06)
    five = [values[name] for name in ("cd_error", "cd_std_error", "lwr_error", "ler_error", "psd_error")]
    assert values["avg_error"] == pytest.approx(np.mean([value for value in five if value is not None]))


def test_smoothing_hides_in_the_cd_and_shows_in_edge_placement(case: MetricCase) -> None:
    from scipy.ndimage import gaussian_filter

    values = scores(gaussian_filter(scene().image, (6.0, 0.0)), case).values
    assert values["cd_error"] == pytest.approx(0, abs=0.05)
    assert (values["lwr_bias"] or 0) < -0.1
    assert (values["edge_placement_error"] or 0) > 0.05
    assert (values["psd_log_distance"] or 0) > 0.5


def test_nanometres_are_pixels_times_the_size_across_the_lines() -> None:
    for transposed, size in ((False, (2.0, 3.0)), (True, (3.0, 2.0))):
        image = to_grid(scene(transposed=transposed).image)
        case = MetricCase(image, image, pixel_size_nm=size)
        wider = scene(cd=CD + 0.5, transposed=transposed)
        values = scores(wider.image, case).values
        assert values["cd_bias_nm"] == pytest.approx(2.0 * values["cd_bias"])  # type: ignore[operator]
        assert values["cd_measured_nm"] == pytest.approx(2.0 * wider.truth["cd_px"], abs=0.03)


def test_what_cannot_be_measured_has_a_reason_and_no_number(case: MetricCase) -> None:
    noise = np.random.default_rng(1).uniform(0, 255, case.degraded.shape).astype(np.float32)
    found = scores(noise, case)
    assert found.values["measured"] == 0
    assert found.values["cd_error"] is None
    assert "measurement refused" in found.reasons["cd_error"]
    assert "cd_error" not in found.inapplicable


def test_without_truth_or_pixel_size_the_metric_does_not_apply(case: MetricCase) -> None:
    bare = MetricCase(case.degraded, case.reference)
    found = scores(case.degraded, bare)
    assert {"cd_error_truth", "cd_error_nm"} <= set(found.inapplicable)
    assert "pixel size" in found.reasons["cd_error_nm"]
    assert found.values["cd_error"] == 0


def test_a_reference_without_lines_is_named(case: MetricCase) -> None:
    flat = np.full_like(case.degraded, 100)
    found = scores(case.degraded, MetricCase(case.degraded, flat))
    assert "on the reference" in found.reasons["cd_error"]


def test_lines_that_turned_are_refused(case: MetricCase) -> None:
    square = to_grid(scene().image)[:, :512]
    found = scores(np.ascontiguousarray(square.T), MetricCase(square, square))
    assert "horizontal in the restored image" in found.reasons["cd_error"]
