"""Unsharp masking."""

import math

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter

from sembench.restorer import Image, Restorer, check_image


class Sharpen(Restorer):
    """Unsharp masking: smooth the noise, then add back what a wider smoothing removes."""

    version = 1
    licence = "Apache-2.0"
    citation = "R. C. Gonzalez, R. E. Woods, Digital Image Processing, 4th ed., Pearson 2018, section 3.6"
    keeps_intensity = True

    class Settings(Restorer.Settings):
        sigma: float = Field(1.5, gt=0, le=20, description="smoothing against noise, px")
        amount: float = Field(0.8, ge=0, le=10, description="how much detail is added back")

    def tile_overlap(self) -> int:
        return math.ceil(4 * self.settings.sigma) + math.ceil(4 * 3 * self.settings.sigma) + 2

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        smooth = gaussian_filter(image, self.settings.sigma)
        detail = smooth - gaussian_filter(smooth, 3 * self.settings.sigma)
        return np.clip(smooth + np.float32(self.settings.amount) * detail, 0, 255)
