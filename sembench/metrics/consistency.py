"""Consistency with the input: a restored image, degraded once more, must give the input back up to its noise."""

import numpy as np
from numpy.typing import NDArray

from sembench.metrics.table import Image, MetricCase, MetricSpec, Scored, UndefinedError
from sembench.optics import Degradation, blur

Array = NDArray[np.float64]


def consistency_residual(
    restored: Image, degraded: Image, degradation: Degradation, kernel: Array | None = None
) -> Array:
    """What the restored image fails to explain of the input, in standard deviations of the noise: float64 (H, W).

    restored, degraded: (H, W), gray levels 0..255. The restored image is blurred and given gain and offset by the true
    parameters, without noise, and cut to 0..255 as the input is; the input is subtracted; the difference is divided by
    sqrt(signal / dose + sigma^2). kernel: that of the same degradation, where it is already there.
    For a restored image equal to the clean one the residual is standard normal, save where the noise was cut off at
    0 or 255: median of its modulus 0.674, share beyond 3 0.0027.
    Raises UndefinedError where the degradation leaves pixels without noise, InputError where the image is too small
    for the kernel.
    """
    if kernel is None:
        kernel = degradation.kernel()
    signal = np.maximum(0.0, degradation.a * blur(restored, kernel) + degradation.b)
    deviation = np.sqrt(signal / degradation.dose + degradation.sigma**2)
    if not deviation.all():
        raise UndefinedError("the degradation leaves pixels without noise, so there is no unit to measure in")
    return (np.minimum(signal, 255.0) - degraded) / deviation


def _case_kernel(case: MetricCase) -> Array:
    return _degradation(case).kernel()


def _degradation(case: MetricCase) -> Degradation:
    if case.degradation is None:
        raise UndefinedError("needs the parameters of the degradation and this case has none")
    return case.degradation


def _magnitude(scored: Scored) -> Array:
    """Modulus of the residual; the whole image is degraded, then the margin cut off."""
    case = scored.case
    residual = consistency_residual(scored.restored, case.degraded, _degradation(case), case.once(_case_kernel))
    return np.asarray(np.abs(case.inner(residual)))


def _residual_median(scored: Scored) -> float:
    return float(np.median(scored.once(_magnitude)))


def _residual_beyond_3(scored: Scored) -> float:
    return float(np.mean(scored.once(_magnitude) > 3))


RESIDUAL_MEDIAN = MetricSpec(
    name="residual_median",
    title="Consistency residual, median of the modulus",
    unit="noise standard deviations",
    better="none",
    needs_reference=False,
    needs_degradation=True,
    function=_residual_median,
    version=1,
    tolerance=1e-6,
)
RESIDUAL_BEYOND_3 = MetricSpec(
    name="residual_beyond_3",
    title="Consistency residual, share beyond 3",
    unit="share",
    better="none",
    needs_reference=False,
    needs_degradation=True,
    function=_residual_beyond_3,
    version=1,
    tolerance=1e-4,
)
