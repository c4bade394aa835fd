"""Edge points that cannot be trusted: which they are, and a bridge over them."""

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import binary_dilation, median_filter, uniform_filter1d

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_STUCK = 0.5
LOST_RESIDUAL = (2.5, 0.06)
LOST_JUMP = (8 * 1.4826, 1.5)
ROWS = 5
MEDIAN_ROWS = 7


def lost_points(
    stuck: "NDArray[np.bool_]", squares: "NDArray[np.float64]", positions: "NDArray[np.float64]"
) -> "NDArray[np.bool_]":
    """Points (edges, rows) whose window does not look like the edge, which ran away in a row, or which jump.

    stuck: stopped at the limit of the search; squares: mean squared residual, in units of the step.
    A point alone that noise drove to the limit is kept: to bridge it would take white noise out, and leave what is not.
    """
    smooth = uniform_filter1d(squares, ROWS, axis=1, mode="nearest")
    factor, least = LOST_RESIDUAL
    lost = smooth > max(factor * float(np.median(smooth)), least)
    if lost.any():
        lost = binary_dilation(lost, np.ones((1, 5), dtype=bool))
    if stuck.any():
        lost |= uniform_filter1d(stuck.astype(np.float64), ROWS, axis=1, mode="nearest") > MOST_STUCK
    factor, least = LOST_JUMP
    curvature = np.abs(positions[:, 1:-1] - (positions[:, :-2] + positions[:, 2:]) / 2)
    if curvature.max() > least / 2:
        jump = np.abs(positions - median_filter(positions, size=(1, MEDIAN_ROWS), mode="nearest"))
        lost |= jump > max(factor * float(np.median(jump)), least)
    return np.asarray(lost)


def bridged(positions: "NDArray[np.float64]", lost: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """Positions (edges, rows) with lost points interpolated along each edge, of which none is lost altogether."""
    if not lost.any():
        return positions
    rows = positions.shape[1]
    kept = np.flatnonzero(~lost.ravel())
    target = np.flatnonzero(lost.ravel())
    after = np.searchsorted(kept, target)
    before = kept[np.maximum(after - 1, 0)]
    after = kept[np.minimum(after, kept.size - 1)]
    curve = target // rows
    before = np.where(before // rows == curve, before, after)
    after = np.where(after // rows == curve, after, before)
    flat = positions.ravel().copy()
    part = np.clip((target - before) / np.maximum(after - before, 1), 0, 1)
    flat[target] = flat[before] + part * (flat[after] - flat[before])
    return flat.reshape(positions.shape)
