"""Structure invented on a flat field: analytic values, a restorer that hallucinates, cases that have no flat field."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, maximum_filter

from sembench.metrics.hallucination import INVENTED_STRUCTURE, invented_structure
from sembench.metrics.table import MetricCase, UndefinedError, evaluate

NOISE = np.random.default_rng(0).normal(128, 8, (512, 512)).astype(np.float32)


def particles(image: np.ndarray) -> np.ndarray:
    """A restorer that takes the highest bumps of the noise for particles and draws a disc of 9 px on each."""
    smooth = gaussian_filter(image, 3)
    peaks = (smooth == maximum_filter(smooth, 41)) & (smooth > np.percentile(smooth, 99))
    y, x = np.mgrid[-4:5, -4:5]
    drawn = np.zeros_like(smooth)
    for row, column in np.argwhere(peaks[4:-4, 4:-4]):
        drawn[row : row + 9, column : column + 9] = np.hypot(y, x) <= 4.5
    return np.full_like(image, image.mean()) + 40 * drawn


def test_the_input_itself_is_1_and_a_flat_image_0() -> None:
    assert invented_structure(NOISE, NOISE) == 1.0
    assert invented_structure(np.full_like(NOISE, 128), NOISE) == pytest.approx(0, abs=1e-6)
    assert invented_structure(2 * NOISE - 50, NOISE) == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_a_gaussian_has_its_analytic_value(sigma: float) -> None:
    smoothed = gaussian_filter(NOISE, sigma)
    assert invented_structure(smoothed, NOISE) == pytest.approx(2 / np.sqrt(4 + sigma**2), rel=0.04)


def test_who_draws_particles_is_told_from_who_smooths() -> None:
    assert invented_structure(particles(NOISE), NOISE) > 2
    amplified = 128 + 3 * (gaussian_filter(NOISE, 1.5) - 128)
    assert invented_structure(amplified, NOISE) > 2
    grain = NOISE - gaussian_filter(NOISE, 2) + 128
    assert invented_structure(grain, NOISE) < 0.5


def test_only_flat_fields_have_a_value_and_only_noisy_ones() -> None:
    ordinary = evaluate([INVENTED_STRUCTURE], NOISE, MetricCase(NOISE, NOISE))
    assert ordinary.values == {"invented_structure": None}
    assert ordinary.inapplicable == ("invented_structure",)
    assert (
        evaluate([INVENTED_STRUCTURE], NOISE, MetricCase(NOISE, flat=True, margin=12)).values["invented_structure"] == 1
    )
    with pytest.raises(UndefinedError, match="no noise"):
        invented_structure(NOISE, np.full_like(NOISE, 7))
    silent = evaluate([INVENTED_STRUCTURE], NOISE, MetricCase(np.full_like(NOISE, 7), flat=True))
    assert silent.inapplicable == ()
