"""Square windows over an image of any size, and the blend of what was made of each back into one image."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from sembench.errors import InputError

Stack = NDArray[np.float32]


def window_starts(length: int, side: int, overlap: int) -> list[int]:
    """Where windows of `side` px begin on an axis of `length` px: evenly spaced, `overlap` px or more shared."""
    if not 0 <= overlap < side // 3:
        raise InputError(f"window overlap of {overlap} px: give 0 to {side // 3 - 1}, less than a third of a window")
    number = 1 if length <= side else math.ceil((length - overlap) / (side - overlap))
    return [round(i * (length - side) / max(number - 1, 1)) for i in range(number)] if number > 1 else [0]


def window_weights(starts: list[int], side: int, overlap: int) -> NDArray[np.float64]:
    """Weights (windows, side) along one axis, whose sum is 1 at every pixel that a window covers.

    Flat at 1 but for half a Hann window over `overlap` px in the middle of what two neighbours share; where only one
    window reaches, at the image's borders too, it counts whole.
    """
    weights = np.ones((len(starts), side))
    falling = 0.5 * (1 + np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap)) if overlap else np.empty(0)
    for i, (left, right) in enumerate(pairwise(starts)):
        begin = right + (left + side - right - overlap) // 2
        weights[i, begin - left : begin - left + overlap] = falling
        weights[i, begin - left + overlap :] = 0
        weights[i + 1, : begin - right] = 0
        weights[i + 1, begin - right : begin - right + overlap] = 1 - falling
    return weights


def blend_windows(
    images: Stack, apply: Callable[[Stack], Stack], *, side: int = 224, overlap: int = 64, batch: int = 8
) -> Stack:
    """Cut (C, H, W) into windows, apply a model to batches of them, and blend its results into one (H, W) image.

    apply: (B, C, side, side) -> (B, side, side). Any size from 32 x 32 on: what is smaller than a window is continued
    by reflection. A model that gives back one channel gives back that channel of the image exactly.
    Raises InputError for an overlap of a third of a window or more: three windows would then meet.
    """
    height, width = images.shape[1:]
    grown = np.pad(images, ((0, 0), (0, max(0, side - height)), (0, max(0, side - width))), mode="reflect")
    axes = [window_starts(length, side, overlap) for length in grown.shape[1:]]
    row_weights, column_weights = (window_weights(starts, side, overlap) for starts in axes)
    blended = np.zeros(grown.shape[1:])
    places = list(product(enumerate(axes[0]), enumerate(axes[1])))
    for group in _groups(places, batch):
        windows = np.stack([grown[:, y : y + side, x : x + side] for (_, y), (_, x) in group])
        for ((i, y), (j, x)), made in zip(group, apply(np.ascontiguousarray(windows)), strict=True):
            blended[y : y + side, x : x + side] += row_weights[i][:, None] * column_weights[j] * made
    return blended[:height, :width].astype(np.float32)


def _groups(
    items: list[tuple[tuple[int, int], tuple[int, int]]], size: int
) -> Iterator[list[tuple[tuple[int, int], tuple[int, int]]]]:
    return (items[i : i + size] for i in range(0, len(items), size))
