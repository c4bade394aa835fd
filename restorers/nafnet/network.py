"""NAFNet: a U-Net of blocks without nonlinear activations.

Source: Chen et al. 2022, Simple baselines for image restoration; the local mean at test time: Chu et al. 2022,
Improving image restoration by revisiting global information aggregation.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from restorers.unet.network import CONTRAST, LEVEL, down_and_up

TRAINED_SIDE = 224
"""Side (px) of the images over which the attention's mean is taken in training, and of the window in larger ones."""


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gate(x: Tensor) -> Tensor:
    """Simple gate: the product of the two halves of the channels."""
    one, other = x.chunk(2, 1)
    return one * other


def local_mean(x: Tensor, side: int) -> Tensor:
    """Mean of (B, C, H, W) over the `side` x `side` px around each pixel, the window kept inside the image.

    (B, C, 1, 1) where the image is no larger than the window.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        if length <= side:
            x = x.mean(axis, keepdim=True)
            continue
        total = functional.pad(x.float().cumsum(axis), (0, 0, 1, 0) if axis == 2 else (1, 0))
        window = total.narrow(axis, side, length - side + 1) - total.narrow(axis, 0, length - side + 1)
        place = torch.arange(length, device=x.device).sub(side // 2).clamp(0, length - side)
        x = window.index_select(axis, place) / side
    return x


class Block(nn.Module):
    """Depthwise convolution with gate and channel attention, then a gated feed-forward layer; both start at zero."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.feed_in = nn.Conv2d(channels, 2 * channels, 1)
        self.feed_out = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = gate(self.depthwise(self.widen(self.norm1(x))))
        x = x + self.beta * self.narrow(y * self.attention(local_mean(y, self.window)))
        return x + self.gamma * self.feed_out(gate(self.feed_in(self.norm2(x))))


class NAFNet(nn.Module):
    """Blocks at len(blocks) + 1 resolutions, channels doubling from `width` on, the two halves joined by addition.

    blocks: at each resolution of the way down, the same number on the way up; middle: at the coarsest. fold: 2 folds
    squares of 2 x 2 px into channels, so that the first resolution is the half. Gray levels (B, 1, H, W), sides
    multiples of `multiple`, to gray levels of equal shape; it predicts a residual.
    """

    def __init__(self, width: int = 32, blocks: Sequence[int] = (1, 1, 2), middle: int = 1, fold: int = 2) -> None:
        super().__init__()
        self.fold = fold
        self.multiple = fold * 2 ** len(blocks)
        widths = [width * 2**i for i in range(len(blocks) + 1)]
        windows = [TRAINED_SIDE // fold // 2**i for i in range(len(blocks) + 1)]
        pairs = list(pairwise(widths))
        levels = list(zip(widths, windows, blocks, strict=False))
        self.entry = nn.Conv2d(fold**2, width, 3, padding=1)
        self.down_blocks = nn.ModuleList(_blocks(*level) for level in levels)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.middle = _blocks(widths[-1], windows[-1], middle)
        self.ups = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1, bias=False) for fine, coarse in pairs)
        self.up_blocks = nn.ModuleList(_blocks(*level) for level in levels)
        self.exit = nn.Conv2d(width, fold**2, 3, padding=1)

    def forward(self, gray: Tensor) -> Tensor:
        x = functional.pixel_unshuffle((gray - LEVEL) / CONTRAST, self.fold)
        x = self.entry(x.contiguous(memory_format=torch.channels_last))
        x = down_and_up(x, self.down_blocks, self.downs, self.middle, self.ups, self.up_blocks)
        return gray + CONTRAST * functional.pixel_shuffle(self.exit(x).float(), self.fold)


def _blocks(channels: int, window: int, number: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels, window) for _ in range(number)))


def negative_psnr(restored: Tensor, wanted: Tensor) -> Tensor:
    """Mean over images of -PSNR in dB, gray levels 0..255, the squared error of the full scale raised by 1e-8."""
    error = ((restored.float() - wanted) / 255).square().mean((1, 2, 3))
    return 10 * (error + 1e-8).log10().mean()
