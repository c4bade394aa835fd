"""Fitted states: what a fit depends on, the cache that keeps them, those that ship, and how a missing one is made."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sembench.cases import PHANTOM, STAND_IN
from sembench.datasets.cache import cache_folder
from sembench.errors import InputError, SembenchError, UnavailableError
from sembench.execution.folder import exclusive
from sembench.execution.training import TrainingImages, training_images
from sembench.execution.training_pairs import TrainingPairs, training_pairs
from sembench.micrograph import write_atomically
from sembench.protocol import Protocol
from sembench.registry import MethodTarget
from sembench.restorer import Budget, FitProgress, Start

if TYPE_CHECKING:
    from torch import Tensor

STATE = "state.safetensors"
DESCRIPTION = "fit.json"
SETTINGS_APART = ("degradation", "seed")
"""Settings that stand in the identity by themselves."""

Listener = Callable[[FitProgress], None]


@dataclass(frozen=True, eq=False)
class FitPlan:
    """One fit, known before anything is read: the method with its settings, and the identity of what it will learn.

    start, rate: the fit from whose state this one goes on, and its learning rate as a share of the method's own.
    """

    method: MethodTarget
    settings: Any
    identity: dict[str, Any]
    images: TrainingImages | TrainingPairs
    budget: Budget
    device: str = "cpu"
    start: "FitPlan | None" = None
    rate: float = 1.0

    @property
    def kept_as(self) -> str:
        """Name of its files where they are shipped or exported, without suffix."""
        pairs = f"-pairs{self.images.number}" if isinstance(self.images, TrainingPairs) else ""
        return f"{self.method.name}-{self.identity['degradation']}{pairs}"

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where the cache keeps it: <cache>/fits/<name>-<digest16>."""
        return cache_folder() / "fits" / f"{self.method.name}-{self.digest[:16]}"


@dataclass(frozen=True)
class FittedState:
    """A state on disk: its file, the file's SHA-256, where it came from (shipped, cached, fitted), the fit's report."""

    path: Path
    sha256: str
    source: str
    report: dict[str, Any]


def plan_fit(
    method: MethodTarget,
    settings: Any,
    images: TrainingImages,
    degradation: str,
    budget: Budget,
    *,
    device: str = "cpu",
) -> FitPlan:
    """The fit of a method that learns; its identity holds all that the state depends on, the method's own file too.

    A setting `degradation` other than none comes before the protocol's; a setting `seed` is the fit's seed. Settings
    that the method names in `settings_after_fit` do not count. The device does not count either.
    """
    plain = settings.model_dump(mode="json")
    seed = int(plain.get("seed", 0))
    own = plain.get("degradation", "none")
    apart = (*SETTINGS_APART, *method.cls.settings_after_fit)
    identity = {
        "name": method.name,
        "version": method.cls.version,
        "settings": {name: value for name, value in plain.items() if name not in apart},
        "data": images.digest,
        "degradation": degradation if own == "none" else own,
        "budget": [budget.name, budget.steps, budget.batch],
        "seed": seed,
        "weights": method.cls.weights_digest(settings),
        "source": method.source_sha256,
    }
    return FitPlan(method, settings, identity, images, budget, device)


def fine_tuned(start: FitPlan, pairs: TrainingPairs, share: float, rate: float) -> FitPlan:
    """The fit that goes on from another one's state on real pairs, for a share of its budget.

    Its identity holds that of the start; that the start's very state is the one it was made from is checked when it is
    found again.
    """
    budget = start.budget.share(share)
    identity = start.identity | {
        "data": pairs.digest,
        "budget": [budget.name, budget.steps, budget.batch],
        "pairs": pairs.number,
        "start": start.digest,
        "rate": rate,
    }
    return replace(start, identity=identity, images=pairs, budget=budget, start=start, rate=rate)


def plan_for(
    method: MethodTarget,
    settings: Any,
    protocol: Protocol,
    data: str,
    budget: Budget,
    *,
    pairs: int | None = None,
    device: str = "cpu",
) -> FitPlan:
    """The fit that a protocol asks for, for cases that come from `data`, as CasePlan.data names it.

    Cases of the phantom are learnt from phantom scenes, unless the state of the protocol's own images is shipped.
    pairs: how many real pairs it goes on with where the protocol has that, 0 for none, None for the protocol's number.
    Raises InputError for a number of pairs that is not to be had.
    """

    def planned(source: str) -> FitPlan:
        images = training_images(protocol, source)
        return plan_fit(method, settings, images, protocol.training_degradation, budget, device=device)

    plain = planned(data)
    if data in (PHANTOM, STAND_IN):
        own = planned(protocol.data.set)
        plain = own if _find_shipped(own) else plain
    part = protocol.fine_tuning
    if part is None or pairs == 0:
        return plain
    chosen = training_pairs(protocol, data, part.pairs if pairs is None else pairs)
    return fine_tuned(plain, chosen, part.share, part.rate)


def find(plan: FitPlan, notices: list[str] | None = None) -> FittedState | None:
    """The finished state of this very fit, from the cache or shipped with the method; None where there is none.

    What is damaged or belongs to another fit is never used; a notice is added where that means fitting again.
    """
    reason = None
    start = find(plan.start) if plan.start else None
    if (plan.folder / DESCRIPTION).is_file():
        found = _read(plan.folder / DESCRIPTION, plan.folder / STATE, plan.digest, "cached", start)
        if isinstance(found, FittedState):
            return found
        reason = found
    shipped = _find_shipped(plan, start)
    if shipped:
        return shipped
    if reason and notices is not None:
        notices.append(f"{plan.folder}: {reason}; {plan.method.name} is fitted again")
    return None


def _find_shipped(plan: FitPlan, start: FittedState | None = None) -> FittedState | None:
    for description in _shipped(plan.method.cls, plan.kept_as):
        found = _read(description, description.with_suffix(".safetensors"), plan.digest, "shipped", start)
        if isinstance(found, FittedState):
            return found
    return None


def find_shipped(method: MethodTarget, settings: Any, degradation: str) -> FittedState | None:
    """The shipped state of a method for a training degradation, if it was made with these settings and weights."""
    for description in _shipped(method.cls, f"{method.name}-{degradation}"):
        found = _read(description, description.with_suffix(".safetensors"), None, "shipped")
        if isinstance(found, FittedState):
            identity = json.loads(description.read_text())["identity"]
            images = TrainingImages("", identity["data"], dict)
            budget = Budget(identity["budget"][0], identity["budget"][1], identity["budget"][2])
            if plan_fit(method, settings, images, degradation, budget).identity == identity:
                return found
    return None


def _shipped(cls: Any, kept_as: str) -> list[Path]:
    package = cls.__module__.rpartition(".")[0]
    if not package:
        return []
    file = resources.files(package) / "states" / f"{kept_as}.json"
    return [Path(str(file))] if file.is_file() else []


def _read(
    description: Path, state: Path, digest: str | None, source: str, start: FittedState | None = None
) -> FittedState | str:
    """A state whose description and content agree, and that was made from the start's, or why it cannot be used."""
    try:
        told = json.loads(description.read_text())
        if digest is not None and told["digest"] != digest:
            return "it was made by other settings or data"
        sha256 = hashlib.sha256(state.read_bytes()).hexdigest()
        if sha256 != told["state_sha256"]:
            return f"{state.name} is damaged"
        if start is not None and told["report"]["start_sha256"] != start.sha256:
            return "it was made from another state"
        return FittedState(state, sha256, source, told["report"])
    except OSError as error:
        return f"{Path(error.filename or state).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{description.name} is damaged"


def ensure(
    plan: FitPlan,
    on_progress: Listener | None = None,
    *,
    fresh: bool = False,
    notices: list[str] | None = None,
) -> FittedState:
    """The state of a fit, made now where there is none yet; one that was interrupted goes on from its checkpoint.

    The state counts as done once its description is written, which comes last.
    Raises UnavailableError where the method cannot learn or its images cannot be had, WriteError for the cache.
    """
    found = None if fresh else find(plan, notices)
    if found:
        return found
    start = ensure(plan.start, on_progress, notices=notices) if plan.start else None
    with _locked(plan):
        for name in (DESCRIPTION, STATE, *(("checkpoint.safetensors",) if fresh else ())):
            (plan.folder / name).unlink(missing_ok=True)
        training = replace(
            plan.images.training_set(plan.identity["degradation"]),
            budget=plan.budget,
            seed=plan.identity["seed"],
            device=plan.device,
            folder=plan.folder,
            on_progress=on_progress,
            start=Start(load_state(start.path, start.sha256), start.sha256, plan.rate) if start else None,
        )
        method = plan.method.cls(plan.settings)
        method.device = plan.device
        started = time.monotonic()
        try:
            method.fit(training)
        except SembenchError as error:
            raise type(error)(f"{plan.method.name}: {error}") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UnavailableError(
                f"restorer {plan.method.name!r} could not be fitted: {type(error).__name__}: {reason}; mend its fit"
            ) from error
        content = serialise(method.state, plan.method.name)
        report = {"seconds": round(time.monotonic() - started, 1), **(method.report or {})}
        report |= {"start_sha256": start.sha256} if start else {}
        return store(plan, content, report, plan.folder / STATE, plan.folder / DESCRIPTION)


def store(plan: FitPlan, content: bytes, report: dict[str, Any], state: Path, description: Path) -> FittedState:
    """Write a state and then, last, its description."""
    sha256 = hashlib.sha256(content).hexdigest()
    told = {"digest": plan.digest, "identity": plan.identity, "state_sha256": sha256, "report": report}
    write_atomically(state, content)
    write_atomically(description, (json.dumps(told, indent=1, sort_keys=True) + "\n").encode())
    return FittedState(state, sha256, "fitted", report)


def serialise(state: "Mapping[str, Tensor] | None", name: str) -> bytes:
    """A state as safetensors, floating-point tensors rounded to float16; UnavailableError where it is none."""
    import torch
    from safetensors.torch import save

    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UnavailableError(f"restorer {name!r} left no state: its fit must set self.state to a dict of tensors")
    halves = {
        key: (value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()).contiguous()
        for key, value in state.items()
    }
    broken = [key for key, value in halves.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UnavailableError(f"restorer {name!r}: fitted tensor {broken[0]!r} is not finite in half precision")
    return save(halves)


def load_state(path: Path, sha256: str | None = None) -> "dict[str, Tensor]":
    """The tensors of a state file; InputError where it is no safetensors file or not the one of that SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a fitted state ({error.strerror})") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path}: changed since it was fitted: remove it and run again")
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a fitted state: give a safetensors file that sembench wrote") from error


def degradation_of(state: Path) -> str | None:
    """The training degradation that the description beside a state names; None where there is none of that state."""
    for description in (state.with_suffix(".json"), state.with_name(DESCRIPTION)):
        try:
            told = json.loads(description.read_bytes())
            if told["state_sha256"] == hashlib.sha256(state.read_bytes()).hexdigest():
                return str(told["identity"]["degradation"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _locked(plan: FitPlan) -> AbstractContextManager[None]:
    busy = f"another process is fitting {plan.method.name} there: wait for it"
    return exclusive(plan.folder, busy=busy, mend="free it, or set SEMBENCH_CACHE to another folder")
