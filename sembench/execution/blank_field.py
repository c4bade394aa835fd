"""How much a method makes out of nothing: a blank field with an image's own noise, restored as the image is."""

from collections.abc import Callable

import numpy as np

from sembench.cases.flat import noise_like
from sembench.metrics.hallucination import invented_structure
from sembench.micrograph import to_grid
from sembench.optics import generator
from sembench.restorer import Image

NOISE_SIDE = 1024
"""Longest side (px) of the middle of an image off which its noise is read."""


def blank_field(image: Image, name: str) -> Image:
    """A field without features at the mean gray level of an image, with that image's noise: float32, on the grid.

    image: (H, W), gray levels; name: the noise is drawn by it. Sides are those of the image, 256 px at most. Variance
    of the noise and its correlation along x are those of the image's middle beyond 0.35 cycles/px along y.
    """
    top, left = (max(0, (side - NOISE_SIDE) // 2) for side in image.shape)
    middle = image[top : top + NOISE_SIDE, left : left + NOISE_SIDE]
    noise = noise_like(middle, generator(0, name, "blank field"))
    return to_grid(float(np.mean(image, dtype=np.float64)) + noise)


def invented_in(restore: Callable[[Image], Image], image: Image, name: str) -> float:
    """Structure that a method draws on the blank field of an image, as a share of what the noise itself shows of it.

    As the metric invented_structure: 0 flat, 1 as noisy as the input, above 1 made out of noise. image, name: as for
    blank_field. Raises UndefinedError where the image has no noise.
    """
    blank = blank_field(image, name)
    blank.flags.writeable = False
    return invented_structure(to_grid(np.asarray(restore(blank))), blank)
