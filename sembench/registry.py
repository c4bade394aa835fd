"""Names to plugins: entry points, FILE.py:Class, near names, and what cannot be loaded and why."""

import contextlib
import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from sembench.errors import InputError

RESTORERS = "sembench.restorers"
METRICS = "sembench.metrics"
DATASETS = "sembench.datasets"
PROTOCOLS = "sembench.protocols"

OWN = "sembench"
"""The distribution whose one package of restorers holds many methods."""


@dataclass(frozen=True)
class Plugin:
    """One name of a group: what it points to and the distribution that claims it."""

    group: str
    name: str
    target: str
    distribution: str

    def load(self) -> Any:
        """Import the target; the InputError says which plugin of which package failed, and how."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return EntryPoint(self.name, self.target, self.group).load()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{_noun(self.group)} {self.name!r} of package {self.distribution} cannot be imported: "
                f"{type(error).__name__}: {_one_line(error)}; "
                f"mend or uninstall {self.distribution}, or leave the name out"
            ) from error


def _noun(group: str) -> str:
    return group.rsplit(".", 1)[-1].removesuffix("s")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known name, else the list of what is known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names) or 'none'}"


def plugins(group: str) -> dict[str, list[Plugin]]:
    """Every name of a group with its claimants, sorted by name; more than one claimant is a clash."""
    found: dict[str, dict[tuple[str, str], Plugin]] = {}
    names: dict[int, str] = {}
    for point in entry_points(group=group):
        if id(point.dist) not in names:  # a distribution parses its metadata anew for every look at its name
            names[id(point.dist)] = (point.dist.name if point.dist else None) or "unknown"
        distribution = names[id(point.dist)]
        plugin = Plugin(group, point.name, point.value, distribution)
        found.setdefault(point.name, {})[distribution, point.value] = plugin
    return {name: list(found[name].values()) for name in sorted(found)}


def plugin(group: str, name: str) -> Plugin:
    """The one plugin of this name; InputError for an unknown name or a clash."""
    known = plugins(group)
    if name not in known:
        raise InputError(f"unknown {_noun(group)} {name!r}: {suggestion(name, known)}")
    if len(known[name]) > 1:
        packages = " and ".join(sorted(p.distribution for p in known[name]))
        raise InputError(f"{_noun(group)} {name!r} is claimed by {packages}: uninstall one of them")
    return known[name][0]


@dataclass(frozen=True)
class MethodTarget:
    """A restorer or control as the user named it: its short name, its class and the digest of its file, if any.

    distribution: that brings it, empty for a file.
    """

    name: str
    cls: Any
    source_sha256: str | None
    distribution: str = ""


def find_method(target: str) -> MethodTarget:
    """The class behind an entry-point name, FILE.py or FILE.py:Class; InputError says what is wrong with it."""
    file, _, attribute = target.rpartition(":") if ".py:" in target else (target, "", "")
    if file.endswith(".py"):
        return _method_from_file(Path(file), attribute)
    found = plugin(RESTORERS, target)
    return MethodTarget(target, _checked(found.load(), target), None, found.distribution)


def _checked(cls: Any, target: str) -> Any:
    if not isinstance(cls, type) or getattr(cls, "kind", None) not in ("restorer", "control"):
        raise InputError(f"{target}: {cls!r} is not a restorer: derive it from sembench.restorer.Restorer")
    return cls


def _method_from_file(file: Path, attribute: str) -> MethodTarget:
    if not file.is_file():
        raise InputError(f"{file}: no such file; give FILE.py:Class")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    module_name = f"sembench_file_{digest[:16]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"{file}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with contextlib.redirect_stdout(sys.stderr):
                spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise InputError(f"{file}: cannot be imported: {type(error).__name__}: {_one_line(error)}") from error
    module = sys.modules[module_name]
    here = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module_name and hasattr(value, "restore")
    }
    if not attribute:
        if len(here) != 1:
            raise InputError(f"{file}: holds {len(here)} restorers ({', '.join(here) or 'none'}): give {file}:CLASS")
        attribute = next(iter(here))
    if not hasattr(module, attribute):
        raise InputError(f"{file}: has no class {attribute!r}: {suggestion(attribute, here)}")
    return MethodTarget(attribute, _checked(getattr(module, attribute), f"{file}:{attribute}"), digest)


def code_digest(method: MethodTarget) -> str | None:
    """SHA-256 by which a change of a method's code shows; None where its files cannot be read.

    Of FILE.py that of the file. Of an installed method that of its module's file, or of all .py files of its package,
    by relative path; of a method of sembench's own, of its subpackage. What these import from elsewhere is not in it.
    """
    if method.source_sha256 is not None:
        return method.source_sha256
    names = method.cls.__module__.split(".")
    for count in range(2 if method.distribution == OWN else 1, len(names) + 1):
        module = sys.modules.get(".".join(names[:count]))
        file = getattr(module, "__file__", None)
        if file is None:
            continue
        try:
            return _package_digest(Path(file).parent) if hasattr(module, "__path__") else _file_digest(Path(file))
        except OSError:
            return None
    return None


def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _package_digest(folder: Path) -> str:
    digests = {file.relative_to(folder).as_posix(): _file_digest(file) for file in folder.rglob("*.py")}
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()


def brought_by(method: MethodTarget) -> str:
    """Name and version of the distribution that brings a method, `sembench-nlm 0.1.0`; empty for a file or sembench."""
    if method.distribution in ("", OWN):
        return ""
    try:
        return f"{method.distribution} {version(method.distribution)}"
    except PackageNotFoundError:
        return method.distribution


def resolve_settings(method: MethodTarget, given: Mapping[str, Any] | None, degradation: str = "none") -> Any:
    """Validated settings of a method; a field named `degradation` that was not given takes the protocol's."""
    from pydantic import ValidationError

    values = dict(given or {})
    fields = method.cls.Settings.model_fields
    if "degradation" in fields:
        values.setdefault("degradation", degradation)
    try:
        return method.cls.Settings(**values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = suggestion(key, fields) if fields else "it has no settings"
            raise InputError(f"restorer {method.name!r} has no setting {key!r}: {hint}") from error
        raise InputError(
            f"restorer {method.name!r}: setting {key}={first['input']!r} is refused: {first['msg']}"
        ) from error


def needs_of(method: MethodTarget, settings: Any) -> list[str]:
    """What the method lacks here, a line each; InputError where the plugin cannot even say so."""
    try:
        return [str(need) for need in method.cls.needs(settings)]
    except Exception as error:
        raise InputError(
            f"restorer {method.name!r} cannot say what it needs: {type(error).__name__}: {_one_line(error)}; mend it"
        ) from error


def load_method(target: str, settings: Mapping[str, Any] | None = None, degradation: str = "none") -> Any:
    """A ready restorer or control; InputError for an unknown name, a broken plugin or a refused setting."""
    method = find_method(target)
    return method.cls(resolve_settings(method, settings, degradation))
