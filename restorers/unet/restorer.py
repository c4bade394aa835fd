"""The U-Net supervised to the clean patch: the plain rival of every other learned method."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from restorers.unet.feed_forward import FeedForward, seeded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from restorers.unet.feed_forward import Batch


class UNetRestorer(FeedForward):
    """What the restorers with the shared U-Net have in common: its sizes."""

    citation = "O. Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation, MICCAI (2015)"

    class Settings(FeedForward.Settings):
        width: int = Field(16, ge=4, le=128, multiple_of=4, description="channels at full resolution")
        coarse_blocks: int = Field(2, ge=1, le=16, description="residual blocks at an eighth of the resolution")

    def network(self) -> "nn.Module":
        from restorers.unet.network import UNet

        network: Any = seeded(self.settings.seed, lambda: UNet(self.settings.width, self.settings.coarse_blocks))
        return network


class Unet(UNetRestorer):
    """U-Net trained from the degraded to the clean patch with the Charbonnier loss."""

    def loss(self, network: "nn.Module", batch: "Batch") -> "Tensor":
        from restorers.unet.network import charbonnier

        return charbonnier(network(batch["degraded"]), batch["clean"])
