"""An ONNX file as a restorer."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from sembench.restorer import Image, Need, Restorer, check_image


class OnnxModel(Restorer):
    """An ONNX model with one input and one output of (1, 1, H, W), values 0..1."""

    class Settings(Restorer.Settings):
        file: str = Field("model.onnx", max_length=1000, description="path of the ONNX file")

    _session: Any = None

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        if find_spec("onnxruntime") is None:
            return [Need("onnxruntime", "package is not installed", "pip install onnxruntime")]
        if not Path(settings.file).is_file():
            return [Need("a model", f"{settings.file} is not there", "give --set file=MODEL.onnx")]
        return []

    def restore(self, image: Image, /) -> Image:
        import onnxruntime

        check_image(image)
        if self._session is None:
            self._session = onnxruntime.InferenceSession(self.settings.file, providers=["CPUExecutionProvider"])
        name = self._session.get_inputs()[0].name
        restored = self._session.run(None, {name: image[None, None] / np.float32(255)})[0]
        return np.clip(restored[0, 0] * 255, 0, 255).astype(np.float32)
