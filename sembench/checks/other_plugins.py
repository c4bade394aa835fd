"""The checks of metrics and protocols, for packages that bring them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from sembench.cases import plan_cases
from sembench.checks.outcome import CheckFailed, CheckSkipped
from sembench.checks.subject import DEGRADATION, scene
from sembench.metrics.clustering import SetMetricSpec
from sembench.metrics.table import MetricCase, MetricSpec, Scored, UndefinedError, value_of
from sembench.protocol import load
from sembench.registry import METRICS, PROTOCOLS, plugin

SIDE = 192
"""Side of the images by which metrics are tried (px)."""


def metric_described(name: str) -> None:
    """The entry point gives a MetricSpec of its own name, with title, direction, version and tolerance."""
    spec = plugin(METRICS, name).load()
    if not isinstance(spec, MetricSpec | SetMetricSpec):
        raise CheckFailed(f"its entry point gives {type(spec).__name__}: give a sembench.metrics.table.MetricSpec")
    if spec.name != name:
        raise CheckFailed(f"its MetricSpec is named {spec.name!r}: name it as its entry point")
    if not spec.title.strip():
        raise CheckFailed("its title is empty: say what it measures")
    if spec.better not in ("higher", "lower", "none"):
        raise CheckFailed(f"better is {spec.better!r}: give higher, lower or none")
    if spec.version < 1 or not spec.tolerance >= 0:
        raise CheckFailed(f"version is {spec.version}, tolerance {spec.tolerance}: give 1 or more, and 0 or more")
    if not all(isinstance(reason, str) for reason in spec.needs()):
        raise CheckFailed("needs() gives other things than reasons: give a list of strings")


def _value(spec: MetricSpec, restored: Any, reference: Any, degraded: Any) -> float:
    case = MetricCase(degraded, reference, DEGRADATION, pixel_size_nm=(1.0, 1.0))
    try:
        return value_of(spec, Scored(restored, case))
    except UndefinedError as error:
        raise CheckSkipped(f"has no value for a plain scene: {error}") from error


def _of_images(name: str) -> MetricSpec:
    """The metric of one image; skips where it is one of a whole set."""
    spec: MetricSpec | SetMetricSpec = plugin(METRICS, name).load()
    if isinstance(spec, SetMetricSpec):
        raise CheckSkipped("scores a set of images, not one")
    return spec


def _images() -> tuple[Any, Any, Any]:
    """Reference, a little noise on it, and blur with much noise: read-only."""
    rng = np.random.default_rng(3)
    reference = gaussian_filter(scene(SIDE, SIDE, 4), 1)
    near = np.clip(reference + rng.normal(0, 1, reference.shape), 0, 255).astype(np.float32)
    far = np.clip(gaussian_filter(reference, 4) + rng.normal(0, 25, reference.shape), 0, 255).astype(np.float32)
    for image in (reference, near, far):
        image.setflags(write=False)
    return reference, near, far


def metric_repeatable(name: str) -> None:
    """One image has one value, finite, and its pixels are left as they were."""
    spec = _of_images(name)
    reference, near, far = _images()
    first, again = (_value(spec, near, reference, far) for _ in range(2))
    if first != again:
        raise CheckFailed(f"one image has two values, {first!r} and {again!r}: seed what it draws")


def metric_direction(name: str) -> None:
    """The reference itself has no worse value than a blurred and noisy image."""
    spec = _of_images(name)
    reference, _, far = _images()
    if spec.better == "none" or not spec.needs_reference:
        raise CheckSkipped("has no direction against a reference")
    good, bad = _value(spec, reference, reference, far), _value(spec, far, reference, far)
    if good < bad if spec.better == "higher" else good > bad:
        raise CheckFailed(
            f"{spec.better} is better, yet the reference itself has {good:g} and a blurred and noisy image {bad:g}: "
            "mend the function or `better`"
        )


def protocol_described(name: str) -> None:
    """The entry point gives a valid TOML file whose name is its own, and whose metrics are known."""
    protocol = load(name)
    if protocol.name != name:
        raise CheckFailed(f"its file says name = {protocol.name!r}: name it as its entry point")
    if not protocol.question.strip().endswith("?"):
        raise CheckFailed(f"its question is {protocol.question!r}: ask what a run answers, with a question mark")


def protocol_cases(name: str) -> None:
    """On the phantom it has a case, which can be made."""
    protocol = load(name)
    if protocol.scope == "set":
        raise CheckSkipped("its cases are a whole set of tiles")
    if protocol.data.fallback != "phantom":
        raise CheckSkipped("has no phantom to fall back to")
    cases = plan_cases(protocol, "phantom", limit=1)
    if not cases.specs:
        raise CheckFailed("it has no case on the phantom: mend its [data] part")
    cases.specs[0].make(protocol)


METRIC_CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check for check in (metric_described, metric_repeatable, metric_direction)
}
PROTOCOL_CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check for check in (protocol_described, protocol_cases)
}
OTHER_CHECKS = {METRICS: METRIC_CHECKS, PROTOCOLS: PROTOCOL_CHECKS}
"""Checks by the group of entry points to which they belong."""
