"""The forward model of a defocused micrograph: Airy blur, gain and offset, Poisson and normal noise.

Source: arXiv 2604.05960, equation 21. Gray levels 0..255, lengths in px.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft
from scipy.ndimage import convolve1d
from scipy.signal import fftconvolve
from scipy.special import j1

from sembench.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANGES: dict[str, tuple[float, float]] = {
    "rx": (1.0, 30.0),
    "ry": (1.0, 30.0),
    "beta": (1.9, 2.0),
    "theta": (0.0, math.pi),
    "a": (0.99, 1.1),
    "b": (1.0, 25.0),
    "sigma": (1.0, 10.0),
    "dose": (1.0, 50.0),
}
"""Uniform range of each parameter, in the order in which they are drawn."""


@dataclass(frozen=True)
class Degradation:
    """One draw of the forward model.

    rx, ry: kernel radii (px), the blur's transfer function ends at 1/rx, 1/ry cycles/px; beta: exponent;
    theta: rotation (rad); a, b: gain and offset (gray levels); sigma: normal noise (gray levels);
    dose: electrons per gray level.
    """

    rx: float
    ry: float
    beta: float
    theta: float
    a: float
    b: float
    sigma: float
    dose: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise InputError(f"degradation parameter {field.name} is {value}: give a finite number")
        for name in ("rx", "ry", "dose"):
            if getattr(self, name) <= 0:
                raise InputError(f"degradation parameter {name} is {getattr(self, name)}: it must be above 0")
        for name in ("beta", "sigma"):
            if getattr(self, name) < 0:
                raise InputError(f"degradation parameter {name} is {getattr(self, name)}: it must not be negative")

    def as_dict(self) -> dict[str, float]:
        """The eight drawn parameters by name, in drawing order."""
        return {name: getattr(self, name) for name in RANGES}

    def kernel(self) -> "NDArray[np.float64]":
        """The blur's kernel, float64 (k, k), sum 1."""
        return airy_psf(self.rx, self.ry, self.beta, self.theta)


@dataclass(frozen=True)
class PixelAveraged(Degradation):
    """The same with the kernel averaged over each pixel, at `oversampling` points a side: matters for small radii."""

    oversampling: int = 9

    def kernel(self) -> "NDArray[np.float64]":
        """The blur's kernel, float64 (k, k), sum 1."""
        return airy_psf(self.rx, self.ry, self.beta, self.theta, oversampling=self.oversampling)


@dataclass(frozen=True)
class BroadDegradation(Degradation):
    """One draw of the degradation `broad`, the forward model widened for real images.

    noise_correlation: sigma (px) of the Gaussian along x that smooths the noise, whose standard deviation is kept;
    0: white noise. Radii of UNBLURRED px give a kernel of one pixel, so no blur.
    """

    noise_correlation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_correlation < 0:
            raise InputError(
                f"degradation parameter noise_correlation is {self.noise_correlation}: it must not be negative"
            )


UNBLURRED = 0.1
"""Kernel radius (px) that stands for no blur."""

LARGEST_RADIUS = 32.0
"""Largest kernel radius (px) of a training degradation: the kernel's half width is then the patch margin of 96 px."""

BROAD_RANGES: dict[str, tuple[float, float]] = {
    "rx": (UNBLURRED, LARGEST_RADIUS),
    "ry": (UNBLURRED, LARGEST_RADIUS),
    "beta": RANGES["beta"],
    "theta": RANGES["theta"],
    "a": (0.8, 1.2),
    "b": (-25.0, 25.0),
    "sigma": (1.0, 20.0),
    "dose": (0.05, 50.0),
}
"""Range of each parameter of the degradation `broad`."""

DEGRADATION_RANGES = {"paper": RANGES, "broad": BROAD_RANGES}
"""Named training degradations: the range of each parameter."""

MIDPOINT = Degradation(**{name: (low + high) / 2 for name, (low, high) in RANGES.items()})
"""Every parameter at the middle of its range."""


def generator(seed: int, case_id: str, purpose: str = "") -> np.random.Generator:
    """The random stream of one case: PCG64 seeded by the protocol seed and the SHA-256 of the case id.

    Any purpose but the degradation itself is named and draws from its own stream, `case_id#purpose`.
    """
    text = f"{case_id}#{purpose}" if purpose else case_id
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    words = [int.from_bytes(digest[i : i + 4], "big") for i in range(0, 16, 4)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def draw(rng: np.random.Generator, fixed: Mapping[str, float] | None = None) -> Degradation:
    """Draw the eight parameters, then override those that are fixed, so that the stream stays aligned."""
    values = {name: float(rng.uniform(low, high)) for name, (low, high) in RANGES.items()}
    unknown = set(fixed or {}) - set(values)
    if unknown:
        raise InputError(f"unknown degradation parameter {sorted(unknown)[0]!r}: known are {', '.join(values)}")
    return Degradation(**{**values, **(fixed or {})})


def draw_broad(rng: np.random.Generator) -> BroadDegradation:
    """Draw the degradation `broad`: blur, gain, offset and noise as wide as real images need.

    Radii: log-uniform 0.5..8 px for 70 % of draws, uniform 8..30 px for the rest; log ratio rx/ry uniform in +-0.4,
    half to each axis, LARGEST_RADIUS at most; no blur in 15 %. Gain 0.8..1.2, offset -25..25, dose log-uniform
    0.05..50, sigma 1..20; the noise of half of the draws is correlated along x with sigma 0.3..1.2 px.
    """
    small, unblurred, correlated = rng.uniform(size=3)
    log_uniform = math.exp(rng.uniform(math.log(0.5), math.log(8.0)))
    wide = float(rng.uniform(8.0, 30.0))
    radius = log_uniform if small < 0.7 else wide
    half = rng.uniform(-0.4, 0.4) / 2
    radii = (min(radius * math.exp(half), LARGEST_RADIUS), min(radius * math.exp(-half), LARGEST_RADIUS))
    beta, theta = (float(rng.uniform(*RANGES[name])) for name in ("beta", "theta"))
    gain, offset, sigma = (float(rng.uniform(*BROAD_RANGES[name])) for name in ("a", "b", "sigma"))
    least_dose, most_dose = BROAD_RANGES["dose"]
    dose = math.exp(rng.uniform(math.log(least_dose), math.log(most_dose)))
    correlation = float(rng.uniform(0.3, 1.2))
    rx, ry = (UNBLURRED, UNBLURRED) if unblurred < 0.15 else radii
    return BroadDegradation(
        rx, ry, beta, theta, gain, offset, sigma, dose, noise_correlation=correlation if correlated < 0.5 else 0.0
    )


DEGRADATIONS: "dict[str, Callable[[np.random.Generator], Degradation]]" = {"paper": draw, "broad": draw_broad}
"""Named training degradations: a draw of the parameters from a generator."""


def airy_psf(
    rx: float, ry: float, beta: float = 2.0, theta: float = 0.0, *, oversampling: int = 1
) -> "NDArray[np.float64]":
    """The defocus kernel |2 J1(pi r)/(pi r)|^beta on a centred odd grid, divided by its sum.

    rx, ry: radii (px, above 0); beta: exponent; theta: rotation (rad), x right and y down; oversampling: each value
    is the mean over so many points a pixel side, 1 for the value at the pixel's centre (equation 21).
    Returns float64 (k, k), k = ceil(6 max(rx, ry)), plus 1 where that is even.
    """
    if not (rx > 0 and ry > 0):
        raise InputError(f"kernel radii must be above 0 px, not {rx} and {ry}")
    size = math.ceil(6 * max(rx, ry))
    size += 1 - size % 2
    axis = (np.arange(size * oversampling) + 0.5) / oversampling - size / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    along = np.cos(theta) * x + np.sin(theta) * y
    across = -np.sin(theta) * x + np.cos(theta) * y
    argument = np.pi * np.hypot(along / rx, across / ry)
    amplitude = np.ones_like(argument)
    away = argument > 0
    amplitude[away] = np.abs(2 * j1(argument[away]) / argument[away])
    kernel = (amplitude**beta).reshape(size, oversampling, size, oversampling).mean(axis=(1, 3))
    return np.asarray(kernel / kernel.sum())


def aperture_transfer(rho: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """Transfer function of a circular aperture: (2/pi) (acos rho - rho sqrt(1 - rho^2)), 0 from rho = 1 on.

    rho: frequency over the cut-off, 0 or above. It is the Fourier transform of |2 J1(pi r)/(pi r)|^2, which ends at
    1 / radius cycles/px. Source: the optical transfer function of a circular aperture.
    """
    inside = np.minimum(rho, 1.0)
    return np.asarray((2 / np.pi) * (np.arccos(inside) - inside * np.sqrt(1 - inside * inside)))


def blur(image: "NDArray[np.floating]", kernel: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Convolve (H, W) with an odd (k, k) kernel in float64, the image reflected at its borders (edge not repeated).

    Raises InputError where a side of the image is not larger than k // 2.
    """
    half = kernel.shape[0] // 2
    if min(image.shape) <= half:
        raise InputError(
            f"image of {image.shape[0]} x {image.shape[1]} px is too small for a kernel of "
            f"{kernel.shape[0]} px: each side must be larger than {half} px"
        )
    padded = np.pad(image.astype(np.float64), half, mode="reflect")
    return np.asarray(fftconvolve(padded, kernel, mode="valid"))


def degrade(
    image: "NDArray[np.floating]", parameters: Degradation, rng: np.random.Generator | None
) -> "NDArray[np.float32]":
    """Degrade a clean image by the forward model; without a generator, no noise.

    image: (H, W), gray levels 0..255. Returns float32 (H, W), clipped to 0..255, not rounded.
    The generator draws the Poisson field first, then the normal field. Source: equation 21.
    """
    kernel = parameters.kernel()
    signal = np.maximum(0.0, parameters.a * blur(image, kernel) + parameters.b)
    if rng is not None:
        signal = add_noise(signal, parameters, rng)
    return np.clip(signal, 0.0, 255.0).astype(np.float32)


def add_noise(
    signal: "NDArray[np.floating]", parameters: Degradation, rng: np.random.Generator
) -> "NDArray[np.floating]":
    """Noise on an (H, W) signal of gray levels from 0 up: the Poisson field is drawn first, then the normal field.

    Where the parameters correlate the noise along x it is smoothed by that Gaussian and scaled so that independent
    noise keeps its standard deviation.
    """
    counts = rng.poisson(parameters.dose * signal)
    noisy = counts / parameters.dose + rng.normal(0.0, parameters.sigma, signal.shape)
    correlation = getattr(parameters, "noise_correlation", 0.0)
    if correlation <= 0:
        return noisy
    reach = math.ceil(4 * correlation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / correlation) ** 2)
    weights /= math.sqrt(float((weights**2).sum()))
    return np.asarray(signal + convolve1d(noisy - signal, weights, axis=1, mode="wrap"))


def blurred_signal(area: "NDArray[np.floating]", parameters: Degradation) -> "NDArray[np.float32]":
    """Blur, gain and offset of `degrade` in float32, for training patches, where 1e-3 gray levels do not matter.

    area: (H, W), gray levels, each side larger than half the kernel. Returns float32 (H, W), 0 at least. The
    transforms have sizes that factor well.
    """
    kernel = parameters.kernel()
    half = kernel.shape[0] // 2
    if min(area.shape) <= half:
        raise InputError(
            f"area of {area.shape[0]} x {area.shape[1]} px is too small for a kernel of {kernel.shape[0]} px: "
            f"each side must be larger than {half} px"
        )
    height, width = area.shape
    gained = area.astype(np.float32)
    if half:
        padded = np.pad(gained, half, mode="reflect")
        shape = tuple(fft.next_fast_len(side, real=True) for side in padded.shape)
        spectrum = fft.rfft2(padded, s=shape) * fft.rfft2(kernel.astype(np.float32), s=shape)
        gained = fft.irfft2(spectrum, s=shape)[2 * half : 2 * half + height, 2 * half : 2 * half + width]
    return np.asarray(np.maximum(np.float32(0), np.float32(parameters.a) * gained + np.float32(parameters.b)))


def degrade_case(
    image: "NDArray[np.floating]",
    seed: int,
    case_id: str,
    fixed: Mapping[str, float] | None = None,
    *,
    noise: bool = True,
) -> "tuple[NDArray[np.float32], Degradation]":
    """Degrade one case by (seed, case id): the draw of its parameters, then its noise, from one stream."""
    rng = generator(seed, case_id)
    parameters = draw(rng, fixed)
    return degrade(image, parameters, rng if noise else None), parameters
