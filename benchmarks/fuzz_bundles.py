"""Coverage-guided fuzzing of what is read of strangers: run folders, bundles, protocols, manifests; by atheris.

Every content is understood, or refused by a SembenchError of one line; anything else ends the search and leaves the
content in crash-*. Such a content becomes a test of tests/test_fuzz.py.

    pip install atheris                                          # wheels for Linux and macOS; not a dependency
    python benchmarks/fuzz_bundles.py -max_total_time=300        # options of libFuzzer
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sembench"]):
    from sembench import protocol
    from sembench.datasets.manifest import FOLDER, load_manifest
    from sembench.errors import SembenchError
    from sembench.execution.merge import merge
    from sembench.execution.recorded import read_run
    from sembench.leaderboard.bundle import CASES, CHECKSUMS, DESCRIPTION, read_bundle

PROTOCOLS = Path(protocol.__file__).parents[1] / "protocols"
PART = b"\x00PART\x00"
"""What parts run.json from the records, or from cases.csv of a bundle."""
RUN = {
    "schema": 1, "digest": "d" * 64, "protocol_digest": "p" * 64, "data_digest": "e" * 64, "data": "phantom",
    "metrics": ["psnr"], "rows": [{"row": "input-1", "restorer": "input", "kind": "restorer", "settings": {}}],
    "limit": 1, "cases": ["P001"], "notices": [], "environment": {}, "started": "2026-01-01T00:00:00Z",
}  # fmt: skip
RECORD = {
    "row": "input-1", "case": "P001", "group": "P001", "status": "ok", "restorer": "input", "kind": "restorer",
    "metrics": {"psnr": 20.0}, "image": "restored/input-1/P001.png", "image_sha256": "0" * 64,
}  # fmt: skip


def seeds() -> list[bytes]:
    """A sound protocol, manifest and run folder; the first byte tells the kind."""
    description = json.dumps({**RUN, "protocol": protocol.load("s2s").model_dump(mode="json")}).encode()
    run = description + PART + json.dumps(RECORD).encode() + b"\n"
    cases = b"case,group,status,psnr\nP001,P001,ok,20.0\n"
    manifest = b"".join((FOLDER / "semcorpus.csv").read_bytes().splitlines(keepends=True)[:3])
    return [
        b"P" + (PROTOCOLS / "s2r.toml").read_bytes(),
        b"M" + manifest,
        b"R" + run,
        b"G" + run,
        b"B" + description + PART + cases,
    ]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def understand(content: bytes) -> None:
    """One content, read as what its first byte says."""
    kind, content = content[:1], content[1:]
    first, _, second = content.partition(PART)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "set.csv").write_bytes(content)
        (folder / "run.json").write_bytes(first)
        (folder / "records.jsonl").write_bytes(second)
        sums = f"{_sha256(second)}  {CASES}\n{_sha256(first)}  {DESCRIPTION}\n".encode()
        bundle = folder / _sha256(sums)[:16]
        bundle.mkdir()
        for file, part in {CHECKSUMS: sums, DESCRIPTION: first, CASES: second}.items():
            (bundle / file).write_bytes(part)
        try:
            if kind == b"P":
                protocol.parse(content.decode("utf-8", "replace"), "fuzzed.toml")
            elif kind == b"M":
                load_manifest(folder / "set.csv")
            elif kind == b"R":
                read_run(folder)
            elif kind == b"G":
                merge([folder], folder / "out")
            else:
                read_bundle(bundle)
        except SembenchError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error!r}") from error


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus, "-max_len=20000"], understand)
        atheris.Fuzz()
