"""One fit by itself: a restorer, the images it learns from, and where its state goes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol as Interface

from sembench.cases import PHANTOM
from sembench.errors import InputError, UnavailableError
from sembench.execution import fits
from sembench.execution.plan import check_pairs, split_settings
from sembench.execution.prepare import check_device
from sembench.execution.training import TrainingImages, folder_images, training_images
from sembench.execution.training_pairs import TrainingPairs, training_pair_folder, training_pairs
from sembench.optics import DEGRADATIONS
from sembench.protocol import Protocol, load
from sembench.registry import DATASETS, find_method, needs_of, plugins, resolve_settings, suggestion
from sembench.restorer import Budget, FitProgress


@dataclass(frozen=True)
class AdaptRequest:
    """What the user asked for; None: as the protocol has it."""

    restorer: str
    protocol: str = "s2s"
    data: str | None = None
    degradation: str | None = None
    budget: str | None = None
    settings: tuple[str, ...] = ()
    device: str = "cpu"
    crop_bottom: str = "auto"
    fresh: bool = False
    pairs: int | None = None


class Reporter(Interface):
    """Told of a fit: the restorer, how far it has come (None: nothing yet), and a notice or nothing."""

    def __call__(self, name: str, told: FitProgress | None, notice: str) -> None: ...


def prepare(request: AdaptRequest) -> fits.FitPlan:
    """Resolve names, settings and images; every refusal comes from here, before anything is read or written."""
    check_device(request.device)
    protocol = load(request.protocol)
    budget = Budget.of(request.budget or protocol.budget)
    check_pairs(protocol, request.pairs)
    pairs, start = _pairs(request, protocol)
    images, degradation = _images(start, protocol)
    method = find_method(request.restorer)
    if method.cls.kind != "restorer" or not method.cls.learns():
        raise InputError(f"restorer {method.name!r} does not learn: there is nothing to adapt")
    settings = resolve_settings(method, split_settings(request.settings, [method.name])[method.name], degradation)
    needs = needs_of(method, settings)
    if needs:
        raise UnavailableError(f"restorer {method.name!r} is unavailable: {needs[0]}")
    plan = fits.plan_fit(method, settings, images, degradation, budget, device=request.device)
    part = protocol.fine_tuning
    return plan if pairs is None or part is None else fits.fine_tuned(plan, pairs, part.share, part.rate)


def _pairs(request: AdaptRequest, protocol: Protocol) -> tuple[TrainingPairs | None, AdaptRequest]:
    """The pairs that the fit goes on with (None for none), and the request of the fit that it goes on from.

    The pairs of a user's folder go on from what the protocol's own images gave.
    """
    if protocol.fine_tuning is None or request.pairs == 0:
        return None, request
    name = request.data or protocol.data.set
    if name not in (PHANTOM, *plugins(DATASETS)) and Path(name).is_dir():
        own = training_pair_folder(protocol, Path(name), request.pairs, request.crop_bottom)
        return own, replace(request, data=None)
    number = protocol.fine_tuning.pairs if request.pairs is None else request.pairs
    return training_pairs(protocol, name, number), request


def _images(request: AdaptRequest, protocol: Protocol) -> tuple[TrainingImages, str]:
    degradation = request.degradation or protocol.training_degradation
    name = request.data or protocol.data.training_set or protocol.data.set
    if name == PHANTOM or name in plugins(DATASETS):
        images = training_images(protocol, name)
    elif Path(name).is_dir():
        images = folder_images(Path(name), request.crop_bottom)
        degradation = request.degradation or "broad"
    else:
        raise InputError(f"{name}: neither a folder nor a data set: {suggestion(name, [*plugins(DATASETS), PHANTOM])}")
    if degradation not in DEGRADATIONS:
        raise InputError(f"degradation {degradation!r} is not known: {suggestion(degradation, DEGRADATIONS)}")
    return images, degradation


def fit(plan: fits.FitPlan, report: Reporter, *, fresh: bool = False) -> fits.FittedState:
    """The state, from the cache or made now."""
    notices: list[str] = []
    found = None if fresh else fits.find(plan, notices)
    for notice in notices:
        report(plan.method.name, None, notice)
    if found:
        return found
    report(plan.method.name, None, "")
    return fits.ensure(plan, lambda told: report(plan.method.name, told, ""), fresh=fresh)


def export(plan: fits.FitPlan, fitted: fits.FittedState, folder: Path) -> fits.FittedState:
    """Write a state as it ships, <restorer>-<degradation>[-pairs<N>].safetensors, with its description."""
    base = folder / plan.kept_as
    return fits.store(
        plan,
        fitted.path.read_bytes(),
        fitted.report,
        base.with_suffix(".safetensors"),
        base.with_suffix(".json"),
    )
