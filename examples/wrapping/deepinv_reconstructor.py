"""A reconstructor of deepinv as a restorer."""

from importlib.util import find_spec
from typing import Any

import numpy as np
from pydantic import Field

from sembench.optics import airy_psf
from sembench.restorer import Image, Need, Restorer, check_image


class DeepinvDeconvolution(Restorer):
    """Total variation deconvolution with an Airy kernel, by deepinv's FISTA."""

    licence = "BSD-3-Clause (deepinv)"
    citation = "J. Tachella et al., DeepInverse: a Python package for solving imaging inverse problems, JOSS 10 (2025)"

    class Settings(Restorer.Settings):
        radius: float = Field(3.0, gt=0.5, le=6, description="radius of the Airy kernel, px")
        weight: float = Field(0.02, gt=0, le=1, description="weight of the total variation, gray levels of 0..1")
        iterations: int = Field(20, ge=1, le=500, description="iterations of FISTA")

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        if find_spec("deepinv") is None:
            return [Need("deepinv", "package is not installed", "pip install deepinv")]
        return []

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        from sembench.torchvision_compat import ensure_torchvision

        ensure_torchvision()
        import deepinv
        import torch

        kernel = torch.from_numpy(airy_psf(self.settings.radius, self.settings.radius, 2.0).astype(np.float32))
        physics = deepinv.physics.Blur(filter=kernel[None, None], padding="reflect", device=self.device)
        reconstructor = deepinv.optim.optim_builder(
            iteration="FISTA",
            data_fidelity=deepinv.optim.L2(),
            prior=deepinv.optim.TVPrior(n_it_max=20),
            params_algo={"stepsize": 1.0, "lambda": self.settings.weight, "a": 3},
            max_iter=self.settings.iterations,
        )
        with torch.no_grad():
            measured = torch.from_numpy(image / np.float32(255))[None, None].to(self.device)
            restored = reconstructor(measured, physics)[0, 0].float().cpu().numpy()
        return np.clip(restored * 255, 0, 255).astype(np.float32)
