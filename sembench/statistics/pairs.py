"""Paired comparison of methods on the same cases: sign flips of whole groups, intervals, and Holm's correction."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sembench.errors import InputError
from sembench.statistics.intervals import Array, Interval, group_sums, interval_ps, mean_interval

SIGNIFICANCE = 0.05
MOST_EXACT = 14
"""Groups up to which all 2^G sign flips are gone through."""
DRAWS = 19_999
SEED = 2604
_ROUNDING = 1e-12
"""Sums that differ by less, relative to the sum of their terms' moduli, are equal."""
_BLOCK = 100_000
"""Signs held in memory at a time."""


def sign_flip_p(differences: ArrayLike, groups: Sequence[Hashable], *, seed: int = SEED, draws: int = DRAWS) -> float:
    """Two-sided p that the mean of paired differences is 0, by flipping the signs of whole groups.

    differences: (n,), finite; groups: n labels. Statistic: modulus of the sum of D_g, D_g summed over a group's cases.
    Up to 14 groups: exact over all 2^G flips; beyond: (b + 1) / (draws + 1) from one fixed stream. Exact where each D_g
    is distributed symmetrically about 0 if there is no difference. Raises InputError as mean_interval does.
    Source: Fisher 1935, section 21; Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.
    """
    sums, _ = group_sums(differences, groups)
    return float(_sign_flips(sums[:, None], seed, draws)[0])


def paired_p(differences: ArrayLike, groups: Sequence[Hashable], *, seed: int = SEED, draws: int = DRAWS) -> float:
    """Two-sided p that the mean of paired differences is 0: the larger of that of sign flips and the interval's.

    differences: (n,), finite; groups: n labels. Where differences have a long tail on one side, sign flips alone
    (sign_flip_p) find too much, and bootstrap-t alone still somewhat; what both find keeps the level. 2 `draws` + 1
    resamples stand behind the interval's p, so that it can be as small. Raises InputError as mean_interval does.
    """
    return float(paired_ps(np.asarray(differences, np.float64).reshape(-1, 1), groups, seed=seed, draws=draws)[0])


def paired_ps(differences: ArrayLike, groups: Sequence[Hashable], *, seed: int = SEED, draws: int = DRAWS) -> Array:
    """paired_p of each column of differences (n, columns), all by the same flips and resamples."""
    flipped = _sign_flips(group_sums(differences, groups)[0], seed, draws)
    return np.maximum(flipped, interval_ps(differences, groups, seed=seed, draws=2 * draws + 1))


def smallest_p(groups: int, draws: int = DRAWS) -> float:
    """The smallest p that the paired test over so many groups can give: 2 / 2^G, and 1 / (draws + 1) where drawn."""
    exact = 2.0 / 2.0**groups
    return min(1.0, exact if groups <= MOST_EXACT else max(exact, 1 / (draws + 1)))


def can_separate(groups: int, pairs: int) -> bool:
    """Whether any of so many pairs could be told apart after Holm's correction, given the number of groups."""
    return smallest_p(groups) * pairs <= SIGNIFICANCE


def holm(p: ArrayLike) -> Array:
    """P values corrected for their number, so that the chance of any false finding among them is kept; (m,) in order.

    Raises InputError where one is not in 0..1. Source: Holm, Scand. J. Stat. 6 (1979) 65.
    """
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"p values of shape {values.shape}: give numbers from 0 to 1 in one dimension")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


@dataclass(frozen=True, eq=False)
class Pair:
    """Two methods on the same cases: differences (n,) are first less second, in the metric's unit.

    p: of paired_p; p_holm: corrected for all pairs of the table; higher: whether higher values are better, None where
    neither is. margin: differences within it do not matter; None where nobody said what does.
    """

    first: str
    second: str
    differences: Array
    groups: tuple[Hashable, ...]
    p: float
    p_holm: float
    higher: bool | None = None
    margin: float | None = None

    @cached_property
    def interval(self) -> Interval:
        """Mean difference and its 95 % interval, of this pair alone."""
        return mean_interval(self.differences, self.groups)

    @property
    def separated(self) -> bool:
        """Whether the two are told apart."""
        return self.p_holm <= SIGNIFICANCE

    @property
    def wins(self) -> int | None:
        """Cases in which the first is the better one; None where the metric has no better."""
        return None if self.higher is None else int((self._gains > 0).sum())

    @property
    def losses(self) -> int | None:
        """Cases in which the second is the better one; None where the metric has no better."""
        return None if self.higher is None else int((self._gains < 0).sum())

    @property
    def ties(self) -> int:
        """Cases in which both have one value."""
        return int((self.differences == 0).sum())

    @property
    def better(self) -> str | None:
        """The one that is established to be better; None where the two are not told apart."""
        if self.higher is None or not self.separated:
            return None
        return self.first if self._gains.sum() > 0 else self.second

    @property
    def equivalent(self) -> bool:
        """Whether the interval of the difference lies within the margin."""
        interval = self.interval
        if self.margin is None or interval.low is None or interval.high is None:
            return False
        return -self.margin <= interval.low and interval.high <= self.margin

    @property
    def undecided(self) -> bool:
        """Neither told apart nor equivalent: too wide to say."""
        return not (self.separated or self.equivalent)

    def reversed(self) -> "Pair":
        """The same pair, second less first."""
        return replace(self, first=self.second, second=self.first, differences=-self.differences)

    @property
    def _gains(self) -> Array:
        return self.differences if self.higher else -self.differences


def compare_pairs(
    scores: Mapping[str, ArrayLike],
    groups: Sequence[Hashable],
    *,
    higher: bool | None,
    margin: float | None = None,
    seed: int = SEED,
    draws: int = DRAWS,
) -> list[Pair]:
    """Every pair of methods, in the order given, Holm's correction over all of them.

    scores: method -> (n,) finite values of the same n cases; groups: n labels; higher: whether higher is better.
    All pairs are tested by the same flips and resamples. Raises InputError where lengths differ or a value is not
    finite.
    """
    values = {name: np.asarray(given, np.float64) for name, given in scores.items()}
    names = list(combinations(values, 2))
    if not names:
        return []
    for name, given in values.items():
        if given.shape != (len(groups),) or not np.isfinite(given).all():
            raise InputError(f"scores of {name}: give one finite number for each of the {len(groups)} cases")
    differences = [values[first] - values[second] for first, second in names]
    p = paired_ps(np.stack(differences, axis=1), groups, seed=seed, draws=draws)
    return [
        Pair(*pair, difference, tuple(groups), float(raw), float(corrected), higher, margin)
        for pair, difference, raw, corrected in zip(names, differences, p, holm(p), strict=True)
    ]


def _sign_flips(sums: Array, seed: int, draws: int) -> Array:
    """P of each column; sums: (groups, columns)."""
    number = len(sums)
    limits = np.abs(sums.sum(0)) - _ROUNDING * np.abs(sums).sum(0)
    exact = number <= MOST_EXACT
    count = 2 ** (number - 1) if exact else draws
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    extreme = np.zeros(sums.shape[1], np.int64)
    block = max(1, _BLOCK // number)
    for start in range(0, count, block):
        size = min(block, count - start)
        bits: NDArray[Any]
        if exact:
            bits = np.arange(start, start + size)[:, None] >> np.arange(number) & 1
        else:
            bits = rng.integers(0, 2, size=(size, number))
        extreme += (np.abs((1.0 - 2.0 * bits) @ sums) >= limits).sum(0)
    return extreme / count if exact else (extreme + 1) / (draws + 1)
