"""The blind spectral estimate beside an image: what the pixel path adds its residual to."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from restorers.blind_wiener import EXCESS_LIMIT, LEAST_RADIUS, ROUNDING_POWER, defocused, estimate, periodogram, wiener
from sembench.restorer import Image, Patch

SURROUNDINGS = 401
"""Side (px) of the part of a patch's surroundings that its spectrum is read off: its extension of 800 px is fast."""

LEAST_CONTRAST = 4.0
"""Contrast (gray levels) below which an image counts as having this much."""


class SpectralEstimate(NamedTuple):
    """image: float32 (H, W), gray levels in the input's own gain and offset, not clipped; level, contrast: its mean
    and standard deviation (gray levels), contrast at least LEAST_CONTRAST; refocused: whether a kernel was undone.
    """

    image: Image
    level: float
    contrast: float
    refocused: bool


def spectral_estimate(image: Image, *, starts: int = 2, least_radius: float = 0.0) -> SpectralEstimate:
    """Restore (H, W) gray levels by the kernel, scene and noise that its spectrum shows; a flat image stays flat.

    starts, least_radius: as in blind_wiener; one start takes a third less time and differs by 0.02 gray levels (rms).
    """
    restored, deblur = np.asarray(image, dtype=np.float32), False
    if periodogram(restored).max() > ROUNDING_POWER:
        found = estimate(restored, starts=starts)
        deblur = defocused(found, excess_limit=EXCESS_LIMIT, least_radius=least_radius)
        restored = wiener(restored, found, deblur=deblur)
    return SpectralEstimate(restored, float(restored.mean()), max(float(restored.std()), LEAST_CONTRAST), deblur)


def patch_arrays(patch: Patch) -> dict[str, NDArray[Any]]:
    """A patch with the blind estimate of its surroundings; float32 (1, 224, 224), level and contrast (1, 1, 1).

    target: the clean patch in the input's own gain and offset, as no method can know those of one draw.
    """
    return _with_estimate(patch, 0.0)


def patch_arrays_of_scans(patch: Patch) -> dict[str, NDArray[Any]]:
    """As patch_arrays, where the images may be focused: kernels as small as a real scan's own beam are not undone.

    target: where no kernel is undone, the patch as it is without its noise, so that what does not show as defocus is
    not sharpened either.
    """
    return _with_estimate(patch, LEAST_RADIUS)


def _with_estimate(patch: Patch, least_radius: float) -> dict[str, NDArray[Any]]:
    side = patch.clean.shape[0]
    cut = (patch.surroundings.shape[0] - SURROUNDINGS) // 2
    area = patch.surroundings[cut : cut + SURROUNDINGS, cut : cut + SURROUNDINGS]
    found = spectral_estimate(area, starts=1, least_radius=least_radius)
    inner = slice(patch.margin - cut, patch.margin - cut + side)
    return {
        "clean": patch.clean[None],
        "degraded": patch.degraded[None],
        "estimate": found.image[inner, inner][None],
        "target": (_in_its_domain(patch) if found.refocused or not least_radius else patch.signal)[None],
        "level": np.full((1, 1, 1), found.level, np.float32),
        "contrast": np.full((1, 1, 1), found.contrast, np.float32),
    }


def degraded_arrays(patch: Patch) -> dict[str, NDArray[Any]]:
    """As patch_arrays, without the estimate: level and contrast are those of the surroundings themselves."""
    return {
        "clean": patch.clean[None],
        "degraded": patch.degraded[None],
        "target": _in_its_domain(patch)[None],
        "level": np.full((1, 1, 1), patch.surroundings.mean(), np.float32),
        "contrast": np.full((1, 1, 1), max(float(patch.surroundings.std()), LEAST_CONTRAST), np.float32),
    }


def _in_its_domain(patch: Patch) -> Image:
    """The clean patch in the gain and offset of its degraded draw."""
    gain, offset = (patch.degradation.a, patch.degradation.b) if patch.degradation else (1.0, 0.0)
    return np.float32(gain) * patch.clean + np.float32(offset)
