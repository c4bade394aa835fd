"""The forward model of a defocused micrograph: Airy blur, gain and offset, Poisson and normal noise.

Source: arXiv 2604.05960, equation 21. Gray levels 0..255, lengths in px.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
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
        """The parameters by the names of SCIENCE 2, in drawing order."""
        return asdict(self)


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


def airy_psf(rx: float, ry: float, beta: float = 2.0, theta: float = 0.0) -> "NDArray[np.float64]":
    """The defocus kernel |2 J1(pi r)/(pi r)|^beta on a centred odd grid, divided by its sum.

    rx, ry: radii (px, above 0); beta: exponent; theta: rotation (rad), x right and y down.
    Returns float64 (k, k), k = ceil(6 max(rx, ry)), plus 1 where that is even.
    """
    if not (rx > 0 and ry > 0):
        raise InputError(f"kernel radii must be above 0 px, not {rx} and {ry}")
    size = math.ceil(6 * max(rx, ry))
    size += 1 - size % 2
    axis = np.arange(size, dtype=np.float64) - size // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    along = np.cos(theta) * x + np.sin(theta) * y
    across = -np.sin(theta) * x + np.cos(theta) * y
    argument = np.pi * np.hypot(along / rx, across / ry)
    amplitude = np.ones_like(argument)
    away = argument > 0
    amplitude[away] = np.abs(2 * j1(argument[away]) / argument[away])
    kernel = amplitude**beta
    return kernel / kernel.sum()


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
    return fftconvolve(padded, kernel, mode="valid")


def degrade(
    image: "NDArray[np.floating]", parameters: Degradation, rng: np.random.Generator | None
) -> "NDArray[np.float32]":
    """Degrade a clean image by the forward model; without a generator, no noise.

    image: (H, W), gray levels 0..255. Returns float32 (H, W), clipped to 0..255, not rounded.
    The generator draws the Poisson field first, then the normal field. Source: equation 21.
    """
    kernel = airy_psf(parameters.rx, parameters.ry, parameters.beta, parameters.theta)
    signal = np.maximum(0.0, parameters.a * blur(image, kernel) + parameters.b)
    if rng is not None:
        counts = rng.poisson(parameters.dose * signal)
        signal = counts / parameters.dose + rng.normal(0.0, parameters.sigma, signal.shape)
    return np.clip(signal, 0.0, 255.0).astype(np.float32)


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
