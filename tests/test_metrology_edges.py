"""The parts of edge finding: grating, levels, matched filter, lost points, SMILE's level."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from sembench.metrology.grating import find_grating
from sembench.metrology.lost_points import bridged, lost_points
from sembench.metrology.matched_filter import MatchedFilter
from sembench.metrology.smile import flattened, middle_of_extremes, quartic_shift
from sembench.metrology.template import Shape, mean_profile
from sembench.metrology.tracking import Field, find_levels, straight_edges, track_edges
from sembench.optics import generator

BLUR = 1.3


def grating_image(slope: float = 0.01, pitch: float = 30.0, width: float = 13.0, size: int = 300) -> np.ndarray:
    """Straight bright lines of Gaussian edges, levels 50 and 150."""
    x = np.arange(size) - slope * (np.arange(size) - (size - 1) / 2)[:, None]
    total = np.zeros_like(x)
    for centre in np.arange(-10 * pitch, 30 * pitch, pitch) + 7.3:
        total += ndtr((x - centre + width / 2) / BLUR) - ndtr((x - centre - width / 2) / BLUR)
    return 50 + 100 * total


@pytest.mark.parametrize("slope", [0.0, 0.01, -0.1, 0.16])
def test_the_grating_of_straight_lines_is_found(slope: float) -> None:
    found = find_grating(grating_image(slope), bright=True)
    assert not found.transposed
    assert found.slope == pytest.approx(slope, abs=2e-4)
    assert found.pitch == pytest.approx(30, abs=0.02)
    assert found.line_width == pytest.approx(13, abs=0.05)
    phase = np.mod(found.edges[0::2] - 7.3 + 6.5 + 15, 30) - 15
    assert phase == pytest.approx(np.zeros(phase.size), abs=0.15)


def test_dark_and_horizontal_lines_are_the_same_lines() -> None:
    image = grating_image()
    bright, dark = find_grating(image, bright=True), find_grating((200 - image).T, bright=False)
    assert dark.transposed
    np.testing.assert_allclose(dark.edges, bright.edges, atol=1e-9)
    spaces = find_grating(image, bright=False)
    assert spaces.line_width == pytest.approx(30 - bright.line_width, abs=0.01)


def test_levels_follow_uneven_brightness_and_not_the_noise() -> None:
    image = grating_image()
    y, x = np.mgrid[:300, :300] / 300
    uneven = image * (1 + 0.2 * x - 0.1 * y) + 30 * y
    noise = generator(1, "levels").normal(0, 10, image.shape)
    grating = find_grating(uneven + noise, bright=True)
    field = Field(grating.field)
    edges = straight_edges(grating)
    levels = find_levels(field, grating, edges)
    at, rows = edges / 300, np.arange(300) / 300
    gain = 1 + 0.2 * at - 0.1 * rows
    assert np.abs(levels.inside - (150 * gain + 30 * rows)).max() < 3
    assert np.abs(levels.outside - (50 * gain + 30 * rows)).max() < 3
    assert levels.noise_sigma == pytest.approx(10, rel=0.03)


def test_the_track_stays_on_straight_edges_in_noise() -> None:
    image = grating_image()
    grating = find_grating(image + generator(2, "track").normal(0, 40, image.shape), bright=True)
    track, _ = track_edges(Field(grating.field), grating)
    true = np.round((grating.edges - 7.3 - 6.5 * np.tile([-1, 1], len(track) // 2)) / 30) * 30 + 7.3
    true = true + 6.5 * np.tile([-1, 1], len(track) // 2)
    apart = track - true[:, None] - 0.01 * grating.heights
    assert np.abs(apart.mean()) < 0.1
    assert apart.std() < 0.6


def test_spans_and_windows_are_those_of_the_pixels() -> None:
    rng = generator(3, "windows")
    values = rng.normal(50, 10, (40, 90))
    field = Field(values)
    middle = rng.integers(6, 84, (4, 40))
    windows, sums = field.windows(middle, 5), field.span_sums(middle, 5)
    for edge in range(4):
        for row in range(40):
            part = values[row, middle[edge, row] - 5 : middle[edge, row] + 6]
            np.testing.assert_array_equal(windows[edge, row], part if edge % 2 == 0 else part[::-1])
            assert sums[edge, row] == pytest.approx(part.sum())


def windows_at(position: np.ndarray, half: int, blur: float = BLUR) -> np.ndarray:
    return ndtr((np.arange(-half, half + 1) - position[..., None]) / blur)


def test_the_matched_filter_finds_edges_exactly_without_noise() -> None:
    position = generator(4, "edges").uniform(-2.5, 2.5, (3, 500))
    matched = MatchedFilter(lambda u: ndtr(u / BLUR), 8, 8)
    found, stuck = matched.locate(windows_at(position, 8), np.zeros_like(position), 6)
    np.testing.assert_allclose(found, position, atol=2e-4)
    assert not stuck.any()
    assert matched.mean_squares(windows_at(position, 8), found).max() < 1e-4


def test_the_matched_filter_reaches_the_cramer_rao_bound() -> None:
    """sqrt(2 sqrt(pi) s) / C for a Gaussian edge."""
    rng = generator(5, "bound")
    position, contrast = rng.uniform(-0.5, 0.5, (1, 20000)), 12.0
    windows = windows_at(position, 8) + rng.normal(0, 1 / contrast, (1, 20000, 17))
    matched = MatchedFilter(lambda u: ndtr(u / BLUR), 8, 8)
    found, _ = matched.locate(windows, np.zeros_like(position), 6)
    bound = math.sqrt(2 * math.sqrt(math.pi) * BLUR) / contrast
    assert (found - position).std() == pytest.approx(bound, rel=0.03)
    assert math.sqrt(matched.noise_variance(1 / contrast)) == pytest.approx(bound, rel=0.01)
    assert abs((found - position).mean()) < 5 * bound / math.sqrt(20000)


def test_positions_beyond_the_limit_stop_there() -> None:
    position = np.array([[5.0, -5.0, 1.0]])
    found, stuck = MatchedFilter(lambda u: ndtr(u / BLUR), 8, 8).locate(windows_at(position, 8), np.zeros((1, 3)), 2.0)
    assert found.tolist()[0][:2] == [2.0, -2.0]
    assert stuck.tolist() == [[True, True, False]]


def test_the_mean_profile_is_the_mean_by_distance() -> None:
    rng = generator(6, "profile")
    offset = rng.uniform(-0.5, 0.5, (2, 4000))
    u, mean, number = mean_profile(windows_at(offset, 6), offset)
    assert number.sum() == offset.size * 13
    np.testing.assert_allclose(mean, ndtr(u / BLUR), atol=3e-3)


def test_a_shape_is_its_convolution() -> None:
    """The blurred step with a rim against a sum over a fine grid."""
    shape = Shape(1.4, 0.7, 3.0)
    fine = np.arange(-60, 60, 0.005)
    sharp = (fine > 0) * (1 + 0.7 * np.exp(-np.maximum(fine, 0) / 3))
    for u in (-3.0, -0.5, 0.0, 1.0, 4.0, 15.0):
        kernel = np.exp(-0.5 * ((u - fine) / 1.4) ** 2)
        assert float(shape(np.array([u]))[0]) == pytest.approx((sharp * kernel).sum() / kernel.sum(), abs=2e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bridges_are_linear_interpolations_of_each_edge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positions, lost = rng.normal(size=(3, 30)), rng.random((3, 30)) < 0.4
    lost[np.arange(3), rng.integers(0, 30, 3)] = False
    rows = np.arange(30)
    expected = [np.interp(rows, rows[~gone], edge[~gone]) for edge, gone in zip(positions, lost, strict=True)]
    np.testing.assert_allclose(bridged(positions, lost), expected, atol=1e-12)


def test_runs_of_stuck_points_and_jumps_are_lost_and_single_stuck_points_kept() -> None:
    rng = generator(7, "lost")
    positions = 0.1 * rng.standard_normal((4, 200))
    squares, stuck = np.full((4, 200), 0.01), np.zeros((4, 200), dtype=bool)
    positions[0, 50] += 5
    stuck[1, 100:110] = True
    stuck[2, 60] = True
    squares[3, 120:126] = 1.0
    lost = lost_points(stuck, squares, positions)
    assert lost[0, 50]
    assert lost[1, 101:109].all()
    assert not lost[2].any()
    assert lost[3, 119:127].all()
    assert lost.mean() < 0.05


def test_flattening_takes_off_a_cubic_surface_exactly() -> None:
    y, x = np.mgrid[:80, :120] / 100
    surface = 40 + 10 * x - 5 * y**2 + 8 * x**2 * y - 3 * x**3
    bright = (np.arange(120) % 20 < 10) * np.ones((80, 1))
    flat = flattened(surface - 200 * (1 - bright))
    np.testing.assert_allclose(flat[bright > 0], 0, atol=1e-8)


def test_the_middle_of_extremes_is_that_of_the_rows() -> None:
    field = np.tile([0.0, 0.0, 4.0, 4.0], (11, 4))
    field[0, 3] = 100
    assert middle_of_extremes(field) == 2.0


def test_a_quartic_passes_a_threshold_where_the_edge_does() -> None:
    x = np.arange(80)
    field = np.tile(ndtr((x - 20.3) / 2) - ndtr((x - 50.6) / 2), (30, 1))
    positions = np.tile([[20.3], [50.6]], (1, 30))
    assert quartic_shift(field, positions, 0.5, 4) == pytest.approx(0, abs=0.02)
    assert quartic_shift(field, positions, 0.6, 4) == pytest.approx(2 * 0.2533, abs=0.06)
