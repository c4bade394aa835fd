"""Two ways of doing one thing, timed in turn: the ratio of each pair."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """How many times as much the second way takes as the first, pair by pair."""

    of_pairs: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.of_pairs)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.of_pairs):.2f} to {max(self.of_pairs):.2f})"


@dataclass(frozen=True)
class Compared:
    """Seconds of both ways, pair by pair, and what each gave at last."""

    seconds: tuple[tuple[float, float], ...]
    results: tuple[Any, Any]

    @property
    def ratio(self) -> Ratio:
        return Ratio(tuple(second / first for first, second in self.seconds))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the process's own time, and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def compare(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> Compared:
    """Both called once after the other, so many times, after one call of the first that does not count."""
    first()
    seconds, results = [], (None, None)
    for _ in range(pairs):
        (own, mine), (other, theirs) = timed(first), timed(second)
        seconds.append((own, other))
        results = mine, theirs
    return Compared(tuple(seconds), results)
