"""Pictures that were written: their pixels, and which of them have a colour."""

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image


def decoded(path: Path) -> np.ndarray:
    """Pixels of a PNG, (H, W, 3) in 0..255."""
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def coloured(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels are exactly of one colour, (H, W) of bool."""
    return (pixels == np.rint(np.array(to_rgb(colour)) * 255)).all(axis=2)
