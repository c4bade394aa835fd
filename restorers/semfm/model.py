"""The masked autoencoder: a vision transformer that sees a quarter of the patches and draws the rest.

Shapes: B images, C channels (1), P patches, n visible ones, D features. Images are normalised, (gray / 255 - mean) /
std, with one mean and standard deviation for all channels: a gray image repeated to RGB is then one channel whose
patch projection is the sum of the three, so the network takes one. Predictions are in the same normalised units.
Source: He et al. 2022, Masked autoencoders are scalable vision learners; paper section 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from restorers.semfm.experts import ExpertFeedForward, FeedForward, GateGradient, GateUse
from sembench.errors import InputError

Grid = tuple[int, int]
"""Rows and columns of patches."""


_CHOICES = {"experts_in": ("encoder", "decoder", "both"), "gate_gradient": ("scale", "dense")}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network, where its experts stand, and the gray statistics (of gray / 255) that it was trained with.

    experts: 0 for none, else K in place of the feed-forward layer of each `every`-th block of `experts_in`.
    cls_token: one token more, before the patches. norm_pix_loss: targets are patches less their mean, divided by their
    standard deviation; a prediction then lacks both.
    """

    image_size: int = 224
    patch: int = 16
    channels: int = 1
    dim: int = 192
    depth: int = 6
    heads: int = 3
    mlp_ratio: float = 4.0
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 2
    experts: int = 0
    top_k: int = 1
    experts_in: Literal["encoder", "decoder", "both"] = "encoder"
    every: int = 1
    gate_gradient: GateGradient = "scale"
    cls_token: bool = True
    layer_norm_eps: float = 1e-6
    norm_pix_loss: bool = False
    mean: float = 0.5
    std: float = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check(field.name, getattr(self, field.name), field.default)
        for part, dim, heads in (("", self.dim, self.heads), ("decoder_", self.decoder_dim, self.decoder_heads)):
            if dim % heads or dim % 4:
                raise InputError(f"model config: {part}dim {dim} must be a multiple of 4 and of {part}heads {heads}")
        if self.image_size % self.patch:
            raise InputError(f"model config: image_size {self.image_size} must be a multiple of patch {self.patch}")
        if min(round(self.dim * self.mlp_ratio), round(self.decoder_dim * self.mlp_ratio)) < 1:
            raise InputError(f"model config: mlp_ratio {self.mlp_ratio} leaves no hidden feature: give 4")
        if self.experts and not 1 <= self.top_k <= self.experts:
            raise InputError(f"model config: top_k {self.top_k} must lie in 1..experts, and experts is {self.experts}")

    @staticmethod
    def _check(name: str, value: object, default: object) -> None:
        if name in _CHOICES:
            sound, wanted = value in _CHOICES[name], " or ".join(_CHOICES[name])
        elif isinstance(default, bool):
            sound, wanted = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            least = 0 if name == "experts" else 1
            sound, wanted = type(value) is int and value >= least, f"a whole number from {least}"
        else:
            number = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
            sound, wanted = math.isfinite(number) and (number > 0 or name == "mean"), "a positive number"
        if not sound:
            raise InputError(f"model config: {name} must be {wanted}, not {value!r}")

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches of a training image."""
        return self.image_size // self.patch, self.image_size // self.patch

    def has_experts(self, part: Literal["encoder", "decoder"], block: int) -> bool:
        """Whether the block of that number (from 0) has experts: each `every`-th, the last of each run."""
        return self.experts > 0 and self.experts_in in (part, "both") and (block + 1) % self.every == 0


CONFIGS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(),
    "small": ModelConfig(dim=384, depth=12, heads=6, decoder_dim=256, decoder_depth=4, decoder_heads=8),
    "base": ModelConfig(dim=768, depth=12, heads=12, decoder_dim=512, decoder_depth=8, decoder_heads=16),
    "large": ModelConfig(dim=1024, depth=24, heads=16, decoder_dim=512, decoder_depth=8, decoder_heads=16),
}


class Output(NamedTuple):
    """prediction: (B, P, C * patch * patch), normalised units, visible patches too; gates: one an expert layer.

    mean_token: (B, dim), the mean of the encoder's tokens of the visible patches.
    """

    prediction: Tensor
    gates: list[GateUse]
    mean_token: Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W), sides multiples of `patch`, as (B, P, C * patch * patch), patches row by row."""
    b, c, height, width = images.shape
    if height % patch or width % patch or not height or not width:
        raise InputError(f"image of {height} x {width} px cannot be cut into patches of {patch} px: pad it")
    cut = images.reshape(b, c, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(patches: Tensor, patch: int, grid: Grid, channels: int = 1) -> Tensor:
    """The inverse of patchify: (B, P, C * patch * patch) as images (B, C, H, W)."""
    rows, columns = grid
    cut = patches.reshape(-1, rows, columns, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(-1, channels, rows * patch, columns * patch)


def random_mask(source: torch.Generator | Sequence[int], batch: int, patches: int, ratio: float = 0.75) -> Tensor:
    """Mask (B, P), true on masked patches, of equal number in each sample: P - floor(P (1 - ratio)).

    source: one generator for all, or a seed for each sample, which makes its mask independent of the batch it is in.
    """
    if isinstance(source, torch.Generator):
        order = torch.rand(batch, patches, generator=source, device=source.device).argsort(1)
    else:
        order = torch.stack([torch.randperm(patches, generator=torch.Generator().manual_seed(s)) for s in source])
    return order >= int(patches * (1 - ratio) + 1e-9)


def visible(mask: Tensor) -> Tensor:
    """Indices (B, n) of the patches that a mask (B, P) leaves; InputError where samples differ in their number."""
    indices = (~mask).nonzero()[:, 1]
    count = int((~mask[0]).sum())
    if indices.numel() != count * len(mask) or not count:
        raise InputError("a mask must leave the same number of patches, at least one, in each sample of a batch")
    return indices.view(len(mask), count)


@lru_cache(maxsize=32)
def positions(grid: Grid, trained: Grid, dim: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine and cosine positions (P, dim); of another grid than the trained one, interpolated.

    First half of the features: column; second half: row; each half sines, then cosines, of dim/4 frequencies from 1 to
    1e-4. Interpolation is that of coordinates: patch centres of the grid are laid over the trained grid's extent.
    """
    rates = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    row, column = ((np.arange(n) + 0.5) * t / n - 0.5 for n, t in zip(grid, trained, strict=True))
    angles = np.concatenate(
        [np.tile(column, grid[0])[:, None] * rates, np.repeat(row, grid[1])[:, None] * rates], -1
    ).reshape(-1, 2, dim // 4)
    table = np.concatenate([np.sin(angles), np.cos(angles)], -1).reshape(-1, dim)
    with torch.inference_mode(False):
        return torch.from_numpy(table.astype(np.float32)).to(device)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries to keys, all (B, heads, N, D / heads): softmax(q k' / sqrt(D / heads)) v.

    On a CPU in bfloat16, torch's fused kernel takes two to four times as long in the backward pass as the plain
    products do, which are used there up to 1024 tokens.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 1024:
        return functional.softmax(q @ (k.transpose(-1, -2) * q.shape[-1] ** -0.5), -1) @ v
    return functional.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention of all tokens (B, N, D); queries, keys and values are stacked in one projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, n, dim))


class Block(nn.Module):
    """Attention and a feed-forward layer (dense, or experts), each behind a layer norm and added to its input."""

    def __init__(self, config: ModelConfig, part: Literal["encoder", "decoder"], index: int) -> None:
        super().__init__()
        dim, heads = (config.dim, config.heads) if part == "encoder" else (config.decoder_dim, config.decoder_heads)
        hidden = round(dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp: nn.Module = (
            ExpertFeedForward(dim, hidden, config.experts, config.top_k, config.gate_gradient)
            if config.has_experts(part, index)
            else FeedForward(dim, hidden)
        )

    def forward(self, x: Tensor, gates: list[GateUse]) -> Tensor:
        """Tokens (B, N, D); appends the use of its gate, if it has one."""
        x = x + self.attention(self.norm1(x))
        out = self.mlp(self.norm2(x))
        if isinstance(out, tuple):
            out, use = out
            gates.append(use)
        return x + out


class Encoder(nn.Module):
    """Visible patches to tokens (paper eq. 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.channels * config.patch**2, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.cls_token else None
        self.blocks = nn.ModuleList(Block(config, "encoder", i) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, list[GateUse]]:
        """Images (B, C, H, W), keep (B, n) or None for all patches: tokens (B, prefix + n, dim) and gates."""
        config, gates = self.config, list[GateUse]()
        patches = patchify(images, config.patch)
        grid = images.shape[-2] // config.patch, images.shape[-1] // config.patch
        position = positions(grid, config.grid, config.dim, images.device)
        if keep is not None:
            patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
            position = position[keep]
        x = self.embed(patches) + position
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
        for block in self.blocks:
            x = block(x, gates)
        return self.norm(x), gates


class Decoder(nn.Module):
    """Tokens to pixels of all patches (paper eq. 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.dim, config.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_dim))
        self.blocks = nn.ModuleList(Block(config, "decoder", i) for i in range(config.decoder_depth))
        self.norm = nn.LayerNorm(config.decoder_dim, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.decoder_dim, config.channels * config.patch**2)

    def features(self, tokens: Tensor, keep: Tensor | None, grid: Grid) -> tuple[Tensor, list[GateUse]]:
        """Tokens (B, prefix + n, dim) of the patches `keep` (None: all): features (B, P, decoder_dim) and gates."""
        config, gates, prefix = self.config, list[GateUse](), int(self.config.cls_token)
        x = self.embed(tokens)
        position = positions(grid, config.grid, config.decoder_dim, x.device)
        if keep is not None:
            full = self.mask_token.to(x.dtype).expand(len(x), prefix + len(position), -1)
            index = (keep + prefix).unsqueeze(-1).expand(-1, -1, x.shape[-1])
            if prefix:
                index = torch.cat([index.new_zeros(len(x), 1, x.shape[-1]), index], 1)
            x = full.scatter(1, index, x)
        x = x + (functional.pad(position, (0, 0, 1, 0)) if prefix else position)
        for block in self.blocks:
            x = block(x, gates)
        return self.norm(x[:, prefix:]), gates


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder, each a part that can be frozen, saved or replaced alone; weights drawn from `seed`."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = Encoder(config)
            self.decoder = Decoder(config)
            _initialise(self)

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches' own: 1 with a class token, else 0."""
        return int(self.config.cls_token)

    def normalise(self, gray: Tensor) -> Tensor:
        """Gray levels 0..255 in the units that the network takes and gives."""
        return (gray / 255 - self.config.mean) / self.config.std

    def denormalise(self, values: Tensor) -> Tensor:
        """The inverse of normalise; not clipped."""
        return (values * self.config.std + self.config.mean) * 255

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images (B, C, H, W) of any size in whole patches: tokens (B, prefix + n, dim).

        keep: (B, n) indices of the patches to see, or None for all. The patches' own tokens are `[:, prefix:]`.
        """
        return self.encoder(images, keep)[0]

    def decode(self, tokens: Tensor, keep: Tensor | None = None, grid: Grid | None = None) -> Tensor:
        """Predictions (B, P, C * patch * patch) from tokens of the patches `keep`; grid: None for the trained one."""
        return self.decoder.head(self.decoder.features(tokens, keep, grid or self.config.grid)[0])

    def forward(self, images: Tensor, mask: Tensor) -> Output:
        """Predict all patches from those that the mask (B, P), true on masked ones, leaves."""
        if mask.shape[1] * self.config.patch**2 != images.shape[-2] * images.shape[-1]:
            size = f"image of {images.shape[-2]} x {images.shape[-1]} px"
            raise InputError(f"a mask of {mask.shape[1]} patches does not fit an {size}: make it for that size")
        keep = visible(mask)
        grid = images.shape[-2] // self.config.patch, images.shape[-1] // self.config.patch
        tokens, gates = self.encoder(images, keep)
        features, more = self.decoder.features(tokens, keep, grid)
        return Output(self.decoder.head(features), gates + more, tokens[:, self.prefix :].mean(1))

    def targets(self, images: Tensor) -> Tensor:
        """What predictions are compared with: patches, each standardised if `norm_pix_loss`."""
        patches = patchify(images, self.config.patch)
        if not self.config.norm_pix_loss:
            return patches
        return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def _initialise(model: MaskedAutoencoder) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ExpertFeedForward):
            nn.init.normal_(module.gate.weight, std=0.02)
    nn.init.normal_(model.decoder.mask_token, std=0.02)
    if model.encoder.cls_token is not None:
        nn.init.normal_(model.encoder.cls_token, std=0.02)


def grow_experts(
    model: MaskedAutoencoder, config: ModelConfig, seed: int = 0, noise: float = 0.02
) -> MaskedAutoencoder:
    """A model of `config` whose experts are copies of the dense `model`'s feed-forward layers, the rest as it was.

    Each copy's weight matrices get Gaussian noise of `noise` times the matrix' standard deviation, since identical
    experts give a gate nothing to choose by. Gates are drawn from `seed`.
    Raises InputError where `model` has experts, or `config` differs in more than its experts.
    Source: paper section 2.4.
    """
    dense: dict[str, Any] = {"experts": 0, "top_k": 1, "experts_in": "encoder", "every": 1, "gate_gradient": "scale"}
    if replace(config, **dense) != replace(model.config, **dense) or model.config.experts or not config.experts:
        raise InputError("experts can only be grown in a model without, and no other size may change: mend the config")
    grown = MaskedAutoencoder(config, seed)
    generator = torch.Generator().manual_seed(seed)
    taught = dict(model.named_modules())
    kept = {name: value for name, value in model.state_dict().items() if name in grown.state_dict()}
    grown.load_state_dict(kept, strict=False)
    for name, module in grown.named_modules():
        if isinstance(module, ExpertFeedForward):
            teacher = taught[name]
            for own, linear in ((1, teacher.fc1), (2, teacher.fc2)):
                weight, bias = getattr(module, f"weight{own}").data, getattr(module, f"bias{own}").data
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(linear.weight + noise * linear.weight.std() * drawn)
                bias.copy_(linear.bias.expand_as(bias))
    return grown
