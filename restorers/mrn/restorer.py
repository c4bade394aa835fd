"""The multi-scale refocusing network as a restorer."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from restorers.unet.feed_forward import FeedForward, seeded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from restorers.unet.feed_forward import Batch


class Mrn(FeedForward):
    """Multi-scale refocusing network: three stacked networks at 1/4, 1/2 and full scale, L1 at each."""

    citation = (
        "J. Na et al., Deep learning-based discriminative refocusing of scanning electron microscopy images "
        "for materials science, Acta Mater. 214 (2021)"
    )

    class Settings(FeedForward.Settings):
        width: int = Field(16, ge=4, le=128, multiple_of=4, description="channels")
        blocks: int = Field(8, ge=1, le=32, description="residual blocks at each scale; the authors': 16")

    def network(self) -> "nn.Module":
        from restorers.mrn.network import MultiScale

        network: Any = seeded(self.settings.seed, lambda: MultiScale(self.settings.width, self.settings.blocks))
        return network

    def loss(self, network: "nn.Module", batch: "Batch") -> "Tensor":
        from restorers.mrn.network import multi_scale_l1

        made: list[Tensor] = network.scales(batch["degraded"])  # type: ignore[operator]
        return multi_scale_l1(made, batch["clean"])
