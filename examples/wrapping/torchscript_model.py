"""A TorchScript file as a restorer."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from sembench.restorer import Image, Need, Restorer, check_image


class TorchScriptModel(Restorer):
    """A TorchScript model that takes and gives (1, 1, H, W), values 0..1."""

    class Settings(Restorer.Settings):
        file: str = Field("model.pt", max_length=1000, description="path of the TorchScript file")

    _model: Any = None

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        if Path(settings.file).is_file():
            return []
        return [Need("a model", f"{settings.file} is not there", "give --set file=MODEL.pt")]

    def restore(self, image: Image, /) -> Image:
        import torch

        check_image(image)
        if self._model is None:
            self._model = torch.jit.load(self.settings.file, map_location=self.device).eval()
        with torch.inference_mode():
            batch = torch.from_numpy(image / np.float32(255))[None, None].to(self.device)
            return np.clip(self._model(batch)[0, 0].float().cpu().numpy() * 255, 0, 255)
