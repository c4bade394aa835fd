"""What is done in a fresh process: import a plugin with its optional packages hidden, and restore by a stored state."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
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
    """The finder of modules on the path, to which some packages are not there."""

    def __init__(self, hidden: Iterable[str]) -> None:
        self.hidden = frozenset(hidden)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.hidden:
            return None
        return PathFinder.find_spec(name, path, target)

    find_distributions = staticmethod(PathFinder.find_distributions)


def import_and_restore(place: dict[str, str], settings: dict[str, Any], hidden: list[str]) -> dict[str, Any]:
    """What importing the method, asking its needs and restoring an image did where packages are hidden.

    Returns broken (why it cannot be imported), missing (the package whose absence broke import or restoration), torch
    (whether importing it imported torch), network (hosts that it asked for), needs (what it says is missing).
    """
    found: dict[str, Any] = {"broken": None, "missing": None, "torch": False, "network": [], "needs": []}
    importing = True

    def listen(event: str, words: tuple[Any, ...]) -> None:
        if importing and event in NETWORK_EVENTS:
            host = words[1] if event == "socket.connect" else words[0]
            if event == "socket.connect" and isinstance(host, str):
                return
            found["network"].append(str(host))
            raise OSError("sembench check allows no network on import")

    sys.addaudithook(listen)
    sys.meta_path[:] = [_Hiding(hidden) if finder is PathFinder else finder for finder in sys.meta_path]
    try:
        method = locate(place)
    except BaseException as error:
        found |= {"broken": _told(error), "missing": _missing(error)}
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
        found["missing"] = _missing(error)
    return found


def _missing(error: BaseException | None) -> str | None:
    """The package whose absence is an error, or what it comes from."""
    while error is not None:
        if isinstance(error, ImportError):
            return error.name or str(error)
        error = error.__cause__
    return None


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
