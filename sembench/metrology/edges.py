"""Sub-pixel edges of lines, row by row, from the grating found in an image."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter1d

from sembench.metrology.lost_points import bridged, lost_points
from sembench.metrology.matched_filter import STEPS_PER_PX, MatchedFilter
from sembench.metrology.refusal import MeasurementRefused
from sembench.metrology.smile import quartic_shift
from sembench.metrology.template import Lattice, Template, fit_template
from sembench.metrology.tracking import Field, Levels, rounded, track_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sembench.metrology.grating import Grating

FARTHEST = 6
REACH_IN_BLURS = 3.5
MOST_LOST = 0.10
MOST_LOST_OF_AN_EDGE = 0.5
SMALLEST_TAIL = 1e-3
NEGLIGIBLE_NOISE = 0.02
PREDICTION_ROWS = (1.0, 2.0, 4.0)
SMALLEST_RIM = 0.05
HIGHEST_RIM = 3.9
LONGEST_RIM = 0.45
SMALLEST_OVERSHOOT = 0.03
MOST_CLIPPED = 0.02

BRIGHT_RIM = "bright rim: widths are those where it passes the level"
NO_RIM = "rim not resolved: measured at the plateaus' level"
CLIPPED = "gray levels clipped"


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of complete lines, left, right, left, ...: positions and lost (edges, rows), lost points interpolated.

    template: what an edge looks like; levels: plateau levels of space and line at the edges, completed; level: where
    between them an edge is; window: half width (px); flags: what to know before these edges are used.
    """

    positions: "NDArray[np.float64]"
    lost: "NDArray[np.bool_]"
    template: Template
    levels: Levels
    level: float
    window: int
    flags: tuple[str, ...]


def find_edges(grating: "Grating", *, level: float = 0.5, threshold: float | None = None, rim: bool = False) -> Edges:
    """Edges where the profile passes a level between the plateaus (0 space, 1 line), or a threshold in gray levels.

    rim: fit a bright rim, and take the level of the step under it; where it cannot be told from the step, go without.
    Raises MeasurementRefused where the lines are not resolved, or too many edge points are lost.
    """
    field = Field(grating.field)
    track, levels = track_edges(field, grating)
    first = _first_edges(field, grating, track, levels, rim=rim)
    template = _template(field, levels, first, rim=rim)
    flags = [CLIPPED] if levels.clipped > MOST_CLIPPED else []
    if rim and not _rim_resolved(template):
        rim = False
        first = _first_edges(field, grating, track, levels, rim=False)
        template = _template(field, levels, first, rim=False)
        flags.append(NO_RIM)
    elif not rim and template.overshoot() > SMALLEST_OVERSHOOT:
        flags.append(BRIGHT_RIM)
    found = _refined(field, levels, template, track, first.positions, first.half)
    completed = _completed(levels, template)
    if threshold is not None:
        shift = quartic_shift(field.values, found.positions, threshold, max(round(grating.line_width / 4), 3))
        space, line = float(completed.outside.mean()), float(completed.inside.mean())
        level = (threshold - space) / (line - space)
    else:
        shift = 0.0 if rim else template.level_at(level)
    lost, kept = _checked(found.lost)
    positions = bridged(found.positions[kept] + shift * _signs(len(found.positions))[kept], lost)
    levels = replace(completed, outside=completed.outside[kept], inside=completed.inside[kept])
    return Edges(positions, lost, template, levels, level, found.half, tuple(flags))


@dataclass(frozen=True, eq=False)
class _Found:
    """Positions and lost points (edges, rows), and the half width of their windows."""

    positions: "NDArray[np.float64]"
    lost: "NDArray[np.bool_]"
    half: int


@dataclass(frozen=True, eq=False)
class _Predicted:
    """Positions (edges, rows) that owe nothing to the noise of their own row, for a template about them.

    smear: their rms distance from the edge (px); scatter: rms of what noise leaves in their widths (px).
    """

    positions: "NDArray[np.float64]"
    smear: float
    scatter: float


@dataclass(frozen=True, eq=False)
class _First:
    """Edges by the mean profile, their predictions, half width of the windows, noise sigma over the contrast."""

    positions: "NDArray[np.float64]"
    predicted: _Predicted
    half: int
    noise: float


def _signs(edges: int) -> "NDArray[np.float64]":
    """1 for left edges, -1 for right edges, (edges, 1)."""
    return np.where(np.arange(edges) % 2 == 0, 1.0, -1.0)[:, None]


def _first_edges(
    field: Field, grating: "Grating", track: "NDArray[np.float64]", levels: Levels, *, rim: bool
) -> _First:
    """Edges by the mean profile along the track, neighbours in it at their mean distance."""
    half = grating.half_window
    noise = levels.noise_sigma / float(levels.contrast.mean())
    sign = _signs(len(track))
    windows, middle = _normalised(field, track, half, levels)
    offset = np.clip(sign * (track - middle), -0.5, 0.5)
    template = fit_template(windows, offset, _lattice(track, levels.central), noise, rim=rim)
    farthest = min(half - 1, FARTHEST)
    reach = _reach(template, half)
    matched = MatchedFilter(template.among_neighbours, reach, farthest + 0.5)
    inner = windows[:, :, half - reach : half + reach + 1] * (template.into - template.out) + template.out
    positions = middle + sign * matched.locate(inner, offset + template.offset, farthest)[0]
    variance = matched.noise_variance(noise * (template.into - template.out))
    return _First(positions, _predicted(positions, variance, template.shape.blur), half, noise)


def _normalised(
    field: Field, positions: "NDArray[np.float64]", half: int, levels: Levels
) -> "tuple[NDArray[np.float64], NDArray[np.intp]]":
    """Windows (edges, rows, 2 half + 1), 0 at the level of the spaces' middles and 1 at that of the lines', and where.

    Windows of right edges are mirrored: in all of them the line lies at the end.
    """
    middle = np.clip(rounded(positions), half, field.columns - 1 - half)
    windows = field.windows(middle, half)
    windows -= levels.outside[:, :, None]
    windows /= levels.contrast[:, :, None]
    return windows, middle


def _lattice(track: "NDArray[np.float64]", central: int, smear: float = 0.0, scatter: float = 0.0) -> Lattice:
    widths = track[1::2] - track[0::2]
    pitch = float((track[2:] - track[:-2]).mean())
    spread = math.sqrt(max(float(widths.var()) - scatter**2, 0.0))
    return Lattice(pitch, float(widths.mean()), spread, central, smear)


def _reach(template: Template, half: int) -> int:
    """Half width (px) of the window that holds all of an edge, at most half."""
    return min(half, math.ceil(REACH_IN_BLURS * template.shape.blur + 0.5))


def _predicted(positions: "NDArray[np.float64]", variance: float, blur: float) -> _Predicted:
    """Positions from the rows around each, smoothed so that they come closest; variance: of a position's noise (px^2).

    Without noise, the positions themselves: a mean edge about noisy positions looks sharper than it is.
    """
    if variance < NEGLIGIBLE_NOISE * blur**2:
        return _Predicted(positions, 0.0, 0.0)
    best, least, gain = positions, math.inf, 1.0
    for rows in PREDICTION_ROWS:
        weights = np.zeros(2 * round(4 * rows) + 1)
        weights[weights.size // 2] = 1
        weights = gaussian_filter1d(weights, rows)
        own = float(weights.max())
        around = (gaussian_filter1d(positions, rows, axis=1, mode="nearest") - own * positions) / (1 - own)
        spread = float(np.mean((around - positions) ** 2))
        if spread >= least:
            break
        best, least, gain = around, spread, float(weights @ weights - own**2) / (1 - own) ** 2
    rough = float(np.mean(np.diff(positions, 4, axis=1) ** 2)) / 70
    return _Predicted(best, math.sqrt(max(least - rough, 0.0)), math.sqrt(2 * gain * rough))


def _template(field: Field, levels: Levels, first: _First, *, rim: bool) -> Template:
    """The template about positions closer to the edges than the track."""
    near = first.predicted
    windows, middle = _normalised(field, near.positions, first.half, levels)
    offset = np.clip(_signs(len(middle)) * (near.positions - middle), -0.5, 0.5)
    lattice = _lattice(near.positions, levels.central, near.smear, near.scatter)
    return fit_template(windows, offset, lattice, first.noise, rim=rim)


def _rim_resolved(template: Template) -> bool:
    """Whether a fitted rim is one: wider than the blur, narrower than the line, not at the end of its range."""
    shape, width = template.shape, template.lattice.width - 2 * template.offset
    if shape.rim < SMALLEST_RIM:
        return True
    return shape.rim < HIGHEST_RIM and shape.blur < shape.rim_length < LONGEST_RIM * width


def _refined(
    field: Field,
    levels: Levels,
    template: Template,
    track: "NDArray[np.float64]",
    positions: "NDArray[np.float64]",
    half: int,
) -> _Found:
    """Each edge once more, without its neighbours' tails, which are taken from where they really are in each row."""
    sign = _signs(len(track))
    reach = _reach(template, half)
    windows, middle = _normalised(field, positions, reach, levels)
    windows *= template.into - template.out
    windows += template.out
    farthest = min(half - 1, FARTHEST)
    matched = MatchedFilter(template.single, reach, reach)
    for _ in range(2):
        found = sign * (positions - middle)
        tails = _tails(template, _gaps(positions), found, reach)
        alone = windows if tails is None else windows - tails
        found, stuck = matched.locate(alone, found, farthest)
        positions = middle + sign * found
        if tails is None:
            break
    squares = matched.mean_squares(alone, found)
    stuck |= np.abs(sign * (positions - track) - template.offset) >= farthest
    return _Found(positions, lost_points(stuck, squares, positions), reach)


def _gaps(positions: "NDArray[np.float64]") -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Distances (edges, rows) from each edge to the other edge of its line, and to the next edge across its space."""
    spaces = positions[2::2] - positions[1:-1:2]
    beyond = np.full((1, positions.shape[1]), float(spaces.mean()))
    across = np.empty_like(positions)
    across[0::2] = np.concatenate([beyond, spaces])
    across[1::2] = np.concatenate([spaces, beyond])
    return np.repeat(positions[1::2] - positions[0::2], 2, axis=0), across


def _tails(
    template: Template,
    gaps: "tuple[NDArray[np.float64], NDArray[np.float64]]",
    found: "NDArray[np.float64]",
    half: int,
) -> "NDArray[np.float64] | None":
    """What the neighbours of each edge add to its window: the fall of its own line and the foot of the next one.

    None where that is nothing.
    """
    pixels = np.arange(-half, half + 1)
    shape = template.shape
    farthest = math.ceil(half + 8 * shape.blur + (8 * shape.rim_length if shape.rim else 0))
    grid = np.arange(2 * farthest * STEPS_PER_PX + 1) / STEPS_PER_PX - farthest
    total = None
    for distance, inside in ((gaps[0] + found, True), (gaps[1] - found, False)):
        near = float(np.quantile(distance[:, :: max(1, distance.shape[1] // 64)], 0.01))
        nearest = (near - pixels[-1]) if inside else -(near + pixels[0])
        tail = shape(np.array([nearest])) - float(inside)
        if abs(float(tail[0])) < SMALLEST_TAIL:
            continue
        u = (grid[:, None] - pixels) if inside else (-grid[:, None] - pixels)
        table = shape(u.ravel()).reshape(u.shape) - float(inside)
        index = np.rint((distance + farthest) * STEPS_PER_PX).astype(np.intp)
        added = table[np.clip(index, 0, grid.size - 1, out=index)]
        total = added if total is None else total + added
    return total


def _completed(levels: Levels, template: Template) -> Levels:
    """The plateau levels that wide lines and spaces would have."""
    contrast = levels.contrast / (template.into - template.out)
    outside = levels.outside - contrast * template.out
    return replace(levels, outside=outside, inside=outside + contrast)


def _checked(lost: "NDArray[np.bool_]") -> "tuple[NDArray[np.bool_], NDArray[np.bool_]]":
    """Lost points of the edges that remain, and which remain: a line goes with an edge that is mostly lost."""
    if lost.mean() > MOST_LOST:
        raise MeasurementRefused(f"edge points lost: {100 * float(lost.mean()):.0f} % of them")
    bad = lost.mean(axis=1) > MOST_LOST_OF_AN_EDGE
    kept = np.repeat(~(bad[0::2] | bad[1::2]), 2)
    if kept.sum() < 6:
        raise MeasurementRefused("too few lines: edges of the others are lost")
    return lost[kept], kept
