"""Models on disk: what is saved comes back, what is broken or hostile is refused in one line."""

import hashlib
import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as serialise

from restorers.semfm import storage
from restorers.semfm.model import MaskedAutoencoder, ModelConfig
from restorers.semfm.storage import load_model, save_model
from sembench.errors import InputError, WriteError

CONFIG = ModelConfig(
    image_size=32,
    patch=8,
    dim=16,
    depth=2,
    heads=2,
    decoder_dim=8,
    decoder_depth=1,
    decoder_heads=2,
    experts=3,
    every=2,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "stage3.json"
    save_model(path, MaskedAutoencoder(CONFIG, seed=2), {"steps": 7})
    return path


def shard(path: Path) -> Path:
    return path.parent / json.loads(path.read_text())["shards"][0]["file"]


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def swap_shard(path: Path, content: bytes) -> None:
    """Put other content in the place of a shard and let the JSON agree with it, as one who means harm would."""
    name = shard(path).name
    shard(path).write_bytes(content)
    listed = {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(path, shards=[listed])


def test_float32_comes_back_bit_for_bit(saved: Path) -> None:
    model, extra = load_model(saved)
    assert extra == {"steps": 7}
    assert model.config == CONFIG
    wanted = MaskedAutoencoder(CONFIG, seed=2).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    x = torch.randn(1, 1, 32, 32)
    model.decode(model.encode(x)).sum().backward()
    assert model.encoder.embed.weight.grad is not None


def test_half_precision_shards_stay_under_their_limit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "half.json"
    model = MaskedAutoencoder(CONFIG)
    save_model(path, model, {}, half=True, shard_bytes=9000)
    files = list(path.parent.glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 9000 for file in files)
    read = load_model(path)[0].state_dict()
    for name, value in model.state_dict().items():
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], value.half().float())


def test_saving_again_leaves_no_old_shard(saved: Path) -> None:
    before = shard(saved)
    save_model(saved, MaskedAutoencoder(CONFIG, seed=3), {})
    assert not before.exists()
    assert len(list(saved.parent.iterdir())) == 2


def test_a_crash_before_the_end_leaves_the_earlier_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(storage, "_replace", stop)
    with pytest.raises(WriteError, match="No space left"):
        save_model(saved, MaskedAutoencoder(CONFIG, seed=3), {"steps": 9})
    assert load_model(saved)[1] == {"steps": 7}


def test_a_model_that_is_not_finite_is_not_saved(saved: Path) -> None:
    model = MaskedAutoencoder(CONFIG)
    model.encoder.embed.weight.data[0, 0] = 1e6
    save_model(saved.with_name("single.json"), model, {})
    with pytest.raises(InputError, match=r"encoder\.embed\.weight is not finite"):
        save_model(saved, model, {}, half=True)
    assert load_model(saved)[1] == {"steps": 7}


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"__import__('pathlib').Path({str(self.path)!r}).write_text('ran')",)


@pytest.mark.parametrize("maker", ["pickle", "torch"])
def test_a_checkpoint_made_to_run_code_is_refused(saved: Path, tmp_path: Path, maker: str) -> None:
    victim, file = tmp_path / "ran", tmp_path / "bomb"
    if maker == "pickle":
        file.write_bytes(pickle.dumps(Bomb(victim)))
    else:
        torch.save(Bomb(victim), file)
    swap_shard(saved, file.read_bytes())
    with pytest.raises(InputError, match="is not a safetensors file") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)
    assert not victim.exists()
    torch.load(file, weights_only=False) if maker == "torch" else pickle.loads(file.read_bytes())
    assert victim.exists(), "the file would not have run code anyway"


@pytest.mark.parametrize("name", ["../stage3.safetensors", "/etc/passwd", "stage3.pt", ""])
def test_a_shard_elsewhere_or_of_another_kind_is_refused(saved: Path, name: str) -> None:
    rewrite(saved, shards=[{"file": name, "bytes": 1, "sha256": ""}])
    with pytest.raises(InputError, match="refused"):
        load_model(saved)


def test_truncated_changed_and_missing_shards_are_named(saved: Path) -> None:
    file = shard(saved)
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(InputError, match=f"{file.name}: has {len(content) - 10} bytes"):
        load_model(saved)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{file.name}: SHA-256"):
        load_model(saved)
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name}: cannot be read"):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other"}', "\udcff"])
def test_a_foreign_json_is_refused(saved: Path, text: str) -> None:
    saved.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"name the \.json file of a semfm model"):
        load_model(saved)


def test_a_missing_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {**asdict(CONFIG), "dim": 32}}, r"\(1, 1, 16\) in the shards, \(1, 1, 32\) by the config"),
        ({"config": {**asdict(CONFIG), "depth": 3}}, "encoder.blocks.2.* is missing"),
        ({"config": {**asdict(CONFIG), "depth": 1}}, "encoder.blocks.1.* is unknown"),
        ({"config": {**asdict(CONFIG), "dim": 10**9, "heads": 1}}, "do not fit"),
        ({"config": {**asdict(CONFIG), "width": 3}}, "width"),
        ({"config": {**asdict(CONFIG), "heads": 0}}, "heads must be"),
        ({"config": 3}, "not as save_model writes"),
        ({"shards": [{"file": "x"}]}, "not as save_model writes"),
        ({"shards": []}, "more blocks than the shards"),
        ({"extra": 5}, "not as save_model writes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_one_line(saved: Path, change: dict[str, object], said: str) -> None:
    rewrite(saved, **change)
    with pytest.raises(InputError, match=said) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_type_or_not_finite_are_refused(saved: Path) -> None:
    state = MaskedAutoencoder(CONFIG).state_dict()
    swap_shard(saved, serialise({name: value.to(torch.int32) for name, value in state.items()}))
    with pytest.raises(InputError, match="int32"):
        load_model(saved)
    state["encoder.norm.bias"][0] = float("nan")
    swap_shard(saved, serialise(state))
    with pytest.raises(InputError, match=r"encoder\.norm\.bias is not finite"):
        load_model(saved)


def test_saving_where_a_file_stands_in_the_way_says_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        save_model(tmp_path / "taken" / "model.json", MaskedAutoencoder(replace(CONFIG, experts=0)), {})
