"""What `semfm` with weights that restore is compared with: the same training without its encoder, or with another one.

    sembench train semfm --recipe benchmarks/restoring-none.toml --out RUN
    sembench run --restorer benchmarks/restoring_controls.py:PathAlone --set weights=RUN/restoring/best.json
    sembench run --restorer benchmarks/restoring_controls.py:OtherWeights --set weights=RUN/restoring/best.json

Both are adapted like semfm, from where their own restoring ended.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from restorers.fitting import seeded
from restorers.semfm.adaptation import PathNetwork
from restorers.semfm.restorer import NoEncoder, Semfm
from restorers.semfm.restoring import PATH
from restorers.semfm.storage import load_part

_WEIGHTS: Any = Field(description="best.json that a recipe with restoring left")
_RATE: Any = Field(2e-4, gt=0, le=0.1, description="learning rate of AdamW")


class OtherWeights(Semfm):
    """semfm from the weights of another run of restoring."""

    class Settings(Semfm.Settings):
        weights: str = _WEIGHTS
        learning_rate: float = _RATE

    @classmethod
    def weights_file(cls, settings: Any) -> Path:
        return Path(settings.weights)


class PathAlone(NoEncoder):
    """The pixel path alone, from weights that learned to restore without an encoder."""

    anchored = True

    class Settings(NoEncoder.Settings):
        weights: str = _WEIGHTS
        learning_rate: float = _RATE

    @classmethod
    def weights_digest(cls, settings: Any) -> str:
        return hashlib.sha256(Path(settings.weights).read_bytes()).hexdigest()

    def _new(self) -> nn.Module:
        file = Path(self.settings.weights)
        told = json.loads(file.read_text(encoding="utf-8"))[PATH]
        with seeded(self.settings.seed):
            blocks = (1, 1, told["coarse_blocks"])
            network = PathNetwork(told["width"], blocks, physics=True, rectified=told["rectified"])
        network.load_state_dict(load_part(file, told))
        return network
