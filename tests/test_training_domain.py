"""What counts as outside of a training degradation: silent on its own draws, loud on what it has never drawn."""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy import fft
from scipy.ndimage import gaussian_filter1d

from sembench import phantom
from sembench.errors import InputError
from sembench.fast_scan import noise_variance
from sembench.micrograph import read, to_grid
from sembench.optics import DEGRADATION_RANGES, Degradation, airy_psf, blur, degrade
from sembench.restorer import Budget, Image, TrainingSet
from sembench.training_domain import Outside, outside

BOTH = pytest.mark.parametrize("degradation", ["paper", "broad"])
SIDE = 320


@lru_cache
def scenes() -> tuple[Image, ...]:
    return tuple(to_grid(phantom.corpus_scene(2604, f"T{i:03d}", SIDE).image) for i in range(1, 5))


def ordinary(index: int = 0, sigma: float = 4.0) -> Image:
    parameters = Degradation(rx=3, ry=3, beta=1.95, theta=0, a=1.0, b=5, sigma=sigma, dose=20)
    return degrade(scenes()[index], parameters, np.random.default_rng(index))


def noise(sigma: float, shape: tuple[int, int] = (256, 300), seed: int = 1) -> Image:
    return np.random.default_rng(seed).normal(128, sigma, shape).clip(0, 255).astype(np.float32)


def power_law(exponent: float, side: int, seed: int = 5) -> np.ndarray:
    """A random scene of mean 128 and standard deviation 30 with power |f|^-exponent, (side, side)."""
    frequency = np.hypot(fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    white = fft.rfft2(np.random.default_rng(seed).normal(size=(side, side)))
    shaped = fft.irfft2(white * frequency ** (-exponent / 2), s=(side, side))
    return 128 + 30 * shaped / shaped.std()


def quantities(image: Image, degradation: str) -> list[str]:
    return [part.quantity for part in outside(image, degradation)]


@BOTH
def test_false_alarms_on_patches_as_drawn_in_training(degradation: str) -> None:
    training = TrainingSet(scenes(), scenes()[:1], degradation, Budget("draws", 24, batch=1), seed=3)
    found = [outside(training.batch(step)[0].degraded, degradation) for step in range(24)]
    alarms = [parts for parts in found if parts]
    print(f"{degradation}: {len(alarms)} of {len(found)} patches told to lie outside: {alarms}")
    assert len(alarms) <= 1


@pytest.mark.parametrize("index", range(4))
@BOTH
def test_ordinary_scans_are_inside(degradation: str, index: int) -> None:
    assert outside(ordinary(index), degradation) == ()


def test_a_fast_scan_is_inside_broad_and_too_noisy_for_paper() -> None:
    signal = scenes()[0].astype(np.float64)
    white = gaussian_filter1d(np.random.default_rng(2).normal(size=signal.shape), 0.6, axis=1)
    scan = to_grid(signal + np.sqrt(noise_variance(signal)) * white / white.std())
    assert outside(scan, "broad") == ()
    assert quantities(scan, "paper") == ["noise"]


@pytest.mark.data
def test_real_fast_scans_are_inside_broad(data_folder: Path) -> None:
    files = sorted((data_folder / "kriss").glob("*_input.tif.xz"))[::5]
    assert len(files) == 12
    assert [quantities(to_grid(read(file).pixels), "broad") for file in files] == [[]] * 12


@BOTH
@pytest.mark.parametrize("sigma", [6.0, 14.0, 40.0])
@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_pure_noise_has_no_structure(degradation: str, sigma: float, correlation: float) -> None:
    image = noise(sigma)
    if correlation:
        white = gaussian_filter1d(np.random.default_rng(4).normal(size=image.shape), correlation, axis=1, mode="wrap")
        image = (128 + sigma * white / white.std()).clip(0, 255).astype(np.float32)
    assert "structure" in quantities(image, degradation)


@BOTH
def test_uniform_noise_is_both_too_strong_and_without_structure(degradation: str) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (256, 256)).astype(np.float32)
    assert quantities(image, degradation) == ["noise", "structure"]


@BOTH
@pytest.mark.parametrize("level", [0.0, 100.0, 255.0])
def test_a_constant_image_has_no_range(degradation: str, level: float) -> None:
    (part,) = outside(np.full((256, 256), level, np.float32), degradation)
    assert (part.quantity, part.found) == ("range of gray levels", 0.0)
    assert "--range" in str(part)


@BOTH
def test_twelve_bits_in_sixteen_read_without_a_range_are_told(degradation: str) -> None:
    assert "range of gray levels" in quantities(ordinary() * np.float32(4095 / 65535), degradation)


@BOTH
def test_saturation_over_a_large_part(degradation: str) -> None:
    image = ordinary(1)
    image[: SIDE // 3] = 255
    (part,) = outside(image, degradation)
    assert part.quantity == "saturated"
    assert part.found == pytest.approx(100 / 3, abs=1.5)
    bar = ordinary(1)
    bar[-round(0.0667 * SIDE) :] = 0
    assert outside(bar, degradation) == (), "a data bar is no saturation"


@BOTH
@pytest.mark.parametrize("sigma", [70.0, 90.0])
def test_noise_far_above_the_largest(degradation: str, sigma: float) -> None:
    rng = np.random.default_rng(7)
    image = (scenes()[2] + rng.normal(0, sigma, scenes()[2].shape)).astype(np.float32)
    part = {part.quantity: part for part in outside(image, degradation)}["noise"]
    ranges = DEGRADATION_RANGES[degradation]
    most = math.sqrt(ranges["sigma"][1] ** 2 + float(image.mean()) / ranges["dose"][0])
    assert part.found == pytest.approx(sigma, rel=0.05)
    assert part.limit == pytest.approx(most, rel=1e-6)


@BOTH
def test_hardly_any_noise_is_told(degradation: str) -> None:
    smooth = degrade(scenes()[0], Degradation(rx=3, ry=3, beta=1.95, theta=0, a=1, b=5, sigma=1, dose=1), None)
    assert "noise" in quantities(smooth, degradation)


@lru_cache
def blurred(radius: float, exponent: float) -> Image:
    """A power-law scene after a blur, 512 x 512, of standard deviation 25 under noise of 4."""
    kernel = airy_psf(radius, radius, 1.95)
    half = kernel.shape[0] // 2
    scene = blur(power_law(exponent, 512 + 2 * half), kernel)[half:-half, half:-half]
    scene = 128 + (scene - scene.mean()) * 25 / scene.std()
    return (scene + np.random.default_rng(8).normal(0, 4, scene.shape)).clip(0, 255).astype(np.float32)


@pytest.mark.parametrize("exponent", [2.0, 3.0])
@pytest.mark.parametrize("radius", [60.0, 90.0])
@BOTH
def test_a_blur_far_above_the_largest(degradation: str, radius: float, exponent: float) -> None:
    (part,) = outside(blurred(radius, exponent), degradation)
    assert part.quantity == "blur radius"
    assert part.found == pytest.approx(radius, rel=0.25)
    assert part.limit == {"paper": 30, "broad": 32}[degradation]


@pytest.mark.parametrize("exponent", [2.0, 3.0])
@BOTH
def test_the_largest_blur_that_was_trained_is_inside(degradation: str, exponent: float) -> None:
    assert outside(blurred(29.0, exponent), degradation) == ()


@pytest.mark.parametrize("shape", [(32, 32), (33, 300), (223, 320)])
def test_fields_smaller_than_a_patch_are_told(shape: tuple[int, int]) -> None:
    part = outside(np.ascontiguousarray(ordinary()[: shape[0], : shape[1]]), "broad")[0]
    assert (part.quantity, part.found, part.limit) == ("shorter side", min(shape), 224)


@BOTH
def test_mirrored_and_half_turned_images_are_judged_alike(degradation: str) -> None:
    for image in (ordinary(), noise(50), ordinary(1) / 20):
        told = [str(part) for part in outside(image, degradation)]
        for other in (image[::-1], image[:, ::-1], image[::-1, ::-1]):
            assert [str(part) for part in outside(np.ascontiguousarray(other), degradation)] == told


def test_a_large_image_is_judged_as_its_parts() -> None:
    assert outside(np.tile(ordinary(), (4, 8)), "broad") == ()
    assert quantities(noise(30, (1100, 2300)), "broad") == ["structure"]


def test_refusals() -> None:
    with pytest.raises(InputError, match="'wide' is not known"):
        outside(ordinary(), "wide")
    with pytest.raises(InputError, match="3-D"):
        outside(np.zeros((64, 64, 3), np.float32), "broad")


def test_what_is_told_is_one_line_with_the_limit_and_by_how_much() -> None:
    above = Outside("noise", 50.0, 25.0, " gray levels", "scan slower")
    below = Outside("shorter side", 56, 224, " px", "give a larger field")
    assert str(above) == "noise 50 gray levels (at most 25, 2 times that): scan slower"
    assert str(below) == "shorter side 56 px (at least 224, 4 times as much): give a larger field"
    assert str(Outside("range", 0.0, 20.0, "", "check")) == "range 0 (at least 20): check"
