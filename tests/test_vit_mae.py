"""The ViT-MAE of ImageNet: the same output as transformers' own model, refusals, and the need of its weights."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from restorers.semfm.model import ModelConfig
from restorers.vit_mae import GRAY_MEAN, GRAY_STD, MEAN, SHA256, STD, VitMaeImagenet, load_checkpoint, weights
from sembench.datasets.manifest import load_manifest
from sembench.errors import InputError, UnavailableError
from sembench.registry import find_method, needs_of, resolve_settings
from sembench.torchvision_compat import ensure_torchvision

CONFIG = ModelConfig(
    image_size=48, patch=16, dim=24, depth=2, heads=3, decoder_dim=16, decoder_depth=2, decoder_heads=2
)


def table(dim: int) -> torch.Tensor:
    """The published positions of a 3 x 3 grid (1, 10, dim), class token first: sines, cosines of column, then row."""
    rates = [10000 ** (-i / (dim // 4)) for i in range(dim // 4)]
    rows = [[0.0] * dim]
    for row in range(3):
        for column in range(3):
            rows.append([f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in rates])
    return torch.tensor([rows])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small random model of transformers, no weight at its initial 0 or 1, and the file that it writes of itself."""
    ensure_torchvision()
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = ViTMAEConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            image_size=48,
            patch_size=16,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            mask_ratio=0.75,
        )
        model = ViTMAEForPreTraining(sizes).eval()
        model.vit.embeddings.position_embeddings.data = table(24)
        model.decoder.decoder_pos_embed.data = table(16)
        for name, parameter in model.named_parameters():
            if "pos" not in name:
                parameter.data += 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


@pytest.mark.parametrize("visible", [2, 9])
def test_it_gives_what_transformers_gives(reference: tuple[Any, Path], visible: int) -> None:
    """A gray image repeated to three channels, normalised by ImageNet's statistics; the same patches hidden."""
    theirs, path = reference
    ours = load_checkpoint(path, CONFIG).eval()
    generator = torch.Generator().manual_seed(1)
    gray = 255 * torch.rand(2, 1, 48, 48, generator=generator)
    noise = torch.rand(2, 9, generator=generator)
    theirs.vit.embeddings.config.mask_ratio = 1 - visible / 9 - 1e-6 if visible < 9 else 0.0
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        logits = theirs((gray.expand(-1, 3, -1, -1) / 255 - mean) / std, noise=noise).logits
        keep = noise.argsort(1)[:, :visible].sort(1).values
        found = ours.decode(ours.encode(ours.normalise(gray), keep), keep)
    expected = (logits.view(2, 9, 256, 3) * std.view(3) + mean.view(3)).mean(-1)
    np.testing.assert_allclose(found * GRAY_STD + GRAY_MEAN, expected, atol=1e-5)
    assert expected.std() > 0.1
    assert (ours.config.mean, ours.config.std) == (GRAY_MEAN, GRAY_STD)


def test_the_published_spelling_of_names_is_read_too(reference: tuple[Any, Path], tmp_path: Path) -> None:
    """transformers 4 wrote the decoder's blocks as decoder_layers, transformers 5 as decoder_encoder.layer."""
    tensors = load_file(reference[1])
    states = []
    for spelled in ("decoder_layers", "decoder_encoder.layer"):
        own = {re.sub(r"decoder_(layers|encoder\.layer)", spelled, name): value for name, value in tensors.items()}
        assert any(spelled in name for name in own)
        save_file(own, tmp_path / "model.safetensors")
        states.append(load_checkpoint(tmp_path / "model.safetensors", CONFIG).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("broken", ["name", "shape", "positions", "cut", "config"])
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    reference: tuple[Any, Path], tmp_path: Path, broken: str
) -> None:
    tensors = load_file(reference[1])
    path, config = tmp_path / "model.safetensors", CONFIG
    if broken == "name":
        del tensors["vit.encoder.layer.1.output.dense.bias"]
    elif broken == "shape":
        tensors["vit.layernorm.weight"] = torch.ones(7)
    elif broken == "positions":
        tensors["decoder.decoder_pos_embed"] = tensors["decoder.decoder_pos_embed"].flip(1)
    elif broken == "config":
        config = ModelConfig()
    save_file(tensors, path)
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.safetensors: is not a ") as caught:
        load_checkpoint(path, config)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_a_need_with_the_command_that_gets_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SEMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEMBENCH_DATA", str(tmp_path))
    method = find_method("vit_mae_imagenet")
    settings = resolve_settings(method, {})
    told = needs_of(method, settings)
    assert len(told) == 1
    assert told[0].endswith("`sembench data fetch vit_mae` gets them")
    assert load_manifest("vit_mae") == weights()
    assert method.cls.weights_digest(settings) == SHA256
    (tmp_path / "vit_mae").mkdir()
    (tmp_path / "vit_mae" / "vit_mae_base.safetensors").write_bytes(b"something else")
    assert "wrong content" in needs_of(method, settings)[0]
    with pytest.raises(UnavailableError, match="wrong content"):
        VitMaeImagenet(settings)._model()
    assert not needs_of(method, resolve_settings(method, {"encoder": "random"}))


def test_weights_in_the_users_folder_are_used(
    reference: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from restorers import vit_mae
    from restorers.semfm import model
    from sembench.datasets.cache import content_sha256

    monkeypatch.setenv("SEMBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEMBENCH_DATA", str(tmp_path))
    (tmp_path / "vit_mae").mkdir()
    path = tmp_path / "vit_mae" / "vit_mae_base.safetensors"
    path.write_bytes(reference[1].read_bytes())
    dataset = weights()
    own = replace(dataset, rows=(replace(dataset.rows[0], sha256=content_sha256(path)),))
    monkeypatch.setattr(vit_mae, "weights", lambda: own)
    monkeypatch.setitem(model.CONFIGS, "base", CONFIG)
    method = VitMaeImagenet({"degradation": "broad"})
    assert not method.needs(method.settings)
    embedded = method.embed(np.full((48, 60), 90, np.float32))
    assert embedded.shape == (24,)
    network = method._new()
    assert not any(p.requires_grad for p in network.tokens.parameters())
    assert any(p.requires_grad for p in network.decoder.parameters())


def test_it_cannot_be_pretrained() -> None:
    assert getattr(find_method("vit_mae_imagenet").cls, "pretrain", None) is None
