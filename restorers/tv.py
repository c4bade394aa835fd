"""Total variation denoising."""

import numpy as np
from pydantic import Field

from restorers.noise_level import noise_sigma
from sembench.restorer import Image, Restorer, check_image


class TotalVariation(Restorer):
    """Total variation denoising (Chambolle 2004, scikit-image), weight set by the image's own noise."""

    keeps_intensity = True

    citation = (
        "A. Chambolle, An algorithm for total variation minimization and applications, J. Math. Imaging Vis. 20 (2004)"
    )

    class Settings(Restorer.Settings):
        strength: float = Field(2.5, gt=0, le=50, description="weight in units of the estimated noise sigma")

    def restore(self, image: Image, /) -> Image:
        check_image(image)
        from skimage.restoration import denoise_tv_chambolle

        scaled = image / np.float32(255)
        weight = self.settings.strength * noise_sigma(scaled)
        if weight == 0:
            return image
        return np.clip(denoise_tv_chambolle(scaled, weight=weight), 0, 1).astype(np.float32) * np.float32(255)
