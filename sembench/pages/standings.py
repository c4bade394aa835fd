"""The table that every page has: restorers by one metric, with letters, ranks, intervals drawn, and controls apart."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sembench.marks import Mark
from sembench.pages.crosses import NO_CROSS, Cross
from sembench.pages.numbers import decimals
from sembench.pages.scale import Scale, scale, scale_of
from sembench.registry import METRICS, plugin, plugins
from sembench.statistics import Interval

Places = tuple[int, int]
_NOT_TOLD = ("match_", "residual_")


@dataclass(frozen=True)
class Column:
    """A metric's column: its name and title, its unit (empty: none), which direction is better, its decimals."""

    name: str
    title: str
    unit: str
    better: str
    decimals: int = 3


@dataclass(frozen=True)
class Line:
    """One restorer, or control, of a table.

    key: unlike any other's on the page; values: metric -> mean and interval; crosses: metric -> cases without a value;
    failed: cases without an image; seconds: median a case; cases: its primary metric case by case; page: where
    more is said of it, an address on the page, or empty; filtered: whether the page's filters apply to it; unranked:
    why a restorer has neither letters nor a rank, else empty.
    """

    key: str
    name: str
    kind: str = "restorer"
    values: Mapping[str, Interval | None] = field(default_factory=dict)
    crosses: Mapping[str, Cross] = field(default_factory=dict)
    letters: str = ""
    rank: Places | None = None
    rank_without_group: Places | None = None
    failed: Cross = NO_CROSS
    marks: tuple[Mark, ...] = ()
    seconds: float | None = None
    budget: str = ""
    device: str = ""
    cases: tuple[float, ...] = ()
    page: str = ""
    filtered: bool = False
    unranked: str = ""

    @property
    def head(self) -> str:
        """The name without what is told of it in brackets."""
        return self.name.partition(" (")[0]

    @property
    def tail(self) -> str:
        """What is told of it in brackets, with them; often nothing."""
        return self.name[len(self.head) :].strip()


@dataclass(frozen=True)
class Standings:
    """Ranked lines by the primary metric, best first, then unranked ones, then controls.

    axis: of the primary metric's intervals.

    spread: the axis of its cases; unseen: controls that lie beyond the axis, and their means.
    """

    key: str
    caption: str
    primary: Column
    others: tuple[Column, ...]
    lines: tuple[Line, ...]
    axis: Scale
    spread: Scale
    unseen: tuple[Line, ...] = ()

    @property
    def ranked(self) -> tuple[Line, ...]:
        """The restorers."""
        return tuple(line for line in self.lines if line.kind != "control")

    @property
    def controls(self) -> tuple[Line, ...]:
        """The controls."""
        return tuple(line for line in self.lines if line.kind == "control")

    @property
    def references(self) -> tuple[Line, ...]:
        """The controls that the axis shows."""
        return tuple(line for line in self.controls if self._seen(line))

    def has(self, what: str) -> bool:
        """Whether any line says anything of `rank`, `letters`, `failures`, `budget`, `device` or `marks`."""
        if what == "failures":
            return any(line.failed.count for line in self.lines)
        return any(getattr(line, what) for line in self.lines)

    @property
    def spread_out(self) -> bool:
        """Whether there are cases to be shown one by one."""
        return any(len(line.cases) > 1 for line in self.ranked)

    def mean(self, line: Line) -> float | None:
        """The mean of a line's primary metric."""
        interval = line.values.get(self.primary.name)
        return None if interval is None else interval.mean

    def _seen(self, line: Line) -> bool:
        mean = self.mean(line)
        return mean is not None and not self.axis.beyond(mean)

    def quartiles(self, line: Line) -> tuple[float, float, float] | None:
        """Quartiles of a line's cases; None where there are none."""
        if not line.cases:
            return None
        lower, middle, upper = np.quantile(line.cases, (0.25, 0.5, 0.75))
        return float(lower), float(middle), float(upper)

    def case_marks(self, line: Line) -> str:
        """A line's cases as strokes of an SVG path, a place of the axis each; those beyond it are not drawn."""
        seen = (value for value in line.cases if not self.spread.beyond(value))
        return "".join(f"M{self.spread.place(value):g} 2v16" for value in seen)

    def cases_beyond(self, line: Line) -> tuple[int, int]:
        """How many of a line's cases lie below the axis, and how many above."""
        sides = [self.spread.beyond(value) for value in line.cases]
        return sides.count(-1), sides.count(1)


def standings(key: str, caption: str, primary: Column, others: Sequence[Column], lines: Iterable[Line]) -> Standings:
    """A table from its lines: sorted by the primary metric, what has no value last, decimals and axis set."""
    kept = tuple(sorted(lines, key=lambda line: _place(line, primary)))
    ranked = [line.values.get(primary.name) for line in kept if line.kind != "control"]
    told = {line.key: line.values.get(primary.name) for line in kept if line.kind == "control"}
    means = [interval.mean for interval in told.values() if interval is not None]
    axis = scale_of(ranked or told.values(), means)
    unseen = tuple(line for line in kept if (interval := told.get(line.key)) is not None and axis.beyond(interval.mean))
    spread = scale([value for line in kept if line.kind != "control" for value in line.cases])
    rounded = [_rounded(column, kept) for column in (primary, *others)]
    return Standings(key, caption, rounded[0], tuple(rounded[1:]), kept, axis, spread, unseen)


def column(name: str) -> Column:
    """The column of a metric by its name; one that is not installed has neither title nor unit."""
    if name not in plugins(METRICS):
        return Column(name, name, "", "none")
    metric = plugin(METRICS, name).load()
    return Column(metric.name, metric.title, metric.unit, metric.better)


def beside(names: Sequence[str], primary: str) -> list[Column]:
    """The columns of those metrics that a table shows beside the primary one."""
    return [column(name) for name in names if name != primary and not name.startswith(_NOT_TOLD)]


def sharing(letters: Mapping[str, str]) -> list[list[str]]:
    """The names behind each compact letter, in order of the letters; no two of a list are told apart.

    >>> sharing({"wiener": "a", "tv": "ab", "median": "b"})
    [['wiener', 'tv'], ['tv', 'median']]
    """
    found: dict[str, list[str]] = {}
    for name, own in letters.items():
        for letter in re.findall(r"\(\d+\)|\S", own):
            found.setdefault(letter, []).append(name)
    return list(found.values())


def _place(line: Line, primary: Column) -> tuple[bool, bool, bool, float]:
    interval = line.values.get(primary.name)
    value = 0.0 if interval is None else -interval.mean if primary.better == "higher" else interval.mean
    return line.kind == "control", bool(line.unranked), interval is None, value


def _rounded(column: Column, lines: Iterable[Line]) -> Column:
    ranked = [line.values.get(column.name) for line in lines if line.kind != "control"]
    return Column(column.name, column.title, column.unit, column.better, decimals(ranked))
