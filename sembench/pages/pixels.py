"""8-bit pixels as an address that holds them, so that a page needs no file beside it."""

from io import BytesIO
from typing import TYPE_CHECKING

from sembench.pages.document import png_uri, webp_uri

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUALITY = 85
"""WebP quality (0..100) of gray pixels."""


def png(pixels: "NDArray[np.uint8]") -> str:
    """Gray (H, W) or colour (H, W, 3) pixels, exactly, as a PNG."""
    from PIL import Image

    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return png_uri(content.getvalue())


def webp(pixels: "NDArray[np.uint8]") -> str:
    """As a WebP, a tenth to a half of the PNG; exactly as a PNG where Pillow was built without WebP.

    Gray pixels lose a little; coloured ones nothing, because WebP with loss halves the resolution of colours.
    """
    from PIL import Image, features

    if not features.check("webp"):
        return png(pixels)
    content, coloured = BytesIO(), pixels.ndim == 3
    Image.fromarray(pixels).save(content, "WEBP", method=6, lossless=coloured, quality=100 if coloured else QUALITY)
    return webp_uri(content.getvalue())
