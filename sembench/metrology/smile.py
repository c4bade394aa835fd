"""Where SMILE puts an edge: brightness evened out, the middle of the rows' extremes, a quartic through each edge.

Source: Mochi, SMILE2 (Paul Scherrer Institut, 2020), whose published widths this reproduces.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEGREE = 3


def flattened(image: "NDArray[np.floating]") -> "NDArray[np.float64]":
    """A (H, W) image less the cubic surface that fits its pixels above the mean best."""
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim != 2 or min(pixels.shape) < 2 or not np.isfinite(pixels).all():
        return pixels
    rows, columns = (_powers(size, 2 * DEGREE) for size in pixels.shape)
    bright = pixels > pixels.mean()
    moments = rows @ bright @ columns.T
    values = rows[: DEGREE + 1] @ np.where(bright, pixels, 0.0) @ columns[: DEGREE + 1].T
    terms = [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i)]
    normal = np.array([[moments[i + m, j + n] for m, n in terms] for i, j in terms])
    right = np.array([values[i, j] for i, j in terms])
    coefficients = np.zeros((DEGREE + 1, DEGREE + 1))
    for (i, j), value in zip(terms, np.linalg.lstsq(normal, right, rcond=1e-12)[0], strict=True):
        coefficients[i, j] = value
    return pixels - rows[: DEGREE + 1].T @ coefficients @ columns[: DEGREE + 1]


def middle_of_extremes(field: "NDArray[np.float64]") -> float:
    """Half the sum of the rows' median minimum and median maximum."""
    return float(np.median(field.min(axis=1)) + np.median(field.max(axis=1))) / 2


def quartic_shift(field: "NDArray[np.float64]", positions: "NDArray[np.float64]", threshold: float, half: int) -> float:
    """Mean distance (px, positive into the line) from edges to where quartics through their rows pass a threshold.

    field: lines vertical and bright; positions (edges, rows): left, right, left, ...; half: px on each side of the
    straight edge that a quartic is fitted to.
    """
    edges, rows = positions.shape
    heights = np.arange(rows) - (rows - 1) / 2
    slopes = positions @ heights / (heights @ heights)
    straight = positions.mean(axis=1, keepdims=True) + slopes[:, None] * heights
    middle = np.clip(np.rint(straight).astype(np.intp), half, field.shape[1] - 1 - half)
    around = np.lib.stride_tricks.sliding_window_view(field, 2 * half + 1, axis=1)[np.arange(rows), middle - half]
    u = np.arange(-half, half + 1)
    fine = np.linspace(-half, half, 16 * half + 1)
    smoothing = np.vander(fine / half, 5) @ np.linalg.pinv(np.vander(u / half, 5))
    sign = np.where(np.arange(edges) % 2 == 0, 1, -1)
    above = (around.reshape(-1, u.size) @ smoothing.T - threshold).reshape(edges, rows, fine.size) * sign[:, None, None]
    rising = (above[..., :-1] < 0) & (above[..., 1:] >= 0)
    distance = np.where(rising, np.abs(fine[:-1] + fine[1:]), np.inf)
    nearest = distance.argmin(axis=2)[..., None]
    before = np.take_along_axis(above, nearest, axis=2)[..., 0]
    after = np.take_along_axis(above, nearest + 1, axis=2)[..., 0]
    found = np.isfinite(distance.min(axis=2))
    part = before / np.where(found, before - after, 1.0)
    shift = sign[:, None] * (middle + fine[nearest[..., 0]] + part * (fine[1] - fine[0]) - positions)
    return float(shift[found].mean()) if found.any() else 0.0


def _powers(size: int, highest: int) -> "NDArray[np.float64]":
    """Powers 0..highest of a coordinate from -1 to 1, (highest + 1, size)."""
    return np.linspace(-1, 1, size) ** np.arange(highest + 1)[:, None]
