"""Gaussian smoothing."""

import math

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter

from sembench.restorer import Image, Restorer, check_image


class Gaussian(Restorer):
    """Gaussian smoothing, the plainest denoiser."""

    keeps_intensity = True

    class Settings(Restorer.Settings):
        sigma: float = Field(1.0, gt=0, le=50, description="standard deviation of the Gaussian, px")

    def tile_overlap(self) -> int:
        return math.ceil(4 * self.settings.sigma) + 1

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        return gaussian_filter(image, self.settings.sigma, output=np.float32)
