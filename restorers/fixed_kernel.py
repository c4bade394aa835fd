"""The one fixed kernel of the classical deconvolutions, and the reflected border that they need."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sembench.optics import airy_psf
from sembench.restorer import Image, Restorer


class KernelSettings(Restorer.Settings):
    """Radius and exponent of the assumed Airy kernel."""

    radius: float = Field(15.5, ge=0.5, le=60, description="kernel radius rx = ry, px")
    beta: float = Field(1.95, ge=1, le=3, description="kernel exponent")


@lru_cache(maxsize=4)
def fixed_kernel(radius: float, beta: float) -> NDArray[np.float64]:
    """The Airy kernel that a deconvolution assumes for every image: (k, k), sum 1."""
    return airy_psf(radius, radius, beta, 0.0)


def pad(image: Image, half: int) -> NDArray[np.float32]:
    """Scale to 0..1 and reflect the border by half a kernel, again and again where the image is smaller than that."""
    return np.pad(image / np.float32(255), half, mode="reflect")


def cut(padded: NDArray[np.floating], half: int) -> Image:
    """Undo `pad`: cut the border, clip to 0..1, scale to 0..255."""
    inner = padded[half : padded.shape[0] - half, half : padded.shape[1] - half]
    return (np.clip(inner, 0, 1) * 255).astype(np.float32)
