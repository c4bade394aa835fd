"""Intervals for the mean over cases, where only groups of cases are independent of one another."""

import math
from collections.abc import Hashable, Iterator, Sequence
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
_RATIOS = 2_000_000
"""Ratios of resamples held in memory at a time."""
_NO_SPREAD = 1e-6
"""A resample whose standard error is smaller than this share of the sample's has none; sums are exact to 1e-8."""


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
    return mean_intervals(_one_column(values, groups), groups, seed=seed, draws=draws)[0]


def mean_intervals(
    values: ArrayLike, groups: Sequence[Hashable], *, seed: int = 2604, draws: int = 9999
) -> list[Interval]:
    """mean_interval of each column of values (n, columns), all by the same resamples."""
    if draws < 39:
        raise InputError(f"{draws} draws are too few for a 95 % interval: give 39 at least")
    given = _GroupedMeans.of(values, groups)
    count, number = int(given.sizes.sum()), len(given.sizes)
    means = given.means.tolist()
    if number < FEWEST_GROUPS:
        return [Interval(mean, None, None, count, number, "too few groups") for mean in means]
    half = float(student.ppf((1 + LEVEL) / 2, number - 1))
    below, above = np.full(len(means), -np.inf), np.full(len(means), np.inf)
    if number >= FEWEST_FOR_BOOTSTRAP:
        for some in given.parts(draws):
            below[some], above[some] = _limits(_bootstrap_t(given.columns(some), seed, draws))
    found = []
    for mean, error, agree, low, high in zip(means, given.errors, given.agree, below, above, strict=True):
        if agree:
            found.append(Interval(mean, mean, mean, count, number, "no spread"))
        elif math.isfinite(low) and math.isfinite(high):
            limits = float(mean - high * error), float(mean - low * error)
            found.append(Interval(mean, *limits, count, number, "bootstrap-t"))
        else:
            found.append(Interval(mean, float(mean - half * error), float(mean + half * error), count, number, "t"))
    return found


def interval_ps(values: ArrayLike, groups: Sequence[Hashable], *, seed: int, draws: int) -> Array:
    """Two-sided p that the mean of each column is 0: one less the level at which its interval ends at 0; (columns,).

    values: (n, columns). By the same way as the interval: bootstrap-t with equal tails, at least 2 / (draws + 1), or t;
    1 where there are too few groups for one. Resamples without spread count as infinitely far out. All groups agreeing
    on another mean than 0 give 0. Raises InputError as mean_interval does.
    """
    given = _GroupedMeans.of(values, groups)
    number = len(given.sizes)
    if number < FEWEST_GROUPS:
        return np.ones(len(given.means))
    observed = given.means / np.where(given.agree, 1.0, given.errors)
    if number < FEWEST_FOR_BOOTSTRAP:
        p = np.asarray(2 * student.sf(np.abs(observed), number - 1), np.float64)
    else:
        rarer = np.zeros(len(observed))
        for some in given.parts(draws):
            ratios = _bootstrap_t(given.columns(some), seed, draws)
            own = observed[some, None]
            rarer[some] = np.minimum((ratios >= own).sum(1), (ratios <= own).sum(1))
        p = np.minimum(2 * (rarer + 1) / (draws + 1), 1.0)
    return np.where(given.agree, np.where(given.means == 0, 1.0, 0.0), p)


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


@dataclass(frozen=True, eq=False)
class _GroupedMeans:
    """Columns of cases by group: sizes (groups,), mean over cases and its standard error (columns,).

    centred: (groups, columns), group sums of (x - m); agree: where all groups have one mean.
    """

    sizes: Array
    means: Array
    centred: Array
    errors: Array
    agree: NDArray[np.bool_]

    @staticmethod
    def of(values: ArrayLike, groups: Sequence[Hashable]) -> "_GroupedMeans":
        sums, sizes = group_sums(values, groups)
        means = sums.sum(0) / sizes.sum()
        centred = sums - means * sizes[:, None]
        errors = _standard_error(centred, sizes) if len(sizes) > 1 else np.zeros(len(means))
        return _GroupedMeans(
            sizes, means, centred, errors, errors <= 1e-12 * np.abs(sums / sizes[:, None]).max(0, initial=0)
        )

    def parts(self, draws: int) -> Iterator[slice]:
        """Columns, as many at a time as have their resamples in memory."""
        step = max(1, _RATIOS // draws)
        return (slice(start, start + step) for start in range(0, len(self.means), step))

    def columns(self, some: slice) -> "_GroupedMeans":
        return _GroupedMeans(self.sizes, self.means[some], self.centred[:, some], self.errors[some], self.agree[some])


def standard_error(values: ArrayLike, groups: Sequence[Hashable]) -> float:
    """Standard error of the mean over cases, groups being independent; at least two groups.

    SE^2 = G/(G-1) sum over groups of S_g^2 / n^2, S_g = sum over the group's cases of (x_i - m).
    Raises InputError where lengths differ, a value is not finite, or there is one group alone.
    """
    given = _GroupedMeans.of(_one_column(values, groups), groups)
    if len(given.sizes) < 2:
        raise InputError("a standard error needs two groups at least, not one")
    return float(given.errors[0])


def group_sums(values: ArrayLike, groups: Sequence[Hashable]) -> tuple[Array, Array]:
    """Sum and number of cases of each group, groups in the order in which they first appear; sizes are (G,).

    values: (n,), or (n, columns): sums are (G,) or (G, columns).
    Raises InputError where lengths differ or a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2) or len(array) != len(groups) or not len(array):
        raise InputError(f"values of shape {array.shape} and {len(groups)} group labels: give one label a value")
    if not np.isfinite(array).all():
        raise InputError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite: leave them out")
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(group, len(index)) for group in groups])
    sizes = np.bincount(codes).astype(np.float64)
    sums = np.zeros((len(index), *array.shape[1:]))
    np.add.at(sums, codes, array)
    return sums, sizes


def _one_column(values: ArrayLike, groups: Sequence[Hashable]) -> Array:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise InputError(f"values of shape {array.shape} and {len(groups)} group labels: give one label a value")
    return array[:, None]


def _standard_error(centred: Array, sizes: Array) -> Array:
    """Standard error of each column from group sums less m times group size, (groups, columns)."""
    number = len(sizes)
    return np.asarray(np.sqrt(number / (number - 1) * np.square(centred).sum(0)) / sizes.sum(), np.float64)


def _bootstrap_t(given: _GroupedMeans, seed: int, draws: int) -> Array:
    """(m* - m)/SE* of so many resamples of the groups, (columns, draws).

    A resample is how often it has each group; sums over its groups of (x - m*)^2 follow from those of (x - m).
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    sizes, centred = given.sizes, given.centred
    number = len(sizes)
    step = max(1, _CELLS // number)
    squares, products = np.square(centred), centred * sizes[:, None]
    found = np.empty((centred.shape[1], draws))
    for start in range(0, draws, step):
        chosen = rng.integers(number, size=(min(step, draws - start), number))
        places = chosen + number * np.arange(len(chosen))[:, None]
        times = np.bincount(places.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
        cases = (times @ sizes)[:, None]
        shift = times @ centred / cases
        variance = times @ squares - 2 * shift * (times @ products) + shift**2 * (times @ sizes**2)[:, None]
        spread = np.sqrt(number / (number - 1) * np.maximum(variance, 0)) / cases
        found[:, start : start + len(chosen)] = _studentised(shift, spread, given.errors).T
    return found


def _studentised(shift: Array, spread: Array, errors: Array) -> Array:
    """shift / spread; without spread, infinite on the side of the shift, and 0 where there is no shift either."""
    negligible = _NO_SPREAD * errors
    flat = spread <= negligible
    outlying = np.where(np.abs(shift) <= negligible, 0.0, np.copysign(np.inf, shift))
    return np.where(flat, outlying, shift / np.where(flat, 1.0, spread))


def _limits(ratios: Array) -> tuple[Array, Array]:
    """The order statistics of each row that leave 2.5 % of (draws + 1) on either side."""
    draws = ratios.shape[1]
    rank = round((draws + 1) * (1 - LEVEL) / 2)
    ordered = np.partition(ratios, (rank - 1, draws - rank), axis=1)
    return ordered[:, rank - 1], ordered[:, -rank]
