"""What a run will do: its rows (restorer and settings), its cases, its metrics, its folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sembench.cases import CasePlan
from sembench.errors import InputError, UnavailableError
from sembench.execution.fits import FitPlan, find, plan_for
from sembench.metrics.clustering import SetMetricSpec
from sembench.protocol import Protocol
from sembench.registry import METRICS, MethodTarget, find_method, needs_of, plugin, resolve_settings, suggestion
from sembench.restorer import Budget

SHARD_MARK = "-shard-"
"""What stands in the name of a shard's folder between the run's own name and the number."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a restorer with resolved settings and, where it learns, a budget.

    version: the method's own; source_sha256: of the file of a FILE.py restorer; weights_sha256: of pretrained weights.
    trained_on: metrics that its training looks at, as it declares. variant: in what it is not the protocol's own row of
    the restorer, see `variant`.
    """

    name: str
    target: str
    kind: str
    settings: dict[str, Any]
    row_id: str
    budget: str = ""
    version: int = 1
    source_sha256: str | None = None
    weights_sha256: str = ""
    trained_on: tuple[str, ...] = ()
    variant: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The restorer's name and, where there is one, its variant: `semfm (pairs=2)`."""
        return f"{self.name} ({self.variant_told})" if self.variant else self.name

    @property
    def variant_told(self) -> str:
        """The variant in words, empty for the protocol's own row."""
        return ", ".join(f"{name}={value}" for name, value in sorted(self.variant.items()))


def row_id(
    name: str,
    version: int,
    settings: Mapping[str, Any],
    source_sha256: str | None = None,
    weights_sha256: str = "",
    fit: Mapping[str, Any] | None = None,
) -> str:
    """<name>-<8 hex digits>: a digest of method, settings and weights and, where it learns, of its fit's identity."""
    identity: list[Any] = [name, version, settings, source_sha256]
    identity += [weights_sha256] if weights_sha256 else []
    told = f"{name}-{_sha256(json.dumps(identity, sort_keys=True))[:8]}"
    if fit is None:
        return told
    return f"{name}-{_sha256(f'{told}:{_sha256(json.dumps(fit, sort_keys=True))}')[:8]}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """One of `count` equal parts of a run's cases, counted from 1; it has a run folder of its own."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`i/n` as a shard; InputError for anything else."""
        index, _, count = text.partition("/")
        if not (index.isascii() and index.isdecimal() and count.isascii() and count.isdecimal()):
            raise InputError(f"--shard {text}: write i/n, such as 1/4")
        if not 1 <= int(index) <= int(count):
            raise InputError(f"--shard {text}: shards are counted from 1 to n")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def part(self, cases: CasePlan) -> CasePlan:
        """Every n-th case from the i-th on, so that groups stay mixed; InputError where there are more shards."""
        if len(cases.specs) < self.count:
            raise InputError(f"--shard {self}: there are {len(cases.specs)} cases: give as many shards at most")
        return replace(cases, specs=cases.specs[self.index - 1 :: self.count])

    def folder(self, whole: Path) -> Path:
        """The shard's folder beside that of the whole run."""
        return whole.with_name(f"{whole.name}{SHARD_MARK}{self.index}-of-{self.count}")


def split_settings(assignments: Iterable[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """`[name.]key=value` strings as settings per restorer; without a name they go to the only restorer there is."""
    settings: dict[str, dict[str, str]] = {name: {} for name in names}
    for assignment in assignments:
        left, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: write [name.]key=value")
        name, dot, field = left.rpartition(".")
        if not dot:
            if len(names) != 1:
                raise InputError(f"--set {assignment}: say which restorer, as in {names[0]}.{assignment}")
            name = names[0]
        if name not in settings:
            raise InputError(f"--set {assignment}: no restorer {name!r} in this run: {suggestion(name, names)}")
        settings[name][field] = value
    return settings


def plan_rows(
    targets: Sequence[str], assignments: Iterable[str], protocol: Protocol, *, skip_unavailable: bool = False
) -> tuple[list[Row], list[str]]:
    """The rows of a run and the notices about rows that were left out.

    Raises InputError for an unknown name or setting, UnavailableError for an unmet need unless skipped.
    """
    methods = [find_method(target) for target in targets]
    if protocol.scope == "set":
        _check_embed(methods, protocol)
    names = [method.name for method in methods]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise InputError(f"restorer {sorted(doubled)[0]!r} is named twice: name each once")
    given = split_settings(assignments, names)
    rows, notices = [], []
    for target, method in zip(targets, methods, strict=True):
        settings = resolve_settings(method, given[method.name], _degradation(method, protocol))
        needs = needs_of(method, settings)
        if needs:
            if not skip_unavailable:
                raise UnavailableError(
                    f"restorer {method.name!r} is unavailable: {needs[0]}; or give --skip-unavailable"
                )
            notices.append(f"{method.name} is left out: {needs[0]}")
            continue
        plain = settings.model_dump(mode="json")
        weights = method.cls.weights_digest(settings) if method.cls.kind == "restorer" else ""
        version, source = method.cls.version, method.source_sha256
        identity = row_id(method.name, version, plain, source, weights)
        declared, own = trained_on(method, settings), variant(method, plain, protocol)
        rows.append(
            Row(method.name, target, method.cls.kind, plain, identity, "", version, source, weights, declared, own)
        )
    if not rows:
        raise UnavailableError("no restorer of this run is available: see `sembench doctor`")
    return rows, notices


def _degradation(method: MethodTarget, protocol: Protocol) -> str:
    """What a setting `degradation` of the method is where nobody gave one."""
    learns = method.cls.kind == "restorer" and method.cls.learns()
    return protocol.training_degradation if learns else protocol.degradation_name


def trained_on(method: MethodTarget, settings: Any) -> tuple[str, ...]:
    """What the method declares to be trained on; InputError where that is no tuple of names."""
    if method.cls.kind != "restorer":
        return ()
    try:
        declared = method.cls.trained_on(settings)
    except Exception as error:
        declared = f"{type(error).__name__}: {error}"
    if not isinstance(declared, tuple) or not all(isinstance(name, str) and name.isprintable() for name in declared):
        told = " ".join(str(declared).split())[:200]
        raise InputError(f"restorer {method.name!r}: trained_on gives no tuple of metric names ({told}): mend it")
    return declared


def variant(
    method: MethodTarget,
    settings: Mapping[str, Any],
    protocol: Protocol,
    *,
    budget: str | None = None,
    pairs: int | None = None,
) -> dict[str, Any]:
    """In what a row is not the protocol's own of its restorer: name -> value of each setting that is not the default.

    `budget` and `pairs` are among them where they are given and not the protocol's.
    """
    try:
        default = resolve_settings(method, {}, _degradation(method, protocol)).model_dump(mode="json")
    except InputError:
        default = {}
    found = {name: value for name, value in settings.items() if name not in default or default[name] != value}
    if budget not in (None, protocol.budget):
        found["budget"] = budget
    if protocol.fine_tuning is not None and pairs not in (None, protocol.fine_tuning.pairs):
        found["pairs"] = pairs
    return found


def _check_embed(methods: Iterable[MethodTarget], protocol: Protocol) -> None:
    for method in methods:
        if method.cls.kind != "restorer" or not callable(getattr(method.cls, "embed", None)):
            raise InputError(
                f"{method.cls.kind} {method.name!r} has no embed(image), and protocol {protocol.name!r} compares "
                "embeddings: give --restorer one that has, such as semfm"
            )


def plan_fits(
    rows: Iterable[Row], protocol: Protocol, data: str, budget: Budget, *, pairs: int | None = None, device: str = "cpu"
) -> tuple[list[Row], dict[str, FitPlan]]:
    """The rows again, those that learn told apart by what they will learn from; and the fit of each such row.

    data: what the cases come from, as CasePlan.data names it; pairs: as for plan_for. A protocol over a set fits
    nothing.
    """
    check_pairs(protocol, pairs)
    told, fits = [], {}
    for row in rows:
        method = find_method(row.target)
        if row.kind == "restorer" and method.cls.learns() and protocol.scope == "case":
            settings = method.cls.Settings(**row.settings)
            fit = plan_for(method, settings, protocol, data, budget, pairs=pairs, device=device)
            identity = row_id(row.name, row.version, row.settings, row.source_sha256, row.weights_sha256, fit.identity)
            own = variant(method, row.settings, protocol, budget=budget.name, pairs=pairs)
            row = replace(row, row_id=identity, budget=budget.name, variant=own)
            fits[row.row_id] = fit
        told.append(row)
    return told, fits


def only_fitted(rows: Iterable[Row], fits: Mapping[str, FitPlan]) -> tuple[list[Row], list[str]]:
    """The rows whose state is there, those that do not learn among them, and the notices about rows left out."""
    kept, notices = [], []
    for row in rows:
        if row.row_id in fits and find(fits[row.row_id]) is None:
            notices.append(
                f"{row.name} is left out: it is not fitted yet, which takes long; without --no-fit it will be"
            )
        else:
            kept.append(row)
    if not kept:
        raise UnavailableError(f"{notices[0]}; so nothing is left to run")
    return kept, notices


def check_pairs(protocol: Protocol, pairs: int | None) -> None:
    """Refuse a number of training pairs where the protocol has none."""
    if pairs is not None and protocol.fine_tuning is None:
        raise InputError(f"--pairs {pairs}: protocol {protocol.name!r} learns from no pairs: give real_pairs")


def run_digest(protocol: Protocol, cases: CasePlan) -> str:
    """Identity of a run folder: the protocol and every image it uses, whatever the limit or the restorers."""
    return _sha256(f"{protocol.digest}:{cases.digest}")


def default_folder(protocol: Protocol, cases: CasePlan) -> Path:
    """runs/<protocol>-<data>-<digest8>."""
    return Path("runs") / f"{protocol.name}-{cases.data}-{run_digest(protocol, cases)[:8]}"


def available_metrics(protocol: Protocol) -> tuple[list[str], list[str]]:
    """The metrics that can be computed here, and a notice for each that cannot.

    Raises InputError for a metric of the other scope: of images where sets are scored, or the other way round.
    """
    names, notices = [], []
    for name in protocol.metrics.names:
        spec = plugin(METRICS, name).load()
        if isinstance(spec, SetMetricSpec) != (protocol.scope == "set"):
            raise InputError(f"protocol {protocol.name!r} of scope {protocol.scope!r} cannot have the metric {name!r}")
        needs = spec.needs()
        if needs:
            notices.append(f"metric {name} is left out: {needs[0]}")
        else:
            names.append(name)
    return names, notices
