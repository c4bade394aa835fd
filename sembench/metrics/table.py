"""What a metric is, and how a restored image is scored by several of them at once."""

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sembench.errors import InputError, SembenchError
from sembench.line_scenes import LineTruth
from sembench.optics import Degradation

Image = NDArray[np.float32]
"""float32 (H, W), gray levels 0..255 on the grid of 1/256."""

Better = Literal["higher", "lower", "none"]
T = TypeVar("T")


class UndefinedError(SembenchError):
    """A metric has no value for this image; the message says why."""


@dataclass(frozen=True, eq=False)
class MetricCase:
    """What the scores of one case share, whoever restored it: build it once a case and pass it for every restorer.

    degraded: the input, float32 (H, W), gray levels 0..255; reference: of equal shape, or None; degradation: what made
    the input from the reference, or None where nobody knows; margin: px at each border that are not scored;
    pixel_size_nm: (x, y); truth: true edges of the lines; both None where nobody knows. flat: whether the scene has no
    features.
    Raises InputError where shapes differ or the margin leaves nothing.
    """

    degraded: Image
    reference: Image | None = None
    degradation: Degradation | None = None
    margin: int = 0
    pixel_size_nm: tuple[float, float] | None = None
    truth: LineTruth | None = None
    flat: bool = False
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference.shape != self.degraded.shape:
            raise InputError(
                f"reference of {_size(self.reference)} px does not fit the input of {_size(self.degraded)} px: "
                "they must be of one shape"
            )
        if self.margin < 0 or 2 * self.margin >= min(self.degraded.shape):
            raise InputError(
                f"a margin of {self.margin} px does not fit an image of {_size(self.degraded)} px: give a smaller one"
            )

    def inner(self, image: "NDArray[Any]") -> "NDArray[Any]":
        """The scored part of an image: all of it but the margin."""
        height, width = image.shape
        return image[self.margin : height - self.margin, self.margin : width - self.margin]

    def inner_reference(self) -> "NDArray[np.float64]":
        """The scored part of the reference, float64; raises UndefinedError where the case has none."""
        if self.reference is None:
            raise UndefinedError("needs a reference image and this case has none")
        return self.inner(self.reference).astype(np.float64)

    def once(self, compute: "Callable[[MetricCase], T]") -> T:
        """The result of `compute(case)`, made at the first call and shared by all metrics and restorers of the case."""
        if compute not in self._kept:
            self._kept[compute] = compute(self)
        found: T = self._kept[compute]
        return found


@dataclass(frozen=True, eq=False)
class Scored:
    """One restored image of one case; what the metric functions are given.

    restored: float32 (H, W), gray levels 0..255 on the grid. Raises InputError where its shape is not the input's.
    """

    restored: Image
    case: MetricCase
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.restored.shape != self.case.degraded.shape:
            raise InputError(
                f"restored image of {_size(self.restored)} px does not fit the input of "
                f"{_size(self.case.degraded)} px: they must be of one shape"
            )

    def inner_restored(self) -> "NDArray[np.float64]":
        """The scored part of the restored image, float64."""
        return self.case.inner(self.restored).astype(np.float64)

    def once(self, compute: "Callable[[Scored], T]") -> T:
        """The result of `compute(scored)`, made at the first call and shared by the metrics of this restored image."""
        if compute not in self._kept:
            self._kept[compute] = compute(self)
        found: T = self._kept[compute]
        return found


@dataclass(frozen=True)
class MetricSpec:
    """One metric: its name and unit, which direction is better, what it needs, and the function that computes it.

    function: takes a Scored, returns a float, raises UndefinedError with the reason where there is no value.
    needs_reference, needs_degradation, needs_truth, needs_pixel_size, needs_flat: what a case must bring for the metric
    to apply.
    version: raised by hand whenever values change. tolerance: largest difference that `verify` accepts on another
    machine. needs: reasons, each with its mend, why the metric cannot run here (empty: it can).
    smallest_side: shortest side of the scored part (px).
    """

    name: str
    title: str
    unit: str
    better: Better
    needs_reference: bool
    needs_degradation: bool
    function: Callable[[Scored], float]
    version: int
    tolerance: float
    needs: Callable[[], list[str]] = list
    smallest_side: int = 1
    needs_truth: bool = False
    needs_pixel_size: bool = False
    needs_flat: bool = False

    def missing(self, scored: Scored) -> str | None:
        """Why this metric has no value for the case, whatever the pixels; None where it has one."""
        if self.needs_reference and scored.case.reference is None:
            return "needs a reference image and this case has none"
        if self.needs_degradation and scored.case.degradation is None:
            return "needs the parameters of the degradation and this case has none"
        if self.needs_truth and scored.case.truth is None:
            return "needs the true edges and this case has none"
        if self.needs_pixel_size and scored.case.pixel_size_nm is None:
            return "needs a pixel size and this case has none"
        if self.needs_flat and not scored.case.flat:
            return "needs a flat field and this case is none"
        scored_part = scored.case.inner(scored.restored)
        if min(scored_part.shape) < self.smallest_side:
            return f"needs {self.smallest_side} px a side at least, not {_size(scored_part)} px"
        return "; ".join(self.needs()) or None


@dataclass(frozen=True)
class Evaluation:
    """The scores of one restored image: metric name -> value, None where undefined, and then name -> reason.

    inapplicable: those among the reasons that no restored image could have changed.
    """

    values: dict[str, float | None]
    reasons: dict[str, str]
    inapplicable: tuple[str, ...] = ()


def evaluate(metrics: Iterable[MetricSpec], restored: Image, case: MetricCase) -> Evaluation:
    """Score one restored image by each metric, work shared between metrics and between the case's restorers.

    restored: float32 (H, W), gray levels 0..255 on the grid. A metric that has no value here gives None and a reason.
    Raises InputError where the restored image's shape is not the case's.
    """
    scored = Scored(restored, case)
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    inapplicable: list[str] = []
    for metric in metrics:
        try:
            values[metric.name] = value_of(metric, scored)
        except UndefinedError as error:
            values[metric.name] = None
            reasons[metric.name] = str(error)
            if metric.missing(scored):
                inapplicable.append(metric.name)
    return Evaluation(values, reasons, tuple(inapplicable))


def value_of(metric: MetricSpec, scored: Scored) -> float:
    """One metric's value, finite; raises UndefinedError with the reason where it has none."""
    missing = metric.missing(scored)
    if missing:
        raise UndefinedError(missing)
    value = float(metric.function(scored))
    if not math.isfinite(value):
        raise UndefinedError(f"came out as {value}")
    return value


def _size(image: "NDArray[Any]") -> str:
    return " x ".join(str(side) for side in image.shape)
