"""What is done in a fresh process: import a plugin with its optional packages hidden, and restore by a stored state."""

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import MetadataPathFinder
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from sembench.registry import MethodTarget, find_method, resolve_settings
from sembench.restorer import SMALLEST_SIDE

NETWORK_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname")


def locate(place: dict[str, str]) -> MethodTarget:
    """The class at a place: {"target": NAME or FILE.py:Class}, or {"module", "file", "class"}."""
    if "target" in place:
        return find_method(place["target"])
    try:
        module = importlib.import_module(place["module"])
    except ImportError:
        spec = importlib.util.spec_from_file_location(place["module"], place["file"])
        if spec is None or spec.loader is None:
            raise
        module = sys.modules[place["module"]] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return MethodTarget(place["class"], getattr(module, place["class"]), None)


class _Hiding:
    """The finder of modules on the path, to which some packages are not there.

    asked: hidden package -> the package that asked for it, the last one.
    """

    def __init__(self, hidden: Iterable[str]) -> None:
        self.hidden = frozenset(hidden)
        self.asked: dict[str, str] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package in self.hidden:
            self.asked[package] = _asking(sys._getframe(1))
            return None
        return PathFinder.find_spec(name, path, target)

    find_distributions = staticmethod(MetadataPathFinder.find_distributions)


def _asking(frame: FrameType | None) -> str:
    """The package whose code imports: that of the first frame which is not of the import system itself."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("importlib", "_frozen_importlib", "_frozen_importlib_external"):
            return package
        frame = frame.f_back
    return ""


def import_and_restore(place: dict[str, str], settings: dict[str, Any], hidden: list[str]) -> dict[str, Any]:
    """What importing the method, asking its needs and restoring an image did where packages are hidden.

    Returns broken (why it cannot be imported), missing (the package whose absence broke import or restoration, where
    that is known, else what the error says), why (what the error says), asked (hidden package -> the package that asked
    for it), torch (whether importing it imported torch), network (hosts that it asked for), needs (what it says is
    missing).
    """
    found: dict[str, Any] = {"broken": None, "missing": None, "why": "", "torch": False, "network": [], "needs": []}
    importing = True

    def listen(event: str, words: tuple[Any, ...]) -> None:
        if importing and event in NETWORK_EVENTS:
            host = words[1] if event == "socket.connect" else words[0]
            if event == "socket.connect" and isinstance(host, str):
                return
            found["network"].append(str(host))
            raise OSError("sembench check allows no network on import")

    sys.addaudithook(listen)
    hiding = _Hiding(hidden)
    sys.meta_path[:] = [hiding if finder is PathFinder else finder for finder in sys.meta_path]
    found["asked"] = hiding.asked
    try:
        method = locate(place)
    except BaseException as error:
        found |= {"broken": _told(error), **_missing(error, hiding.hidden)}
        return found
    finally:
        importing = False
    found["torch"] = "torch" in sys.modules
    resolved = resolve_settings(method, settings)
    try:
        found["needs"] = [str(need) for need in method.cls.needs(resolved)]
        if not found["needs"] and method.cls.kind == "restorer":
            method.cls(resolved).restore(np.full((SMALLEST_SIDE + 8,) * 2, 100, np.float32))
    except BaseException as error:
        found |= _missing(error, hiding.hidden)
    return found


def _missing(error: BaseException | None, hidden: Collection[str]) -> dict[str, Any]:
    """The package whose absence is an error, or what it comes from; a hidden one before what the error itself names."""
    while error is not None and not isinstance(error, ImportError):
        error = error.__cause__
    if error is None:
        return {}
    why = " ".join(str(error).split())[:300]
    origin: BaseException | None = error
    while origin is not None:
        if isinstance(origin, ImportError) and (package := (origin.name or "").partition(".")[0]) in hidden:
            return {"missing": package, "why": why}
        origin = origin.__cause__ or origin.__context__
    return {"missing": error.name or why, "why": why}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def restore(place: dict[str, str], settings: dict[str, Any], state: str, image: str, restored: str) -> None:
    """Restore an image file (.npy) by a state file, into another file."""
    import torch

    from sembench.execution.fits import load_state

    torch.set_num_threads(1)
    method = locate(place)
    instance = method.cls(resolve_settings(method, settings))
    instance.state = load_state(Path(state))
    np.save(restored, instance.restore(np.load(image, allow_pickle=False)))
