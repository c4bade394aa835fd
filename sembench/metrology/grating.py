"""A grating in an image: which way its lines run, its pitch and slope, and where its edges are to a pixel or so."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.fft import fft, next_fast_len, rfft
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, minimum_filter1d, uniform_filter1d

from sembench.metrology.refusal import MeasurementRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST_SIDE = 64
SMALLEST_FEATURE = 4.0
FEWEST_LINES = 3
STEEPEST = math.tan(math.radians(10))
HIGHEST_FREQUENCY = 1 / 6
FEWEST_CYCLES = 4
LEAST_SHARE = 0.12
LARGEST_OTHER = 0.05
LEAST_COHERENCE = 0.5
LARGEST_IRREGULARITY = 0.15
WINDOWS = (3, 12)


@dataclass(frozen=True, eq=False)
class Grating:
    """Straight lines found in a field whose lines run vertically and are brighter than its spaces; lengths in px.

    field: float64 (rows, columns), the image itself, transposed where its lines are horizontal, negated where dark;
    slope: px across per px along; pitch, line_width: along a row; edges: (2 n,) left, right, left, ... of the complete
    lines at the middle row; half_window: px on each side of an edge that no neighbour claims.
    """

    field: "NDArray[np.float64]"
    transposed: bool
    slope: float
    pitch: float
    line_width: float
    edges: "NDArray[np.float64]"
    half_window: int

    @property
    def heights(self) -> "NDArray[np.float64]":
        """Row coordinates about the middle row."""
        return _centred(self.field.shape[0])


def find_grating(image: "NDArray[np.floating]", *, bright: bool) -> Grating:
    """Find the lines of a (H, W) image: brighter than the spaces, or darker.

    Raises MeasurementRefused where the image shows no single grating of at least three complete, regular lines.
    """
    pixels = _checked(image)
    frequency = _fundamental(pixels)
    transposed = abs(frequency[0]) > abs(frequency[1])
    if transposed:
        pixels, frequency = pixels.T, frequency[::-1]
    if frequency[1] < 0:
        frequency = (-frequency[0], -frequency[1])
    field = np.ascontiguousarray(pixels if bright else -pixels)
    slope = _slope(field, frequency)
    left, right = _coarse_edges(field, slope, 1 / frequency[1])
    return _complete(field, transposed, slope, left, right)


def _checked(image: "NDArray[np.floating]") -> "NDArray[np.float64]":
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim != 2:
        raise MeasurementRefused(f"not an image: an array of {pixels.ndim} axes, not of rows and columns")
    height, width = pixels.shape
    if min(height, width) < SMALLEST_SIDE:
        raise MeasurementRefused(f"image too small: {height} x {width} px, and each side must have {SMALLEST_SIDE}")
    total = pixels.sum()
    if not math.isfinite(total) and not np.isfinite(pixels).all():
        raise MeasurementRefused("image holds pixels that are not finite numbers")
    low, high = pixels.min(), pixels.max()
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        raise MeasurementRefused("image is constant")
    if low < -1e100 or high > 1e100:
        raise MeasurementRefused("gray levels are too large to compute with")
    return pixels


def _centred(count: int) -> "NDArray[np.float64]":
    return np.arange(count, dtype=np.float64) - (count - 1) / 2


def _fundamental(pixels: "NDArray[np.float64]") -> tuple[float, float]:
    """The strongest frequency (fy, fx) in cycles/px; refuses where it is not that of one grating."""
    height, width = pixels.shape
    rows, columns = next_fast_len(height, real=True), next_fast_len(width, real=True)
    window = (np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]).astype(np.float32)
    low, high = pixels.min(), pixels.max()
    tapered = ((pixels - pixels.mean()) / (high - low)).astype(np.float32) * window
    fx = np.fft.rfftfreq(columns)
    fx = fx[fx <= HIGHEST_FREQUENCY]
    fy = np.fft.fftfreq(rows)
    kept = np.abs(fy) <= HIGHEST_FREQUENCY
    fy = fy[kept]
    spectrum = fft(rfft(tapered, columns, axis=1)[:, : fx.size], rows, axis=0)[kept]
    power = spectrum.real**2 + spectrum.imag**2
    radius = fy[:, None] ** 2 + fx**2
    cycles = (fy[:, None] * height) ** 2 + (fx * width) ** 2
    power[(cycles < FEWEST_CYCLES**2) | (radius > HIGHEST_FREQUENCY**2)] = 0
    row, column = np.unravel_index(int(power.argmax()), power.shape)
    peak = (float(fy[row]), float(fx[column]))
    strongest, total = float(power[row, column]), float(power.sum(dtype=np.float64))
    near = np.zeros_like(power, dtype=bool)
    for sign in (1, -1):
        near |= ((fy[:, None] - sign * peak[0]) * height) ** 2 + ((fx - sign * peak[1]) * width) ** 2 <= 3.5**2
    if total <= 0 or power[near].sum(dtype=np.float64) < LEAST_SHARE * total:
        raise MeasurementRefused("no grating: no single period stands out")
    along = (fy[:, None] * peak[0] + fx * peak[1]) ** 2
    elsewhere = along < math.cos(math.radians(20)) ** 2 * radius * (peak[0] ** 2 + peak[1] ** 2)
    if power[elsewhere].max(initial=0) > LARGEST_OTHER * strongest:
        raise MeasurementRefused("repeats in two directions: not lines and spaces alone")
    return peak


def _slope(field: "NDArray[np.float64]", frequency: tuple[float, float]) -> float:
    """Px across per px along, from the phase of the fundamental along the lines."""
    rows, columns = field.shape
    first = -frequency[0] / frequency[1]
    if abs(first) > STEEPEST + 1 / (rows * frequency[1]):
        raise MeasurementRefused("lines are tilted by more than 10 degrees")
    wave = np.hanning(columns + 2)[1:-1] * np.exp(-2j * np.pi * frequency[1] * _centred(columns))
    weights = np.stack([wave.real - wave.real.mean(), wave.imag - wave.imag.mean()], axis=1)
    parts = field @ weights
    heights = _centred(rows)
    turned = (parts[:, 0] + 1j * parts[:, 1]) * np.exp(2j * np.pi * frequency[1] * first * heights)
    smooth = gaussian_filter1d(turned.real, 8.0) + 1j * gaussian_filter1d(turned.imag, 8.0)
    if np.abs(smooth).mean() < LEAST_COHERENCE * math.sqrt(np.mean(np.abs(turned) ** 2)):
        raise MeasurementRefused("rows do not agree on where the lines are")
    phase = np.unwrap(np.angle(smooth))
    slope = first - float(phase @ heights / (heights @ heights)) / (2 * math.pi * frequency[1])
    if abs(slope) > STEEPEST:
        raise MeasurementRefused("lines are tilted by more than 10 degrees")
    return slope


def _mean_profile(field: "NDArray[np.float64]", slope: float) -> "tuple[NDArray[np.float64], int]":
    """The mean over rows along the lines, and the column of its first value (at the middle row)."""
    rows, columns = field.shape
    shift = slope * _centred(rows)
    margin = math.ceil(abs(slope) * (rows - 1) / 2) + 1
    size = columns - 2 * margin
    if size < SMALLEST_SIDE // 2:
        raise MeasurementRefused("tilted lines leave the image: fewer than three stay inside it")
    whole = np.floor(shift)
    part = shift - whole
    views = np.lib.stride_tricks.sliding_window_view(field, size + 1, axis=1)
    aligned = views[np.arange(rows), margin + whole.astype(np.intp)]
    sums = np.stack([1 - part, part]) @ aligned
    return (sums[0, :-1] + sums[1, 1:]) / rows, margin


def _coarse_edges(
    field: "NDArray[np.float64]", slope: float, pitch: float
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Left and right edges of whole lines at the middle row, where the mean profile crosses its local middle."""
    profile, start = _mean_profile(field, slope)
    smooth = gaussian_filter1d(profile, 1.0)
    reach = round(pitch)
    high = uniform_filter1d(maximum_filter1d(smooth, reach + 1 + reach % 2), reach + 1 - reach % 2)
    low = uniform_filter1d(minimum_filter1d(smooth, reach + 1 + reach % 2), reach + 1 - reach % 2)
    above = smooth - (high + low) / 2
    before = np.flatnonzero((above[:-1] < 0) != (above[1:] < 0))
    position = start + before + above[before] / (above[before] - above[before + 1])
    rising = above[before] < 0
    if (rising[1:] == rising[:-1]).any():
        raise MeasurementRefused("edges do not alternate")
    first = 0 if rising.size and rising[0] else 1
    left, right = position[first::2], position[first + 1 :: 2]
    left = left[: right.size]
    if right.size < FEWEST_LINES:
        raise MeasurementRefused(f"too few lines: {right.size} complete, and {FEWEST_LINES} are needed")
    return left, right


def _complete(
    field: "NDArray[np.float64]",
    transposed: bool,
    slope: float,
    left: "NDArray[np.float64]",
    right: "NDArray[np.float64]",
) -> Grating:
    """The grating of those lines that stay inside the field in all rows."""
    rows, columns = field.shape
    steps = np.concatenate([np.diff(left), np.diff(right)])
    pitch = float(np.median(steps))
    width = float(np.median(right - left))
    if steps.std() > LARGEST_IRREGULARITY * pitch:
        raise MeasurementRefused("edges are not regularly spaced")
    narrower = min(width, pitch - width)
    if narrower < SMALLEST_FEATURE:
        raise MeasurementRefused(
            f"lines or spaces are {narrower:.2f} px wide: at least {SMALLEST_FEATURE:.0f} are needed"
        )
    half = int(np.clip(round(narrower / 2), *WINDOWS))
    spare = half + 3 + abs(slope) * (rows - 1) / 2
    inside = (left >= spare) & (right <= columns - 1 - spare)
    if inside.sum() < FEWEST_LINES:
        raise MeasurementRefused(f"too few lines: {inside.sum()} complete, and {FEWEST_LINES} are needed")
    edges = np.stack([left[inside], right[inside]], axis=1).ravel()
    return Grating(field, transposed, slope, pitch, width, edges, half)
