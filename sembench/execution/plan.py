"""What a run will do: its rows (restorer and settings), its cases, its metrics, its folder."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sembench.cases import CasePlan
from sembench.errors import InputError, UnavailableError
from sembench.execution.fits import FitPlan, plan_fit
from sembench.execution.training import training_images
from sembench.metrics.clustering import SetMetricSpec
from sembench.protocol import Protocol
from sembench.registry import METRICS, MethodTarget, find_method, needs_of, plugin, resolve_settings, suggestion
from sembench.restorer import Budget


@dataclass(frozen=True)
class Row:
    """One line of the table: a restorer with resolved settings and, where it learns, a budget."""

    name: str
    target: str
    kind: str
    settings: dict[str, Any]
    row_id: str
    budget: str = ""


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
        learns = method.cls.kind == "restorer" and method.cls.learns()
        degradation = protocol.training_degradation if learns else protocol.degradation_name
        settings = resolve_settings(method, given[method.name], degradation)
        needs = needs_of(method, settings)
        if needs:
            if not skip_unavailable:
                raise UnavailableError(
                    f"restorer {method.name!r} is unavailable: {needs[0]}; or give --skip-unavailable"
                )
            notices.append(f"{method.name} is left out: {needs[0]}")
            continue
        plain = settings.model_dump(mode="json")
        identity = [method.name, method.cls.version, plain, method.source_sha256]
        weights = method.cls.weights_digest(settings) if method.cls.kind == "restorer" else ""
        identity += [weights] if weights else []
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        rows.append(Row(method.name, target, method.cls.kind, plain, f"{method.name}-{digest[:8]}"))
    if not rows:
        raise UnavailableError("no restorer of this run is available: see `sembench doctor`")
    return rows, notices


def _check_embed(methods: Iterable[MethodTarget], protocol: Protocol) -> None:
    for method in methods:
        if method.cls.kind != "restorer" or not callable(getattr(method.cls, "embed", None)):
            raise InputError(
                f"{method.cls.kind} {method.name!r} has no embed(image), and protocol {protocol.name!r} compares "
                "embeddings: give --restorer one that has, such as semfm"
            )


def plan_fits(
    rows: Iterable[Row], protocol: Protocol, data: str, budget: Budget, *, device: str = "cpu"
) -> tuple[list[Row], dict[str, FitPlan]]:
    """The rows again, those that learn told apart by what they will learn from; and the fit of each such row.

    data: what the cases come from, as CasePlan.data names it. A protocol over a set fits nothing.
    """
    told, fits = [], {}
    for row in rows:
        method = find_method(row.target)
        if row.kind == "restorer" and method.cls.learns() and protocol.scope == "case":
            settings = method.cls.Settings(**row.settings)
            images = training_images(protocol, data)
            fit = plan_fit(method, settings, images, protocol.training_degradation, budget, device=device)
            digest = hashlib.sha256(f"{row.row_id}:{fit.digest}".encode()).hexdigest()
            row = replace(row, row_id=f"{row.name}-{digest[:8]}", budget=budget.name)
            fits[row.row_id] = fit
        told.append(row)
    return told, fits


def run_digest(protocol: Protocol, cases: CasePlan) -> str:
    """Identity of a run folder: the protocol and every image it uses, whatever the limit or the restorers."""
    return hashlib.sha256(f"{protocol.digest}:{cases.digest}".encode()).hexdigest()


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
