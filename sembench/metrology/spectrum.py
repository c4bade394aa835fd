"""Power spectra of edge and width curves, their noise floor, and the roughness model fitted to them.

Lengths in px; a spectrum is one-sided, its frequencies in cycles/px.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len
from scipy.special import digamma, gamma

from sembench.errors import InputError

Array = NDArray[np.float64]

SHORTEST = 16
"""Samples that a curve needs."""

HURST_BOUNDS = (0.1, 1.2)
SHORTEST_XI = 0.5
SMOOTHED = "hurst at its upper bound: smoothing along the line suspected"
UNDETERMINED_HURST = "hurst at its lower bound: not determined"
UNDETERMINED_XI = "correlation length not determined"
MOSTLY_NOISE = "mostly noise"
NOT_CONVERGED = "model fit did not converge"

_FLOOR_FROM = 0.4
_ALIASES = 8
_NODES = 16
_STEPS = 80
_DECREASE = 1e-9
_SCALES = ((1.0, 0.6), (0.5, 1.0), (2.0, 0.3))
"""Starts of the fit: factor on the first guess of xi, and H."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One-sided power spectral density, the mean over curves.

    frequency: (J,) cycles/px, 0 to the Nyquist frequency; power: (J,) px^3; curves: how many were averaged;
    length: samples of each; spacing: px between samples.
    """

    frequency: Array
    power: Array
    curves: int
    length: int
    spacing: float

    @property
    def df(self) -> float:
        """Distance of the frequencies, cycles/px."""
        return 1 / (self.length * self.spacing)

    @property
    def variance(self) -> float:
        """Mean square of the curves about their means (px^2): the sum of power times df."""
        return float(self.power.sum() * self.df)


@dataclass(frozen=True)
class SpectrumModel:
    """A self-affine edge (Palasantzas, 1993) and white noise: sigma and xi in px, hurst, noise_variance in px^2.

    flags: what to know before these numbers are used; nan where the curves do not vary at all.
    """

    sigma: float
    xi: float
    hurst: float
    noise_variance: float
    converged: bool
    flags: tuple[str, ...] = ()


def spectrum(curves: ArrayLike, spacing: float = 1.0) -> Spectrum:
    """Spectrum of curves (N, M), each about its own mean; no taper, no padding, so that sum(power) df = mean square.

    N >= 16, values finite; spacing: px between samples, above 0. Raises InputError.
    """
    values = np.asarray(curves, np.float64)
    if values.ndim != 2 or values.shape[0] < SHORTEST or values.shape[1] < 1:
        raise InputError(f"curves of shape {values.shape}: give (samples, curves), {SHORTEST} samples at least")
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} of {values.size} curve values are not finite")
    if not (math.isfinite(spacing) and spacing > 0):
        raise InputError(f"spacing is {spacing} px: give a number above 0")
    length, count = values.shape
    amplitudes = np.fft.rfft(values - values.mean(axis=0), axis=0)
    periodogram = np.mean(amplitudes.real**2 + amplitudes.imag**2, axis=1) / length
    periodogram[0] = 0
    frequency = np.arange(length // 2 + 1) / (length * spacing)
    return Spectrum(frequency, _sides(length) * spacing * periodogram, count, length, spacing)


def noise_floor(s: Spectrum) -> float:
    """Variance of white noise (px^2): the mean power above 0.4 cycles a sample, real roughness included."""
    high = s.frequency >= _FLOOR_FROM / s.spacing
    return float(np.mean((s.power / _sides(s.length))[high]) / s.spacing)


def band_sigma(s: Spectrum, low: float, high: float) -> float:
    """Root mean square (px) of the curves between two frequencies, both included, in cycles/px."""
    inside = (s.frequency >= low * (1 - 1e-9)) & (s.frequency <= high * (1 + 1e-9))
    return math.sqrt(float(s.power[inside].sum()) * s.df)


def standard_error(s: Spectrum) -> float:
    """Standard error of the variance (px^2) against infinitely long lines: df sqrt(sum(power^2) / curves)."""
    return s.df * math.sqrt(float(np.sum(s.power**2)) / s.curves)


def expected_power(
    length: int, sigma: float, xi: float, hurst: float, noise_variance: float = 0.0, spacing: float = 1.0
) -> Array:
    """Expected `spectrum` (px^3) of such edges averaged over pixels, sampled and of finite length, with white noise.

    sigma, xi in px, noise_variance in px^2; (length // 2 + 1,), 0 at frequency 0, as the mean is taken off.
    """
    unit = _unit_power(length, math.log(xi / spacing), hurst)[0]
    power = _sides(length) * spacing * (sigma**2 * np.maximum(unit, 0) + noise_variance)
    power[0] = 0
    return np.asarray(power)


def fit_model(s: Spectrum) -> SpectrumModel:
    """The Palasantzas model and white noise that make a spectrum most likely.

    Each power is a gamma variate about its expectation, of shape `curves` (half of that at the Nyquist frequency):
    the Whittle likelihood, with aliasing, pixel averaging and leakage in the expectation. Maximised by damped Fisher
    scoring inside bounds: xi from half a sample to a quarter of the curve, hurst from 0.1 to 1.2.
    """
    variance = s.variance
    if not variance > 0:
        return SpectrumModel(0.0, math.nan, math.nan, 0.0, False, (NOT_CONVERGED,))
    likelihood = _Likelihood(s)
    best = None
    for factor, hurst in _SCALES:
        found = likelihood.maximise(likelihood.start(factor, hurst))
        if best is None or found[1] < best[1] - 1e-7:
            best = found
        if best[2] and likelihood.inside(best[0]):
            break
    assert best is not None
    theta, _, converged = best
    sigma, xi, noise = math.exp(theta[0] / 2), math.exp(theta[1]) * s.spacing, math.exp(theta[3])
    flags = _flags(s, xi, float(theta[2]), noise)
    if not converged:
        flags = (*flags, NOT_CONVERGED)
    return SpectrumModel(sigma, xi, float(theta[2]), noise, converged, flags)


def _flags(s: Spectrum, xi: float, hurst: float, noise: float) -> tuple[str, ...]:
    checks = (
        (hurst >= HURST_BOUNDS[1] - 1e-3, SMOOTHED),
        (hurst <= HURST_BOUNDS[0] + 1e-3, UNDETERMINED_HURST),
        (xi > s.length * s.spacing / 20 or xi < 2, UNDETERMINED_XI),
        (noise > 0.8 * s.variance, MOSTLY_NOISE),
    )
    return tuple(text for holds, text in checks if holds)


class _Likelihood:
    """Minus the Whittle log-likelihood of a spectrum, over theta = (ln sigma^2, ln(xi / spacing), hurst, ln noise)."""

    def __init__(self, s: Spectrum) -> None:
        self.length = s.length
        self.variance = s.variance
        self.observed = (s.power / (_sides(s.length) * s.spacing))[1:]
        self.weight = np.full(self.observed.size, float(s.curves))
        if s.length % 2 == 0:
            self.weight[-1] /= 2
        scale = math.log(self.variance)
        self.low = np.array([scale - 12, math.log(SHORTEST_XI), HURST_BOUNDS[0], scale - 18])
        self.high = np.array([scale + 5, math.log(s.length / 4), HURST_BOUNDS[1], scale + 1])

    def start(self, factor: float, hurst: float) -> Array:
        """A first guess: noise from the upper end, xi from the frequency below which half of the rest lies."""
        tail = self.observed[int(0.7 * self.observed.size) :]
        noise = min(float(np.median(tail)), 0.95 * self.variance)
        rough = np.cumsum(np.maximum(self.observed - noise, 0))
        half = int(np.searchsorted(rough, rough[-1] / 2)) + 1
        theta = np.array(
            [
                math.log(max(self.variance - noise, 0.05 * self.variance)),
                math.log(factor * self.length / (2 * math.pi * half)),
                hurst,
                math.log(max(noise, 1e-7 * self.variance)),
            ]
        )
        return np.asarray(np.clip(theta, self.low, self.high))

    def inside(self, theta: Array) -> bool:
        """Whether roughness and exponent are off their bounds; the noise may vanish."""
        return bool(np.all((theta > self.low + 1e-6)[:3]) and np.all((theta < self.high - 1e-6)[:3]))

    def value(self, theta: Array) -> tuple[float, Array, Array]:
        """The value, its gradient (4,) and the Fisher information (4, 4)."""
        unit = math.exp(theta[0]) * _unit_power(self.length, theta[1], theta[2])[:, 1:]
        noise = math.exp(theta[3])
        expected = unit[0] + noise
        ratio = self.observed / expected
        slopes = np.vstack([unit, np.full((1, unit.shape[1]), noise)]) / expected
        weighted = slopes * self.weight
        value = float(self.weight @ (np.log(expected) + ratio))
        return value, weighted @ (1 - ratio), weighted @ slopes.T

    def maximise(self, theta: Array) -> tuple[Array, float, bool]:
        """The parameters, the value there and whether it was reached, by damped scoring inside the bounds."""
        value, gradient, information = self.value(theta)
        damping = 1e-3
        for _ in range(_STEPS):
            held = ((theta <= self.low) & (gradient > 0)) | ((theta >= self.high) & (gradient < 0))
            free = np.flatnonzero(~held)
            inner = information[np.ix_(free, free)]
            diagonal = np.diag(inner).copy() + 1e-12
            step = np.zeros(4)
            step[free] = -np.linalg.solve(inner + np.diag(damping * diagonal), gradient[free])
            step = np.clip(np.clip(step, -1.5, 1.5) + theta, self.low, self.high) - theta
            if -(gradient @ step) < _DECREASE:
                return theta + step, value, True
            trial = self.value(theta + step)
            if trial[0] < value:
                theta = theta + step
                value, gradient, information = trial
                damping = max(damping / 10, 1e-9)
            else:
                damping *= 10
                if damping > 1e9:
                    return theta, value, True
        return theta, value, False


def _sides(length: int) -> Array:
    """How often each frequency of a one-sided spectrum counts: 2, but 1 at 0 and at the Nyquist frequency."""
    sides = np.full(length // 2 + 1, 2.0)
    sides[0] = 1
    if length % 2 == 0:
        sides[-1] = 1
    return sides


@dataclass(frozen=True, eq=False)
class _Grid:
    """What the expected periodogram of curves of one length needs, whatever the model.

    The spectrum of the pixel-averaged edge on `size` points round the circle: its own band, at `squares` = (2 pi g)^2
    with the window sinc^2, and the bands folded into it, a smooth function known from a few nodes.
    """

    size: int
    squares: Array
    window: Array
    node_squares: Array
    node_weights: Array
    interpolation: Array
    taper: Array


@lru_cache(maxsize=16)
def _grid(length: int) -> _Grid:
    size = next_fast_len(4 * length, real=True)
    g = np.arange(size // 2 + 1) / size
    nodes = 0.25 - 0.25 * np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES)
    orders = [m for m in range(-_ALIASES, _ALIASES + 1) if m]
    folded = nodes[:, None] + np.array(orders)
    basis = np.polynomial.chebyshev.chebvander(4 * nodes - 1, _NODES - 1)
    at_grid = np.polynomial.chebyshev.chebvander(4 * g - 1, _NODES - 1) @ np.linalg.inv(basis)
    return _Grid(
        size=size,
        squares=(2 * np.pi * g) ** 2,
        window=np.sinc(g) ** 2,
        node_squares=(2 * np.pi * folded) ** 2,
        node_weights=1 / (np.pi * folded) ** 2,
        interpolation=at_grid * (np.sin(np.pi * g) ** 2)[:, None],
        taper=1 - np.arange(length) / length,
    )


def _unit_power(length: int, log_xi: float, hurst: float) -> Array:
    """Expected |DFT|^2 / N of an edge of sigma 1 and unit spacing, and its slopes by ln xi and by hurst: (3, J).

    The autocovariance of the sampled, pixel-averaged edge, tapered by 1 - |lag| / N, is folded to N lags and
    transformed: that is the expectation exactly, leakage with it.
    """
    grid = _grid(length)
    scale = 2 * math.exp(log_xi) * math.sqrt(math.pi) * gamma(hurst + 0.5) / gamma(hurst)
    own = _density(grid.squares, log_xi, hurst) * grid.window
    folded = (_density(grid.node_squares, log_xi, hurst) * grid.node_weights).sum(axis=-1)
    density = scale * (own + folded @ grid.interpolation.T)
    covariance = np.fft.irfft(density, grid.size, axis=-1)[:, :length]
    tapered = covariance * grid.taper
    wrapped = tapered.copy()
    wrapped[:, 1:] += tapered[:, :0:-1]
    return np.fft.rfft(wrapped, axis=-1).real


def _density(squares: Array, log_xi: float, hurst: float) -> Array:
    """(1 + x)^-(hurst + 1/2), x = xi^2 (2 pi f)^2, and the scaled density's slopes by ln xi, hurst: (3, ...)."""
    x = math.exp(2 * log_xi) * squares
    logarithm = np.log1p(x)
    power = np.exp(-(hurst + 0.5) * logarithm)
    by_xi = power * (1 - (2 * hurst + 1) * x / (1 + x))
    by_hurst = power * (float(digamma(hurst + 0.5) - digamma(hurst)) - logarithm)
    return np.stack([power, by_xi, by_hurst])
