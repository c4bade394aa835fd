"""Every public name of the packages is documented, sembench has types throughout, and importing it loads no torch."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sembench", "restorers", "protocols")


def names_in(package: str) -> list[str]:
    """The modules of a package and itself, all but those that run when they are imported."""
    found = importlib.import_module(package)
    inner = pkgutil.walk_packages(found.__path__, f"{package}.")
    return [package, *(one.name for one in inner if not one.name.endswith("__main__"))]


def public(owner: Any) -> Iterator[tuple[str, Any]]:
    """Classes, functions and properties that a module or a class defines under a name without leading underscore."""
    home = getattr(owner, "__module__", owner.__name__)
    for name, value in vars(owner).items():
        if name.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod | property | cached_property):
            yield name, value if isinstance(value, property | cached_property) else getattr(owner, name)
        elif isinstance(value, type | FunctionType) and value.__module__ == home:
            yield name, value


def undocumented(module: ModuleType) -> list[str]:
    """The public names of a module without a docstring; an override and an inner class may inherit theirs."""
    tree = ast.parse(inspect.getsource(module))
    written = {node.name: ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef)}
    lacking = [] if module.__doc__ else [module.__name__]
    waiting = [(f"{module.__name__}.{name}", value, written.get(name, "")) for name, value in public(module)]
    while waiting:
        name, value, own = waiting.pop()
        if own is None or not inspect.getdoc(value):
            lacking.append(name)
        if isinstance(value, type):
            waiting += [(f"{name}.{inner}", one, "") for inner, one in public(value) if one is not value]
    return lacking


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    assert [name for module in names_in(package) for name in undocumented(importlib.import_module(module))] == []


def test_the_search_finds_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare.py").write_text(
        "from dataclasses import dataclass\nfrom functools import cached_property\n"
        "from sembench.restorer import Restorer\n"
        "def function(): pass\n"
        "def _private(): pass\n"
        "@dataclass\nclass Data:\n    x: int = 0\n"
        "class Mine(Restorer):\n"
        "    class Settings(Restorer.Settings): pass\n"
        "    def restore(self, image, /): pass\n"
        "    def other(self): pass\n"
        "    @classmethod\n    def made(cls): pass\n"
        "    @property\n    def kept(self): pass\n"
        "    @cached_property\n    def found(self): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lacking = undocumented(importlib.import_module("bare"))
    assert {name.removeprefix("bare").lstrip(".") for name in lacking} == {
        *("", "function", "Data", "Mine", "Mine.other", "Mine.made", "Mine.kept", "Mine.found")
    }


def test_import_sembench_loads_no_torch() -> None:
    code = "import sembench, sys; print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy'}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
