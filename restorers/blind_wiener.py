"""Wiener restoration with the defocus kernel, the signal and the noise all read off the image's own spectrum."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import fft

from sembench.restorer import Image, Restorer, check_image

Vector = NDArray[np.float64]

SINGLE_BINS_BELOW = 0.12
"""Frequency (cycles/px) below which periodogram bins enter the likelihood one by one."""

SOFTENING = 1e-5
"""Added to |f|^2 (cycles^2/px^2) so that the signal's power law stays finite at 0."""

NOISE_FLOOR = 0.01
"""White part of the noise spectrum, as a share of the part that is correlated along x."""

RADII = (1.0, 32.0)
"""Range of the fitted kernel radii (px)."""

EXPONENTS = (0.8, 4.0)
"""Range of the signal's power-law exponent."""

CORRELATIONS = (0.03, 1.6)
"""Range of the noise's correlation length along x (px)."""


@dataclass(frozen=True)
class KernelEstimate:
    """What the spectrum says about one image.

    rx, ry: kernel radii (px); theta: its rotation (rad, x right, y down, 0..pi); amplitude, gamma: the signal's
    spectrum amplitude (|f|^2 + 1e-5)^(-gamma/2); noise: the noise spectrum's level (gray levels^2);
    noise_correlation: its length s along x (px); objective: mean negative log-likelihood a bin.
    """

    rx: float
    ry: float
    theta: float
    amplitude: float
    gamma: float
    noise: float
    noise_correlation: float
    objective: float


@dataclass(frozen=True)
class Bins:
    """Groups of periodogram bins: mean frequency (cycles/px) and number of each; `group` of each half-plane bin."""

    fx: Vector
    fy: Vector
    count: Vector
    group: NDArray[np.intp]


def aperture_transfer(rho: Vector) -> Vector:
    """Transfer function of a circular aperture: (2/pi) (acos rho - rho sqrt(1 - rho^2)), 0 from rho = 1 on.

    rho: frequency over the cut-off, 0 or above. It is the transform of |2 J1(pi r)/(pi r)|^2. Source: SCIENCE 3.
    """
    inside = np.minimum(rho, 1.0)
    return (2 / np.pi) * (np.arccos(inside) - inside * np.sqrt(1 - inside * inside))


def kernel_frequency(fx: Vector, fy: Vector, rx: float, ry: float, theta: float) -> Vector:
    """Frequency over the cut-off of an elliptical kernel, hypot(rx fx', ry fy'), f' turned by theta (rad)."""
    along = math.cos(theta) * fx + math.sin(theta) * fy
    across = -math.sin(theta) * fx + math.cos(theta) * fy
    return np.hypot(rx * along, ry * across)


def periodogram(image: NDArray[np.floating]) -> Vector:
    """|DFT(w (y - mean))|^2 / sum w^2 with a Hann window w, on the half-plane grid of `rfft2`, (H, W // 2 + 1)."""
    height, width = image.shape
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    spectrum = fft.rfft2(window * (image - image.mean()))
    return (spectrum.real**2 + spectrum.imag**2) / (window * window).sum()


def _half_plane(shape: tuple[int, int]) -> tuple[Vector, Vector, NDArray[np.bool_]]:
    height, width = shape
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    mirrored = (fx == 0) | (fx == 0.5)
    wanted = ~(mirrored & (fy < 0)) & (np.hypot(fx, fy) >= 1.5 / min(shape))
    return fx, fy, wanted


def _grouped(fx: Vector, fy: Vector, wanted: NDArray[np.bool_], label: NDArray[np.intp]) -> Bins:
    _, inverse = np.unique(label[wanted], return_inverse=True)
    count = np.bincount(inverse).astype(np.float64)
    group = np.full(fx.shape, -1, dtype=np.intp)
    group[wanted] = inverse
    return Bins(
        np.bincount(inverse, fx[wanted]) / count, np.bincount(inverse, fy[wanted]) / count, count, group[wanted]
    )


@lru_cache(maxsize=8)
def fine_bins(shape: tuple[int, int]) -> tuple[NDArray[np.bool_], Bins]:
    """The likelihood's bins of an (H, W) image: single ones below 0.12 cycles/px, 4 x 4 blocks above."""
    fx, fy, wanted = _half_plane(shape)
    rows, columns = np.indices(fx.shape)
    rows = (rows + shape[0] // 2) % shape[0]
    blocks = (rows // 4) * fx.shape[1] + columns // 4
    single = np.hypot(fx, fy) < SINGLE_BINS_BELOW
    label = np.where(single, fx.size + rows * fx.shape[1] + columns, blocks)
    return wanted, _grouped(fx, fy, wanted, label)


@lru_cache(maxsize=8)
def coarse_bins(shape: tuple[int, int]) -> tuple[NDArray[np.bool_], Bins]:
    """A few hundred polar sectors of the half plane, for the choice of starts."""
    fx, fy, wanted = _half_plane(shape)
    radius = np.hypot(fx, fy)
    with np.errstate(divide="ignore"):
        ring = np.floor(np.log(radius / (1.5 / min(shape))) / np.log(1.12))
    sector = np.floor((np.arctan2(fy, fx) + np.pi / 2) / np.pi * 16)
    label = np.where(wanted, ring * 64 + sector, 0).astype(np.intp)
    return wanted, _grouped(fx, fy, wanted, label)


def binned(power: Vector, wanted: NDArray[np.bool_], bins: Bins) -> Vector:
    """Mean of the periodogram over each group of bins."""
    return np.bincount(bins.group, power[wanted]) / bins.count


class _Likelihood:
    """Whittle likelihood of one binned periodogram, and its derivatives, for a batch of parameter vectors.

    Parameters (last axis): ln A, gamma, mean log radius, d, e, ln N, ln s, where (d, e) = h (cos 2 theta, sin 2 theta)
    and h is half the log ratio of the radii: free of the singularity that theta has where the radii are equal.
    """

    def __init__(self, power: Vector, bins: Bins, gamma_prior: tuple[float, float] | None) -> None:
        self.power = power
        self.weight = bins.count / bins.count.sum()
        self.total = bins.count.sum()
        self.square = bins.fx**2 + bins.fy**2
        self.difference = bins.fx**2 - bins.fy**2
        self.product = 2 * bins.fx * bins.fy
        self.log_frequency = -0.5 * np.log(self.square + SOFTENING)
        self.along = (2 * np.pi * bins.fx) ** 2
        self.prior = gamma_prior

    def _parts(self, p: Vector):
        ln_a, gamma, mean, d, e, ln_n, ln_s = (p[:, i, None] for i in range(7))
        h = np.hypot(d, e)
        ratio = np.where(h > 1e-8, np.sinh(2 * h) / np.maximum(h, 1e-8), 2.0)
        tilt = d * self.difference + e * self.product
        square = np.exp(2 * mean) * (np.cosh(2 * h) * self.square + ratio * tilt)
        rho = np.sqrt(np.clip(square, 1e-12, 1.0))
        transfer = aperture_transfer(rho)
        signal0 = np.exp(ln_a + gamma * self.log_frequency)
        signal = signal0 * transfer**2
        rolled = np.exp(-np.exp(2 * ln_s) * self.along)
        noise = np.exp(ln_n) * (rolled + NOISE_FLOOR)
        return h, ratio, tilt, square, rho, transfer, signal0, signal, rolled, noise

    def _penalty(self, p: Vector) -> Vector:
        if self.prior is None:
            return np.zeros(len(p))
        return 0.5 * ((p[:, 1] - self.prior[0]) / self.prior[1]) ** 2 / self.total

    def value(self, p: Vector) -> Vector:
        *_, signal, _, noise = self._parts(p)
        model = signal + noise
        return (self.weight * (np.log(model) + self.power / model)).sum(axis=1) + self._penalty(p)

    def step(self, p: Vector):
        h, ratio, tilt, square, rho, transfer, signal0, signal, rolled, noise = self._parts(p)
        model = signal + noise
        value = (self.weight * (np.log(model) + self.power / model)).sum(axis=1) + self._penalty(p)
        # d(T^2)/d(rho^2) = T dT/drho / rho
        slope = np.where(square < 1, signal0 * transfer * (-4 / np.pi) * np.sqrt(1 - rho * rho) / rho, 0.0)
        scale = np.exp(2 * p[:, 2, None])
        hh = np.maximum(h, 1e-8)
        # d cosh(2h)/dd = 2 sinh(2h) d/h = 2 ratio d ; d ratio/dd = (2 cosh 2h - ratio) d/h^2
        bend = np.where(h > 1e-4, (2 * np.cosh(2 * h) - ratio) / hh**2, 8 / 3)
        common = 2 * ratio * self.square + bend * tilt
        jacobian = np.stack(
            [
                signal,
                signal * self.log_frequency,
                slope * 2 * square,
                slope * scale * (p[:, 3, None] * common + ratio * self.difference),
                slope * scale * (p[:, 4, None] * common + ratio * self.product),
                noise,
                np.exp(p[:, 5, None]) * rolled * -2 * np.exp(2 * p[:, 6, None]) * self.along,
            ],
            axis=1,
        )
        jacobian /= model[:, None, :]
        residual = self.weight * (1 - self.power / model)
        gradient = (jacobian * residual[:, None, :]).sum(axis=2)
        weighted = jacobian * self.weight
        curvature = np.empty((len(p), 7, 7))
        for i in range(7):
            for j in range(i + 1):
                curvature[:, i, j] = curvature[:, j, i] = np.einsum("sn,sn->s", weighted[:, i], jacobian[:, j])
        if self.prior is not None:
            gradient[:, 1] += (p[:, 1] - self.prior[0]) / self.prior[1] ** 2 / self.total
            curvature[:, 1, 1] += 1 / self.prior[1] ** 2 / self.total
        return value, gradient, curvature


def _project(p: Vector) -> Vector:
    q = p.copy()
    q[:, 1] = np.clip(q[:, 1], *EXPONENTS)
    q[:, 6] = np.clip(q[:, 6], *np.log(CORRELATIONS))
    low, high = np.log(RADII)
    h = np.hypot(q[:, 3], q[:, 4])
    large = np.clip(q[:, 2] + h, low, high)
    small = np.clip(q[:, 2] - h, low, high)
    q[:, 2] = (large + small) / 2
    shrink = (large - small) / 2 / np.maximum(h, 1e-12)
    q[:, 3] *= shrink
    q[:, 4] *= shrink
    return q


def fit(likelihood: _Likelihood, p: Vector, iterations: int, tolerance: float = 1e-7) -> tuple[Vector, Vector]:
    """Levenberg-Marquardt steps of Fisher scoring, all starts at once."""
    p = _project(p)
    damping = np.full(len(p), 1e-2)
    value, gradient, curvature = likelihood.step(p)
    for _ in range(iterations):
        diagonal = np.einsum("sii->si", curvature)
        system = curvature + np.eye(7) * (damping[:, None] * diagonal + 1e-9)[:, None, :]
        move = np.linalg.solve(system, -gradient[:, :, None])[:, :, 0]
        move *= np.minimum(1.0, 1.5 / np.abs(move).max(axis=1))[:, None]
        trial = _project(p + move)
        new = likelihood.step(trial)
        better = new[0] < value
        gain = np.where(better, value - new[0], 0.0)
        p = np.where(better[:, None], trial, p)
        gradient = np.where(better[:, None], new[1], gradient)
        curvature = np.where(better[:, None, None], new[2], curvature)
        value = np.where(better, new[0], value)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-6, 1e6)
        if np.all((better & (gain < tolerance)) | (damping >= 1e4)):
            break
    return p, value


def _starts(power: Vector, bins: Bins) -> Vector:
    radius = np.hypot(bins.fx, bins.fy)
    far = radius > 0.3
    noise = np.average(power[far], weights=bins.count[far])
    near = radius < max(0.02, np.sort(radius)[min(8, radius.size - 1)])
    starts = []
    kernels = [(r, 1.0, 0.0) for r in (1.2, 2.5, 5, 8, 12, 17, 23, 29)]
    kernels += [(r, q, t * np.pi / 4) for r in (4, 8, 13) for q in (1.6,) for t in range(4)]
    for gamma in (2.2,):
        shape = (radius[near] ** 2 + SOFTENING) ** (-gamma / 2)
        amplitude = np.average(power[near] / shape, weights=bins.count[near])
        for r, q, t in kernels:
            h = np.log(q)
            starts.append([np.log(amplitude), gamma, np.log(r), h * np.cos(2 * t), h * np.sin(2 * t), np.log(noise), np.log(0.1)])
    return np.array(starts)


def estimate(image, keep=2, prior=None):
    power = periodogram(image.astype(np.float64))
    wanted, bins = coarse_bins(image.shape)
    coarse = binned(power, wanted, bins)
    p, value = fit(_Likelihood(coarse, bins, prior), _starts(coarse, bins), 14)
    order = np.argsort(value, kind="stable")
    chosen = [order[0]]
    for i in order[1:]:
        if len(chosen) >= keep:
            break
        if all(np.abs(p[i, 2:5] - p[j, 2:5]).max() > 0.05 for j in chosen):
            chosen.append(i)
    wanted, bins = fine_bins(image.shape)
    fine = binned(power, wanted, bins)
    p, value = fit(_Likelihood(fine, bins, prior), p[chosen], 30)
    best = int(np.argmin(value))
    ln_a, gamma, mean, d, e, ln_n, ln_s = p[best]
    h = np.hypot(d, e)
    theta = 0.5 * np.arctan2(e, d) % np.pi
    return KernelEstimate(
        *(float(v) for v in (np.exp(mean + h), np.exp(mean - h), theta, np.exp(ln_a), gamma, np.exp(ln_n), np.exp(ln_s), value[best]))
    )


def wiener(image, k: KernelEstimate):
    height, width = image.shape
    mean = float(image.mean())
    extended = np.pad((image - mean).astype(np.float32), ((0, height - 2), (0, width - 2)), mode="reflect")
    fy = np.fft.fftfreq(extended.shape[0])[:, None]
    fx = np.fft.rfftfreq(extended.shape[1])[None, :]
    square = fx**2 + fy**2
    transfer = aperture_transfer(kernel_frequency(fx, fy, k.rx, k.ry, k.theta))
    signal = k.amplitude * (square + SOFTENING) ** (-k.gamma / 2)
    noise = k.noise * (np.exp(-((2 * np.pi * k.noise_correlation * fx) ** 2)) + NOISE_FLOOR)
    gain = transfer * signal / (transfer**2 * signal + noise)
    gain[0, 0] = 1
    out = fft.irfft2(fft.rfft2(extended) * gain.astype(np.float32), s=extended.shape)
    return out[:height, :width] + mean
