"""Rank intervals, letters and leave-one-group-out: what they mean, by brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sembench.statistics.ranks import letters, rank_intervals, ranks_without_each_group

Edges = frozenset[tuple[int, int]]


@st.composite
def separations(draw: st.DrawFn, most: int = 9) -> tuple[list[str], list[tuple[str, str]]]:
    names = [f"m{place}" for place in range(draw(st.integers(1, most)))]
    pairs = list(itertools.combinations(names, 2))
    return names, [pair for pair in pairs if draw(st.booleans())]


@given(separations())
@settings(max_examples=200, deadline=None)
def test_two_share_a_letter_exactly_where_they_are_not_separated(
    given_: tuple[list[str], list[tuple[str, str]]],
) -> None:
    names, separated = given_
    told = letters(names, separated)
    assert all(told.values())
    for first, second in itertools.combinations(names, 2):
        assert bool(set(told[first]) & set(told[second])) == ((first, second) not in separated)


@given(separations())
@settings(max_examples=100, deadline=None)
def test_no_letter_can_be_left_out(given_: tuple[list[str], list[tuple[str, str]]]) -> None:
    names, separated = given_
    told = letters(names, separated)
    for letter in set("".join(told.values())):
        rest = {name: set(own) - {letter} for name, own in told.items()}
        joined = [pair for pair in itertools.combinations(names, 2) if pair not in separated]
        assert not all(rest.values()) or any(not rest[a] & rest[b] for a, b in joined)


def _fewest(names: list[str], separated: list[tuple[str, str]]) -> int:
    """The smallest number of letters that says the same, all sets of groups tried."""
    apart = {frozenset(pair) for pair in separated}
    subsets = [set(s) for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]
    cliques = [s for s in subsets if not any(frozenset(pair) in apart for pair in itertools.combinations(s, 2))]
    wanted = [{a, b} for a, b in itertools.combinations(names, 2) if frozenset((a, b)) not in apart]
    wanted += [{name} for name in names]
    maximal = [clique for clique in cliques if not any(clique < other for other in cliques)]
    for count in range(1, len(maximal) + 1):
        for chosen in itertools.combinations(maximal, count):
            if all(any(pair <= clique for clique in chosen) for pair in wanted):
                return count
    raise AssertionError("the maximal cliques cover every pair")


@given(separations(most=6))
@settings(max_examples=150, deadline=None)
def test_letters_are_as_few_as_can_be_among_up_to_six(given_: tuple[list[str], list[tuple[str, str]]]) -> None:
    names, separated = given_
    assert len(set("".join(letters(names, separated).values()))) == _fewest(names, separated)


def test_letters_of_a_chain_and_of_the_two_extremes() -> None:
    assert letters("abc", [("a", "c")]) == {"a": "a", "b": "ab", "c": "b"}
    assert letters("abc", []) == {"a": "a", "b": "a", "c": "a"}
    assert letters("abc", itertools.combinations("abc", 2)) == {"a": "a", "b": "b", "c": "c"}
    assert letters("a", []) == {"a": "a"}
    assert letters("", []) == {}


def test_sixty_methods_all_apart_have_sixty_letters() -> None:
    names = [f"m{place}" for place in range(60)]
    told = letters(names, itertools.combinations(names, 2))
    assert len(set(told.values())) == 60
    assert told["m51"] == "Z"
    assert told["m52"] == "(53)"


def test_rank_intervals_by_hand() -> None:
    """a above c and d, b above d: a may be first or second, b up to third; c and d cannot be first."""
    found = rank_intervals("abcd", [("a", "c"), ("a", "d"), ("b", "d")])
    assert found == {"a": (1, 2), "b": (1, 3), "c": (2, 4), "d": (3, 4)}
    assert rank_intervals("ab", []) == {"a": (1, 2), "b": (1, 2)}


@given(st.permutations(list("abcdef")), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_order_that_agrees_with_what_is_established_lies_in_the_rank_intervals(
    order: list[str], chosen: set[tuple[int, int]]
) -> None:
    established = {(order[i], order[j]) for i, j in chosen if i < j}
    found = rank_intervals("abcdef", established)
    for place, name in enumerate(order, 1):
        assert found[name][0] <= place <= found[name][1]


def _slow_ranges(scores: dict[str, list[float]], groups: list[str], higher: bool) -> dict[str, tuple[int, int]]:
    ranks: dict[str, list[int]] = {name: [] for name in scores}
    for left_out in set(groups):
        kept = [case for case, group in enumerate(groups) if group != left_out]
        means = {
            name: round(np.mean([values[case] for case in kept]) * (1 if higher else -1), 9)
            for name, values in scores.items()
        }
        for name, mean in means.items():
            ranks[name].append(1 + sum(other > mean for other in means.values()))
            ranks[name].append(len(means) - sum(other < mean for other in means.values()))
    return {name: (min(own), max(own)) for name, own in ranks.items()}


@given(st.integers(0, 10_000), st.integers(2, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_leaving_each_group_out_is_its_slow_transcription(seed: int, groups: int, higher: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = [f"g{g}" for g, size in enumerate(rng.integers(1, 4, groups)) for _ in range(size)]
    scores = {name: rng.integers(0, 5, len(labels)).astype(float).tolist() for name in "abcd"}
    assert ranks_without_each_group(scores, labels, higher=higher) == _slow_ranges(scores, labels, higher)


def test_one_group_that_decides_is_seen() -> None:
    scores = {"a": [1.0, 1.0, 9.0], "b": [2.0, 2.0, 2.0]}
    assert ranks_without_each_group(scores, "xyz", higher=True) == {"a": (1, 2), "b": (1, 2)}
    assert ranks_without_each_group(scores, "xyx", higher=False) == {"a": (1, 2), "b": (1, 2)}
    assert ranks_without_each_group(scores, "xxx", higher=True) is None


def test_equal_means_share_their_ranks() -> None:
    found = ranks_without_each_group({"a": [0.1, 0.2, 0.3], "b": [0.3, 0.2, 0.1]}, ["x", "y", "x"], higher=True)
    assert found == {"a": (1, 2), "b": (1, 2)}


@pytest.mark.parametrize("shape", [24, 40])
def test_letters_of_an_ordered_table_stay_few(shape: int) -> None:
    """Methods in a row, those more than five places apart told apart: as many letters as runs of six neighbours."""
    names = [f"m{place:02}" for place in range(shape)]
    separated = [(a, b) for a, b in itertools.combinations(names, 2) if int(b[1:]) - int(a[1:]) > 5]
    told = letters(names, separated)
    assert len({letter for own in told.values() for letter in own}) == shape - 5
    assert told["m00"] == "a"
