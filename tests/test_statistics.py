"""Intervals: the formulas against slow transcriptions and closed forms, and the coverage they promise."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sembench.errors import InputError
from sembench.statistics import mean_interval, standard_error


def _ragged(rng: np.random.Generator, groups: int) -> tuple[NDArray[np.float64], list[str]]:
    sizes = rng.integers(1, 5, groups)
    labels = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    effect = np.repeat(rng.normal(0, 1, groups), sizes)
    return effect + rng.normal(0, 0.5, len(labels)) + 20, labels


def _slow_error(values: NDArray[np.float64], labels: list[str]) -> float:
    mean = sum(values) / len(values)
    names = sorted(set(labels))
    squares = 0.0
    for name in names:
        squares += sum(x - mean for x, label in zip(values, labels, strict=True) if label == name) ** 2
    return math.sqrt(len(names) / (len(names) - 1) * squares / len(values) ** 2)


def _ends(values: NDArray[np.float64], labels: list[Any], draws: int = 9999) -> tuple[float, float]:
    found = mean_interval(values, labels, draws=draws)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


@given(st.integers(0, 10_000), st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_standard_error_is_its_formula(seed: int, groups: int) -> None:
    values, labels = _ragged(np.random.default_rng(seed), groups)
    assert standard_error(values, labels) == pytest.approx(_slow_error(values, labels), rel=1e-10)


def test_standard_error_of_independent_cases_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, 30)
    assert standard_error(values, range(30)) == pytest.approx(stats.sem(values), rel=1e-12)


def test_cases_of_one_group_count_as_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, 12)
    assert standard_error(np.repeat(values, 4), np.repeat(np.arange(12), 4).tolist()) == pytest.approx(
        stats.sem(values)
    )


@pytest.mark.parametrize("groups", [3, 7])
def test_few_independent_groups_give_students_interval(groups: int) -> None:
    values = np.random.default_rng(groups).normal(0, 1, groups)
    found = mean_interval(values, list(range(groups)))
    low, high = stats.t.interval(0.95, groups - 1, values.mean(), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.method, found.n, found.groups) == ("t", groups, groups)


def test_bootstrap_t_is_its_slow_transcription_at_the_same_resamples() -> None:
    values, labels = _ragged(np.random.default_rng(3), 9)
    draws = 199
    names = list(dict.fromkeys(labels))
    members = [[x for x, label in zip(values, labels, strict=True) if label == name] for name in names]
    mean = sum(values) / len(values)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7])))
    ratios = []
    for chosen in rng.integers(len(names), size=(draws, len(names))):
        cases = [x for g in chosen for x in members[g]]
        resampled = sum(cases) / len(cases)
        squares = sum((sum(members[g]) - resampled * len(members[g])) ** 2 for g in chosen)
        ratios.append((resampled - mean) / math.sqrt(9 / 8 * squares / len(cases) ** 2))
    ratios.sort()
    error = _slow_error(values, labels)
    found = mean_interval(values, labels, seed=7, draws=draws)
    assert found.low == pytest.approx(mean - ratios[194] * error, rel=1e-10)
    assert found.high == pytest.approx(mean - ratios[4] * error, rel=1e-10)
    assert found.method == "bootstrap-t"


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = _ragged(np.random.default_rng(4), 11)
    whole = mean_interval(values, labels, draws=499)
    monkeypatch.setattr("sembench.statistics.intervals._CELLS", 100)
    assert mean_interval(values, labels, draws=499) == whole


def test_a_normal_sample_of_many_groups_gives_nearly_students_interval() -> None:
    values = np.random.default_rng(5).normal(0, 1, 400)
    found = mean_interval(values, list(range(400)))
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


def test_a_long_right_tail_shifts_the_interval_upwards() -> None:
    values = np.random.default_rng(6).exponential(1, 25)
    low, high = _ends(values, list(range(25)))
    assert high - values.mean() > 1.2 * (values.mean() - low)


def _covered(values: NDArray[np.float64], labels: list[Any]) -> bool:
    low, high = _ends(values, labels, draws=399)
    return low <= 20 <= high


@pytest.mark.parametrize("groups", [4, 16])
def test_intervals_cover_the_truth_as_often_as_they_promise(groups: int) -> None:
    rng = np.random.default_rng(groups)
    labels = np.repeat(np.arange(groups), 3).tolist()
    runs = 600
    draws = (20 + np.repeat(rng.normal(0, 1, groups), 3) + rng.normal(0, 0.5, 3 * groups) for _ in range(runs))
    assert sum(_covered(values, labels) for values in draws) / runs == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize(("groups", "least"), [(5, 0.89), (16, 0.925)])
def test_uneven_groups_cost_little_coverage_and_ignoring_them_much(groups: int, least: float) -> None:
    rng = np.random.default_rng(groups)
    samples = [_ragged(rng, groups) for _ in range(400)]
    covered = sum(_covered(values, labels) for values, labels in samples) / 400
    ungrouped = sum(_covered(values, list(range(len(values)))) for values, _ in samples) / 400
    assert least <= covered <= 0.98
    assert ungrouped < covered - 0.05


@pytest.mark.parametrize("groups", [1, 2])
def test_too_few_groups_give_no_interval(groups: int) -> None:
    found = mean_interval([1.0, 2.0, 6.0], [min(g, groups - 1) for g in range(3)])
    assert (found.mean, found.low, found.high, found.method) == (3.0, None, None, "too few groups")


@pytest.mark.parametrize("value", [100.0, 0.1, 0.0])
@pytest.mark.parametrize("count", [3, 40])
def test_equal_values_give_an_interval_of_no_width(value: float, count: int) -> None:
    found = mean_interval([value] * count, list(range(count)))
    assert found.low == found.high == found.mean == pytest.approx(value, rel=1e-14)
    assert found.method == "no spread"


def test_where_resamples_without_spread_reach_a_limit_the_t_interval_is_given() -> None:
    values = [0.0] * 9 + [1.0]
    found = mean_interval(values, list(range(10)))
    low, high = stats.t.interval(0.95, 9, 0.1, stats.sem(values))
    assert (found.method, found.low, found.high) == ("t", pytest.approx(low), pytest.approx(high))


def test_order_of_cases_and_names_of_groups_do_not_move_the_mean_or_the_seeded_limits() -> None:
    values, labels = _ragged(np.random.default_rng(8), 10)
    found = mean_interval(values, labels)
    assert mean_interval(values, [label + "x" for label in labels]) == found
    assert mean_interval(values, labels, seed=1).low == pytest.approx(found.low, abs=0.05)


@given(st.floats(0.01, 100), st.floats(-1000, 1000))
@settings(max_examples=20, deadline=None)
def test_interval_follows_a_change_of_unit(scale: float, shift: float) -> None:
    values, labels = _ragged(np.random.default_rng(9), 9)
    expected = [end * scale + shift for end in _ends(values, labels, draws=99)]
    assert _ends(values * scale + shift, labels, draws=99) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="one label a value"):
        mean_interval([1.0, 2.0], ["a"])
    with pytest.raises(InputError, match="1 of 2 values are not finite"):
        mean_interval([1.0, math.nan], ["a", "b"])
    with pytest.raises(InputError, match="one label a value"):
        mean_interval([], [])
    with pytest.raises(InputError, match="two groups"):
        standard_error([1.0, 2.0], ["a", "a"])
    with pytest.raises(InputError, match="too few for a 95 % interval"):
        mean_interval([1.0, 2.0, 3.0], ["a", "b", "c"], draws=10)
