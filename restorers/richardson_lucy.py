"""Richardson-Lucy deconvolution with a fixed kernel."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import fft

from restorers.fixed_kernel import KernelSettings, cut, fixed_kernel, pad
from sembench.restorer import Image, Restorer, check_image


def richardson_lucy(image: NDArray[np.floating], kernel: NDArray[np.floating], iterations: int) -> NDArray[np.floating]:
    """scikit-image's update (start 0.5, zero border, 1e-12 in the quotient), the kernel's transforms kept.

    image: (H, W), above or at 0; kernel: odd (k, k). Computed and returned in the image's precision.
    """
    kernel = kernel.astype(image.dtype)
    full = [n + k - 1 for n, k in zip(image.shape, kernel.shape, strict=True)]
    padded = [fft.next_fast_len(n, real=True) for n in full]
    start = [(k - 1) // 2 for k in kernel.shape]
    inner = tuple(slice(s, s + n) for s, n in zip(start, image.shape, strict=True))
    transform = fft.rfftn(kernel, padded)
    mirrored = fft.rfftn(np.flip(kernel), padded)

    def convolve(signal: NDArray[np.floating], kernel_transform: NDArray[np.complexfloating]) -> NDArray[np.floating]:
        return fft.irfftn(fft.rfftn(signal, padded) * kernel_transform, padded)[inner]

    estimate = np.full(image.shape, 0.5, dtype=image.dtype)
    for _ in range(iterations):
        blurred = convolve(estimate, transform) + image.dtype.type(1e-12)
        estimate = estimate * convolve(image / blurred, mirrored)
    return estimate


class RichardsonLucy(Restorer):
    """Richardson-Lucy deconvolution with one fixed Airy kernel."""

    citation = "W. H. Richardson, JOSA 62 (1972); L. B. Lucy, Astron. J. 79 (1974)"

    class Settings(KernelSettings):
        iterations: int = Field(30, ge=1, le=1000, description="number of iterations")

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        kernel = fixed_kernel(self.settings.radius, self.settings.beta)
        half = kernel.shape[0] // 2
        return cut(richardson_lucy(pad(image, half), kernel, self.settings.iterations), half)
