"""What a restorer draws where there is nothing: structure in the restored image of a flat, noisy field."""

import numpy as np
from scipy.ndimage import gaussian_filter

from sembench.metrics.table import Image, MetricSpec, Scored, UndefinedError

VISIBLE_SIGMA = 2.0
"""Sigma (px) of the Gaussian under which only structure of about 8 px and more is left."""


def invented_structure(restored: Image, degraded: Image) -> float:
    """Structure in the restored image of a flat field, as a share of what the input's own noise shows of it.

    restored, degraded: (H, W), gray levels. Standard deviation of the one over that of the other, each smoothed by a
    Gaussian of sigma 2 px. 0: the field comes back flat; 1: as it was, its noise at large scale left alone; above 1:
    the restorer made structure out of noise. White noise after a Gaussian of sigma s px gives 2 / sqrt(4 + s^2).
    Raises UndefinedError where the input has no noise. Definition: ours; the texture that processing leaves of a
    uniform field is how detectors' noise is told (noise power spectrum of flat fields, IEC 62220-1-1, 2015).
    """
    spread, own = (
        float(np.std(gaussian_filter(np.asarray(image, np.float64), VISIBLE_SIGMA, mode="reflect")))
        for image in (restored, degraded)
    )
    if own < 1e-6:
        raise UndefinedError("the input has no noise out of which structure could be made")
    return spread / own


def _invented_structure(scored: Scored) -> float:
    return invented_structure(scored.case.inner(scored.restored), scored.case.inner(scored.case.degraded))


INVENTED_STRUCTURE = MetricSpec(
    name="invented_structure",
    title="Structure invented on a flat field",
    unit="× input",
    better="none",
    needs_reference=False,
    needs_degradation=False,
    needs_flat=True,
    function=_invented_structure,
    version=1,
    tolerance=1e-6,
)
