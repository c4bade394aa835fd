"""The learned rivals: each learns, is seeded, takes any size; what hides pixels hides them; formulas of the papers."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from small import texture
from torch import Tensor

from restorers import fitting
from restorers.mrn.network import MultiScale, multi_scale_l1, smaller
from restorers.nafnet.network import ChannelNorm, NAFNet, gate, local_mean, negative_psnr
from restorers.noise2void import cell_sides, hide, stratified
from restorers.unet.feed_forward import apply_anywhere, cost
from sembench.errors import InputError
from sembench.optics import Degradation, degrade
from sembench.registry import load_method

SMALL: dict[str, dict[str, Any]] = {
    "unet": {"width": 8, "coarse_blocks": 1},
    "noise2noise": {"width": 8, "coarse_blocks": 1},
    "noise2void": {"width": 8, "coarse_blocks": 1},
    "mrn": {"width": 8, "blocks": 2},
    "nafnet": {"width": 16, "middle": 1},
}
NAMES = list(SMALL)


def batch(side: int = 96, number: int = 2) -> dict[str, Tensor]:
    """Clean textures, slightly blurred and noisy, and a second draw of the noise."""
    rng = np.random.default_rng(3)
    clean = np.stack([texture(side, side, i) for i in range(number)])
    blurred = [degrade(image, Degradation(2, 3, 1.95, 0.3, 1.045, 13, 0, 1e6), rng) for image in clean]
    draws = {name: np.clip(blurred + rng.normal(0, 20, clean.shape), 0, 255) for name in ("degraded", "second")}
    return {name: torch.from_numpy(a[:, None].astype(np.float32)) for name, a in {"clean": clean, **draws}.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_on_one_batch_falls(name: str) -> None:
    """Thirty steps on one batch. The masked and the noisy targets hold noise that cannot be learnt: 0.75 of theirs."""
    method = load_method(name, SMALL[name])
    network, data = method.network(), batch(64)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    with torch.random.fork_rng(devices=[]):
        for step in range(31):
            torch.manual_seed(step)
            loss = method.loss(network, data)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    if name == "nafnet":
        assert losses[-1] < losses[0] - 3, "dB"
    else:
        assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_one_network_and_any_size(name: str) -> None:
    before = torch.random.get_rng_state()
    method, same, other = (load_method(name, {**SMALL[name], "seed": seed}) for seed in (4, 4, 5))
    states = [fitting.trained_state(m.network()) for m in (method, same, other)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])
    with pytest.raises(InputError, match="not fitted"):
        method.restore(texture(40, 40))
    generator = torch.Generator().manual_seed(0)
    moved = {k: v + 0.03 * torch.randn(v.shape, generator=generator) for k, v in states[0].items()}
    method.state, same.state = moved, moved
    for shape in ((32, 32), (33, 47), (130, 101)):
        image = texture(*shape)
        image.setflags(write=False)
        restored = method.restore(image)
        assert (restored.shape, restored.dtype) == (shape, np.float32)
        assert np.isfinite(restored).all()
        assert 0 <= restored.min() <= restored.max() <= 255
        np.testing.assert_array_equal(restored, same.restore(image))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet", {"width": 2}),
        ("unet", {"learning_rate": 0}),
        ("noise2void", {"masked": 0.5}),
        ("noise2void", {"structured": -1}),
        ("noise2noise", {"seed": -1}),
        ("mrn", {"blocks": 0}),
        ("nafnet", {"blocks": ()}),
        ("nafnet", {"blocks": (1, 0)}),
        ("nafnet", {"fold": 3}),
        ("nafnet", {"criterion": "l2"}),
        ("mrn", {"tile": 1000}),
    ],
)
def test_settings_out_of_range_are_one_line(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"restorer '{name}'.*{next(iter(settings))}.* is refused") as caught:
        load_method(name, settings)
    assert "\n" not in str(caught.value)


def test_the_sizes_that_a_standard_fit_has() -> None:
    """Parameters as they are stated in docs/methods.md."""
    counts = {name: cost(load_method(name).network()).parameters for name in NAMES}
    assert counts == {**dict.fromkeys(NAMES[:3], 871_313), "mrn": 119_523, "nafnet": 1_367_716}
    assert max(counts.values()) * 2 < 3e6, "a state in half precision has at most 3 MB"
    assert cost(load_method("nafnet", {"middle": 3}).network()).parameters == 2_302_116


class TestNoise2Void:
    @pytest.mark.parametrize("area", [10, 4, 50, 67, 350, 500])
    def test_cells_have_the_area(self, area: float) -> None:
        rows, columns = cell_sides(area)
        assert rows * columns == pytest.approx(area, rel=0.03)
        assert rows <= columns <= 4.2 * rows

    def test_each_pixel_is_drawn_as_often_and_each_cell_once(self) -> None:
        """A binomial count of mean 200 of 2000 masks: five standard deviations are 67."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            masks = stratified(torch.zeros(2000, 1, 24, 31), 10)[:, 0]
        counts = masks.sum(0)
        assert counts.float().mean() == pytest.approx(200, rel=0.01)
        assert (counts - 200).abs().max() < 70
        whole = 24 * 31 // 10
        assert masks.flatten(1).sum(1).float().std() < 0.6 * np.sqrt(whole * 0.9), "stratified, not independent"

    @pytest.mark.parametrize(("structured", "share"), [(0, 0.1), (0, 0.02), (4, 0.1)])
    def test_what_is_replaced(self, structured: int, share: float) -> None:
        """Distinct values: a replacement is another pixel's of the 5 x 5 around; no replaced pixel's is left."""
        side = 100
        noisy = torch.arange(2.0 * side * side).view(2, 1, side, side)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            image, replaced, predicted = hide(noisy, share, structured)
        assert torch.equal(image[~replaced], noisy[~replaced])
        hidden = set(noisy[replaced].tolist())
        assert not hidden & set(image.flatten().tolist())
        assert replaced.float().mean() == pytest.approx(share, rel=0.1)
        if not structured:
            assert torch.equal(replaced, predicted)
        b, _, y, x = replaced.nonzero(as_tuple=True)
        source = image[replaced].long()
        assert torch.equal(source // side**2, b)
        dy, dx = source % side**2 // side - y, source % side - x
        reach = torch.maximum(dy.abs(), dx.abs())
        inner = (y >= 2) & (y < side - 2) & (x >= 2) & (x < side - 2)
        assert reach[inner].max() == 2
        assert reach.max() <= 4
        counts = torch.stack([(dx[inner] == i).sum() for i in range(-2, 3)]) / inner.sum()
        if not structured:
            np.testing.assert_allclose(counts, np.array([5, 5, 4, 5, 5]) / 24, atol=0.03)

    def test_structured_hides_along_x(self) -> None:
        noisy = torch.rand(1, 1, 60, 90)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            _, replaced, predicted = hide(noisy, 0.1, 3)
        expected = np.zeros((60, 90), bool)
        for y, x in predicted[0, 0].nonzero().tolist():
            expected[y, max(0, x - 3) : x + 4] = True
        np.testing.assert_array_equal(replaced[0, 0], expected)

    def test_a_hidden_pixel_does_not_move_its_own_prediction(self) -> None:
        method = load_method("noise2void", SMALL["noise2void"])
        network = method.network()
        torch.nn.init.normal_(network.exit.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        noisy = batch(64, 1)["degraded"]

        def predictions(image: Tensor) -> tuple[Tensor, Tensor]:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(7)
                blind = hide(image, 0.1)
                return network(blind.image), blind.predicted

        made, hidden = predictions(noisy)
        changed = torch.where(hidden, 255 - noisy, noisy)
        again, same = predictions(changed)
        assert torch.equal(hidden, same)
        assert torch.equal(made, again)
        moved, _ = predictions(torch.where(hidden, noisy, 255 - noisy))
        assert not torch.allclose(made, moved)


def test_noise2noise_compares_with_the_second_draw() -> None:
    method, data = load_method("noise2noise", SMALL["noise2noise"]), batch()
    expected = ((data["degraded"] - data["second"]) / 64).square().mean()
    assert float(method.loss(method.network(), data).detach()) == pytest.approx(float(expected), rel=1e-6)
    assert torch.equal(method.loss(method.network(), {**data, "clean": data["clean"] * 0}).detach(), expected)


class TestMrn:
    def test_scales_and_their_loss(self) -> None:
        network = MultiScale(8, 1)
        data = batch()
        made = network.scales(data["degraded"])
        assert [tuple(x.shape[-2:]) for x in made] == [(24, 24), (48, 48), (96, 96)]
        assert torch.equal(made[-1], network(data["degraded"]))
        clean = data["clean"].numpy()
        errors = []
        for x, scale in zip(made, (4, 2, 1), strict=True):
            small = clean.reshape(2, 1, 96 // scale, scale, 96 // scale, scale).mean((3, 5))
            np.testing.assert_allclose(smaller(data["clean"], scale), small, rtol=1e-5)
            errors.append(np.abs(x.detach().numpy() - small).mean())
        assert float(multi_scale_l1(made, data["clean"]).detach()) == pytest.approx(np.mean(errors) / 255, rel=1e-5)

    def test_a_finer_scale_refines_the_coarser(self) -> None:
        network = MultiScale(8, 1)
        gray = batch()["degraded"]
        before = network(gray)
        network.nets[0].exit.bias.data += 1
        assert not torch.allclose(network(gray), before)

    def test_parameters_by_hand(self) -> None:
        def single(inputs: int) -> int:
            return (9 * inputs + 1) * 16 + 17 * (9 * 16 + 1) * 16 + 9 * 16 + 1

        assert cost(MultiScale()).parameters == single(1) + 2 * single(2)

    def test_tiles_are_the_whole(self) -> None:
        network = MultiScale(4, 4).eval()

        def apply(gray: Any) -> Any:
            with torch.inference_mode():
                return network(torch.from_numpy(np.ascontiguousarray(gray))[None, None])[0, 0].numpy()

        image = texture(60, 480)
        np.testing.assert_allclose(
            apply_anywhere(image, apply, 4, 192), apply_anywhere(image, apply, 4, 512), atol=2e-3
        )


class TestNafNet:
    def test_gate_and_norm_are_their_formulas(self) -> None:
        x = torch.randn(2, 6, 4, 5)
        assert torch.equal(gate(x), x[:, :3] * x[:, 3:])
        mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        np.testing.assert_allclose(ChannelNorm(6)(x).detach(), (x - mean) / (variance + 1e-6).sqrt(), atol=1e-5)

    def test_attention_has_the_mean_of_the_trained_size_around_each_pixel(self) -> None:
        x = torch.rand(1, 2, 30, 41)
        np.testing.assert_allclose(local_mean(x, 41)[..., 0, 0], x.mean((2, 3)), rtol=1e-5)
        found = local_mean(x, 9)[0, 1].numpy()
        expected = uniform_filter(x[0, 1].numpy().astype(float), 9)
        np.testing.assert_allclose(found[4:-4, 4:-4], expected[4:-4, 4:-4], rtol=1e-5)
        np.testing.assert_allclose(found[0, 0], x[0, 1, :9, :9].mean(), rtol=1e-5)

    def test_blocks_start_as_nothing(self) -> None:
        network = NAFNet(8, (1, 1), 1)
        x = torch.randn(1, 8, 8, 8)
        assert torch.equal(network.down_blocks[0](x), x)

    def test_its_loss_is_the_psnr(self) -> None:
        one, other = torch.rand(3, 1, 8, 9) * 255, torch.rand(3, 1, 8, 9) * 255
        psnr = [10 * np.log10(255**2 / np.mean((a - b) ** 2)) for a, b in zip(one.numpy(), other.numpy(), strict=True)]
        assert float(negative_psnr(one, other)) == pytest.approx(-np.mean(psnr), rel=1e-5)

    @pytest.mark.parametrize(("fold", "blocks"), [(1, (1,)), (2, (1, 2)), (2, (1, 1, 1, 1))])
    def test_sides_are_multiples(self, fold: int, blocks: tuple[int, ...]) -> None:
        network = NAFNet(4, blocks, 1, fold)
        assert network.multiple == fold * 2 ** len(blocks)
        assert network(torch.zeros(1, 1, network.multiple, 2 * network.multiple)).shape[-1] == 2 * network.multiple
