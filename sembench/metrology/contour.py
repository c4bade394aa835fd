"""Closed contours along rays from a centre: the edge of each ray by a matched filter, and the noise of such edges."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates, spline_filter

from sembench.metrology.ellipse import Ellipses

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

TABLE_STEPS = 32
STEPS = 4
MISFIT, SMALLEST_MISFIT = 2.5, 0.06
OUTLIER, SMALLEST_OUTLIER = 8.0, 1.5
NEIGHBOURS = 5
LAGS = 2
REACH = 8
COVARIANCE_STEPS = 8


class Sampler:
    """An image (H, W) between its pixels, by a cubic spline."""

    def __init__(self, image: Array) -> None:
        self.shape = image.shape
        self._spline = spline_filter(image, order=3, mode="mirror")

    def __call__(self, x: Array, y: Array) -> Array:
        """Values at positions in px, of any one shape; beyond the border the image is mirrored."""
        places = np.stack([y.ravel(), x.ravel()])
        return np.asarray(
            map_coordinates(self._spline, places, order=3, mode="mirror", prefilter=False).reshape(x.shape)
        )

    def inside(self, x: Array, y: Array) -> Mask:
        """Whether positions in px lie on the image."""
        height, width = self.shape
        return np.asarray((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5))


def ray_angles(rays: int) -> Array:
    """Directions (rays,) in radians from x towards y, equally spaced from 0."""
    return 2 * np.pi * np.arange(rays) / rays


def ray_points(centre: Array, angle: Array, radius: Array) -> tuple[Array, Array]:
    """Positions x, y at radius (n, rays, ...) px from centre (n, 2) in directions angle (rays,)."""
    spread = (1,) * (radius.ndim - 2)
    cosine, sine = np.cos(angle).reshape(1, -1, *spread), np.sin(angle).reshape(1, -1, *spread)
    first = centre.reshape(-1, 1, *spread, 2)
    return first[..., 0] + radius * cosine, first[..., 1] + radius * sine


@dataclass(frozen=True, eq=False)
class Template:
    """The mean profile across an edge: values at whole distances from `first` on (px, outwards from the contour)."""

    first: int
    values: Array

    @property
    def spline(self) -> CubicSpline:
        """The profile between its values, level beyond them."""
        return CubicSpline(self.first + np.arange(self.values.size), self.values, bc_type="clamped")

    def crossing(self, level: float) -> float:
        """Distance (px, outwards) nearest to 0 at which the profile falls through the level; nan where it does not."""
        places = np.arange(self.first, self.first + self.values.size - 1 + 1e-9, 1 / TABLE_STEPS)
        values = self.spline(places)
        falls = np.flatnonzero((values[:-1] > level) & (values[1:] <= level))
        if not falls.size:
            return math.nan
        crossings = places[falls] + (values[falls] - level) / (values[falls] - values[falls + 1]) / TABLE_STEPS
        return float(crossings[np.argmin(np.abs(crossings))])

    def width(self) -> float:
        """Gaussian sigma (px) of an edge that falls from 3/4 to 1/4 as far as this; nan where it does not."""
        return (self.crossing(0.25) - self.crossing(0.75)) / 1.34898


def edge_template(profiles: Array, valid: Mask, first: int) -> Template:
    """The mean of profiles (n, rays, samples), each from `first` px on, over the valid ones."""
    count = np.maximum(valid.sum(axis=(0, 1)), 1)
    return Template(first, np.where(valid, profiles, 0).sum(axis=(0, 1)) / count)


@dataclass(frozen=True, eq=False)
class Edges:
    """Where template and profiles fit best: shift (n, rays) in px outwards, and whether the ray is lost."""

    shift: Array
    lost: Mask


def locate(profiles: Array, valid: Mask, template: Template, limit: float) -> Edges:
    """The matched filter: shifts, at most limit (px), that fit the template to profiles (n, rays, samples) best.

    Least squares by Gauss-Newton for all rays at once, without smoothing along the contour. Lost: the limit was
    reached, the misfit stands out, or half of the edge lies outside the image.
    """
    samples = profiles.shape[2]
    knots = np.arange(-math.ceil(limit) * TABLE_STEPS - 1, (samples - 1 + math.ceil(limit)) * TABLE_STEPS + 3)
    places = np.clip(template.first + knots / TABLE_STEPS, template.first, template.first + samples - 1)
    spline = template.spline
    table, slope_table = spline(places), spline(places, 1)
    weight = valid.astype(np.float64)
    origin = -float(knots[0])
    step_of = np.arange(samples) * TABLE_STEPS + origin
    shift = np.zeros(profiles.shape[:2])
    misfit = np.zeros_like(profiles)
    for step in range(STEPS + 1):
        index = step_of - shift[:, :, None] * TABLE_STEPS
        whole = index.astype(np.int64)
        part = index - whole
        misfit = profiles - (table[whole] + part * (table[whole + 1] - table[whole]))
        if step == STEPS:
            break
        slope = (slope_table[whole] + part * (slope_table[whole + 1] - slope_table[whole])) * weight
        gain = np.maximum((slope * slope).sum(axis=2), 1e-12)
        shift = np.clip(shift - np.clip((misfit * slope).sum(axis=2) / gain, -1, 1), -limit, limit)
    square = (misfit**2 * weight).sum(axis=2) / np.maximum(weight.sum(axis=2), 1)
    around = sum(np.roll(square, lag, axis=1) for lag in range(-(NEIGHBOURS // 2), NEIGHBOURS // 2 + 1)) / NEIGHBOURS
    lost = (np.abs(shift) >= limit) | (around > max(MISFIT * float(np.median(around)), SMALLEST_MISFIT))
    edge_power = spline(template.first + np.arange(samples), 1) ** 2
    lost |= (weight * edge_power).sum(axis=2) < 0.6 * edge_power.sum()
    return Edges(shift, lost)


def outliers(residual: Array, lost: Mask) -> Mask:
    """Rays (n, rays) whose residual (px) stands out from those of all contours, and those already lost."""
    kept = residual[~lost]
    if not kept.size:
        return lost
    return lost | (np.abs(residual) > max(OUTLIER * 1.4826 * float(np.median(np.abs(kept))), SMALLEST_OUTLIER))


def low_orders(shift: Array, lost: Mask, orders: int) -> Array:
    """The shifts (n, rays) with lost rays set to 0 and only the Fourier orders up to `orders` left."""
    spectrum = np.fft.rfft(np.where(lost, 0, shift), axis=1)
    spectrum[:, orders + 1 :] = 0
    return np.fft.irfft(spectrum, shift.shape[1], axis=1)


def render(ellipses: Ellipses, rest: Mask) -> Array:
    """Covered part 0..1 of each pixel of an image (H, W) under filled ellipses, and under the pixels of `rest`."""
    height, width = rest.shape
    cover = rest.astype(np.float64)
    if not len(ellipses):
        return cover
    half = math.ceil(float(ellipses.half_axes().max())) + 2
    near = np.rint(ellipses.centre).astype(np.int64)
    grid = np.arange(-half, half + 1)
    column, row = near[:, None, None, 0] + grid, near[:, None, None, 1] + grid[:, None]
    column, row = np.broadcast_arrays(column, row)
    x, y = column - ellipses.centre[:, None, None, 0], row - ellipses.centre[:, None, None, 1]
    inverse = ellipses.inverse()
    a, b, c = (inverse[:, i, j][:, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = a * x + b * y, b * x + c * y
    norm = np.hypot(u, v)
    distance = (1 - norm) * norm / np.maximum(np.hypot(a * u + b * v, b * u + c * v), 1e-9)
    area = np.where(norm < 0.2, 1.0, np.clip(distance + 0.5, 0, 1))
    on = (area > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    added = np.bincount((row[on] * width + column[on]), area[on], height * width).reshape(height, width)
    return np.minimum(cover + added, 1)


def autocovariance(residual: Array, chosen: Mask) -> Array:
    """Covariance of a residual (H, W) over chosen pixels at lags -2..2 px down and across, (5, 5)."""
    values = np.where(chosen, residual - residual[chosen].mean(), 0)
    weight = chosen.astype(np.float64)
    height, width = values.shape
    result = np.zeros((2 * LAGS + 1, 2 * LAGS + 1))
    for down in range(LAGS + 1):
        for across in range(-LAGS, LAGS + 1):
            here = (slice(0, height - down), slice(max(0, -across), width - max(0, across)))
            there = (slice(down, height), slice(max(0, across), width - max(0, -across)))
            count = max(float((weight[here] * weight[there]).sum()), 1.0)
            value = float((values[here] * values[there]).sum()) / count
            result[LAGS + down, LAGS + across] = result[LAGS - down, LAGS - across] = value
    return result


def edge_covariance(template: Template, noise: Array, radius: float, angle: Array) -> Array:
    """Covariance (rays, rays) in px^2 of the located edges of a circle of that radius (px), made by the noise alone.

    noise: covariance (5, 5) of the pixel noise at lags -2..2, in units of the squared contrast. The spline between
    pixels is taken at the mean over its phases.
    """
    place = template.first + np.arange(template.values.size)
    slope = template.spline(place, 1)
    filters = slope / max(float(slope @ slope), 1e-12)
    table = _sampled_covariance(noise)
    rays = angle.size
    reach = min(math.ceil(5 * rays / (2 * math.pi * max(radius, 1.0))), (rays - 1) // 2)
    along = radius + place
    covariance = np.zeros((rays, rays))
    x, y = np.outer(np.cos(angle), along), np.outer(np.sin(angle), along)
    for lag in range(reach + 1):
        other = np.roll(np.arange(rays), -lag)
        across = x[:, :, None] - x[other][:, None, :]
        down = y[:, :, None] - y[other][:, None, :]
        pair = np.einsum("i,rij,j->r", filters, _look_up(table, down, across), filters)
        covariance[np.arange(rays), other] = pair
        covariance[other, np.arange(rays)] = pair
    return covariance


def _sampled_covariance(noise: Array) -> Array:
    """Covariance of spline-interpolated noise at differences -8..8 px down and across, in eighths of a px."""
    frequency = (np.arange(4096) + 0.5) / 1024
    response = np.sinc(frequency) ** 8 * (3 / (2 + np.cos(2 * np.pi * frequency))) ** 2
    side = np.arange(-(REACH + LAGS) * COVARIANCE_STEPS, (REACH + LAGS) * COVARIANCE_STEPS + 1) / COVARIANCE_STEPS
    kernel = 2 * (np.cos(2 * np.pi * np.outer(side, frequency)) @ response) / 1024
    length = 2 * REACH * COVARIANCE_STEPS + 1
    shifted = np.stack([kernel[(LAGS - lag) * COVARIANCE_STEPS :][:length] for lag in range(-LAGS, LAGS + 1)])
    return np.asarray(np.einsum("di,dl,lj->ij", shifted, noise, shifted))


def _look_up(table: Array, down: Array, across: Array) -> Array:
    limit = REACH * COVARIANCE_STEPS
    row = np.clip(np.rint(down * COVARIANCE_STEPS) + limit, 0, 2 * limit).astype(np.int64)
    column = np.clip(np.rint(across * COVARIANCE_STEPS) + limit, 0, 2 * limit).astype(np.int64)
    return np.asarray(table[row, column])
