"""The comparison of semfm that never saw a micrograph: the ViT-MAE of ImageNet, adapted in the same way."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from restorers.semfm.restorer import Semfm
from sembench.datasets.cache import locate
from sembench.datasets.manifest import Dataset, ManifestRow
from sembench.errors import InputError, UnavailableError
from sembench.restorer import Need

if TYPE_CHECKING:
    from torch import Tensor

    from restorers.semfm.model import MaskedAutoencoder, ModelConfig

REVISION = "25b184bea5538bf5c4c852c79d221195fdd2778d"
"""Revision of huggingface.co/facebook/vit-mae-base, the first that has safetensors."""

SHA256 = "479dcef4bd5df06259399027b789f21e9d9a1b79f37155a64176d55bc26fdae8"

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics (of gray / 255) of red, green and blue, with which the model was trained."""

GRAY_MEAN, GRAY_STD = 0.449, 0.226
"""Their means: the statistics of the one channel that the network takes here."""

LARGEST_POSITION_ERROR = 1e-4
"""By how much a file's table of positions may differ from the computed one."""


def weights() -> Dataset:
    """The data set `vit_mae`: the checkpoint, 448 MB."""
    row = ManifestRow(
        file="vit_mae_base.safetensors",
        url=f"https://huggingface.co/facebook/vit-mae-base/resolve/{REVISION}/model.safetensors",
        sha256=SHA256,
        bytes=447_670_680,
        split="",
        role="",
        pair="",
        tile="",
        group="",
        width=None,
        height=None,
        bits=None,
        pixel_size_nm=None,
        crop_px=(0, 0, 0, 0),
        licence="Apache-2.0 (model card)",
        source=f"huggingface.co/facebook/vit-mae-base@{REVISION[:12]}",
        citation="K. He et al., CVPR (2022)",
        note="",
    )
    return Dataset("vit_mae", (row,), Path(__file__))


class VitMaeImagenet(Semfm):
    """ViT-MAE base pretrained on ImageNet, without experts, adapted exactly like semfm."""

    licence = "Apache-2.0; weights Apache-2.0 by their model card"
    citation = "K. He et al., Masked autoencoders are scalable vision learners, CVPR (2022)"
    pretrain: Any = None

    class Settings(Semfm.Settings):
        encoder: Literal["random", "imagenet"] = Field(  # type: ignore[assignment]
            "imagenet", description="pretrained model whose encoder is used; random: one that saw no image"
        )

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        if settings.encoder == "random":
            return []
        dataset = weights()
        try:
            if locate(dataset, dataset.rows[0], download=False):
                return []
            reason = "448 MB are not here"
        except UnavailableError as error:
            reason = str(error)
        return [Need("weights of ViT-MAE", reason, "`sembench data fetch vit_mae` gets them")]

    @classmethod
    def weights_digest(cls, settings: Any) -> str:
        return "" if settings.encoder == "random" else SHA256

    def _loaded(self) -> "tuple[MaskedAutoencoder, dict[str, Any]]":
        from restorers.semfm.model import CONFIGS, MaskedAutoencoder

        if self.settings.encoder == "random":
            return MaskedAutoencoder(CONFIGS[self.settings.config], self.settings.seed), {}
        dataset = weights()
        path = locate(dataset, dataset.rows[0])
        if path is None:
            raise UnavailableError("weights of ViT-MAE are not here: `sembench data fetch vit_mae` gets them")
        return load_checkpoint(path, CONFIGS["base"]), {}


def load_checkpoint(path: Path, config: "ModelConfig") -> "MaskedAutoencoder":
    """A model from the safetensors file that transformers' ViTMAEForPreTraining writes, of `config`'s sizes.

    The result takes and gives one channel in units of GRAY_MEAN and GRAY_STD. Raises InputError where the file is not
    safetensors or does not fit the config.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from restorers.semfm.model import MaskedAutoencoder

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: is not a safetensors file: `sembench data fetch vit_mae` gets the right one"
        ) from error
    config = replace(config, mean=GRAY_MEAN, std=GRAY_STD, layer_norm_eps=1e-12)
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    try:
        state = renamed(tensors, config)
        model.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: is not a ViT-MAE of these sizes ({reason}): take the checkpoint of its config"
        ) from error
    return model.requires_grad_(True)


def renamed(tensors: "Mapping[str, Tensor]", config: "ModelConfig") -> "dict[str, Tensor]":
    """A checkpoint's tensors under semfm's names; KeyError where one is not there.

    Three channels become one: a gray image enters the projection thrice, each with its own statistics, and the
    prediction is the mean of the three predicted channels. Positions are computed, and must be those of the file.
    """
    _check_positions(tensors, config)
    state = {
        "encoder.cls_token": tensors["vit.embeddings.cls_token"],
        "decoder.mask_token": tensors["decoder.mask_token"],
        **_one_channel_in(tensors, "vit.embeddings.patch_embeddings.projection"),
        **_one_channel_out(tensors, "decoder.decoder_pred"),
    }
    for kind in ("weight", "bias"):
        state[f"encoder.norm.{kind}"] = tensors[f"vit.layernorm.{kind}"]
        state[f"decoder.norm.{kind}"] = tensors[f"decoder.decoder_norm.{kind}"]
        state[f"decoder.embed.{kind}"] = tensors[f"decoder.decoder_embed.{kind}"]
    for i in range(config.depth):
        state |= _block(tensors, f"vit.encoder.layer.{i}", f"encoder.blocks.{i}")
    stem = next((s for s in _DECODER_BLOCKS if f"{s}.0.layernorm_before.weight" in tensors), _DECODER_BLOCKS[0])
    for i in range(config.decoder_depth):
        state |= _block(tensors, f"{stem}.{i}", f"decoder.blocks.{i}")
    return {name: value.float().contiguous() for name, value in state.items()}


_DECODER_BLOCKS = ("decoder.decoder_layers", "decoder.decoder_encoder.layer")
"""Where a checkpoint has the decoder's blocks: as published, and as transformers 5 writes it."""

_INSIDE = {
    "attention.output.dense": "attention.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Names inside a transformer block: a checkpoint's and semfm's."""


def _block(tensors: "Mapping[str, Tensor]", theirs: str, ours: str) -> "dict[str, Tensor]":
    import torch

    state = {}
    for kind in ("weight", "bias"):
        parts = [tensors[f"{theirs}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        state[f"{ours}.attention.qkv.{kind}"] = torch.cat(parts)
        for name, own in _INSIDE.items():
            state[f"{ours}.{own}.{kind}"] = tensors[f"{theirs}.{name}.{kind}"]
    return state


def _one_channel_in(tensors: "Mapping[str, Tensor]", name: str) -> "dict[str, Tensor]":
    import torch

    weight, bias = tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double()
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (MEAN, STD))
    shift = (weight * (GRAY_MEAN - mean) / std).sum((1, 2, 3))
    return {
        "encoder.embed.weight": (weight * GRAY_STD / std).sum(1).flatten(1),
        "encoder.embed.bias": bias + shift,
    }


def _one_channel_out(tensors: "Mapping[str, Tensor]", name: str) -> "dict[str, Tensor]":
    import torch

    weight, bias = tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD))
    gray = (bias.view(-1, 3) * std + mean).mean(1)
    return {
        "decoder.head.weight": (weight.view(-1, 3, weight.shape[1]) * std.view(1, 3, 1)).mean(1) / GRAY_STD,
        "decoder.head.bias": (gray - GRAY_MEAN) / GRAY_STD,
    }


def _check_positions(tensors: "Mapping[str, Tensor]", config: "ModelConfig") -> None:
    import torch

    from restorers.semfm.model import positions

    for name, dim in (
        ("vit.embeddings.position_embeddings", config.dim),
        ("decoder.decoder_pos_embed", config.decoder_dim),
    ):
        computed = positions(config.grid, config.grid, dim, torch.device("cpu"))
        table = tensors[name][0].float()
        expected = torch.cat([torch.zeros(1, dim), computed])
        if table.shape != expected.shape or (table - expected).abs().max() > LARGEST_POSITION_ERROR:
            raise KeyError(f"{name} is not the table of sines and cosines")
