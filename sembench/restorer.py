"""The plugin API: what a restoration method is, and what it may ask for."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sembench.errors import InputError
from sembench.optics import (
    DEGRADATIONS,
    LARGEST_RADIUS,
    UNBLURRED,
    Degradation,
    add_noise,
    blurred_signal,
    generator,
)
from sembench.symmetry import turned_spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

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
    """Licence under which the method, and the weights that it uses, may be used: an SPDX name where there is one."""
    citation: ClassVar[str] = ""
    """What to cite: author, title, year, DOI or address; empty where there is nothing."""
    version: ClassVar[int] = 1
    """To be raised by one whenever results change: rows of another version are other rows.

    Records of equal version are taken to be of equal code and are kept; where the code was changed all the same, a run
    only says so.
    """
    expected_failures: ClassVar["Mapping[str, str]"] = MappingProxyType({})
    """Checks of `sembench check` that are known to fail, each with its reason; one that passes all the same is told."""

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
        """Weights or packages that are missing here; an empty list says that the method can run.

        Asked before anything is run, on a machine that may lack them: look with `importlib.util.find_spec("pywt")` and
        import inside `restore`. `[Need("PyWavelets", "not installed", "pip install PyWavelets")]` is such a list. What
        a package requires in its pyproject.toml need not be named.
        """
        return []


class Restorer(Method):
    """A method that turns a degraded image into a restored one, seeing nothing else.

    A method that learns has in addition `fit(self, training: TrainingSet, /) -> None`, which sets `state`; the suite
    keeps the state in its cache and sets it again, so `restore` must not need anything else that `fit` made. It may
    have `weights_digest(settings) -> str`, the SHA-256 of pretrained weights that it starts from. A method that learns
    and has settings `degradation` and `seed` is fitted by them.

    A method may have `embed(self, image, /)`, which gives a real vector (features,) of one length for every image, by
    which protocols over sets compare; it is called unfitted.
    """

    kind = "restorer"
    state: "dict[str, Tensor] | None" = None
    """What `fit` learned, as torch tensors; None before."""
    report: dict[str, Any] | None = None
    """What `fit` has to tell of itself: plain values, such as steps, seconds, parameters and the learning curve."""
    device: str = "cpu"
    """Where torch computes: `cpu`, `cuda` or `cuda:N`."""
    settings_after_fit: ClassVar[tuple[str, ...]] = ()
    """Names of settings that `restore` alone uses, so that a fit does not depend on them."""
    keeps_intensity: ClassVar[bool] = False
    """Whether a flat image comes back as it was; methods that undo a gain and an offset do not declare it."""
    tile_tolerance: ClassVar[float] = 0.01
    """Gray levels by which an image restored in tiles of `tile_overlap` may differ from one restored as a whole."""

    def tile_overlap(self) -> int | None:
        """Surroundings (px) on which a restored pixel depends, so that an image may be cut into tiles; None: never cut.

        A method of which a pixel depends on the whole image, as by an estimate of its noise or its spectrum, leaves
        this as it is.
        """
        return None

    @classmethod
    def learns(cls) -> bool:
        """Whether the method has a `fit`."""
        return callable(getattr(cls, "fit", None))

    @classmethod
    def trained_on(cls, settings: Any) -> tuple[str, ...]:
        """Names of metrics that training by these settings minimises or selects by, such as `("lpips",)`.

        Shown beside the rank, as such a metric then says less of a method. Plain pixel differences need not be named.
        """
        return ()

    @classmethod
    def weights_digest(cls, settings: Any) -> str:
        """SHA-256 of the pretrained weights that these settings use; empty where there are none."""
        return ""

    def restore(self, image: Image, /) -> Image:
        """Restore one image.

        image: float32 (H, W), gray levels 0..255, read-only, 32 x 32 px at least.
        Returns an image of equal shape, finite, gray levels 0..255.
        """
        raise InputError(f"{type(self).__name__} has no restore(image) method: write one")

    def uncertainty(self, image: Image, /) -> Image | None:
        """How far each restored pixel may be off, in gray levels, as far as the method can tell: (H, W), 0 at least.

        None where the method cannot tell, which must not depend on the image. Here, for methods that learn: how little
        the method agrees with itself, the standard deviation over the eight turned and mirrored images. That is no
        calibrated error but a lower bound in practice: what all eight get wrong alike does not show in it, which is
        most of the error. A method that knows better overrides this.
        """
        return turned_spread(self.restore, image) if self.learns() else None


class Control(Method):
    """A reference line that is told the truth: shown and published, never ranked."""

    kind = "control"

    def restore(self, image: Image, truth: Truth, /) -> Image:
        """Restore one image, the truth given; arrays as for Restorer.restore."""
        raise InputError(f"{type(self).__name__} has no restore(image, truth) method: write one")


PATCH_SIDE = 224
"""Side of a training patch (px)."""

PATCH_MARGIN = 96
"""Real surroundings of a training patch (px) that its blur sees: half the widest kernel."""

INNER = (slice(PATCH_MARGIN, -PATCH_MARGIN),) * 2
"""A patch within its surroundings."""

PAPER_CROPS = (128, 256, 512, 1024)
"""Sides (px) of the crops that the paper resizes to a patch."""

VALIDATION_PATCHES = 32
"""Fixed patches by which a fit selects its state."""

VALIDATION_SEED = 2604
"""Seed of the validation patches, whatever the fit's seed."""

BUDGETS = {"quick": 200, "standard": 4000, "long": 20_000}
"""Steps of the named budgets."""


@dataclass(frozen=True)
class Budget:
    """How long a method may learn: a number of steps of `batch` patches, or of minutes, which is for trying things."""

    name: str
    steps: int | None
    batch: int = 4
    minutes: float | None = None

    def share(self, share: float) -> "Budget":
        """This share (0..1) of the budget under its name: at least one step."""
        steps = None if self.steps is None else max(1, round(share * self.steps))
        return replace(self, steps=steps, minutes=None if self.minutes is None else share * self.minutes)

    @classmethod
    def of(cls, name: str) -> "Budget":
        """The budget `quick`, `standard`, `long`, or `<N>min`; InputError for anything else."""
        if name in BUDGETS:
            return cls(name, BUDGETS[name])
        found = re.fullmatch(r"(\d+(?:\.\d+)?)min", name)
        if found is None or not 0 < float(found[1]) <= 100_000:
            raise InputError(f"budget {name!r} is not known: give {', '.join(BUDGETS)}, or minutes as in 10min")
        return cls(name, None, minutes=float(found[1]))


@dataclass(frozen=True, eq=False)
class Patch:
    """One training example; images are float32 (224, 224), gray levels 0..255.

    clean: cut from a micrograph; degraded: one noisy draw; second: an independent second draw of the noise on the same
    blurred patch; signal: that patch without noise; degradation: its parameters, radii in px of the patch.
    surroundings: the degraded area, `margin` px wider on every side, whose middle `degraded` is: what a method may read
    an image's spectrum off.
    """

    clean: Image
    degraded: Image
    second: Image
    signal: Image
    degradation: Degradation | None
    surroundings: Image
    margin: int


@dataclass(frozen=True)
class FitProgress:
    """How far a fit has come: step of steps (None: by minutes), the losses, seconds left, share of time waiting."""

    step: int
    steps: int | None
    loss: float
    validation: float | None
    seconds_left: float
    waiting: float


Crops = Literal["native", "mixed", "paper"]


@dataclass(frozen=True, eq=False)
class Start:
    """Where a fit begins that goes on from another: its state, the SHA-256 of that, and its share of the rate.

    rate: learning rate as a share of the method's own.
    """

    state: "Mapping[str, Tensor]"
    sha256: str
    rate: float = 1.0


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What a method may learn from: patches degraded on the fly, a validation set, a budget, a seed, a device.

    images, validation: clean micrographs, float32 (H, W), gray levels 0..255, any size; degradation: `paper` or
    `broad`; seed: of the patches and of the method's own random draws; folder: where checkpoints and the learning curve
    may be kept (None: nowhere); on_progress: to be told how far the fit has come; start: the state to begin from (None:
    the method's own first weights). A method whose fit leaves that to restorers.fitting need not look at it.
    """

    images: tuple[Image, ...]
    validation: tuple[Image, ...]
    degradation: str = "paper"
    budget: Budget = Budget("standard", BUDGETS["standard"])
    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None
    on_progress: Callable[[FitProgress], None] | None = None
    start: Start | None = None

    def __post_init__(self) -> None:
        if self.degradation not in DEGRADATIONS:
            raise InputError(f"degradation {self.degradation!r} is not known: give {' or '.join(DEGRADATIONS)}")
        for what, images in (("training", self.images), ("validation", self.validation)):
            if not images:
                raise InputError(f"no {what} images: give at least one")
            for image in images:
                check_image(image)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pixels, in order."""
        hasher = hashlib.sha256()
        for role, images in ((b"train", self.images), (b"validation", self.validation)):
            for image in images:
                hasher.update(role + repr(image.shape).encode())
                hasher.update(np.ascontiguousarray(image, dtype=np.float32).tobytes())
        return hasher.hexdigest()

    def for_worker(self) -> "TrainingSet":
        """The same patches without what another process cannot be told."""
        return replace(self, on_progress=None, folder=None, start=None)

    def batch(self, step: int, *, crops: Crops = "native") -> list[Patch]:
        """The patches of one step, from 0 on: always the same for (seed, step), images and degradation.

        crops: `native` cuts at scale 1; `paper` resizes crops of PAPER_CROPS that fit the image to a patch; `mixed`
        does so with half of the patches. A resized crop is resized clean, then degraded as it would have been before:
        radii and the noise's standard deviation shrink with it; where it grows the radii do, the noise does not.
        """
        return [self._patch(self.images, self.seed, f"{step}.{i}", crops) for i in range(self.budget.batch)]

    def validation_patches(self) -> list[Patch]:
        """The fixed patches, at scale 1, by which a state is selected; the same for every seed and budget."""
        return [
            self._patch((self.validation[i % len(self.validation)],), VALIDATION_SEED, f"validation.{i}", "native")
            for i in range(VALIDATION_PATCHES)
        ]

    def _patch(self, images: tuple[Image, ...], seed: int, patch_id: str, crops: Crops) -> Patch:
        rng = generator(seed, patch_id, "patch")
        image = images[int(rng.integers(len(images)))]
        scale = _crop_scale(generator(seed, patch_id, "scale"), image, crops)
        area = _Cut.drawn(rng, image.shape, scale, turns=4).of(image)
        parameters = DEGRADATIONS[self.degradation](rng)
        if scale != 1:
            parameters = _rescaled(parameters, scale)
        signal = blurred_signal(area, parameters)
        wide = np.clip(add_noise(signal, parameters, rng), 0, 255).astype(np.float32)
        second = np.clip(add_noise(signal[INNER], parameters, rng), 0, 255).astype(np.float32)
        inner = signal[INNER].astype(np.float32)
        return Patch(area[INNER].copy(), wide[INNER].copy(), second, inner, parameters, wide, PATCH_MARGIN)


@dataclass(frozen=True, eq=False)
class PairSet(TrainingSet):
    """What a method may learn from where real pairs are at hand: patches cut from both scans at the same place.

    images, validation: the references, registered on the inputs and brought to their gain and offset, cut to where both
    are valid; inputs, validation_inputs: the raw inputs, of equal shapes and order. degradation: what the start was
    trained with. Raises InputError where inputs and references do not fit.
    """

    inputs: tuple[Image, ...] = ()
    validation_inputs: tuple[Image, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, images, inputs in (
            ("training", self.images, self.inputs),
            ("validation", self.validation, self.validation_inputs),
        ):
            if [image.shape for image in images] != [image.shape for image in inputs]:
                raise InputError(f"{what} pairs: inputs and references differ in number or size: give registered pairs")
            for image in inputs:
                check_image(image)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pixels, in order."""
        inputs = TrainingSet(self.inputs, self.validation_inputs)
        return hashlib.sha256(f"pairs {super().digest} {inputs.digest}".encode()).hexdigest()

    def batch(self, step: int, *, crops: Crops = "native") -> list[Patch]:
        """The patches of one step, from 0 on, with clean: the reference, degraded: the input, degradation None.

        second and signal are the reference too: the only other scan of the same place, its noise independent of the
        input's.
        crops: as for TrainingSet, but that input and reference are both resized as they are, noise included.
        """
        pairs = list(zip(self.images, self.inputs, strict=True))
        return [self._pair_patch(pairs, self.seed, f"{step}.{i}", crops) for i in range(self.budget.batch)]

    def validation_patches(self) -> list[Patch]:
        """The fixed patches, at scale 1, of the validation pairs in turn."""
        pairs = list(zip(self.validation, self.validation_inputs, strict=True))
        return [
            self._pair_patch([pairs[i % len(pairs)]], VALIDATION_SEED, f"validation.{i}", "native")
            for i in range(VALIDATION_PATCHES)
        ]

    def _pair_patch(self, pairs: list[tuple[Image, Image]], seed: int, patch_id: str, crops: Crops) -> Patch:
        """Turned by half turns only, so that the fast axis, along which noise is correlated, stays where it is."""
        rng = generator(seed, patch_id, "patch")
        reference, degraded = pairs[int(rng.integers(len(pairs)))]
        scale = _crop_scale(generator(seed, patch_id, "scale"), reference, crops)
        cut = _Cut.drawn(rng, reference.shape, scale, turns=2)
        clean, wide = cut.of(reference)[INNER].copy(), cut.of(degraded)
        return Patch(clean, wide[INNER].copy(), clean, clean, None, wide, PATCH_MARGIN)


@dataclass(frozen=True)
class _Cut:
    """A patch's place in an image: rows and columns with the margin, turned, mirrored, resized to the patch's scale."""

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    turn: int
    flip: bool
    resize: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator, shape: tuple[int, ...], scale: float, *, turns: Literal[2, 4]) -> "_Cut":
        """A place drawn at random; turns: 4 quarter turns or 2 half turns."""
        side, margin = round(PATCH_SIDE / scale), round(PATCH_MARGIN / scale)
        y, x = (_offset(rng, length, side) for length in shape)
        turn, flip = int(rng.integers(turns)) * (4 // turns), bool(rng.integers(2))
        rows, columns = (
            _reflected(start - margin, start + side + margin, n) for start, n in zip((y, x), shape, strict=True)
        )
        return cls(rows, columns, turn, flip, scale != 1)

    def of(self, image: Image) -> Image:
        """The patch of an image with PATCH_MARGIN px around it."""
        area = np.rot90(image[np.ix_(self.rows, self.columns)], self.turn)
        area = np.ascontiguousarray(area[:, ::-1] if self.flip else area)
        return _resized(area, PATCH_SIDE + 2 * PATCH_MARGIN) if self.resize else area


def _crop_scale(rng: np.random.Generator, image: Image, crops: Crops) -> float:
    """Patch pixels a pixel of the image."""
    fitting = [side for side in PAPER_CROPS if side <= min(image.shape)]
    if crops == "native" or not fitting or (crops == "mixed" and rng.uniform() < 0.5):
        return 1.0
    return PATCH_SIDE / fitting[int(rng.integers(len(fitting)))]


def _offset(rng: np.random.Generator, length: int, side: int) -> int:
    return int(rng.integers(length - side + 1)) if length >= side else -((side - length) // 2)


def _reflected(start: int, stop: int, length: int) -> NDArray[np.intp]:
    """Indices start..stop - 1 of an axis that goes on by reflection, the edge pixel not repeated."""
    period = 2 * (length - 1)
    return np.abs((np.arange(start, stop) + length - 1) % period - (length - 1))


def _resized(area: Image, side: int) -> Image:
    """A square area resized to `side` px by a bicubic filter that is as wide as the coarser of the two grids."""
    from PIL import Image as Picture

    picture = Picture.fromarray(area, mode="F").resize((side, side), Picture.Resampling.BICUBIC)
    return np.clip(np.asarray(picture, dtype=np.float32), 0, 255)


def _rescaled(parameters: Degradation, scale: float) -> Degradation:
    """The degradation as it looks after resizing by `scale`; shrinking averages the noise of 1/scale^2 pixels."""
    shrink = min(scale, 1.0)
    radii = {name: min(max(getattr(parameters, name) * scale, UNBLURRED), LARGEST_RADIUS) for name in ("rx", "ry")}
    return replace(parameters, **radii, sigma=parameters.sigma * shrink, dose=parameters.dose / shrink**2)


def check_image(image: NDArray[Any], *, smallest: int = SMALLEST_SIDE) -> None:
    """Refuse what is not a finite 2-D image of at least `smallest` px a side; the InputError says what came."""
    if image.ndim != 2:
        raise InputError(f"an image must be 2-D (H, W), not {image.ndim}-D with shape {image.shape}")
    if min(image.shape) < smallest:
        raise InputError(f"image of {image.shape[0]} x {image.shape[1]} px is too small: {smallest} px a side at least")
    if not np.isfinite(image).all():
        raise InputError(f"image has {int((~np.isfinite(image)).sum())} values that are not finite (NaN or infinite)")
