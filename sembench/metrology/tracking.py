"""Levels of lines and spaces as smooth surfaces, and edges followed along the lines by area: robust, smoothed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter1d

from sembench.metrology.refusal import MeasurementRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sembench.metrology.grating import Grating

CENTRAL_PART = 0.4
SMOOTHING_ROWS = (12.0, 6.0, 6.0)
BLOCK_ROWS = 16
LEAST_LOCAL_CONTRAST = 0.4
MOST_FAINT_BLOCKS = 0.05
CLIP = 4.0
LEAST_NOISE = 0.02
MOST_CLIPPED = 0.5


@dataclass(frozen=True, eq=False)
class Levels:
    """Gray levels at the edges, (edges, rows) each, as surfaces tell them, and the noise beside them.

    central: half width (px) of the middle of lines and spaces from which the levels come; noise_sigma: gray levels;
    clipped: part of the pixels there, in noise, that are at the end of the gray scale.
    """

    outside: "NDArray[np.float64]"
    inside: "NDArray[np.float64]"
    central: int
    noise_sigma: float
    clipped: float

    @property
    def contrast(self) -> "NDArray[np.float64]":
        """Line level minus space level, at the edges."""
        return self.inside - self.outside


class Field:
    """Sums of pixels along rows, in constant time a span."""

    def __init__(self, values: "NDArray[np.float64]") -> None:
        self.values = values
        self.rows, self.columns = values.shape
        self.offset = float(values.mean())
        self._sums = np.zeros((self.rows, self.columns + 1))
        np.cumsum(values - self.offset, axis=1, out=self._sums[:, 1:])
        self._starts = np.arange(self.rows) * (self.columns + 1)

    def span_sums(self, middle: "NDArray[np.intp]", half: int) -> "NDArray[np.float64]":
        """Sums of 2 half + 1 pixels about the columns middle (curves, rows), clipped so that spans stay inside."""
        first = np.clip(middle - half, 0, self.columns - 2 * half - 1) + self._starts
        sums = self._sums.ravel()
        return np.asarray(sums[first + (2 * half + 1)] - sums[first] + (2 * half + 1) * self.offset)

    def windows(self, middle: "NDArray[np.intp]", half: int) -> "NDArray[np.float64]":
        """Pixels (curves, rows, 2 half + 1) about the columns middle (curves, rows); right edges mirrored.

        The odd curves are right edges: their windows run from right to left, so that all lines lie at the end.
        """
        views = np.lib.stride_tricks.sliding_window_view(self.values, 2 * half + 1, axis=1)
        first = np.clip(middle - half, 0, views.shape[1] - 1)
        out = np.empty((*middle.shape, 2 * half + 1))
        rows = np.arange(self.rows)
        out[0::2] = views[rows, first[0::2]]
        out[1::2] = views[:, :, ::-1][rows, first[1::2]]
        return out


def rounded(positions: "NDArray[np.float64]") -> "NDArray[np.intp]":
    """The nearest pixel."""
    return np.rint(positions).astype(np.intp)


def straight_edges(grating: "Grating") -> "NDArray[np.float64]":
    """Positions (edges, rows) of the grating's straight edges."""
    return grating.edges[:, None] + grating.slope * grating.heights


def find_levels(field: Field, grating: "Grating", edges: "NDArray[np.float64]", known: Levels | None = None) -> Levels:
    """The levels at edges (edges, rows), from quadratic surfaces through the middles of lines and of spaces.

    known: levels found before, whose noise holds. Surfaces and not running means along each line: those follow the
    width, and take roughness away.
    Raises MeasurementRefused where the contrast changes sign or is missing along the lines.
    """
    narrower = min(grating.line_width, grating.pitch - grating.line_width)
    central = max(round(CENTRAL_PART * narrower / 2 - 0.5), 0)
    half_pitch = grating.pitch / 2
    line_middles = (edges[0::2] + edges[1::2]) / 2
    between = (edges[1:-1:2] + edges[2::2]) / 2
    space_middles = np.concatenate([line_middles[:1] - half_pitch, between, line_middles[-1:] + half_pitch])
    whole = (space_middles >= central + 1).all(axis=1) & (space_middles <= field.columns - 2 - central).all(axis=1)
    lines = field.span_sums(rounded(line_middles), central) / (2 * central + 1)
    spaces = field.span_sums(rounded(space_middles), central) / (2 * central + 1)
    inside = _surface(line_middles, lines, edges, field)
    outside = _surface(space_middles[whole], spaces[whole], edges, field)
    contrast = inside - outside
    if not (contrast > 0).all():
        raise MeasurementRefused("contrast between lines and spaces is not of one sign: try the other polarity")
    _check_blocks(lines, spaces, contrast)
    if known is not None:
        return Levels(outside, inside, central, known.noise_sigma, known.clipped)
    noise, spread = _noise(field, np.concatenate([line_middles, space_middles[whole]]))
    noisy = spread > LEAST_NOISE * float(contrast.mean())
    clipped = _clipped(field, line_middles, space_middles[whole]) if noisy else 0.0
    return Levels(outside, inside, central, noise, clipped)


def _surface(
    columns: "NDArray[np.float64]", values: "NDArray[np.float64]", edges: "NDArray[np.float64]", field: Field
) -> "NDArray[np.float64]":
    """A quadratic surface through values at columns (curves, rows), evaluated at the edges."""
    curves = len(columns)
    powers = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    if curves > 3:
        powers.append((2, 0))
    height = (np.arange(field.rows) - (field.rows - 1) / 2) / field.rows
    middle = (field.columns - 1) / 2
    x = (columns - middle) / field.columns
    basis = np.stack([(x**i * height**j).ravel() for i, j in powers])
    coefficients = np.linalg.lstsq(basis @ basis.T, basis @ values.ravel(), rcond=1e-10)[0]
    x = (edges - middle) / field.columns
    by_power = {power: float(c) for power, c in zip(powers, coefficients, strict=True)}
    rows = by_power[0, 0] + by_power[0, 1] * height + by_power[0, 2] * height**2
    return np.asarray(rows + x * (by_power[1, 0] + by_power[1, 1] * height + by_power.get((2, 0), 0.0) * x))


def _check_blocks(lines: "NDArray[np.float64]", spaces: "NDArray[np.float64]", contrast: "NDArray[np.float64]") -> None:
    blocks = lines.shape[1] // BLOCK_ROWS
    local = lines - (spaces[:-1] + spaces[1:]) / 2

    def means(curves: "NDArray[np.float64]") -> "NDArray[np.float64]":
        return np.asarray(curves[:, : blocks * BLOCK_ROWS].reshape(len(curves), blocks, BLOCK_ROWS).mean(axis=2))

    surface = (contrast[0::2] + contrast[1::2]) / 2
    if (means(local) < LEAST_LOCAL_CONTRAST * means(surface)).mean() > MOST_FAINT_BLOCKS:
        raise MeasurementRefused("contrast is missing along parts of the lines")


def _noise(field: Field, middles: "NDArray[np.float64]") -> tuple[float, float]:
    """Noise sigma of a pixel, without outliers and with, from differences of rows in the middle of lines and spaces."""
    column = rounded(np.clip((middles[:, :-1] + middles[:, 1:]) / 2, 0, field.columns - 1))
    row = np.arange(field.rows - 1)
    difference = (field.values[row + 1, column] - field.values[row, column]).ravel()
    spread = everything = float(np.sqrt(np.mean(difference**2)))
    for _ in range(5):
        kept = difference[np.abs(difference) <= CLIP * spread]
        spread = float(np.sqrt(np.mean(kept**2))) if kept.size else 0.0
    return spread / 2**0.5, everything / 2**0.5


def _clipped(field: Field, lines: "NDArray[np.float64]", spaces: "NDArray[np.float64]") -> float:
    """The larger part of line or space middles at the highest or lowest gray level of all."""
    rows = np.arange(field.rows)
    bright, dark = (field.values[rows, rounded(np.clip(m, 0, field.columns - 1))] for m in (lines, spaces))
    share = max(float((bright >= field.values.max()).mean()), float((dark <= field.values.min()).mean()))
    if share > MOST_CLIPPED:
        raise MeasurementRefused(
            f"saturated: {100 * share:.0f} % of the plateau pixels are at the end of the gray scale"
        )
    return share


def track_edges(field: Field, grating: "Grating") -> "tuple[NDArray[np.float64], Levels]":
    """Edges (edges, rows) followed by the area above the space level in a window, smoothed along the lines.

    Robust against noise, and too smooth for roughness: where the matched filter starts from.
    """
    half = grating.half_window
    sign = np.where(np.arange(grating.edges.size) % 2 == 0, 1.0, -1.0)[:, None]
    track = straight_edges(grating)
    levels = find_levels(field, grating, track)
    for step, rows in enumerate(SMOOTHING_ROWS):
        middle = np.clip(rounded(track), half, field.columns - 1 - half)
        size = 2 * half + 1
        area = (field.span_sums(middle, half) - size * levels.outside) / levels.contrast
        offset = np.clip(sign * (half + 0.5 - area), -(half + 1), half + 1)
        track = gaussian_filter1d(middle + offset, rows, axis=1, mode="nearest")
        if step == 1:
            levels = find_levels(field, grating, track, levels)
    return track, levels
