"""The spread over eight turned and mirrored images, against a slow transcription and an analytic case."""

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from sembench.restorer import Image, Restorer
from sembench.symmetry import turned_spread


def scene(height: int, width: int) -> Image:
    return np.random.default_rng(3).uniform(0, 255, (height, width)).astype(np.float32)


def along_x(image: Image) -> Image:
    """Smooths along x only, and adds a ramp down the rows: no two orientations give the same."""
    ramp = np.linspace(0, 9, image.shape[0], dtype=np.float32)[:, None]
    return gaussian_filter1d(image, 2.0, axis=1) + ramp


def test_it_is_the_standard_deviation_over_the_symmetries_of_the_square() -> None:
    image = scene(33, 47)
    there_and_back: list[tuple[Any, Any]] = [
        (lambda a: a, lambda a: a),
        (lambda a: a[::-1], lambda a: a[::-1]),
        (lambda a: a[:, ::-1], lambda a: a[:, ::-1]),
        (lambda a: a[::-1, ::-1], lambda a: a[::-1, ::-1]),
        (lambda a: a.T, lambda a: a.T),
        (lambda a: a.T[::-1], lambda a: a[::-1].T),
        (lambda a: a.T[:, ::-1], lambda a: a[:, ::-1].T),
        (lambda a: a.T[::-1, ::-1], lambda a: a[::-1, ::-1].T),
    ]
    results = [back(along_x(np.ascontiguousarray(there(image)))) for there, back in there_and_back]
    expected = np.std(np.stack(results).astype(np.float64), axis=0, ddof=1)
    spread = turned_spread(along_x, image)
    assert spread.dtype == np.float32
    assert spread.shape == image.shape
    np.testing.assert_allclose(spread, expected, atol=1e-4)
    assert expected.mean() > 1


def test_a_ramp_added_in_every_orientation_spreads_by_its_distance_from_the_centre() -> None:
    side = 41
    ramp = np.tile(np.arange(side, dtype=np.float32) - side // 2, (side, 1))
    spread = turned_spread(lambda image: image + ramp, scene(side, side))
    v, u = np.mgrid[:side, :side] - side // 2
    np.testing.assert_allclose(spread, np.sqrt(4 * (u**2 + v**2) / 7), atol=2e-3)


def test_a_method_without_a_direction_has_none() -> None:
    spread = turned_spread(lambda image: gaussian_filter(image.astype(np.float64), 1.5), scene(40, 52))
    assert spread.max() < 1e-4


def test_the_method_sees_plain_images_that_it_cannot_change() -> None:
    seen = []

    def look(image: Image) -> Image:
        assert image.flags.c_contiguous
        assert not image.flags.writeable
        assert image.dtype == np.float32
        seen.append(image.shape)
        return image

    image = scene(32, 50)
    before = image.copy()
    assert turned_spread(look, image).max() == 0
    assert sorted(seen) == [(32, 50)] * 4 + [(50, 32)] * 4
    np.testing.assert_array_equal(image, before)


class Smooths(Restorer):
    """Smooths along x."""

    def restore(self, image: Image, /) -> Image:
        return along_x(image)


class Learns(Smooths):
    """Smooths along x, and says that it learns."""

    def fit(self, training: Any, /) -> None:
        pass


class Knows(Smooths):
    """Knows its error."""

    def uncertainty(self, image: Image, /) -> Image | None:
        return np.full_like(image, 2.5)


def test_only_methods_that_learn_are_asked_for_their_agreement_with_themselves() -> None:
    image = scene(32, 40)
    assert Smooths().uncertainty(image) is None
    found = Learns().uncertainty(image)
    assert found is not None
    np.testing.assert_array_equal(found, turned_spread(along_x, image))
    assert Knows().uncertainty(image) is not None


@pytest.mark.parametrize("name", ["unet", "gaussian"])
def test_restorers_of_this_repository(name: str) -> None:
    from sembench.registry import load_method

    method = load_method(name, {"width": "4", "seed": "1"} if name == "unet" else {})
    if name == "unet":
        method.state = method.network().state_dict()
        method.state["exit.weight"] += 0.1
        spread = method.uncertainty(scene(40, 48))
        assert spread.shape == (40, 48)
        assert np.isfinite(spread).all()
        assert spread.min() >= 0
        assert spread.mean() > 0.1
    else:
        assert method.uncertainty(scene(40, 48)) is None
