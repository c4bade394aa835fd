"""Three single-scale refocusing networks, each of which refines what the coarser one made.

Source: Na et al. 2021, Deep learning-based discriminative refocusing of scanning electron microscopy images for
materials science, Acta Materialia 214; blocks after Nah et al. 2017.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from restorers.unet.network import CONTRAST, LEVEL, Residual

SCALES = (4, 2, 1)
"""What the sides are divided by, coarse to fine."""


class SingleScale(nn.Module):
    """Convolution, residual blocks, convolution, the first features added, convolution to one channel."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.exit = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.first(x))
        return self.exit(first + self.last(self.blocks(first)))


class MultiScale(nn.Module):
    """The networks at 1/4, 1/2 and 1; a coarser one's output is enlarged and given to the next beside the image.

    Gray levels (B, 1, H, W), sides multiples of 4, to gray levels of equal shape.
    """

    multiple = 4

    def __init__(self, width: int = 16, blocks: int = 8) -> None:
        super().__init__()
        self.nets = nn.ModuleList(SingleScale(1 if i == 0 else 2, width, blocks) for i in range(len(SCALES)))

    def scales(self, gray: Tensor) -> list[Tensor]:
        """Restored gray levels at each of SCALES, float32, the last at full size."""
        image = (gray - LEVEL) / CONTRAST
        made: list[Tensor] = []
        for net, scale in zip(self.nets, SCALES, strict=True):
            x = smaller(image, scale)
            if made:
                coarser = functional.interpolate(made[-1], scale_factor=2, mode="bilinear", align_corners=False)
                x = torch.cat([x, coarser], 1)
            made.append(net(x.contiguous(memory_format=torch.channels_last)).float())
        return [LEVEL + CONTRAST * x for x in made]

    def forward(self, gray: Tensor) -> Tensor:
        return self.scales(gray)[-1]


def smaller(images: Tensor, scale: int) -> Tensor:
    """Images (B, 1, H, W) with sides divided by `scale`: means of its squares."""
    return functional.avg_pool2d(images, scale) if scale > 1 else images


def multi_scale_l1(made: list[Tensor], clean: Tensor) -> Tensor:
    """Mean over SCALES of the mean absolute error, as a share of the full scale, against the clean image at each."""
    errors = [(x - smaller(clean, scale)).abs().mean() for x, scale in zip(made, SCALES, strict=True)]
    return torch.stack(errors).mean() / 255
