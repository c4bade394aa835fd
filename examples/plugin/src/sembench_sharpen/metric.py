"""How far the slopes of a restored image are from those of the reference."""

import numpy as np

from sembench.metrics.table import MetricSpec, Scored


def gradient_error(scored: Scored) -> float:
    """Root mean square difference of the gradients, gray levels/px, over the scored part of the image."""
    restored, reference = np.gradient(scored.inner_restored()), np.gradient(scored.case.inner_reference())
    return float(np.sqrt(np.mean([(a - b) ** 2 for a, b in zip(restored, reference, strict=True)])))


GRADIENT_ERROR = MetricSpec(
    name="gradient_error",
    title="RMS error of the gradient",
    unit="gray/px",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=gradient_error,
    version=1,
    tolerance=1e-6,
    smallest_side=2,
)
