"""The shared U-Net and what applies it: identity at first, tiles as the whole, learns, any size, one seed."""

from typing import Any

import numpy as np
import pytest
import torch
from small import texture
from torch import nn

from restorers import fitting
from restorers.unet import feed_forward
from restorers.unet.feed_forward import apply_anywhere, cost
from restorers.unet.network import UNet, charbonnier
from restorers.unet.restorer import Unet
from sembench import restorer
from sembench.errors import InputError
from sembench.restorer import Budget, TrainingSet


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight moved, so that no layer is at the zero where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def test_it_starts_as_the_identity() -> None:
    gray = torch.from_numpy(texture(64, 80))[None, None]
    assert torch.equal(UNet()(gray), gray)


def test_parameters_and_multiply_adds_by_hand() -> None:
    """Convolutions k x k from a to b channels: (k k a + 1) b parameters, k k a b / (pixels' scale)^2 multiply-adds."""
    widths = (16, 32, 64, 128)
    layers = [(9, 1, 16, 1), (9, 16, 1, 1)]
    layers += [(9, w, w, 2**i) for i, w in enumerate(widths) for _ in range(4)]
    for i in range(3):
        layers += [(4, widths[i], widths[i + 1], 2 ** (i + 1)), (1, widths[i + 1], 4 * widths[i], 2 ** (i + 1))]
    found = cost(UNet())
    assert found.parameters == sum((kk * a + 1) * b for kk, a, b, _ in layers)
    assert found.multiply_adds_per_px == pytest.approx(sum(kk * a * b / scale**2 for kk, a, b, scale in layers))
    assert 600_000 <= found.parameters <= 1_000_000


def test_a_pixel_sees_as_far_as_is_said() -> None:
    """The gradient of one output pixel ends within the margin that tiles have around them."""
    network = shaken(UNet(width=4))
    gray = torch.rand(1, 1, 400, 400).mul(255).requires_grad_(True)
    network(gray)[0, 0, 203, 197].backward()
    assert gray.grad is not None
    seen = gray.grad[0, 0].nonzero()
    reach = (seen - torch.tensor([203, 197])).abs().max()
    assert 20 < reach <= 72 < feed_forward.MARGIN


@pytest.mark.parametrize(("shape", "tile"), [((400, 530), 192), ((33, 700), 64), ((257, 256), 128)])
def test_tiles_are_the_whole(shape: tuple[int, int], tile: int) -> None:
    network = shaken(UNet(width=4))
    largest: list[int] = []

    def apply(gray: Any) -> Any:
        largest.append(max(gray.shape))
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(gray))[None, None])[0, 0].numpy()

    image = texture(*shape)
    whole = apply_anywhere(image, apply, 8, 4096)
    largest.clear()
    tiled = apply_anywhere(image, apply, 8, tile)
    assert max(largest) <= tile + 2 * feed_forward.MARGIN
    assert len(largest) > 1
    np.testing.assert_allclose(tiled, whole, atol=2e-3)
    assert np.abs(whole - image).max() > 1


def test_charbonnier_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0, 255, (2, 3, 1, 5, 6))
    expected = np.mean(np.sqrt(((one - other) / 255) ** 2 + 1e-3**2))
    assert float(charbonnier(torch.from_numpy(one), torch.from_numpy(other))) == pytest.approx(expected, rel=1e-5)


def test_a_fit_leaves_a_state_that_restores_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer, "VALIDATION_PATCHES", 1)
    original = fitting.fit
    monkeypatch.setattr(fitting, "fit", lambda *words, **options: original(*words, workers=0, **options))
    training = TrainingSet((texture(260, 300),), (texture(250, 240, 1),), "paper", Budget("quick", 3, 1))
    settings = {"width": 4, "coarse_blocks": 1, "tile": 256}
    method, again = Unet(settings), Unet(settings)
    with pytest.raises(InputError, match=r"^Unet is not fitted: `sembench run` and `sembench adapt` fit it"):
        method.restore(texture(40, 40))
    method.fit(training)
    again.fit(training)
    assert method.state
    assert again.state
    assert all(torch.equal(method.state[name], again.state[name]) for name in method.state)
    assert method.report
    assert method.report["steps"] == 3
    assert "psnr_matched" in method.report["curve"][-1]
    fresh = Unet(settings)
    fresh.state = method.state
    for shape in ((32, 32), (33, 47), (190, 301)):
        image = texture(*shape, 5)
        image.setflags(write=False)
        restored = method.restore(image)
        assert (restored.shape, restored.dtype) == (shape, np.float32)
        assert 0 <= restored.min() <= restored.max() <= 255
        np.testing.assert_array_equal(restored, fresh.restore(image))
    for bad in (np.full((40, 40), np.nan, np.float32), np.zeros((3, 40, 40), np.float32), texture(31, 64)):
        with pytest.raises(InputError):
            method.restore(bad)
