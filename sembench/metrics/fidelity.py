"""Fidelity to the reference: PSNR and SSIM, plain and after one gain and one offset have been matched."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter

from sembench.errors import InputError
from sembench.metrics.table import MetricCase, MetricSpec, Scored, UndefinedError

Array = NDArray[np.float64]
Gray = NDArray[np.floating[Any]]

DATA_RANGE = 255.0
HIGHEST_PSNR = 100.0
MATCH_SIGMA = 3.0
"""Sigma (px) of the Gaussian under which gain and offset are matched, so that noise cannot lower the gain."""

SSIM_RADIUS = 5
"""Radius (px) of SSIM's window, a Gaussian of sigma 1.5 cut at 3.5 sigma; so wide is the border left out."""


@dataclass(frozen=True)
class Match:
    """The gain (> 0) and offset (gray levels) that bring a restored image nearest to its reference."""

    gain: float
    offset: float


@dataclass(frozen=True)
class Moments:
    """Local mean and variance of one image under SSIM's window, less the border: float64 (H - 10, W - 10) each."""

    mean: Array
    variance: Array


def psnr(reference: Gray, restored: Gray) -> float:
    """PSNR in dB of one (H, W) image, gray levels 0..255; 100 at most. Raises InputError naming both shapes.

    10 log10(255^2 / MSE), 100 where the MSE is below 255^2 1e-10.
    """
    _check_shapes(reference, restored)
    difference = np.asarray(reference, np.float64) - restored
    error = float(np.mean(np.square(difference))) / DATA_RANGE**2
    return HIGHEST_PSNR if error < 1e-10 else -10 * math.log10(error)


def ssim(reference: Gray, restored: Gray) -> float:
    """SSIM of one (H, W) image, gray levels 0..255, at least 11 x 11 px; 1 for equal images.

    Gaussian weights of sigma 1.5, K1 0.01, K2 0.03, population covariance, data range 255, mean over the image less
    a border of 5 px. Raises InputError naming both shapes. Source: Wang et al., IEEE TIP 13 (2004).
    """
    _check_shapes(reference, restored)
    if min(reference.shape) < 2 * SSIM_RADIUS + 1:
        raise InputError(f"SSIM needs 11 px a side at least, not {reference.shape}")
    first, second = np.asarray(reference, np.float64), np.asarray(restored, np.float64)
    return _similarity(first, second, _moments(first))


def match(reference: Gray, restored: Gray, smooth_reference: Array | None = None) -> Match:
    """Gain (> 0) and offset that bring the restored image nearest to the reference, both (H, W).

    Least squares between the two images, each smoothed by a Gaussian of sigma 3 px (reflected at the borders). Equal
    images give exactly gain 1 and offset 0. smooth_reference: the reference after smoothing, where it is already there.
    Raises InputError naming both shapes, and UndefinedError where the restored image is flat or not positively
    correlated with the reference.
    """
    _check_shapes(reference, restored)
    if np.array_equal(reference, restored):
        return Match(1.0, 0.0)
    if np.ptp(restored) == 0:
        raise UndefinedError("the restored image is flat, so no gain can match it to the reference")
    target = _smooth(reference) if smooth_reference is None else smooth_reference
    smooth = _smooth(restored)
    deviation = smooth - smooth.mean()
    gain = float(np.sum(deviation * (target - target.mean())) / np.sum(np.square(deviation)))
    if not gain > 0:
        raise UndefinedError("the restored image is not positively correlated with the reference")
    return Match(gain, float(target.mean() - gain * smooth.mean()))


def apply_match(found: Match, restored: Gray) -> Array:
    """The restored image after gain and offset, float64 (H, W), clipped to the gray levels 0..255 that a display has.

    Gain and offset are found without the clipping.
    """
    return np.clip(found.gain * np.asarray(restored, np.float64) + found.offset, 0.0, DATA_RANGE)


def matched(scored: Scored) -> Match:
    """The match of one scored image to its reference; for `scored.once`."""
    case = scored.case
    return match(case.once(MetricCase.inner_reference), scored.inner_restored(), case.once(_smooth_reference))


def matched_image(scored: Scored) -> Array:
    """The scored part of the restored image after its match; for `scored.once`."""
    return apply_match(scored.once(matched), scored.inner_restored())


def _smooth(image: Gray) -> Array:
    return np.asarray(gaussian_filter(np.asarray(image, np.float64), MATCH_SIGMA, mode="reflect"))


def _smooth_reference(case: MetricCase) -> Array:
    return _smooth(case.once(MetricCase.inner_reference))


def _window() -> Array:
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / 1.5) ** 2)
    return np.asarray(weights / weights.sum())


def _local_mean(image: Array) -> Array:
    """Mean under SSIM's window where the window lies inside the image."""
    border = slice(SSIM_RADIUS, -SSIM_RADIUS)
    return np.asarray(correlate1d(correlate1d(image, _window(), axis=0)[border], _window(), axis=1)[:, border])


def _moments(image: Array) -> Moments:
    mean = _local_mean(image)
    return Moments(mean, _local_mean(image * image) - mean * mean)


def _similarity(reference: Array, restored: Array, of_reference: Moments) -> float:
    """Mean of SSIM's map, the reference's moments given."""
    of_restored = _moments(restored)
    covariance = _local_mean(reference * restored) - of_reference.mean * of_restored.mean
    luminance, contrast = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    means = of_reference.mean, of_restored.mean
    above = (2 * means[0] * means[1] + luminance) * (2 * covariance + contrast)
    spread = of_reference.variance + of_restored.variance
    below = (means[0] ** 2 + means[1] ** 2 + luminance) * (spread + contrast)
    return float(np.mean(above / below))


def _reference_moments(case: MetricCase) -> Moments:
    return _moments(case.once(MetricCase.inner_reference))


def _psnr(scored: Scored) -> float:
    return psnr(scored.case.once(MetricCase.inner_reference), scored.inner_restored())


def _psnr_matched(scored: Scored) -> float:
    return psnr(scored.case.once(MetricCase.inner_reference), scored.once(matched_image))


def _ssim(scored: Scored) -> float:
    case = scored.case
    return _similarity(case.once(MetricCase.inner_reference), scored.inner_restored(), case.once(_reference_moments))


def _ssim_matched(scored: Scored) -> float:
    case = scored.case
    return _similarity(case.once(MetricCase.inner_reference), scored.once(matched_image), case.once(_reference_moments))


def _match_gain(scored: Scored) -> float:
    return scored.once(matched).gain


def _match_offset(scored: Scored) -> float:
    return scored.once(matched).offset


def _check_shapes(reference: Gray, restored: Gray) -> None:
    if np.shape(reference) != np.shape(restored) or np.ndim(reference) != 2:
        shapes = f"{np.shape(reference)} and {np.shape(restored)}"
        raise InputError(f"reference and restored image must be (H, W) of one shape, not {shapes}")


PSNR = MetricSpec(
    name="psnr",
    title="PSNR",
    unit="dB",
    better="higher",
    needs_reference=True,
    needs_degradation=False,
    function=_psnr,
    version=1,
    tolerance=1e-6,
)
SSIM = MetricSpec(
    name="ssim",
    title="SSIM",
    unit="",
    better="higher",
    needs_reference=True,
    needs_degradation=False,
    function=_ssim,
    version=1,
    tolerance=1e-6,
    smallest_side=2 * SSIM_RADIUS + 1,
)
PSNR_MATCHED = MetricSpec(
    name="psnr_matched",
    title="PSNR, gain and offset matched",
    unit="dB",
    better="higher",
    needs_reference=True,
    needs_degradation=False,
    function=_psnr_matched,
    version=1,
    tolerance=1e-6,
)
SSIM_MATCHED = MetricSpec(
    name="ssim_matched",
    title="SSIM, gain and offset matched",
    unit="",
    better="higher",
    needs_reference=True,
    needs_degradation=False,
    function=_ssim_matched,
    version=1,
    tolerance=1e-6,
    smallest_side=2 * SSIM_RADIUS + 1,
)
MATCH_GAIN = MetricSpec(
    name="match_gain",
    title="Matched gain",
    unit="",
    better="none",
    needs_reference=True,
    needs_degradation=False,
    function=_match_gain,
    version=1,
    tolerance=1e-6,
)
MATCH_OFFSET = MetricSpec(
    name="match_offset",
    title="Matched offset",
    unit="gray levels",
    better="none",
    needs_reference=True,
    needs_degradation=False,
    function=_match_offset,
    version=1,
    tolerance=1e-6,
)
