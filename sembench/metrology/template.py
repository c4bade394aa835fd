"""The mean shape of an edge in the image, and the true plateau levels beside it where lines or spaces are narrow."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csc_array
from scipy.special import ndtr

from sembench.metrology.refusal import MeasurementRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHASES = 8
NEIGHBOURS = np.arange(-2, 3)
FEWEST_SAMPLES = 50
SMALLEST_RESPONSE = 0.3
WIDEST_BLUR = 0.14
FIT_STEPS = 20


@dataclass(frozen=True)
class Shape:
    """The profile of one edge: a unit step and a bright rim, blurred by a Gaussian; the step lies at 0, inside above.

    blur: sigma (px); rim: height over the step; rim_length: its decay inside (px). Levels 0 outside, 1 far inside.
    """

    blur: float
    rim: float = 0.0
    rim_length: float = 3.0

    def __call__(self, u: "NDArray[np.float64]", spread: float = 0.0) -> "NDArray[np.float64]":
        """The profile at u, blurred further by a spread (px) of the edge's position."""
        sigma = math.hypot(self.blur, spread)
        profile = ndtr(u / sigma)
        if self.rim:
            length = self.rim_length
            inside = np.maximum(u, -8 * sigma)
            decay = np.exp(0.5 * (sigma / length) ** 2 - inside / length) * ndtr(inside / sigma - sigma / length)
            profile = profile + self.rim * decay
        return np.asarray(profile)


@dataclass(frozen=True)
class Lattice:
    """Lines of one mean width, seen from the track of an edge: pitch, width of the track (px).

    spread: rms (px) of widths along and between lines, which blurs the mean profile away from the tracked edge;
    central: half width (px) of the middles that gave the levels; smear: rms distance (px) of track and edge.
    """

    pitch: float
    width: float
    spread: float
    central: int
    smear: float = 0.0

    def profile(self, u: "NDArray[np.float64]", shape: Shape, offset: float) -> "NDArray[np.float64]":
        """Mean profile at u from the track of a left edge, whose step lies at offset (px) from the track."""
        total = np.zeros_like(u)
        wide = math.hypot(self.spread, self.smear)
        for m in NEIGHBOURS:
            left = u - m * self.pitch - offset
            right = self.width - offset + m * self.pitch - u
            total += shape(left, wide if m else self.smear) + shape(right, wide) - 1
        return total

    def middles(self, shape: Shape, offset: float) -> tuple[float, float]:
        """Mean profile in the middle of spaces and of lines: 0 and 1 where they are wide."""
        x = np.linspace(-self.central - 0.5, self.central + 0.5, 4 * (2 * self.central + 1) + 1)
        wide = self.width - 2 * offset
        both = []
        for middle in (self.pitch / 2, 0.0):
            total = np.zeros_like(x)
            for m in NEIGHBOURS:
                left = x + middle - m * self.pitch + wide / 2
                right = wide / 2 - (x + middle - m * self.pitch)
                total += shape(left, self.spread / 2) + shape(right, self.spread / 2) - 1
            both.append(float(total.mean()))
        return both[0], both[1]


@dataclass(frozen=True, eq=False)
class Template:
    """What an edge looks like: a fitted shape and what the data show beyond it.

    out, into: levels of the middles of spaces and lines in units of the shape's step; offset: of the step from the
    track (px); excess: spline of the data over the shape, on -reach..reach; samples: u, mean of the data there.
    """

    shape: Shape
    lattice: Lattice
    offset: float
    out: float
    into: float
    reach: float
    excess: CubicSpline
    samples: "tuple[NDArray[np.float64], NDArray[np.float64]]"

    def beyond(self, u: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """What the data show beyond the shape at u."""
        return np.asarray(self.excess(np.clip(u, -self.reach, self.reach)))

    def single(self, u: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """One edge without its neighbours, at u from its step."""
        return self.shape(u) + self.beyond(u)

    def among_neighbours(self, u: "NDArray[np.float64]") -> "NDArray[np.float64]":
        """An edge with its neighbours at their mean distances, at u from its step."""
        return self.lattice.profile(u + self.offset, self.shape, self.offset) + self.beyond(u)

    def overshoot(self) -> float:
        """How far the line's bright side rises over its middle, in units of the step."""
        end = min(self.reach, self.lattice.width / 2 - self.offset)
        u = np.linspace(0, end, 8 * math.ceil(end) + 1)
        profile = self.among_neighbours(u)
        return float(profile.max() - profile[-1])

    def level_at(self, level: float) -> float:
        """Where, nearest to the step, one edge passes a level between the plateaus (px from the step)."""
        u = np.linspace(-self.reach, self.reach, 64 * math.ceil(2 * self.reach) + 1)
        above = self.single(u) - level
        before = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
        if before.size == 0:
            raise MeasurementRefused(f"edges do not pass the level {level:.2f} between their plateaus")
        crossing = u[before] - above[before] * (u[1] - u[0]) / (above[before + 1] - above[before])
        return float(crossing[np.abs(crossing).argmin()])


def mean_profile(
    windows: "NDArray[np.float64]", offset: "NDArray[np.float64]"
) -> "tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]":
    """Mean of windows (..., 2 h + 1) by distance u (px) from edges at offset (...), within half a pixel of the middle.

    Returns u, mean and number of samples, a value each eighth of a pixel.
    """
    size = windows.shape[-1]
    phase = (np.rint(PHASES * offset).astype(np.intp) + PHASES // 2).ravel()
    each = np.arange(phase.size + 1)
    member = csc_array((np.ones(phase.size), phase, each), shape=(PHASES + 1, phase.size))
    sums = member @ windows.reshape(-1, size)
    count = np.bincount(phase, minlength=PHASES + 1)
    step = PHASES * np.arange(size) - np.arange(PHASES + 1)[:, None] + PHASES
    total = np.bincount(step.ravel(), sums.ravel())
    number = np.bincount(step.ravel(), np.repeat(count, size))
    u = (np.arange(total.size) - PHASES // 2) / PHASES - size // 2
    kept = number >= min(FEWEST_SAMPLES, max(number.max() / 4, 1))
    return u[kept], total[kept] / number[kept], number[kept]


def fit_template(
    windows: "NDArray[np.float64]",
    offset: "NDArray[np.float64]",
    lattice: Lattice,
    noise: float,
    *,
    rim: bool,
) -> Template:
    """Fit the shape of the edges to normalised windows (..., 2 h + 1) whose tracks lie at offset (...) from the middle.

    noise: sigma of a pixel in units of the step. Raises MeasurementRefused where lines and spaces run together.
    """
    u, mean, number = mean_profile(windows, offset)
    start = _first_guess(u, mean)
    weights = np.sqrt(number / number.max())
    shape, shift = _fit(u, mean, weights, lattice, start, rim=rim)
    out, into = lattice.middles(shape, shift)
    if into - out < SMALLEST_RESPONSE or shape.blur > WIDEST_BLUR * lattice.pitch:
        raise MeasurementRefused("lines are not resolved: blur runs them together")
    seen = out + (into - out) * mean
    excess = seen - lattice.profile(u, shape, shift)
    spline, reach = _excess(u - shift, excess, noise / np.sqrt(number))
    return Template(shape, lattice, shift, out, into, reach, spline, (u - shift, seen))


def _first_guess(u: "NDArray[np.float64]", mean: "NDArray[np.float64]") -> tuple[float, float]:
    """Blur and position of the edge by the quarter, half and three-quarter crossings nearest to the middle."""
    places = []
    for level in (0.25, 0.5, 0.75):
        above = mean - level
        before = np.flatnonzero((above[:-1] < 0) & (above[1:] >= 0))
        if before.size == 0:
            raise MeasurementRefused("lines are not resolved: no mean edge passes between the levels beside it")
        crossing = u[before] - above[before] * (u[before + 1] - u[before]) / (above[before + 1] - above[before])
        places.append(float(crossing[np.abs(crossing).argmin()]))
    return max((places[2] - places[0]) / 1.349, 0.3), places[1]


def _fit(
    u: "NDArray[np.float64]",
    mean: "NDArray[np.float64]",
    weights: "NDArray[np.float64]",
    lattice: Lattice,
    start: tuple[float, float],
    *,
    rim: bool,
) -> tuple[Shape, float]:
    """Least squares for blur and offset (and rim), by damped Gauss-Newton steps."""
    lowest = np.array([0.2, -3.0, 0.0, 0.8])
    highest = np.array([lattice.pitch / 2, 3.0, 4.0, lattice.pitch / 2])
    parameters = np.array([start[0], start[1], 0.0 if not rim else 0.3, 3.0])
    free = 4 if rim else 2

    def residual(p: "NDArray[np.float64]") -> "NDArray[np.float64]":
        shape = Shape(float(p[0]), float(p[2]), float(p[3]))
        out, into = lattice.middles(shape, float(p[1]))
        response = math.copysign(max(abs(into - out), 0.05), into - out)
        return weights * ((lattice.profile(u, shape, float(p[1])) - out) / response - mean)

    damping = 1e-4
    now = residual(parameters)
    for _ in range(FIT_STEPS * (3 if rim else 1)):
        jacobian = np.empty((u.size, free))
        for i in range(free):
            moved = parameters.copy()
            moved[i] += 1e-5
            jacobian[:, i] = (residual(moved) - now) / 1e-5
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -jacobian.T @ now)
        trial = parameters.copy()
        trial[:free] = np.clip(parameters[:free] + step, lowest[:free], highest[:free])
        then = residual(trial)
        if then @ then <= now @ now:
            done = bool(np.abs(trial - parameters).max() < 1e-7)
            parameters, now, damping = trial, then, damping / 5
            if done:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    return Shape(float(parameters[0]), float(parameters[2]), float(parameters[3])), float(parameters[1])


def _excess(
    u: "NDArray[np.float64]", excess: "NDArray[np.float64]", sigma: "NDArray[np.float64]"
) -> tuple[CubicSpline, float]:
    """The data's excess over the shape, smoothed, and shrunk by what noise alone would show."""
    step = 1 / PHASES
    grid = np.arange(math.ceil(u[0] / step), math.floor(u[-1] / step) + 1) * step
    smooth = gaussian_filter1d(np.interp(grid, u, excess), 0.35 / step, mode="nearest")
    left_by_smoothing = step / (2 * math.sqrt(math.pi) * 0.35)
    energy, expected = float(np.mean(smooth**2)), float(np.mean(sigma**2)) * left_by_smoothing
    kept = max(0.0, 1 - 3 * expected / energy) if energy > 0 else 0.0
    return CubicSpline(grid, kept * smooth), float(min(-grid[0], grid[-1]))
