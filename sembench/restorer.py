"""The plugin API: what a restoration method is, and what it may ask for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sembench.errors import InputError
from sembench.optics import Degradation

if TYPE_CHECKING:
    from collections.abc import Mapping

Image = NDArray[np.float32]
"""float32 (H, W), gray levels 0..255, finite."""

SMALLEST_SIDE = 32
"""A restorer is never given an image with a shorter side (px)."""


@dataclass(frozen=True)
class Need:
    """Something a restorer cannot do without: what it is, why it is not there, and the command that mends it."""

    what: str
    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}; {self.mend}"


@dataclass(frozen=True)
class Truth:
    """What a control may see and a restorer may not: the reference and how the input was made from it."""

    reference: Image
    degradation: Degradation | None


class Method:
    """What restorers and controls share: validated settings, a licence, a citation, needs."""

    kind: ClassVar[str]
    licence: ClassVar[str] = "Apache-2.0"
    citation: ClassVar[str] = ""
    version: ClassVar[int] = 1

    class Settings(BaseModel):
        """Each field has bounds and a description; a field named `degradation` is filled in from the protocol."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, settings: "Method.Settings | Mapping[str, Any] | None" = None) -> None:
        if isinstance(settings, BaseModel):
            self.settings: Any = settings
        else:
            self.settings = self.Settings(**(settings or {}))

    @classmethod
    def summary(cls) -> str:
        """The first line of the method's docstring."""
        return (cls.__doc__ or "").strip().split("\n", 1)[0]

    @classmethod
    def needs(cls, settings: Any) -> list[Need]:
        """Weights or extras that are missing here; an empty list says that the method can run."""
        return []


class Restorer(Method):
    """A method that turns a degraded image into a restored one, seeing nothing else."""

    kind = "restorer"

    def restore(self, image: Image, /) -> Image:
        """Restore one image.

        image: float32 (H, W), gray levels 0..255, read-only, 32 x 32 px at least.
        Returns an image of equal shape, finite, gray levels 0..255.
        """
        raise InputError(f"{type(self).__name__} has no restore(image) method: write one")


class Control(Method):
    """A reference line that is told the truth: shown and published, never ranked."""

    kind = "control"

    def restore(self, image: Image, truth: Truth, /) -> Image:
        """Restore one image, the truth given; arrays as for Restorer.restore."""
        raise InputError(f"{type(self).__name__} has no restore(image, truth) method: write one")


def check_image(image: NDArray[Any], *, smallest: int = SMALLEST_SIDE) -> None:
    """Refuse what is not a finite 2-D image of at least `smallest` px a side; the InputError says what came."""
    if image.ndim != 2:
        raise InputError(f"an image must be 2-D (H, W), not {image.ndim}-D with shape {image.shape}")
    if min(image.shape) < smallest:
        raise InputError(f"image of {image.shape[0]} x {image.shape[1]} px is too small: {smallest} px a side at least")
    if not np.isfinite(image).all():
        raise InputError(f"image has {int((~np.isfinite(image)).sum())} values that are not finite (NaN or infinite)")
