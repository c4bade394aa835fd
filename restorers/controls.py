"""Controls: reference lines that are told the truth, shown beside the methods and never ranked."""

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

from sembench.errors import InputError
from sembench.optics import RANGES, Degradation
from sembench.restorer import Control, Image, Truth, check_image

MEAN_OFFSET = sum(RANGES["b"]) / 2
"""Mean of the forward model's offset b (gray levels)."""

MEAN_GAIN = sum(RANGES["a"]) / 2
"""Mean of the forward model's gain a."""


def undo_mean_affine(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """Undo the forward model's mean gain and offset: (image - 13) / 1.045, gray levels."""
    return (image - MEAN_OFFSET) / MEAN_GAIN


def symmetric_extension(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Extend (H, W) to the periodic (2 (H - 1), 2 (W - 1)) by reflection, the edge pixel not repeated."""
    height, width = image.shape
    return np.pad(image.astype(np.float64), ((0, height - 2), (0, width - 2)), mode="reflect")


def kernel_transfer(kernel: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.complex128]:
    """The transfer function of a centred odd kernel on the half-plane grid of `rfft2` for the periodic (H, W).

    A kernel larger than the grid is wrapped onto it, as periodic convolution has it.
    """
    rows = (np.arange(kernel.shape[0]) - kernel.shape[0] // 2) % shape[0]
    columns = (np.arange(kernel.shape[1]) - kernel.shape[1] // 2) % shape[1]
    wrapped = np.zeros(shape)
    np.add.at(wrapped, (rows[:, None], columns[None, :]), kernel)
    return fft.rfft2(wrapped)


def ideal_wiener(image: NDArray[np.floating], reference: NDArray[np.floating], truth: Degradation) -> Image:
    """The Wiener filter that knows kernel, gain, offset, noise and the clean image's own spectrum.

    image, reference: (H, W), gray levels. Returns float32 (H, W), clipped to 0..255: in practice the limit of linear
    shift-invariant restoration. Both images are extended symmetrically to the periodic (2 (H - 1), 2 (W - 1)).
    The noise spectrum is the larger of the model's and that of the model's error at the borders, smoothed by a
    Gaussian of 3 bins; without the latter the error rings through the whole image.
    """
    clean = symmetric_extension(reference)
    observed = symmetric_extension(image)
    mean = clean.mean()
    transfer = truth.a * kernel_transfer(truth.kernel(), clean.shape)
    clean_spectrum = fft.rfft2(clean - mean)
    signal = np.abs(clean_spectrum) ** 2 / clean.size
    model_noise = (truth.a * reference.astype(np.float64) + truth.b).mean() / truth.dose + truth.sigma**2
    spectrum = fft.rfft2(observed - truth.b - truth.a * mean)
    error = np.abs(fft.fft2(observed - truth.b - fft.irfft2(transfer * fft.rfft2(clean), s=clean.shape))) ** 2
    smoothed = gaussian_filter(error / clean.size, 3, mode="wrap")[:, : signal.shape[1]]
    noise = np.maximum(model_noise, smoothed)
    restored = fft.irfft2(
        np.conj(transfer) * signal / (np.abs(transfer) ** 2 * signal + noise) * spectrum, s=clean.shape
    )
    height, width = image.shape
    return np.clip(restored[:height, :width] + mean, 0.0, 255.0).astype(np.float32)


class Oracle(Control):
    """The reference itself: what a perfect restoration scores."""

    def restore(self, image: Image, truth: Truth, /) -> Image:
        check_image(image)
        check_image(truth.reference)
        return truth.reference.astype(np.float32)


class Affine(Control):
    """The input with the mean gain and offset of the forward model undone: the share of gray levels in the loss."""

    def restore(self, image: Image, truth: Truth, /) -> Image:
        check_image(image)
        return np.clip(undo_mean_affine(image), 0.0, 255.0).astype(np.float32)


class GaussianAffine(Control):
    """A Gaussian of 1 px, then the mean gain and offset of the forward model undone."""

    def restore(self, image: Image, truth: Truth, /) -> Image:
        check_image(image)
        smoothed = gaussian_filter(image.astype(np.float64), 1.0)
        return np.clip(undo_mean_affine(smoothed), 0.0, 255.0).astype(np.float32)


class IdealWiener(Control):
    """Wiener filter that knows kernel, noise and the clean spectrum: the limit of linear restoration."""

    def restore(self, image: Image, truth: Truth, /) -> Image:
        check_image(image)
        if truth.degradation is None:
            raise InputError("ideal_wiener needs the degradation's parameters: run it on a protocol that degrades")
        if truth.reference.shape != image.shape:
            raise InputError(
                f"image of shape {image.shape} and reference of shape {truth.reference.shape} differ: "
                "give the reference of this image"
            )
        return ideal_wiener(image, truth.reference, truth.degradation)
