"""Restorers that are one network from gray levels to gray levels: their fit, and images of any size."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sembench.errors import InputError
from sembench.restorer import Image, Restorer, TrainingSet, check_image

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = dict[str, Tensor]

MARGIN = 160
"""Surroundings of a tile (px) that the networks see and that are cut off again."""


class FeedForward(Restorer):
    """What such restorers share: settings of the fit, the fit, whole images or tiles."""

    version = 1
    settings_after_fit = ("tile",)

    class Settings(Restorer.Settings):
        degradation: Literal["none", "paper", "broad"] = Field(
            "none", description="training degradation, filled in from the protocol"
        )
        seed: int = Field(0, ge=0, le=2**31, description="seed of patches and first weights")
        learning_rate: float = Field(1e-3, gt=0, le=0.1, description="learning rate of AdamW")
        weight_decay: float = Field(0.0, ge=0, le=1, description="weight decay of AdamW")
        schedule: Literal["cosine", "constant"] = Field("cosine", description="course of the learning rate")
        tile: int = Field(1024, ge=64, le=16384, multiple_of=16, description="side (px) above which tiles are used")

    _network: "nn.Module | None" = None

    def network(self) -> "nn.Module":
        """The network with the weights that its seed gives; its `multiple` is what sides must be multiples of."""
        raise NotImplementedError

    def loss(self, network: "nn.Module", batch: "Batch") -> "Tensor":
        """The mean loss of a batch {"clean", "degraded", "second"}, each (B, 1, n, n) gray levels."""
        raise NotImplementedError

    def fit(self, training: TrainingSet, /) -> None:
        """Train the network on the training set's patches at scale 1."""
        from restorers import fitting

        self._network, self.state, self.report = None, None, None
        fitted = fitting.fit(
            self.network(),
            self.loss,
            training,
            restored=lambda network, batch: network(batch["degraded"]),
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            schedule=self.settings.schedule,
        )
        self.state, self.report = fitted.state, fitted.report

    def ready(self) -> "nn.Module":
        """The fitted network on its device; InputError before a fit."""
        from restorers import fitting

        if self.state is None:
            raise InputError(
                f"{type(self).__name__} is not fitted: `sembench run` and `sembench adapt` fit it, or load a state"
            )
        if self._network is None:
            network = self.network()
            fitting.load(network, self.state)
            self._network = network.to(self.device).eval()
        return self._network

    def restore(self, image: Image, /) -> Image:
        import torch

        check_image(image)
        network = self.ready()
        multiple = int(network.multiple)  # type: ignore[arg-type]

        def apply(gray: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                stack = torch.from_numpy(np.ascontiguousarray(gray))[None, None].to(self.device)
                return network(stack)[0, 0].float().cpu().numpy()

        restored = apply_anywhere(np.asarray(image, dtype=np.float32), apply, multiple, self.settings.tile)
        return np.clip(restored, 0.0, 255.0).astype(np.float32)


def apply_anywhere(
    image: Image, apply: Callable[[NDArray[np.float32]], NDArray[np.float32]], multiple: int, tile: int
) -> Image:
    """Apply a network to (H, W) of any size: continued by reflection to a multiple, in tiles where a side exceeds one.

    A tile, whose side is a multiple of `multiple`, is seen with MARGIN px around it, cut at the image's border, and
    starts at a multiple: a network that sees no farther gives what it gives for the whole image.
    """
    height, width = image.shape
    grown = np.pad(image, [(0, -side % multiple) for side in image.shape], mode="reflect")
    if max(image.shape) <= tile:
        return apply(grown)[:height, :width]
    restored = np.empty(grown.shape, np.float32)
    for y in range(0, grown.shape[0], tile):
        for x in range(0, grown.shape[1], tile):
            top, left = max(0, y - MARGIN), max(0, x - MARGIN)
            made = apply(grown[top : y + tile + MARGIN, left : x + tile + MARGIN])
            restored[y : y + tile, x : x + tile] = made[y - top :, x - left :][:tile, :tile]
    return restored[:height, :width]


class Cost(NamedTuple):
    """Size of a network: its parameters, and its multiply-adds for each pixel of a 224 x 224 image."""

    parameters: int
    multiply_adds_per_px: float


def cost(network: "nn.Module") -> Cost:
    """Count parameters and multiply-adds of a network from gray levels (1, 1, 224, 224) to gray levels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 224, 224))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops() / 2 / 224**2)


def seeded(seed: int, build: Callable[[], Any]) -> Any:
    """Build a network with weights drawn from a seed, torch's own random state untouched."""
    from restorers import fitting

    with fitting.seeded(seed):
        return build()
