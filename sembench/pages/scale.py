"""One axis that many drawn lines share, in thousandths of its length."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sembench.pages.numbers import fixed
from sembench.statistics import Interval

LENGTH = 1000.0
_PAD = 0.04
_LARGEST = 1e300
_LEAST, _LEAST_SHARE = 1e-15, 1e-10
"""Values that differ by no more, in all or in shares of the largest, stand in one place."""
_MOST_WIDTHS = 25.0
"""Widths of the middle interval that an axis is long at most."""
_REACH = 3.0
"""How far the axis goes beyond the quartiles of the means, in distances between these."""


@dataclass(frozen=True)
class Scale:
    """An axis from low to high; ticks: place (0..1000) and label of each."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where a value stands, 0..1000; what lies beyond stands at the end."""
        return round(LENGTH * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 1)

    def beyond(self, value: float | None) -> int:
        """-1 for a value below the axis, 1 for one above, else 0."""
        return 0 if value is None else int(value > self.high) - int(value < self.low)


def scale(values: Sequence[float], also: Iterable[float] = ()) -> Scale:
    """An axis for values; what lies far beyond the others' middle half is cut off, so that these can be told apart.

    also: values that are shown where the axis comes near them, and do not widen it much. Raises nothing: without any
    value it goes from 0 to 1.
    """
    finite = np.array([value for value in values if abs(value) < _LARGEST])
    if not len(finite):
        return _ticked(0.0, 1.0)
    first, third = np.quantile(finite, (0.25, 0.75))
    reach = _REACH * (third - first)
    kept = finite[(finite >= first - reach) & (finite <= third + reach)] if len(finite) > 3 and reach > 0 else finite
    return _around(float(kept.min()), float(kept.max()), also)


def scale_of(intervals: Iterable[Interval | None], also: Iterable[float] = ()) -> Scale:
    """An axis for means and limits; where the middle interval would be too short to be seen, without the farthest.

    More than half of the intervals always stay on it.
    """
    known = [interval for interval in intervals if interval is not None]
    ends = sorted((i.mean, i.low, i.high) for i in known if i.low is not None and i.high is not None)
    if len(ends) < len(known):
        return scale([end for i in known for end in (i.mean, i.low, i.high) if end is not None], also)
    least = len(ends) // 2 + 1
    widths = sorted(high - low for _, low, high in ends)
    while len(ends) > least and _span(ends) > _MOST_WIDTHS * widths[len(widths) // 2]:
        middle = ends[len(ends) // 2][0]
        ends.remove(max(ends, key=lambda own: abs(own[0] - middle)))
    values = [value for own in ends for value in own]
    return _around(min(values), max(values), also) if values else _ticked(0.0, 1.0)


def _span(ends: Sequence[tuple[float, float, float]]) -> float:
    return max(high for _, _, high in ends) - min(low for _, low, _ in ends)


def _around(low: float, high: float, also: Iterable[float]) -> Scale:
    """An axis from low to high and a little more, wider for values that stand near."""
    least = max(_LEAST, _LEAST_SHARE * max(abs(low), abs(high)))
    span = next(width for width in (high - low, abs(high), 1.0) if width > least)
    near = [value for value in also if low - 0.25 * span <= value <= high + 0.25 * span]
    low, high = min([low, *near]), max([high, *near])
    pad = _PAD * (high - low if high - low > least else span)
    return _ticked(low - pad, high + pad)


def _ticked(low: float, high: float) -> Scale:
    step = _step((high - low) / 7)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    plain = Scale(low, high, ())
    return Scale(low, high, tuple((plain.place(n * step), fixed(n * step, places)) for n in range(first, last + 1)))


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= least * (1 - 1e-9))
