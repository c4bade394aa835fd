"""The plugin API's training side: budgets, and patches that are what the forward model says."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from small import texture

from sembench.errors import InputError
from sembench.optics import BroadDegradation, degrade
from sembench.restorer import PATCH_MARGIN, PATCH_SIDE, Budget, Image, PairSet, Patch, Start, TrainingSet


def training(*images: Image, degradation: str = "paper", seed: int = 0, batch: int = 4) -> TrainingSet:
    return TrainingSet(images, (texture(300, 300, 9),), degradation, Budget("quick", 200, batch), seed)


@pytest.mark.parametrize(
    ("name", "steps", "minutes"),
    [
        ("quick", 200, None),
        ("standard", 4000, None),
        ("long", 20_000, None),
        ("10min", None, 10),
        ("0.5min", None, 0.5),
    ],
)
def test_budgets_are_those_of_the_science(name: str, steps: int | None, minutes: float | None) -> None:
    budget = Budget.of(name)
    assert (budget.name, budget.steps, budget.minutes, budget.batch) == (name, steps, minutes, 4)


@pytest.mark.parametrize("name", ["", "fast", "min", "0min", "-3min", "3 min", "nanmin", "1e3min"])
def test_an_unknown_budget_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="standard"):
        Budget.of(name)


def same(one: Patch, other: Patch) -> bool:
    return one.degradation == other.degradation and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("clean", "degraded", "second", "signal", "surroundings")
    )


def test_patches_follow_from_seed_and_step_alone() -> None:
    first, again = training(texture(500, 600)), training(texture(500, 600))
    assert first.digest == again.digest
    early = first.batch(3)
    first.batch(7)
    assert all(same(a, b) for a, b in zip(early, again.for_worker().batch(3), strict=True))
    assert not any(same(a, b) for a, b in zip(early, first.batch(4), strict=True))
    other = training(texture(500, 600), seed=1)
    assert not any(same(a, b) for a, b in zip(early, other.batch(3), strict=True))
    assert all(same(a, b) for a, b in zip(first.validation_patches()[:4], other.validation_patches()[:4], strict=True))
    assert training(texture(500, 600, 1)).digest != first.digest


def test_the_blur_sees_real_surroundings() -> None:
    """A ramp blurred by a symmetric kernel stays a ramp, at the patch's own border too: reflection would bend it."""
    ramp = np.tile(np.linspace(0, 200, 1000, dtype=np.float32), (1000, 1))
    errors: list[NDArray[np.floating]] = []
    for step in range(6):
        for patch in training(ramp).batch(step):
            p = patch.degradation
            assert p is not None
            signal = p.a * patch.clean + p.b
            inside = signal.min() > 20 and signal.max() < 235
            rows = patch.degraded.std(axis=0).mean() < patch.degraded.std(axis=1).mean()
            if inside and rows and max(p.rx, p.ry) > 8:
                errors.append((patch.degraded - signal).mean(axis=0)[[0, 1, -2, -1]])
    assert len(errors) >= 3
    assert np.abs(np.mean(errors, axis=0)).max() < 0.5


@pytest.mark.parametrize("degradation", ["paper", "broad"])
def test_the_second_draw_has_the_same_signal_and_noise_of_its_own(degradation: str) -> None:
    for step in range(3):
        for patch in training(np.full((400, 400), 120, np.float32), degradation=degradation).batch(step):
            p = patch.degradation
            assert p is not None
            mean = p.a * 120 + p.b
            sigma = np.sqrt(mean / p.dose + p.sigma**2)
            if sigma > 20:
                continue
            for draw in (patch.degraded, patch.second):
                assert draw.mean() == pytest.approx(mean, abs=6 * sigma / PATCH_SIDE * 3)
                assert draw.std() == pytest.approx(sigma, rel=0.05)
            assert abs(np.corrcoef(patch.degraded.ravel(), patch.second.ravel())[0, 1]) < 0.05


def test_the_degraded_patch_is_the_forward_model_on_its_surroundings() -> None:
    """Without noise the fast path agrees with `degrade`, on the middle that the kernel's half width leaves."""
    patch_sized = texture(PATCH_SIDE, PATCH_SIDE)
    image = np.pad(patch_sized, PATCH_MARGIN, mode="reflect")
    for patch in training(patch_sized, batch=3).batch(0):
        p = patch.degradation
        assert p is not None
        inner = slice(PATCH_MARGIN, -PATCH_MARGIN)
        turned = [np.rot90(view, turns) for view in (image, image[:, ::-1]) for turns in range(4)]
        area = next(view for view in turned if np.array_equal(view[inner, inner], patch.clean))
        exact = degrade(area, p, None)[inner, inner]
        sigma = np.sqrt(exact / p.dose + p.sigma**2)
        assert np.abs(patch.signal - exact).max() < 0.01
        unclipped = (exact > 5 * sigma) & (exact < 255 - 5 * sigma)
        scaled = ((patch.degraded - exact) / sigma)[unclipped]
        assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)
        assert scaled.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("shape", [(32, 32), (90, 700), (223, 225), (224, 224)])
def test_images_smaller_than_a_patch_are_reflected(shape: tuple[int, int]) -> None:
    image = texture(*shape)
    for patch in training(image).batch(0):
        assert patch.clean.shape == patch.degraded.shape == (PATCH_SIDE, PATCH_SIDE)
        assert set(np.unique(patch.clean)) <= set(np.unique(image))


def test_resized_crops_show_more_or_less_of_the_image() -> None:
    """Stripes of 16 px: their period in the patch tells the crop's side; half of the mixed crops are at scale 1."""
    stripes = np.tile(128 + 100 * np.sin(np.arange(1100) * 2 * np.pi / 16), (1100, 1)).astype(np.float32)
    sides: dict[str, list[int]] = {"native": [], "mixed": [], "paper": []}
    for crops, found in sides.items():
        for step in range(7):
            for patch in training(stripes).batch(step, crops=crops):  # type: ignore[arg-type]
                centred = patch.clean - patch.clean.mean()
                power = np.abs(np.fft.rfft2(centred)[0]) + np.abs(np.fft.rfft2(centred.T)[0])
                found.append(round(int(power.argmax()) * 16 / 8) * 8)
    assert set(sides["native"]) == {PATCH_SIDE}
    assert set(sides["paper"]) == {128, 256, 512, 1024}
    assert set(sides["mixed"]) == {PATCH_SIDE, 128, 256, 512, 1024}
    assert 0.25 < np.mean([side == PATCH_SIDE for side in sides["mixed"]]) < 0.75


def test_broad_patches_tell_their_noise_correlation() -> None:
    patches = [p for step in range(2) for p in training(texture(300, 300), degradation="broad").batch(step)]
    assert all(isinstance(patch.degradation, BroadDegradation) for patch in patches)


@pytest.mark.parametrize(
    ("images", "message"),
    [((), "no training images"), ((np.full((40, 40), np.nan, np.float32),), "not finite"),
     ((np.zeros((31, 40), np.float32),), "too small")],
)  # fmt: skip
def test_bad_training_images_are_refused(images: tuple[Image, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        training(*images)


def test_an_unknown_training_degradation_is_refused() -> None:
    with pytest.raises(InputError, match="paper or broad"):
        training(texture(64, 64), degradation="none")


def pairs(reference: Image, degraded: Image, **options: object) -> PairSet:
    budget = Budget("quick", 20, 8)
    given = {"inputs": (degraded,), "validation_inputs": (degraded,), **options}
    return PairSet((reference,), (reference,), "broad", budget, **given)  # type: ignore[arg-type]


def test_patches_of_a_pair_show_one_place_in_both_scans() -> None:
    reference = 60 + texture(300, 420) / 2
    found = pairs(reference, reference + 7)
    patches = [*found.batch(0), *found.batch(1, crops="paper"), *found.validation_patches()[:3]]
    for patch in patches:
        assert patch.degradation is None
        assert np.allclose(patch.degraded - patch.clean, 7, atol=1e-3)
        assert np.array_equal(patch.second, patch.clean)
        assert np.array_equal(patch.signal, patch.clean)
        inner = slice(PATCH_MARGIN, -PATCH_MARGIN)
        assert np.array_equal(patch.surroundings[inner, inner], patch.degraded)
        assert patch.surroundings.shape == (PATCH_SIDE + 2 * PATCH_MARGIN,) * 2
    assert len({float(patch.clean.mean()) for patch in patches}) > 8
    assert all(same(a, b) for a, b in zip(found.batch(3), found.for_worker().batch(3), strict=True))


def test_the_fast_axis_of_a_pair_stays_where_it_is() -> None:
    columns = np.tile(texture(400, 400)[200], (400, 1))
    for patch in pairs(columns, columns).batch(0):
        assert np.ptp(patch.clean, axis=0).max() == 0
        assert np.ptp(patch.clean, axis=1).min() > 10


def test_pairs_are_known_by_both_scans_and_must_fit() -> None:
    one, other = texture(300, 300), texture(300, 300, 1)
    assert pairs(one, other).digest == pairs(one, other).digest
    assert len({pairs(one, other).digest, pairs(other, one).digest, pairs(one, one).digest}) == 3
    for wrong in ({"inputs": ()}, {"inputs": (one[:200],)}, {"validation_inputs": (one, one)}):
        with pytest.raises(InputError, match="give registered pairs"):
            pairs(one, other, **wrong)


def test_a_worker_is_not_sent_the_state_to_start_from() -> None:
    start = Start({}, "0" * 64, 0.1)
    assert replace(training(texture(300, 300)), start=start).for_worker().start is None
