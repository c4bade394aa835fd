"""NAFNet as a restorer: what a practitioner would pick today."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from restorers.unet.feed_forward import FeedForward, seeded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from restorers.unet.feed_forward import Batch


Blocks = Annotated[int, Field(ge=1, le=32)]


class NafNet(FeedForward):
    """NAFNet, a U-Net without nonlinear activations, trained to the clean patch with the PSNR loss."""

    citation = "L. Chen et al., Simple baselines for image restoration, ECCV (2022)"

    class Settings(FeedForward.Settings):
        width: int = Field(32, ge=4, le=128, multiple_of=4, description="channels at the first resolution")
        blocks: tuple[Blocks, ...] = Field(
            (1, 1, 2), min_length=1, max_length=4, description="blocks at each resolution, down and again up"
        )
        fold: Literal[1, 2] = Field(2, description="first resolution: 2 the half, 1 the full, as the authors have it")
        middle: int = Field(1, ge=1, le=32, description="blocks at the coarsest resolution")
        criterion: Literal["psnr", "charbonnier"] = Field("psnr", description="loss; the authors': psnr")

    def network(self) -> "nn.Module":
        from restorers.nafnet.network import NAFNet

        own = self.settings
        network: Any = seeded(own.seed, lambda: NAFNet(own.width, own.blocks, own.middle, own.fold))
        return network

    def loss(self, network: "nn.Module", batch: "Batch") -> "Tensor":
        from restorers.nafnet.network import negative_psnr
        from restorers.unet.network import charbonnier

        criterion = negative_psnr if self.settings.criterion == "psnr" else charbonnier
        return criterion(network(batch["degraded"]), batch["clean"])
