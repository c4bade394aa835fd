"""Paired comparison: against enumeration by hand, another library, and the error rates that it promises."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sembench.errors import InputError
from sembench.statistics import mean_interval
from sembench.statistics.pairs import (
    can_separate,
    compare_pairs,
    holm,
    paired_p,
    paired_ps,
    sign_flip_p,
    smallest_p,
)


def test_three_groups_by_hand() -> None:
    """Sums of signs on 3, 1, -2: moduli 2, 6, 0, 4 and each once more mirrored; 2 is observed."""
    assert sign_flip_p([3.0, 1.0, -2.0], "abc") == 6 / 8
    assert sign_flip_p([3.0, 1.0, 2.0], "abc") == 2 / 8
    assert sign_flip_p([0.0, 0.0, 0.0], "abc") == 1.0
    assert sign_flip_p([5.0], "a") == 1.0


def test_a_flip_turns_a_whole_group() -> None:
    """Groups of sums 4 and 1: both flips of one sign alone are less extreme."""
    assert sign_flip_p([1.0, 3.0, 1.0], ["a", "a", "b"]) == 0.5
    assert sign_flip_p([1.0, 3.0, 1.0], ["a", "b", "c"]) == 0.25
    assert sign_flip_p([2.0, -2.0, 1.0], ["a", "a", "b"]) == 1.0


def test_rounding_does_not_hide_a_tie() -> None:
    """0.1 + 0.2 = 0.3: four of eight flips reach as far as 0.1 + 0.2 - 0.3 or further on each side, all eight do."""
    assert sign_flip_p([0.1, 0.2, -0.3], "abc") == 1.0
    assert sign_flip_p([0.1, 0.2, 0.3], "abc") == sign_flip_p([1.0, 2.0, 3.0], "abc") == 0.25


@pytest.mark.parametrize("groups", [2, 5, 10, 14])
def test_exact_p_is_scipys(groups: int) -> None:
    differences = np.random.default_rng(groups).normal(0.4, 1, groups)
    expected = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.abs(sample.sum(axis)),
        permutation_type="samples",
        n_resamples=np.inf,
        alternative="greater",
        vectorized=True,
    )
    assert sign_flip_p(differences, list(range(groups))) == pytest.approx(expected.pvalue, abs=1e-12)


def test_drawn_p_is_near_the_exact_one() -> None:
    differences = np.random.default_rng(2).normal(0.5, 1, 16)
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=16)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    found = sign_flip_p(differences, list(range(16)))
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 19_999))
    assert round(found * 20_000) == pytest.approx(found * 20_000)


def test_told_apart_is_what_flips_and_interval_both_tell_apart() -> None:
    """Six of one sign: 2 of 64 flips; with one far out Student's p is much larger."""
    differences = [1.0, 1.1, 0.9, 1.0, 1.2, 20.0]
    assert sign_flip_p(differences, "abcdef") == 2 / 64
    assert paired_p(differences, "abcdef") == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert paired_p([1.0, 1.1, 0.9, 1.0, 1.2, 0.8], "abcdef") == 2 / 64
    assert paired_p([1.0, 3.0], "ab") == 1.0
    few_far_below = [1.0] * 16 + [-2.0] * 4
    assert paired_p(few_far_below, list(range(20))) > sign_flip_p(few_far_below, list(range(20)))


def test_of_independent_normal_differences_the_paired_p_is_nearly_students() -> None:
    differences = np.random.default_rng(10).normal(0.1, 1, 300)
    found = paired_p(differences, list(range(300)))
    assert found == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)


def test_no_p_is_below_what_groups_and_draws_allow() -> None:
    for groups in (1, 4, 9, 14, 15, 16, 40):
        found = sign_flip_p([1.0] * groups, list(range(groups)))
        assert paired_p([1.0] * groups, list(range(groups))) >= found >= smallest_p(groups)
        if groups <= 14 or groups == 40:
            assert found == pytest.approx(smallest_p(groups))
    assert smallest_p(6) == 2 / 64
    assert [can_separate(groups, 1) for groups in (5, 6)] == [False, True]
    assert [can_separate(9, pairs) for pairs in (12, 13)] == [True, False]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_p_knows_neither_unit_nor_side_nor_order(values: list[float], scale: float) -> None:
    rounded = [round(value, 3) for value in values]
    labels = list(range(len(values)))
    found = sign_flip_p(rounded, labels)
    assert found == sign_flip_p([-value for value in rounded], labels) == sign_flip_p(rounded[::-1], labels)
    assert found == sign_flip_p([value * scale for value in rounded], labels)


def test_holm_by_hand() -> None:
    """Ordered .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no later one below an earlier one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
@settings(max_examples=80, deadline=None)
def test_holm_rejects_what_its_steps_reject(p: list[float], level: float) -> None:
    """Holm's own words: go from the smallest on, compare with level / (those left), stop at the first that fails."""
    rejected = set()
    for done, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        if p[place] * (len(p) - done) > level:
            break
        rejected.add(place)
    assert {place for place, value in enumerate(holm(p)) if value <= level} == rejected


def test_a_pair_says_who_wins_and_what_is_known() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(30, 2, 20)
    scores = {"good": base + 1 + rng.normal(0, 0.05, 20), "same": base + 0.001, "base": base}
    labels = list(range(20))
    good, _, same = compare_pairs(scores, labels, higher=True, margin=0.1)
    assert (good.first, good.second, good.better) == ("good", "same", "good")
    assert (good.wins, good.losses, good.ties) == (20, 0, 0)
    assert (good.equivalent, good.undecided) == (False, False)
    assert same.equivalent
    assert same.better == "same", "a difference can be both established and too small to matter"
    turned = good.reversed()
    assert (turned.first, turned.better, turned.wins, turned.losses) == ("same", "good", 0, 20)
    assert turned.interval.low == pytest.approx(-(good.interval.high or 0))
    lower = compare_pairs(scores, labels, higher=False)[0]
    assert (lower.better, lower.wins, lower.equivalent) == ("same", 0, False)
    neither = compare_pairs(scores, labels, higher=None)[0]
    assert neither.separated
    assert (neither.better, neither.wins) == (None, None)


def test_pairs_of_a_table_are_the_single_tests_corrected_together() -> None:
    rng = np.random.default_rng(4)
    labels = [f"g{case // 3}" for case in range(27)]
    scores = {name: rng.normal(0.3 * place, 1, 27) for place, name in enumerate("abcd")}
    pairs = compare_pairs(scores, labels, higher=True)
    single = [paired_p(scores[a] - scores[b], labels) for a, b in itertools.combinations("abcd", 2)]
    assert [pair.p for pair in pairs] == single
    assert [pair.p_holm for pair in pairs] == holm(single).tolist()
    interval = pairs[0].interval
    assert interval == mean_interval(scores["a"] - scores["b"], labels)
    assert interval.mean == pytest.approx(np.mean(scores["a"]) - np.mean(scores["b"]))


def test_too_wide_is_undecided_and_ties_are_counted() -> None:
    pair = compare_pairs({"a": [1.0, 2.0, 9.0], "b": [1.0, 3.0, 5.0]}, "abc", higher=True, margin=0.1)[0]
    assert pair.undecided
    assert (pair.wins, pair.losses, pair.ties) == (1, 1, 1)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="scores of b: give one finite number for each of the 2 cases"):
        compare_pairs({"a": [1.0, 2.0], "b": [1.0, math.nan]}, "xy", higher=True)
    with pytest.raises(InputError, match="scores of b"):
        compare_pairs({"a": [1.0, 2.0], "b": [1.0]}, "xy", higher=True)
    with pytest.raises(InputError, match="from 0 to 1"):
        holm([0.2, 1.4])
    with pytest.raises(InputError, match="not finite"):
        sign_flip_p([math.inf], "a")
    assert compare_pairs({"a": [1.0]}, "x", higher=True) == []


def _table(rng: np.random.Generator, sizes: list[int], methods: int, noise: str) -> dict[str, NDArray[np.float64]]:
    """Scores of equally good methods, cases and groups shared: differences normal or Laplace, both symmetric."""
    draw: Any = rng.normal if noise == "normal" else lambda *shape: rng.exponential(1, shape[-1]) - 1
    cases = np.repeat(rng.normal(25, 4, len(sizes)), sizes)
    return {
        f"m{method}": cases + np.repeat(draw(0, 1, len(sizes)), sizes) + 0.3 * rng.normal(0, 1, sum(sizes))
        for method in range(methods)
    }


def _false_findings(sizes: list[int], methods: int, noise: str, runs: int, seed: int) -> float:
    """Share of tables of equal methods in which any pair is told apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    found = 0
    for _ in range(runs):
        pairs = compare_pairs(_table(rng, sizes, methods, noise), labels, higher=True, draws=1999)
        found += any(pair.separated for pair in pairs)
    return found / runs


def _coverage(sizes: list[int], noise: str, runs: int, seed: int, draws: int = 399) -> float:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    covered = 0
    for _ in range(runs):
        first, second = _table(rng, sizes, 2, noise).values()
        interval = mean_interval(first + 0.5 - second, labels, draws=draws)
        covered += interval.low is not None and interval.low <= 0.5 <= (interval.high or 0)
    return covered / runs


@pytest.mark.parametrize(("sizes", "methods"), [([3] * 8, 2), ([1, 2, 3, 4, 2, 1, 5, 1, 2, 3], 4)])
def test_equal_methods_are_seldom_told_apart(sizes: list[int], methods: int) -> None:
    assert _false_findings(sizes, methods, "normal", 400, len(sizes)) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_cases_of_a_group_taken_for_independent_would_be_told_apart_too_often() -> None:
    rng = np.random.default_rng(9)
    p = []
    for _ in range(200):
        first, second = _table(rng, [4] * 10, 2, "normal").values()
        p.append(sign_flip_p(first - second, list(range(40)), draws=199))
    assert np.mean(np.array(p) <= 0.05) > 0.15


@pytest.mark.parametrize("noise", ["normal", "laplace"])
def test_intervals_of_differences_cover_the_truth(noise: str) -> None:
    assert _coverage([2] * 20, noise, 400, 5) == pytest.approx(0.95, abs=0.033)


def test_long_tails_on_one_side_fool_sign_flips_alone() -> None:
    rng = np.random.default_rng(13)
    groups = list(range(25))
    differences = rng.gamma(1, size=(25, 3000)) - 1
    paired = (paired_ps(differences, groups, draws=499) <= 0.05).mean()
    flipped = np.mean([sign_flip_p(column, groups, draws=499) <= 0.05 for column in differences.T])
    assert paired <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3000)
    assert flipped > 0.065


def test_a_difference_that_is_there_is_found_as_often_as_by_students_test() -> None:
    """Normal differences of half a standard deviation in 40 groups: Student's test has a power of 0.87."""
    differences = np.random.default_rng(14).normal(0.5, 1, (40, 1000))
    found = (paired_ps(differences, list(range(40)), draws=999) <= 0.05).mean()
    students = (stats.ttest_1samp(differences, 0).pvalue <= 0.05).mean()
    assert students - 0.03 <= found <= students + 0.01


PROTOCOL_SIZES = {"s2s": [8] + [4] * 9 + [2] * 26 + [1] * 4, "metrology": [1] * 60 + [2] * 3}


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "laplace"])
@pytest.mark.parametrize("protocol", PROTOCOL_SIZES)
def test_error_rates_of_whole_tables_at_the_protocols_own_group_sizes(protocol: str, noise: str) -> None:
    sizes = PROTOCOL_SIZES[protocol]
    false, covered = _false_findings(sizes, 5, noise, 1000, 11), _coverage(sizes, noise, 2000, 12)
    print(f"{protocol}, {noise}: any false finding in {false:.3f} of tables, coverage {covered:.3f}")
    assert false <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert 0.93 <= covered <= 0.97
