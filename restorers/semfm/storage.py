"""A model on disk: safetensors shards, and a JSON with its config and their digests; nothing is ever unpickled."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

from restorers.semfm.model import MaskedAutoencoder, ModelConfig
from sembench.errors import InputError, WriteError

_FORMAT = "semfm model 1"


def save_model(
    path: Path, model: MaskedAutoencoder, extra: dict[str, Any], *, half: bool = False, shard_bytes: int = 14_500_000
) -> None:
    """Write a model as `path` (NAME.json: config, `extra`, digests of the shards) and shards NAME-DIGEST.safetensors.

    half: float16 instead of float32. A shard holds whole tensors and stays below shard_bytes unless a single tensor
    exceeds it. The JSON is replaced last, so a crash leaves the earlier model; shards that no JSON names go afterwards.
    Raises InputError where a weight is not finite (in float16: beyond 65504), WriteError where writing fails.
    """
    dtype = torch.float16 if half else torch.float32
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise InputError(f"{path}: weight {bad[0]} is not finite as {dtype}: not saved; train with a lower rate")
    try:
        _write(path, _shards(state, shard_bytes), {"config": asdict(model.config), "extra": extra})
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}): free space, or name another folder") from error


def save_part(path: Path, part: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors that belong to a model, in float16, beside its `path`; what its `extra` is to say of them.

    The file is NAME-PART-DIGEST.safetensors; earlier ones of that part go. Raises WriteError.
    """
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    try:
        described = _write_shard(path.parent, f"{path.stem}-{part}", half)
        _remove_earlier(path.parent, f"{path.stem}-{part}", [described])
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror}): free space, or name another folder") from error
    return described


def load_part(path: Path, described: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors that `save_part` wrote beside the model of `path`, as float32; InputError as load_model's."""
    try:
        told = str(described["file"]), int(described["bytes"]), str(described["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: does not describe its part as save_part does ({error}): fetch it again") from error
    return {name: value.float() for name, value in _read_shard(path, *told).items()}


def _shards(state: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """The state in order, cut into shards below the limit."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in state.items():
        bytes_ = value.numel() * value.element_size() + 200
        if shards[-1] and size + bytes_ > limit:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += bytes_
    return shards


def _write(path: Path, shards: list[dict[str, Tensor]], description: dict[str, Any]) -> None:
    listed = [_write_shard(path.parent, path.stem, shard) for shard in shards]
    text = json.dumps({"format": _FORMAT, **description, "shards": listed}, indent=1, sort_keys=True)
    _replace(path, (text + "\n").encode())
    _remove_earlier(path.parent, path.stem, listed)


def _write_shard(folder: Path, stem: str, shard: dict[str, Tensor]) -> dict[str, Any]:
    """Write tensors as STEM-DIGEST.safetensors; their file, size and digest."""
    content = serialise(shard)
    digest = hashlib.sha256(content).hexdigest()
    name = f"{stem}-{digest[:12]}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / name, content)
    return {"file": name, "bytes": len(content), "sha256": digest}


def _remove_earlier(folder: Path, stem: str, listed: list[dict[str, Any]]) -> None:
    for old in folder.glob(f"{stem}-{'[0-9a-f]' * 12}.safetensors"):
        if old.name not in {shard["file"] for shard in listed}:
            old.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_model(path: Path) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """Read what save_model wrote: the model in float32 on the CPU, in training mode, and `extra`.

    Nothing in the files is run: the JSON is data, and a shard that is not safetensors is refused.
    Raises InputError, one line that names the file, where a file is missing, cut, foreign or does not fit the config.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): name the .json file of a semfm model") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: name the .json file of a semfm model, or fetch it again") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise InputError(f"{path}: does not say {_FORMAT!r}: name the .json file of a semfm model")
    try:
        config = ModelConfig(**description["config"])
        shards = [(str(s["file"]), int(s["bytes"]), str(s["sha256"])) for s in description["shards"]]
        extra = dict(description["extra"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: config or list of shards is not as save_model writes it ({error})") from error
    state: dict[str, Tensor] = {}
    for name, size, digest in shards:
        state |= _read_shard(path, name, size, digest)
    if config.depth + config.decoder_depth > len(state):
        raise InputError(f"{path}: the config has more blocks than the shards: they do not fit, fetch both again")
    try:
        with torch.device("meta"):
            model = MaskedAutoencoder(config)
    except RuntimeError as error:
        raise InputError(f"{path}: the config's sizes cannot be: config and shards do not fit, fetch both") from error
    _check_state(path, state, {name: value.shape for name, value in model.state_dict().items()})
    model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return model.requires_grad_(True), extra


def _check_state(path: Path, state: dict[str, Tensor], wanted: dict[str, torch.Size]) -> None:
    for name in sorted(wanted.keys() ^ state.keys()):
        found = "missing in the shards" if name in wanted else "unknown to the config"
        raise InputError(f"{path}: {name} is {found}: config and shards do not fit, fetch both again")
    for name, shape in wanted.items():
        value = state[name]
        if value.shape != shape:
            sizes = f"{tuple(value.shape)} in the shards, {tuple(shape)} by the config"
            raise InputError(f"{path}: {name} is {sizes}: they do not fit, fetch both again")
        if not value.is_floating_point():
            raise InputError(f"{path}: {name} is {value.dtype}, not a floating-point number: fetch it again")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} is not finite: fetch it again, or take another model")


def _read_shard(path: Path, name: str, size: int, digest: str) -> dict[str, Tensor]:
    if name != Path(name).name or not name.endswith(".safetensors"):
        raise InputError(f"{path}: {name!r} is not the plain name of a .safetensors file beside it: refused")
    file = path.parent / name
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}): fetch it again, beside {path.name}") from error
    if len(content) != size:
        raise InputError(f"{file}: has {len(content)} bytes, {path.name} says {size}: cut short? fetch it again")
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{file}: SHA-256 differs from what {path.name} says: fetch it again")
    try:
        return deserialise(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{file}: is not a safetensors file: refused; fetch it again") from error
