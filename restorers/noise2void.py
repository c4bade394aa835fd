"""Noise2Void: denoising learned from single noisy images by predicting pixels that are hidden from the network."""

import math
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from restorers.unet.restorer import UNetRestorer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from restorers.unet.feed_forward import Batch

NEIGHBOURHOOD = 5
"""Side (px) of the square out of which a hidden pixel's replacement is drawn."""


class Noise2Void(UNetRestorer):
    """U-Net trained to predict hidden pixels of one noisy draw from their surroundings (MSE); it denoises only.

    It assumes that the noise has mean 0 and is independent from pixel to pixel, given the signal. The noise of real
    fast scans is correlated along x: a pixel's noise can then be read off its neighbours, and is kept as if it were
    signal. `structured` hides those neighbours along x too (StructN2V); it must be as long as the correlation.
    """

    citation = (
        "A. Krull et al., Noise2Void: learning denoising from single noisy images, CVPR (2019); "
        "C. Broaddus et al., Removing structured noise with self-supervised blind-spot networks, ISBI (2020)"
    )

    class Settings(UNetRestorer.Settings):
        masked: float = Field(0.1, ge=0.002, le=0.25, description="share of the pixels that are replaced")
        structured: int = Field(0, ge=0, le=20, description="px hidden on each side along x; 0: the pixel alone")

    def loss(self, network: "nn.Module", batch: "Batch") -> "Tensor":
        from restorers.unet.network import CONTRAST

        noisy = batch["degraded"]
        blind = hide(noisy, self.settings.masked, self.settings.structured)
        error = (network(blind.image) - noisy)[blind.predicted] / CONTRAST
        return error.square().mean()


class Blind(NamedTuple):
    """A noisy image (B, 1, H, W) with pixels replaced, which those are, and which of them are to be predicted."""

    image: "Tensor"
    replaced: "Tensor"
    predicted: "Tensor"


def hide(noisy: "Tensor", share: float, structured: int = 0) -> Blind:
    """Replace a share of the pixels by another pixel of the 5 x 5 px around, itself not replaced; torch's own draws.

    Stratified: the image is divided into equal cells, anew each time, one pixel drawn in each. With `structured` as
    many pixels on either side along x are replaced too, the cells being as much larger, and predicted are the drawn
    pixels alone. No predicted pixel's value is anywhere in the resulting image, unless another pixel has it by chance.
    """
    predicted = stratified(noisy, (2 * structured + 1) / share)
    replaced = predicted
    if structured:
        from torch.nn import functional

        wide = (1, 2 * structured + 1)
        replaced = functional.max_pool2d(predicted.float(), wide, stride=1, padding=(0, structured)) > 0
    image = noisy.clone()
    image[replaced] = _neighbours(noisy, replaced)
    return Blind(image, replaced, predicted)


def stratified(like: "Tensor", area: float) -> "Tensor":
    """A mask (B, 1, H, W): one pixel drawn in each cell of about `area` px, cells as square as whole sides allow.

    The grid of cells begins anywhere, so that each pixel is drawn with equal probability, one in the cell's area.
    """
    import torch

    rows, columns = cell_sides(area)
    b, _, height, width = like.shape
    device = like.device
    start_y = torch.randint(rows, (b, 1, 1), device=device)
    start_x = torch.randint(columns, (b, 1, 1), device=device)
    y = torch.arange(height, device=device).view(1, -1, 1) + start_y
    x = torch.arange(width, device=device).view(1, 1, -1) + start_x
    across = width // columns + 2
    drawn = torch.randint(rows * columns, (b, (height // rows + 2) * across), device=device)
    cell = (y // rows) * across + x // columns
    place = (y % rows) * columns + x % columns
    return (drawn.gather(1, cell.flatten(1)).view_as(place) == place).unsqueeze(1)


def cell_sides(area: float) -> tuple[int, int]:
    """Rows and columns of a cell: rows the whole number nearest to the root of the area, columns what is left.

    Of the rows from the root down to half of it, those that come nearest to the area are taken.
    """
    root = math.sqrt(area)
    choices = [
        (rows, max(1, round(area / rows))) for rows in range(max(1, math.ceil(root / 2)), max(2, round(root) + 1))
    ]
    return min(choices, key=lambda sides: (round(abs(sides[0] * sides[1] - area), 6), -sides[0]))


def _neighbours(noisy: "Tensor", replaced: "Tensor") -> "Tensor":
    """For each replaced pixel, in the mask's order, another one of the 5 x 5 px around that is not replaced itself."""
    import torch

    b, _, y, x = replaced.nonzero(as_tuple=True)
    height, width = noisy.shape[-2:]
    offsets = torch.arange(NEIGHBOURHOOD, device=noisy.device)
    half = NEIGHBOURHOOD // 2
    rows = (y - half).clamp(0, height - NEIGHBOURHOOD).unsqueeze(1) + offsets
    columns = (x - half).clamp(0, width - NEIGHBOURHOOD).unsqueeze(1) + offsets
    rows = rows.repeat_interleave(NEIGHBOURHOOD, 1)
    columns = columns.repeat(1, NEIGHBOURHOOD)
    score = torch.rand(rows.shape, device=noisy.device)
    score -= replaced[b.unsqueeze(1), 0, rows, columns].float()
    chosen = score.argmax(1, keepdim=True)
    return noisy[b, 0, rows.gather(1, chosen)[:, 0], columns.gather(1, chosen)[:, 0]]
