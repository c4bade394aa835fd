"""What a case is, what it takes to make one, and in which order they come."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from sembench.errors import SembenchError
from sembench.line_scenes import LineTruth
from sembench.optics import Degradation
from sembench.protocol import Protocol
from sembench.restorer import Image


class CaseLeftOut(SembenchError):
    """A case that cannot be trusted, whoever restores it; the message says why."""


@dataclass(frozen=True)
class Case:
    """One case: reference and degraded image on the grid of 1/256 gray level, and what is known of them.

    pixel_size_nm: (x, y); truth: true edges of the lines. None where nobody knows.
    alignment: how the reference was registered on the input, plain values; None where nothing had to be.
    margin: px at each border that are not scored; None: the protocol's. flat: whether the scene has no features.
    """

    case_id: str
    group: str
    reference: Image | None
    degraded: Image
    degradation: Degradation | None
    pixel_size_nm: tuple[float, float] | None = None
    truth: LineTruth | None = None
    alignment: dict[str, Any] | None = None
    margin: int | None = None
    flat: bool = False


@dataclass(frozen=True)
class CaseSpec:
    """What it takes to make one case, without its pixels."""

    case_id: str
    group: str

    def make(self, protocol: Protocol) -> Case:
        """The case itself; deterministic in (protocol seed, case id). Raises CaseLeftOut with the reason."""
        raise NotImplementedError


@dataclass(frozen=True)
class CasePlan:
    """The cases of a protocol on one data set, in the order in which `--limit` takes them."""

    data: str
    digest: str
    specs: tuple[CaseSpec, ...]
    notices: tuple[str, ...] = ()


Spec = TypeVar("Spec", bound=CaseSpec)


def round_robin(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """The first of every group, then the second of every group, and so on; groups in order of appearance."""
    groups: dict[str, list[Spec]] = {}
    for spec in specs:
        groups.setdefault(spec.group, []).append(spec)
    rounds = max((len(group) for group in groups.values()), default=0)
    return tuple(group[i] for i in range(rounds) for group in groups.values() if i < len(group))


def ordered(protocol: Protocol, specs: Iterable[Spec], limit: int | None) -> tuple[Spec, ...]:
    """The cases in the protocol's order, the first `limit` of them."""
    listed = round_robin(specs) if protocol.order == "round_robin" else tuple(specs)
    return listed[:limit]
