"""The networks that adapt semfm to restoration: decoder heads, the pixel path, and what they are trained with.

Shapes: B images, windows of n x n px, n a multiple of 16. A network takes a batch {"degraded", "estimate": (B, 1, n, n)
gray levels, "level", "contrast": (B, 1, 1, 1) gray levels} and gives restored gray levels (B, 1, n, n). Another head
(segmentation, measurement) takes `TokenEncoder`'s tokens likewise.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from restorers.semfm import losses
from restorers.semfm.model import MaskedAutoencoder, unpatchify

Batch = dict[str, Tensor]

LEAST_ERROR = 1e-5
"""Squared error (of the full scale, 0.8 gray levels) that is added to what `relative` divides by."""

EDGE_WEIGHT, TV_WEIGHT = 3.0, 10.0
"""Weights of edge and TV terms in the paper's l1_tv."""


class Residual(nn.Module):
    """Two 3 x 3 convolutions added to their input.

    rectified: with ReLU between them, which bends however small its input is; else with GELU, the second starting at
    zero, so that the block starts as the identity.
    """

    def __init__(self, channels: int, *, rectified: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.bend = nn.ReLU() if rectified else nn.GELU()
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        if not rectified:
            _zero(self.second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.bend(self.first(x)))


class PixelPath(nn.Module):
    """A small U-Net over the image and its spectral estimate that predicts what the estimate lacks.

    It works at 1/2, 1/4 and 1/8 of the resolution, the images folded into channels (pixel-unshuffle); token features
    (B, features, n/16, n/16) join at 1/8. Its last convolution starts at zero, so that it starts as its estimate.
    rectified: as its residual blocks have it.
    """

    def __init__(
        self, inputs: int, width: int, blocks: tuple[int, int, int], features: int = 0, *, rectified: bool
    ) -> None:
        super().__init__()
        fine, middle, coarse = width, 2 * width, 4 * width
        self.entry = nn.Conv2d(4 * inputs, fine, 3, padding=1)
        self.fine = _residuals(fine, blocks[0], rectified=rectified)
        self.middle_down = nn.Conv2d(fine, middle, 2, stride=2)
        self.middle = _residuals(middle, blocks[1], rectified=rectified)
        self.coarse_down = nn.Conv2d(middle, coarse, 2, stride=2)
        self.join = nn.Conv2d(features, coarse, 1) if features else None
        self.coarse = _residuals(coarse, blocks[2], rectified=rectified)
        self.middle_up = nn.Conv2d(coarse, 4 * middle, 1)
        self.middle_again = _residuals(middle, blocks[1], rectified=rectified)
        self.fine_up = nn.Conv2d(middle, 4 * fine, 1)
        self.fine_again = _residuals(fine, blocks[0], rectified=rectified)
        self.exit = nn.Conv2d(fine, 4, 3, padding=1)
        _zero(self.exit)

    def forward(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images (B, inputs, n, n), n a multiple of 8: the residual (B, 1, n, n), in the units of the images."""
        x = self.fine(self.entry(functional.pixel_unshuffle(images, 2)))
        y = self.middle(self.middle_down(x))
        z = self.coarse_down(y)
        if self.join is not None and features is not None:
            z = z + functional.interpolate(self.join(features), size=z.shape[-2:], mode="bilinear")
        z = self.coarse(z)
        y = self.middle_again(y + functional.pixel_shuffle(self.middle_up(z), 2))
        x = self.fine_again(x + functional.pixel_shuffle(self.fine_up(y), 2))
        return functional.pixel_shuffle(self.exit(x), 2).float()


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _residuals(channels: int, number: int, *, rectified: bool) -> nn.Sequential:
    return nn.Sequential(*(Residual(channels, rectified=rectified) for _ in range(number)))


class PathNetwork(nn.Module):
    """The pixel path alone, in the input's own gain and offset."""

    def __init__(
        self, width: int, blocks: tuple[int, int, int], *, physics: bool, rectified: bool, features: int = 0
    ) -> None:
        super().__init__()
        self.physics = physics
        self.path = PixelPath(2 if physics else 1, width, blocks, features, rectified=rectified)

    def forward(self, batch: Batch, features: Tensor | None = None) -> Tensor:
        """Restored (B, 1, n, n): the estimate, without physics the image, plus the residual in contrasts."""
        names = ("degraded", "estimate") if self.physics else ("degraded",)
        seen = torch.cat([(batch[name] - batch["level"]) / batch["contrast"] for name in names], 1)
        return batch[names[-1]] + batch["contrast"] * self.path(seen, features)


class TokenEncoder(nn.Module):
    """The pretrained encoder; frozen, as adaptation leaves it, or trained on."""

    def __init__(self, model: MaskedAutoencoder, *, frozen: bool = True) -> None:
        super().__init__()
        self.config, self.encoder, self.frozen = model.config, model.encoder, frozen
        self.encoder.requires_grad_(not frozen)

    def forward(self, gray: Tensor) -> Tensor:
        """Gray levels (B, 1, H, W), sides multiples of the patch: all tokens (B, prefix + P, dim)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder((gray / 255 - self.config.mean) / self.config.std)[0]


class PlainNetwork(nn.Module):
    """The paper's adaptation: frozen encoder, its pretrained decoder trained on, pixels from the tokens alone."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.tokens, self.decoder = TokenEncoder(model), model.decoder
        self.decoder.mask_token.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        gray = batch["degraded"]
        grid = _grid(gray, self.tokens.config.patch)
        features = self.decoder.features(self.tokens(gray), None, grid)[0]
        return _gray(self.decoder.head(features), grid, self.tokens.config)


class LinearNetwork(nn.Module):
    """A linear probe: pixels of each patch from its own token of the frozen encoder."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.tokens = TokenEncoder(model)
        self.head = nn.Linear(model.config.dim, model.config.patch**2)
        self.prefix = model.prefix

    def forward(self, batch: Batch) -> Tensor:
        gray = batch["degraded"]
        tokens = self.tokens(gray)[:, self.prefix :]
        return _gray(self.head(tokens), _grid(gray, self.tokens.config.patch), self.tokens.config)


class TokenPathNetwork(nn.Module):
    """The pixel path joined by the token features of the decoder, both trained, behind the encoder."""

    def __init__(
        self,
        model: MaskedAutoencoder,
        width: int,
        blocks: tuple[int, int, int],
        *,
        physics: bool,
        rectified: bool,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.tokens, self.decoder = TokenEncoder(model, frozen=frozen), model.decoder
        self.decoder.mask_token.requires_grad_(False)
        self.decoder.head.requires_grad_(False)
        features = model.config.decoder_dim
        self.path = PathNetwork(width, blocks, physics=physics, rectified=rectified, features=features)

    def forward(self, batch: Batch) -> Tensor:
        return self.restored(batch, self.tokens(batch["degraded"]))

    def restored(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Restored (B, 1, n, n) where all tokens of the degraded image are known already."""
        grid = _grid(batch["degraded"], self.tokens.config.patch)
        features = self.decoder.features(tokens, None, grid)[0]
        return self.path(batch, features.transpose(1, 2).unflatten(2, grid))


def _grid(gray: Tensor, patch: int) -> tuple[int, int]:
    return gray.shape[-2] // patch, gray.shape[-1] // patch


def _gray(patches: Tensor, grid: tuple[int, int], config: Any) -> Tensor:
    return (unpatchify(patches.float(), config.patch, grid) * config.std + config.mean) * 255


def restoration_loss(restored: Tensor, wanted: Tensor, start: Tensor, kind: str) -> Tensor:
    """What adaptation minimises, on gray levels as a share of the full scale.

    `l1` is Charbonnier and `l1_tv` adds edges and total variation (paper eq. 17); `relative` is the mean over patches
    of the squared error as a share of that of `start`, so that no patch, however blurred, counts more than another.
    """
    restored, wanted, start = restored / 255, wanted / 255, start / 255
    if kind == "relative":
        error, before = ((x - wanted).square().mean((1, 2, 3)) for x in (restored, start))
        return (error / (before + LEAST_ERROR)).mean()
    value = losses.charbonnier(restored, wanted)
    if kind == "l1":
        return value
    return losses.adaptation(
        value, losses.edge(restored, wanted), losses.total_variation(restored), EDGE_WEIGHT, TV_WEIGHT
    )


class ZeroShotNetwork(nn.Module):
    """The pretrained autoencoder as it is: every patch from all (`visible`), or each quarter from the other three."""

    def __init__(self, model: MaskedAutoencoder, masking: str) -> None:
        super().__init__()
        self.model, self.masking = model, masking

    def forward(self, batch: Batch) -> Tensor:
        gray, model = batch["degraded"], self.model
        grid = _grid(gray, model.config.patch)
        images = model.normalise(gray)
        if self.masking == "visible":
            return _gray(model.decode(model.encode(images), None, grid), grid, model.config)
        order = torch.randperm(grid[0] * grid[1], generator=torch.Generator().manual_seed(0)).to(gray.device)
        drawn = torch.zeros(len(gray), order.numel(), model.config.patch**2, device=gray.device)
        for hidden in order.chunk(4):
            keep = order[~torch.isin(order, hidden)].sort().values.expand(len(gray), -1)
            drawn[:, hidden] = model.decode(model.encode(images, keep), keep, grid)[:, hidden].float()
        return _gray(drawn, grid, model.config)
