"""A method under check: loaded, given images and a seed as a run gives them, and fitted for three steps."""

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from sembench.cases import Case
from sembench.checks.outcome import CheckFailed, CheckSkipped
from sembench.checks.process import ProcessApart, ProcessLost
from sembench.errors import InputError
from sembench.optics import Degradation
from sembench.registry import RESTORERS, MethodTarget, find_method, plugin, resolve_settings
from sembench.restorer import Budget, Image, Patch, TrainingSet, Truth

FIT_STEPS = 3
"""Steps of the fit by which methods that learn are checked, of one patch each."""

LIMIT_S = 300.0
"""Time limit of a check, and of what it does in a fresh process."""

DEGRADATION = Degradation(rx=4, ry=6, beta=1.95, theta=0.3, a=1.045, b=13, sigma=4, dose=20)
"""What controls are told."""


def scene(height: int, width: int, seed: int = 0) -> Image:
    """Bright blobs on a gray ground, a little noisy: float32 (height, width), gray levels 20..220 but for noise."""
    rng = np.random.default_rng(seed)
    texture = gaussian_filter(rng.standard_normal((height, width)), 4)
    clean = 120 + 35 * np.tanh(2 * texture / texture.std())
    return np.asarray(np.clip(clean + rng.normal(0, 6, clean.shape), 0, 255), np.float32)


def standard() -> Image:
    """The image by which results are compared, 64 x 80 px."""
    return scene(64, 80, 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for numpy's libraries and for torch, so that sums come out the same in every process."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    try:
        with threadpool_limits(1):
            if torch:
                torch.set_num_threads(1)
            yield
    finally:
        if torch:
            torch.set_num_threads(threads)


class _BriefTraining(TrainingSet):
    """A training set that is validated on its first patch alone."""

    def validation_patches(self) -> list[Patch]:
        return self.batch(0)[:1]


def _training(degradation: str, seed: int, device: str = "cpu") -> TrainingSet:
    images = (scene(256, 272, 1),), (scene(256, 256, 2),)
    return _BriefTraining(*images, degradation, Budget("check", FIT_STEPS, batch=1), seed, device)


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """The global random streams, seeded as a run seeds them; afterwards they are what they were before."""
    before = global_streams()
    torch = sys.modules.get("torch")
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        if torch:
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        if torch:
            torch.set_rng_state(before[2])


def global_streams() -> tuple[Any, Any, Any]:
    """States of the global random streams of Python, numpy and, where it is imported, torch."""
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None  # noqa: NPY002


@dataclass(frozen=True, eq=False)
class Fit:
    """A short fit: the instance, its settings before and after, and its state as the cache would keep it."""

    instance: Any
    before: Any
    content: bytes
    file: Path


class Subject:
    """A method with settings under check. Raises InputError where it cannot be loaded or a setting is refused."""

    def __init__(self, target: Any, settings: Mapping[str, Any], fit: bool) -> None:
        self.target, self.given, self.may_fit = target, dict(settings), fit
        if isinstance(target, str):
            self.method = find_method(target)
        elif isinstance(target, type) and getattr(target, "kind", None) in ("restorer", "control"):
            self.method = MethodTarget(target.__name__, target, None)
        else:
            raise InputError(f"{target!r} is not a restorer: give a name, FILE.py:Class, or a class of Restorer")
        self.settings = resolve_settings(self.method, self.given)

    @cached_property
    def _temporary(self) -> "tempfile.TemporaryDirectory[str]":
        return tempfile.TemporaryDirectory(prefix="sembench-check-")

    @property
    def folder(self) -> Path:
        """For files of this check; removed with it."""
        return Path(self._temporary.name)

    @property
    def cls(self) -> Any:
        """The class of the method."""
        return self.method.cls

    @property
    def learns(self) -> bool:
        """Whether the method has to be fitted before it restores; a control never has."""
        return self.cls.kind == "restorer" and bool(self.cls.learns())

    @cached_property
    def place(self) -> dict[str, str]:
        """Where a fresh process finds the class."""
        if isinstance(self.target, str):
            name = str(Path(self.target).resolve()) if ".py" in self.target else self.target
            return {"target": name}
        file = inspect.getsourcefile(self.cls) if self.cls.__module__ in sys.modules else None
        if "." in self.cls.__qualname__ or file is None:
            raise CheckSkipped("the class stands inside another thing than a module, where no fresh process finds it")
        return {"module": self.cls.__module__, "file": file, "class": self.cls.__name__}

    @cached_property
    def distribution(self) -> str | None:
        """The distribution that brings the method, where it is known."""
        if isinstance(self.target, str):
            return None if ".py" in self.target else plugin(RESTORERS, self.target).distribution
        owners = _owners().get(self.cls.__module__.partition(".")[0])
        return owners[0] if owners else None

    def require_available(self) -> None:
        """Skip where the method says that it lacks something."""
        needs = self.cls.needs(self.settings)
        if needs:
            raise CheckSkipped(f"unavailable here: {needs[0]}")

    def new(self) -> Any:
        """An instance as the suite makes it, not fitted."""
        return self.cls(self.settings)

    def ready(self) -> Any:
        """A new instance that can restore; skips where the method is unavailable, or would have to be fitted first.

        A method that learns has the state of the short fit where fits were asked for, else the one that ships with it.
        """
        self.require_available()
        instance = self.new()
        if self.learns:
            instance.state = self._loaded() if self.may_fit or self.shipped is None else self.shipped
        return instance

    @cached_property
    def shipped(self) -> Any:
        """The state that ships with the method for these settings, None where there is none."""
        from sembench.execution.fits import find_shipped, load_state

        named = getattr(self.settings, "degradation", "none")
        for degradation in ("broad", "paper") if named == "none" else (named,):
            found = find_shipped(self.method, self.settings, degradation)
            if found:
                return load_state(found.path, found.sha256)
        return None

    @cached_property
    def fit(self) -> Fit:
        """A fit of a few steps, made once; skips unless fits were asked for."""
        from sembench.execution.fits import serialise

        self.require_available()
        if not self.may_fit:
            raise CheckSkipped("needs a fit: give --fit (fit=True)")
        instance = self.new()
        before = instance.settings.model_dump(mode="json")
        self.learn(instance)
        content = serialise(instance.state, self.method.name)
        file = self.folder / "state.safetensors"
        file.write_bytes(content)
        return Fit(instance, before, content, file)

    def learn(self, instance: Any) -> None:
        """Fit an instance by its own degradation and seed."""
        plain = self.settings.model_dump()
        named = plain.get("degradation", "paper")
        with global_seeds(11):
            instance.fit(_training(named if named in ("paper", "broad") else "paper", int(plain.get("seed", 0))))

    def _loaded(self) -> Any:
        from sembench.execution.fits import load_state

        return load_state(self.fit.file)

    def restore(self, instance: Any, image: Image, *, reference: Image | None = None, seed: int = 2604) -> Image:
        """Restore one image within reach of a case, as a worker does; the global random streams are put back."""
        case = Case("case", "group", scene(*image.shape) if reference is None else reference, image, DEGRADATION)
        with global_seeds(seed):
            return self.restore_unseeded(instance, image, case.reference)

    def restore_unseeded(self, instance: Any, image: Image, reference: Image | None = None) -> Image:
        """Restore one image in one thread, as a worker does; the check fails where no array comes back."""
        with _one_thread():
            return self._restored(instance, image, reference)

    def _restored(self, instance: Any, image: Image, reference: Image | None) -> Image:
        if self.cls.kind == "control":
            truth = Truth(scene(*image.shape[:2]) if reference is None else reference, DEGRADATION)
            restored = instance.restore(image, truth)
        else:
            restored = instance.restore(image)
        if not isinstance(restored, np.ndarray):
            raise CheckFailed(
                f"restore returned {type(restored).__name__}: return a float32 array of the input's shape"
            )
        return restored

    @cached_property
    def twice(self) -> tuple[Image, Image]:
        """What two new instances make of `standard()`."""
        first, again = (self.restore(self.ready(), standard()) for _ in range(2))
        return first, again

    def require_repeatable(self) -> Image:
        """What a new instance makes of `standard()`; skips where another makes something else of it."""
        first, again = self.twice
        if not same(first, again):
            raise CheckSkipped("one image gives two results: mend what `seeded` tells first")
        return first

    def apart(self, function: str, **words: Any) -> Any:
        """Call a function of checks.fresh in a fresh process, about this method."""
        try:
            settings = self.settings.model_dump(mode="json")
            return _fresh().call(
                f"sembench.checks.fresh:{function}", {"place": self.place, "settings": settings, **words}, LIMIT_S
            )
        except ProcessLost as error:
            raise CheckFailed(f"in a fresh process the method was lost: {error}; run it by hand there") from error

    @cached_property
    def imported(self) -> dict[str, Any]:
        """How import and needs went in a fresh process where packages that nothing requires are hidden."""
        found: dict[str, Any] = self.apart("import_and_restore", hidden=sorted(_hidden(self.distribution)))
        return found

    def lack(self) -> str:
        """Which package it lacks, as `imported` tells, and how to mend that: one line."""
        module = self._missing_module()
        inside = "import it inside restore and name it in needs()"
        if module is None:
            why = self.imported["why"]
            return (
                f"it ends in ImportError ({why}) and needs() tells nothing: {inside}, or require it in pyproject.toml"
            )
        package = _owners().get(module, [module])[0]
        told = f"{module} ({package})" if package != module else module
        asking = self.imported["asked"].get(module, "")
        own = self.cls.__module__.partition(".")[0]
        through = f", through {asking}," if asking not in ("", "sembench", own) else ""
        if module not in _hidden(self.distribution):
            return (
                f"{told} is imported{through} and is not installed here, and needs() tells nothing: {inside}, "
                "or install it and require it in pyproject.toml"
            )
        if self.distribution:
            return (
                f"{told} is imported{through or ','} and the pyproject.toml of {self.distribution} does not require "
                f"it: add {package!r} to its `dependencies` and install it again, or {inside}"
            )
        return (
            f"{told} is imported{through or ','} and sembench does not require it: import it inside restore and tell "
            "of it by `from sembench.restorer import Need` and `@classmethod def needs(cls, settings) -> list[Need]: "
            f"return [] if importlib.util.find_spec({module!r}) else "
            f"[Need({package!r}, 'not installed', 'pip install {package}')]`"
        )

    def _missing_module(self) -> str | None:
        """The module whose absence ended import or restoration, None where the error does not tell."""
        found = self.imported
        if found["missing"] in _hidden(self.distribution):
            return str(found["missing"])
        for module in found["asked"]:
            names = "|".join(re.escape(name) for name in (module, *_owners().get(module, ())))
            if re.search(rf"(?i)(?<!\w)({names})(?!\w)", found["why"]):
                return str(module)
        top = str(found["missing"]).partition(".")[0]
        return top if top.isidentifier() and importlib.util.find_spec(top) is None else None


def same(one: Image, other: Image) -> bool:
    """Whether two results are the same, byte for byte."""
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def subject(target: Any, settings: Mapping[str, Any], fit: bool) -> Subject:
    """The subject of a target and its settings, kept while its checks follow one another."""
    return _subject(target, json.dumps(dict(settings), sort_keys=True, default=str), fit, _version(target))


@lru_cache(maxsize=2)
def _subject(target: Any, settings: str, fit: bool, version: str) -> Subject:
    return Subject(target, json.loads(settings), fit)


def _version(target: Any) -> str:
    """Digest of a target's file, where it is a file."""
    file = Path(target.partition(".py")[0] + ".py") if isinstance(target, str) and ".py" in target else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else ""


@lru_cache(maxsize=1)
def _fresh() -> ProcessApart:
    import atexit

    process = ProcessApart(fresh=True)
    atexit.register(process.close)
    return process


@lru_cache(maxsize=1)
def _owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache(maxsize=8)
def _hidden(distribution: str | None) -> frozenset[str]:
    """Importable packages that neither sembench nor the method's distribution requires: extras, and what is by chance.

    The requirements of a marker's extra do not count; other markers do.
    """
    required: set[str] = set()
    waiting = [_normal(name) for name in ("sembench", distribution) if name]
    while waiting:
        name = waiting.pop()
        if name in required:
            continue
        required.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            found = re.match(r"[\w.-]+", requirement)
            if found and "extra" not in requirement.partition(";")[2]:
                waiting.append(_normal(found[0]))
    return frozenset(
        package
        for package, owners in _owners().items()
        if package.isidentifier() and not any(_normal(owner) in required for owner in owners)
    )
