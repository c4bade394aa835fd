"""BM3D denoising."""

from importlib.util import find_spec
from typing import Any

import numpy as np

from restorers.noise_level import noise_sigma
from sembench.restorer import Image, Need, Restorer, check_image


class BM3D(Restorer):
    """BM3D denoising (package bm3d, non-commercial use only), noise level from the image itself."""

    keeps_intensity = True
    licence = "Tampere University, non-commercial use only"
    citation = (
        "K. Dabov et al., IEEE Trans. Image Process. 16 (2007); Y. Makinen et al., IEEE Trans. Image Process. 29 (2020)"
    )

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        if find_spec("bm3d") is None:
            return [
                Need("bm3d", "package is not installed", "pip install 'sembench[noncommercial]' (non-commercial use)")
            ]
        return []

    def restore(self, image: Image, /) -> Image:
        import bm3d

        check_image(image)
        scaled = image.astype(np.float64) / 255
        sigma = noise_sigma(scaled)
        if sigma == 0:
            return image
        profile = bm3d.BM3DProfile()
        profile.num_threads = 1
        return (np.clip(bm3d.bm3d(scaled, sigma_psd=sigma, profile=profile), 0, 1) * 255).astype(np.float32)
