"""The compact U-Net that unet, noise2noise and noise2void share.

Source: Ronneberger et al. 2015, U-Net; residual blocks as in He et al. 2016, skips added instead of concatenated.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVEL, CONTRAST = 128.0, 64.0
"""Gray level that enters the networks as 0, and the gray levels of one unit."""


class Residual(nn.Module):
    """Two 3 x 3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(x), inplace=True))


class UNet(nn.Module):
    """Residual blocks at four resolutions, channels doubling from `width` on, the two halves joined by addition.

    Gray levels (B, 1, H, W), sides multiples of 8, to gray levels of equal shape. It predicts a residual and starts as
    the identity. Each output pixel sees 64 px in every direction.
    """

    multiple = 8

    def __init__(self, width: int = 16, coarse_blocks: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        pairs = list(pairwise(widths))
        self.entry = nn.Conv2d(1, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(Residual(channels) for channels in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.coarse = nn.Sequential(*(Residual(widths[-1]) for _ in range(coarse_blocks)))
        self.ups = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in pairs)
        self.up_blocks = nn.ModuleList(Residual(channels) for channels in widths[:-1])
        self.exit = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def forward(self, gray: Tensor) -> Tensor:
        x = self.entry(((gray - LEVEL) / CONTRAST).contiguous(memory_format=torch.channels_last))
        x = down_and_up(x, self.down_blocks, self.downs, self.coarse, self.ups, self.up_blocks)
        return gray + CONTRAST * self.exit(x).float()


def down_and_up(
    x: Tensor,
    down_blocks: nn.ModuleList,
    downs: nn.ModuleList,
    coarse: nn.Module,
    ups: nn.ModuleList,
    up_blocks: nn.ModuleList,
) -> Tensor:
    """Features (B, C, H, W) to the coarsest resolution and back, what was on the way down added on the way up.

    All lists run from fine to coarse; an `up` gives four times the channels of its finer side, which are unfolded.
    """
    skips = []
    for block, down in zip(down_blocks, downs, strict=True):
        x = block(x)
        skips.append(x)
        x = down(x)
    x = coarse(x)
    for skip, up, block in reversed(list(zip(skips, ups, up_blocks, strict=True))):
        x = block(skip + functional.pixel_shuffle(up(x), 2))
    return x


def charbonnier(restored: Tensor, wanted: Tensor) -> Tensor:
    """Mean of sqrt(e^2 + eps^2), e the difference of gray levels as a share of the full scale, eps 1e-3.

    Source: Charbonnier et al. 1994; eps as in the paper's adaptation loss.
    """
    return (((restored.float() - wanted) / 255).square() + 1e-6).sqrt().mean()
