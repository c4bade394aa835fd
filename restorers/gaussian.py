"""Gaussian smoothing."""

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter

from sembench.restorer import Image, Restorer


class Gaussian(Restorer):
    """Gaussian smoothing, the plainest denoiser."""

    class Settings(Restorer.Settings):
        sigma: float = Field(1.0, gt=0, le=50, description="standard deviation of the Gaussian, px")

    def restore(self, image: Image, /) -> Image:
        return gaussian_filter(image, self.settings.sigma, output=np.float32)
