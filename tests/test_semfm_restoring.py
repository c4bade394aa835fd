"""Restoring, the training that follows the stages: what it learns, keeps, resumes, and hands over to adaptation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL_MODEL, texture

from restorers import fitting
from restorers.semfm import restorer as semfm
from restorers.semfm.adaptation import TokenPathNetwork
from restorers.semfm.card import ship
from restorers.semfm.model import MaskedAutoencoder, ModelConfig
from restorers.semfm.pretraining import pretrain
from restorers.semfm.restoring import EveryDegradation, RestoringNetwork
from restorers.semfm.storage import load_model, load_part, save_part
from sembench import restorer
from sembench.errors import InputError, WriteError
from sembench.restorer import Budget, TrainingSet

SIZES = ModelConfig(image_size=32, dim=16, depth=1, heads=2, decoder_dim=16, decoder_depth=1)

RECIPE = """
[model]
patch = 16
{small_model}
[data]
validation_samples = 8
[report]
tensorboard = false
[stage1]
steps = 4
batch = 4
learning_rate = 3e-3
kinship = 0.1
[restoring]
encoder = "{encoder}"
encoder_rate = {encoder_rate}
kept = {kept}
steps = {steps}
batch = 1
width = 8
coarse_blocks = 1
"""


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory):
    """One cache, one thread, and few validation patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(restorer, "VALIDATION_PATCHES", 1)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        pixels = np.rint(texture(256, 256, seed=number)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def recipe(folder: Path, **given: object) -> Path:
    values = {"encoder": "pretrained", "encoder_rate": 0.3, "kept": 1.0, "steps": 6, **given}
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(small_model=SMALL_MODEL, **values), encoding="utf-8")
    return path


def train(out: Path, images: Path, **given: object) -> Path:
    out.mkdir(exist_ok=True)
    return pretrain(config=recipe(out, **given), data=str(images), out=out, threads=1, device="cpu")


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    train(out, images)
    return out


def weights(path: Path) -> dict[str, torch.Tensor]:
    model, told = load_model(path)
    return {**model.state_dict(), **{f"path.{k}": v for k, v in load_part(path, told["path"]).items()}}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_encoder_decoder_and_path_learn(whole: Path) -> None:
    before = load_model(whole / "stage1" / "best.json")[0].half().float().state_dict()
    after = weights(whole / "restoring" / "best.json")
    assert not torch.equal(before["encoder.embed.weight"], after["encoder.embed.weight"])
    assert not torch.equal(before["decoder.embed.weight"], after["decoder.embed.weight"])
    assert torch.equal(before["decoder.head.weight"], after["decoder.head.weight"])
    assert after["path.path.exit.weight"].abs().max() > 0
    report = json.loads((whole / "restoring" / "report.json").read_text())
    assert report["steps"] == 6
    assert (whole / "restoring" / "curve.csv").is_file()


def test_a_second_call_trains_nothing_and_other_settings_are_refused(whole: Path, images: Path) -> None:
    content = (whole / "restoring" / "best.json").read_bytes()
    train(whole, images)
    assert (whole / "restoring" / "best.json").read_bytes() == content
    with pytest.raises(InputError, match=r"was made with steps = 6, not 7; give another --out, or --fresh"):
        train(whole, images, steps=7)


def test_a_folder_that_cannot_be_used_is_told_in_one_line(whole: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "stage1").symlink_to(whole / "stage1")
    (tmp_path / "restoring").mkdir()
    (tmp_path / "restoring" / "settings.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"settings.json: cannot be read .*: --fresh starts over"):
        train(tmp_path, images)
    (tmp_path / "restoring" / "settings.json").unlink()
    (tmp_path / "restoring").rmdir()
    (tmp_path / "restoring").write_text("a file", encoding="utf-8")
    with pytest.raises(WriteError, match="choose another --out"):
        train(tmp_path, images)


def test_stopped_at_any_step_it_ends_as_if_it_had_not_been(whole: Path, images: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path)
    given = {"config": config, "data": str(images), "out": tmp_path, "threads": 1, "device": "cpu"}
    slices = 0
    while not (tmp_path / "restoring" / "best.json").is_file():
        pretrain(**given, minutes=0)
        slices += 1
    assert slices > 6
    assert same(weights(tmp_path / "restoring" / "best.json"), weights(whole / "restoring" / "best.json"))


def test_a_frozen_encoder_stays(whole: Path, images: Path, tmp_path: Path) -> None:
    train(tmp_path, images, encoder_rate=0.0, kept=0.0)
    before = load_model(tmp_path / "stage1" / "best.json")[0].half().float().encoder.state_dict()
    assert same(before, load_model(tmp_path / "restoring" / "best.json")[0].encoder.state_dict())


def test_the_mean_token_of_the_degraded_patch_is_held_to_that_of_the_clean_one_before() -> None:
    with fitting.seeded(0):
        before, model = MaskedAutoencoder(SIZES), MaskedAutoencoder(SIZES)
        model.load_state_dict(before.state_dict())
        joined = TokenPathNetwork(model, 8, (1, 1, 1), physics=True, rectified=True, frozen=False)
    network = RestoringNetwork(joined, before)
    clean, other = (torch.from_numpy(texture(32, 32, seed=n))[None, None] for n in (1, 2))
    batch = {"estimate": clean, "clean": clean, "level": torch.tensor(120.0), "contrast": torch.tensor(40.0)}
    assert network(batch | {"degraded": clean})[1].item() == pytest.approx(0, abs=1e-6)
    _, turned = network(batch | {"degraded": other})
    means = [before.encode(before.normalise(x))[:, 1:].mean(1) for x in (clean, other)]
    assert turned.item() == pytest.approx(1 - float(torch.cosine_similarity(*means)), abs=1e-6)
    turned.backward()
    assert model.encoder.embed.weight.grad is not None
    assert before.encoder.embed.weight.grad is None


def test_without_encoder_the_path_alone_is_described(images: Path, tmp_path: Path) -> None:
    train(tmp_path, images, encoder="none")
    path = tmp_path / "restoring" / "best.json"
    state = load_part(path, json.loads(path.read_text())["path"])
    assert "path.exit.weight" in state
    assert not any(name.startswith("path.join") for name in state)


def test_degradations_take_turns_and_validation_has_all() -> None:
    image = texture(256, 256)
    every = EveryDegradation((image,), (image,), budget=Budget("x", 4, 2))
    for step, name in enumerate(["paper", "broad", "paper", "broad"]):
        alone = TrainingSet((image,), (image,), name, every.budget)
        ours, theirs = every.batch(step), alone.batch(step // 2)
        assert all(np.array_equal(one.degraded, other.degraded) for one, other in zip(ours, theirs, strict=True))
    assert len(every.validation_patches()) == 2 * restorer.VALIDATION_PATCHES
    assert every.digest != TrainingSet((image,), (image,), "paper", every.budget).digest


def test_adaptation_begins_where_restoring_ended(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semfm, "WEIGHTS", whole / "weights")
    image = texture(96, 96)
    begun = semfm.Semfm({"encoder": "restoring", "width": 8, "coarse_blocks": 1})
    network = begun._new()
    kept = weights(whole / "restoring" / "best.json")
    assert all(torch.equal(value, kept[f"path.{name}"]) for name, value in network.path.state_dict().items())
    assert torch.equal(network.tokens.encoder.embed.weight, kept["encoder.embed.weight"])
    assert not any(p.requires_grad for p in network.tokens.parameters())
    assert begun.anchored
    assert not semfm.Semfm({"encoder": "restoring", "width": 8, "coarse_blocks": 1, "physics": False}).anchored
    other = semfm.Semfm({"encoder": "restoring", "width": 16, "coarse_blocks": 1})._new()
    assert not other.path.path.exit.weight.any()
    assert begun.embed(image).shape == (16,)


def test_the_card_tells_of_all_that_was_trained(whole: Path, tmp_path: Path) -> None:
    card = (whole / "weights" / "restoring.md").read_text(encoding="utf-8")
    for text in ("## Restoring", "6 steps of 1 patches", "0.3 of that rate", "--recipe", "## Limits", "restoring.png"):
        assert text in card
    told = json.loads((whole / "weights" / "restoring.json").read_text())
    for shard in [*told["shards"], told["extra"]["path"]]:
        assert shard["sha256"][:16] in card
        assert (whole / "weights" / shard["file"]).stat().st_size == shard["bytes"]
    assert same(weights(whole / "weights" / "restoring.json"), weights(whole / "restoring" / "best.json"))
    (tmp_path / "restoring").mkdir()
    (tmp_path / "stage1").symlink_to(whole / "stage1")
    with pytest.raises(InputError, match="restoring is not finished"):
        ship(tmp_path, tmp_path / "weights")


def test_a_part_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    described = save_part(path, "path", {"a": torch.ones(3)})
    assert torch.equal(load_part(path, described)["a"], torch.ones(3))
    again = save_part(path, "path", {"a": torch.zeros(3)})
    assert not (tmp_path / described["file"]).exists()
    (tmp_path / again["file"]).write_bytes(b"0" * again["bytes"])
    with pytest.raises(InputError, match="SHA-256 differs"):
        load_part(path, again)
    with pytest.raises(InputError, match="does not describe its part"):
        load_part(path, {"file": "x"})


def test_an_encoder_must_come_from_somewhere(images: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path)
    text = path.read_text()
    path.write_text(text[: text.index("[stage1]")] + text[text.index("[restoring]") :])
    with pytest.raises(InputError, match=r"give a stage, or another restoring\.encoder"):
        pretrain(config=path, data=str(images), out=tmp_path, threads=1, device="cpu")
    path.write_text(text.replace("validation_samples = 8", "validation_samples = 7"))
    with pytest.raises(InputError, match=r"even data\.validation_samples"):
        pretrain(config=path, data=str(images), out=tmp_path, threads=1, device="cpu")
