"""Median filter."""

from pydantic import Field
from scipy.ndimage import median_filter

from sembench.restorer import Image, Restorer


class Median(Restorer):
    """Median filter over a square window."""

    class Settings(Restorer.Settings):
        size: int = Field(5, ge=1, le=31, description="side of the window, px")

    def restore(self, image: Image, /) -> Image:
        return median_filter(image, size=self.settings.size)
