"""The jackknife over groups: equal to the textbook where that has a formula, and covering where it has none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sembench.errors import InputError
from sembench.statistics import jackknife_interval


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=12), st.integers(1, 4))
def test_of_a_mean_over_groups_of_equal_size_it_is_students_interval(means: list[float], size: int) -> None:
    values = np.repeat(means, size)
    found = jackknife_interval(lambda kept: float(values[kept].mean()), np.repeat(np.arange(len(means)), size))
    reach = stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    assert found.mean == pytest.approx(np.mean(means), abs=1e-9)
    assert found.high - found.mean == pytest.approx(reach, abs=1e-6)
    assert found.mean - found.low == pytest.approx(reach, abs=1e-6)
    assert (found.n, found.groups) == (len(values), len(means))


def test_of_a_ratio_it_covers_the_truth_as_often_as_it_promises() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        size = rng.integers(2, 9, 25)
        groups = np.repeat(np.arange(25), size)
        level = rng.normal(10, 1, 25)
        over, under = rng.normal(2 * level[groups], 1), rng.normal(level[groups], 1)
        found = jackknife_interval(lambda kept, a=over, b=under: float(a[kept].sum() / b[kept].sum()), groups)
        covered += found.low <= 2 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_too_few_groups_and_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="2 groups are too few"):
        jackknife_interval(lambda kept: 1.0, ["a", "b", "a"])
    with pytest.raises(InputError, match="not finite"):
        jackknife_interval(lambda kept: float("nan"), ["a", "b", "c"])
