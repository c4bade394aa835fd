"""semfm's restorers: they start as what they build on, freeze what they must, and take any image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from restorers import fitting
from restorers.blind_wiener import KernelEstimate, wiener
from restorers.semfm import restorer as semfm
from restorers.semfm import spectral
from restorers.semfm.adaptation import restoration_loss
from restorers.semfm.model import CONFIGS, MaskedAutoencoder, patchify
from restorers.semfm.spectral import patch_arrays, spectral_estimate
from restorers.semfm.storage import save_model
from sembench import restorer
from sembench.errors import InputError
from sembench.optics import MIDPOINT, Degradation, degrade
from sembench.registry import load_method
from sembench.restorer import Budget, Image, TrainingSet

LEARNED: list[tuple[Any, dict[str, Any]]] = [
    (semfm.NoEncoder, {}),
    (semfm.NoEncoder, {"physics": False}),
    (semfm.Semfm, {"encoder": "random"}),
    (semfm.Semfm, {"encoder": "random", "physics": False}),
    (semfm.Semfm, {"encoder": "random", "decoder": "linear"}),
    (semfm.SemfmL1Tv, {"encoder": "random"}),
    (semfm.SemfmPlain, {"encoder": "random"}),
]


def texture(height: int, width: int, seed: int = 0) -> Image:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 3)
    return np.clip(120 + 40 * field / field.std(), 0, 255).astype(np.float32)


def defocused(height: int, width: int) -> Image:
    image = texture(height, width)
    return degrade(image, Degradation(4, 6, 1.95, 0.3, 1.045, 13, 4, 20), np.random.default_rng(1))


def training(steps: int = 2) -> TrainingSet:
    budget = Budget("quick", steps, 1)
    return TrainingSet((texture(260, 300),), (texture(250, 240, 1),), "paper", budget)


@pytest.fixture(autouse=True)
def few_validation_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer, "VALIDATION_PATCHES", 1)
    original = fitting.fit
    monkeypatch.setattr(fitting, "fit", lambda *words, **options: original(*words, workers=0, **options))


def made(cls: Any, **settings: Any) -> Any:
    return cls({"degradation": "paper", **settings} if cls is not semfm.SemfmZeroShot else settings)


def begun(method: Any) -> Any:
    """A method in the state in which its fit begins."""
    method.state = fitting.trained_state(method._new())
    return method


@pytest.mark.parametrize(("cls", "settings"), LEARNED)
def test_it_fits_and_restores_any_size(cls: Any, settings: dict[str, Any]) -> None:
    method = made(cls, **settings)
    with pytest.raises(InputError, match="not fitted"):
        method.restore(texture(40, 40))
    method.fit(training())
    assert not any(name.startswith("tokens") for name in method.state)
    assert method.report["steps"] == 2
    again = made(cls, **settings)
    again.state = method.state
    for shape in ((32, 32), (33, 47), (230, 301)):
        image = defocused(*shape)
        image.setflags(write=False)
        restored = method.restore(image)
        assert restored.shape == shape
        assert restored.dtype == np.float32
        assert restored.min() >= 0
        assert restored.max() <= 255
        np.testing.assert_array_equal(restored, again.restore(image))
    assert method.restore(np.full((50, 60), 100, np.float32)).shape == (50, 60)


@pytest.mark.parametrize(("cls", "settings"), [LEARNED[0], LEARNED[2]])
def test_the_pixel_path_starts_as_blind_wiener(cls: Any, settings: dict[str, Any]) -> None:
    image = defocused(300, 260)
    for degradation in ("paper", "broad"):
        method = begun(made(cls, **{**settings, "degradation": degradation}))
        blind = load_method("blind_wiener", {"degradation": degradation})
        np.testing.assert_allclose(method.restore(image), blind.restore(image), atol=2e-3)


def test_without_physics_it_starts_as_the_image_with_gain_and_offset_undone() -> None:
    image = defocused(120, 250)
    expected = np.clip((image - 13) / 1.045, 0, 255)
    np.testing.assert_allclose(begun(made(semfm.NoEncoder, physics=False)).restore(image), expected, atol=1e-4)


def test_the_encoder_stays_and_the_decoder_moves() -> None:
    method = made(semfm.Semfm, encoder="random")
    method.fit(training(6))
    network, fresh = method.ready(), method._new()
    pairs = zip(network.state_dict().items(), fresh.state_dict().values(), strict=True)
    moved = {name for (name, now), before in pairs if not torch.equal(now, before)}
    assert moved
    assert not any(name.startswith("tokens") for name in moved)
    assert any(name.startswith("path.path.exit") for name in moved)


def test_no_encoder_has_as_many_parameters() -> None:
    counts = [
        sum(p.numel() for p in made(cls, **settings)._new().parameters() if p.requires_grad)
        for cls, settings in (LEARNED[0], LEARNED[2])
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.1)
    assert counts[0] >= counts[1]


def test_the_target_is_the_clean_patch_in_the_inputs_own_gain_and_offset() -> None:
    patch = training().batch(0)[0]
    arrays = patch_arrays(patch)
    p = patch.degradation
    assert p is not None
    np.testing.assert_allclose(arrays["target"][0], p.a * patch.clean + p.b, atol=1e-3)
    whole = spectral_estimate(patch.surroundings).image[96:-96, 96:-96]
    difference = arrays["estimate"][0] - whole
    assert np.abs(difference).mean() < 0.1 * np.abs(whole - whole.mean()).mean() + 1


def test_small_kernels_are_undone_only_where_all_images_are_blurred(monkeypatch: pytest.MonkeyPatch) -> None:
    found = KernelEstimate(rx=3.0, ry=2.0, theta=0.1, amplitude=0.1, gamma=2.0, noise=20.0)
    monkeypatch.setattr(spectral, "estimate", lambda image, starts: found)
    patch = training().batch(0)[0]
    blurred, scan = spectral.patch_arrays(patch)["estimate"], spectral.patch_arrays_of_scans(patch)["estimate"]
    assert blurred.std() > 1.05 * scan.std()
    assert made(semfm.Semfm)._prepare is spectral.patch_arrays
    assert made(semfm.Semfm, degradation="broad")._prepare is spectral.patch_arrays_of_scans
    image = texture(240, 250)
    as_blurred, as_scan = (begun(made(semfm.NoEncoder, degradation=name)).restore(image) for name in ("paper", "broad"))
    np.testing.assert_allclose(as_scan, np.clip(wiener(image, found, deblur=False), 0, 255), atol=1e-3)
    undone = (wiener(image, found) - MIDPOINT.b) / MIDPOINT.a
    np.testing.assert_allclose(as_blurred, np.clip(undone, 0, 255), atol=1e-3)


def test_what_does_not_show_as_defocus_is_not_to_be_sharpened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a scan whose kernel is not undone, the target is the blurred patch without noise; else the clean one."""
    patch = training().batch(0)[0]
    p = patch.degradation
    assert p is not None
    in_domain = p.a * patch.clean + p.b
    assert in_domain.std() > 1.2 * patch.signal.std()
    for radius, as_blurred, as_scan in ((3.0, in_domain, patch.signal), (9.0, in_domain, in_domain)):
        found = KernelEstimate(rx=radius, ry=2.0, theta=0.1, amplitude=0.1, gamma=2.0, noise=20.0)
        monkeypatch.setattr(spectral, "estimate", lambda image, starts, found=found: found)
        np.testing.assert_allclose(spectral.patch_arrays(patch)["target"][0], as_blurred, atol=1e-3)
        np.testing.assert_allclose(spectral.patch_arrays_of_scans(patch)["target"][0], as_scan, atol=1e-3)


@pytest.mark.parametrize(("degradation", "rectified"), [("paper", False), ("broad", True), ("none", True)])
def test_blocks_bend_from_the_first_step_on_for_broad_alone(degradation: str, rectified: bool) -> None:
    block = made(semfm.NoEncoder, degradation=degradation)._new().path.fine[0]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 24, 12, 12)).astype(np.float32))
    with torch.no_grad():
        once, tenth, none = block(x) - x, 10 * (block(x / 10) - x / 10), block(0 * x)
        line = block(x) + block(-x)
    if not rectified:
        assert not once.any()
        return
    assert once.abs().mean() > 0.05
    assert (line - 2 * none).abs().mean() > 0.1 * once.abs().mean()
    assert (once - tenth).abs().mean() < 12 * none.abs().mean()


def test_losses_against_their_formulas() -> None:
    rng = np.random.default_rng(0)
    restored, wanted, start = (rng.uniform(0, 255, (2, 1, 6, 7)) for _ in range(3))
    tensors = [torch.from_numpy(a) for a in (restored, wanted, start)]
    e = (restored - wanted) / 255
    charbonnier = np.mean(np.sqrt(e**2 + 1e-6))
    assert float(restoration_loss(*tensors, "l1")) == pytest.approx(charbonnier, rel=1e-5)
    relative = [np.mean(e[i] ** 2) / (np.mean(((start - wanted)[i] / 255) ** 2) + 1e-5) for i in range(2)]
    assert float(restoration_loss(*tensors, "relative")) == pytest.approx(np.mean(relative), rel=1e-5)

    def variation(a: Any) -> float:
        return (np.abs(np.diff(a, axis=2)).sum() + np.abs(np.diff(a, axis=3)).sum()) / a.size

    total = charbonnier + 3 * variation(e) + 10 * variation(restored / 255)
    assert float(restoration_loss(*tensors, "l1_tv")) == pytest.approx(total, rel=1e-5)


def test_complementary_patches_are_drawn_without_seeing_themselves() -> None:
    image = texture(224, 224)
    changed = image.copy()
    changed[32:48, 64:80] = 255 - changed[32:48, 64:80]
    for masking, blind in (("complementary", True), ("visible", False)):
        method = made(semfm.SemfmZeroShot, encoder="random", masking=masking)
        difference = np.abs(method.restore(image) - method.restore(changed))
        assert (difference[32:48, 64:80].max() < 1e-3) == blind
        assert difference.max() > 1e-2


def test_embeddings_are_unit_means_of_patch_tokens() -> None:
    image = texture(224, 224)
    method = made(semfm.Semfm, encoder="random")
    model = MaskedAutoencoder(CONFIGS["tiny"], 0).eval()
    with torch.no_grad():
        tokens = model.encode((torch.from_numpy(image)[None, None] / 255 - 0.5) / 0.25)[0, 1:].mean(0).numpy()
    embedded = method.embed(image)
    np.testing.assert_allclose(embedded, tokens / np.linalg.norm(tokens), atol=1e-5)
    assert np.linalg.norm(method.embed(texture(50, 77))) == pytest.approx(1, abs=1e-5)


def test_missing_weights_are_a_need_with_its_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(semfm, "WEIGHTS", tmp_path)
    settings = semfm.Semfm.Settings()
    (need,) = semfm.Semfm.needs(settings)
    assert "sembench train semfm --recipe shipped" in str(need)
    (need,) = semfm.Semfm.needs(semfm.Semfm.Settings(encoder="restoring"))
    assert "sembench train semfm --recipe restoring" in str(need)
    assert not semfm.Semfm.needs(semfm.Semfm.Settings(encoder="random"))
    save_model(tmp_path / "stage3.json", MaskedAutoencoder(CONFIGS["tiny"], 5), {}, half=True)
    assert not semfm.Semfm.needs(settings)
    digest = semfm.Semfm.weights_digest(settings)
    embedded = semfm.Semfm(settings).embed(texture(64, 64))
    assert embedded.shape == (CONFIGS["tiny"].dim,)
    save_model(tmp_path / "stage3.json", MaskedAutoencoder(CONFIGS["tiny"], 6), {}, half=True)
    assert semfm.Semfm.weights_digest(settings) != digest
    assert not np.allclose(semfm.Semfm(settings).embed(texture(64, 64)), embedded, atol=1e-3)


def test_the_midpoint_is_what_is_undone() -> None:
    assert (MIDPOINT.a, MIDPOINT.b) == (1.045, 13.0)


def test_every_patch_of_a_window_is_where_it_was() -> None:
    """A plain decoder that copies its patch restores the image: patches go in and out in the same order."""
    gray = torch.from_numpy(texture(224, 224))[None, None]
    from restorers.semfm.adaptation import _gray, _grid

    config = CONFIGS["tiny"]
    patches = patchify((gray / 255 - config.mean) / config.std, config.patch)
    np.testing.assert_allclose(_gray(patches, _grid(gray, config.patch), config), gray, atol=1e-3)
