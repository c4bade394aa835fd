"""Intervals for the mean over cases, where only groups of cases are independent of one another."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from sembench.errors import InputError

Array = NDArray[np.float64]

LEVEL = 0.95
FEWEST_GROUPS = 3
FEWEST_FOR_BOOTSTRAP = 8
_CELLS = 100_000
"""Resampled groups held in memory at a time."""


@dataclass(frozen=True)
class Interval:
    """A mean over n cases in so many groups, and its 95 % interval; low and high are None where there is none.

    method: `bootstrap-t`, `t`, `no spread` (all groups agree, so low = high = mean) or `too few groups`.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    groups: int
    method: str


def mean_interval(values: ArrayLike, groups: Sequence[Hashable], *, seed: int = 2604, draws: int = 9999) -> Interval:
    """The mean over cases and its 95 % interval, groups being independent and cases within a group not.

    values: (n,), finite, n >= 1; groups: n labels. Eight groups or more: bootstrap-t over groups, `draws` resamples
    from one fixed stream; three to seven: mean +- t_{G-1} SE; fewer: no interval.
    A resample whose own standard error is 0 cannot be studentised and counts as infinitely far out on its side; where
    so many of them come up that a limit would be infinite, the t interval is given.
    Raises InputError where lengths differ or a value is not finite. Source: Davison and Hinkley 1997, chapter 5.
    """
    if draws < 39:
        raise InputError(f"{draws} draws are too few for a 95 % interval: give 39 at least")
    sums, sizes = group_sums(values, groups)
    count, number = int(sizes.sum()), len(sizes)
    mean = float(sums.sum() / count)
    if number < FEWEST_GROUPS:
        return Interval(mean, None, None, count, number, "too few groups")
    centred = sums - mean * sizes
    error = float(_standard_error(centred, sizes))
    if error <= 1e-12 * float(np.abs(sums / sizes).max()):
        return Interval(mean, mean, mean, count, number, "no spread")
    if number >= FEWEST_FOR_BOOTSTRAP:
        below, above = _limits(_bootstrap_t(centred, sizes, error, seed, draws))
        if math.isfinite(below) and math.isfinite(above):
            return Interval(mean, mean - above * error, mean - below * error, count, number, "bootstrap-t")
    half = float(student.ppf((1 + LEVEL) / 2, number - 1)) * error
    return Interval(mean, mean - half, mean + half, count, number, "t")


@dataclass(frozen=True)
class Agreement:
    """Mean of n differences and the limits between which 95 % of them lie; no limits where there is but one."""

    mean: float
    low: float | None
    high: float | None
    n: int


def limits_of_agreement(differences: ArrayLike) -> Agreement:
    """Mean difference of two ways to measure and its limits of agreement, mean -/+ 1.96 standard deviations (ddof 1).

    differences: (n,), finite, n >= 1. Raises InputError. Source: Bland and Altman, Lancet 327 (1986) 307.
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"differences of shape {values.shape}: give one finite number a case")
    mean = float(values.mean())
    if len(values) == 1:
        return Agreement(mean, None, None, 1)
    half = 1.96 * float(values.std(ddof=1))
    return Agreement(mean, mean - half, mean + half, len(values))


def standard_error(values: ArrayLike, groups: Sequence[Hashable]) -> float:
    """Standard error of the mean over cases, groups being independent; at least two groups.

    SE^2 = G/(G-1) sum over groups of S_g^2 / n^2, S_g = sum over the group's cases of (x_i - m).
    Raises InputError where lengths differ, a value is not finite, or there is one group alone.
    """
    sums, sizes = group_sums(values, groups)
    if len(sizes) < 2:
        raise InputError("a standard error needs two groups at least, not one")
    return float(_standard_error(sums - sums.sum() / sizes.sum() * sizes, sizes))


def group_sums(values: ArrayLike, groups: Sequence[Hashable]) -> tuple[Array, Array]:
    """Sum and number of cases of each group, both (G,), groups in the order in which they first appear.

    Raises InputError where lengths differ or a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) != len(groups) or not len(array):
        raise InputError(f"values of shape {array.shape} and {len(groups)} group labels: give one label a value")
    if not np.isfinite(array).all():
        raise InputError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are not finite: leave them out")
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(group, len(index)) for group in groups])
    sums = np.bincount(codes, weights=array).astype(np.float64)
    sizes = np.bincount(codes).astype(np.float64)
    return sums, sizes


def _standard_error(centred: Array, sizes: Array) -> Array:
    """Standard error from group sums less m times group size; groups along the last axis."""
    number = sizes.shape[-1]
    variance = number / (number - 1) * np.square(centred).sum(-1) / np.square(sizes.sum(-1))
    return np.sqrt(variance)


def _bootstrap_t(centred: Array, sizes: Array, error: float, seed: int, draws: int) -> Array:
    """Sorted (m* - m)/SE* of so many resamples of the groups; centred: group sums of (x - m)."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    number = len(sizes)
    step = max(1, _CELLS // number)
    found = []
    for start in range(0, draws, step):
        chosen = rng.integers(number, size=(min(step, draws - start), number))
        drawn, drawn_sizes = centred[chosen], sizes[chosen]
        shift = drawn.sum(1) / drawn_sizes.sum(1)
        spread = _standard_error(drawn - shift[:, None] * drawn_sizes, drawn_sizes)
        found.append(_studentised(shift, spread, error))
    return np.sort(np.concatenate(found))


def _studentised(shift: Array, spread: Array, error: float) -> Array:
    """shift / spread; without spread, infinite on the side of the shift, and 0 where there is no shift either."""
    negligible = 1e-12 * error
    flat = spread <= negligible
    outlying = np.where(np.abs(shift) <= negligible, 0.0, np.copysign(np.inf, shift))
    return np.where(flat, outlying, shift / np.where(flat, 1.0, spread))


def _limits(ordered: Array) -> tuple[float, float]:
    """The order statistics that leave 2.5 % of (draws + 1) on either side."""
    rank = round((len(ordered) + 1) * (1 - LEVEL) / 2)
    return float(ordered[rank - 1]), float(ordered[-rank])
