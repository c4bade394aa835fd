"""The forward model against slow transcriptions of its equations and against closed forms."""

import hashlib
import math

import numpy as np
import pytest
from scipy.ndimage import convolve
from scipy.optimize import brentq
from scipy.special import j1, jv

from sembench import optics
from sembench.errors import InputError
from sembench.optics import (
    LARGEST_RADIUS,
    MIDPOINT,
    UNBLURRED,
    BroadDegradation,
    add_noise,
    blurred_signal,
    degrade,
    draw,
    draw_broad,
)

ORDER = ["rx", "ry", "beta", "theta", "a", "b", "sigma", "dose"]
QUIET = {"rx": 1.5, "ry": 2.5, "beta": 2.0, "theta": 0.4, "a": 1.05, "b": 10.0, "sigma": 3.0, "dose": 5.0}


def slow_kernel(rx: float, ry: float, beta: float, theta: float) -> np.ndarray:
    size = math.ceil(6 * max(rx, ry))
    size = size + 1 if size % 2 == 0 else size
    rows = []
    for y in range(-(size // 2), size // 2 + 1):
        row = []
        for x in range(-(size // 2), size // 2 + 1):
            u = math.cos(theta) * x + math.sin(theta) * y
            v = -math.sin(theta) * x + math.cos(theta) * y
            r = math.sqrt((u / rx) ** 2 + (v / ry) ** 2)
            row.append(1.0 if r == 0 else abs(2 * float(jv(1, math.pi * r)) / (math.pi * r)) ** beta)
        rows.append(row)
    total = math.fsum(value for row in rows for value in row)
    return np.array(rows) / total


@pytest.mark.parametrize(("rx", "ry", "beta", "theta"), [(1, 1, 2, 0), (3.3, 1.2, 1.93, 0.7), (2, 5.5, 1.9, 2.6)])
def test_kernel_equals_the_slow_transcription(rx: float, ry: float, beta: float, theta: float) -> None:
    kernel = optics.airy_psf(rx, ry, beta, theta)
    np.testing.assert_allclose(kernel, slow_kernel(rx, ry, beta, theta), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(("radius", "size"), [(1.0, 7), (0.5, 3), (1.5, 9), (4.0, 25), (30.0, 181)])
def test_kernel_size_sum_and_symmetry(radius: float, size: int) -> None:
    kernel = optics.airy_psf(radius, radius / 2, 1.95, 0.6)
    assert kernel.shape == (size, size)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], rtol=1e-9)
    assert kernel.argmax() == size * size // 2


def test_rotation_turns_x_towards_y() -> None:
    kernel = optics.airy_psf(6, 2, 2, math.pi / 4)
    middle = kernel.shape[0] // 2
    assert kernel[middle + 2, middle + 2] > 2 * kernel[middle + 2, middle - 2]
    np.testing.assert_allclose(
        optics.airy_psf(6, 2, 2, math.pi / 2), optics.airy_psf(2, 6, 2, 0), rtol=1e-6, atol=1e-12
    )


def test_first_dark_ring_lies_at_1_22_radii() -> None:
    zero = brentq(j1, 3, 4.5) / math.pi
    assert zero == pytest.approx(1.2197, abs=1e-4)
    radius = 20 / zero
    kernel = optics.airy_psf(radius, radius)
    row = kernel[kernel.shape[0] // 2, kernel.shape[1] // 2 :]
    assert row[20] < 1e-12
    assert (np.diff(row[:21]) < 0).all()
    assert row[22] > row[20]


def test_transfer_function_is_that_of_a_round_aperture() -> None:
    """The whole kernel closely; the one cut at three radii by no more than the light that the cut leaves out."""
    radius = 6.0
    axis = np.arange(-400, 401)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    kernel = np.ones((801, 801))
    argument = np.pi * np.hypot(x, y) / radius
    away = argument > 0
    kernel[away] = (2 * j1(argument[away]) / argument[away]) ** 2
    middle = optics.airy_psf(radius, radius)
    half = middle.shape[0] // 2
    cut = kernel[400 - half : 401 + half, 400 - half : 401 + half]
    np.testing.assert_allclose(middle, cut / cut.sum(), rtol=1e-9, atol=1e-15)

    lost = 1 - cut.sum() * np.pi / (4 * radius**2)
    assert 0 < lost < 0.08
    frequency = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    aperture = 2 / np.pi * (np.arccos(frequency) - frequency * np.sqrt(1 - frequency**2))

    def transfer(psf: np.ndarray, rho: float) -> float:
        centred = np.arange(psf.shape[0]) - psf.shape[0] // 2
        return float(psf.sum(axis=0) @ np.cos(2 * np.pi * centred * rho / radius) / psf.sum())

    np.testing.assert_allclose([transfer(kernel, rho) for rho in frequency], aperture, atol=0.012)
    np.testing.assert_allclose([(1 - lost) * transfer(middle, rho) for rho in frequency], aperture, atol=lost)
    for rho in (1.1, 1.3, 2.0):
        assert abs(transfer(kernel, rho)) < 0.01
        assert abs(transfer(middle, rho)) < 0.05


def test_blur_mirrors_at_the_borders() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (40, 33))
    kernel = optics.airy_psf(2.2, 3.7, 1.95, 0.9)
    np.testing.assert_allclose(
        optics.blur(image, kernel), convolve(image, kernel[::-1, ::-1], mode="mirror"), atol=1e-9
    )


def test_blur_convolves_rather_than_correlates() -> None:
    point = np.zeros((31, 31))
    point[15, 15] = 1
    kernel = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(optics.blur(point, kernel)[14:17, 14:17], kernel, atol=1e-12)


def test_blur_refuses_an_image_not_larger_than_half_the_kernel() -> None:
    kernel = optics.airy_psf(4, 4)
    with pytest.raises(InputError, match="12 x 40"):
        optics.blur(np.ones((12, 40)), kernel)
    assert optics.blur(np.ones((13, 40)), kernel).shape == (13, 40)


@pytest.mark.parametrize(
    ("seed", "case_id", "purpose"), [(0, "P001", ""), (2604, "kriss/ä b", ""), (5, "M001", "scene")]
)
def test_stream_is_seeded_by_four_big_endian_words(seed: int, case_id: str, purpose: str) -> None:
    text = case_id + ("#" + purpose if purpose else "")
    words = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype=">u4").astype(int).tolist()
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))
    assert optics.generator(seed, case_id, purpose).integers(0, 2**63, 8).tolist() == (
        expected.integers(0, 2**63, 8).tolist()
    )


def test_parameters_are_drawn_in_order_from_their_ranges() -> None:
    ranges = [(1, 30), (1, 30), (1.9, 2.0), (0, math.pi), (0.99, 1.1), (1, 25), (1, 10), (1, 50)]
    stream = optics.generator(3, "case")
    expected = [low + (high - low) * stream.random() for low, high in ranges]
    drawn = optics.draw(optics.generator(3, "case")).as_dict()
    assert list(drawn) == ORDER
    np.testing.assert_allclose(list(drawn.values()), expected, rtol=1e-12)
    assert list(optics.MIDPOINT.as_dict().values()) == pytest.approx([(low + high) / 2 for low, high in ranges])


def test_fixed_parameters_leave_the_stream_where_it_was() -> None:
    free, bound = optics.generator(3, "case"), optics.generator(3, "case")
    drawn = optics.draw(free).as_dict()
    fixed = optics.draw(bound, {"rx": 2.0, "dose": 7.0}).as_dict()
    assert fixed == {**drawn, "rx": 2.0, "dose": 7.0}
    assert free.random() == bound.random()


def test_case_draws_parameters_then_poisson_then_normal() -> None:
    image = np.random.default_rng(1).uniform(20, 200, (48, 40))
    fixed = {"rx": 1.5, "ry": 2.0}
    degraded, parameters = optics.degrade_case(image, 11, "case", fixed)
    stream = optics.generator(11, "case")
    for _ in ORDER:
        stream.random()
    clear = convolve(image, slow_kernel(1.5, 2.0, parameters.beta, parameters.theta)[::-1, ::-1], mode="mirror")
    signal = np.maximum(0, parameters.a * clear + parameters.b)
    counts = stream.poisson(parameters.dose * signal)
    expected = counts / parameters.dose + stream.normal(0, parameters.sigma, signal.shape)
    differing = np.abs(degraded - np.clip(expected, 0, 255)) > 1e-3
    assert differing.mean() < 0.001
    assert degraded.dtype == np.float32


def test_noiseless_case_is_the_blurred_image_with_gain_and_offset() -> None:
    image = np.full((64, 64), 100.0)
    degraded, parameters = optics.degrade_case(image, 0, "case", QUIET, noise=False)
    np.testing.assert_allclose(degraded, 1.05 * 100 + 10, rtol=1e-6)
    assert parameters.as_dict() == QUIET


def test_mean_and_variance_of_a_flat_image() -> None:
    image = np.full((512, 512), 100.0)
    degraded, _ = optics.degrade_case(image, 0, "flat", QUIET)
    level = 1.05 * 100 + 10
    variance = level / 5 + 9
    assert degraded.mean(dtype=float) == pytest.approx(level, abs=4 * math.sqrt(variance) / 512)
    assert degraded.var(dtype=float) == pytest.approx(variance, rel=0.015)


def test_result_is_clipped_and_not_rounded() -> None:
    image = np.tile([[0.0, 255.0]], (64, 32))
    parameters = optics.Degradation(**{**QUIET, "rx": 0.3, "ry": 0.3, "b": 0.0})
    degraded = optics.degrade(image, parameters, np.random.default_rng(0))
    assert degraded.min() == 0
    assert degraded.max() == 255
    assert np.mean(degraded % 1 != 0) > 0.3


def test_same_case_same_bytes_other_case_other_noise() -> None:
    image = np.full((64, 64), 90.0)
    one = optics.degrade_case(image, 1, "A", QUIET)[0]
    assert one.tobytes() == optics.degrade_case(image, 1, "A", QUIET)[0].tobytes()
    assert one.tobytes() != optics.degrade_case(image, 1, "B", QUIET)[0].tobytes()
    assert one.tobytes() != optics.degrade_case(image, 2, "A", QUIET)[0].tobytes()


@pytest.mark.parametrize(("name", "value"), [("rx", 0.0), ("dose", -1.0), ("sigma", -0.1), ("a", math.nan)])
def test_impossible_parameters_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        optics.Degradation(**{**QUIET, name: value})


def test_unknown_fixed_parameter_is_refused() -> None:
    with pytest.raises(InputError, match="radius"):
        optics.draw(optics.generator(0, "case"), {"radius": 2.0})


def test_kernel_refuses_a_radius_of_zero() -> None:
    with pytest.raises(InputError, match="radii"):
        optics.airy_psf(0, 1)


def test_broad_draws_have_the_frequencies_of_the_science() -> None:
    rng = np.random.default_rng(4)
    drawn = [draw_broad(rng) for _ in range(6000)]
    blurred = [d for d in drawn if d.rx != UNBLURRED]
    radii = np.array([math.sqrt(d.rx * d.ry) for d in blurred])
    assert 1 - len(blurred) / len(drawn) == pytest.approx(0.15, abs=0.015)
    assert np.mean(radii < 8) == pytest.approx(0.7, abs=0.02)
    assert np.median(radii[radii < 8]) == pytest.approx(2.0, rel=0.06)
    assert np.mean(radii[radii > 8.2]) == pytest.approx(19, abs=0.6)
    ratios = np.array([math.log(d.rx / d.ry) for d in blurred if max(d.rx, d.ry) < LARGEST_RADIUS])
    assert np.abs(ratios).max() <= 0.4 + 1e-9
    assert ratios.std() == pytest.approx(0.8 / math.sqrt(12), rel=0.03)
    assert max(max(d.rx, d.ry) for d in drawn) <= LARGEST_RADIUS
    for name, low, high in (("a", 0.8, 1.2), ("b", -25, 25), ("sigma", 1, 20)):
        values = np.array([getattr(d, name) for d in drawn])
        assert low <= values.min() < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    doses = np.log([d.dose for d in drawn])
    assert np.exp(doses.mean()) == pytest.approx(math.sqrt(0.05 * 50), rel=0.12)
    correlations = np.array([d.noise_correlation for d in drawn])
    assert np.mean(correlations > 0) == pytest.approx(0.5, abs=0.025)
    assert correlations[correlations > 0].min() >= 0.3
    assert correlations.max() <= 1.2


@pytest.mark.parametrize("name", ["paper", "broad"])
def test_the_ranges_of_a_degradation_are_those_that_it_draws_from(name: str) -> None:
    rng = np.random.default_rng(6)
    drawn = [optics.DEGRADATIONS[name](rng).as_dict() for _ in range(3000)]
    for parameter, (low, high) in optics.DEGRADATION_RANGES[name].items():
        values = np.array([values[parameter] for values in drawn])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high


def test_no_blur_is_no_blur() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (40, 50)).astype(np.float32)
    parameters = BroadDegradation(UNBLURRED, UNBLURRED, 1.95, 0.3, 1.0, 0.0, 1.0, 50.0)
    np.testing.assert_allclose(degrade(image, parameters, None), image, atol=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7, 1.2])
def test_correlated_noise_keeps_its_deviation_and_runs_along_x(correlation: float) -> None:
    """White noise under a Gaussian has the autocorrelation exp(-lag^2 / (4 sigma^2)), where sigma is not small."""
    parameters = BroadDegradation(2, 2, 1.95, 0, 1, 0, 4.0, 10.0, noise_correlation=correlation)
    noise = add_noise(np.full((700, 700), 100.0), parameters, np.random.default_rng(2)) - 100
    assert noise.std() == pytest.approx(math.sqrt(100 / 10 + 16), rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.05)
    along, across = (float((noise * np.roll(noise, 1, axis)).mean() / noise.var()) for axis in (1, 0))
    assert across == pytest.approx(0, abs=0.01)
    assert along == pytest.approx(math.exp(-1 / (4 * correlation**2)) if correlation > 0.5 else 0, abs=0.02)


def test_the_fast_blur_is_the_forward_model() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (230, 201)).astype(np.float32)
    for parameters in (draw(rng), draw(rng), draw_broad(rng), draw_broad(rng)):
        fast = np.clip(blurred_signal(image, parameters), 0, 255)
        np.testing.assert_allclose(fast, degrade(image, parameters, None), atol=2e-3)
    with pytest.raises(InputError, match="too small for a kernel"):
        blurred_signal(image[:46], MIDPOINT)
