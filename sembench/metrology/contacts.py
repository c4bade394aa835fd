"""Contact holes and pillars: contour, CD along x and y, equivalent diameter, contour roughness, local CD uniformity."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, find_objects, gaussian_filter, label
from scipy.spatial import cKDTree

from sembench.errors import InputError
from sembench.metrology.contour import (
    Sampler,
    Template,
    autocovariance,
    edge_covariance,
    edge_template,
    locate,
    low_orders,
    outliers,
    ray_angles,
    ray_points,
    render,
)
from sembench.metrology.ellipse import Ellipses, fit_ellipses
from sembench.metrology.plateaus import Surface, degree_for, fit_levels, separate, typical
from sembench.metrology.refusal import MeasurementRefused

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Polarity = Literal["bright", "dark"]

SMALLEST_SIDE = 64
FEWEST = 4
FEWEST_RAYS = 64
SMOOTHING = 1.5
SMALLEST_AREA = 12
BORDER = 2
CORE = 0.4
FAR_QUANTILE = 0.6
NARROWEST, WIDEST = 3, 8
TRACK_WAVELENGTH = 20.0
OVERLAP = 0.8
ALIKE = 2.0
NEIGHBOUR_SPREAD, REGULAR = 0.1, 0.75
MOST = 0.5
MOST_LOST = 0.1
MOSTLY = 0.8
MOST_ROUNDS = 2
STILL = 0.003
SHARPEST = 0.3
RIM = 0.15
ROUGHEST = 0.6
SHALLOWEST = 0.7
FIRST_BLUR = 1.2
PIXEL_VARIANCE = 1 / 12


@dataclass(frozen=True, eq=False)
class Contact:
    """One contact, lengths in px, with the ellipse fitted to its contour.

    x, y: centre; cd_x, cd_y: extent of the ellipse along x and y (the sides of the upright rectangle that just holds
    it); diameter: 2 sqrt(ab), a and b its half axes; angle_deg: of its longer axis, from x towards y, -90 (excluded) to
    90; cer: 3 x the rms of the contour's distance to it along rays from the centre; contour: (rays, 2) as x, y; lost:
    (rays,) where no edge was found and the contour says nothing; root: (2, 2), eigenvalues a and b.
    """

    x: float
    y: float
    cd_x: float
    cd_y: float
    diameter: float
    angle_deg: float
    cer: float
    contour: Array
    lost: Mask
    root: Array


@dataclass(frozen=True, eq=False)
class ContactMeasurement:
    """What `measure_contacts` found, lengths in px.

    pitch: median distance to the nearest neighbour; cd_x_mean, cd_y_mean, diameter_mean: over the contacts; cer: 3 x
    the rms over all contours of the distance to the ellipse; lcdu: 3 x the standard deviation (divisor n - 1) of the
    equivalent diameter between contacts; *_unbiased: less what the image's noise adds to them, 0 where it could add
    all; edge_noise: standard deviation of one ray's edge by noise; edge_blur: Gaussian sigma of the edge;
    level_fraction: the level of the contour between the plateaus; lost_fraction: of the rays; rejected: blobs that are
    no complete contact although they keep clear of the border.
    """

    polarity: str
    level: str
    level_fraction: float
    contacts: tuple[Contact, ...]
    pitch: float
    cd_x_mean: float
    cd_y_mean: float
    diameter_mean: float
    cer: float
    cer_unbiased: float
    lcdu: float
    lcdu_unbiased: float
    edge_noise: float
    edge_blur: float
    noise_sigma: float
    contrast_to_noise: float
    lost_fraction: float
    rejected: int
    flags: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many complete contacts were measured."""
        return len(self.contacts)

    def as_record(self, pixel_size_nm: tuple[float, float] | None) -> dict[str, Any]:
        """Plain values for a table or JSON: lengths in nm, given the pixel size (x, y), or else in px.

        Raises InputError where the pixel size is not above 0.
        """
        unit, scale = ("px", (1.0, 1.0)) if pixel_size_nm is None else ("nm", pixel_size_nm)
        if not all(math.isfinite(side) and side > 0 for side in scale):
            raise InputError(f"pixel size is {scale[0]} x {scale[1]} nm: give numbers above 0")
        mean, mean_square = math.sqrt(scale[0] * scale[1]), (scale[0] ** 2 + scale[1] ** 2) / 2
        cer = _roughness(self.contacts, scale)
        lengths = {
            "pitch": float(np.median(_nearest(np.array([[one.x, one.y] for one in self.contacts]) * scale))),
            "cd_x": self.cd_x_mean * scale[0],
            "cd_y": self.cd_y_mean * scale[1],
            "diameter": self.diameter_mean * mean,
            "cer": cer,
            "cer_unbiased": math.sqrt(max(cer**2 - (self.cer**2 - self.cer_unbiased**2) * mean_square, 0.0)),
            "lcdu": self.lcdu * mean,
            "lcdu_unbiased": self.lcdu_unbiased * mean,
            "edge_noise": self.edge_noise * math.sqrt(mean_square),
            "edge_blur": self.edge_blur * mean,
        }
        return {
            "kind": "contacts",
            "polarity": self.polarity,
            "level": self.level,
            "pixel_size_nm": None if pixel_size_nm is None else list(pixel_size_nm),
            "count": self.count,
            "contrast_to_noise": self.contrast_to_noise if math.isfinite(self.contrast_to_noise) else None,
            **{f"{name}_{unit}": value for name, value in lengths.items()},
            "lost_fraction": self.lost_fraction,
            "flags": list(self.flags),
        }


@dataclass(frozen=True, eq=False)
class _Scene:
    """What stays the same while the contours are refined."""

    image: Array
    sampler: Sampler
    rest: Mask
    far: Mask
    smooth: Array


@dataclass(frozen=True, eq=False)
class _Levels:
    """The plateau surfaces, and the noise about them."""

    ground: Surface
    contrast: Surface
    plateau: Mask
    model: Array


@dataclass(frozen=True, eq=False)
class _Found:
    """One round's contours: positions x, y, distances to the ellipses, lost rays, (n, rays) each; their level."""

    levels: _Levels
    template: Template
    level: float
    x: Array
    y: Array
    residual: Array
    lost: Mask


def measure_contacts(image: "NDArray[np.floating[Any]]", *, polarity: str = "bright") -> ContactMeasurement:
    """Contours and dimensions of the contact holes ("dark") or pillars ("bright") of an array.

    image: (H, W), any gray scale, data bar cut off. A contour is where a sharp contact would end: along rays from its
    centre (64 or as many as its circumference has px) a matched filter with the array's mean edge profile finds the
    edge, without smoothing along the contour; its level is that at which two plateau levels, fitted as surfaces over
    the field and blurred as the image is, cross the contour: 50 % but for the curvature of small contacts and their
    neighbours. Not counted: contacts nearer than 2 px to the border, half-open ones (plateau below 0.7 of the array's),
    and those with more than half of their rays lost. Ellipses are fitted by least squares along the rays. The blur
    hides roughness shorter than about six times its sigma from the contour roughness.
    Raises InputError for another polarity, MeasurementRefused with the reason where this is no array of contacts.
    Source: the definitions of `sembench.metrology`; ellipses: Halir and Flusser, 1998.
    """
    if polarity not in ("bright", "dark"):
        raise InputError(f"polarity is {polarity!r}: give 'bright' for pillars or 'dark' for holes")
    pixels = _checked(image)
    pixels = pixels if polarity == "bright" else -pixels
    smooth = gaussian_filter(pixels, SMOOTHING)
    above = separate(smooth)
    if above is None:
        raise MeasurementRefused("no contacts: the image has not two levels")
    above = binary_fill_holes(above)
    ellipses, chosen, rejected = _blobs(above)
    scene = _Scene(pixels, Sampler(pixels), above & ~chosen, _far(above), smooth)
    return _Refinement(scene, ellipses).measurement(polarity, rejected)


def _checked(image: "NDArray[np.floating[Any]]") -> Array:
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim != 2:
        raise MeasurementRefused(f"not an image: an array of shape {pixels.shape}, where (height, width) is needed")
    if min(pixels.shape) < SMALLEST_SIDE:
        size = " x ".join(str(side) for side in reversed(pixels.shape))
        raise MeasurementRefused(f"the image of {size} px is too small: {SMALLEST_SIDE} px a side are needed")
    if not np.isfinite(pixels).all():
        raise MeasurementRefused("the image holds values that are not finite")
    if float(np.ptp(pixels)) <= 1e-9 * float(np.abs(pixels).max()):
        raise MeasurementRefused("the image is constant")
    return pixels


def _far(above: Mask) -> Mask:
    """The ground pixels furthest from any blob."""
    distance = distance_transform_edt(~above)
    return np.asarray(distance >= max(float(np.quantile(distance[~above], FAR_QUANTILE)), 1.5))


def _blobs(above: Mask) -> tuple[Ellipses, Mask, int]:
    """Ellipses of the blobs that look like complete contacts of one array, their pixels, and how many others there are.

    Raises MeasurementRefused where too few do, or where most of what keeps clear of the border does not.
    """
    labels, count = label(above)
    if count == 0:
        raise MeasurementRefused("no contacts: nothing stands out from the ground")
    boxes = find_objects(labels)
    area, centre, covariance = _moments(labels, count)
    height, width = above.shape
    box = np.array([(s[0].start, s[0].stop, s[1].start, s[1].stop) for s in boxes])
    clear = (box[:, [0, 2]].min(axis=1) >= BORDER) & (box[:, 1] <= height - BORDER) & (box[:, 3] <= width - BORDER)
    large = area >= SMALLEST_AREA
    candidates = clear & large
    if np.count_nonzero(candidates) < FEWEST:
        raise MeasurementRefused(
            f"{np.count_nonzero(candidates)} blobs clear of the border: {FEWEST} complete contacts are needed"
        )
    values, axes = np.linalg.eigh(covariance)
    half = 2 * np.sqrt(np.maximum(values, 0.05))
    ellipses = Ellipses(centre, np.einsum("nij,nj,nkj->nik", axes, half, axes))
    overlap = np.zeros(count)
    for number in np.flatnonzero(candidates).tolist():
        rows, columns = boxes[number]
        overlap[number] = _overlap(labels[rows, columns] == number + 1, ellipses, number, rows.start, columns.start)
    size = np.sqrt(area)
    typical_size = math.sqrt(_weighted_median(area[candidates], area[candidates]))
    alike = (size <= ALIKE * typical_size) & (size >= typical_size / ALIKE)
    fitting = candidates & (overlap >= OVERLAP) & alike
    share = float(area[fitting].sum() / area[candidates].sum())
    if share < MOST:
        raise MeasurementRefused(
            f"no array of contacts: {share:.0%} of the area that stands out is round and of one size, half is needed"
        )
    inside = ~clear & large
    if float(area[inside].sum()) > 3 * float(area[candidates].sum()):
        raise MeasurementRefused("no array of contacts: most of what stands out runs into the border")
    if np.count_nonzero(fitting) < FEWEST:
        raise MeasurementRefused(
            f"{np.count_nonzero(fitting)} complete contacts: {FEWEST} are needed to speak of an array"
        )
    _check_regular(centre[fitting])
    chosen = np.concatenate([[False], fitting])[labels]
    return ellipses[fitting], chosen, int(np.count_nonzero(candidates & ~fitting))


def _check_regular(centre: Array) -> None:
    nearest = _nearest(centre)
    share = float(np.mean(np.abs(nearest / np.median(nearest) - 1) <= NEIGHBOUR_SPREAD))
    if share < REGULAR:
        raise MeasurementRefused(
            f"no array of contacts: {share:.0%} of the nearest neighbours are one pitch away, {REGULAR:.0%} is needed"
        )


def _moments(labels: "NDArray[np.int32]", count: int) -> tuple[Array, Array, Array]:
    """Area (n,), centre (n, 2) and covariance (n, 2, 2) of the pixels of each label, as x, y."""
    row, column = np.nonzero(labels)
    number = labels[row, column] - 1
    area = np.bincount(number, minlength=count).astype(np.float64)
    mean = np.stack([np.bincount(number, place, count) / area for place in (column, row)], axis=1)
    x, y = column - mean[number, 0], row - mean[number, 1]
    across, mixed, down = (np.bincount(number, product, count) / area for product in (x * x, x * y, y * y))
    covariance = np.stack([across + PIXEL_VARIANCE, mixed, mixed, down + PIXEL_VARIANCE], axis=1)
    return area, mean, covariance.reshape(-1, 2, 2)


def _overlap(blob: Mask, ellipses: Ellipses, number: int, top: int, left: int) -> float:
    """Intersection over union of a blob with the ellipse of equal moments."""
    rows, columns = np.ogrid[: blob.shape[0], : blob.shape[1]]
    x, y = columns + left - ellipses.centre[number, 0], rows + top - ellipses.centre[number, 1]
    inverse = np.linalg.inv(ellipses.root[number])
    inside = np.hypot(inverse[0, 0] * x + inverse[0, 1] * y, inverse[1, 0] * x + inverse[1, 1] * y) <= 1
    return int(np.count_nonzero(inside & blob)) / max(int(np.count_nonzero(inside | blob)), 1)


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    total: Array = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, float(total[-1]) / 2)])


def _nearest(centre: Array) -> Array:
    """Distance (n,) of each centre (n, 2) to its nearest neighbour."""
    return np.asarray(cKDTree(centre).query(centre, k=2)[0][:, 1])


class _Refinement:
    """Contours, plateau levels and blur, each made better with the others until the diameters stand still."""

    def __init__(self, scene: _Scene, ellipses: Ellipses) -> None:
        self.scene = scene
        self.ellipses = ellipses
        self.started = len(ellipses)
        circumference = math.pi * float(np.median(ellipses.diameter()))
        self.angle = ray_angles(max(FEWEST_RAYS, 8 * math.ceil(circumference / 8)))
        self.blur = FIRST_BLUR
        self.wobble = np.zeros((len(ellipses), self.angle.size))
        self.response = 1.0
        self.plateau: Mask | None = None

    def measurement(self, polarity: str, rejected: int) -> ContactMeasurement:
        found = self.round(modelled=False)
        self.plateau = None
        for _ in range(MOST_ROUNDS):
            before = self.ellipses.diameter()
            found = self.round(modelled=True)
            if before.size == len(self.ellipses) and np.abs(before - self.ellipses.diameter()).max() < STILL:
                break
        return self.numbers(found, polarity, rejected + self.started - len(self.ellipses))

    def round(self, *, modelled: bool) -> _Found:
        """Levels, template, contours and ellipses once; modelled: with the level and the corrections of the model."""
        inner, outer = self.window()
        limit = float(min(inner, outer) - 1)
        levels = self.levels()
        radius = self.ellipses.radius(self.angle)
        track = radius + self.wobble
        profiles, valid = self.profiles(track, levels, inner, outer)
        template = edge_template(profiles, valid, -inner)
        edges = locate(profiles, valid, template, limit)
        level, correction, sharper = 0.5, np.zeros_like(track), 1.0
        if modelled:
            level, correction, sharper = self.calibrate(levels.model, radius, inner, outer, template)
        crossing, width = template.crossing(level), template.width()
        if not (math.isfinite(crossing) and math.isfinite(width)):
            raise MeasurementRefused("contacts not resolved: their mean edge does not pass from one level to the other")
        total = width**2 if not modelled else (self.blur**2 + PIXEL_VARIANCE) * sharper**2
        self.blur = math.sqrt(max(total - PIXEL_VARIANCE, SHARPEST**2))
        contour = track + edges.shift + crossing + correction
        x, y = ray_points(self.ellipses.centre, self.angle, contour)
        fitted, good = fit_ellipses(x, y, (~edges.lost).astype(np.float64))
        lost = outliers(_along_ray(x, y, fitted), edges.lost)
        if (lost & ~edges.lost).any():
            fitted, good = fit_ellipses(x, y, (~lost).astype(np.float64))
        good &= (lost.mean(axis=1) <= MOST) & (_depth(profiles, valid, template) >= SHALLOWEST)
        good &= self.clear(x, y, lost)
        if np.count_nonzero(good) < FEWEST:
            raise MeasurementRefused(
                f"{np.count_nonzero(good)} contacts have a contour: {FEWEST} are needed to speak of an array"
            )
        if not good.all():
            dropped = render(self.ellipses[~good], np.zeros_like(self.scene.rest)) > 0.5
            self.scene = replace(self.scene, rest=self.scene.rest | dropped)
            self.plateau = None
        x, y, lost, fitted = x[good], y[good], lost[good], fitted[good]
        residual = _along_ray(x, y, fitted)
        self.ellipses = fitted
        orders = int(np.clip(round(math.pi * float(np.median(fitted.diameter())) / TRACK_WAVELENGTH), 2, 8))
        self.wobble = low_orders(residual, lost, orders)
        return _Found(levels, template, level, x, y, residual, lost)

    def clear(self, x: Array, y: Array, lost: Mask) -> Mask:
        """Which contours (n,) stay on the image."""
        return np.asarray((self.scene.sampler.inside(x, y) | lost).all(axis=1))

    def window(self) -> tuple[int, int]:
        """How far the profile reaches in and out of the contour, whole px."""
        half = np.median(self.ellipses.half_axes(), axis=0)
        gap = float(np.median(_nearest(self.ellipses.centre))) - 2 * half[1]
        inner, outer = np.clip(np.round([0.8 * half[0], 0.5 * gap]), NARROWEST, WIDEST)
        return int(inner), int(outer)

    def levels(self) -> _Levels:
        """Plateau surfaces through the cores of the contacts and the far ground, the model's blur accounted for."""
        scene = self.scene
        model = gaussian_filter(render(self.ellipses, scene.rest), self.blur)
        degree = degree_for(len(self.ellipses))
        if self.plateau is None:
            shrunk = Ellipses(self.ellipses.centre, CORE * self.ellipses.root)
            core = render(shrunk, np.zeros_like(scene.rest)) >= 0.5
            self.plateau = typical(scene.smooth, gaussian_filter(model, SMOOTHING), core | scene.far, degree)
        plateau = self.plateau
        ground, contrast = fit_levels(scene.image, model, plateau.astype(np.float64), degree)
        if contrast.at(*self.ellipses.centre.T).min() <= 0:
            raise MeasurementRefused("no array of contacts: the contrast is not of one sign over the field")
        return _Levels(ground, contrast, plateau, model)

    def profiles(self, radius: Array, levels: _Levels, inner: int, outer: int) -> tuple[Array, Mask]:
        """The image along the rays between the plateaus, (n, rays, samples), and which samples lie on the image."""
        x, y = ray_points(self.ellipses.centre, self.angle, radius[:, :, None] + np.arange(-inner, outer + 1))
        edge_x, edge_y = ray_points(self.ellipses.centre, self.angle, radius)
        ground, contrast = (one.at(edge_x, edge_y)[:, :, None] for one in (levels.ground, levels.contrast))
        return (self.scene.sampler(x, y) - ground) / contrast, self.scene.sampler.inside(x, y)

    def calibrate(
        self, model: Array, radius: Array, inner: int, outer: int, template: Template
    ) -> tuple[float, Array, float]:
        """The level of the model's contour, what its rays need beyond it (px), the image's edge width over its own."""
        sampler = Sampler(model)
        x, y = ray_points(self.ellipses.centre, self.angle, radius[:, :, None] + np.arange(-inner, outer + 1))
        profiles, valid = sampler(x, y), sampler.inside(x, y)
        own = edge_template(profiles, valid, -inner)
        edges = locate(profiles, valid, own, float(min(inner, outer) - 1))
        offset = -float(np.mean(edges.shift[~edges.lost])) if not edges.lost.all() else 0.0
        ratio = template.width() / own.width()
        correction = np.where(edges.lost, 0, -edges.shift - offset)
        self.response = 1 - _slope(radius.mean(axis=1), correction.mean(axis=1))
        return float(own.spline(offset)), correction, ratio if math.isfinite(ratio) else 1.0

    def numbers(self, found: _Found, polarity: str, rejected: int) -> ContactMeasurement:
        ellipses, kept = self.ellipses, (~found.lost).sum(axis=1)
        diameter, extent = ellipses.diameter(), ellipses.extent()
        squares = np.where(found.lost, 0, found.residual) ** 2
        variance = float(squares.sum() / kept.sum())
        levels = found.levels
        contrast = float(np.median(levels.contrast.at(*ellipses.centre.T)))
        rest = self.scene.image - levels.ground.image() - levels.contrast.image() * levels.model
        noise = autocovariance(rest, levels.plateau)
        sigma = math.sqrt(max(float(noise[noise.shape[0] // 2, noise.shape[1] // 2]), 0.0))
        edge, residual, size = _noise_variances(found.template, noise / contrast**2, float(diameter.mean()), self.angle)
        size /= self.response**2
        spread = float(diameter.var(ddof=1))
        record = ContactMeasurement(
            polarity=polarity,
            level="plateau",
            level_fraction=found.level,
            contacts=_contacts(ellipses, found),
            pitch=float(np.median(_nearest(ellipses.centre))),
            cd_x_mean=float(extent[:, 0].mean()),
            cd_y_mean=float(extent[:, 1].mean()),
            diameter_mean=float(diameter.mean()),
            cer=3 * math.sqrt(variance),
            cer_unbiased=3 * math.sqrt(max(variance - residual, 0.0)),
            lcdu=3 * math.sqrt(spread),
            lcdu_unbiased=3 * math.sqrt(max(spread - size, 0.0)),
            edge_noise=math.sqrt(edge),
            edge_blur=self.blur,
            noise_sigma=sigma,
            contrast_to_noise=contrast / sigma if sigma > 0 else math.inf,
            lost_fraction=float(found.lost.mean()),
            rejected=rejected,
            flags=(),
        )
        if record.lost_fraction > MOST_LOST:
            raise MeasurementRefused(
                f"no round contacts: {100 * record.lost_fraction:.0f} % of the contour points show no edge"
            )
        if record.cer > ROUGHEST * record.diameter_mean:
            raise MeasurementRefused(
                "no array of contacts: the contours scatter about their ellipses as widely as they are"
            )
        return replace(record, flags=_flags(record, found.template, variance, residual, spread, size))


def _depth(profiles: Array, valid: Mask, template: Template) -> Array:
    """The level (n,) of the inner half of each contact, as a share of the array's."""
    inner = max(1, -template.first // 2)
    weight = valid[:, :, :inner]
    level = (profiles[:, :, :inner] * weight).sum(axis=(1, 2)) / np.maximum(weight.sum(axis=(1, 2)), 1)
    return np.asarray(level / float(template.values[:inner].mean()))


def _noise_variances(template: Template, noise: Array, diameter: float, angle: Array) -> tuple[float, float, float]:
    """Variance (px^2) by noise: of one ray's edge, of the residual about an ellipse, of the equivalent diameter."""
    covariance = edge_covariance(template, noise, diameter / 2, angle)
    columns = [np.ones_like(angle)]
    for order in (1, 2):
        columns += [np.cos(order * angle), np.sin(order * angle)]
    basis = np.linalg.qr(np.stack(columns, axis=1))[0]
    total = float(np.trace(covariance))
    taken = float(np.trace(basis.T @ covariance @ basis))
    return total / angle.size, max(total - taken, 0.0) / angle.size, max(4 * float(covariance.mean()), 0.0)


def _contacts(ellipses: Ellipses, found: _Found) -> tuple[Contact, ...]:
    diameter, extent, angle = ellipses.diameter(), ellipses.extent(), ellipses.angle_deg()
    return tuple(
        Contact(
            x=float(ellipses.centre[i, 0]),
            y=float(ellipses.centre[i, 1]),
            cd_x=float(extent[i, 0]),
            cd_y=float(extent[i, 1]),
            diameter=float(diameter[i]),
            angle_deg=float(angle[i]),
            cer=3 * math.sqrt(float(np.mean(found.residual[i, ~found.lost[i]] ** 2))),
            contour=np.stack([found.x[i], found.y[i]], axis=1),
            lost=found.lost[i],
            root=ellipses.root[i],
        )
        for i in range(len(ellipses))
    )


def _flags(
    record: ContactMeasurement, template: Template, variance: float, residual: float, spread: float, size: float
) -> tuple[str, ...]:
    flags = []
    if record.rejected > MOST_LOST * record.count:
        flags.append("irregular array: blobs left out")
    if residual > MOSTLY * variance:
        flags.append("contour roughness is mostly noise")
    if size > MOSTLY * spread:
        flags.append("LCDU is mostly noise")
    if template.values.min() < -RIM or template.values.max() > 1 + RIM:
        flags.append("bright or dark rim: the contour depends on it")
    return tuple(flags)


def _slope(x: Array, y: Array) -> float:
    """Slope of y over x by least squares, 0 where x does not vary."""
    away = x - x.mean()
    square = float(away @ away)
    return float(away @ y) / square if square > 1e-12 * float(x @ x) else 0.0


def _along_ray(x: Array, y: Array, ellipses: Ellipses) -> Array:
    """Distance (n, rays) from the ellipse to the points along rays from its centre, outwards above 0."""
    offset = np.stack([x - ellipses.centre[:, :1], y - ellipses.centre[:, 1:]], axis=2)
    norm = np.linalg.norm(np.einsum("nij,nrj->nri", ellipses.inverse(), offset), axis=2)
    return np.asarray(np.linalg.norm(offset, axis=2) * (1 - 1 / np.maximum(norm, 1e-9)))


def _roughness(contacts: tuple[Contact, ...], scale: tuple[float, float]) -> float:
    """3 x the rms of all contours about their ellipses along rays, lengths along x and y multiplied by scale."""
    matrix = np.diag(scale)
    squares: list[Array] = []
    for one in contacts:
        values, axes = np.linalg.eigh(matrix @ one.root @ one.root @ matrix)
        ellipse = Ellipses(np.array([[one.x, one.y]]) * scale, (axes * np.sqrt(values) @ axes.T)[None])
        points = one.contour[~one.lost] * scale
        squares.append(_along_ray(points[None, :, 0], points[None, :, 1], ellipse)[0] ** 2)
    return 3 * math.sqrt(float(np.mean(np.concatenate(squares))))
