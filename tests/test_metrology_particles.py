"""Particles: found, measured and matched against drawn discs, noise and real particles."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sembench import micrograph, phantom
from sembench.errors import InputError
from sembench.metrology.particles import Particle, find_particles, match_particles


def discs(places: list[tuple[float, float, float]], size: int = 160) -> NDArray[np.float64]:
    """Bright discs (x, y, radius), each pixel the mean of 8 x 8 points, blurred by 1 px."""
    fine = (np.arange(8 * size) + 0.5) / 8 - 0.5
    inside = np.zeros((8 * size, 8 * size), dtype=bool)
    for x, y, radius in places:
        inside |= (fine - x) ** 2 + (fine[:, None] - y) ** 2 < radius**2
    area = inside.reshape(size, 8, size, 8).mean(axis=(1, 3))
    return 40 + 160 * gaussian_filter(area, 1.0)


def drawn(scene: phantom.Scene) -> tuple[Particle, ...]:
    return tuple(
        Particle(one["x_px"], one["y_px"], one["diameter_px"], 0.0, 1.0, 1.0)
        for one in scene.truth["particles"]
        if one["complete"]
    )


@pytest.fixture(scope="module")
def scene() -> phantom.Scene:
    return phantom.particles(
        np.random.default_rng(3), height=384, width=320, diameter=24, covered=0.2, edge_sigma=1.0, spread=0.3
    )


@pytest.mark.parametrize(
    ("contrast_to_noise", "bias", "spread"), [(np.inf, 0.05, 0.05), (8, 0.1, 0.15), (4, 0.15, 0.3)]
)
def test_drawn_discs_are_all_found_and_their_diameters_true(
    scene: phantom.Scene, contrast_to_noise: float, bias: float, spread: float
) -> None:
    noise = np.random.default_rng(1).normal(0, 160, scene.image.shape) / contrast_to_noise
    match = match_particles(drawn(scene), find_particles(scene.image + noise))
    difference = np.array([found.diameter - true.diameter for true, found in match.pairs])
    assert not match.missed
    assert not match.invented
    assert abs(difference.mean()) < bias
    assert difference.std() < spread
    assert max(np.hypot(found.x - true.x, found.y - true.y) for true, found in match.pairs) < 0.05 + 2 * spread


def test_polarity_turns_the_image_over(scene: phantom.Scene) -> None:
    bright = find_particles(scene.image)
    dark = find_particles(255 - scene.image, polarity="dark")
    assert [one.diameter for one in dark] == pytest.approx([one.diameter for one in bright], abs=1e-6)
    assert find_particles(255 - scene.image) != dark


def test_touching_discs_are_told_apart() -> None:
    places = [(50.3, 60.2, 20.0), (90.3, 60.2, 20.0), (70.0, 105.0, 26.0), (115.0, 100.0, 15.0)]
    found = find_particles(discs(places))
    truth = tuple(Particle(x, y, 2 * radius, 0, 1, 1) for x, y, radius in places)
    match = match_particles(truth, found)
    assert len(match.pairs) == 4
    assert not match.invented
    assert max(abs(seen.diameter - true.diameter) for true, seen in match.pairs) < 0.3


def test_discs_that_touch_the_border_are_not_counted() -> None:
    found = find_particles(discs([(80, 80, 15), (5, 80, 15), (80, 150, 12), (159, 159, 20)]))
    assert len(found) == 1
    assert (found[0].x, found[0].y) == pytest.approx((80, 80), abs=0.02)


@pytest.mark.parametrize("blur", [0, 0.7, 1.5, 3])
def test_no_particle_comes_out_of_noise(blur: float) -> None:
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(100, 20, (256, 256))
        assert find_particles(gaussian_filter(noise, blur)) == ()


def test_a_flat_field_has_no_particles() -> None:
    assert find_particles(np.full((100, 100), 7.0)) == ()


def test_matching_is_one_to_one_within_half_a_radius() -> None:
    reference = (Particle(50, 50, 40, 0, 1, 1), Particle(100, 50, 20, 0, 1, 1), Particle(10, 90, 12, 0, 1, 1))
    restored = (Particle(59.9, 50, 38, 0, 1, 1), Particle(46, 50, 41, 0, 1, 1), Particle(105.1, 50, 20, 0, 1, 1))
    match = match_particles(reference, restored)
    assert match.pairs == ((reference[0], restored[1]),)
    assert match.missed == reference[1:]
    assert match.invented == (restored[0], restored[2])
    assert match_particles((), restored).invented == restored
    assert match_particles(reference, ()).missed == reference


def test_matching_prefers_more_pairs_to_nearer_ones() -> None:
    reference = (Particle(50, 50, 40, 0, 1, 1), Particle(57, 50, 40, 0, 1, 1))
    restored = (Particle(56, 50, 40, 0, 1, 1), Particle(66, 50, 40, 0, 1, 1))
    assert match_particles(reference, restored).pairs == ((reference[0], restored[0]), (reference[1], restored[1]))


@pytest.mark.parametrize("bad", [np.zeros((20, 100)), np.full((80, 80), np.nan), np.zeros((80, 80, 3))])
def test_what_is_no_image_is_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="particles need"):
        find_particles(bad)


def test_an_unknown_polarity_is_refused() -> None:
    with pytest.raises(InputError, match="'grey'"):
        find_particles(np.zeros((80, 80)), polarity="grey")


@pytest.mark.data
def test_real_spheres_keep_their_diameters_under_noise(data_folder: Path) -> None:
    file = next(data_folder.glob("kriss/dwell_012_reference.tif*"))
    reference = micrograph.read(file).pixels[:440]
    found = find_particles(reference)
    again = find_particles(reference + np.random.default_rng(0).normal(0, 10, reference.shape))
    match = match_particles(tuple(one for one in found if one.diameter > 30), again)
    assert len(match.pairs) >= 12
    assert not match.missed
    assert max(abs(second.diameter - first.diameter) for first, second in match.pairs) < 0.5
