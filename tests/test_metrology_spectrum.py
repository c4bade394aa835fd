"""Spectra, noise and the roughness model, against direct sums, Bessel functions and edges of known roughness."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize
from scipy.signal import periodogram
from scipy.special import gamma, kv

from sembench.errors import InputError
from sembench.metrology.spectrum import (
    MOSTLY_NOISE,
    SMOOTHED,
    UNDETERMINED_XI,
    band_sigma,
    expected_power,
    fit_model,
    noise_floor,
    spectrum,
    standard_error,
)
from sembench.phantom import SUBPIXELS, palasantzas_psd, rough_edge


def matern(lag, sigma, xi, hurst):
    """Autocovariance of a rough edge (px^2), by the modified Bessel function."""
    r = abs(lag) / xi
    if r < 1e-9:
        return sigma**2
    return sigma**2 * 2 ** (1 - hurst) / gamma(hurst) * r**hurst * kv(hurst, r)


def direct_expectation(length, sigma, xi, hurst, noise, spacing=1.0):
    """One-sided expected periodogram: double sum over the autocovariance of averages over samples of this spacing."""

    def averaged(lag):
        return quad(
            lambda t: (1 - abs(t)) * matern((lag + t) * spacing, sigma, xi, hurst), -1, 1, points=[0], limit=300
        )[0]

    covariance = np.array([averaged(lag) for lag in range(length)])
    covariance[0] += noise
    n = np.arange(length)
    matrix = covariance[np.abs(n[:, None] - n)]
    power = []
    for j in range(length // 2 + 1):
        wave = np.exp(-2j * math.pi * j * n / length)
        sides = 1 if 2 * j in (0, length) else 2
        power.append(sides * spacing * (wave.conj() @ matrix @ wave).real / length)
    return np.array(power)


def edges(rng, rows, count, sigma, xi, hurst, noise=0.0):
    """Edges averaged over pixels, (rows, count), and white noise of a variance."""
    fine = np.stack([rough_edge(rng, rows, sigma, xi, hurst) for _ in range(count)], axis=1)
    return fine.reshape(rows, SUBPIXELS, count).mean(axis=1) + math.sqrt(noise) * rng.standard_normal((rows, count))


@given(
    length=st.integers(16, 90), count=st.integers(1, 5), seed=st.integers(0, 1000), spacing=st.sampled_from([1.0, 1.02])
)
@settings(max_examples=60, deadline=None)
def test_parseval(length, count, seed, spacing):
    curves = np.random.default_rng(seed).standard_normal((length, count)).cumsum(axis=0) + 40
    s = spectrum(curves, spacing)
    assert s.variance == pytest.approx(curves.var(axis=0).mean(), rel=1e-12)
    assert s.power.sum() * s.df == pytest.approx(s.variance, rel=1e-12)
    assert band_sigma(s, s.frequency[1], s.frequency[-1]) ** 2 == pytest.approx(s.variance, rel=1e-12)


@pytest.mark.parametrize("length", [64, 77])
def test_power_is_that_of_scipy(length):
    curves = np.random.default_rng(5).standard_normal((length, 3))
    frequency, power = periodogram(curves, fs=1 / 1.5, detrend="constant", axis=0)
    s = spectrum(curves, 1.5)
    assert s.frequency == pytest.approx(frequency)
    assert s.power == pytest.approx(power.mean(axis=1), abs=1e-12)


def test_a_sine_lies_in_its_band():
    y = np.arange(200)
    s = spectrum((2 * np.sin(2 * np.pi * y * 10 / 200) + 0.5 * np.cos(2 * np.pi * y * 60 / 200))[:, None])
    assert band_sigma(s, 0.04, 0.06) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert band_sigma(s, 0.05, 0.05) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert band_sigma(s, 0.1, 0.5) == pytest.approx(0.5 / math.sqrt(2), rel=1e-12)


@pytest.mark.parametrize(
    ("length", "sigma", "xi", "hurst", "noise", "spacing"),
    [
        (48, 1.0, 6.0, 0.5, 0.0, 1.0),
        (64, 0.7, 14.0, 0.3, 0.1, 1.0),
        (41, 2.0, 1.0, 0.9, 0.5, 1.0),
        (40, 1, 9, 0.7, 0, 2.0),
    ],
)
def test_expected_power_is_the_sum_over_the_autocovariance(length, sigma, xi, hurst, noise, spacing):
    ours = expected_power(length, sigma, xi, hurst, noise, spacing)
    assert ours[0] == 0
    assert ours[1:] == pytest.approx(direct_expectation(length, sigma, xi, hurst, noise, spacing)[1:], rel=2e-4)


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.85])
def test_long_edges_have_the_continuous_density(hurst):
    """Below a tenth of a cycle, folding, averaging and leakage are small for edges of 200 correlation lengths."""
    ours = expected_power(4096, 1.3, 20.0, hurst)
    frequency = np.arange(2049) / 4096
    band = (frequency > 2 / 4096) & (frequency < 0.02)
    assert ours[band] == pytest.approx(2 * palasantzas_psd(frequency[band], 1.3, 20.0, hurst), rel=0.02)


def test_power_of_drawn_edges_is_the_expected_one():
    rng = np.random.default_rng(11)
    s = spectrum(edges(rng, 256, 1500, 1.2, 15.0, 0.5, noise=0.2))
    ratio = s.power[1:] / expected_power(256, 1.2, 15.0, 0.5, 0.2)[1:]
    assert ratio.mean() == pytest.approx(1, abs=4 / math.sqrt(1500 * 128))
    assert np.abs(ratio - 1).max() < 5 / math.sqrt(1500)


@pytest.mark.parametrize("noise", [0.0, 0.26**2, 0.54**2, 1.1**2])
def test_known_roughness_comes_back(noise):
    """Medians over 15 sets of 60 edges; the noise is that of images of contrast-to-noise ratio 8, 4 and 2."""
    rng = np.random.default_rng(12)
    sigmas, lengths, hursts, noises = [], [], [], []
    for _ in range(15):
        sigma, xi, hurst = rng.uniform(0.8, 2), rng.uniform(8, 40), rng.uniform(0.3, 0.9)
        model = fit_model(spectrum(edges(rng, 768, 60, sigma, xi, hurst, noise)))
        assert model.converged
        sigmas.append(model.sigma / sigma - 1)
        lengths.append(model.xi / xi - 1)
        hursts.append(model.hurst - hurst)
        noises.append(model.noise_variance - noise)
    assert np.median(np.abs(sigmas)) < 0.03
    assert np.median(np.abs(lengths)) < 0.08
    assert np.median(np.abs(hursts)) < 0.08
    assert abs(np.median(hursts)) < 0.03
    assert np.median(np.abs(noises)) < max(0.02 * noise, 0.001)


def test_the_noise_of_the_fit_is_unbiased_and_that_of_the_floor_is_not():
    """Averaged over 40 images; the roughness above 0.4 cycles is booked as noise by the floor alone."""
    rng = np.random.default_rng(13)
    noise = 0.3
    fitted, floors = [], []
    for _ in range(40):
        s = spectrum(edges(rng, 512, 40, 1.5, 20.0, 0.5, noise))
        fitted.append(fit_model(s).noise_variance)
        floors.append(noise_floor(s))
    error = np.std(fitted, ddof=1) / math.sqrt(len(fitted))
    assert abs(np.mean(fitted) - noise) < 4 * error
    assert error < 0.005 * noise
    tail = expected_power(512, 1.5, 20.0, 0.5)[205:]
    assert np.mean(floors) - noise == pytest.approx(tail.mean() / 2, rel=0.2)
    assert np.mean(floors) - noise > 5 * error


@pytest.mark.parametrize("seed", range(6))
def test_the_optimum_is_the_one_that_a_simplex_finds(seed):
    """The same likelihood, written down anew, minimised by Nelder-Mead from the true parameters."""
    rng = np.random.default_rng([14, seed])
    sigma, xi, hurst, noise = rng.uniform(0.5, 2), rng.uniform(8, 30), rng.uniform(0.3, 0.9), rng.uniform(0.05, 1)
    length = (400, 401)[seed % 2]
    s = spectrum(edges(rng, length, 30, sigma, xi, hurst, noise))
    weight = np.where(2 * np.arange(s.power.size) == length, 0.5, 1.0)[1:]

    def cost(theta):
        if not 0.1 <= theta[2] <= 1.2:
            return 1e9
        expected = expected_power(length, math.exp(theta[0]), math.exp(theta[1]), theta[2], math.exp(theta[3]))[1:]
        return float(np.sum(weight * (np.log(expected) + s.power[1:] / expected)))

    truth = [math.log(sigma), math.log(xi), hurst, math.log(noise)]
    found = minimize(cost, truth, method="Nelder-Mead", options={"maxfev": 2000, "xatol": 1e-6, "fatol": 1e-9})
    model = fit_model(s)
    ours = [math.log(model.sigma), math.log(model.xi), model.hurst, math.log(model.noise_variance)]
    assert cost(ours) <= found.fun + 1e-6
    assert ours == pytest.approx(found.x, abs=2e-3)


def test_the_fit_scales_with_length():
    rng = np.random.default_rng(15)
    curves = edges(rng, 512, 20, 1.0, 12.0, 0.6, 0.2)
    one, scaled = fit_model(spectrum(curves)), fit_model(spectrum(0.8 * curves, 0.8))
    assert scaled.sigma == pytest.approx(0.8 * one.sigma, rel=1e-6)
    assert scaled.xi == pytest.approx(0.8 * one.xi, rel=1e-5)
    assert scaled.hurst == pytest.approx(one.hurst, rel=1e-5)
    assert scaled.noise_variance == pytest.approx(0.64 * one.noise_variance, rel=1e-5)


def test_width_of_white_edges():
    """Independent white edges of sigma 0.7: LER is 3 sigma, LWR sqrt 2 times that, and all of it is noise."""
    rng = np.random.default_rng(16)
    left, right = 0.7 * rng.standard_normal((2, 1000, 60))
    width = spectrum(right - left)
    error = 1 / math.sqrt(2 * 60_000)
    assert 3 * math.sqrt(spectrum(left).variance) == pytest.approx(2.1, rel=4 * error + 0.0005)
    assert 3 * math.sqrt(width.variance) == pytest.approx(2.1 * math.sqrt(2), rel=4 * error + 0.0005)
    assert noise_floor(width) == pytest.approx(2 * 0.49, rel=4 / math.sqrt(100 * 60))
    model = fit_model(width)
    assert MOSTLY_NOISE in model.flags or UNDETERMINED_XI in model.flags


def test_standard_error_is_the_scatter_over_images():
    rng = np.random.default_rng(17)
    spectra = [spectrum(edges(rng, 512, 10, 1.2, 12.0, 0.6)) for _ in range(150)]
    seen = np.std([s.variance for s in spectra], ddof=1)
    assert np.mean([standard_error(s) for s in spectra]) == pytest.approx(seen, rel=0.2)


def test_smoothing_along_the_line_is_flagged():
    rng = np.random.default_rng(18)
    curves = gaussian_filter1d(edges(rng, 1024, 60, 1.2, 15.0, 0.6), 3.0, axis=0)
    assert SMOOTHED in fit_model(spectrum(curves)).flags
    assert SMOOTHED not in fit_model(spectrum(edges(rng, 1024, 60, 1.2, 15.0, 0.6))).flags


def test_what_the_curves_cannot_tell_is_flagged():
    rng = np.random.default_rng(19)
    assert UNDETERMINED_XI in fit_model(spectrum(edges(rng, 256, 30, 1.2, 50.0, 0.6, 0.05))).flags
    assert MOSTLY_NOISE in fit_model(spectrum(edges(rng, 1024, 60, 0.4, 15.0, 0.6, 1.0))).flags
    assert fit_model(spectrum(edges(rng, 1024, 60, 1.2, 15.0, 0.6, 0.05))).flags == ()


def test_curves_that_do_not_vary():
    model = fit_model(spectrum(np.full((64, 2), 3.0)))
    assert not model.converged
    assert model.sigma == model.noise_variance == 0


@pytest.mark.parametrize(
    ("curves", "spacing", "words"),
    [
        (np.zeros(64), 1.0, "shape"),
        (np.zeros((8, 2)), 1.0, "16 samples"),
        (np.full((64, 1), np.nan), 1.0, "not finite"),
        (np.zeros((64, 2)), 0.0, "spacing"),
        (np.zeros((64, 2)), math.nan, "spacing"),
    ],
)
def test_bad_curves_are_named(curves, spacing, words):
    with pytest.raises(InputError, match=words):
        spectrum(curves, spacing)
