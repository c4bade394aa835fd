"""Widths and edges of lines as curves along the line, free of the lines' tilt: what every roughness is made of."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Curves:
    """Edges and widths of n lines across N rows, measured at right angles to the lines; lengths in px.

    edges: (N, 2 n), left and right of each line in turn, without the common tilt; widths: (N, n); slope: tangent of
    the tilt; spacing: distance of two rows along the lines.
    """

    edges: "NDArray[np.float64]"
    widths: "NDArray[np.float64]"
    slope: float
    spacing: float

    @property
    def line_cds(self) -> "NDArray[np.float64]":
        """Mean width (n,) of each line."""
        return np.asarray(self.widths.mean(axis=0))


def straighten(positions: "NDArray[np.float64]") -> Curves:
    """Curves of edges (N, 2 n) as found along the rows: one slope for all is taken off, by least squares."""
    heights = np.arange(len(positions)) - (len(positions) - 1) / 2
    slope = float((heights @ positions).mean() / (heights @ heights))
    cosine = math.cos(math.atan(slope))
    edges = (positions - slope * heights[:, None]) * cosine
    return Curves(edges, edges[:, 1::2] - edges[:, 0::2], slope, 1 / cosine)


def three_sigma(variance: float, noise: float = 0.0) -> float:
    """3 sigma (px) of a variance, less that of the noise (both px^2); 0 where the noise is larger."""
    return 3 * math.sqrt(max(variance - noise, 0.0))
