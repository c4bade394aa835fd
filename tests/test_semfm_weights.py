"""The weights that ship: whole, small, and as their card tells of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from restorers.semfm.card import CARD, WEIGHTS, ship
from restorers.semfm.model import random_mask
from restorers.semfm.storage import load_model, load_part
from sembench import micrograph
from sembench.errors import InputError

MEGABYTE = 1_000_000


def test_shards_are_small_and_each_set_of_weights_with_its_states_is_below_40_mb() -> None:
    package = WEIGHTS.parent
    shards = list(package.rglob("*.safetensors"))
    assert shards
    assert max(shard.stat().st_size for shard in shards) < 15 * MEGABYTE
    sizes = {file: file.stat().st_size for file in package.rglob("*") if file.is_file()}
    restoring = sum(size for file, size in sizes.items() if file.name.startswith("restoring"))
    assert 0 < restoring < 40 * MEGABYTE
    assert sum(sizes.values()) - restoring < 40 * MEGABYTE


def test_the_model_that_restores_loads_and_its_card_names_its_shards() -> None:
    model, extra = load_model(WEIGHTS / "restoring.json")
    assert extra["stage"] == "restoring"
    assert load_part(WEIGHTS / "restoring.json", extra["path"])["path.exit.weight"].abs().max() > 0
    card = (WEIGHTS / "restoring.md").read_text(encoding="utf-8")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in card
    for shard in [*json.loads((WEIGHTS / "restoring.json").read_text())["shards"], extra["path"]]:
        assert shard["sha256"][:16] in card


@pytest.mark.parametrize("stage", [1, 3])
def test_weights_load_and_the_card_names_their_shards(stage: int) -> None:
    model, extra = load_model(WEIGHTS / f"stage{stage}.json")
    assert extra["stage"] == stage
    assert model.config.experts == (8 if stage == 3 else 0)
    card = (WEIGHTS / CARD).read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    assert f"{parameters:,}" in card
    for shard in json.loads((WEIGHTS / f"stage{stage}.json").read_text())["shards"]:
        assert shard["sha256"][:16] in card


@pytest.mark.data
def test_masked_patches_are_drawn_better_than_by_the_mean_and_no_expert_is_idle(data_folder: Path) -> None:
    with (data_folder / "semcorpus" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "pretrain_validation"]
    crops = []
    for row in rows:
        crop = tuple(int(side) for side in row["crop_px"].split(","))
        pixels = micrograph.read(data_folder / "semcorpus" / row["file"], crop=crop).pixels
        crops += [pixels[y : y + 224, x : x + 224] for y in (0, 224) for x in (0, 224, 416)]
    gray = torch.from_numpy(np.stack(crops).astype(np.float32))[:, None]
    model = load_model(WEIGHTS / "stage3.json")[0].eval()
    images = model.normalise(gray)
    mask = random_mask(list(range(len(crops))), len(crops), 196)
    with torch.inference_mode():
        output = model(images, mask)
    target = model.targets(images)
    error = (output.prediction - target).abs().mean(-1)[mask].mean()
    blank = (target - target[~mask].mean()).abs().mean(-1)[mask].mean()
    assert error < 0.75 * blank
    for gate in output.gates:
        shares = torch.bincount(gate.choice.flatten(), minlength=8) / gate.choice.numel()
        assert shares.min() > 0.02


def test_an_unfinished_run_is_not_shipped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished stage 1"):
        ship(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
