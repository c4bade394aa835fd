"""The least-squares position of a known edge in windows of pixels, for all windows at once."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

STEPS_PER_PX = 32
FIRST_STEPS = 2
MOST_STEPS = 6
CONVERGED = 0.6 / STEPS_PER_PX
DERIVATIVE_STEP = 1e-4


class MatchedFilter:
    """An edge tabulated in windows of 2 half + 1 px, by its position from the middle, -reach..reach px.

    edge: the profile at distances u (px) from the edge, rising with u. The position that minimises the squared
    residual is where its product with the profile's slope vanishes: Gauss-Newton steps from the nearest of a table of
    positions cost a product of each window with a row of the table.
    """

    def __init__(self, edge: "Callable[[NDArray[np.float64]], NDArray[np.float64]]", half: int, reach: float) -> None:
        self._middle = math.ceil(reach * STEPS_PER_PX)
        self._grid = np.arange(-self._middle, self._middle + 1) / STEPS_PER_PX
        u = np.arange(-half, half + 1) - self._grid[:, None]
        self._values = edge(u.ravel()).reshape(u.shape)
        rise = edge((u + DERIVATIVE_STEP).ravel()) - edge((u - DERIVATIVE_STEP).ravel())
        self._slopes = rise.reshape(u.shape) / (2 * DERIVATIVE_STEP)
        self._expected = (self._slopes * self._values).sum(axis=1)
        self._response = np.maximum((self._slopes**2).sum(axis=1), 1e-12)

    def noise_variance(self, sigma: float) -> float:
        """Variance (px^2) of a position, from white noise of a sigma in the profile's unit."""
        return sigma**2 / float(self._response[self._middle])

    def locate(
        self, windows: "NDArray[np.float64]", start: "NDArray[np.float64]", farthest: float
    ) -> "tuple[NDArray[np.float64], NDArray[np.bool_]]":
        """Positions of edges in windows (..., 2 half + 1), and which stopped at the limit, farthest px from start."""
        rows = windows.reshape(-1, windows.shape[-1])
        first = start.ravel()
        low = np.maximum(first - farthest, self._grid[0])
        high = np.minimum(first + farthest, self._grid[-1])
        position = np.clip(first, low, high)
        for _ in range(FIRST_STEPS):
            before, position = position, np.clip(self._step(rows, position), low, high)
        moving = np.flatnonzero(np.abs(position - before) > CONVERGED)
        for _ in range(MOST_STEPS - FIRST_STEPS):
            if moving.size == 0:
                break
            here = position[moving]
            there = np.clip(self._step(rows[moving], here), low[moving], high[moving])
            position[moving] = there
            moving = moving[np.abs(there - here) > CONVERGED]
        stuck = (position <= low) | (position >= high)
        return position.reshape(start.shape), stuck.reshape(start.shape)

    def mean_squares(self, windows: "NDArray[np.float64]", position: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """Mean squared residual of each window about the edge at a position."""
        residual = windows - self._values[self._nearest(position)]
        return np.asarray(np.einsum("...i,...i->...", residual, residual) / windows.shape[-1])

    def _nearest(self, position: "NDArray[np.float64]") -> "NDArray[np.intp]":
        index = np.rint(position * STEPS_PER_PX).astype(np.intp) + self._middle
        return np.clip(index, 0, self._grid.size - 1, out=index)

    def _step(self, rows: "NDArray[np.float64]", position: "NDArray[np.float64]") -> "NDArray[np.float64]":
        index = self._nearest(position)
        excess = np.einsum("ij,ij->i", rows, self._slopes[index]) - self._expected[index]
        return np.asarray(self._grid[index] - np.clip(excess / self._response[index], -1, 1))
