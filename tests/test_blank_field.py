"""A blank field with an image's own noise: it has that noise and nothing else, and tells who draws out of it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d, maximum_filter

from sembench.checks.subject import scene
from sembench.execution.blank_field import blank_field, invented_in
from sembench.metrics.table import UndefinedError
from sembench.restorer import Image


def noisy(shape: tuple[int, int], sigma: float, along_x: float = 0.0) -> Image:
    """A smooth scene under normal noise of this deviation, correlated along x by a Gaussian of so many px."""
    clean = 120 + 0.8 * (gaussian_filter(scene(*shape), 4) - 120)
    noise = np.random.default_rng(3).normal(0, 1, shape)
    noise = gaussian_filter1d(noise, along_x, axis=1) if along_x else noise
    return np.clip(clean + sigma * noise / noise.std(), 0, 255).astype(np.float32)


@pytest.mark.parametrize("along_x", [0.0, 1.0])
@pytest.mark.parametrize("sigma", [4.0, 12.0])
def test_the_field_is_flat_and_as_noisy_as_the_image(sigma: float, along_x: float) -> None:
    image = noisy((400, 480), sigma, along_x)
    blank = blank_field(image, "a")
    assert (blank.shape, blank.dtype) == ((256, 256), np.float32)
    assert blank.mean() == pytest.approx(image.mean(), abs=0.5)
    assert blank.std() == pytest.approx(sigma, rel=0.1)
    lag = np.corrcoef(blank[:, 1:].ravel(), blank[:, :-1].ravel())[0, 1]
    assert lag == pytest.approx(np.exp(-0.25) if along_x else 0, abs=0.06), "a Gaussian of 1 px: exp(-1/4)"
    quiet = gaussian_filter(blank, 8).std() / gaussian_filter(image, 8).std()
    assert quiet < 0.2, "the scene is gone"


def test_the_field_is_drawn_by_name_and_no_larger_than_the_image() -> None:
    image = noisy((60, 300), 8)
    one, same, other = (blank_field(image, name) for name in ("a", "a", "b"))
    assert one.shape == (60, 256)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def draws_particles(image: Image) -> Image:
    """Takes the highest bumps of the noise for particles."""
    smooth = gaussian_filter(image, 3)
    peaks = (smooth == maximum_filter(smooth, 31)) & (smooth > np.percentile(smooth, 98))
    return np.asarray(image.mean() + 60 * np.minimum(1, 40 * gaussian_filter(peaks.astype(np.float64), 3)), np.float32)


def test_who_draws_out_of_noise_is_told_from_who_leaves_it_or_takes_it_away() -> None:
    image = noisy((300, 300), 10)
    assert invented_in(lambda part: part, image, "a") == 1
    assert invented_in(lambda part: np.full_like(part, 99), image, "a") == pytest.approx(0, abs=1e-6)
    for sigma in (1.0, 4.0):
        found = invented_in(lambda part, s=sigma: gaussian_filter(part, s), image, "a")
        assert found == pytest.approx(2 / np.sqrt(4 + sigma**2), rel=0.08)
    assert invented_in(draws_particles, image, "a") > 2


def test_the_field_is_read_only_and_an_image_without_noise_has_none() -> None:
    def writes(part: Image) -> Image:
        part[0] = 0
        return part

    with pytest.raises(ValueError, match="read-only"):
        invented_in(writes, noisy((64, 64), 5), "a")
    with pytest.raises(UndefinedError, match="no noise"):
        invented_in(lambda part: part, np.full((64, 64), 7, np.float32), "a")


def test_of_a_large_image_the_middle_is_enough() -> None:
    image = noisy((1300, 1100), 6)
    assert blank_field(image, "a").std() == pytest.approx(6, rel=0.1)
