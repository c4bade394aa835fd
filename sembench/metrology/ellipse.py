"""Ellipses and circles through many contours at once, by least squares along the rays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REFINEMENTS = 4
CIRCLE_ROUNDS = 8
TUKEY = 4.685


@dataclass(frozen=True, eq=False)
class Ellipses:
    """n ellipses: centre (n, 2) as x, y in px; root (n, 2, 2), symmetric, its eigenvalues the half axes.

    A point p lies on the ellipse where |root^-1 (p - centre)| = 1.
    """

    centre: Array
    root: Array

    def __len__(self) -> int:
        return len(self.centre)

    def __getitem__(self, chosen: "NDArray[np.bool_] | NDArray[np.intp]") -> "Ellipses":
        return Ellipses(self.centre[chosen], self.root[chosen])

    def inverse(self) -> Array:
        """The inverses (n, 2, 2) of the roots."""
        return np.asarray(np.linalg.inv(self.root), dtype=np.float64)

    def radius(self, angle: Array) -> Array:
        """Distance (n, rays) in px from the centre to the ellipse in the directions angle (rays,), in radians."""
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return 1 / _length(np.einsum("nij,rj->nri", self.inverse(), direction))

    def half_axes(self) -> Array:
        """Half axes (n, 2) in px, the shorter first."""
        return np.asarray(np.linalg.eigvalsh(self.root), dtype=np.float64)

    def diameter(self) -> Array:
        """Diameter (n,) in px of the circle of equal area, 2 sqrt(ab)."""
        return np.asarray(2 * np.sqrt(np.prod(self.half_axes(), axis=1)))

    def extent(self) -> Array:
        """Full extent (n, 2) in px along x and y: the sides of the upright rectangle that just holds the ellipse."""
        return 2 * _length(self.root)

    def angle_deg(self) -> Array:
        """Direction (n,) of the longer axis in degrees from x towards y, -90 (excluded) to 90."""
        axis = np.linalg.eigh(self.root)[1][:, :, 1]
        angle = np.degrees(np.arctan2(axis[:, 1], axis[:, 0]))
        return np.asarray(-((-angle + 90) % 180 - 90))


def _length(vectors: Array) -> Array:
    """Length of the vectors along the last axis."""
    return np.asarray(np.sqrt((vectors**2).sum(axis=-1)))


def fit_ellipses(x: Array, y: Array, weight: Array) -> tuple[Ellipses, "NDArray[np.bool_]"]:
    """Ellipses through the points x, y (n, rays), px, each weighted by weight (n, rays), 0 where a point is lost.

    A direct fit, which always gives an ellipse, is refined by Gauss-Newton steps on the distances between point and
    ellipse along the ray from the centre. Also given: (n,) whether the fit succeeded.
    Source: Halir and Flusser, Numerically stable direct least squares fitting of ellipses, 1998.
    """
    total = np.maximum(weight.sum(axis=1), 1e-12)
    mean = np.stack([(weight * x).sum(axis=1), (weight * y).sum(axis=1)], axis=1) / total[:, None]
    u, v = x - mean[:, :1], y - mean[:, 1:]
    scale = np.sqrt((weight * (u**2 + v**2)).sum(axis=1) / total) + 1e-12
    u, v = u / scale[:, None], v / scale[:, None]
    centre, root, good = _direct(u, v, weight)
    for _ in range(REFINEMENTS):
        centre, root = _refined(u, v, weight, centre, root)
    good &= np.isfinite(root).all(axis=(1, 2)) & np.isfinite(centre).all(axis=1)
    root = np.where(good[:, None, None], root, np.eye(2))
    half = np.linalg.eigvalsh(root)
    good &= (half[:, 0] > 0.05) & (half[:, 1] < 20) & (np.abs(centre).max(axis=1) < 20)
    root = np.where(good[:, None, None], root, np.eye(2))
    centre = np.where(good[:, None], centre, 0.0)
    return Ellipses(mean + scale[:, None] * centre, scale[:, None, None] * root), good


def _direct(u: Array, v: Array, weight: Array) -> tuple[Array, Array, "NDArray[np.bool_]"]:
    root_weight = np.sqrt(weight)[:, None, :]
    quadratic = np.stack([u * u, u * v, v * v], axis=1) * root_weight
    linear = np.stack([u, v, np.ones_like(u)], axis=1) * root_weight
    mixed = quadratic @ linear.transpose(0, 2, 1)
    plain = linear @ linear.transpose(0, 2, 1) + 1e-12 * np.eye(3)
    to_linear = -np.linalg.solve(plain, mixed.transpose(0, 2, 1))
    scatter = quadratic @ quadratic.transpose(0, 2, 1) + mixed @ to_linear
    reduced = np.stack([scatter[:, 2] / 2, -scatter[:, 1], scatter[:, 0] / 2], axis=1)
    vectors = np.real(np.linalg.eig(reduced)[1])
    condition = 4 * vectors[:, 0] * vectors[:, 2] - vectors[:, 1] ** 2
    best = np.argmax(condition, axis=1)
    conic = np.take_along_axis(vectors, best[:, None, None], axis=2)[:, :, 0]
    rest = np.einsum("nij,nj->ni", to_linear, conic)
    good = np.take_along_axis(condition, best[:, None], axis=1)[:, 0] > 1e-9
    conic = np.where(good[:, None], conic, [1.0, 0.0, 1.0])
    rest = np.where(good[:, None], rest, [0.0, 0.0, -1.0])
    matrix = np.stack([conic[:, 0], conic[:, 1] / 2, conic[:, 1] / 2, conic[:, 2]], axis=1).reshape(-1, 2, 2)
    centre = -0.5 * np.linalg.solve(matrix, rest[:, :2, None])[:, :, 0]
    constant = np.einsum("ni,nij,nj->n", centre, matrix, centre) - rest[:, 2]
    values, axes = np.linalg.eigh(matrix / np.where(np.abs(constant) > 1e-12, constant, 1.0)[:, None, None])
    good &= values[:, 0] > 1e-6
    values = np.where(good[:, None], values, 1.0)
    return centre, np.einsum("nij,nj,nkj->nik", axes, values**-0.5, axes), good


def _refined(u: Array, v: Array, weight: Array, centre: Array, root: Array) -> tuple[Array, Array]:
    """One Gauss-Newton step on the residual |p - centre| (1 - 1 / |root^-1 (p - centre)|)."""
    x, y = u - centre[:, :1], v - centre[:, 1:]
    distance = np.hypot(x, y) + 1e-12
    inverse = np.linalg.inv(root)
    a, b, c = (inverse[:, i, j][:, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    inside_x, inside_y = a * x + b * y, b * x + c * y
    norm = np.hypot(inside_x, inside_y) + 1e-12
    gain = distance / norm**3
    pull_x, pull_y = gain * (a * inside_x + b * inside_y), gain * (b * inside_x + c * inside_y)
    residual = distance * (1 - 1 / norm)
    along = residual / distance**2
    jacobian = -np.stack(
        [
            along * x + pull_x,
            along * y + pull_y,
            pull_x * inside_x,
            pull_x * inside_y + pull_y * inside_x,
            pull_y * inside_y,
        ],
        axis=1,
    )
    weighted = jacobian * weight[:, None, :]
    normal = weighted @ jacobian.transpose(0, 2, 1)
    normal += 1e-9 * (np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-12) * np.eye(5)
    step = -np.linalg.solve(normal, weighted @ residual[:, :, None])[:, :, 0]
    step *= np.minimum(1, 0.3 / (np.abs(step).max(axis=1, keepdims=True) + 1e-12))
    change = np.stack([step[:, 2], step[:, 3], step[:, 3], step[:, 4]], axis=1).reshape(-1, 2, 2)
    return centre + step[:, :2], root + change


def fit_circle(x: Array, y: Array, weight: Array) -> tuple[float, float, float, Array]:
    """Centre x, y and radius (px) of a circle through points (n,) and the weights (n,) that they ended with.

    Robust: points far from the circle lose their weight by Tukey's function of the residual over its spread.
    """
    trust = weight.astype(np.float64)
    centre_x, centre_y = float(np.average(x, weights=trust)), float(np.average(y, weights=trust))
    radius = float(np.average(np.hypot(x - centre_x, y - centre_y), weights=trust))
    for _ in range(CIRCLE_ROUNDS):
        across, down = x - centre_x, y - centre_y
        distance = np.hypot(across, down) + 1e-12
        jacobian = np.stack([across / distance, down / distance, np.ones_like(x)], axis=1)
        normal = jacobian.T @ (jacobian * trust[:, None]) + 1e-9 * np.eye(3)
        step = np.linalg.solve(normal, jacobian.T @ (trust * (distance - radius)))
        centre_x, centre_y, radius = centre_x + step[0], centre_y + step[1], radius + step[2]
        residual = np.abs(np.hypot(x - centre_x, y - centre_y) - radius)
        spread = max(1.4826 * float(np.median(residual[weight > 0])), 0.05)
        trust = weight * np.clip(1 - (residual / (TUKEY * spread)) ** 2, 0, None) ** 2
        if np.count_nonzero(trust) < 3:
            break
    return float(centre_x), float(centre_y), float(radius), trust
