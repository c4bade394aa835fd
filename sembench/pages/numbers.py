"""How pages write numbers: as many decimals as an interval bears, one number of them a column."""

import math
from collections.abc import Iterable

from sembench.statistics import Interval

MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"
MOST_DECIMALS = 4


def decimals(intervals: Iterable[Interval | None]) -> int:
    """Decimals that show two digits of a small half width, the lower quartile; where there is none, three of a mean.

    >>> decimals([Interval(27.312, 26.9, 27.8, 100, 40, "t")])
    2
    """
    known = [interval for interval in intervals if interval is not None]
    halves = [
        (interval.high - interval.low) / 2
        for interval in known
        if interval.low is not None and interval.high is not None and interval.high > interval.low
    ]
    sizes = sorted(halves) or sorted(abs(interval.mean) for interval in known)
    size = sizes[len(sizes) // 4] if sizes else 0.0
    if size <= 0 or not math.isfinite(size):
        return 2
    return min(max((1 if halves else 2) - math.floor(math.log10(size)), 0), MOST_DECIMALS)


def fixed(value: float | None, places: int) -> str:
    """A number with so many decimals and a true minus; a dash where there is none.

    >>> fixed(-1.005, 1), fixed(None, 2), fixed(-0.001, 1)
    ('−1.0', '–', '0.0')
    """
    if value is None:
        return ABSENT
    text = f"{value:.{places}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def signed(value: float | None, places: int) -> str:
    """The same with its sign, but for 0.

    >>> signed(0.25, 2), signed(0.001, 2)
    ('+0.25', '0.00')
    """
    text = fixed(value, places)
    return text if value is None or value < 0 or float(text) == 0 else f"+{text}"


def significant(value: float | None, digits: int = 2) -> str:
    """A number with so many significant digits."""
    return ABSENT if value is None else f"{value:.{digits}g}".replace("-", MINUS)


def counted(number: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "case"), counted(3, "case")
    ('1 case', '3 cases')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def places(found: tuple[int, int] | None) -> str:
    """A rank or a range of ranks."""
    if found is None:
        return ABSENT
    return str(found[0]) if found[0] == found[1] else f"{found[0]}{ABSENT}{found[1]}"
