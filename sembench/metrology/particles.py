"""Round particles: found, measured by a circle through their edge, and matched between two images."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, gaussian_filter, label
from scipy.special import chndtr

from sembench.errors import InputError
from sembench.metrology.contour import Sampler, ray_angles
from sembench.metrology.ellipse import fit_circle
from sembench.metrology.plateaus import fit_levels, separate

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SMALLEST_SIDE = 64
SMALLEST_DIAMETER = 6.0
MOST_CANDIDATES = 3000
SMOOTHING = 1.0
RAYS = 96
FINDINGS = 3
STEP = 0.5
SEPARATED = 0.72
FAINTEST = 1.0
FAINTEST_SHARE = 0.2
FAINTEST_NOISE = 4.5
MASK_LEVELS = (0.15, 0.5)
MOST_FOR_BLUR = 60
HOLLOW = 1.7
RIM_BAND = (0.6, 0.85)
GROUND_BAND = (2.5, 6.5)
VALLEY = 0.3
SEEN = 0.5
ROUND = 0.06
ROUND_PX = 0.6
SAME = 0.5
FIRST_BLUR = 1.5
BLURS = (1.0, 5.0)


@dataclass(frozen=True)
class Particle:
    """One particle, lengths in px: centre x, y; diameter of its circle; roundness, the rms of its edge about it.

    strength: its step above the ground around it, over the step between the image's two levels; seen: share of the
    rays with an edge.
    """

    x: float
    y: float
    diameter: float
    roundness: float
    strength: float
    seen: float


@dataclass(frozen=True)
class ParticleMatch:
    """Particles of two images set against each other: pairs (reference, restored), and those without a partner."""

    pairs: tuple[tuple[Particle, Particle], ...]
    missed: tuple[Particle, ...]
    invented: tuple[Particle, ...]


def find_particles(image: "NDArray[np.floating[Any]]", *, polarity: str = "bright") -> tuple[Particle, ...]:
    """The round particles that lie wholly inside the image, at least 6 px wide, the widest first.

    image: (H, W), any gray scale, 64 px a side or more. Markers are the maxima of the distance to the ground; the edge
    is where rays from the centre fall through the level, between the particle's own rim and the ground next to it, at
    which the edge of a disc of that size lies under the image's blur (50 % but for curvature); the circle is a robust
    least-squares fit. Touching particles are told apart: rays into a neighbour are left out, and half must have an
    edge. None are found where the image has not two levels well apart.
    Raises InputError for another polarity, and where the image is not finite, too small or not of two dimensions.
    """
    if polarity not in ("bright", "dark"):
        raise InputError(f"polarity is {polarity!r}: give 'bright' or 'dark'")
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim != 2 or min(pixels.shape) < SMALLEST_SIDE or not np.isfinite(pixels).all():
        raise InputError(
            f"particles need a finite image of {SMALLEST_SIDE} px a side or more, not an array of shape {pixels.shape}"
        )
    smooth = gaussian_filter(pixels if polarity == "bright" else -pixels, SMOOTHING)
    above = separate(smooth, ground_degree=1)
    if above is None:
        return ()
    found = _levels(pixels, smooth, above)
    if found is None:
        return ()
    ground, step, noise = found
    levels = sorted({max(level, min(FAINTEST_NOISE * noise / step, 0.5)) for level in MASK_LEVELS})
    masks = [_filled(smooth > ground + level * step) for level in levels]
    return _Search(smooth, masks, step).particles()


def match_particles(reference: tuple[Particle, ...], restored: tuple[Particle, ...]) -> ParticleMatch:
    """Pairs whose centres lie within half a radius of the reference particle, one to one.

    As many pairs as possible, then those nearest to each other: a linear assignment (scipy.optimize).
    """
    from scipy.optimize import linear_sum_assignment

    if not reference or not restored:
        return ParticleMatch((), tuple(reference), tuple(restored))
    first = np.array([(one.x, one.y) for one in reference])
    second = np.array([(one.x, one.y) for one in restored])
    share = np.linalg.norm(first[:, None] - second[None], axis=2)
    share /= np.array([one.diameter / 4 for one in reference])[:, None]
    forbidden = 2.0 * (len(reference) + len(restored))
    rows, columns = linear_sum_assignment(np.where(share <= 1, share, forbidden))
    allowed = share[rows, columns] <= 1
    rows, columns = rows[allowed], columns[allowed]
    pairs = tuple((reference[i], restored[j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True))
    missed = tuple(one for i, one in enumerate(reference) if i not in set(rows.tolist()))
    invented = tuple(one for j, one in enumerate(restored) if j not in set(columns.tolist()))
    return ParticleMatch(pairs, missed, invented)


def _levels(pixels: Array, smooth: Array, above: Mask) -> tuple[Array, float, float] | None:
    """Ground (H, W), the step above it and the smoothed image's noise; None where they are not two levels apart."""
    cover = above.astype(np.float64)
    fitted, contrast = fit_levels(smooth, cover, np.ones_like(smooth), 0, ground_degree=1)
    ground, step = fitted.image(), float(contrast.coefficients[0, 0])
    lower = float(np.median((smooth - ground)[~above]))
    between = step**2 * float(above.mean() * (1 - above.mean()))
    within = float(np.mean((smooth - ground - step * cover) ** 2))
    differences = (float(np.median(np.abs(np.diff(pixels, axis=axis)))) for axis in (0, 1))
    noise = max(differences) * 1.4826 / math.sqrt(2)
    if between < SEPARATED * (between + within) or step < FAINTEST * noise:
        return None
    return ground + lower, step - lower, noise / (2 * math.sqrt(math.pi) * SMOOTHING)


def _filled(above: Mask) -> Mask:
    """The mask with its round holes filled: dark middles of particles, not the gaps between touching ones."""
    labels, count = label(~above)
    if count == 0:
        return above
    depth = distance_transform_edt(~above)
    filled = above.copy()
    height, width = above.shape
    for number, (rows, columns) in enumerate(find_objects(labels), start=1):
        if min(rows.start, columns.start) == 0 or rows.stop == height or columns.stop == width:
            continue
        hole = labels[rows, columns] == number
        deepest = float(depth[rows, columns][hole].max())
        if np.count_nonzero(hole) <= HOLLOW * math.pi * (deepest + 0.5) ** 2:
            filled[rows, columns] |= hole
    return filled


class _Search:
    """Candidates, widest first, each measured along rays and kept where its edge is a circle."""

    def __init__(self, smooth: Array, masks: list[Mask], step: float) -> None:
        self.smooth = Sampler(smooth)
        self.outside = Sampler((~masks[0]).astype(np.float64))
        self.masks = masks
        self.shape = smooth.shape
        self.step = step
        self.angle = ray_angles(RAYS)
        self.blur = FIRST_BLUR

    def particles(self) -> tuple[Particle, ...]:
        candidates = self.candidates()
        blurs = [blur for _, blur in self.accept(candidates, MOST_FOR_BLUR) if math.isfinite(blur)]
        if blurs:
            self.blur = float(np.clip(np.median(blurs), *BLURS))
        found = [one for one, _ in self.accept(candidates, MOST_CANDIDATES)]
        return tuple(sorted(found, key=lambda one: -one.diameter))

    def candidates(self) -> Array:
        """Maxima of the distance to the ground in each mask, (n, 3) as x, y, radius in px, the widest first."""
        from skimage.feature import peak_local_max

        parts = []
        for mask, beyond in zip(self.masks, (self.blur, 0.0), strict=False):
            distance = distance_transform_edt(mask)
            places = peak_local_max(
                gaussian_filter(distance, 0.7), min_distance=2, exclude_border=False, num_peaks=MOST_CANDIDATES
            )
            radius = np.maximum(distance[places[:, 0], places[:, 1]] - beyond, 1)
            parts.append(np.stack([places[:, 1], places[:, 0], radius], axis=1).astype(np.float64))
        found = np.concatenate(parts)
        return found[np.argsort(-found[:, 2], kind="stable")]

    def accept(self, candidates: Array, most: int) -> list[tuple[Particle, float]]:
        """The particles among the candidates with their blur, none twice, none touching the border, `most` at most."""
        accepted: list[tuple[Particle, float]] = []
        taken = np.empty((0, 3))
        height, width = self.shape
        for x, y, radius in candidates.tolist():
            if 2 * radius < SMALLEST_DIAMETER - 2:
                break
            away = np.hypot(taken[:, 0] - x, taken[:, 1] - y)
            if (away < taken[:, 2] - SAME * radius).any():
                continue
            measured = self.measure(x, y, radius)
            if measured is None:
                continue
            one, _ = measured
            away = np.hypot(taken[:, 0] - one.x, taken[:, 1] - one.y)
            if (away < np.maximum(taken[:, 2], one.diameter / 2) * SAME).any():
                continue
            taken = np.vstack([taken, (one.x, one.y, one.diameter / 2)])
            half = one.diameter / 2
            inside = min(one.x, one.y) - half >= -0.5 and one.x + half <= width - 0.5 and one.y + half <= height - 0.5
            if inside and one.diameter >= SMALLEST_DIAMETER:
                accepted.append(measured)
                if len(accepted) == most:
                    break
        return accepted

    def measure(self, x: float, y: float, radius: float) -> tuple[Particle, float] | None:
        """The particle about a marker and the Gaussian blur of its edge (px), or None where there is no round edge."""
        blur, contrast, seen, roundness = math.nan, 0.0, 0.0, 0.0
        for _ in range(FINDINGS):
            place = np.arange(0.4 * radius, 1.5 * radius + 8, STEP)
            across, down = x + np.outer(np.cos(self.angle), place), y + np.outer(np.sin(self.angle), place)
            inside = self.smooth.inside(across, down)
            profile = np.where(inside, self.smooth(across, down), np.nan)
            levels = self.levels(profile, across, down, inside, place, radius)
            if levels is None:
                return None
            ground, contrast = levels
            profile = (profile - ground) / contrast
            edge, valid = self.edges(profile, place, radius, float(_disc(radius, radius, self.blur)))
            if valid.mean() < SEEN:
                return None
            edge_x, edge_y = x + edge * np.cos(self.angle), y + edge * np.sin(self.angle)
            points = np.flatnonzero(valid)
            new_x, new_y, new_radius, trust = fit_circle(edge_x[points], edge_y[points], np.ones(points.size))
            if not (2 <= new_radius <= 1.6 * radius + 4) or math.hypot(new_x - x, new_y - y) > radius:
                return None
            trusted = trust > 0.3
            seen = float(np.count_nonzero(trusted)) / RAYS
            residual = np.hypot(edge_x[points] - new_x, edge_y[points] - new_y) - new_radius
            roundness = math.sqrt(float(np.average(residual**2, weights=trust + 1e-12)))
            blur = self.edge_blur(profile[points][trusted], place, radius)
            x, y, radius = new_x, new_y, new_radius
        if seen < SEEN or roundness > max(ROUND * radius, ROUND_PX) or contrast < FAINTEST_SHARE * self.step:
            return None
        return Particle(x, y, 2 * radius, roundness, contrast / self.step, seen), blur

    def levels(
        self, profile: Array, across: Array, down: Array, inside: Mask, place: Array, radius: float
    ) -> tuple[float, float] | None:
        """Gray level of the ground around a particle, and the step from there to the particle's rim, blur undone."""
        rim = (place >= RIM_BAND[0] * radius) & (place <= max(RIM_BAND[1] * radius, RIM_BAND[0] * radius + STEP))
        near = (place >= radius + GROUND_BAND[0]) & (place <= radius + GROUND_BAND[1])
        free = inside[:, near] & (self.outside(across[:, near], down[:, near]) > 0.9)
        rim_values = profile[:, rim][inside[:, rim]]
        if not rim_values.size or np.count_nonzero(free) < 0.05 * free.size:
            return None
        top, bottom = float(np.median(rim_values)), float(np.median(profile[:, near][free]))
        reached = float(np.median(_disc(place[rim], radius, self.blur)))
        left = float(np.median(_disc(place[near], radius, self.blur)))
        contrast = (top - bottom) / max(reached - left, 0.3)
        return (bottom - left * contrast, contrast) if contrast > 0 else None

    def edges(self, profile: Array, place: Array, radius: float, level: float) -> tuple[Array, Mask]:
        """The first fall (rays,) through the level beyond 0.6 of the radius, and whether the ground lies behind it."""
        search = place[:-1] >= 0.6 * radius
        falls = (profile[:, :-1] > level) & (profile[:, 1:] <= level) & search
        first = np.argmax(falls, axis=1)
        rows = np.arange(len(profile))
        before, after = profile[rows, first], profile[rows, first + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            edge = place[first] + STEP * (before - level) / (before - after)
        behind = np.minimum(first[:, None] + np.arange(1, round((2.5 * self.blur + 1) / STEP) + 1), place.size - 1)
        deepest = np.where(np.isnan(profile), np.inf, profile)[rows[:, None], behind].min(axis=1)
        valid = falls.any(axis=1) & (deepest <= VALLEY) & np.isfinite(edge)
        return np.where(valid, edge, radius), valid

    def edge_blur(self, profile: Array, place: Array, radius: float) -> float:
        """Gaussian sigma (px) of an edge that falls from 3/4 to 1/4 as far as the mean profile does."""
        if len(profile) < RAYS // 3 or radius < SMALLEST_DIAMETER / 2 or not np.isfinite(profile).any(axis=0).all():
            return math.nan
        mean = np.nanmean(profile, axis=0)
        where = []
        for level in (0.75, 0.25):
            falls = np.flatnonzero((mean[:-1] > level) & (mean[1:] <= level))
            if not falls.size:
                return math.nan
            index = falls[np.argmin(np.abs(place[falls] - radius))]
            where.append(place[index] + STEP * (mean[index] - level) / (mean[index] - mean[index + 1]))
        return float((where[1] - where[0]) / 1.34898)


def _disc(distance: "Array | float", radius: float, blur: float) -> Array:
    """A disc of level 1 convolved with a Gaussian, at distances from its centre: the non-central chi-squared law."""
    return np.asarray(chndtr((radius / blur) ** 2, 2, (np.asarray(distance) / blur) ** 2))
