"""Particle metrics: exact on drawn fields whose particles are widened, painted over or added."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sembench.metrics.particles import (
    PARTICLE_DIAMETER_ERROR,
    PARTICLE_DIAMETER_SPREAD,
    PARTICLES_INVENTED,
    PARTICLES_MISSED,
)
from sembench.metrics.table import Evaluation, MetricCase, evaluate

ALL = [PARTICLE_DIAMETER_ERROR, PARTICLE_DIAMETER_SPREAD, PARTICLES_MISSED, PARTICLES_INVENTED]
GRID = [(x, y) for y in (32, 80, 128, 176) for x in (32, 80, 128, 176)]


def field(radii: dict[tuple[int, int], float]) -> NDArray[np.float32]:
    """Soft discs of one radius each on a dark ground, 208 px a side, on the grid of 1/256."""
    y, x = np.mgrid[:208, :208]
    cover = np.zeros((208, 208))
    for (centre_x, centre_y), radius in radii.items():
        cover = np.maximum(cover, 1 / (1 + np.exp((np.hypot(x - centre_x, y - centre_y) - radius) / 0.8)))
    return (np.round((40 + 150 * cover) * 256) / 256).astype(np.float32)


def scores(reference: NDArray[np.float32], restored: NDArray[np.float32]) -> Evaluation:
    return evaluate(ALL, restored, MetricCase(degraded=restored, reference=reference))


def test_the_reference_itself_scores_nothing() -> None:
    image = field(dict.fromkeys(GRID, 12.0))
    assert scores(image, image).values == dict.fromkeys((metric.name for metric in ALL), 0.0)


def test_wider_particles_show_as_diameter_error_and_spread() -> None:
    growth = {place: 0.4 if number % 2 else 0.8 for number, place in enumerate(GRID)}
    wider = field({place: 12.0 + growth[place] for place in GRID})
    values = scores(field(dict.fromkeys(GRID, 12.0)), wider).values
    assert values["particle_diameter_error"] == pytest.approx(1.2, abs=0.05)
    assert values["particle_diameter_spread"] == pytest.approx(0.4 * np.sqrt(16 / 15), abs=0.03)
    assert values["particles_missed"] == values["particles_invented"] == 0


def test_particles_lost_and_added_are_counted_as_shares_of_the_reference() -> None:
    reference = field(dict.fromkeys(GRID[:-1], 12.0))
    restored = field(dict.fromkeys([*GRID[2:], (104, 104)], 12.0))
    values = scores(reference, restored).values
    assert values["particles_missed"] == pytest.approx(2 / 15)
    assert values["particles_invented"] == pytest.approx(2 / 15)


def test_nothing_left_of_the_particles() -> None:
    found = scores(field(dict.fromkeys(GRID, 12.0)), np.full((208, 208), 80, dtype=np.float32))
    assert found.values["particles_missed"] == 1
    assert found.values["particles_invented"] == 0
    assert "no particle of the reference has a partner" in found.reasons["particle_diameter_error"]


def test_a_reference_without_particles_has_no_scores() -> None:
    empty = np.full((208, 208), 80, dtype=np.float32)
    found = scores(empty, field(dict.fromkeys(GRID, 12.0)))
    assert all(value is None for value in found.values.values())
    assert all("no round bright particles" in reason for reason in found.reasons.values())


def test_a_field_too_small_says_so() -> None:
    small = np.zeros((40, 40), dtype=np.float32)
    assert "64 px a side" in scores(small, small).reasons["particles_missed"]
