"""Pretraining: samples by index, checkpoints that survive, and runs that do not depend on how they were cut up."""

import copy
import csv
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL_MODEL

import restorers.semfm.restorer
from restorers.semfm.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    read_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from restorers.semfm.model import MaskedAutoencoder
from restorers.semfm.packing import TRAIN, VALIDATION, Ahead, Augmentation, Samples, pack, pack_phantoms, statistics
from restorers.semfm.pretraining import NonFiniteError, Task, learning_rate, pretrain, stage_loss
from restorers.semfm.ranks import Ranks
from restorers.semfm.recipe import FOLDER, StagePart, load_recipe
from restorers.semfm.storage import load_model
from sembench.errors import InputError

PLAIN = Augmentation(32, contrast_jitter=0.0, brightness_jitter=0.0)

SMALL = """
[model]
patch = 8
{small_model}
[data]
native_share = 0.5
validation_samples = 8
[experts]
experts = 3
[report]
log_every = 1
checkpoint_every = {checkpoint_every}
picture_every = 1000
tensorboard = false
[stage{stage}]
steps = {steps}
batch = {batch}
accumulate = {accumulate}
learning_rate = {rate}
warmup_steps = 3
final_share = 0.1
weight_decay = 0.05
precision = "float32"
validate_every = 5
"""


class Told:
    """A listener that remembers, and does something at one step."""

    def __init__(self, at: int = -1, do=lambda: None) -> None:
        self.at, self.do = at, do
        self.steps: list[int] = []
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def step(self, step: int, steps: int, losses: dict[str, float], speed: dict[str, float]) -> None:
        self.steps.append(step)
        if step == self.at:
            self.do()


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def config(folder: Path, stage: int = 1, **given) -> Path:
    values = {"steps": 20, "batch": 4, "accumulate": 1, "rate": 3e-3, "checkpoint_every": 10, **given}
    path = folder / f"stage{stage}-{hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:6]}.toml"
    path.write_text(SMALL.format(small_model=SMALL_MODEL, stage=stage, **values), encoding="utf-8")
    return path


def texture(seed: int, height: int = 90, width: int = 110) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sin(rng.uniform(0.05, 0.5) * x + rng.uniform(0.05, 0.5) * y + rng.uniform(0, 6)) for _ in range(3))
    return np.clip(128 + 30 * waves + rng.normal(0, 4, (height, width)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """One cache for all tests of this file, and one thread, so that sums are always taken in one order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(10):
        Image.fromarray(texture(number)).save(folder / f"{number}.png")
    return folder


def run(config: Path, images: Path, out: Path, stage: int = 1, **more) -> Path:
    return pretrain(stage=stage, config=config, data=str(images), out=out, threads=1, device="cpu", **more)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """Twenty steps of each stage, without a stop."""
    out = tmp_path_factory.mktemp("whole")
    for stage in (1, 2, 3):
        run(config(out, stage), images, out, stage)
    return out


def log(out: Path, stage: int = 1) -> list[dict[str, str]]:
    with (out / f"stage{stage}" / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def state_digests(out: Path, stage: int = 1) -> dict[str, str]:
    described = json.loads((out / f"stage{stage}" / "checkpoint.json").read_text(encoding="utf-8"))
    return {"step": described["step"], **{part: entry["sha256"] for part, entry in described["parts"].items()}}


def adopt(whole: Path, out: Path, *stages: int) -> None:
    """Give a new run the finished stages before it."""
    for stage in stages:
        (out / f"stage{stage}").symlink_to(whole / f"stage{stage}")


class TestPacking:
    def test_holds_every_pixel_of_images_that_fit(self, images):
        packed = pack(str(images))
        assert len(packed.images) == 10
        for image in packed.images:
            original = np.asarray(Image.open(images / image.file))
            assert np.array_equal(image.pixels, original[: len(image.pixels)])
            assert 0.9 < len(image.pixels) / len(original) < 0.95  # the data bar's usual share, 6.67 %, is cut
        assert {image.split for image in packed.images} == {TRAIN, VALIDATION}

    def test_second_call_reads_the_file_and_a_damaged_file_is_made_again(self, images):
        packed = pack(str(images))
        content = packed.path.read_bytes()
        stamp = packed.path.stat().st_mtime_ns
        assert pack(str(images)).digest == packed.digest
        assert packed.path.stat().st_mtime_ns == stamp
        packed.path.write_bytes(content[: len(content) // 2])
        again = pack(str(images))
        assert packed.path.read_bytes() == content
        assert np.array_equal(again.images[3].pixels, packed.images[3].pixels)

    def test_shrinks_to_the_limit(self, tmp_path):
        for number in range(4):
            Image.fromarray(texture(number, 480, 640)).save(tmp_path / f"{number}.png")
        packed = pack(str(tmp_path), megabytes=0.5)
        total = sum(image.pixels.size for image in packed.images)
        grown = sum(
            round(i.pixels.size * ((packed.long_side_px + 32) / packed.long_side_px) ** 2) for i in packed.images
        )
        assert total <= 500_000 < grown
        assert {max(image.pixels.shape) for image in packed.images} == {packed.long_side_px}
        shrunk = next(image for image in packed.images if image.file == "0.png").pixels
        original = texture(0, 480, 640)[: round(480 * (1 - 0.0667))]
        assert abs(shrunk.mean() - original.mean()) < 1

    def test_statistics_are_those_of_all_pixels(self, images):
        pixels = pack(str(images)).pixels(TRAIN)
        everything = np.concatenate([image.ravel() for image in pixels]) / 255
        assert statistics(pixels) == pytest.approx((everything.mean(), everything.std()))

    def test_phantoms_are_for_training_alone(self):
        packed = pack_phantoms(2)
        assert [image.pixels.shape for image in packed.images] == [(512, 512)] * 2
        assert packed.pixels(VALIDATION) == []

    def test_bad_data_is_refused_in_one_line(self, tmp_path):
        def refused(message: str) -> None:
            with pytest.raises(InputError, match=message) as caught:
                pack(str(tmp_path))
            assert "\n" not in str(caught.value)

        refused("0 readable images")
        Image.fromarray(texture(1)).save(tmp_path / "1.png")
        refused("1 readable images")
        (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
        refused("twice")
        Image.fromarray(texture(2, 70, 40)).save(tmp_path / "2.png")
        refused("too small to learn from")
        (tmp_path / "2.png").write_bytes(b"no image")
        refused(r"2\.png")
        with pytest.raises(InputError, match="did you mean 'semcorpus'"):
            pack("semcorpsu")
        with pytest.raises(InputError, match="no such folder"):
            pack(str(tmp_path / "missing"))
        with pytest.raises(InputError, match="no images in the splits"):
            pack("lines")

    @pytest.mark.data
    def test_real_corpus_fits_under_60_megabytes(self, data_folder):
        packed = pack("semcorpus")
        assert packed.path.stat().st_size < 60e6
        assert len(packed.pixels(TRAIN)) == 85
        assert len(packed.pixels(VALIDATION)) == 13
        assert packed.long_side_px >= 1024
        groups = {split: {i.group for i in packed.images if i.split == split} for split in (TRAIN, VALIDATION)}
        assert not groups[TRAIN] & groups[VALIDATION]


class TestSamples:
    def make(self, pixels, seed=0, augmentation=PLAIN, **more) -> Samples:
        return Samples(pixels, augmentation=augmentation, tokens=16, mask_ratio=0.75, seed=seed, **more)

    def test_depends_on_seed_and_index_alone(self):
        pixels = [texture(number) for number in range(3)]
        augmentation = Augmentation(32, native_share=0.5)
        one, two = self.make(pixels, 1, augmentation), self.make(pixels, 1, augmentation)
        backwards = {index: two(index) for index in reversed(range(20))}
        for index in range(20):
            for ours, theirs in zip(one(index), backwards[index], strict=True):
                assert np.array_equal(ours, theirs)
        patches, masks = one.batch(4, 3)
        assert np.array_equal(patches[2], one(6)[0])
        assert np.array_equal(masks[2], one(6)[1])
        assert not np.array_equal(self.make(pixels, 2, augmentation)(0)[0], one(0)[0])

    def test_masks_three_quarters_of_the_tokens_evenly(self):
        samples = self.make([texture(0)])
        masks = np.stack([samples(index)[1] for index in range(400)])
        assert (masks.sum(1) == 12).all()
        assert np.abs(masks.mean(0) - 0.75).max() < 5 * math.sqrt(0.75 * 0.25 / 400)

    @pytest.mark.parametrize("shape", [(64, 64), (70, 300), (300, 70)])
    def test_nothing_from_outside_the_image_enters(self, shape):
        samples = self.make([np.full(shape, 200, np.uint8)], augmentation=Augmentation(32, 0.3, 0.01, 0.0, 0.0, 0.0))
        assert all((samples(index)[0] == 200).all() for index in range(150))

    def test_a_ramp_stays_a_plane_whose_slope_is_the_crops_scale(self):
        """An affine map of I = x is a plane, up to rounding of gray levels, twice, no steeper than the crop."""
        size, n = 250, 32
        ramp = np.tile(np.arange(size, dtype=np.uint8), (size, 1))
        samples = self.make([ramp])
        y, x = np.mgrid[:n, :n]
        design = np.stack([x.ravel(), y.ravel(), np.ones(n * n)], 1)
        slopes = []
        for index in range(60):
            values = samples(index)[0].ravel()
            plane, *_ = np.linalg.lstsq(design, values, rcond=None)
            assert np.abs(design @ plane - values).max() < 1.6
            slopes.append(np.hypot(*plane[:2]))
        assert max(slopes) <= size / n * 1.05
        assert min(slopes) >= math.sqrt(0.2 / (4 / 3)) * size / n * 0.95
        assert max(slopes) - min(slopes) > 2

    def test_native_samples_are_windows_of_the_image(self):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 44)).astype(np.uint8)
        samples = self.make([pixels], augmentation=Augmentation(32, 1.0, 0.2, 0.0, 0.0, 0.0))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32)).reshape(-1, 32, 32)
        poses = Counter()
        for index in range(24):
            patch = samples(index)[0]
            turned = [np.rot90(np.fliplr(patch) if flip else patch, k) for flip in (0, 1) for k in range(4)]
            found = [pose for pose, view in enumerate(turned) if (windows == view).all((1, 2)).any()]
            assert len(found) == 1
            poses[found[0]] += 1
        assert len(poses) > 4

    def test_an_epoch_shows_each_image_by_its_area(self):
        levels = (40, 120, 200)
        shapes = ((64, 64), (512, 1024), (800, 1000))
        samples = self.make([np.full(s, v, np.uint8) for s, v in zip(shapes, levels, strict=True)])
        assert samples.per_epoch == 1 + 2 + 3
        for epoch in range(3):
            shown = Counter(float(samples(6 * epoch + index)[0].mean()) for index in range(6))
            assert shown == {40.0: 1, 120.0: 2, 200.0: 3}

    def test_phantoms_come_by_their_share(self):
        augmentation = Augmentation(32, 0.0, 0.2, 0.25, 0.0, 0.0)
        phantoms = [np.full((64, 64), 250, np.uint8)]
        samples = self.make([np.full((64, 64), 10, np.uint8)], augmentation=augmentation, phantoms=phantoms)
        share = np.mean([samples(index)[0].mean() > 100 for index in range(600)])
        assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 600)

    def test_pairs_are_crops_of_one_image_and_an_epoch_shows_each_once(self):
        levels = (40, 80, 120, 160, 200)
        augmentation = Augmentation(32, 0.0, 0.2, 0.25, 0.0, 0.0)
        phantoms = [np.full((64, 64), 250, np.uint8)]
        pixels = [np.full((512, 1024), v, np.uint8) for v in levels]
        samples = self.make(pixels, augmentation=augmentation, phantoms=phantoms, pairs=True)
        assert samples.per_epoch == 10
        shown = [float(samples(index)[0].mean()) for index in range(400)]
        assert shown[::2] == shown[1::2]
        assert abs(np.mean(np.equal(shown[::2], 250)) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 200)
        plain = self.make(pixels, augmentation=replace(augmentation, phantom_share=0.0), pairs=True)
        for epoch in range(3):
            assert sorted(float(plain(10 * epoch + 2 * pair)[0].mean()) for pair in range(5)) == sorted(levels)
        textured = self.make([texture(1)], pairs=True)
        assert not np.array_equal(textured(0)[0], textured(1)[0])

    def test_made_ahead_in_order_and_errors_arrive(self):
        def make(step: int) -> int:
            time.sleep(0.01 * (step % 3))
            if step == 8:
                raise Crash
            return step

        ahead = Ahead(make, range(2, 12), workers=3, depth=4)
        got = []
        with pytest.raises(Crash):
            deque(map(got.append, ahead))
        ahead.close()
        assert got == [2, 3, 4, 5, 6, 7]
        assert ahead.waited > 0


class TestCheckpoint:
    def checkpoint(self, step: int = 3) -> Checkpoint:
        return Checkpoint(
            step, {"model": {"w": torch.arange(5.0) * step}, "rng": {"cpu.0": torch.get_rng_state()}}, {"a": 1}
        )

    def test_round_trip_and_only_the_last_stays(self, tmp_path):
        assert read_checkpoint(tmp_path) is None
        for step in (3, 4):
            write_checkpoint(tmp_path, self.checkpoint(step))
        read = read_checkpoint(tmp_path)
        assert (read.step, read.facts) == (4, {"a": 1})
        assert torch.equal(read.parts["model"]["w"], torch.arange(5.0) * 4)
        assert len(list(tmp_path.iterdir())) == 3

    def test_killed_before_the_description_is_replaced_keeps_the_old(self, tmp_path):
        write_checkpoint(tmp_path, self.checkpoint(3))
        (tmp_path / "step-00000004.model.safetensors").write_bytes(b"half of")
        (tmp_path / ".step-00000004.rng.safetensors.1.partial").write_bytes(b"half of")
        assert read_checkpoint(tmp_path).step == 3

    @pytest.mark.parametrize("damage", ["truncated", "pickle", "missing", "swapped", "foreign", "no json"])
    def test_damage_is_refused_in_one_line_and_nothing_runs(self, tmp_path, damage):
        class Trap:
            def __reduce__(self):
                return (Path(tmp_path / "ran").write_text, ("code of a checkpoint ran",))

        write_checkpoint(tmp_path, self.checkpoint())
        weights, description = tmp_path / "step-00000003.model.safetensors", tmp_path / "checkpoint.json"
        if damage == "truncated":
            weights.write_bytes(weights.read_bytes()[:-3])
        elif damage == "pickle":
            weights.write_bytes(pickle.dumps({"w": Trap()}))
        elif damage == "missing":
            weights.unlink()
        elif damage == "swapped":
            weights.write_bytes((tmp_path / "step-00000003.rng.safetensors").read_bytes())
        elif damage == "foreign":
            description.write_text(json.dumps({"format": "another", "step": 1}), encoding="utf-8")
        else:
            description.write_bytes(pickle.dumps(Trap()))
        with pytest.raises(InputError) as caught:
            read_checkpoint(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()

    def test_optimizer_state_is_that_of_torch(self):
        def made():
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
            return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

        def step(model, optimizer):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()

        model, optimizer = made()
        names = [name for name, _ in model.named_parameters()]
        for _ in range(3):
            step(model, optimizer)
        other, restored = made()
        other.load_state_dict(model.state_dict())
        restore_optimizer(restored, names, copy.deepcopy(flatten_optimizer(optimizer, names)))
        step(model, optimizer)
        step(other, restored)
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        with pytest.raises(InputError, match=r"knows '1\.bias'"):
            restore_optimizer(restored, [*names[:-1], "2.bias"], flatten_optimizer(optimizer, names))


class TestRecipe:
    @pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.toml")])
    def test_shipped_recipes_have_all_stages(self, name):
        recipe = load_recipe(Path(name))
        for stage in (1, 2, 3):
            assert recipe.stage(stage).learning_rate > 0
        assert recipe.architecture(0.4, 0.2).patch == 16

    def test_paper_recipe_is_the_papers(self):
        recipe = load_recipe(Path("paper"))
        large = recipe.architecture(0.4, 0.2)
        assert (large.depth, large.dim, large.heads, large.decoder_depth, large.decoder_dim) == (24, 1024, 16, 8, 512)
        one, two, three = recipe.stage(1), recipe.stage(2), recipe.stage(3)
        assert (one.epochs, three.epochs) == (400, 400)
        assert 2 * one.batch * one.accumulate == 64
        assert (one.learning_rate, one.weight_decay, three.learning_rate, three.weight_decay) == (1e-4, 0, 1e-5, 0.05)
        assert (two.distillation, two.balance, three.fft, three.psd, one.mask_ratio) == (1, 0.01, 0.1, 0.1, 0.75)
        assert (recipe.experts.experts, recipe.experts.top_k, recipe.experts.experts_in) == (8, 1, "encoder")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("learning_rate", "learning_rat"), "unknown key 'stage1.learning_rat': did you mean 'learning_rate'"),
            (("steps = 20", "steps = 20\nepochs = 1"), "either steps or epochs"),
            (("batch = 4", "batch = 0"), "key 'stage1.batch'"),
            (("depth = 2", "deepth = 2"), "unknown key 'model.deepth': did you mean 'depth'"),
            (("heads = 2", "heads = 3"), "heads"),
            (("[data]", "[daata]"), "unknown key 'daata': did you mean 'data'"),
            (("[data]", "[data"), "cannot be read as TOML"),
        ],
    )
    def test_wrong_settings_are_refused_in_one_line(self, tmp_path, images, change, message):
        path = config(tmp_path)
        path.write_text(path.read_text(encoding="utf-8").replace(*change, 1), encoding="utf-8")
        with pytest.raises(InputError, match=message) as caught:
            run(path, images, tmp_path / "out")
        assert "\n" not in str(caught.value)

    def test_missing_file_and_stage(self, tmp_path, images):
        with pytest.raises(InputError, match="one of paper, restoring, restoring-gpu, shipped"):
            run(tmp_path / "none.toml", images, tmp_path / "out")
        with pytest.raises(InputError, match=r"no section \[stage2\]"):
            run(config(tmp_path), images, tmp_path / "out", 2)
        with pytest.raises(InputError, match="train stage 1 first"):
            run(config(tmp_path, 2), images, tmp_path / "out", 2)

    def test_learning_rate_rises_linearly_and_falls_by_a_half_cosine(self):
        settings = StagePart(steps=110, batch=1, learning_rate=2.0, warmup_steps=10, final_share=0.1)
        rates = [learning_rate(settings, step, 110) for step in range(111)]
        assert rates[:10] == pytest.approx(np.arange(1, 11) * 0.2)
        assert rates[60] == pytest.approx(2 * (0.1 + 0.9 / 2))
        assert rates[110] == pytest.approx(0.2)
        constant = StagePart(steps=9, batch=1, learning_rate=2.0)
        assert {learning_rate(constant, step, 9) for step in range(9)} == {2.0}


class TestRun:
    def test_stages_train_what_they_should(self, whole):
        one, _ = load_model(whole / "stage1" / "best.json")
        two, _ = load_model(whole / "stage2" / "best.json")
        three, _ = load_model(whole / "stage3" / "best.json")
        taught, gated, last = one.state_dict(), two.state_dict(), three.state_dict()
        shared = taught.keys() & gated.keys()
        assert all(torch.equal(taught[name], gated[name]) for name in shared)
        changed = {name for name in gated if not torch.equal(gated[name], last[name])}
        frozen = {name for name in gated if name not in changed}
        assert not frozen, f"stage 3 left {frozen} as they were"
        stage2 = read_checkpoint(whole / "stage2")
        assert {name.partition("/")[2].rsplit(".", 2)[-2] for name in stage2.parts["optimizer"]} == {"gate"}

    def test_the_best_model_is_that_of_the_lowest_validation_loss(self, whole):
        for stage in (1, 2, 3):
            rows = [row for row in log(whole, stage) if row["validation"]]
            assert [int(row["step"]) for row in rows] == [5, 10, 15, 20]
            _, extra = load_model(whole / f"stage{stage}" / "best.json")
            assert extra["validation"] == min(float(row["validation"]) for row in rows)

    def test_log_and_pictures_are_there(self, whole):
        assert [int(row["step"]) for row in log(whole)] == list(range(1, 21))
        last = log(whole, 3)[-1]
        weighted = sum(
            weight * float(last[name]) for name, weight in
            {"mae": 1, "kd": 1, "balance": 0.01, "fft": 0.1, "psd": 0.1}.items()
        )  # fmt: skip
        assert float(last["loss"]) == pytest.approx(weighted, rel=1e-5)
        sheet = np.asarray(Image.open(whole / "stage1" / "pictures" / "step-00000020.png"))
        assert sheet.shape == (3 * 32 + 2 * 4, 6 * 32 + 5 * 4)
        assert (whole / "stage3" / "pictures" / "experts.png").stat().st_size > 1000
        with (whole / "stage3" / "experts.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        by_layer: dict[tuple[str, str], float] = {}
        for row in rows:
            key = row["step"], row["layer"]
            by_layer[key] = by_layer.get(key, 0) + float(row["share"])
        assert len(by_layer) == 4 * 2
        assert list(by_layer.values()) == pytest.approx([1.0] * 8)

    @pytest.mark.parametrize("stage", [1, 3])
    def test_ten_steps_and_ten_more_are_twenty_bit_for_bit(self, whole, images, tmp_path, stage):
        adopt(whole, tmp_path, *range(1, stage))
        with pytest.raises(Crash):
            run(config(tmp_path, stage), images, tmp_path, stage, listener=Told(13, crash))
        assert state_digests(tmp_path, stage)["step"] == 10
        torch.rand(7)
        told = Told()
        run(config(tmp_path, stage), images, tmp_path, stage, listener=told)
        assert told.steps == list(range(11, 21))
        assert state_digests(tmp_path, stage) == state_digests(whole, stage)
        for ours, theirs in zip(log(tmp_path, stage), log(whole, stage), strict=True):
            assert [ours[k] for k in ("step", "loss", "validation")] == [
                theirs[k] for k in ("step", "loss", "validation")
            ]
        ours, theirs = (json.loads((out / f"stage{stage}" / "best.json").read_text()) for out in (tmp_path, whole))
        assert ours == theirs

    def test_a_signal_and_a_limit_of_minutes_end_with_a_checkpoint(self, whole, images, tmp_path):
        path = config(tmp_path)
        run(path, images, tmp_path, minutes=1e-6)
        assert state_digests(tmp_path)["step"] == 1
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            run(path, images, tmp_path, listener=Told(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert signal.getsignal(signal.SIGTERM) is before
        assert state_digests(tmp_path)["step"] == 7
        run(path, images, tmp_path)
        assert state_digests(tmp_path) == state_digests(whole)

    def test_kill_9_at_any_step_resumes(self, whole, images, tmp_path):
        path = config(tmp_path, checkpoint_every=1)
        code = (
            "import sys; from pathlib import Path; from restorers.semfm.pretraining import pretrain\n"
            f"pretrain(stage=1, config=Path({str(path)!r}), data={str(images)!r}, out=Path({str(tmp_path)!r}), "
            "threads=1, device='cpu')"
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        description = tmp_path / "stage1" / "checkpoint.json"
        while process.poll() is None and not (description.exists() and state_digests(tmp_path)["step"] >= 3):
            time.sleep(0.002)
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        told = Told()
        run(path, images, tmp_path, listener=told)
        assert state_digests(tmp_path) == state_digests(whole)

    def test_finished_run_does_nothing_and_fresh_starts_over(self, whole, images, tmp_path):
        told = Told()
        run(config(tmp_path), images, whole, listener=told)
        assert told.steps == []
        assert "finished" in told.notices[0]
        run(config(tmp_path, steps=3), images, tmp_path)
        told = Told()
        run(config(tmp_path, steps=2, rate=1e-3), images, tmp_path, fresh=True, listener=told)
        assert told.steps == [1, 2]
        assert len(log(tmp_path)) == 2

    @pytest.mark.parametrize("stages", [(1,), (1, 2, 3)])
    def test_a_whole_recipe_in_slices_is_its_stages_and_ends_with_a_card(self, whole, images, tmp_path, stages):
        texts = [config(tmp_path, stage).read_text(encoding="utf-8") for stage in stages]
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(texts[0] + "".join(text[text.index("[stage") :] for text in texts[1:]), encoding="utf-8")
        arguments = {"config": recipe, "data": str(images), "out": tmp_path / "out", "threads": 1, "device": "cpu"}
        assert pretrain(**arguments, minutes=0) == tmp_path / "out" / "stage1" / "best.json"
        card = pretrain(**arguments)
        assert card == tmp_path / "out" / "weights" / "README.md"
        for stage in stages:
            assert state_digests(tmp_path / "out", stage) == state_digests(whole, stage)
        assert sorted(path.name for path in card.parent.glob("*.json")) == [f"stage{n}.json" for n in {1, stages[-1]}]
        told = card.read_text(encoding="utf-8")
        assert f"`{images}`, split `pretrain`: 8 micrographs in 8 groups" in told
        assert f"--recipe {recipe}" in told
        assert ("## Use of experts" in told) == (3 in stages)

    def test_accumulation_is_the_larger_batch(self, whole, images, tmp_path):
        run(config(tmp_path, batch=2, accumulate=2), images, tmp_path)
        ours, theirs = ([float(row["loss"]) for row in log(out)] for out in (tmp_path, whole))
        assert ours == pytest.approx(theirs, abs=1e-5)

    def test_two_processes_train_like_one_of_twice_the_batch(self, whole, images, tmp_path):
        """Without distillation, whose gradient jumps where student and teacher agree to the last digit, and at a rate
        low enough that no token changes its expert by rounding; balance weighs 100 times the paper's, to be seen."""
        alone = tmp_path / "alone"
        alone.mkdir()
        adopt(whole, tmp_path, 1, 2)
        adopt(whole, alone, 1, 2)
        twice, once = (config(tmp_path, 3, batch=batch, rate=1e-4) for batch in (2, 4))
        for path in (twice, once):
            path.write_text(path.read_text(encoding="utf-8") + "distillation = 0.0\nbalance = 1.0\n", encoding="utf-8")
        run(once, images, alone, 3)
        target = f"{restorers.semfm.restorer.__file__}:Semfm"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "sembench", "train", target, "--stage", "3", "--recipe", str(twice)),
            *("--data", str(images), "--out", str(tmp_path), "--threads", "1", "--device", "cpu"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert "on 2 processes (cpu)" in done.stderr
        assert done.stderr.count("stage 3 finished") == 1
        assert done.stderr.count("written: ") == 1
        ours, theirs = log(tmp_path, 3), log(alone, 3)
        for column in ("loss", "mae", "kd", "balance", "fft", "psd", "grad_norm"):
            expected = [float(row[column]) for row in theirs]
            assert [float(row[column]) for row in ours] == pytest.approx(expected, abs=1e-5), column
        for column in ("validation", "expert_least"):
            expected = [float(row[column]) for row in theirs if row[column]]
            assert [float(row[column]) for row in ours if row[column]] == pytest.approx(expected, abs=1e-5)

    def test_a_loss_that_is_not_finite_stops_and_the_last_checkpoint_stays(self, images, tmp_path):
        path = config(tmp_path, rate=1e25, checkpoint_every=1)
        with pytest.raises(NonFiniteError) as caught:
            run(path, images, tmp_path)
        assert "\n" not in str(caught.value)
        kept = read_checkpoint(tmp_path / "stage1")
        assert f"the checkpoint of step {kept.step} stays" in str(caught.value)
        assert kept.step >= 1

    def test_a_checkpoint_of_other_settings_is_refused_by_name(self, images, tmp_path):
        run(config(tmp_path, steps=2), images, tmp_path)
        with pytest.raises(InputError, match=r"learning_rate = 0.003, not 0.001"):
            run(config(tmp_path, steps=2, rate=1e-3), images, tmp_path)
        with pytest.raises(InputError, match=r"images a step = 4, not 8"):
            run(config(tmp_path, steps=2, batch=8), images, tmp_path)
        run(config(tmp_path, steps=2, batch=2, accumulate=2), images, tmp_path)
        other = tmp_path / "other"
        other.mkdir()
        for number in range(2):
            Image.fromarray(texture(100 + number)).save(other / f"{number}.png")
        with pytest.raises(InputError, match="made with data = "):
            run(config(tmp_path, steps=2), other, tmp_path)

    def test_a_pickled_checkpoint_is_refused(self, images, tmp_path):
        run(config(tmp_path, steps=2), images, tmp_path)
        torch.save({"w": torch.zeros(2)}, tmp_path / "stage1" / "step-00000002.model.safetensors")
        with pytest.raises(InputError, match="pickled files are never read"):
            run(config(tmp_path, steps=2), images, tmp_path)

    def test_device_that_is_not_here(self, images, tmp_path):
        with pytest.raises(InputError, match="not known"):
            pretrain(stage=1, config=config(tmp_path), data=str(images), out=tmp_path, device="tpu")
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="sees no GPU"):
                pretrain(stage=1, config=config(tmp_path), data=str(images), out=tmp_path, device="cuda")


def test_one_batch_is_learned_by_heart(images, tmp_path):
    recipe = load_recipe(config(tmp_path))
    pixels = pack(str(images)).pixels(TRAIN)
    model = MaskedAutoencoder(recipe.architecture(*statistics(pixels)), 0)
    samples = Samples(pixels, augmentation=PLAIN, tokens=16, mask_ratio=0.75, seed=0)
    gray, masks = map(torch.from_numpy, samples.batch(0, 2))
    images_, alone = model.normalise(gray.unsqueeze(1)), Ranks(0, 1, torch.device("cpu"))
    task = Task(1, recipe.stage(1), model, None, {"mae": 1.0}, "")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    for _ in range(300):
        loss, *_ = stage_loss(task, model, images_, masks, alone)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.2 * found[0]
