"""Particles of the restored image against those of the reference: their diameters, those missed, those invented."""

import numpy as np

from sembench.errors import InputError
from sembench.metrics.table import MetricCase, MetricSpec, Scored, UndefinedError
from sembench.metrology.particles import SMALLEST_SIDE, Particle, ParticleMatch, find_particles, match_particles

COUNTED_DIAMETER = 8.0
"""Diameter (px) from which on a particle without a partner counts as missed or invented; matched: from 6 px on."""

COUNTED_STRENGTH = 0.4
"""Step over the ground, in units of the image's two levels, from which on such a particle counts; found: from 0.2."""

BORDER = 3.0
"""Distance (px) to the border within which a particle without a partner does not count."""


def _counted(particle: Particle, height: int, width: int) -> bool:
    reach = particle.diameter / 2 + BORDER
    inside = reach <= particle.x <= width - 1 - reach and reach <= particle.y <= height - 1 - reach
    return inside and particle.diameter >= COUNTED_DIAMETER and particle.strength >= COUNTED_STRENGTH


def _reference_particles(case: MetricCase) -> tuple[Particle, ...]:
    try:
        found = find_particles(case.inner_reference())
    except InputError as error:
        raise UndefinedError(str(error)) from error
    if not found:
        raise UndefinedError("the reference shows no round bright particles")
    return found


def _match(scored: Scored) -> ParticleMatch:
    reference = scored.case.once(_reference_particles)
    match = match_particles(reference, find_particles(scored.inner_restored()))
    height, width = scored.case.inner_reference().shape
    missed, invented = (
        tuple(one for one in alone if _counted(one, height, width)) for alone in (match.missed, match.invented)
    )
    return ParticleMatch(match.pairs, missed, invented)


def _differences(scored: Scored) -> list[float]:
    pairs = scored.once(_match).pairs
    if not pairs:
        raise UndefinedError("no particle of the reference has a partner in the restored image")
    return [restored.diameter - reference.diameter for reference, restored in pairs]


def _diameter_error(scored: Scored) -> float:
    return float(np.mean(np.abs(_differences(scored))))


def _diameter_spread(scored: Scored) -> float:
    differences = _differences(scored)
    if len(differences) < 2:
        raise UndefinedError("a spread needs two matched particles and there is one")
    return float(np.std(differences, ddof=1))


def _missed(scored: Scored) -> float:
    return len(scored.once(_match).missed) / len(scored.case.once(_reference_particles))


def _invented(scored: Scored) -> float:
    return len(scored.once(_match).invented) / len(scored.case.once(_reference_particles))


PARTICLE_DIAMETER_ERROR = MetricSpec(
    name="particle_diameter_error",
    title="Particle diameter, mean absolute difference to the reference",
    unit="px",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=_diameter_error,
    version=1,
    tolerance=1e-3,
    smallest_side=SMALLEST_SIDE,
)
PARTICLE_DIAMETER_SPREAD = MetricSpec(
    name="particle_diameter_spread",
    title="Particle diameter, standard deviation of the difference to the reference",
    unit="px",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=_diameter_spread,
    version=1,
    tolerance=1e-3,
    smallest_side=SMALLEST_SIDE,
)
PARTICLES_MISSED = MetricSpec(
    name="particles_missed",
    title="Particles of the reference without a partner",
    unit="share",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=_missed,
    version=1,
    tolerance=1e-3,
    smallest_side=SMALLEST_SIDE,
)
PARTICLES_INVENTED = MetricSpec(
    name="particles_invented",
    title="Particles without a partner in the reference",
    unit="share",
    better="lower",
    needs_reference=True,
    needs_degradation=False,
    function=_invented,
    version=1,
    tolerance=1e-3,
    smallest_side=SMALLEST_SIDE,
)
