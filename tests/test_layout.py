"""Imports point one way: a module of sembench imports only from modules above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "errors",
    "processes",
    "torchvision_compat",
    "registry",
    "micrograph",
    "optics",
    "phantom",
    "line_scenes",
    "fast_scan",
    "alignment",
    "metrology",
    "metrics",
    "datasets",
    "symmetry",
    "restorer",
    "protocol",
    "cases",
    "training_domain",
    "execution",
    "checks",
    "statistics",
    "measurement",
    "measurement_tables",
    "trend",
    "results",
    "comparison",
    "marks",
    "figures",
    "pages",
    "report",
    "ablation",
    "leaderboard",
    "commands",
]
SHARED_BY_RESTORERS = {"fitting", "batches", "unet", "blind_wiener", "semfm", "fixed_kernel", "noise_level"}


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, `from a import b` as `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules("sembench"), ids=lambda path: str(path.relative_to(ROOT)))
def test_sembench_imports_only_from_above(path: Path) -> None:
    own = path.relative_to(ROOT / "sembench").parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top not in ("restorers", "protocols"), f"{path} imports {name}"
        if top == "sembench" and rest and rest != "__version__":
            other = rest.split(".")[0]
            assert ORDER.index(other) <= ORDER.index(own), f"{path} imports {name}, which stands below it"


@pytest.mark.parametrize("path", modules("restorers"), ids=lambda path: str(path.relative_to(ROOT)))
def test_restorers_do_not_import_each_other(path: Path) -> None:
    own = path.relative_to(ROOT / "restorers").parts[0].removesuffix(".py")
    for name in imported(path):
        if name.startswith("restorers."):
            assert name.split(".")[1] in SHARED_BY_RESTORERS | {own}, f"{path} imports {name}"
