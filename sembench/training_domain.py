"""Whether an image lies within what a training degradation covers, read off the image alone."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import minimum_filter

from sembench.cases.flat import noise_spectrum
from sembench.errors import InputError
from sembench.optics import DEGRADATION_RANGES, aperture_transfer
from sembench.restorer import PATCH_SIDE, Image, check_image

Vector = NDArray[np.float64]

LEAST_RANGE = 20.0
"""Gray levels between the 1st and the 99th percentile that an image should span: training patches span 40 or more."""

SATURATED_AREA = 5
"""Side (px) of a square that is saturated as a whole: noise alone does not clip so many neighbours."""

LARGEST_SATURATED = 0.1
"""Share of an image in such squares that is still ordinary: a black data bar is, a clipped background is not."""

NOISE_TOLERANCE = 1.25
"""Factor on the noise of the widest draw: sharp texture passes for some noise."""

QUIET_TOLERANCE = 0.5
"""Factor on the noise of the cleanest draw: what is clipped at 0 or 255 has less of it."""

STRUCTURE_BELOW, BLUR_BELOW = 0.05, 0.12
"""Frequencies (cycles/px) up to which structure must stand out of the noise, and up to which a blur is looked for."""

STRUCTURE_SIGNIFICANCE = 6.0
"""Standard errors by which the power at low frequencies must exceed the noise's to count as structure."""

BLUR_EVIDENCE = 20.0
"""Twice the log likelihood by which a wider blur must explain the spectrum better than any that was trained."""

HANN_CORRELATION = (35 / 18) ** 2
"""Bins of a two-dimensional Hann-windowed periodogram that count as one."""

WINDOW, WINDOWS = 1024, 3
"""Side (px) of the windows in which large images are read, and how many at most along each axis."""

RADII = np.geomspace(1.0, 256.0, 65)
EXPONENTS = np.arange(1.0, 4.01, 0.5)
AMPLITUDES = np.exp(np.arange(-5.0, 4.01, 0.2))
"""Grid of blur radii (px), of exponents of the scene's power law, and of its amplitudes relative to a first guess."""


@dataclass(frozen=True)
class Outside:
    """One way in which an image lies outside: what was found, the limit that it passes, and what to do about it."""

    quantity: str
    found: float
    limit: float
    unit: str
    advice: str

    def __str__(self) -> str:
        above = self.found > self.limit
        larger, smaller = max(self.found, self.limit), min(self.found, self.limit)
        factor = f", {larger / smaller:.2g} times {'that' if above else 'as much'}" if smaller > 0 else ""
        bound = f"{'at most' if above else 'at least'} {_rounded(self.limit)}{factor}"
        return f"{self.quantity} {_rounded(self.found)}{self.unit} ({bound}): {self.advice}"


def outside(image: Image, degradation: str) -> tuple[Outside, ...]:
    """What of an image a method trained with a named degradation has never seen; empty where all is ordinary.

    image: (H, W), gray levels 0..255, as it would be restored. Noise is read at high frequencies across the fast axis,
    blur and structure off the radial spectrum. A blur below the largest trained is never told, nor is an unusual scene.
    Raises InputError for an unknown degradation or what is no image.
    """
    if degradation not in DEGRADATION_RANGES:
        raise InputError(f"degradation {degradation!r} is not known: give {' or '.join(DEGRADATION_RANGES)}")
    check_image(image)
    found = list(_size(image))
    low, high = (float(level) for level in np.percentile(image, (1, 99)))
    if image.min() == image.max():
        return (*found, _span(0.0))
    if high - low < LEAST_RANGE:
        found.append(_span(high - low))
    saturated = sum(float(_whole_squares(image == level).mean()) for level in (0.0, 255.0))
    if saturated > LARGEST_SATURATED:
        advice = "what is saturated is lost; lower the detector's gain, or mind --range"
        found.append(Outside("saturated", 100 * saturated, 100 * LARGEST_SATURATED, " % of the area", advice))
    ranges = DEGRADATION_RANGES[degradation]
    spectrum = _Spectrum.of(image)
    return (*found, *_noise(spectrum, float(image.mean()), ranges), *_structure(spectrum, max(ranges["rx"])))


def _size(image: Image) -> list[Outside]:
    side = min(image.shape)
    if side >= PATCH_SIDE:
        return []
    return [Outside("shorter side", side, PATCH_SIDE, " px", "give a larger field")]


def _span(span: float) -> Outside:
    advice = "check the file, and name its black and white with --range LO,HI"
    return Outside("range of gray levels", span, LEAST_RANGE, "", advice)


def _whole_squares(saturated: NDArray[np.bool_]) -> NDArray[np.uint8]:
    squares: NDArray[np.uint8] = minimum_filter(saturated.astype(np.uint8), SATURATED_AREA)
    return squares


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """noise: its standard deviation (gray levels); floor: its power where fx is small (gray levels^2).

    rings: mean frequency (cycles/px), mean power (gray levels^2) and effective number of bins of each ring.
    """

    noise: float
    floor: float
    rings: tuple[Vector, Vector, Vector]

    @classmethod
    def of(cls, image: Image) -> "_Spectrum":
        windows = _windows(image)
        across = np.mean([noise_spectrum(window) for window in windows], axis=0)
        floor = float(across[fft.rfftfreq(windows[0].shape[1]) < STRUCTURE_BELOW].mean())
        doubled = np.full(len(across), 2.0)
        doubled[0] = 1.0
        rounding = 1 / 256**2 / 12
        noise = math.sqrt(float(np.average(across, weights=doubled)))
        return cls(noise, floor + rounding, _rings(windows))


def _windows(image: Image) -> list[Image]:
    """The image, or windows spread evenly over one that is larger."""
    starts = []
    for length in image.shape:
        number = min(WINDOWS, math.ceil(length / WINDOW))
        starts.append(np.linspace(0, max(0, length - WINDOW), number).astype(int))
    return [image[y : y + WINDOW, x : x + WINDOW] for y in starts[0] for x in starts[1]]


def _rings(windows: list[Image]) -> tuple[Vector, Vector, Vector]:
    height, width = windows[0].shape
    taper = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    fy, fx = np.meshgrid(fft.fftfreq(height), fft.rfftfreq(width), indexing="ij")
    frequency = np.hypot(fx, fy)
    lowest = 1.5 / min(height, width)
    chosen = (frequency >= lowest) & (frequency < BLUR_BELOW) & ~((fx == 0) & (fy < 0))
    power = np.mean(
        [np.abs(fft.rfft2((window - np.mean(window, dtype=np.float64)) * taper))[chosen] ** 2 for window in windows],
        axis=0,
    ) / np.sum(taper**2)
    ring = np.floor(np.log(frequency[chosen] / lowest) / math.log(1.12)).astype(int)
    count = np.bincount(ring)
    filled = count > 0
    size = count[filled].astype(np.float64)
    centre, level = (np.bincount(ring, values)[filled] / size for values in (frequency[chosen], power))
    return centre, level, size * len(windows) / HANN_CORRELATION


def _noise(spectrum: _Spectrum, level: float, ranges: dict[str, tuple[float, float]]) -> list[Outside]:
    """Variance of the forward model's noise at a mean level: sigma^2 + level / dose."""
    least, most = (
        math.sqrt(sigma**2 + level / dose) for sigma, dose in zip(ranges["sigma"], ranges["dose"][::-1], strict=True)
    )
    if spectrum.noise > NOISE_TOLERANCE * most:
        advice = "scan slower or average frames"
        return [Outside("noise", spectrum.noise, most, " gray levels", advice)]
    if spectrum.noise < QUIET_TOLERANCE * least:
        return [Outside("noise", spectrum.noise, least, " gray levels", "compare with the input, which needs little")]
    return []


def _structure(spectrum: _Spectrum, largest: float) -> list[Outside]:
    """Whether structure stands out of the noise at all and, if so, whether its spectrum ends as after a wider blur."""
    frequency, power, size = spectrum.rings
    low = frequency < max(STRUCTURE_BELOW, 2 * frequency[0])
    ratio = float(np.average(power[low], weights=size[low])) / spectrum.floor
    least = 1 + STRUCTURE_SIGNIFICANCE / math.sqrt(size[low].sum())
    if ratio < least:
        advice = "nothing tells it from pure noise, and what appears is invented; check the file, scan slower"
        return [Outside("structure", ratio, least, " x the noise's power", advice)]
    radius, evidence = _blur(spectrum, largest)
    if evidence < BLUR_EVIDENCE:
        return []
    return [Outside("blur radius", radius, largest, " px", "focus again, or shrink the image first")]


def _blur(spectrum: _Spectrum, largest: float) -> tuple[float, float]:
    """The blur radius (px) that explains the rings best, and twice the log likelihood that it has over all up to
    `largest`: Whittle likelihood of a power law under a circular aperture over the noise's floor.
    """
    frequency, power, size = spectrum.rings
    transfer = aperture_transfer(RADII[:, None] * frequency) ** 2
    scene = frequency ** -EXPONENTS[:, None]
    shapes = transfer[:, None] * scene
    first = shapes[..., :3].mean(axis=-1)
    guess = max(float(power[:3].mean()) - spectrum.floor, 1e-3) / np.maximum(first, 1e-30)
    deviance = np.full(len(RADII), np.inf)
    for amplitude in AMPLITUDES:
        model = (amplitude * guess)[..., None] * shapes + spectrum.floor
        value = 2 * (size * (np.log(model) + power / model)).sum(axis=-1)
        deviance = np.minimum(deviance, value.min(axis=1))
    trained = deviance[1.02 * largest >= RADII].min()
    return float(RADII[np.argmin(deviance)]), float(trained - deviance.min())


def _rounded(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
