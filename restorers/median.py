"""Median filter."""

from pydantic import Field
from scipy.ndimage import median_filter

from sembench.restorer import Image, Restorer, check_image


class Median(Restorer):
    """Median filter over a square window."""

    keeps_intensity = True

    class Settings(Restorer.Settings):
        size: int = Field(5, ge=1, le=31, description="side of the window, px")

    def tile_overlap(self) -> int:
        return int(self.settings.size) // 2

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        return median_filter(image, size=self.settings.size)
