"""What a stranger's file can do: be refused. No pickle, no archive, no shell, nothing written outside of its folder.

Searched are all packages, the examples, the benchmarks and what CI runs.
"""

import ast
import csv
import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sembench import micrograph, protocol
from sembench.datasets import cache
from sembench.datasets.manifest import FULL_COLUMNS, load_manifest
from sembench.errors import InputError, SembenchError, UnavailableError
from sembench.execution import embed, fits
from sembench.pages import document

ROOT = Path(__file__).parents[1]
SEARCHED = ("sembench", "restorers", "protocols", "examples", "benchmarks", ".ci")
SOURCES = sorted(file for part in SEARCHED for file in (ROOT / part).rglob("*.py"))

UNPICKLERS = {
    *("pickle", "cPickle", "_pickle", "shelve", "dill", "cloudpickle", "joblib", "marshal", "jsonpickle"),
    *("yaml", "ruamel", "configparser"),
}
"""What unpickles, and what reads settings that are not TOML."""
ARCHIVES = {"tarfile", "zipfile", "zipimport", "py7zr", "rarfile"}
CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "runpy.run_path": "runs a file as code",
    "os.system": "a shell",
    "os.popen": "a shell",
    "pty.spawn": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
    "shutil.unpack_archive": "an archive",
    "torch.save": "pickles",
    "torch.jit.load": "runs a file as code",
    "pandas.read_pickle": "unpickles",
}
TORCH_LOADS = {"sembench/datasets/cache.py", "sembench/metrics/perceptual.py"}
"""The two readers of a .pth: AlexNet's features, hash checked, and the heads that come inside the package lpips."""

MODEL_FILES = {"examples/wrapping/torchscript_model.py": {"torch.jit.load"}}
"""The example that shows how to wrap a file that is code."""


def imported(tree: ast.AST) -> dict[str, str]:
    """What each name stands for that a module imports: {"np": "numpy", "load": "torch.load"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def keyword(node: ast.Call, name: str) -> Any:
    """The constant value of a keyword argument, its text where it is none, None where it is not given."""
    for given in node.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else ast.unparse(given.value)
    return None


def offences(source: str, where: str) -> Iterator[str]:
    """What a module does that opens a door to files made by strangers."""
    tree = ast.parse(source)
    aliases = imported(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module.split(".")[0]]
        for name in names:
            if name in UNPICKLERS and not (name == "pickle" and set(re.findall(r"\bpickle\.\w+", source)) == ERRORS):
                yield f"{where}:{node.lineno} imports {name}"
            if name in ARCHIVES:
                yield f"{where}:{node.lineno} imports {name}: archives are not read"
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func, aliases)
        if called in CALLS and called not in MODEL_FILES.get(where, ()):
            yield f"{where}:{node.lineno} {called}: {CALLS[called]}"
        if keyword(node, "shell") not in (None, False):
            yield f"{where}:{node.lineno} {called} with a shell"
        if keyword(node, "allow_pickle") not in (None, False):
            yield f"{where}:{node.lineno} {called} may unpickle"
        if called == "torch.load" and (keyword(node, "weights_only") is not True or where not in TORCH_LOADS):
            yield f"{where}:{node.lineno} torch.load"
        if called.endswith("Environment") and keyword(node, "autoescape") is not True:
            yield f"{where}:{node.lineno} a template without escapes"


ERRORS = {"pickle.UnpicklingError"}
"""All of pickle that may be named: the error that torch raises where it refuses a file."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_opens_a_door(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "from pickle import loads",
        "import pickle\nx = pickle.UnpicklingError, pickle.load",
        "import joblib",
        "import tarfile",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
        "import numpy as np\nnp.load('a', allow_pickle=wanted)",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import torch\ntorch.load('a', weights_only=True)",
        "import torch\ntorch.save(1, 'a')",
        "from torch import load\nload('a')",
        "import torch as t\nt.load('a')",
        "import torch\ntorch.jit.load('a')",
        "import pandas as pd\npd.read_pickle('a')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "from os import system as call\ncall('ls')",
        "from subprocess import run\nrun('ls', shell=True)",
        "import yaml\nyaml.safe_load('')",
        "from shutil import unpack_archive\nunpack_archive('a')",
        "eval('1')",
        "from jinja2 import Environment\nEnvironment()",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert list(offences(source, "elsewhere.py"))


def test_every_folder_with_modules_is_searched() -> None:
    inside = (path for path in ROOT.iterdir() if path.is_dir())
    folders = {path.name for path in inside if path.name[0] != "." and any(path.rglob("*.py"))}
    assert folders - {"tests", "build", "dist", "runs"} <= {*SEARCHED}
    assert not list(ROOT.glob("*.py"))


def test_a_protocol_is_toml_and_nothing_else(tmp_path: Path) -> None:
    for name, text in (
        ("protocol.yaml", "!!python/object/apply:os.mkdir [flag]"),
        ("protocol.json", "{}"),
        ("protocol.py", "x = 1"),
        ("protocol.toml", "name: !!python/object/apply:os.mkdir [flag]"),
        ("other.toml", '{"name": "json"}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError) as refusal:
            protocol.load(str(tmp_path / name))
        assert "\n" not in str(refusal.value)


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.flag),)


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    return tmp_path / "flag"


def object_array(flag: Path) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([[Malicious(flag)]], dtype=object), allow_pickle=True)
    return content.getvalue()


def torch_file(flag: Path) -> bytes:
    """A .pth as torch writes it, its pickle another's."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(flag), protocol=2))
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def test_the_malicious_files_would_do_harm(flag: Path) -> None:
    np.load(io.BytesIO(object_array(flag)), allow_pickle=True)
    assert flag.is_dir()
    flag.rmdir()
    import torch

    torch.load(io.BytesIO(torch_file(flag)), weights_only=False)
    assert flag.is_dir()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("make", [object_array, torch_file, lambda flag: pickle.dumps(Malicious(flag))])
def test_a_malicious_file_is_refused_by_every_reader(make: Callable[[Path], bytes], flag: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(make(flag))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    readers: dict[str, Callable[[], Any]] = {
        "image": lambda: micrograph.read(file),
        "stored image": lambda: micrograph.read_grid_png(file),
        "embeddings": lambda: embed.load(file, sha256),
        "fitted state": lambda: fits.load_state(file, sha256),
        "AlexNet's .pth": lambda: cache.cut_alexnet(file, tmp_path / "cut.safetensors", sha256=sha256),
    }
    for name, read in readers.items():
        with pytest.raises((InputError, UnavailableError)) as refusal:
            read()
        assert "\n" not in str(refusal.value), name
        assert "weights_only" not in str(refusal.value), "advice of torch to read it all the same"
    assert not flag.exists()
    assert not (tmp_path / "cut.safetensors").exists()


@pytest.mark.parametrize("file", ["../out.tif", "/etc/out.tif", "a/../../out.tif", "..\\out.tif", "C:out.tif", ""])
def test_a_manifest_names_no_file_outside_of_its_set(file: str, tmp_path: Path) -> None:
    row = dict.fromkeys(FULL_COLUMNS, "") | {"file": file, "sha256": "0" * 64, "bytes": "1"}
    with (tmp_path / "manifest.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, FULL_COLUMNS)
        writer.writeheader()
        writer.writerow(row)
    with pytest.raises(SembenchError, match="is not a path inside the set"):
        load_manifest(tmp_path / "manifest.csv")


def test_pages_escape_what_they_show() -> None:
    template = document._environment().from_string("<a title='{{ text }}'>{{ text }}</a> {{ text | breakable }}")
    shown = template.render(text="<script>alert('_')</script>\"&")
    assert "<script" not in shown
    assert shown.count("'") == 2
    assert "javascript:" not in document.link("javascript:alert(1)").partition("./")[0]


def test_templates_run_no_text_but_their_own() -> None:
    folder = ROOT / "sembench" / "pages" / "templates"
    found = [
        (path.name, match)
        for path in folder.glob("*.html")
        for match in re.findall(r"([\w.]+)\s*\|\s*(?:own_text|safe)\b", path.read_text(encoding="utf-8"))
    ]
    assert {name for _, name in found} <= {"style", "script"}, found
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "autoescape" not in text
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text), f"{path}: asks another server"
