"""What numbers can depend on beside the request: versions of libraries, the machine's kind, the commit."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sembench import __version__
from sembench.protocol import digest_of

LIBRARIES = (
    *("numpy", "scipy", "scikit-image", "scikit-learn", "imagecodecs"),
    *("torch", "torchvision", "lpips", "pyiqa", "bm3d", "bm4d"),
)


def versions() -> dict[str, Any]:
    """Versions of sembench, Python and every library that numbers can depend on."""
    libraries = {}
    for library in LIBRARIES:
        try:
            libraries[library] = version(library)
        except PackageNotFoundError:
            continue
    return {"sembench": __version__, "python": platform.python_version(), "libraries": libraries}


def environment() -> dict[str, Any]:
    """The versions, and the machine's kind."""
    return {
        **versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def environment_digest(described: Mapping[str, Any]) -> str:
    """16 hex digits: where they are equal, so must numbers be. The system's own version (platform) does not count."""
    return digest_of({name: value for name, value in described.items() if name != "platform"})[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def git_state() -> dict[str, Any] | None:
    """Commit of the suite's own checkout and whether it is clean; None where it is installed from a wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": commit.stdout.strip() or None, "clean": not status.stdout.strip()}
