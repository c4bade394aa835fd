"""The classical restorers against the packages called directly, on every size, on flat and black images."""

import statistics
import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage import restoration

from restorers.fixed_kernel import fixed_kernel
from restorers.noise_level import noise_sigma
from restorers.richardson_lucy import richardson_lucy
from sembench.errors import InputError
from sembench.optics import airy_psf
from sembench.registry import RESTORERS, find_method, load_method, plugins
from sembench.restorer import Image

NAMES = [
    name
    for name in plugins(RESTORERS)
    if find_method(name).cls.kind == "restorer" and not find_method(name).cls.learns()
]
KEEP_INTENSITY = [name for name in NAMES if name not in ("richardson_lucy", "semfm_zero_shot")]
"""Richardson-Lucy takes what lies beyond its border as black, so a flat image rings; semfm draws what it expects."""


@lru_cache(maxsize=16)
def method(name: str) -> Any:
    """A ready restorer; the test is skipped where it cannot run."""
    found = load_method(name)
    needs = found.needs(found.settings)
    if needs:
        pytest.skip(str(needs[0]))
    return found


def micrograph(height: int, width: int, noise: float = 8.0) -> Image:
    """Bright blobs on a gray ground under normal noise of known sigma (gray levels)."""
    rng = np.random.default_rng(11)
    texture = gaussian_filter(rng.standard_normal((height, width)), 4)
    clean = 120 + 35 * np.tanh(2 * texture / texture.std())
    return np.clip(clean + rng.normal(0, noise, clean.shape), 0, 255).astype(np.float32)


def reflected(image: Image, half: int) -> NDArray[Any]:
    """Scaled to 0..1, the border reflected, written with numpy indices alone."""
    rows, columns = (np.abs((np.arange(-half, n + half) + n - 1) % (2 * n - 2) - (n - 1)) for n in image.shape)
    return (image / np.float32(255))[np.ix_(rows, columns)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_richardson_lucy_is_that_of_scikit_image(dtype: type) -> None:
    image: NDArray[Any] = np.asarray(micrograph(90, 77) / 255, dtype=dtype)
    kernel = airy_psf(6.0, 6.0, 1.95)
    ours = richardson_lucy(image, kernel, 12)
    assert ours.dtype == dtype
    free = restoration.richardson_lucy(image, kernel, 12, clip=False)
    np.testing.assert_allclose(ours, free, atol=1e-5 if dtype is np.float32 else 1e-10)
    clipped = restoration.richardson_lucy(image, kernel, 12, clip=True)
    np.testing.assert_allclose(np.clip(ours, 0, 1), np.clip(clipped, 0, 1), atol=1e-5)


@pytest.mark.parametrize("shape", [(120, 101), (32, 40)])
def test_deconvolutions_equal_a_direct_call_on_the_reflected_image(shape: tuple[int, int]) -> None:
    image = micrograph(*shape)
    kernel = fixed_kernel(15.5, 1.95)
    half = kernel.shape[0] // 2
    assert half == 46
    padded = reflected(image, half)
    inner = (slice(half, -half), slice(half, -half))
    direct = restoration.wiener(padded, kernel, 0.01)[inner]
    np.testing.assert_allclose(method("wiener").restore(image), np.clip(direct, 0, 1) * 255, atol=1e-3)
    direct = restoration.richardson_lucy(padded, kernel, 30)[inner]
    np.testing.assert_allclose(method("richardson_lucy").restore(image), np.clip(direct, 0, 1) * 255, atol=2e-2)


def test_tv_equals_a_direct_call() -> None:
    image = micrograph(96, 96)
    scaled = image / np.float32(255)
    direct = restoration.denoise_tv_chambolle(scaled, weight=2.5 * noise_sigma(scaled))
    np.testing.assert_allclose(method("tv").restore(image), direct * 255, atol=1e-3)


@pytest.mark.skipif(find_spec("bm3d") is None, reason="bm3d is not installed")
def test_bm3d_equals_a_direct_call() -> None:
    import bm3d

    image = micrograph(96, 96)
    profile = bm3d.BM3DProfile()
    profile.num_threads = 1
    direct = bm3d.bm3d(image / 255.0, noise_sigma(image) / 255, profile)
    np.testing.assert_allclose(method("bm3d").restore(image), np.clip(direct, 0, 1) * 255, atol=1e-2)


@pytest.mark.parametrize("sigma", [2.0, 8.0, 20.0])
def test_the_noise_level_is_the_one_that_was_added(sigma: float) -> None:
    flat = 128 + np.random.default_rng(3).normal(0, sigma, (96, 96))
    assert noise_sigma(flat) == pytest.approx(sigma, rel=0.15)


def test_the_noise_level_is_the_published_formula() -> None:
    image = micrograph(40, 50).astype(np.float64)
    edged = np.pad(image, 1, mode="symmetric")
    residual = [image[y, x] - sorted(edged[y : y + 3, x : x + 3].ravel())[4] for y in range(40) for x in range(50)]
    middle = statistics.median(residual)
    spread = statistics.median(abs(value - middle) for value in residual)
    assert noise_sigma(image) == pytest.approx(spread / 0.6745, rel=1e-12)


def test_gaussian_and_median_on_an_impulse() -> None:
    image = np.zeros((41, 41), np.float32)
    image[20, 20] = 250
    gaussian = load_method("gaussian", {"sigma": 2.0}).restore(image)
    distance2 = (np.arange(41)[:, None] - 20) ** 2 + (np.arange(41)[None] - 20) ** 2
    weights = np.exp(-distance2 / 8.0)
    np.testing.assert_allclose(gaussian, 250 * weights / weights.sum(), atol=0.01)
    assert not load_method("median", {"size": 3}).restore(image).any()


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("gaussian", "sigma", (0, -1, 51)),
        ("median", "size", (0, 32)),
        ("tv", "strength", (0, 51)),
        ("richardson_lucy", "iterations", (0, 1001)),
        ("richardson_lucy", "radius", (0.4, 61)),
        ("wiener", "balance", (0, 2e6)),
        ("wiener", "beta", (0.9, 3.1)),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(name: str, setting: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"{name}.*{setting}") as refusal:
            load_method(name, {setting: value})
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (65, 70)])
@pytest.mark.parametrize("name", NAMES)
def test_contract_on_every_size(name: str, shape: tuple[int, int]) -> None:
    image = micrograph(*shape)
    before = image.copy()
    image.setflags(write=False)
    restored = method(name).restore(image)
    assert restored.shape == shape
    assert restored.dtype == np.float32
    assert np.isfinite(restored).all()
    assert restored.min() >= 0
    assert restored.max() <= 255
    assert np.array_equal(image, before)
    first = restored.tobytes()
    assert method(name).restore(image).tobytes() == first
    assert load_method(name).restore(image).tobytes() == first


@pytest.mark.parametrize("level", [0.0, 77.0, 255.0])
@pytest.mark.parametrize("name", NAMES)
def test_flat_images(name: str, level: float) -> None:
    flat = np.full((64, 50), level, np.float32)
    restorer = method(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = restorer.restore(flat)
    assert np.isfinite(restored).all()
    if name == "semfm_zero_shot":
        np.testing.assert_allclose(restored, flat, atol=6)
    elif name in KEEP_INTENSITY or level == 0:
        np.testing.assert_allclose(restored, flat, atol=1e-2)
    else:
        assert restored.mean() == pytest.approx(level, rel=0.1)
