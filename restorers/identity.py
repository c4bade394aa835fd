"""The image as it came."""

from sembench.restorer import Image, Restorer, check_image


class Input(Restorer):
    """The degraded image as it came: what every method must beat."""

    keeps_intensity = True

    def tile_overlap(self) -> int:
        return 0

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        return image
