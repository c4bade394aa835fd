"""Cases without a value or an image, and why: the crosses of a table."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sembench.execution.records import Record

MOST_REASONS = 5


@dataclass(frozen=True)
class Cross:
    """So many cases, and the reasons, most frequent first, each with its count."""

    count: int
    reasons: tuple[str, ...] = ()


NO_CROSS = Cross(0)


def failed(records: Iterable[Record]) -> Cross:
    """The cases without an image among a row's records."""
    return _cross([record.get("reason", "") for record in records if record["status"] == "failed"])


def undefined(records: Iterable[Record], metric: str) -> Cross:
    """The solved cases among a row's records that a metric applies to and has no value for."""
    reasons = [
        record.get("undefined", {}).get(metric, "no reason recorded")
        for record in records
        if record["status"] == "ok"
        and record["metrics"].get(metric) is None
        and metric not in record.get("inapplicable", ())
    ]
    return _cross(reasons)


def values(records: Iterable[Record], metric: str) -> tuple[float, ...]:
    """The values of a metric among a row's records, in their order."""
    found = (record["metrics"].get(metric) for record in records if record["status"] == "ok")
    return tuple(value for value in found if value is not None)


def _cross(reasons: Sequence[str]) -> Cross:
    common = Counter(reasons).most_common(MOST_REASONS)
    return Cross(len(reasons), tuple(f"{count} × {reason}" for reason, count in common))
