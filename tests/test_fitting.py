"""The training loop: reproducible, resumable to the bit, selected by validation, honest about what it keeps."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import texture
from torch import Tensor, nn

from restorers import fitting
from sembench import restorer
from sembench.errors import CheckError, InputError
from sembench.restorer import Budget, FitProgress, Start, TrainingSet

STEPS = 20


@pytest.fixture(autouse=True)
def few_validation_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer, "VALIDATION_PATCHES", 2)


def training(seed: int = 0, folder: Path | None = None, on_progress: Any = None, steps: int = STEPS) -> TrainingSet:
    image = texture(256, 256)
    budget = Budget("quick", steps, 1)
    return TrainingSet((image,), (image[::-1].copy(),), "paper", budget, seed, "cpu", folder, on_progress)


class Net(nn.Module):
    """One trained convolution with a frozen one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.frozen.requires_grad_(False)
        self.last = nn.Conv2d(2, 1, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("scale", torch.tensor(0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.drop(self.frozen(x * self.scale)))


def loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return ((network(batch["degraded"]) - batch["clean"]) / 255).square().mean()


def fitted(data: TrainingSet, workers: int = 0, **options: Any) -> tuple[fitting.Fitted, Net]:
    with fitting.seeded(data.seed):
        network = Net()
    options.setdefault("learning_rate", 0.05)
    return fitting.fit(network, loss, data, workers=workers, **options), network


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_seed_gives_the_same_weights_whoever_makes_the_patches() -> None:
    before = torch.random.get_rng_state()
    first, _ = fitted(training())
    assert torch.equal(before, torch.random.get_rng_state())
    again, _ = fitted(training(), workers=1)
    assert same(first.state, again.state)
    assert not same(first.state, fitted(training(seed=1))[0].state)


def test_fits_on_the_same_patches_share_what_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = fitted(training())
    monkeypatch.setenv("SEMBENCH_BATCHES", str(tmp_path))
    first, _ = fitted(training())
    assert len(list(tmp_path.rglob("*.safetensors"))) == STEPS
    with monkeypatch.context() as broken:
        broken.setattr(TrainingSet, "batch", None)
        second, _ = fitted(training())
    assert same(alone.state, first.state)
    assert same(first.state, second.state)
    assert not same(first.state, fitted(training(seed=1))[0].state)


def test_only_what_is_trained_is_kept_in_half_precision() -> None:
    result, network = fitted(training(steps=4))
    assert result.state.keys() == {"last.weight", "last.bias", "scale"}
    assert all(value.dtype == torch.float16 for value in result.state.values())
    with fitting.seeded(0):
        fresh = Net()
    assert torch.equal(fresh.frozen[0].weight, network.frozen[0].weight)
    fitting.load(fresh, result.state)
    assert torch.equal(fresh.last.weight, network.last.weight)
    assert result.report["parameters_trained"] == 19
    assert result.report["parameters"] == 19 + 20 + 4
    assert result.report["multiply_adds_per_px"] == 36


@pytest.mark.parametrize("cut", [1, 20])
def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path: Path, cut: int) -> None:
    whole, _ = fitted(training(folder=tmp_path / "whole"))

    def stop(told: FitProgress) -> None:
        if told.step == cut and told.validation is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(training(folder=tmp_path / "cut", on_progress=stop))
    seen: list[int] = []
    result, _ = fitted(training(folder=tmp_path / "cut", on_progress=lambda told: seen.append(told.step)))
    assert same(result.state, whole.state)
    assert all(step > cut for step in seen)
    curves = [list(csv.DictReader((tmp_path / name / "curve.csv").open())) for name in ("whole", "cut")]
    for one, other in zip(*curves, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    assert not (tmp_path / "cut" / fitting.CHECKPOINT).exists()


def test_a_checkpoint_that_is_damaged_or_of_another_fit_is_as_good_as_none(tmp_path: Path) -> None:
    def stop(told: FitProgress) -> None:
        if told.step == 9 and told.validation is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(training(seed=5, folder=tmp_path, on_progress=stop))
    checkpoint = tmp_path / fitting.CHECKPOINT
    whole, _ = fitted(training())
    content = checkpoint.read_bytes()
    assert same(fitted(training(folder=tmp_path))[0].state, whole.state)
    checkpoint.write_bytes(content[: len(content) // 2])
    assert same(fitted(training(folder=tmp_path))[0].state, whole.state)


def test_the_best_state_is_kept_not_the_last() -> None:
    """A rate that diverges: the kept state is the one of the smallest validation loss on the curve."""
    result, _ = fitted(training(steps=10), learning_rate=3.0, schedule="constant")
    losses = [row["validation"] for row in result.report["curve"]]
    assert len(losses) == 10
    assert losses[-1] > min(losses)
    assert result.report["validation"] == pytest.approx(min(losses), rel=0.02)


def test_a_loss_that_is_not_finite_stops_with_one_line_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    calls = iter(range(1000))

    def breaks(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        value = loss(network, batch)
        return value * float("nan") if next(calls) > 30 else value

    with fitting.seeded(0):
        network = Net()
    with pytest.raises(CheckError, match=r"^loss is nan at step \d+: lower the learning rate$"):
        fitting.fit(network, breaks, training(folder=tmp_path), workers=0)
    assert (tmp_path / fitting.CHECKPOINT).is_file()


def test_a_state_of_another_network_is_refused() -> None:
    state = fitting.trained_state(Net())
    for broken in ({}, {**state, "more": torch.zeros(1)}, {**state, "last.bias": torch.zeros(7)}):
        with pytest.raises(InputError, match="does not fit"):
            fitting.load(Net(), broken)


def test_minutes_end_a_fit_and_psnr_is_on_the_curve() -> None:
    data = training()
    timed = TrainingSet(data.images, data.validation, "paper", Budget("x", None, 1, minutes=0.03))
    result, _ = fitted(timed, restored=lambda network, batch: batch["clean"] + 255 * 10 ** (-30 / 20))
    assert result.report["steps"] >= 1
    assert result.report["seconds"] >= 1.8
    for row in result.report["curve"]:
        assert row["psnr"] == pytest.approx(30, abs=0.5)
        assert row["psnr_matched"] > 60


def test_something_is_learnt_and_the_time_spent_waiting_is_told() -> None:
    told: list[FitProgress] = []
    result, _ = fitted(training(on_progress=told.append, steps=60))
    curve = result.report["curve"]
    assert curve[-1]["validation"] < 0.9 * curve[0]["validation"]
    assert 0 < result.report["waiting"] < 1
    assert told[-1].step == told[-1].steps == 60
    assert told[-1].seconds_left == 0


def test_a_fit_that_starts_from_a_state_goes_on_from_it() -> None:
    data = training()
    first, _ = fitted(data)
    still = replace(data, start=Start(first.state, "a", 1e-9))
    assert same(fitted(still)[0].state, first.state)
    further, _ = fitted(replace(data, start=Start(first.state, "a", 1.0)))
    assert not same(further.state, first.state)
    with fitting.seeded(data.seed):
        own = fitting.trained_state(Net())
    assert same(fitted(replace(data, start=Start(own, "b")))[0].state, first.state)
    with pytest.raises(InputError, match="does not fit the network"):
        fitted(replace(data, start=Start({"last.weight": torch.zeros(2)}, "c")))


def test_an_anchored_fit_ends_half_way() -> None:
    with fitting.seeded(0):
        first = fitting.trained_state(Net())
    free, _ = fitted(training())
    anchored, _ = fitted(training(), anchored=True)
    for name, value in anchored.state.items():
        middle = (first[name].float() + free.state[name].float()) / 2
        torch.testing.assert_close(value.float(), middle, atol=2e-3, rtol=2e-3)
    assert not same(anchored.state, free.state)


def test_a_fit_stops_when_asked_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, _ = fitted(training())
    slices = 0
    while slices < 50:
        slices += 1
        try:
            result, _ = fitted(training(folder=tmp_path), stop=lambda: True)
            break
        except fitting.Unfinished:
            assert (tmp_path / fitting.CHECKPOINT).is_file()
    assert slices == STEPS
    assert same(result.state, whole.state)


def test_rates_are_shares_of_the_learning_rate() -> None:
    still, network = fitted(training(), rates={"last.weight": 0.0})
    with fitting.seeded(0):
        fresh = Net()
    assert torch.equal(still.state["last.weight"], fresh.last.weight.half())
    assert not torch.equal(still.state["last.bias"], fresh.last.bias.half())
    assert network.last.weight.shape == fresh.last.weight.shape
