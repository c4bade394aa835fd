"""Metrics: against other libraries, published values and closed forms; and the oracle's exact scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sembench.errors import InputError, UnavailableError
from sembench.metrics import fidelity, perceptual
from sembench.metrics.consistency import RESIDUAL_BEYOND_3, RESIDUAL_MEDIAN, consistency_residual
from sembench.metrics.fidelity import MATCH_GAIN, MATCH_OFFSET, PSNR, PSNR_MATCHED, SSIM, SSIM_MATCHED
from sembench.metrics.perceptual import LPIPS, LPIPS_MATCHED, NIQE
from sembench.metrics.table import MetricCase, MetricSpec, Scored, UndefinedError, evaluate
from sembench.optics import MIDPOINT, Degradation, degrade

FIDELITY = [PSNR, SSIM, PSNR_MATCHED, SSIM_MATCHED, MATCH_GAIN, MATCH_OFFSET]
Gray = NDArray[np.floating[Any]]


def on_grid(image: Gray) -> NDArray[np.float32]:
    return (np.round(np.clip(image, 0, 255) * 256) / 256).astype(np.float32)


def scene(seed: int = 0, shape: tuple[int, int] = (96, 80)) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return on_grid(128 + 300 * gaussian_filter(rng.normal(0, 1, shape), 3))


def noisy(image: NDArray[np.float32], sigma: float, seed: int = 1) -> NDArray[np.float32]:
    return on_grid(image + np.random.default_rng(seed).normal(0, sigma, image.shape))


def skimage_ssim(reference: Gray, restored: Gray) -> float:
    return float(
        structural_similarity(
            reference.astype(np.float64),
            restored.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
    )


@pytest.fixture
def weights(data_folder: Path) -> Path:
    folder = data_folder / "weights"
    perceptual.use_weights({name: folder / name for name in (perceptual.ALEXNET, perceptual.NIQE_PARAMETERS)})
    return folder


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_weights", {})


@pytest.mark.parametrize("offset", [0.5, 1, 20])
def test_psnr_of_an_offset_is_its_closed_form(offset: float) -> None:
    image = np.full((40, 50), 100.0)
    assert fidelity.psnr(image, image + offset) == pytest.approx(20 * np.log10(255 / offset), abs=1e-12)


def test_psnr_is_capped_at_100_below_the_stated_error() -> None:
    image = np.full((20, 20), 100.0)
    at_the_cap = 255 * 1e-5
    assert fidelity.psnr(image, image + 0.999 * at_the_cap) == 100
    assert fidelity.psnr(image, image + 1.001 * at_the_cap) == pytest.approx(99.9913, abs=1e-4)


@pytest.mark.parametrize("shape", [(11, 11), (33, 47), (96, 80)])
@pytest.mark.parametrize("sigma", [0.0, 3.0, 40.0])
def test_psnr_and_ssim_are_scikit_images(shape: tuple[int, int], sigma: float) -> None:
    reference = scene(2, shape)
    restored = noisy(reference, sigma)
    found = evaluate([PSNR, SSIM], restored, MetricCase(reference, reference)).values
    if sigma:
        expected = peak_signal_noise_ratio(reference.astype(float), restored.astype(float), data_range=255)
        assert found["psnr"] == pytest.approx(expected, abs=1e-10)
    assert found["ssim"] == pytest.approx(skimage_ssim(reference, restored), abs=1e-12)
    assert found["ssim"] == fidelity.ssim(reference, restored)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(InputError, match=r"\(20, 20\) and \(20, 21\)"):
        fidelity.psnr(np.zeros((20, 20)), np.zeros((20, 21)))
    with pytest.raises(InputError, match="11 px a side"):
        fidelity.ssim(np.zeros((10, 20)), np.zeros((10, 20)))
    with pytest.raises(InputError, match="40 x 40 px does not fit the input of 40 x 41 px"):
        MetricCase(scene(0, (40, 41)), scene(0, (40, 40)))
    with pytest.raises(InputError, match="restored image of 40 x 40 px"):
        Scored(scene(0, (40, 40)), MetricCase(scene(0, (40, 41))))
    with pytest.raises(InputError, match="margin of 20 px"):
        MetricCase(scene(0, (40, 41)), margin=20)


def test_oracle_is_exact() -> None:
    reference = scene()
    found = evaluate(FIDELITY, reference.copy(), MetricCase(noisy(reference, 20), reference, margin=7)).values
    assert found == {
        "psnr": 100,
        "ssim": 1,
        "psnr_matched": 100,
        "ssim_matched": 1,
        "match_gain": 1,
        "match_offset": 0,
    }


@given(gain=st.floats(0.05, 5), offset=st.floats(-200, 200), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_an_affine_change_of_the_restored_image_moves_no_matched_score(gain: float, offset: float, seed: int) -> None:
    reference, restored = scene(seed).astype(np.float64), noisy(scene(seed), 15).astype(np.float64)
    first, second = fidelity.match(reference, restored), fidelity.match(reference, gain * restored + offset)
    assert second.gain * gain == pytest.approx(first.gain, rel=1e-9)
    images = fidelity.apply_match(first, restored), fidelity.apply_match(second, gain * restored + offset)
    for score in (fidelity.psnr, fidelity.ssim):
        assert score(reference, images[1]) == pytest.approx(score(reference, images[0]), abs=1e-9)


def test_an_affine_copy_of_the_reference_is_matched_back() -> None:
    reference = scene().astype(np.float64)
    found = fidelity.match(reference, 0.8 * reference + 13)
    assert (found.gain, found.offset) == (pytest.approx(1.25, rel=1e-12), pytest.approx(-16.25, rel=1e-10))


def test_match_is_least_squares_under_smoothing_and_noise_does_not_lower_the_gain() -> None:
    reference, restored = scene(shape=(256, 256)), noisy(scene(shape=(256, 256)), 40)
    smooth = [gaussian_filter(image.astype(np.float64), 3).ravel() for image in (restored, reference)]
    slope, intercept = np.polyfit(smooth[0], smooth[1], 1)
    found = fidelity.match(reference, restored)
    assert (found.gain, found.offset) == (pytest.approx(slope, rel=1e-9), pytest.approx(intercept, rel=1e-7))
    unsmoothed = np.polyfit(restored.ravel().astype(np.float64), reference.ravel(), 1)[0]
    assert found.gain > 0.9
    assert unsmoothed < 0.5


def test_matched_scores_are_those_of_the_clipped_matched_image() -> None:
    reference = scene()
    restored = noisy(on_grid(0.5 * reference.astype(np.float64) + 60), 10)
    found = evaluate(FIDELITY, restored, MetricCase(restored, reference)).values
    gain, offset = found["match_gain"], found["match_offset"]
    assert gain is not None
    assert offset is not None
    image = np.clip(gain * restored.astype(np.float64) + offset, 0, 255)
    assert image.min() == 0
    assert found["psnr_matched"] == pytest.approx(peak_signal_noise_ratio(reference, image, data_range=255))
    assert found["ssim_matched"] == pytest.approx(skimage_ssim(reference, image), abs=1e-12)


@pytest.mark.parametrize(("kind", "reason"), [("flat", "flat"), ("inverted", "not positively correlated")])
def test_what_cannot_be_matched_is_undefined_with_a_reason(kind: str, reason: str) -> None:
    reference = scene()
    restored = np.full_like(reference, 128) if kind == "flat" else 255 - reference
    found = evaluate(FIDELITY, restored, MetricCase(reference, reference))
    assert found.values["psnr"] is not None
    for name in ("psnr_matched", "ssim_matched", "match_gain", "match_offset"):
        assert found.values[name] is None
        assert reason in found.reasons[name]


def test_margin_is_the_same_as_scoring_the_cut_images() -> None:
    reference, restored = scene(), noisy(scene(), 12)
    whole = evaluate(FIDELITY, restored, MetricCase(restored, reference, margin=9)).values
    cut = (slice(9, -9), slice(9, -9))
    assert whole == evaluate(FIDELITY, restored[cut], MetricCase(restored[cut], reference[cut])).values


@pytest.mark.parametrize("metric", [PSNR, SSIM, PSNR_MATCHED, SSIM_MATCHED])
def test_worse_image_worse_score(metric: MetricSpec) -> None:
    reference = scene()
    case = MetricCase(reference, reference)
    scores = [evaluate([metric], noisy(reference, sigma), case).values[metric.name] for sigma in (1, 4, 16, 60)]
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    assert len(set(scores)) == 4


def test_reference_side_work_is_done_once_a_case() -> None:
    calls: list[str] = []

    def of_case(case: MetricCase) -> int:
        calls.append("case")
        return 1

    def of_restored(scored: Scored) -> int:
        calls.append("restored")
        return scored.case.once(of_case)

    specs = [
        MetricSpec(name, name, "", "none", False, False, lambda scored: scored.once(of_restored), 1, 0.0)
        for name in ("one", "two")
    ]
    case = MetricCase(scene())
    assert [evaluate(specs, noisy(scene(), sigma), case).values for sigma in (1, 2)] == [{"one": 1.0, "two": 1.0}] * 2
    assert calls == ["restored", "case", "restored"]


def test_every_unmet_need_is_a_reason_and_no_error(no_weights: None) -> None:
    image = scene(shape=(24, 200))
    found = evaluate([PSNR, RESIDUAL_MEDIAN, LPIPS, NIQE], image, MetricCase(image))
    assert set(found.values.values()) == {None}
    assert "needs a reference" in found.reasons["psnr"]
    assert "parameters of the degradation" in found.reasons["residual_median"]
    assert found.reasons["niqe"] == "needs 192 px a side at least, not 24 x 200 px"
    small = evaluate([LPIPS], image, MetricCase(image, image)).reasons["lpips"]
    assert small == "needs 32 px a side at least, not 24 x 200 px"
    large = scene(shape=(40, 200))
    missing = evaluate([LPIPS], large, MetricCase(large, large)).reasons["lpips"]
    assert "alexnet_features.safetensors" in missing
    assert "SEMBENCH_DATA" in missing


def test_niqe_names_pyiqa_and_its_licence_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_pyiqa_is_installed", lambda: False)
    assert NIQE.needs()[0] == "pyiqa (PolyForm-Noncommercial): pip install sembench[noncommercial]"
    perceptual._niqe_metric.cache_clear()
    with pytest.raises(UnavailableError, match=r"sembench\[noncommercial\]"):
        perceptual.niqe(scene(shape=(192, 192)), "nowhere.mat")


def test_a_value_that_is_not_finite_is_undefined() -> None:
    spec = MetricSpec("odd", "odd", "", "none", False, False, lambda scored: float("nan"), 1, 0.0)
    assert evaluate([spec], scene(), MetricCase(scene())).reasons == {"odd": "came out as nan"}


QUIET = Degradation(rx=4, ry=6, beta=1.95, theta=0.7, a=1.0, b=10, sigma=5, dose=10)


def test_residual_is_its_definition_pixel_by_pixel() -> None:
    clean = scene(shape=(64, 64))
    degraded = degrade(clean, QUIET, np.random.default_rng(3))
    restored = noisy(clean, 5)
    expected = degrade(restored, QUIET, None).astype(np.float64)
    residual = consistency_residual(restored, degraded, QUIET)
    for row, column in [(0, 0), (10, 33), (63, 5)]:
        signal = expected[row, column]
        value = (signal - degraded[row, column]) / np.sqrt(signal / 10 + 25)
        assert residual[row, column] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_residual_of_the_truth_is_standard_normal_and_grows_away_from_it() -> None:
    clean = on_grid(gaussian_filter(scene(shape=(256, 256)).astype(np.float64), 2))
    case = MetricCase(on_grid(degrade(clean, QUIET, np.random.default_rng(3))), clean, QUIET, margin=10)
    specs = [RESIDUAL_MEDIAN, RESIDUAL_BEYOND_3]
    true = evaluate(specs, clean, case).values
    assert true["residual_median"] == pytest.approx(0.6745, abs=0.01)
    assert true["residual_beyond_3"] == pytest.approx(0.0027, abs=0.001)
    shifted = evaluate(specs, on_grid(clean + 25.0), case).values
    assert shifted["residual_median"] is not None
    assert shifted["residual_median"] > 3
    assert shifted["residual_beyond_3"] is not None
    assert 0.5 < shifted["residual_beyond_3"] <= 1


def test_residual_without_noise_is_undefined() -> None:
    silent = Degradation(**{**MIDPOINT.as_dict(), "rx": 2.0, "ry": 2.0, "sigma": 0.0, "b": 0.0})
    black = np.zeros((64, 64), np.float32)
    with pytest.raises(UndefinedError, match="without noise"):
        consistency_residual(black, black, silent)


def rgb_tensor(path: Path) -> Any:
    import torch
    from PIL import Image

    array = np.asarray(Image.open(path).convert("RGB"), np.float64) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "published", "double"), [("ex_p0.png", 0.722, 0.7218807), ("ex_p1.png", 0.138, 0.1375656)]
)
def test_lpips_is_the_published_value(
    data_folder: Path, weights: Path, name: str, published: float, double: float
) -> None:
    network = perceptual.load_lpips(weights / perceptual.ALEXNET)
    pair = [rgb_tensor(data_folder / "lpips_example" / file) for file in ("ex_ref.png", name)]
    single = perceptual.lpips_distance(network, *(perceptual.lpips_features(network, one.float()) for one in pair))
    assert single == pytest.approx(published, abs=5e-4)
    network = network.double()
    exact = perceptual.lpips_distance(network, *(perceptual.lpips_features(network, one) for one in pair))
    assert exact == pytest.approx(double, abs=1e-6)
    assert exact == pytest.approx(float(network(*pair)), abs=1e-12)


@pytest.mark.data
def test_lpips_of_gray_images_is_the_packages_whole_forward_pass(weights: Path) -> None:
    reference, restored = scene(shape=(64, 90)), noisy(scene(shape=(64, 90)), 20)
    network = perceptual.load_lpips(weights / perceptual.ALEXNET)
    pair = [perceptual.to_tensor(image) for image in (reference, restored)]
    assert tuple(pair[0].shape) == (1, 3, 64, 90)
    found = evaluate([LPIPS], restored, MetricCase(restored, reference)).values["lpips"]
    assert found == pytest.approx(float(network(*pair)), abs=1e-6)


@pytest.mark.data
def test_lpips_of_the_oracle_is_zero_worse_is_larger_and_matching_undoes_contrast(weights: Path) -> None:
    reference = scene(shape=(96, 96))
    case = MetricCase(reference, reference)
    assert evaluate([LPIPS, LPIPS_MATCHED], reference.copy(), case).values == {"lpips": 0, "lpips_matched": 0}
    scores = [evaluate([LPIPS], noisy(reference, sigma), case).values["lpips"] or 0.0 for sigma in (2, 8, 40)]
    assert scores == sorted(scores)
    assert scores[0] > 0
    faint = evaluate([LPIPS, LPIPS_MATCHED], on_grid(0.4 * reference.astype(np.float64) + 60), case).values
    assert faint["lpips"] is not None
    assert faint["lpips_matched"] is not None
    assert faint["lpips_matched"] < 0.01 * faint["lpips"]


@pytest.mark.data
def test_loading_lpips_leaves_the_random_stream_alone(weights: Path) -> None:
    import torch

    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    network = perceptual.load_lpips(weights / perceptual.ALEXNET)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def niqe_or_skip() -> None:
    pytest.importorskip("cv2")
    if not perceptual._pyiqa_is_installed():
        pytest.skip("pyiqa is not installed")


@pytest.mark.data
def test_niqe_is_pyiqas_and_rises_with_noise(weights: Path) -> None:
    niqe_or_skip()
    from skimage.data import camera

    parameters = weights / perceptual.NIQE_PARAMETERS
    image = camera().astype(np.float32)
    assert perceptual.niqe(image, parameters) == pytest.approx(3.0959, abs=0.02)
    import pyiqa
    import torch

    part = noisy(image[:256, 100:356], 10)
    direct = pyiqa.create_metric("niqe", pretrained_model_path=str(parameters), device="cpu")
    tensor = torch.from_numpy(part / np.float32(255))[None, None]
    found = evaluate([NIQE], part, MetricCase(part)).values["niqe"]
    assert found == pytest.approx(float(direct(tensor)), abs=1e-6)
    noise = [perceptual.niqe(noisy(image, sigma), parameters) for sigma in (5, 15, 60)]
    assert noise == sorted(noise)
    assert noise[0] > 4


@pytest.mark.data
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_niqe_of_a_constant_image_is_undefined_with_a_reason(weights: Path, spread: float) -> None:
    niqe_or_skip()
    flat = np.full((192, 192), 100, np.float32)
    flat[::2] += np.float32(spread)
    found = evaluate([NIQE], flat, MetricCase(flat))
    assert found.values == {"niqe": None}
    assert "constant in whole gray levels" in found.reasons["niqe"]


def test_niqe_whose_model_cannot_be_fitted_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def singular(image: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    for metric in (singular, lambda image: torch.tensor(float("nan"))):
        monkeypatch.setattr(perceptual, "_niqe_metric", lambda parameters, metric=metric: metric)
        with pytest.raises(UndefinedError, match="too little structure"):
            perceptual.niqe(scene(shape=(192, 192)), "unused.mat")
