"""The two levels of an image of bright features on a darker ground, as smooth surfaces over the field."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SEPARATION_ROUNDS = 5
SMALLEST_SHARE = 0.001
CLIP_ROUNDS = 2
QUADRATIC_FEATURES, LINEAR_FEATURES = 15, 6


@dataclass(frozen=True, eq=False)
class Surface:
    """A polynomial of second degree over an image: coefficients (3, 3), powers of y down and of x across."""

    coefficients: Array
    shape: tuple[int, int]

    def image(self) -> Array:
        """The surface on every pixel, (H, W)."""
        down, across = (_powers(side, max(self.shape))[:, :3] for side in self.shape)
        one, two, three = self.coefficients @ across.T
        rise = down[:, 1:2] * three
        rise += two
        rise *= down[:, 1:2]
        rise += one
        return np.asarray(rise)

    def at(self, x: Array, y: Array) -> Array:
        """The surface at positions in px, of any one shape."""
        longest = max(self.shape)
        across, down = (x - (self.shape[1] - 1) / 2) / longest, (y - (self.shape[0] - 1) / 2) / longest
        one, two, three = (row[0] + across * (row[1] + across * row[2]) for row in self.coefficients)
        return np.asarray(one + down * (two + down * three))


def _powers(side: int, longest: int) -> Array:
    return np.vander((np.arange(side) - (side - 1) / 2) / longest, 5, increasing=True)


def _terms(degree: int) -> list[tuple[int, int]]:
    return [(down, across) for down in range(degree + 1) for across in range(degree + 1 - down)]


def degree_for(features: int) -> int:
    """Degree of the surface that so many scattered features can hold."""
    return 2 if features >= QUADRATIC_FEATURES else 1 if features >= LINEAR_FEATURES else 0


def fit_levels(
    image: Array, cover: Array, weight: Array, degree: int, *, ground_degree: int = 2
) -> tuple[Surface, Surface]:
    """Ground level and contrast of image = ground + cover * contrast, by weighted least squares.

    image, cover (0 ground .. 1 feature), weight: (H, W). ground_degree, degree: of the surfaces of ground and contrast.
    """
    height, width = image.shape
    longest = max(image.shape)
    down, across = np.ascontiguousarray(_powers(height, longest).T), _powers(width, longest)
    ground_terms, contrast_terms = _terms(ground_degree), _terms(degree)

    def moments(values: Array) -> Array:
        return down @ values @ across

    covered = weight * cover
    mixed = moments(covered)
    blocks = [[moments(weight), mixed], [mixed, moments(covered * cover)]]
    right = [moments(weight * image), moments(covered * image)]
    labelled = [(0, term) for term in ground_terms] + [(1, term) for term in contrast_terms]
    normal = np.array([[blocks[i][j][p[0] + q[0], p[1] + q[1]] for j, q in labelled] for i, p in labelled])
    vector = np.array([right[i][p] for i, p in labelled])
    scale = 1 / np.sqrt(np.maximum(np.diag(normal), 1e-30))
    solved = scale * np.linalg.lstsq(normal * scale * scale[:, None], vector * scale, rcond=1e-12)[0]
    coefficients = np.zeros((2, 3, 3))
    for (which, term), value in zip(labelled, solved, strict=True):
        coefficients[(which, *term)] = value
    return Surface(coefficients[0], (height, width)), Surface(coefficients[1], (height, width))


def separate(smooth: Array, *, ground_degree: int = 2) -> Mask | None:
    """Where a smoothed image (H, W) lies above the middle between its two levels; None where it has not two levels.

    The first split is Otsu's, about the ground's trend; then the levels of both parts are fitted in turn, as long as
    they explain the image better.
    """
    from skimage.filters import threshold_otsu

    ones = np.ones_like(smooth)
    trend = fit_levels(smooth, np.zeros_like(smooth), ones, 0, ground_degree=ground_degree)[0]
    flattened = smooth - trend.image()
    if np.ptp(flattened) <= 1e-9 * max(float(np.abs(smooth).max()), 1e-300):
        return None
    above: Mask = flattened > threshold_otsu(flattened)
    best, least = above, math.inf
    for _ in range(SEPARATION_ROUNDS):
        if not SMALLEST_SHARE < above.mean() < 1 - SMALLEST_SHARE:
            break
        cover = above.astype(np.float64)
        ground, contrast = fit_levels(smooth, cover, ones, 0, ground_degree=ground_degree)
        step = float(contrast.coefficients[0, 0])
        level = ground.image()
        unexplained = float(np.mean((smooth - level - step * cover) ** 2))
        if unexplained >= least or step <= 0:
            break
        best, least = above, unexplained
        above = smooth > level + 0.5 * step
    return None if math.isinf(least) else best


def typical(smooth: Array, cover: Array, chosen: Mask, degree: int) -> Mask:
    """The chosen pixels less those that lie far from the levels fitted through them (defects, half-open features)."""
    kept = chosen
    for _ in range(CLIP_ROUNDS):
        ground, contrast = fit_levels(smooth, cover, kept.astype(np.float64), degree)
        away = np.abs(smooth - ground.image() - cover * contrast.image())
        limit = max(4 * 1.4826 * float(np.median(away[chosen])), 0.1 * abs(float(contrast.coefficients[0, 0])))
        kept = chosen & (away <= limit)
        if not kept.any():
            return chosen
    return kept
