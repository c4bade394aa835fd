"""Wiener deconvolution with a fixed kernel."""

from pydantic import Field

from restorers.fixed_kernel import KernelSettings, cut, fixed_kernel, pad
from sembench.restorer import Image, Restorer, check_image


class Wiener(Restorer):
    """Wiener deconvolution with one fixed Airy kernel (scikit-image)."""

    keeps_intensity = True

    citation = "F. Orieux et al., Bayesian estimation of regularization for Wiener-Hunt deconvolution, JOSA A 27 (2010)"

    class Settings(KernelSettings):
        balance: float = Field(0.01, gt=0, le=1e6, description="weight of the regularisation")

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        from skimage.restoration import wiener

        kernel = fixed_kernel(self.settings.radius, self.settings.beta)
        half = kernel.shape[0] // 2
        return cut(wiener(pad(image, half), kernel, self.settings.balance, clip=True), half)
