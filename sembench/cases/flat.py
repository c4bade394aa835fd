"""Flat fields with the noise of a run's cases: whatever structure a restorer shows there, it has invented."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from sembench import micrograph
from sembench.cases.case import Case, CaseSpec
from sembench.optics import add_noise, generator
from sembench.protocol import Protocol

FIELDS = 3
"""How many of a run's cases, the first ones, lend their noise to a flat field each."""

SIDE = 256
"""Longest side of a flat field (px)."""

QUIET_BAND = 0.35
"""Frequency across the fast axis (cycles/px) beyond which a scan holds noise rather than structure."""


@dataclass(frozen=True)
class FlatSpec(CaseSpec):
    """A field without features at the mean gray level of another case, with that case's noise.

    Where the forward model of the paper made the case the noise is drawn from it; elsewhere its variance and its
    correlation along x are read off the case's input.
    """

    like: CaseSpec

    def make(self, protocol: Protocol) -> Case:
        case = self.like.make(protocol)
        rng = generator(protocol.seed, self.case_id)
        level = float(np.mean(case.degraded if case.reference is None else case.reference))
        if case.degradation is not None and protocol.degradation.name == "paper":
            signal = np.full(_sides(case.degraded), max(0.0, case.degradation.a * level + case.degradation.b))
            noisy = add_noise(signal, case.degradation, rng)
        else:
            noisy = float(case.degraded.mean()) + noise_like(case.degraded, rng)
        reference = micrograph.to_grid(np.full(_sides(case.degraded), level))
        return Case(
            self.case_id,
            self.group,
            reference,
            micrograph.to_grid(noisy),
            case.degradation,
            case.pixel_size_nm,
            margin=case.margin,
            flat=True,
        )


def flat_fields(specs: Sequence[CaseSpec]) -> tuple[FlatSpec, ...]:
    """A flat field for each of the first cases, of its group, unless its name is that of another case."""
    taken = {spec.case_id for spec in specs}
    flat = (FlatSpec(f"flat-{spec.case_id}", spec.group, spec) for spec in specs[:FIELDS])
    return tuple(spec for spec in flat if spec.case_id not in taken)


def _sides(image: NDArray[np.floating[Any]]) -> tuple[int, int]:
    height, width = image.shape
    return min(SIDE, height), min(SIDE, width)


def noise_like(image: NDArray[np.floating[Any]], rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal noise of mean 0 with the variance and the correlation along x of an image's own, 256 px a side at most."""
    return correlated_noise(noise_spectrum(image), _sides(image), rng)


def noise_spectrum(image: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Power of an image's noise along x at the frequencies of rfft, (W // 2 + 1,), variance per unit frequency.

    The mean over |fy| > 0.35 cycles/px of the Hann-windowed periodogram, where a scan that is not undersampled has no
    structure: the noise of one row does not depend on another's. Detail as fine as that counts as noise.
    """
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in image.shape))
    power = np.abs(fft.rfft2((image - np.mean(image, dtype=np.float64)) * window)) ** 2 / np.sum(window**2)
    quiet = np.abs(fft.fftfreq(image.shape[0])) > QUIET_BAND
    return np.asarray(power[quiet].mean(axis=0), np.float64)


def correlated_noise(
    spectrum: NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Normal noise (H, W) of mean 0 with this power along x, as of noise_spectrum, and independent rows."""
    frequencies = fft.rfftfreq(shape[1])
    power = np.interp(frequencies, np.linspace(0, 0.5, len(spectrum)), spectrum)
    return np.asarray(fft.irfft(fft.rfft(rng.normal(size=shape)) * np.sqrt(power), n=shape[1]), np.float64)
