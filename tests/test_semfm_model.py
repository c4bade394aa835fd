"""The network against transformers' ViT-MAE with the same weights, its masks, positions, sizes and grown experts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from restorers.semfm.experts import ExpertFeedForward
from restorers.semfm.losses import masked_l1
from restorers.semfm.model import (
    CONFIGS,
    MaskedAutoencoder,
    ModelConfig,
    attend,
    grow_experts,
    patchify,
    positions,
    random_mask,
    unpatchify,
    visible,
)
from sembench.errors import InputError
from sembench.torchvision_compat import ensure_torchvision

SMALL = ModelConfig(
    image_size=32, patch=8, dim=24, depth=3, heads=2, decoder_dim=16, decoder_depth=2, decoder_heads=2, mlp_ratio=2.0
)
GROWN = replace(SMALL, experts=4)


def images(count: int = 3, side: int = 32) -> Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(7))


def parameters(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def teach(state: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """One block of transformers' state under our names, queries, keys and values stacked."""
    block = {}
    for kind in ("weight", "bias"):
        parts = [state[f"{theirs}.attention.{part}_proj.{kind}"] for part in "qkv"]
        block[f"{ours}.attention.qkv.{kind}"] = torch.cat(parts)
        block[f"{ours}.attention.proj.{kind}"] = state[f"{theirs}.attention.o_proj.{kind}"]
        for own, other in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            block[f"{ours}.{own}.{kind}"] = state[f"{theirs}.{other}.{kind}"]
        for name in ("fc1", "fc2"):
            block[f"{ours}.mlp.{name}.{kind}"] = state[f"{theirs}.mlp.{name}.{kind}"]
    return block


def their_positions(dim: int) -> Tensor:
    """The 4 x 4 table of transformers, row features first, a row of zeros for the class token before the patches.

    A model fresh from its constructor has zeros instead; published weights have the halves in the other order.
    """
    from transformers.models.vit_mae import modeling_vit_mae

    table: Tensor = modeling_vit_mae.build_2d_sinusoidal_position_embedding(4, 4, dim, cls_token=True)
    return table


@pytest.mark.parametrize(("channels", "norm_pix_loss"), [(3, False), (1, True)])
def test_equals_transformers_with_the_same_weights(channels: int, norm_pix_loss: bool) -> None:
    """Same prediction, mask and loss as ViTMAEForPreTraining, an independent implementation, gray repeated to RGB.

    A three-channel patch projection is summed; a prediction of three channels is kept as one of 3 x 64 values.
    """
    transformers = pytest.importorskip("transformers")
    ensure_torchvision()
    torch.manual_seed(4)
    theirs = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=32,
            patch_size=8, num_channels=channels, decoder_hidden_size=16, decoder_num_hidden_layers=2,
            initializer_range=0.2, decoder_num_attention_heads=2, decoder_intermediate_size=32,
            norm_pix_loss=norm_pix_loss,
        )
    ).eval()  # fmt: skip
    if any("query" in name for name in theirs.state_dict()):
        pytest.skip("transformers 4 has other names in memory")
    for fixed in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
        rows, columns = their_positions(fixed.shape[-1]).chunk(2, -1)
        fixed.data[0] = torch.cat([columns, rows], -1)
    state = {name: value.detach() for name, value in theirs.state_dict().items()}
    model = MaskedAutoencoder(replace(SMALL, layer_norm_eps=1e-12, norm_pix_loss=norm_pix_loss))
    model.decoder.head = torch.nn.Linear(16, 64 * channels)
    mapped = {
        "encoder.embed.weight": state["vit.embeddings.patch_embeddings.projection.weight"].sum(1).flatten(1),
        "encoder.embed.bias": state["vit.embeddings.patch_embeddings.projection.bias"],
        "encoder.cls_token": state["vit.embeddings.cls_token"],
        "decoder.mask_token": state["decoder.mask_token"],
    }
    pairs = [("encoder.norm", "vit.layernorm"), ("decoder.embed", "decoder.decoder_embed")]
    pairs += [("decoder.norm", "decoder.decoder_norm"), ("decoder.head", "decoder.decoder_pred")]
    for kind in ("weight", "bias"):
        mapped |= {f"{own}.{kind}": state[f"{other}.{kind}"] for own, other in pairs}
    for part, count, other in (("encoder", 3, "vit.layers"), ("decoder", 2, "decoder.decoder_layers")):
        for i in range(count):
            mapped |= teach(state, f"{part}.blocks.{i}", f"{other}.{i}")
    model.load_state_dict(mapped)

    x = images()
    with torch.no_grad():
        out = theirs(
            x.expand(-1, channels, -1, -1), noise=torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
        )
        ours = model(x, out.mask > 0)
    torch.testing.assert_close(ours.prediction, out.logits, rtol=1e-4, atol=1e-5)
    squared = (out.logits - model.targets(x).repeat_interleave(channels, -1)).square().mean(-1)
    assert ((squared * out.mask).sum() / out.mask.sum()).item() == pytest.approx(out.loss.item(), rel=1e-5)


def test_large_with_eight_experts_has_the_papers_1_7_billion_parameters() -> None:
    with torch.device("meta"):
        counts = [parameters(MaskedAutoencoder(replace(CONFIGS["large"], experts=k))) for k in (0, 8)]
    assert counts[1] == 1_738_795_456
    assert counts[1] - counts[0] == 24 * (7 * (2 * 1024 * 4096 + 4096 + 1024) + 1024 * 8 + 8)


def test_base_has_the_parameters_of_the_published_model() -> None:
    """transformers counts 111 907 840 for three channels, of which 252 672 are fixed positions."""
    with torch.device("meta"):
        ours = parameters(MaskedAutoencoder(replace(CONFIGS["base"], channels=3)))
    assert ours == 111_907_840 - 197 * (768 + 512)


def test_what_ships_is_small() -> None:
    with torch.device("meta"):
        dense, experts = (parameters(MaskedAutoencoder(replace(CONFIGS["tiny"], experts=k, every=2))) for k in (0, 8))
    assert 2 * (dense + experts) < 30e6


@pytest.mark.parametrize(
    ("where", "every", "expected"),
    [("encoder", 1, "eee.."), ("encoder", 2, ".e..."), ("decoder", 1, "...ee"), ("both", 2, ".e..e")],
)
def test_experts_stand_where_the_config_says(where: str, every: int, expected: str) -> None:
    model = MaskedAutoencoder(replace(GROWN, experts_in=where, every=every))
    blocks = [*model.encoder.blocks, *model.decoder.blocks]
    assert "".join("e" if isinstance(block.mlp, ExpertFeedForward) else "." for block in blocks) == expected
    gates = model(images(), random_mask([1, 2, 3], 3, 16)).gates
    assert len(gates) == expected.count("e")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4]))
def test_patches_are_cut_row_by_row_and_go_back(b: int, c: int, rows: int, columns: int, patch: int) -> None:
    x = torch.randn(b, c, rows * patch, columns * patch)
    cut = patchify(x, patch)
    assert torch.equal(unpatchify(cut, patch, (rows, columns), c), x)
    r, q = rows - 1, columns // 2
    square = x[0, :, r * patch : (r + 1) * patch, q * patch : (q + 1) * patch]
    assert torch.equal(cut[0, r * columns + q], square.flatten())


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 50), st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 10**9))
def test_masks_have_the_same_count_and_depend_on_their_own_seed(patches: int, ratio: float, seed: int) -> None:
    mask = random_mask([seed, seed + 1, seed + 2], 3, patches, ratio)
    assert mask.sum(1).tolist() == [patches - int(patches * (1 - ratio))] * 3
    assert torch.equal(random_mask([seed + 1], 1, patches, ratio)[0], mask[1])
    drawn = random_mask(torch.Generator().manual_seed(seed), 3, patches, ratio)
    assert drawn.sum(1).tolist() == mask.sum(1).tolist()
    kept = visible(mask)
    assert bool((~mask).gather(1, kept).all())
    assert bool((kept.diff(dim=1) > 0).all())


def test_each_patch_is_masked_as_often_as_any_other() -> None:
    share = random_mask(range(4000), 4000, 16).float().mean(0)
    assert (share - 0.75).abs().max() < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_masked_patches_are_not_seen() -> None:
    model, x, mask = MaskedAutoencoder(GROWN).eval(), images(), random_mask([1, 2, 3], 3, 16)
    patches = patchify(x, 8)
    changed = unpatchify(torch.where(mask.unsqueeze(-1), patches + 9, patches), 8, (4, 4))
    assert torch.equal(model(x, mask).prediction, model(changed, mask).prediction)
    seen = unpatchify(torch.where(mask.unsqueeze(-1), patches, patches + 9), 8, (4, 4))
    assert not torch.allclose(model(x, mask).prediction, model(seen, mask).prediction)


def test_encode_and_decode_compose_to_forward() -> None:
    model, x, mask = MaskedAutoencoder(SMALL), images(), random_mask([1, 2, 3], 3, 16)
    tokens = model.encode(x, visible(mask))
    assert tokens.shape == (3, 1 + 4, 24)
    torch.testing.assert_close(model.decode(tokens, visible(mask)), model(x, mask).prediction)
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(model.decode(model.encode(x)), model.decode(model.encode(x, everything), everything))


@pytest.mark.parametrize("cls_token", [True, False])
def test_other_sizes_and_no_class_token(cls_token: bool) -> None:
    model = MaskedAutoencoder(replace(SMALL, cls_token=cls_token))
    x = torch.randn(2, 1, 40, 56)
    tokens = model.encode(x)
    assert tokens.shape == (2, model.prefix + 35, 24)
    assert model.decode(tokens, grid=(5, 7)).shape == (2, 35, 64)
    assert model(x, random_mask([1, 2], 2, 35)).prediction.shape == (2, 35, 64)


def test_tokens_are_equivariant_without_positions() -> None:
    """Positions alone tell patches apart: exchanged patches with exchanged indices give exchanged tokens."""
    model, x = MaskedAutoencoder(SMALL), images()
    keep = torch.tensor([[2, 5, 11]]).expand(3, -1)
    tokens = model.encode(x, keep)
    torch.testing.assert_close(model.encode(x, keep[:, [2, 0, 1]])[:, 1:], tokens[:, 1:][:, [2, 0, 1]])


def test_attention_in_bfloat16_agrees_with_double_precision() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64).bfloat16().double().requires_grad_()
    weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
    near = {"rtol": 0.02, "atol": 0.02, "check_dtype": False}
    torch.testing.assert_close(attend(*(x.bfloat16() for x in (q, k, v))), weights @ v, **near)
    torch.testing.assert_close(attend(q, k, v), weights @ v)


def test_positions_follow_their_formula_and_interpolate() -> None:
    cpu = torch.device("cpu")
    table = positions((3, 5), (3, 5), 16, cpu).numpy().reshape(3, 5, 16)
    for row in range(3):
        for column in range(5):
            for i in range(4):
                rate = 10000 ** (-i / 4)
                expected = [np.sin(column * rate), np.cos(column * rate), np.sin(row * rate), np.cos(row * rate)]
                np.testing.assert_allclose(table[row, column, i::4], expected, atol=1e-6)
    finer = positions((9, 15), (3, 5), 16, cpu).numpy().reshape(9, 15, 16)
    np.testing.assert_allclose(finer[1::3, 1::3], table, atol=1e-6)


def test_positions_made_in_inference_serve_training() -> None:
    model = MaskedAutoencoder(replace(SMALL, dim=40, heads=2))
    with torch.inference_mode():
        model.encode(images())
    model(images(), random_mask([1, 2, 3], 3, 16)).prediction.sum().backward()


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = MaskedAutoencoder(GROWN, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = MaskedAutoencoder(GROWN, seed=5).state_dict(), MaskedAutoencoder(GROWN, seed=6).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["encoder.blocks.1.mlp.weight1"], other["encoder.blocks.1.mlp.weight1"])


def test_units_go_there_and_back() -> None:
    model = MaskedAutoencoder(replace(SMALL, mean=0.4, std=0.2))
    assert model.normalise(torch.tensor([0.4 * 255, 0.6 * 255])).tolist() == pytest.approx([0, 1], abs=1e-6)
    gray = torch.arange(0, 256, 5.0)
    torch.testing.assert_close(model.denormalise(model.normalise(gray)), gray, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("gate_gradient", ["scale", "dense"])
def test_grown_experts_start_as_their_teacher(gate_gradient: str) -> None:
    teacher, x, mask = MaskedAutoencoder(SMALL, seed=3), images(), random_mask([1, 2, 3], 3, 16)
    config = replace(GROWN, gate_gradient=gate_gradient)
    before = teacher(x, mask).prediction
    exact = grow_experts(teacher, config, seed=1, noise=0.0)
    torch.testing.assert_close(exact(x, mask).prediction, before, rtol=1e-4, atol=1e-5)
    near = grow_experts(teacher, config, seed=1)(x, mask).prediction
    assert 0 < (near - before).square().mean().sqrt() < 0.1 * before.std()


def test_grown_experts_differ_by_two_percent() -> None:
    teacher = MaskedAutoencoder(SMALL, seed=3)
    grown = grow_experts(teacher, GROWN, seed=1)
    weight = teacher.encoder.blocks[0].mlp.fc1.weight
    difference = grown.encoder.blocks[0].mlp.weight1 - weight
    assert (difference.std() / weight.std()).item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(difference[0], difference[1])
    assert torch.equal(grown.encoder.blocks[0].attention.qkv.weight, teacher.encoder.blocks[0].attention.qkv.weight)
    again = grow_experts(teacher, GROWN, seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in grown.state_dict().items())


def test_one_batch_overfits() -> None:
    x = torch.nn.functional.interpolate(images(3, 4), 32, mode="bilinear")
    model = MaskedAutoencoder(GROWN)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    mask, found = random_mask([1, 2, 3], 3, 16), []
    for _ in range(60):
        loss = masked_l1(model(x, mask).prediction, model.targets(x), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": 25}, "dim 25"),
        ({"image_size": 33}, "image_size 33"),
        ({"experts": 2, "top_k": 3}, "top_k 3"),
        ({"experts": -1}, "experts"),
        ({"experts_in": "head"}, "encoder or decoder or both"),
        ({"gate_gradient": ["scale"]}, "gate_gradient"),
        ({"depth": True}, "depth"),
        ({"depth": 2.0}, "depth"),
        ({"cls_token": 1}, "true or false"),
        ({"std": 0}, "std"),
        ({"mean": float("nan")}, "mean"),
        ({"mlp_ratio": 0.001}, "mlp_ratio"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        replace(SMALL, **change)
    assert "\n" not in str(caught.value)


def test_bad_shapes_are_refused() -> None:
    model = MaskedAutoencoder(SMALL)
    with pytest.raises(InputError, match="30 x 32"):
        model.encode(torch.randn(1, 1, 30, 32))
    with pytest.raises(InputError, match="same number"):
        model(images(2), torch.tensor([[True] * 8 + [False] * 8, [True] * 9 + [False] * 7]))
    with pytest.raises(InputError, match="at least one"):
        model(images(2), torch.ones(2, 16, dtype=torch.bool))
    with pytest.raises(InputError, match="mask of 15"):
        model(images(1), torch.tensor([[True] * 8 + [False] * 7]))
    with pytest.raises(InputError, match="no other size"):
        grow_experts(model, replace(GROWN, depth=4))
    with pytest.raises(InputError, match="model without"):
        grow_experts(MaskedAutoencoder(GROWN), GROWN)
