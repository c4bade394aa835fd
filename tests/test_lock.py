"""What is released never changes under its version: protocols/lock.toml holds the digests."""

import tomllib
from pathlib import Path

from sembench import protocol, registry
from sembench.datasets.manifest import SETS, load_manifest

LOCK = Path(__file__).parents[1] / "protocols" / "lock.toml"


def current() -> dict[str, dict[str, str]]:
    """The lock as it follows from the code: names with versions, and their digests."""
    protocols = {}
    for name in registry.plugins(registry.PROTOCOLS):
        parsed = protocol.load(name)
        protocols[f"{name}-v{parsed.version}"] = parsed.digest
    metrics = {
        name: str(registry.plugin(registry.METRICS, name).load().version) for name in registry.plugins(registry.METRICS)
    }
    return {
        "protocols": protocols,
        "metrics": metrics,
        "manifests": {name: load_manifest(name).digest for name in SETS},
    }


def as_toml(lock: dict[str, dict[str, str]]) -> str:
    return "\n".join(
        f"[{part}]\n" + "".join(f'{name} = "{digest}"\n' for name, digest in sorted(entries.items()))
        for part, entries in lock.items()
    )


def test_released_digests_are_unchanged() -> None:
    locked = tomllib.loads(LOCK.read_text(encoding="utf-8"))
    wanted = current()
    assert locked == wanted, (
        "a released protocol, metric or manifest changed: give it a new version; a new one is added with\n\n"
        + as_toml(wanted)
    )
