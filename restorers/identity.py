"""The image as it came."""

from sembench.restorer import Image, Restorer


class Input(Restorer):
    """The degraded image as it came: what every method must beat."""

    def restore(self, image: Image, /) -> Image:
        return image
