"""The noise level of one image, as bm3d and tv need it."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter


def noise_sigma(image: NDArray[np.floating]) -> float:
    """Standard deviation of the noise in units of the image: median |r - median r| / 0.6745, r = y - median3x3(y)."""
    residual = image - median_filter(image, size=3)
    return float(np.median(np.abs(residual - np.median(residual))) / 0.6745)
