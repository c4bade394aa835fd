"""The table of pairs: difference, interval and what is known of each, on one axis."""

from dataclasses import dataclass

from sembench.comparison import Comparison, equivalence_margin
from sembench.pages.numbers import decimals
from sembench.pages.scale import Scale, scale_of
from sembench.statistics.pairs import Pair


@dataclass(frozen=True)
class PairTable:
    """Pairs and what is known of each; axis: of their intervals; margin: the difference that does not matter."""

    key: str
    metric: str
    unit: str
    lines: tuple[tuple[Pair, str], ...]
    axis: Scale
    decimals: int
    margin: float | None


def pair_table(key: str, comparison: Comparison | str) -> PairTable | None:
    """The table of a comparison; None where there is none. key: unlike any other's on the page."""
    if isinstance(comparison, str):
        return None
    metric = comparison.metric
    lines = tuple((pair, comparison.mark(pair)) for pair in comparison.pairs)
    intervals = [pair.interval for pair in comparison.pairs]
    axis, places = scale_of(intervals, (0.0,)), decimals(intervals)
    return PairTable(key, metric.name, metric.unit, lines, axis, places, equivalence_margin(metric))
