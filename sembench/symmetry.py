"""How far a method's results for one image, turned and mirrored, lie apart."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

ORIENTATIONS = tuple((quarter_turns, mirrored) for mirrored in (False, True) for quarter_turns in range(4))
"""The eight symmetries of the square: mirrored left to right or not, then turned; the first leaves all as it is."""


def turned_spread(restore: Callable[[Pixels], Pixels], image: Pixels) -> Pixels:
    """Standard deviation of each pixel over the eight turned and mirrored images, each restored and turned back.

    restore: float32 (H, W) -> (H, W), gray levels; image: (H, W). Returns float32 (H, W), gray levels, 0 at least, of
    eight values about their mean (n - 1). Source of the eight: R. Timofte et al., Seven ways to improve example-based
    single image super resolution, CVPR (2016), who average over them.
    """
    first = np.zeros(image.shape)
    total, squares = np.zeros(image.shape), np.zeros(image.shape)
    for index, (turns, mirrored) in enumerate(ORIENTATIONS):
        turned = np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns), dtype=np.float32)
        turned.flags.writeable = False
        back = np.rot90(np.asarray(restore(turned), dtype=np.float64), -turns)
        back = back[:, ::-1] if mirrored else back
        if index == 0:
            first = back
        total += back - first
        squares += (back - first) ** 2
    number = len(ORIENTATIONS)
    variance = (squares - total**2 / number) / (number - 1)
    return np.sqrt(np.maximum(variance, 0.0)).astype(np.float32)
