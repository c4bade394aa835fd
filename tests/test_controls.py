"""Controls: the ideal filter against theory, against other linear filters, and what each refuses."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from restorers.controls import Affine, GaussianAffine, IdealWiener, Oracle, kernel_transfer, symmetric_extension
from sembench.errors import InputError
from sembench.optics import Degradation, airy_psf, degrade
from sembench.restorer import Image, Truth


def scene(side: int = 160, seed: int = 0) -> Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side), 60.0)
    for _ in range(40):
        centre_y, centre_x, radius = (*rng.uniform(0, side, 2), rng.uniform(4, 14))
        image[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] = rng.uniform(40, 220)
    return gaussian_filter(image, 0.7).astype(np.float32)


def mean_square(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.mean((first.astype(np.float64) - second) ** 2))


DRAW = Degradation(rx=3.0, ry=6.0, beta=1.95, theta=0.6, a=1.05, b=9.0, sigma=4.0, dose=20.0)


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Truth]:
    reference = scene()
    return degrade(reference, DRAW, np.random.default_rng(1)), Truth(reference, DRAW)


def test_oracle_returns_the_reference(pair: tuple[Image, Truth]) -> None:
    image, truth = pair
    np.testing.assert_array_equal(Oracle().restore(image, truth), truth.reference)


def test_affine_undoes_the_mean_gain_and_offset_exactly(pair: tuple[Image, Truth]) -> None:
    reference = pair[1].reference
    image = np.float32(1.045) * reference + np.float32(13.0)
    np.testing.assert_allclose(Affine().restore(image, pair[1]), reference, atol=1e-4)


def test_gaussian_affine_keeps_the_mean_of_a_flat_image_and_lowers_noise(pair: tuple[Image, Truth]) -> None:
    rng = np.random.default_rng(3)
    image = (117.5 + rng.normal(0, 8, (96, 96))).astype(np.float32)
    restored = GaussianAffine().restore(image, pair[1])
    assert restored.mean() == pytest.approx(100.0, abs=0.3)
    # a Gaussian of sigma 1 lets 1/(4 pi) of white noise's variance through
    assert restored.var() == pytest.approx((8 / 1.045) ** 2 / (4 * np.pi), rel=0.15)


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (50, 121)])
def test_transfer_reproduces_reflecting_convolution(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(4).uniform(0, 255, shape)
    kernel = airy_psf(2.0, 4.0, 1.95, 0.4)
    half = kernel.shape[0] // 2
    padded = np.pad(image, half, mode="reflect")
    expected = np.zeros(shape)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            # convolution mirrors the kernel; the kernel is its own mirror image
            expected += kernel[row, column] * padded[row : row + shape[0], column : column + shape[1]]
    extended = symmetric_extension(image)
    assert extended.shape == (2 * shape[0] - 2, 2 * shape[1] - 2)
    transfer = kernel_transfer(kernel, (extended.shape[0], extended.shape[1]))
    blurred = np.fft.irfft2(transfer * np.fft.rfft2(extended), s=extended.shape)
    np.testing.assert_allclose(blurred[: shape[0], : shape[1]], expected, atol=1e-8)


def test_kernel_larger_than_the_grid_wraps() -> None:
    kernel = airy_psf(9.0, 9.0)
    transfer = kernel_transfer(kernel, (30, 22))
    fy, fx = np.fft.fftfreq(30), np.fft.rfftfreq(22)
    axis = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    direct = np.exp(-2j * np.pi * np.outer(fy, axis)) @ kernel @ np.exp(-2j * np.pi * np.outer(axis, fx))
    np.testing.assert_allclose(transfer, direct, atol=1e-12)


def test_ideal_wiener_beats_every_gaussian_and_scalar_filter(pair: tuple[Image, Truth]) -> None:
    image, truth = pair
    restored = IdealWiener().restore(image, truth)
    reached = mean_square(restored, truth.reference)
    for sigma in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0):
        smoothed = gaussian_filter(image.astype(np.float64), sigma)
        slope, intercept = np.polyfit(smoothed.ravel(), truth.reference.ravel(), 1)
        assert reached < mean_square(slope * smoothed + intercept, truth.reference)


def test_ideal_wiener_returns_the_reference_where_nothing_was_lost() -> None:
    reference = scene(96)
    sharp = Degradation(rx=0.3, ry=0.3, beta=2.0, theta=0.0, a=1.1, b=5.0, sigma=0.0, dose=1e12)
    image = degrade(reference, sharp, None)
    restored = IdealWiener().restore(image, Truth(reference, sharp))
    np.testing.assert_allclose(restored, reference, atol=0.1)


def test_ideal_wiener_refuses_what_it_cannot_know(pair: tuple[Image, Truth]) -> None:
    image, truth = pair
    with pytest.raises(InputError, match="degradation's parameters"):
        IdealWiener().restore(image, Truth(truth.reference, None))
    with pytest.raises(InputError, match="differ"):
        IdealWiener().restore(image[:64, :64], truth)


@pytest.mark.parametrize("control", [Oracle, Affine, GaussianAffine, IdealWiener])
def test_controls_refuse_bad_images_and_leave_good_ones_alone(control: type, pair: tuple[Image, Truth]) -> None:
    image, truth = pair
    before = image.copy()
    image.flags.writeable = False
    restored = control().restore(image, truth)
    assert restored.dtype == np.float32
    assert restored.shape == image.shape
    assert restored.min() >= 0
    assert restored.max() <= 255
    np.testing.assert_array_equal(image, before)
    with pytest.raises(InputError, match="finite"):
        control().restore(np.full((64, 64), np.nan, dtype=np.float32), truth)
