"""What numbers can depend on beside the request: versions of libraries, the machine's kind, commit, a method's code."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sembench import __version__
from sembench.protocol import digest_of
from sembench.registry import MethodTarget, brought_by, code_digest

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


def code_description(method: MethodTarget, known: Mapping[str, Any], *, stands: bool, adds: bool) -> dict[str, Any]:
    """What run.json says of the code that made a row's records, and of the distribution that brings it.

    known: what it said before; stands: whether records from before stay; adds: whether this command makes others.
    `code_sha256` is of the code that made the first of them, `code_sha256_also` of what made some later; what is not
    known is left out.
    """
    now = code_digest(method)
    if not stands:
        found = {"code_sha256": now, "distribution": brought_by(method)}
        return {name: value for name, value in found.items() if value}
    kept = {name: known[name] for name in ("code_sha256", "code_sha256_also", "distribution") if name in known}
    made = codes(known)
    if adds and now and made and now not in made:
        kept["code_sha256_also"] = [*made[1:], now]
    return kept


def made_by_other_code(method: MethodTarget, known: Mapping[str, Any]) -> bool:
    """Whether a row's records are of other code than its method has now, as far as run.json tells of the row."""
    now, made = code_digest(method), codes(known)
    return bool(now and made) and set(made) != {now}


def codes(known: Mapping[str, Any]) -> list[str]:
    """Digests of all code that made a row's records, as run.json tells of the row; empty where that is not known."""
    first, also = known.get("code_sha256"), known.get("code_sha256_also")
    told = [first, *(also if isinstance(also, list) else [])] if first else []
    return [digest for digest in told if isinstance(digest, str)]


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
        reading = ["git", "--no-optional-locks", "status", "--porcelain"]  # else a killed run may leave index.lock
        status = subprocess.run(reading, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": commit.stdout.strip() or None, "clean": not status.stdout.strip()}
