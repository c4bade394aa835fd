"""Ranks that say what is known: rank intervals, letters of methods not told apart, and what one group decides."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from string import ascii_letters

import numpy as np
from numpy.typing import ArrayLike

from sembench.errors import InputError
from sembench.statistics.intervals import group_sums

Places = tuple[int, int]


def rank_intervals(names: Sequence[str], established: Iterable[tuple[str, str]]) -> dict[str, Places]:
    """The ranks that each method can have: from 1 + those established better to n - those established worse.

    established: (better, worse) pairs, each once.
    """
    above, below = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for better, worse in established:
        above[worse] += 1
        below[better] += 1
    return {name: (1 + above[name], len(names) - below[name]) for name in names}


def letters(names: Sequence[str], separated: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letters: two methods share a letter exactly where they are not separated; `a` goes to the first name.

    separated: pairs in either order; being not separated need not be transitive. No letter can be left out.
    Source: what the letters mean: Piepho, J. Comput. Graph. Stat. 13 (2004) 456; made here as a cover by cliques.
    """
    number = len(names)
    index = {name: place for place, name in enumerate(names)}
    joined = ~np.eye(number, dtype=bool)
    for first, second in separated:
        joined[index[first], index[second]] = joined[index[second], index[first]] = False
    cliques = _without_spare(_cover(joined), number)
    told = dict.fromkeys(names, "")
    for count, clique in enumerate(sorted(cliques)):
        for place in clique:
            told[names[place]] += _letter(count)
    return told


def _letter(count: int) -> str:
    return ascii_letters[count] if count < len(ascii_letters) else f"({count + 1})"


def _cover(joined: "np.ndarray[tuple[int, int], np.dtype[np.bool_]]") -> list[tuple[int, ...]]:
    """Cliques that hold every joined pair and every single one; each grown towards the most that is not yet held."""
    number = len(joined)
    open_pairs = joined.copy()
    cliques: list[tuple[int, ...]] = []
    held: set[int] = set()
    for first in range(number):
        while open_pairs[first].any() or first not in held:
            clique = [first]
            candidates = joined[first].copy()
            while candidates.any():
                gains = np.where(candidates, open_pairs[clique].sum(0), -1)
                reach = (joined & candidates).sum(1)
                chosen = max(np.flatnonzero(candidates), key=lambda place: (gains[place], reach[place], -place))
                clique.append(int(chosen))
                candidates &= joined[chosen]
            open_pairs[np.ix_(clique, clique)] = False
            held.update(clique)
            cliques.append(tuple(sorted(clique)))
    return cliques


def _without_spare(cliques: list[tuple[int, ...]], number: int) -> list[tuple[int, ...]]:
    """The cliques less those of which all pairs and members stand in others, small ones going first."""
    times = np.zeros((number, number), np.int64)
    for clique in cliques:
        times[np.ix_(clique, clique)] += 1
    kept = []
    for clique in sorted(cliques, key=len):
        square = np.ix_(clique, clique)
        if (times[square] > 1).all():
            times[square] -= 1
        else:
            kept.append(clique)
    return kept


def ranks_without_each_group(
    scores: Mapping[str, ArrayLike], groups: Sequence[Hashable], *, higher: bool
) -> dict[str, Places] | None:
    """Best and worst rank of each method's mean when each group is left out once; None where there is one group alone.

    scores: method -> (n,) finite values of the same n cases. Equal means share all the ranks that they take up.
    """
    totals = {name: group_sums(values, groups) for name, values in scores.items()}
    sizes = next(iter(totals.values()))[1] if totals else np.zeros(0)
    if len(sizes) < 2:
        return None
    sums = np.stack([sums for sums, _ in totals.values()])
    if not np.isfinite(sums).all():
        raise InputError("the scores are too large to be summed")
    means = (sums.sum(1, keepdims=True) - sums) / (sizes.sum() - sizes)
    gains = means if higher else -means
    slack = 1e-12 * np.abs(means).max()
    ahead = gains[None, :, :] > gains[:, None, :] + slack
    behind = gains[None, :, :] < gains[:, None, :] - slack
    best = 1 + ahead.sum(1).min(1)
    worst = len(totals) - behind.sum(1).min(1)
    return {name: (int(best[place]), int(worst[place])) for place, name in enumerate(totals)}
