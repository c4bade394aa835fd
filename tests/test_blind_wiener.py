"""blind_wiener: its transfer function, the kernels it reads off known spectra, its filter and its safeguards."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from restorers.blind_wiener import (
    BlindWiener,
    KernelEstimate,
    bin_means,
    coarse_bins,
    cutoff_ratio,
    estimate,
    fine_bins,
    periodogram,
    wiener,
)
from restorers.blind_wiener import _Likelihood as Likelihood
from sembench.errors import InputError
from sembench.optics import airy_psf, aperture_transfer, degrade_case
from sembench.restorer import Image


def power_law(shape: tuple[int, int], gamma: float, seed: int, contrast: float = 40.0) -> NDArray[np.float64]:
    """A normal random field whose power spectrum falls as |f|^-gamma, mean 120."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    amplitude = (fx**2 + fy**2 + 1e-5) ** (-gamma / 4)
    amplitude[0, 0] = 0
    white = np.fft.rfft2(np.random.default_rng(seed).normal(size=shape))
    field = np.fft.irfft2(white * amplitude, s=shape)
    return 120 + contrast * field / field.std()


def blurred(
    scene: NDArray[np.float64], kernel: tuple[float, float, float], sigma: float, seed: int = 9
) -> tuple[Image, NDArray[np.float64]]:
    """The scene through the exact elliptical aperture (periodic), with white noise."""
    fy, fx = np.fft.fftfreq(scene.shape[0])[:, None], np.fft.rfftfreq(scene.shape[1])[None, :]
    transfer = aperture_transfer(cutoff_ratio(fx, fy, *kernel))
    image = np.fft.irfft2(np.fft.rfft2(scene) * transfer, s=scene.shape)
    image += np.random.default_rng(seed).normal(0, sigma, scene.shape)
    return image.astype(np.float32), scene


def mean_square(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.mean((first.astype(np.float64) - second) ** 2))


def test_transfer_is_that_of_the_airy_kernel() -> None:
    kernel = airy_psf(18.0, 9.0, 2.0, 0.7)
    axis = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    frequencies = np.linspace(-0.1, 0.1, 41)
    waves = np.exp(-2j * np.pi * np.outer(frequencies, axis))
    numeric = (waves @ kernel @ waves.T).real
    fy, fx = np.meshgrid(frequencies, frequencies, indexing="ij")
    formula = aperture_transfer(cutoff_ratio(fx, fy, 18.0, 9.0, 0.7))
    # the kernel is cut at three radii, where some 3 % of an Airy pattern's energy still lies outside
    assert np.abs(numeric - formula).max() < 0.05
    assert np.sqrt(np.mean((numeric - formula) ** 2)) < 0.012


def test_transfer_is_the_overlap_of_two_discs() -> None:
    y, x = np.mgrid[-700:701, -700:701] / 350.0
    disc = x**2 + y**2 <= 1
    for rho in (0.0, 0.25, 0.5, 0.9):
        overlap = (disc & ((x - 2 * rho) ** 2 + y**2 <= 1)).sum() / disc.sum()
        assert float(aperture_transfer(np.array(rho))) == pytest.approx(overlap, abs=2e-3)
    assert float(aperture_transfer(np.array(1.3))) == 0.0


@pytest.mark.parametrize("bins_of", [fine_bins, coarse_bins])
@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (64, 200)])
def test_bins_hold_every_independent_frequency_once(bins_of: object, shape: tuple[int, int]) -> None:
    bins = bins_of(shape)  # type: ignore[operator]
    frequencies = {
        (round(fy * shape[0]) % shape[0], round(fx * shape[1]) % shape[1])
        for fy in np.fft.fftfreq(shape[0])
        for fx in np.fft.fftfreq(shape[1])
        if np.hypot(fx, fy) >= 1.5 / min(shape)
    }
    own_mirror = sum((-ky % shape[0], -kx % shape[1]) == (ky, kx) for ky, kx in frequencies)
    both = sum(((-ky % shape[0], -kx % shape[1]) in frequencies) for ky, kx in frequencies)
    assert both == len(frequencies)
    expected = (len(frequencies) - own_mirror) // 2 + own_mirror
    assert bins.size.sum() == expected


def test_white_noise_has_a_flat_periodogram_at_its_variance() -> None:
    noise = np.random.default_rng(2).normal(0, 7, (256, 256))
    bins = fine_bins((256, 256))
    power = bin_means(periodogram(noise), bins)
    assert np.average(power, weights=bins.size) == pytest.approx(49, rel=0.03)


def test_gradient_is_that_of_the_value() -> None:
    image, _ = blurred(power_law((128, 128), 2.4, 0), (6.0, 3.0, 0.5), 5.0)
    bins = coarse_bins((128, 128))
    likelihood = Likelihood(bin_means(periodogram(image), bins), bins)
    vector = np.array([[1.0, 2.1, 1.4, 0.2, 0.3, 3.0, -0.5, 0.2, -0.1, 0.05]])
    free = np.ones(10, dtype=bool)
    gradient = likelihood(vector, free)[1][0]
    for index in range(10):
        step = np.zeros((1, 10))
        step[0, index] = 1e-5
        numeric = (likelihood(vector + step, free)[0] - likelihood(vector - step, free)[0])[0] / 2e-5
        assert gradient[index] == pytest.approx(numeric, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("kernel", "gamma", "sigma"),
    [
        ((12.0, 12.0, 0.0), 2.3, 3.0),
        ((20.0, 8.0, 0.6), 2.0, 5.0),
        ((4.0, 9.0, 0.3), 2.8, 3.0),
        ((3.0, 3.0, 0.0), 2.2, 8.0),
    ],
)
def test_radii_are_recovered_from_a_known_spectrum(
    kernel: tuple[float, float, float], gamma: float, sigma: float
) -> None:
    image, _ = blurred(power_law((384, 320), gamma, 5), kernel, sigma)
    found = estimate(image)
    rx, ry = sorted((found.rx, found.ry))
    assert rx == pytest.approx(min(kernel[:2]), rel=0.12)
    assert ry == pytest.approx(max(kernel[:2]), rel=0.12)
    assert found.noise == pytest.approx(sigma**2, rel=0.05)
    if kernel[0] != kernel[1]:
        turned = found.theta + (np.pi / 2 if (found.rx > found.ry) != (kernel[0] > kernel[1]) else 0)
        assert abs((turned - kernel[2] + np.pi / 2) % np.pi - np.pi / 2) < 0.08


def test_noise_correlated_along_x_is_not_taken_for_blur() -> None:
    rng = np.random.default_rng(8)
    spectrum = np.exp(-((2 * np.pi * 0.7 * np.fft.rfftfreq(320)) ** 2)) + 0.01
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(320, 320))) * np.sqrt(spectrum), s=(320, 320))
    image = power_law((320, 320), 2.6, 3, 30.0) + 20 * noise / noise.std()
    found = estimate(image.astype(np.float32))
    assert found.noise_correlation == pytest.approx(0.7, abs=0.1)


def test_a_known_kernel_is_held() -> None:
    image, _ = blurred(power_law((256, 256), 2.4, 1), (9.0, 5.0, 0.4), 4.0)
    found = estimate(image, kernel=(9.0, 5.0, 0.4))
    assert (found.rx, found.ry, found.theta) == pytest.approx((9.0, 5.0, 0.4), rel=1e-9)
    assert found.gamma == pytest.approx(2.4, abs=0.2)
    assert found.noise == pytest.approx(16.0, rel=0.05)


def test_wiener_with_everything_known_comes_near_its_own_prediction() -> None:
    shape, kernel, sigma = (256, 256), (6.0, 3.0, 0.4), 4.0
    image, scene = blurred(power_law(shape, 2.4, 6), kernel, sigma)
    known = estimate(image, kernel=kernel)
    restored = wiener(image, known, radius_uncertainty=0.0)
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    signal = (fx**2 + fy**2 + 1e-5) ** -1.2
    signal[0, 0] = 0
    signal *= scene.var() / signal.mean()
    transfer = aperture_transfer(cutoff_ratio(fx, fy, *kernel))
    predicted = float((signal * sigma**2 / (transfer**2 * signal + sigma**2)).mean())
    inner = (slice(24, -24), slice(24, -24))
    assert mean_square(restored[inner], scene[inner]) == pytest.approx(predicted, rel=0.12)
    assert mean_square(restored, scene) < 0.7 * mean_square(image, scene)
    assert restored.mean() == pytest.approx(image.mean(), abs=0.5)


def test_uncertain_radii_lower_the_gain_and_border_passes_the_error() -> None:
    image, scene = blurred(power_law((300, 300), 2.2, 7), (18.0, 4.0, 0.8), 1.0)
    image, scene = image[:200, :220], scene[:200, :220]
    known = estimate(image, kernel=(18.0, 4.0, 0.8))
    sharp = wiener(image, known, radius_uncertainty=0.0, border_passes=0)
    assert wiener(image, known, radius_uncertainty=0.2, border_passes=0).std() < sharp.std()
    assert mean_square(wiener(image, known, border_passes=3), scene) < 0.8 * mean_square(sharp, scene)


def test_power_beyond_the_cutoff_refuses_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A texture that lies beyond the cut-off of a kernel cannot have passed it."""
    rng = np.random.default_rng(11)
    image, _ = blurred(power_law((256, 256), 2.4, 2), (12.0, 12.0, 0.0), 3.0)
    assert abs(estimate(image).excess) < 3.5
    ring = np.fft.rfft2(rng.normal(size=(256, 256)))
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    beyond = np.fft.irfft2(ring * ((radius > 0.09) & (radius < 0.12)), s=(256, 256))
    image = (image + 1.5 * beyond / beyond.std()).astype(np.float32)
    held = estimate(image, kernel=(12.0, 12.0, 0.0))
    assert held.excess > 3.5
    monkeypatch.setattr("restorers.blind_wiener.estimate", lambda image, starts: held)
    refused = BlindWiener().restore(image)
    np.testing.assert_array_equal(refused, np.clip(wiener(image, held, deblur=False), 0, 255))
    lenient = BlindWiener({"excess_limit": 100.0}).restore(image)
    np.testing.assert_array_equal(lenient, np.clip(wiener(image, held), 0, 255))


def test_a_sharp_scan_is_not_sharpened_beyond_its_truth() -> None:
    """Noise with the lags of real fast scans, 0.48 and 0.07 along x, on a scene without blur: a kernel of about 3 px
    is found, and undoing it would raise the error.
    """
    lags = np.zeros(256)
    lags[[0, 1, -1, 2, -2]] = 1.0, 0.48, 0.48, 0.07, 0.07
    shape = np.sqrt(np.maximum(np.fft.fft(lags).real, 0))
    white = np.random.default_rng(3).normal(size=(256, 256))
    noise = np.fft.ifft(np.fft.fft(white, axis=1) * shape, axis=1).real
    scene = power_law((256, 256), 2.6, 4, 30.0)
    image = (scene + 18 * noise / noise.std()).astype(np.float32)
    found = estimate(image)
    assert max(found.rx, found.ry) > 1.5
    left = BlindWiener().restore(image)
    sharpened = BlindWiener({"least_radius": 0.0}).restore(image)
    as_blurred = BlindWiener({"degradation": "paper", "least_radius": 9.0}).restore(image)
    assert mean_square(left, scene) < 0.8 * mean_square(sharpened, scene)
    inside = (sharpened > 13) & (sharpened < 255)
    np.testing.assert_allclose(as_blurred[inside], (sharpened[inside] - 13) / 1.045, atol=1e-3)


def test_a_defocus_of_five_pixels_is_still_undone_in_scans() -> None:
    image, scene = blurred(power_law((256, 256), 2.4, 2), (5.0, 5.0, 0.0), 2.0)
    restored = BlindWiener().restore(image)
    np.testing.assert_array_equal(restored, BlindWiener({"least_radius": 0.0}).restore(image))
    assert mean_square(restored, scene) < 0.8 * mean_square(image, scene)


def test_denoising_alone_never_amplifies() -> None:
    image, _ = blurred(power_law((128, 128), 2.4, 2), (8.0, 5.0, 0.3), 6.0)
    found = estimate(image)
    assert wiener(image, found, deblur=False).std() < image.std() < wiener(image, found).std() * 1.5


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (32, 301), (150, 97)])
@pytest.mark.parametrize("kind", ["noise", "ramp", "point", "sharp", "binary"])
def test_any_image_is_restored_without_a_warning(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    y, x = np.indices(shape)
    image = {
        "noise": rng.normal(128, 60, shape),
        "ramp": x + 0.5 * y,
        "point": np.where((y == 15) & (x == 16), 255.0, 0.0),
        "sharp": power_law(shape, 1.8, 1),
        "binary": np.where((x // 5 + y // 7) % 2, 255.0, 0.0),
    }[kind]
    image = np.clip(image, 0, 255).astype(np.float32)
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = BlindWiener().restore(image)
    assert restored.dtype == np.float32
    assert restored.shape == shape
    assert np.isfinite(restored).all()
    assert restored.min() >= 0
    assert restored.max() <= 255
    np.testing.assert_array_equal(restored, BlindWiener().restore(image))


def test_a_flat_image_stays_as_it_is() -> None:
    flat = np.full((40, 50), 117.5, dtype=np.float32)
    np.testing.assert_array_equal(BlindWiener().restore(flat), flat)
    np.testing.assert_allclose(BlindWiener({"degradation": "paper"}).restore(flat), 100.0, atol=1e-4)
    with pytest.raises(InputError, match="flat image"):
        estimate(flat)


def test_paper_gain_and_offset_are_undone_and_no_other() -> None:
    image, _ = blurred(power_law((96, 96), 2.4, 2), (5.0, 5.0, 0.0), 4.0)
    plain = BlindWiener().restore(image)
    np.testing.assert_array_equal(BlindWiener({"degradation": "broad"}).restore(image), plain)
    undone = BlindWiener({"degradation": "paper"}).restore(image)
    np.testing.assert_allclose(undone, np.clip((plain - 13) / 1.045, 0, 255), atol=1e-3)


def test_bad_images_and_settings_are_refused() -> None:
    with pytest.raises(InputError, match="2-D"):
        BlindWiener().restore(np.zeros((40, 40, 3), dtype=np.float32))
    with pytest.raises(InputError, match="finite"):
        BlindWiener().restore(np.full((40, 40), np.inf, dtype=np.float32))
    with pytest.raises(ValidationError):
        BlindWiener({"radius_uncertainty": 2.0})


def test_estimate_is_a_plain_record() -> None:
    kernel = KernelEstimate(rx=3.0, ry=4.0, theta=0.1, amplitude=1.0, gamma=2.0, noise=4.0)
    assert kernel.noise_correlation == 0.03
    assert kernel.excess == 0.0


@pytest.mark.data
def test_eight_real_fields_beat_a_gaussian(data_folder: Path) -> None:
    """Mean of the first field of eight images: well above a Gaussian whose gain and offset are undone."""
    from sembench.micrograph import read

    with (data_folder / "semcorpus" / "manifest.csv").open(newline="", encoding="utf-8") as table:
        crops = {row["file"]: row["crop_px"].split(",") for row in csv.DictReader(table) if row["crop_px"]}
    with (data_folder / "s2s_fields.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))[::13][:8]
    gains = []
    for row in rows:
        top, bottom, left, right = (int(v) for v in crops[row["file"]])
        whole = read(data_folder / "semcorpus" / row["file"], crop=(top, bottom, left, right)).pixels
        x, y = int(row["x"]), int(row["y"])
        field = whole[y : y + 512, x : x + 512].astype(np.float32)
        image, _ = degrade_case(field, 2604, row["field_id"])
        restored = BlindWiener({"degradation": "paper"}).restore(image)
        smoothed = (gaussian_filter(image.astype(np.float64), 1.0) - 13) / 1.045
        gains.append(10 * np.log10(mean_square(smoothed, field) / mean_square(restored, field)))
    assert min(gains) > 0
    assert np.mean(gains) > 1.0
