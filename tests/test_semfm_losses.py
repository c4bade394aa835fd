"""Each loss against the paper's formula written out in loops over pixels, and against cases known by hand."""

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from restorers.semfm import losses
from restorers.semfm.model import patchify


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def drawn(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32))


def dft2(image: np.ndarray) -> np.ndarray:
    """The discrete Fourier transform by its definition, divided by sqrt(H W)."""
    height, width = image.shape
    out = np.zeros((height, width), complex)
    for p in range(height):
        for q in range(width):
            for u in range(height):
                for v in range(width):
                    out[p, q] += image[u, v] * cmath.exp(-2j * math.pi * (p * u / height + q * v / width))
    return out / math.sqrt(height * width)


def ring_means(image: np.ndarray, rings: int) -> list[float]:
    """Mean |DFT|^2 in rings of equal width up to 0.5 cycles/px, frequency by frequency."""
    power = np.abs(dft2(image)) ** 2
    members: list[list[float]] = [[] for _ in range(rings)]
    for p, fy in enumerate(np.fft.fftfreq(image.shape[0])):
        for q, fx in enumerate(np.fft.fftfreq(image.shape[1])):
            radius = math.hypot(fx, fy)
            if radius <= 0.5:
                members[min(int(radius * 2 * rings + 1e-9), rings - 1)].append(power[p, q])
    return [float(np.mean(ring)) if ring else 0.0 for ring in members]


def test_equation_4_and_7(rng: np.random.Generator) -> None:
    prediction, target, mask = drawn(rng, 2, 3, 4), drawn(rng, 2, 3, 4), torch.tensor([[1, 0, 1], [0, 1, 1]]) > 0
    total, pixels = 0.0, 0
    for b in range(2):
        for p in range(3):
            for d in range(4):
                if mask[b, p]:
                    total += abs(float(prediction[b, p, d]) - float(target[b, p, d]))
                    pixels += 1
    assert losses.masked_l1(prediction, target, mask).item() == pytest.approx(total / pixels, rel=1e-6)
    assert losses.distillation(prediction, target, mask).item() == pytest.approx(total / pixels, rel=1e-6)


def test_distillation_does_not_teach_the_teacher(rng: np.random.Generator) -> None:
    student, teacher = drawn(rng, 1, 2, 4).requires_grad_(), drawn(rng, 1, 2, 4).requires_grad_()
    losses.distillation(student, teacher, torch.ones(1, 2) > 0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_visible_patches_do_not_count(rng: np.random.Generator) -> None:
    prediction, target, mask = drawn(rng, 1, 4, 4), drawn(rng, 1, 4, 4), torch.tensor([[1, 0, 0, 1]]) > 0
    expected = losses.masked_l1(prediction, target, mask)
    prediction[0, 1:3] += 7
    assert losses.masked_l1(prediction, target, mask) == expected


def test_equations_8_and_9(rng: np.random.Generator) -> None:
    probabilities = torch.softmax(drawn(rng, 6, 4), -1)
    means = [sum(float(probabilities[t, k]) for t in range(6)) / 6 for k in range(4)]
    found = losses.gate_mean(probabilities)
    assert found.tolist() == pytest.approx(means, rel=1e-5)
    assert losses.balance(found).item() == pytest.approx(4 * sum(m * m for m in means), rel=1e-5)


def test_balance_is_smallest_when_even_and_k_when_one_takes_all() -> None:
    assert losses.balance(torch.full((8,), 1 / 8)).item() == pytest.approx(1)
    assert losses.balance(torch.eye(8)[3]).item() == pytest.approx(8)


def test_kinship_is_the_cross_entropy_of_finding_the_other_crop(rng: np.random.Generator) -> None:
    tokens = rng.standard_normal((6, 5))
    directions = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    total = 0.0
    for i in range(6):
        other = i + 1 if i % 2 == 0 else i - 1
        terms = {j: math.exp(directions[i] @ directions[j] / 0.2) for j in range(6) if j != i}
        total -= math.log(terms[other] / sum(terms.values()))
    assert losses.kinship(torch.from_numpy(tokens)).item() == pytest.approx(total / 6, rel=1e-5)
    alike = torch.ones(8, 3)
    assert losses.kinship(alike).item() == pytest.approx(math.log(7), rel=1e-6)
    apart = torch.eye(4).repeat_interleave(2, 0)
    assert losses.kinship(apart, 0.05).item() < 1e-6


def test_equations_10_15_16_17_weigh_as_the_paper_does() -> None:
    one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
    assert losses.joint(one, two, three).item() == pytest.approx(1 + 1 * 2 + 0.01 * 3)
    assert losses.joint(one, two, three, 0.5, 0.1).item() == pytest.approx(1 + 0.5 * 2 + 0.1 * 3)
    assert losses.final(one, losses.frequency(two, three)).item() == pytest.approx(1 + 0.1 * 2 + 0.1 * 3)
    assert losses.final(one, losses.frequency(two, three, 0.5), 0.2).item() == pytest.approx(1 + 0.2 * (2 + 0.5 * 3))
    assert losses.adaptation(one, two, three, 3, 10).item() == pytest.approx(1 + 3 * 2 + 10 * 3)


def test_pixel_mask_marks_the_pixels_of_masked_patches(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 6)) < 0.5)
    pixels = losses.pixel_mask(mask, 4, (2, 3))
    assert pixels.shape == (2, 1, 8, 12)
    assert torch.equal(patchify(pixels, 4), mask.float().unsqueeze(-1).expand(-1, -1, 16))


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_equations_11_to_14(rng: np.random.Generator, size: tuple[int, int]) -> None:
    prediction, target = drawn(rng, 2, 1, *size), drawn(rng, 2, 1, *size)
    mask = torch.from_numpy((rng.random((2, 1, *size)) < 0.6).astype(np.float32))
    spectrum = losses.error_spectrum(prediction, target, mask)
    shown, wanted = (mask * prediction).numpy(), (mask * target).numpy()
    direct = [dft2(shown[b, 0] - wanted[b, 0]) for b in range(2)]
    for b in range(2):
        np.testing.assert_allclose(spectrum[b, 0].numpy(), direct[b][:, : size[1] // 2 + 1], atol=1e-5)
    amplitude = np.mean([np.abs(whole).mean() for whole in direct])
    assert losses.fft_amplitude(spectrum, size[1]).item() == pytest.approx(amplitude, rel=1e-5)
    ours, theirs = ([ring_means(image[b, 0], 3) for b in range(2)] for image in (shown, wanted))
    np.testing.assert_allclose(losses.radial_psd(mask * prediction, 3)[:, 0].numpy(), ours, rtol=1e-4)
    plain = np.abs(np.subtract(ours, theirs)).mean()
    logged = np.abs(np.log1p(ours) - np.log1p(theirs)).mean()
    assert losses.psd_difference(prediction, target, mask, 3, log1p=False).item() == pytest.approx(plain, rel=1e-4)
    assert losses.psd_difference(prediction, target, mask, 3).item() == pytest.approx(logged, rel=1e-4)


def test_psd_of_a_cosine_lies_in_its_ring() -> None:
    x = torch.cos(2 * math.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    psd = losses.radial_psd(x)[0, 0]
    assert psd.argmax() == 3
    assert psd.sum().item() == pytest.approx(psd[3].item(), rel=1e-5)


def test_white_noise_has_the_same_psd_at_every_size(rng: np.random.Generator) -> None:
    for side in (16, 64):
        psd = losses.radial_psd(drawn(rng, 64, 1, side, side)).mean().item()
        assert psd == pytest.approx(1, abs=0.05)


def test_backward_norm_is_not_divided(rng: np.random.Generator) -> None:
    x = drawn(rng, 1, 1, 8, 8)
    torch.testing.assert_close(losses.radial_psd(x, norm="backward"), 64 * losses.radial_psd(x))


def test_equations_18_to_20(rng: np.random.Generator) -> None:
    restored, reference = drawn(rng, 2, 1, 4, 5), drawn(rng, 2, 1, 4, 5)
    charbonnier = edge = variation = 0.0
    x, y = restored.numpy().astype(float), reference.numpy().astype(float)
    for b in range(2):
        for u in range(4):
            for v in range(5):
                charbonnier += math.sqrt((x[b, 0, u, v] - y[b, 0, u, v]) ** 2 + 1e-6)
                for du, dv in ((1, 0), (0, 1)):
                    if u + du < 4 and v + dv < 5:
                        step = x[b, 0, u + du, v + dv] - x[b, 0, u, v]
                        variation += abs(step)
                        edge += abs(step - (y[b, 0, u + du, v + dv] - y[b, 0, u, v]))
    assert losses.charbonnier(restored, reference).item() == pytest.approx(charbonnier / 40, rel=1e-5)
    assert losses.edge(restored, reference).item() == pytest.approx(edge / 40, rel=1e-5)
    assert losses.total_variation(restored).item() == pytest.approx(variation / 40, rel=1e-5)


def test_charbonnier_scales_with_the_units(rng: np.random.Generator) -> None:
    restored, reference = drawn(rng, 1, 1, 8, 8), drawn(rng, 1, 1, 8, 8)
    scaled = losses.charbonnier(restored / 0.2, reference / 0.2, full_scale=1 / 0.2)
    assert scaled.item() == pytest.approx(losses.charbonnier(restored, reference).item() / 0.2, rel=1e-6)
    assert losses.charbonnier(reference, reference, 4.0).item() == pytest.approx(4e-3)


def test_gradients_agree_with_finite_differences(rng: np.random.Generator) -> None:
    target, mask = drawn(rng, 1, 1, 6, 6).double(), torch.ones(1, 1, 6, 6, dtype=torch.float64)
    start = drawn(rng, 1, 1, 6, 6)
    for loss in (
        lambda x: losses.fft_amplitude(losses.error_spectrum(x, target.float(), mask.float()), 6),
        lambda x: losses.psd_difference(x, target.float(), mask.float()),
        lambda x: losses.charbonnier(x, target.float()),
        lambda x: losses.edge(x, target.float()),
    ):
        x = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x)
        direction = drawn(rng, 1, 1, 6, 6)
        step = 1e-3
        slope = (loss(start + step * direction) - loss(start - step * direction)).item() / (2 * step)
        assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.03, abs=2e-3)


def test_a_perfect_prediction_has_finite_gradients(rng: np.random.Generator) -> None:
    target, mask = drawn(rng, 1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    x = target.clone().requires_grad_()
    loss = losses.fft_amplitude(losses.error_spectrum(x, target, mask), 8) + losses.psd_difference(x, target, mask)
    loss = loss + losses.charbonnier(x, target) + losses.edge(x, target)
    loss.backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@settings(max_examples=25, deadline=None)
@given(b=st.integers(1, 3), c=st.integers(1, 2), height=st.integers(2, 17), width=st.integers(2, 17))
def test_any_shape_keeps_parseval(b: int, c: int, height: int, width: int) -> None:
    """Mean |E|^2 over all frequencies is the mean square of the error; all losses are scalars, 0 for equal images."""
    x, y = torch.randn(b, c, height, width), torch.randn(b, c, height, width)
    mask = torch.ones(b, 1, height, width)
    spectrum = losses.error_spectrum(x, y, mask)
    power = losses.fft_amplitude(spectrum.abs().square().to(torch.complex64), width)
    assert power.item() == pytest.approx((x - y).square().mean().item(), rel=1e-4)
    assert losses.radial_psd(x).shape == (b, c, min(height, width) // 2)
    for loss in (losses.psd_difference(x, x, mask), losses.edge(x, x)):
        assert loss.shape == ()
        assert loss.item() == 0
