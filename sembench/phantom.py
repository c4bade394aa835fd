"""Scenes drawn from a random stream, area-sampled, with true geometry: lines, contacts, particles, grains, fibres.

Lengths in px, gray levels 0..255. Pixel (y, x) covers x - 1/2..x + 1/2: pixel centres are integers.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import Voronoi
from scipy.special import gamma, ndtr

from sembench.errors import InputError
from sembench.optics import generator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

VERSION = 1
"""Raised by hand whenever a scene of the same seed comes out differently."""

CORPUS_KINDS = ("lines", "contacts", "particles", "grains", "fibres")
"""The kinds of the embedded data set, in the order in which case ids P001, P002, ... take them."""

SMALLEST_SIDE = 64
LARGEST_SIDE = 4096
SUBPIXELS = 4
TABLE_STEPS = 64
CONTOUR_ANGLES = 128
CONTOUR_TABLE = 1024
EDGES_AT_ONCE = 8
SHARP = 1e-6


@dataclass(frozen=True)
class Scene:
    """One scene: image float32 (H, W), gray levels 0..255, and its truth in plain values that JSON can hold.

    truth["kind"] names the generator; scalars ending in _px are lengths; pixel_size_nm is there where it is known.
    """

    image: "NDArray[np.float32]"
    truth: dict[str, Any]


def with_pixel_size(scene: Scene, pixel_size_nm: float) -> Scene:
    """The same scene with its pixel size (nm, above 0): each number ending in _px is repeated in nm."""
    if not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise InputError(f"pixel size is {pixel_size_nm} nm: give a number above 0")
    lengths = {
        f"{name.removesuffix('_px')}_nm": value * pixel_size_nm
        for name, value in scene.truth.items()
        if name.endswith("_px") and isinstance(value, float)
    }
    return replace(scene, truth={**scene.truth, "pixel_size_nm": pixel_size_nm, **lengths})


def palasantzas_psd(frequency: "NDArray[np.floating]", sigma: float, xi: float, hurst: float) -> "NDArray[np.floating]":
    """Two-sided power spectral density (px^3) of a rough edge at frequencies in cycles/px; its integral is sigma^2.

    sigma, xi: rms amplitude and correlation length (px); hurst: roughness exponent. Source: Palasantzas, 1993.
    """
    scale = sigma**2 * 2 * xi * math.sqrt(math.pi) * gamma(hurst + 0.5) / gamma(hurst)
    return np.asarray(scale * (1 + (2 * np.pi * frequency * xi) ** 2) ** -(hurst + 0.5))


def rough_edge(rng: np.random.Generator, rows: int, sigma: float, xi: float, hurst: float) -> "NDArray[np.float64]":
    """One Gaussian rough edge, displacement in px, four values a row: shape (4 rows,).

    Synthesised on a circle four times longer than the edge, so that the edge itself is not periodic.
    """
    samples = 4 * rows * SUBPIXELS
    frequency = np.arange(samples // 2 + 1) * (SUBPIXELS / samples)
    normals = rng.standard_normal((2, frequency.size))
    phasor = (normals[0] + 1j * normals[1]) / math.sqrt(2)
    phasor[[0, -1]] = normals[0, [0, -1]]
    spectrum = samples * np.sqrt(palasantzas_psd(frequency, sigma, xi, hurst) * frequency[1]) * phasor
    return np.fft.irfft(spectrum, samples)[: rows * SUBPIXELS]


def edge_profile(
    u: "NDArray[np.float64]", edge_sigma: float, rim: float = 0.0, rim_length: float = 3.0
) -> "NDArray[np.float64]":
    """The intensity at a signed distance u (px, positive inside): a step from 0 to 1 with a bright rim, blurred.

    The rim adds rim * exp(-u / rim_length) inside; the blur is a Gaussian of edge_sigma (px, 0: none).
    """
    step, decay = _blurred_step(u, edge_sigma, rim_length)
    return step + rim * decay


def edge_integral(
    u: "NDArray[np.float64]", edge_sigma: float, rim: float = 0.0, rim_length: float = 3.0
) -> "NDArray[np.float64]":
    """The integral of `edge_profile` from far outside up to u, in px."""
    step, decay = _blurred_step(u, edge_sigma, rim_length)
    bell = np.zeros_like(u)
    if edge_sigma >= SHARP:
        bell = edge_sigma * np.exp(-0.5 * (u / edge_sigma) ** 2) / math.sqrt(2 * math.pi)
    return u * step + bell + rim * rim_length * (step - decay)


def _blurred_step(
    u: "NDArray[np.float64]", sigma: float, length: float
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """The unit step, and the step times exp(-u / length), both convolved with a Gaussian of sigma."""
    if sigma < SHARP:
        step = (u > 0) + 0.5 * (u == 0)
        return step, step * np.exp(-np.maximum(u, 0) / length)
    inside = np.maximum(u, -8 * sigma)
    decay = np.exp(0.5 * (sigma / length) ** 2 - inside / length) * ndtr(inside / sigma - sigma / length)
    return ndtr(u / sigma), decay


def lines(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    pitch: float,
    duty: float,
    sigma: float,
    xi: float,
    hurst: float,
    edge_sigma: float,
    tilt_deg: float = 0.0,
    low: float = 60.0,
    high: float = 180.0,
    rim: float = 0.0,
    rim_length: float = 3.0,
    transposed: bool = False,
) -> Scene:
    """Bright vertical lines (horizontal where transposed) with independent rough edges, exactly area-sampled.

    pitch, pitch * duty: period and line width along a row (px); sigma, xi, hurst: roughness of each edge;
    edge_sigma: blur (px); tilt_deg: of all lines, at most 10 degrees; rim: height of the bright rim over high - low.
    truth: left_px and right_px, a list a complete line, hold the mean edge position in each row; cd_px, cd_std_px,
    pitch_px, lwr_px, ler_px, tilt_deg are those of the same lines and rows, by the definitions of `sembench.metrology`.
    Raises InputError where a parameter is out of range, no line is complete, or the rim passes 255.
    """
    _check_frame(height, width, edge_sigma, low, high)
    _check_roughness(sigma, xi, hurst)
    _check_rim(rim, rim_length)
    _check("pitch", pitch, 4.0, min(height, width), "px")
    _check("duty", duty, 0.0, 1.0, "")
    _check("tilt", tilt_deg, -10.0, 10.0, "degrees", closed=True)
    line_width = duty * pitch
    narrower = min(line_width, pitch - line_width)
    if sigma > narrower / 6:
        raise InputError(
            f"sigma is {sigma} px, more than a sixth of the narrower of line and space ({narrower:.3g} px): "
            "make it smaller, or edges would cross"
        )
    rows, columns = (width, height) if transposed else (height, width)
    slope = math.tan(math.radians(tilt_deg))
    positions = _edge_positions(rng, rows, columns, pitch, line_width, slope, (sigma, xi, hurst))
    signs = np.where(np.arange(len(positions)) % 2 == 0, 1, -1)
    coverage = _paint_edges(positions, signs, columns, edge_sigma, rim, rim_length)
    image = low + (high - low) * coverage
    truth = {
        "kind": "lines",
        "height": height,
        "width": width,
        "transposed": transposed,
        "low": low,
        "high": high,
        **_line_truth(positions, columns),
        "drawn": {
            "pitch": pitch,
            "duty": duty,
            "sigma": sigma,
            "xi": xi,
            "hurst": hurst,
            "edge_sigma": edge_sigma,
            "tilt_deg": tilt_deg,
            "rim": rim,
            "rim_length": rim_length,
        },
    }
    return _scene(image.T if transposed else image, truth)


def _edge_positions(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    pitch: float,
    line_width: float,
    slope: float,
    roughness: tuple[float, float, float],
) -> "NDArray[np.float64]":
    """Positions (edges, 4 rows) in px of the left and right edge of each line that may touch the image, in turn."""
    phase = rng.uniform(0, pitch)
    heights = (np.arange(rows * SUBPIXELS) + 0.5) / SUBPIXELS - 0.5 * rows
    reach = abs(slope) * rows / 2 + 6 * roughness[0] + line_width
    first = math.floor((-reach - phase) / pitch)
    last = math.ceil((columns + reach - phase) / pitch)
    centres = phase + pitch * np.arange(first, last + 1)
    straight = np.stack([centres - line_width / 2, centres + line_width / 2], axis=1).reshape(-1, 1)
    rough = np.stack([rough_edge(rng, rows, *roughness) for _ in range(len(straight))])
    return straight + slope * heights + rough


def _paint_edges(
    positions: "NDArray[np.float64]",
    signs: "NDArray[np.int64]",
    columns: int,
    edge_sigma: float,
    rim: float,
    rim_length: float,
) -> "NDArray[np.float64]":
    """Mean of the line profile over each pixel, (rows, columns); signs: 1 where the line is right of the edge."""
    rows = positions.shape[1] // SUBPIXELS
    inside = math.ceil(7 * edge_sigma + (16 * rim_length if rim > 0 else 0)) + 2
    outside = math.ceil(7 * edge_sigma) + 2
    knots = np.arange(-(outside + 2) * TABLE_STEPS, (inside + 2) * TABLE_STEPS + 1) / TABLE_STEPS
    table = edge_integral(knots, edge_sigma, rim, rim_length)
    differences = np.zeros(rows * (columns + 1))
    row_of = np.repeat(np.arange(rows), SUBPIXELS)[:, None] * (columns + 1)
    for sign, before, after in ((1, 0.0, 1.0), (-1, 1.0, 0.0)):
        borders = np.arange(-outside, inside + 1) if sign == 1 else np.arange(-inside, outside + 1)
        same = positions[signs == sign]
        for start in range(0, len(same), EDGES_AT_ONCE):
            edges = same[start : start + EDGES_AT_ONCE]
            column = np.floor(edges + 0.5).astype(np.int64)[:, :, None] + borders
            distance = sign * (column - 0.5 - edges[:, :, None])
            area = np.diff(sign * _look_up(table, (distance + outside + 2) * TABLE_STEPS))
            steps = np.diff(area, prepend=before, append=after)
            target = np.clip(column, 0, columns) + row_of
            differences += np.bincount(target.ravel(), steps.ravel(), differences.size)
    return np.cumsum(differences.reshape(rows, columns + 1)[:, :columns], axis=1) / SUBPIXELS


def _look_up(table: "NDArray[np.floating]", position: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """Linear interpolation in a table at fractional indices."""
    index = position.astype(np.int32)
    value = table[index]
    return value + (position - index.astype(position.dtype)) * (table[index + 1] - value)


def _line_truth(positions: "NDArray[np.float64]", columns: int) -> dict[str, Any]:
    """The numbers of the lines whose both edges stay inside the image in every sub-row."""
    pairs = positions.reshape(-1, 2, positions.shape[1])
    whole = (pairs.min(axis=(1, 2)) >= -0.5) & (pairs.max(axis=(1, 2)) <= columns - 0.5)
    if not whole.any():
        raise InputError("no line lies wholly inside the image: make the image larger, or pitch or tilt smaller")
    rows = positions.shape[1] // SUBPIXELS
    edges = pairs[whole].reshape(-1, 2, rows, SUBPIXELS).mean(axis=3)
    heights = np.arange(rows) - (rows - 1) / 2
    slope = float((edges @ heights).mean() / (heights @ heights))
    cosine = math.cos(math.atan(slope))
    widths = (edges[:, 1] - edges[:, 0]) * cosine
    upright = (edges - slope * heights) * cosine
    several = len(edges) > 1
    return {
        "lines": len(edges),
        "cd_px": float(widths.mean()),
        "cd_std_px": float(widths.mean(axis=1).std(ddof=1)) if several else None,
        "pitch_px": float(np.diff(edges.mean(axis=2), axis=0).mean() * cosine) if several else None,
        "lwr_px": 3 * _spread(widths),
        "ler_px": 3 * _spread(upright),
        "tilt_deg": math.degrees(math.atan(slope)),
        "left_px": edges[:, 0].tolist(),
        "right_px": edges[:, 1].tolist(),
    }


def _spread(curves: "NDArray[np.float64]") -> float:
    """Root mean square of curves (..., rows), each about its own mean."""
    return float(np.sqrt(np.mean((curves - curves.mean(axis=-1, keepdims=True)) ** 2)))


class _Canvas:
    """A field of gray levels on sub-pixels, wider than the image by a margin, so that its blur needs no borders."""

    def __init__(self, height: int, width: int, edge_sigma: float, gray: float) -> None:
        self.height = height
        self.width = width
        self.edge_sigma = edge_sigma
        self.margin = math.ceil(5 * edge_sigma) + 1
        self.x = self._centres(width)
        self.y = self._centres(height)
        self.field = np.full((self.y.size, self.x.size), gray, dtype=np.float32)

    def _centres(self, side: int) -> "NDArray[np.float32]":
        steps = np.arange((side + 2 * self.margin) * SUBPIXELS)
        return ((steps + 0.5) / SUBPIXELS - 0.5 - self.margin).astype(np.float32)

    def window(self, x: float, y: float, reach_x: float, reach_y: float) -> tuple[slice, slice]:
        """The sub-pixels, rows and columns, no further from (x, y) than the reaches."""
        return self._span(self.y, y, reach_y), self._span(self.x, x, reach_x)

    @staticmethod
    def _span(centres: "NDArray[np.float32]", middle: float, reach: float) -> slice:
        first, last = np.searchsorted(centres, [middle - reach, middle + reach])
        return slice(int(first), int(last))

    def image(self) -> "NDArray[np.float32]":
        """The field convolved with the Gaussian and averaged over each pixel, (H, W)."""
        down = self._averaging(self.height) @ self.field
        return np.asarray((self._averaging(self.width) @ np.ascontiguousarray(down.T)).T)

    def _averaging(self, side: int) -> csr_array:
        """Weights (side, sub-pixels) of the sub-pixels, constant over each, in the blurred pixels of one axis."""
        count = (2 * self.margin + 1) * SUBPIXELS
        offset = (np.arange(count) + 0.5) / SUBPIXELS - 0.5 - self.margin
        near, far = 0.5 - 0.5 / SUBPIXELS, 0.5 + 0.5 / SUBPIXELS
        corners = ((1, far), (-1, near), (-1, -near), (1, -far))
        weights = np.sum([sign * edge_integral(u - offset, self.edge_sigma) for sign, u in corners], axis=0)
        columns = SUBPIXELS * np.arange(side)[:, None] + np.arange(count)
        data = np.tile(weights / weights.sum(), side).astype(np.float32)
        starts = count * np.arange(side + 1)
        return csr_array((data, columns.ravel(), starts), shape=(side, (side + 2 * self.margin) * SUBPIXELS))


def _coverage(distance: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Covered part of each sub-pixel, from the signed distance of its centre to the contour (px, inside above 0)."""
    return np.asarray(np.clip(distance * np.float32(SUBPIXELS) + np.float32(0.5), 0, 1))


def contacts(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    pitch: float,
    diameter: float,
    edge_sigma: float,
    ellipticity: float = 1.0,
    sigma: float = 0.0,
    xi: float = 10.0,
    hurst: float = 0.6,
    diameter_sigma: float = 0.0,
    placement_sigma: float = 0.0,
    staggered: bool = False,
    pillars: bool = False,
    low: float = 60.0,
    high: float = 180.0,
    rim: float = 0.0,
    rim_length: float = 3.0,
) -> Scene:
    """Dark holes in a bright layer, or bright pillars on a dark ground, on a grid, with elliptical rough contours.

    pitch, diameter: px; ellipticity: x axis over y axis, the diameter being their geometric mean; sigma, xi, hurst:
    radial roughness along the contour, without the orders that shift or ellipse could take up; diameter_sigma,
    placement_sigma: between contacts (px); staggered: odd rows moved by half a pitch; rim: as in `lines`, on the
    bright side. truth: contacts, each with x_px, y_px, cd_x_px, cd_y_px, diameter_px, roughness_px, complete, and
    radii_px at the angles angle_deg (x right, y down); over the complete ones diameter_px, lcdu_px (3 sigma of the
    diameters), roughness_px (3 sigma of the radii about the ellipses). Raises InputError where a value is out of range.
    """
    _check_frame(height, width, edge_sigma, low, high)
    _check_roughness(sigma, xi, hurst)
    _check_rim(rim, rim_length)
    _check("pitch", pitch, 4.0, min(height, width), "px")
    _check("ellipticity", ellipticity, 0.2, 5.0, "", closed=True)
    longest = diameter * max(ellipticity, 1 / ellipticity) ** 0.5
    _check("diameter", longest, 2.0, pitch - 1, "px along the longer axis")
    _check("diameter_sigma", diameter_sigma, 0.0, diameter / 8, "px", closed=True)
    _check("placement_sigma", placement_sigma, 0.0, pitch / 16, "px", closed=True)
    if sigma > min(diameter**2 / longest, pitch - longest) / 6:
        raise InputError(f"sigma is {sigma} px, too rough for contacts of {diameter} px at {pitch} px: make it smaller")
    ground, inside = (low, high) if pillars else (high, low)
    canvas = _Canvas(height, width, edge_sigma, ground)
    rim_reach = 8 * rim_length if rim > 0 else 0.0
    every = CONTOUR_TABLE // CONTOUR_ANGLES
    drawn = []
    for grid_x, grid_y in _grid(rng, height, width, pitch, staggered):
        x, y = np.array([grid_x, grid_y]) + placement_sigma * rng.standard_normal(2)
        size = diameter + diameter_sigma * float(np.clip(rng.standard_normal(), -4, 4))
        half_x, half_y = size / 2 * ellipticity**0.5, size / 2 / ellipticity**0.5
        residual = _rough_contour(rng, size / 2, sigma, xi, hurst)
        radii = _ellipse(half_x, half_y) + residual
        reach = float(radii.max())
        rows, columns = canvas.window(x, y, reach + rim_reach + 1, reach + rim_reach + 1)
        distance = _distance_to_contour(canvas.x[columns] - np.float32(x), canvas.y[rows] - np.float32(y), radii)
        cover = _coverage(distance)
        patch = canvas.field[rows, columns]
        patch += cover * np.float32(inside - ground)
        if rim > 0:
            bright, depth = (cover, distance) if pillars else (1 - cover, -distance)
            decay = np.exp(-np.maximum(depth, 0) / np.float32(rim_length))
            patch += bright * np.float32(rim * (high - low)) * decay
        drawn.append(
            {
                "x_px": float(x),
                "y_px": float(y),
                "cd_x_px": 2 * half_x,
                "cd_y_px": 2 * half_y,
                "diameter_px": size,
                "roughness_px": 3 * float(np.sqrt(np.mean(residual**2))),
                "complete": _complete(x, y, reach, height, width),
                "radii_px": radii[::every].tolist(),
            }
        )
    seen = [
        one for one in drawn if _touches(one["x_px"], one["y_px"], max(one["radii_px"]) + 5 * edge_sigma, height, width)
    ]
    complete = [one for one in seen if one["complete"]]
    diameters = np.array([one["diameter_px"] for one in complete])
    roughness = np.array([one["roughness_px"] for one in complete])
    truth = {
        "kind": "contacts",
        "height": height,
        "width": width,
        "pillars": pillars,
        "low": low,
        "high": high,
        "complete": len(complete),
        "pitch_px": float(pitch),
        "diameter_px": float(diameters.mean()) if complete else None,
        "lcdu_px": 3 * float(diameters.std(ddof=1)) if len(complete) > 1 else None,
        "roughness_px": float(np.sqrt(np.mean(roughness**2))) if complete else None,
        "angle_deg": np.linspace(0, 360, CONTOUR_ANGLES, endpoint=False).tolist(),
        "contacts": seen,
    }
    return _scene(canvas.image(), truth)


def _grid(
    rng: np.random.Generator, height: int, width: int, pitch: float, staggered: bool
) -> "Iterator[tuple[float, float]]":
    """Points (x, y) of a square grid of random phase, or one whose odd rows are moved, that may touch the image."""
    start_x, start_y = rng.uniform(0, pitch, 2) - 2 * pitch
    step_y = pitch * math.sqrt(3) / 2 if staggered else pitch
    for row in range(math.ceil((height + 3 * pitch) / step_y)):
        shift = pitch / 2 if staggered and row % 2 else 0.0
        for column in range(math.ceil((width + 3 * pitch) / pitch)):
            yield start_x + shift + column * pitch, start_y + row * step_y


def _ellipse(half_x: float, half_y: float) -> "NDArray[np.float64]":
    """Radii of an ellipse about its centre at the angles of the contour table."""
    angle = 2 * np.pi * np.arange(CONTOUR_TABLE) / CONTOUR_TABLE
    return half_x * half_y / np.hypot(half_y * np.cos(angle), half_x * np.sin(angle))


def _rough_contour(
    rng: np.random.Generator, radius: float, sigma: float, xi: float, hurst: float
) -> "NDArray[np.float64]":
    """Radial residuals (px) at the angles of the contour table: a periodic rough edge without its orders 0 to 2."""
    length = 2 * math.pi * radius
    orders = np.arange(3, CONTOUR_ANGLES // 2)
    normals = rng.standard_normal((2, orders.size))
    spectrum = np.zeros(CONTOUR_TABLE // 2 + 1, dtype=complex)
    power = palasantzas_psd(orders / length, sigma, xi, hurst) / length * (orders <= length / 2)
    spectrum[orders] = CONTOUR_TABLE * np.sqrt(power / 2) * (normals[0] + 1j * normals[1])
    return np.fft.irfft(spectrum, CONTOUR_TABLE)


def _distance_to_contour(
    x: "NDArray[np.float32]", y: "NDArray[np.float32]", radii: "NDArray[np.float64]"
) -> "NDArray[np.float32]":
    """Signed distance (inside above 0, first order) of the points (y, x) to a contour about the origin."""
    slope = (np.roll(radii, -1) - np.roll(radii, 1)) * CONTOUR_TABLE / (4 * np.pi)
    stretch = (1 / np.hypot(1, slope / radii)).astype(np.float32)
    turns = np.arctan2(y[:, None], x[None, :]) * np.float32(CONTOUR_TABLE / (2 * np.pi))
    index = np.rint(turns).astype(np.int32) % CONTOUR_TABLE
    return np.asarray((radii.astype(np.float32)[index] - np.sqrt(x**2 + (y**2)[:, None])) * stretch[index])


def particles(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    diameter: float,
    covered: float,
    edge_sigma: float,
    spread: float = 0.2,
    overlapping: bool = False,
    shading: float = 0.0,
    low: float = 40.0,
    high: float = 200.0,
) -> Scene:
    """Bright discs on a dark ground, apart by two px or more, or overlapping: the later lie on top.

    diameter, spread: median (px) and log-normal width of the diameters, cut at two widths; covered: part of the image
    under the discs, reached as far as they find room; shading: 0 flat discs .. 1 spheres brighter towards the limb,
    which also throw a shadow. truth: particles in drawing order, each with x_px, y_px, diameter_px, complete,
    overlapped; mean diameter_px of the complete ones. Raises InputError where a value is out of range.
    """
    _check_frame(height, width, edge_sigma, low, high)
    _check("diameter", diameter, 4.0, min(height, width) / 2, "px")
    _check("covered", covered, 0.0, 1.0 if overlapping else 0.5, "")
    _check("spread", spread, 0.0, 0.5, "", closed=True)
    _check("shading", shading, 0.0, 1.0, "", closed=True)
    canvas = _Canvas(height, width, edge_sigma, low)
    discs = _place_discs(rng, height, width, diameter / 2, spread, covered, overlapping)
    drawn = []
    for number, (x, y, radius) in enumerate(discs.tolist()):
        _paint_disc(canvas, x, y, radius, shading, low, high)
        above = discs[number + 1 :]
        if _touches(x, y, radius + 5 * edge_sigma, height, width):
            drawn.append(
                {
                    "x_px": x,
                    "y_px": y,
                    "diameter_px": 2 * radius,
                    "complete": _complete(x, y, radius, height, width),
                    "overlapped": bool((np.hypot(above[:, 0] - x, above[:, 1] - y) < above[:, 2] + radius).any()),
                }
            )
    sizes = [one["diameter_px"] for one in drawn if one["complete"]]
    truth = {
        "kind": "particles",
        "height": height,
        "width": width,
        "low": low,
        "high": high,
        "complete": len(sizes),
        "diameter_px": float(np.mean(sizes)) if sizes else None,
        "particles": drawn,
    }
    return _scene(canvas.image(), truth)


def _place_discs(
    rng: np.random.Generator,
    height: int,
    width: int,
    radius: float,
    spread: float,
    covered: float,
    overlapping: bool,
) -> "NDArray[np.float64]":
    """Discs (n, 3) as x, y, radius, in drawing order, until they cover their part or 200 in a row find no room."""
    largest = radius * math.exp(2 * spread)
    wanted = (-math.log1p(-covered) if overlapping else covered) * (height + 2 * largest) * (width + 2 * largest)
    discs = np.empty((0, 3))
    misses = 0
    while wanted > 0 and misses < 200:
        size = radius * math.exp(spread * float(np.clip(rng.standard_normal(), -2, 2)))
        x, y = rng.uniform(-largest, [width + largest, height + largest])
        if not overlapping and (np.hypot(discs[:, 0] - x, discs[:, 1] - y) < discs[:, 2] + size + 2).any():
            misses += 1
            continue
        misses = 0
        wanted -= math.pi * size**2
        discs = np.vstack([discs, (x, y, size)])
    return discs


def _paint_disc(canvas: _Canvas, x: float, y: float, radius: float, shading: float, low: float, high: float) -> None:
    shadow = 0.7 * radius if shading > 0 else 0.0
    rows, columns = canvas.window(x, y, radius + shadow + 1, radius + shadow + 1)
    across = canvas.x[columns] - np.float32(x)
    down = canvas.y[rows] - np.float32(y)
    distance = np.float32(radius) - np.sqrt(across**2 + (down**2)[:, None])
    _paint_round(canvas.field[rows, columns], distance, radius, shadow, shading, low, high)


def _paint_round(
    patch: "NDArray[np.float32]",
    distance: "NDArray[np.float32]",
    radius: float,
    shadow: float,
    shading: float,
    low: float,
    high: float,
) -> None:
    """Paint a sphere or cylinder over a patch in place: its shadow first, then its body, bright at the limb."""
    if shading > 0:
        patch *= 1 - np.float32(0.5 * shading) * np.clip(1 + distance / np.float32(shadow), 0, 1) ** 2
    depth = 1 - np.clip(distance / np.float32(radius), 0, 1)
    rise = 1 - np.float32(0.6 * shading) * np.sqrt(1 - depth**2)
    patch += _coverage(distance) * (np.float32(low) + np.float32(high - low) * rise - patch)


def grains(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    diameter: float,
    edge_sigma: float,
    groove: float = 0.0,
    groove_width: float = 1.5,
    low: float = 60.0,
    high: float = 180.0,
) -> Scene:
    """Voronoi grains, each of one gray level, with dark boundary grooves where groove is above 0.

    diameter: of a circle of the mean grain's area (px, at least 8); groove: depth over high - low, -1..1 (below 0
    the boundaries are bright); groove_width: Gaussian sigma across the boundary (px). truth: grains that may touch the
    image, each with its seed x_px, y_px, gray, vertices_px (x, y), area_px2, complete; mean diameter_px of the
    complete ones. Raises InputError where a value is out of range.
    """
    _check_frame(height, width, edge_sigma, low, high)
    _check("diameter", diameter, 8.0, min(height, width) / 2, "px", closed=True)
    _check("groove", groove, -1.0, 1.0, "", closed=True)
    _check("groove_width", groove_width, 0.2, diameter / 4, "px", closed=True)
    canvas = _Canvas(height, width, edge_sigma, 0.0)
    seeds = _grain_seeds(rng, height, width, diameter)
    levels = rng.uniform(low, high, len(seeds)).tolist()
    voronoi = Voronoi(seeds)
    neighbours: list[list[int]] = [[] for _ in seeds]
    for one, other in voronoi.ridge_points:
        neighbours[one].append(other)
        neighbours[other].append(one)
    drawn = []
    for number, seed in enumerate(seeds):
        region = voronoi.regions[voronoi.point_region[number]]
        corners = voronoi.vertices[region]
        lowest, highest = corners.min(axis=0), corners.max(axis=0)
        x, y = (lowest + highest) / 2
        reach_x, reach_y = (highest - lowest) / 2 + 1
        rows, columns = canvas.window(x, y, reach_x, reach_y)
        patch = canvas.field[rows, columns]
        if -1 in region or not patch.size:
            continue
        distance = _distance_to_boundary(canvas.x[columns], canvas.y[rows], seed, seeds[neighbours[number]])
        cover = _coverage(distance)
        patch += cover * np.float32(levels[number])
        if groove != 0:
            scale = np.float32(groove_width * math.sqrt(2))
            patch -= cover * np.float32(groove * (high - low)) * np.exp(-((distance / scale) ** 2))
        if (highest > -0.5).all() and (lowest < [width - 0.5, height - 0.5]).all():
            inside = (lowest >= -0.5).all() and (highest <= [width - 0.5, height - 0.5]).all()
            drawn.append(_grain(seed, levels[number], corners, bool(inside)))
    areas = [one["area_px2"] for one in drawn if one["complete"]]
    truth = {
        "kind": "grains",
        "height": height,
        "width": width,
        "low": low,
        "high": high,
        "complete": len(areas),
        "diameter_px": math.sqrt(4 * float(np.mean(areas)) / math.pi) if areas else None,
        "grains": drawn,
    }
    return _scene(np.clip(canvas.image(), 0, 255), truth)


def _grain(seed: "NDArray[np.float64]", gray: float, corners: "NDArray[np.float64]", complete: bool) -> dict[str, Any]:
    x, y = corners.T
    return {
        "x_px": float(seed[0]),
        "y_px": float(seed[1]),
        "gray": gray,
        "area_px2": 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))),
        "complete": complete,
        "vertices_px": corners.tolist(),
    }


def _grain_seeds(rng: np.random.Generator, height: int, width: int, diameter: float) -> "NDArray[np.float64]":
    """Seeds (n, 2) as x, y on a jittered hexagonal lattice with one in six left out, far beyond the image."""
    kept = 5 / 6
    pitch = diameter * math.sqrt(kept * math.pi / (2 * math.sqrt(3)))
    columns = math.ceil((width + 16 * pitch) / pitch)
    rows = math.ceil((height + 16 * pitch) / (pitch * math.sqrt(3) / 2))
    row, column = np.indices((rows, columns), dtype=np.float64).reshape(2, -1)
    lattice = np.stack([column + 0.5 * (row % 2), row * math.sqrt(3) / 2], axis=1) * pitch - 8 * pitch
    seeds = lattice + rng.uniform(-0.45, 0.45, lattice.shape) * pitch
    return seeds[rng.random(len(seeds)) < kept]


def _distance_to_boundary(
    x: "NDArray[np.float32]", y: "NDArray[np.float32]", seed: "NDArray[np.float64]", others: "NDArray[np.float64]"
) -> "NDArray[np.float32]":
    """Distance of the points (y, x) to the boundary of a seed's cell, above 0 inside."""
    away = others - seed
    away /= np.hypot(away[:, 0], away[:, 1])[:, None]
    middle = np.sum(away * (seed + others) / 2, axis=1)
    across = (middle[:, None] - away[:, :1] * x).astype(np.float32)
    down = (away[:, 1:] * y).astype(np.float32)
    distance = across[0] - down[0][:, None]
    for one_across, one_down in zip(across[1:], down[1:], strict=True):
        np.minimum(distance, one_across - one_down[:, None], out=distance)
    return np.asarray(distance)


def fibres(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    diameter: float,
    covered: float,
    edge_sigma: float,
    spread: float = 0.2,
    shading: float = 0.6,
    low: float = 30.0,
    high: float = 200.0,
) -> Scene:
    """Gently curved cylinders that cross the whole image, the later on top and brighter, on a dark ground.

    diameter, spread: median (px) and log-normal width of the diameters, cut at two widths; covered: part of the image
    under fibres; shading: 0 flat .. 1 strong brightening towards the limbs, and shadows on what lies below.
    truth: fibres in drawing order, each with diameter_px and its centre line: from x_px, y_px by u along
    direction_deg (x right, y down) and across it, a quarter turn further, by the sum of
    amplitude_px (sin(2 pi u / wavelength_px + phase) - sin(phase)). Raises InputError where a value is out of range.
    """
    _check_frame(height, width, edge_sigma, low, high)
    _check("diameter", diameter, 4.0, min(height, width) / 4, "px", closed=True)
    _check("covered", covered, 0.0, 1.0, "")
    _check("spread", spread, 0.0, 0.5, "", closed=True)
    _check("shading", shading, 0.0, 1.0, "", closed=True)
    canvas = _Canvas(height, width, edge_sigma, low)
    drawn = _draw_fibres(rng, height, width, diameter, spread, covered)
    for order, fibre in enumerate(drawn):
        brightness = 0.5 + 0.5 * (order + 1) / len(drawn)
        _paint_fibre(canvas, fibre, shading, low, low + (high - low) * brightness)
    truth = {
        "kind": "fibres",
        "height": height,
        "width": width,
        "low": low,
        "high": high,
        "diameter_px": float(np.mean([fibre["diameter_px"] for fibre in drawn])),
        "fibres": drawn,
    }
    return _scene(canvas.image(), truth)


def _draw_fibres(
    rng: np.random.Generator, height: int, width: int, diameter: float, spread: float, covered: float
) -> list[dict[str, Any]]:
    """Fibres in drawing order, until their shares of the image add up to what random overlap covers."""
    wanted = -math.log1p(-covered) * height * width
    chord = math.pi * height * width / (2 * (height + width))
    drawn: list[dict[str, Any]] = []
    while wanted > 0:
        size = diameter * math.exp(spread * float(np.clip(rng.standard_normal(), -2, 2)))
        wavelength = min(height, width) * np.exp(rng.uniform(0, math.log(3), 2))
        drawn.append(
            {
                "x_px": float(rng.uniform(-0.5, width - 0.5)),
                "y_px": float(rng.uniform(-0.5, height - 0.5)),
                "direction_deg": float(rng.uniform(0, 360)),
                "diameter_px": size,
                "wavelength_px": wavelength.tolist(),
                "amplitude_px": (wavelength * rng.uniform(0, 0.04, 2)).tolist(),
                "phase": rng.uniform(0, 2 * math.pi, 2).tolist(),
            }
        )
        wanted -= size * chord
    return drawn


def _paint_fibre(canvas: _Canvas, fibre: dict[str, Any], shading: float, low: float, high: float) -> None:
    """Paint one fibre in square blocks, those that its shadow cannot reach left out."""
    radius = fibre["diameter_px"] / 2
    shadow = 0.7 * radius if shading > 0 else 0.0
    half = canvas.x.size + canvas.y.size + 32 * SUBPIXELS
    along_table = np.arange(-half, half + 2) / SUBPIXELS
    curve, slope = (table.astype(np.float32) for table in _centre_line(fibre, along_table))
    cosine, sine = math.cos(math.radians(fibre["direction_deg"])), math.sin(math.radians(fibre["direction_deg"]))
    block = 16 * SUBPIXELS
    reach = 1.1 * (radius + shadow + 1 + 16 * math.sqrt(0.5))
    x, y = canvas.x - np.float32(fibre["x_px"]), canvas.y - np.float32(fibre["y_px"])
    middle_x, middle_y = x[::block] + 8, (y[::block] + 8)[:, None]
    offset = _look_up(curve, (cosine * middle_x + sine * middle_y) * SUBPIXELS + half)
    near = np.abs(cosine * middle_y - sine * middle_x - offset) < reach
    for top, left in (np.argwhere(near) * block).tolist():
        rows, columns = slice(top, top + block), slice(left, left + block)
        along = np.float32(cosine) * x[columns] + (np.float32(sine) * y[rows])[:, None]
        across = (np.float32(cosine) * y[rows])[:, None] - np.float32(sine) * x[columns]
        distance = np.float32(radius) - _distance_to_curve(along, across, curve, slope, half)
        _paint_round(canvas.field[rows, columns], distance, radius, shadow, shading, low, high)


def _centre_line(
    fibre: dict[str, Any], along: "NDArray[np.float64]"
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """A fibre's centre line at distances along its direction (px): displacement across (px) and slope."""
    across, slope = np.zeros_like(along), np.zeros_like(along)
    for wavelength, amplitude, phase in zip(fibre["wavelength_px"], fibre["amplitude_px"], fibre["phase"], strict=True):
        angle = 2 * math.pi * along / wavelength + phase
        across += amplitude * (np.sin(angle) - math.sin(phase))
        slope += amplitude * 2 * math.pi / wavelength * np.cos(angle)
    return across, slope


def _distance_to_curve(
    along: "NDArray[np.float32]",
    across: "NDArray[np.float32]",
    curve: "NDArray[np.float32]",
    slope: "NDArray[np.float32]",
    half: int,
) -> "NDArray[np.float32]":
    """Distance of points to a gentle curve, tabulated four times a px from -half: one Newton step to the foot point."""
    position = along * np.float32(SUBPIXELS) + np.float32(half)
    nearest = (position + np.float32(0.5)).astype(np.int32)
    steepness = slope[nearest]
    step = (across - curve[nearest]) * steepness / (1 + steepness**2)
    foot = np.clip(position + step * np.float32(SUBPIXELS), 0, np.float32(curve.size - 2))
    return np.asarray(np.sqrt(step**2 + (across - _look_up(curve, foot)) ** 2))


def corpus_scene(seed: int, case_id: str, size: int = 512) -> Scene:
    """One scene (size, size) of the embedded data set: a focused reference with gray levels in 20..235.

    case_id: a letter and a number from 1, P001 for instance; the kinds follow each other as in CORPUS_KINDS, and all
    else comes from the stream (seed, case_id, "scene"). Surface texture and a faint shading of the field lie over
    the drawn scene. Raises InputError for another case id.
    """
    found = re.fullmatch(r"[A-Z]0*([1-9][0-9]*)", case_id)
    if found is None:
        raise InputError(f"case id {case_id!r} names no scene: give a letter and a number from 1, as P001")
    kind = CORPUS_KINDS[(int(found[1]) - 1) % len(CORPUS_KINDS)]
    rng = generator(seed, case_id, "scene")
    scene = _CORPUS_DRAWS[kind](rng, size)
    texture = rng.uniform(2.0, 5.0) * _texture(rng, size, rng.uniform(0.8, 2.0))
    shading = rng.uniform(1.0, 4.0) * _texture(rng, size, size / 6)
    brightness = 0.35 + 0.65 * scene.image / 255
    image = np.clip(scene.image + brightness * (texture + shading), 20, 235)
    return Scene(image.astype(np.float32), {**scene.truth, "case_id": case_id, "seed": seed})


def _texture(rng: np.random.Generator, size: int, correlation: float) -> "NDArray[np.float64]":
    """A periodic Gaussian field (size, size) of mean 0 and rms 1, white noise smoothed by a Gaussian (px)."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-2 * (np.pi * correlation * frequency) ** 2)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return np.asarray(field / field.std())


def _gray_pair(rng: np.random.Generator) -> tuple[float, float]:
    low = float(rng.uniform(32, 70))
    return low, low + float(rng.uniform(70, 115))


def _corpus_lines(rng: np.random.Generator, size: int) -> Scene:
    low, high = _gray_pair(rng)
    pitch = float(rng.uniform(20, 56))
    duty = float(rng.uniform(0.35, 0.6))
    return lines(
        rng,
        height=size,
        width=size,
        pitch=pitch,
        duty=duty,
        sigma=float(rng.uniform(0.02, 0.1)) * pitch * min(duty, 1 - duty),
        xi=float(rng.uniform(8, 30)),
        hurst=float(rng.uniform(0.4, 0.8)),
        edge_sigma=float(rng.uniform(0.8, 1.3)),
        tilt_deg=float(rng.uniform(-1.5, 1.5)),
        low=low,
        high=high,
        rim=float(rng.uniform(0.1, 0.35)),
        rim_length=float(rng.uniform(1.5, 3.5)),
        transposed=bool(rng.random() < 0.3),
    )


def _corpus_contacts(rng: np.random.Generator, size: int) -> Scene:
    low, high = _gray_pair(rng)
    pitch = float(rng.uniform(26, 64))
    diameter = pitch * float(rng.uniform(0.45, 0.62))
    return contacts(
        rng,
        height=size,
        width=size,
        pitch=pitch,
        diameter=diameter,
        edge_sigma=float(rng.uniform(0.8, 1.3)),
        ellipticity=float(rng.uniform(0.85, 1.18)),
        sigma=0.02 * diameter,
        xi=float(rng.uniform(4, 12)),
        diameter_sigma=0.025 * diameter,
        placement_sigma=0.012 * pitch,
        staggered=bool(rng.random() < 0.5),
        pillars=bool(rng.random() < 0.4),
        low=low,
        high=high,
        rim=float(rng.uniform(0.15, 0.35)),
        rim_length=float(rng.uniform(1.5, 2.5)),
    )


def _corpus_particles(rng: np.random.Generator, size: int) -> Scene:
    low, high = _gray_pair(rng)
    overlapping = bool(rng.random() < 0.6)
    return particles(
        rng,
        height=size,
        width=size,
        diameter=float(rng.uniform(18, 52)),
        covered=float(rng.uniform(0.5, 0.85) if overlapping else rng.uniform(0.2, 0.4)),
        edge_sigma=float(rng.uniform(0.8, 1.2)),
        spread=float(rng.uniform(0.05, 0.35)),
        overlapping=overlapping,
        shading=float(rng.uniform(0.5, 0.9)),
        low=low + 5,
        high=min(high + 30, 225),
    )


def _corpus_grains(rng: np.random.Generator, size: int) -> Scene:
    low, high = _gray_pair(rng)
    return grains(
        rng,
        height=size,
        width=size,
        diameter=float(rng.uniform(26, 80)),
        edge_sigma=float(rng.uniform(0.8, 1.2)),
        groove=float(rng.uniform(0.2, 0.5) * (1 if rng.random() < 0.7 else -0.6)),
        groove_width=float(rng.uniform(1.0, 2.0)),
        low=low + 20,
        high=high,
    )


def _corpus_fibres(rng: np.random.Generator, size: int) -> Scene:
    low, high = _gray_pair(rng)
    return fibres(
        rng,
        height=size,
        width=size,
        diameter=float(rng.uniform(24, 38)),
        covered=float(rng.uniform(0.35, 0.5)),
        edge_sigma=float(rng.uniform(0.8, 1.2)),
        spread=float(rng.uniform(0.1, 0.4)),
        shading=float(rng.uniform(0.5, 0.9)),
        low=low + 5,
        high=min(high + 40, 225),
    )


_CORPUS_DRAWS = {
    "lines": _corpus_lines,
    "contacts": _corpus_contacts,
    "particles": _corpus_particles,
    "grains": _corpus_grains,
    "fibres": _corpus_fibres,
}


def _scene(image: "NDArray[np.floating]", truth: dict[str, Any]) -> Scene:
    brightest = float(image.max())
    if brightest > 255.01:
        raise InputError(f"the scene reaches gray level {brightest:.0f}, above 255: lower high or rim")
    return Scene(np.clip(np.ascontiguousarray(image, dtype=np.float32), 0, 255), truth)


def _complete(x: float, y: float, radius: float, height: int, width: int) -> bool:
    return bool(min(x, y) - radius >= -0.5 and x + radius <= width - 0.5 and y + radius <= height - 0.5)


def _touches(x: float, y: float, radius: float, height: int, width: int) -> bool:
    return bool(min(x, y) + radius > -0.5 and x - radius < width - 0.5 and y - radius < height - 0.5)


def _check(name: str, value: float, low: float, high: float, unit: str, *, closed: bool = False) -> None:
    """Refuse a value outside low..high, or on its borders unless closed."""
    inside = low <= value <= high if closed else low < value < high
    if not inside:
        kind = "within" if closed else "between"
        raise InputError(f"phantom: {name} is {value:g}: give a number {kind} {low:g} and {high:g} {unit}".rstrip())


def _check_frame(height: int, width: int, edge_sigma: float, low: float, high: float) -> None:
    for name, side in (("height", height), ("width", width)):
        _check(name, side, SMALLEST_SIDE, LARGEST_SIDE, "px", closed=True)
    _check("edge_sigma", edge_sigma, 0.0, 10.0, "px", closed=True)
    _check("low", low, 0.0, 255.0, "", closed=True)
    _check("high", high, low, 255.0 + 1e-9, "")


def _check_roughness(sigma: float, xi: float, hurst: float) -> None:
    _check("sigma", sigma, 0.0, 100.0, "px", closed=True)
    _check("xi", xi, 0.5, 1000.0, "px", closed=True)
    _check("hurst", hurst, 0.05, 1.5, "", closed=True)


def _check_rim(rim: float, rim_length: float) -> None:
    _check("rim", rim, 0.0, 5.0, "", closed=True)
    _check("rim_length", rim_length, 0.5, 20.0, "px", closed=True)
