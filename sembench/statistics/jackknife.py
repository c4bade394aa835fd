"""Intervals for what is computed of a whole set at once, such as the agreement of clusters with groups."""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from sembench.errors import InputError
from sembench.statistics.intervals import FEWEST_GROUPS, LEVEL, Interval


def jackknife_interval(statistic: Callable[[NDArray[np.bool_]], float], groups: Sequence[Hashable]) -> Interval:
    """The statistic of a whole set and its 95 % interval, by leaving out one group after the other.

    statistic: of the members that a mask (n,) keeps; groups: n labels, three different ones at least. The interval is
    value +- t_{G-1} SE, SE^2 = (G - 1)/G times the sum of squares of the G values about their mean. For a difference of
    two statistics of the same members give their difference. Good for smooth statistics; one that jumps with single
    members gets too wide an interval. Raises InputError for fewer groups, or a value that is not finite.
    Source: Efron and Tibshirani 1993, chapter 11; with groups in place of observations.
    """
    labels = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    number = int(labels.max()) + 1 if len(labels) else 0
    if number < FEWEST_GROUPS:
        raise InputError(f"{number} groups are too few to leave one out: give {FEWEST_GROUPS} at least")
    whole = statistic(np.ones(len(labels), np.bool_))
    without = np.array([statistic(labels != group) for group in range(number)])
    if not (math.isfinite(whole) and np.isfinite(without).all()):
        raise InputError("the statistic is not finite without one of the groups")
    error = math.sqrt((number - 1) / number * float(np.square(without - without.mean()).sum()))
    reach = float(student.ppf((1 + LEVEL) / 2, number - 1)) * error
    return Interval(whole, whole - reach, whole + reach, len(labels), number, "jackknife")
