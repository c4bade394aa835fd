"""Noise2Noise: denoising learned from two noisy draws of one signal."""

from typing import TYPE_CHECKING

from restorers.unet.restorer import UNetRestorer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from restorers.unet.feed_forward import Batch


class Noise2Noise(UNetRestorer):
    """U-Net trained from one noisy draw to a second one of the same blurred patch (MSE); it denoises only.

    It assumes two draws of equal signal whose noise is independent and of mean 0; the clean patch is never seen, so
    neither blur nor gain and offset are undone.
    """

    citation = "J. Lehtinen et al., Noise2Noise: learning image restoration without clean data, ICML (2018)"

    def loss(self, network: "nn.Module", batch: "Batch") -> "Tensor":
        from restorers.unet.network import CONTRAST

        return ((network(batch["degraded"]) - batch["second"]) / CONTRAST).square().mean()
