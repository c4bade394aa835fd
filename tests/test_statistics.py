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
from sembench.statistics.intervals import interval_ps, mean_intervals


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


def test_equal_groups_of_normal_cases_give_students_interval_of_their_means() -> None:
    rng = np.random.default_rng(11)
    values = np.repeat(rng.normal(3, 1, 6), 4) + rng.normal(0, 0.5, 24)
    low, high = stats.t.interval(0.95, 5, values.mean(), stats.sem(values.reshape(6, 4).mean(1)))
    found = mean_interval(values, np.repeat(np.arange(6), 4).tolist())
    assert (found.low, found.high, found.method) == (pytest.approx(low), pytest.approx(high), "t")


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
    found = mean_interval(values, labels, draws=499)
    assert (found.low, found.high) == (pytest.approx(whole.low, rel=1e-12), pytest.approx(whole.high, rel=1e-12))


@pytest.mark.parametrize("groups", [3, 5, 12])
def test_columns_are_single_means_however_many_are_held_at_a_time(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(groups)
    labels = np.repeat(np.arange(groups), rng.integers(1, 4, groups)).tolist()
    values = rng.gamma(1, size=(len(labels), 5))
    values[:, 3] = 7
    monkeypatch.setattr("sembench.statistics.intervals._RATIOS", 2 * 199)
    for column, found in zip(values.T, mean_intervals(values, labels, draws=199), strict=True):
        single = mean_interval(column, labels, draws=199)
        assert (found.low, found.high) == (pytest.approx(single.low, rel=1e-12), pytest.approx(single.high, rel=1e-12))
        assert (found.mean, found.n, found.groups, found.method) == (
            pytest.approx(single.mean),
            len(labels),
            groups,
            single.method,
        )


@given(st.integers(0, 10_000), st.integers(3, 20), st.floats(-2, 2))
@settings(max_examples=60, deadline=None)
def test_p_of_the_interval_is_below_5_percent_exactly_where_it_leaves_0_out(
    seed: int, groups: int, shift: float
) -> None:
    values, labels = _ragged(np.random.default_rng(seed), groups)
    low, high = _ends(values - 20 + shift, labels, draws=199)
    p = interval_ps((values - 20 + shift)[:, None], labels, seed=2604, draws=199)[0]
    assert (p <= 0.05) == (not low <= 0 <= high)


@pytest.mark.parametrize(("groups", "slack"), [(3, 1e-12), (7, 1e-12), (400, 0.01)])
def test_p_of_the_interval_is_students_for_few_groups_and_nearly_so_for_many(groups: int, slack: float) -> None:
    values = np.random.default_rng(groups).normal(0.5 / math.sqrt(groups), 1, groups)
    p = interval_ps(values[:, None], list(range(groups)), seed=1, draws=9999)[0]
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=slack)


def test_p_of_the_interval_where_there_is_none_or_all_agree() -> None:
    assert interval_ps([[1.0], [2.0]], "ab", seed=1, draws=99).tolist() == [1.0]
    assert interval_ps([[1.0, 0.0]] * 9, list(range(9)), seed=1, draws=99).tolist() == [0.0, 1.0]


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


def _coverage(values: NDArray[np.float64], labels: list[Any]) -> float:
    """Share of the columns, of which the true mean is 20, whose interval covers it."""
    found = mean_intervals(values, labels, draws=399)
    return float(np.mean([i.low is not None and i.high is not None and i.low <= 20 <= i.high for i in found]))


def _samples(rng: np.random.Generator, sizes: Any, runs: int, noise: str) -> NDArray[np.float64]:
    """Values (cases, runs) around 20: effects of groups, and of cases half as wide."""

    def draw(count: int) -> Any:
        return rng.normal(size=(count, runs)) if noise == "normal" else rng.gamma(1, size=(count, runs)) - 1

    return 20 + np.repeat(draw(len(sizes)), sizes, axis=0) + 0.5 * draw(int(sum(sizes)))


@pytest.mark.parametrize(("groups", "noise"), [(4, "normal"), (16, "normal"), (40, "normal"), (40, "gamma")])
def test_intervals_cover_the_truth_as_often_as_they_promise(groups: int, noise: str) -> None:
    values = _samples(np.random.default_rng(groups), [3] * groups, 2000, noise)
    assert 0.93 - 0.01 <= _coverage(values, np.repeat(np.arange(groups), 3).tolist()) <= 0.97 + 0.01


@pytest.mark.parametrize(("groups", "least"), [(5, 0.9), (16, 0.93)])
def test_uneven_groups_cost_little_coverage_and_ignoring_them_much(groups: int, least: float) -> None:
    rng = np.random.default_rng(groups)
    sizes = [1, 2, 3, 4, 2, 1, 4, 1, 3, 2, 1, 4, 2, 2, 3, 1][:groups]
    values = _samples(rng, sizes, 1000, "normal")
    covered = _coverage(values, np.repeat(np.arange(groups), sizes).tolist())
    ungrouped = _coverage(values, list(range(len(values))))
    assert least - 0.02 <= covered <= 0.98
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
