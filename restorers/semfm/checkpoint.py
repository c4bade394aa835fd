"""Checkpoints of the trainer: tensors as safetensors, plain values as JSON, replaced as one, never pickled."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sembench.errors import InputError, WriteError

FORMAT = "semfm-checkpoint-1"
NAME = "checkpoint.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run needs to go on: the step reached, named parts of tensors (model, optimizer, rng), plain facts."""

    step: int
    parts: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into a folder, in place of the one there.

    Each part goes to a file of its own under a name with the step; then checkpoint.json, which names the files with
    their SHA-256, is replaced in one move, and only then the earlier files go: a kill at any moment leaves one whole
    checkpoint. Raises WriteError.
    """
    listed: dict[str, dict[str, str]] = {}
    for part, tensors in checkpoint.parts.items():
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        file = f"step-{checkpoint.step:08d}.{part}.safetensors"
        _write_durably(folder / file, content)
        listed[part] = {"file": file, "sha256": hashlib.sha256(content).hexdigest()}
    facts = {"format": FORMAT, "step": checkpoint.step, "parts": listed, "facts": checkpoint.facts}
    _write_durably(folder / NAME, (json.dumps(facts, indent=1, allow_nan=False) + "\n").encode())
    kept = {described["file"] for described in listed.values()}
    for stale in folder.glob("step-*.safetensors"):
        if stale.name not in kept:
            with contextlib.suppress(OSError):
                stale.unlink()


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint of a folder; None where it holds none.

    Raises InputError, one line: a file that is missing, truncated, changed, of another make or pickled.
    """
    path = folder / NAME
    if not path.exists():
        return None
    mend = "start over with --fresh, or put the file back"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise InputError(f"{path}: its format is {described['format']!r}, not {FORMAT}; {mend}")
        step, facts = int(described["step"]), dict(described["facts"])
        files = {str(part): (str(entry["file"]), str(entry["sha256"])) for part, entry in described["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no checkpoint of this trainer ({type(error).__name__}); {mend}") from error
    parts = {part: _read_tensors(folder / Path(file).name, sha256, mend) for part, (file, sha256) in files.items()}
    return Checkpoint(step, parts, facts)


def require_same(folder: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with what was made by other settings; the InputError names the first that differs."""
    for key in [*wanted, *known]:
        if known.get(key) != wanted.get(key):
            raise InputError(
                f"{folder}: its checkpoint was made with {key} = {known.get(key)!r}, not "
                f"{wanted.get(key)!r}; give another --out, or --fresh to start over"
            )


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """State of an optimizer as {"<key>/<parameter name>": tensor}; `names` in the order of its parameters."""
    state = optimizer.state_dict()["state"]
    return {f"{key}/{names[index]}": value for index, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Put a state of `flatten_optimizer` back; InputError where it is of other parameters."""
    numbers = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for flat, tensor in tensors.items():
        key, _, name = flat.partition("/")
        if name not in numbers:
            raise InputError(f"the checkpoint's optimizer knows {name!r}, the model does not; start over with --fresh")
        state.setdefault(numbers[name], {})[key] = tensor
    if state and len(state) != len(names):
        raise InputError(
            f"the checkpoint's optimizer knows {len(state)} of the model's {len(names)} parameters; "
            "start over with --fresh"
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _read_tensors(path: Path, sha256: str, mend: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the checkpoint's file cannot be read ({error.strerror}); {mend}") from error
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: no whole safetensors file (pickled files are never read); {mend}") from error
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise InputError(f"{path}: SHA-256 {got[:12]} instead of {sha256[:12]}; {mend}")
    return tensors


def _write_durably(path: Path, content: bytes) -> None:
    """Write and replace a file, its content on disk before it takes its name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise WriteError(f"{path}: cannot be written ({error.strerror}); make room or choose another --out") from error
