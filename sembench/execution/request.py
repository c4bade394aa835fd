"""A run as it is asked for, and as it is resolved."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sembench.cases import CasePlan, flat_fields
from sembench.execution import fits
from sembench.execution.plan import Row, Shard, run_digest
from sembench.execution.records import Record
from sembench.execution.worker import FLAT_METRICS
from sembench.protocol import Protocol
from sembench.restorer import FitProgress

Listener = Callable[[Record, int], None]
"""Told of each new record of a case, and how many are still to come."""

FitListener = Callable[[str, FitProgress | None, str], None]
"""Told of a restorer's fit how far it has come (None: nothing yet), or a notice; it may be of no restorer: no name."""


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for."""

    restorers: tuple[str, ...]
    protocol: str
    data: str | None = None
    out: Path | None = None
    limit: int | None = None
    workers: int = 2
    settings: tuple[str, ...] = ()
    fresh: bool = False
    retry_failed: bool = False
    require_real: bool = False
    crop_bottom: str = "auto"
    skip_unavailable: bool = False
    budget: str | None = None
    pairs: int | None = None
    no_fit: bool = False
    device: str = "cpu"
    command: tuple[str, ...] = ()
    shard: Shard | None = None
    scheduler: str | None = None


@dataclass(frozen=True)
class RunPlan:
    """A request resolved: nothing has been written yet."""

    protocol: Protocol
    cases: CasePlan
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    weights: dict[str, Path]
    folder: Path
    notices: tuple[str, ...]
    fit_plans: dict[str, fits.FitPlan] = field(default_factory=dict)
    shard: Shard | None = None

    @property
    def digest(self) -> str:
        """Identity of the run folder."""
        return run_digest(self.protocol, self.cases)

    @property
    def flat(self) -> "RunPlan":
        """The same rows on flat fields with the noise of the first cases, in no mean; none of a set or a shard."""
        specs = flat_fields(self.cases.specs) if self.protocol.scope == "case" and self.shard is None else ()
        return replace(self, cases=replace(self.cases, specs=specs), metrics=FLAT_METRICS)

    def is_whole(self, record: Record) -> bool:
        """Whether a solved record has all metrics that can be had by now, and its restored image is still there."""
        stored = record.get("image") or record.get("embeddings", "")
        return set(self.metrics) <= set(record.get("metrics", ())) and (self.folder / stored).is_file()


def command_line() -> tuple[str, ...]:
    """The command as it was typed, without the path of the program."""
    return ("sembench", *sys.argv[1:])
