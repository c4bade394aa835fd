"""Registration of a real reference on its input: an affine transform between raw images, found twice, checked, applied.

Displacements in px on an (H, W) field: dy = a0 + a1 yn + a2 xn, dx = b0 + b1 yn + b2 xn with yn = (row - H/2) / (H/2)
and xn likewise; the reference on the input's grid is reference(row - dy, col - dx).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sembench.errors import InputError

Array = NDArray[np.float32]
Gray = NDArray[np.floating[Any]]
Coefficients = tuple[float, float, float]
Window = tuple[slice, slice]

MODELS = ("affine", "translation", "none")
"""Transforms that `align` can find; `none` takes the reference as it lies and only reports how far it is off."""

SMOOTHING_SIGMA = 1.5
"""Sigma (px) of the Gaussian under which both images are compared."""

BLOCK_SIDES = (48, 96)
"""Least and largest side (px) of a block, a quarter of the field's shorter side between; blocks overlap by half."""

MOST_BLOCKS = 24
"""Blocks along one side of the field, so that large images take no more memory than their transforms."""

ITERATIONS = 4
REACH = 16
"""Largest shift (px) at which a block is looked for around the transform so far."""

CONSENSUS_PX = 1.5
"""Blocks whose shift lies so near to the transform count as agreeing with it."""

LEAST_LIKENESS = 0.05
"""Correlation that two blocks must reach at some shift to count as seen: flat ones do not."""

LEAST_CONSENSUS = 0.5
"""Share of the texture that must lie in agreeing blocks, else the reference shows another field."""

LARGEST_DISAGREEMENT_PX = 0.3
"""Where the two estimators differ by more anywhere in the field, or the first is less certain, neither is trusted."""

LEAST_OVERLAP = 0.5
"""Share of the field, in each direction, that both images must show."""

SMALLEST_SIDE = 128
"""Smallest side (px) of images that can be registered: fewer blocks cannot tell one field from another."""

REFINEMENTS = ((6.0, 4, 8), (3.0, 3, 8), (SMOOTHING_SIGMA, 2, 12))
"""Sigma (px), stride (px) and most steps of each stage of the direct minimisation."""

LEAST_USED = 1 / 8
"""Share of the field that the direct minimisation must see of both images, else it stops."""

MATCH_SIGMA = 3.0
"""Sigma (px) of the Gaussian under which gain and offset are found."""

BANDS = ((0.008, 0.03), (0.04, 0.08), (0.08, 0.12), (0.12, 0.2), (0.2, 0.35))
"""Frequencies (cycles/px) at which sharpness and noise of the two images are compared, the first for the gain."""

ROUNDING = 1 / 12
"""Variance (gray levels) that rounding to whole gray levels leaves; below it there is nothing to compare."""


class AlignmentRefused(InputError):
    """The reference does not show the input's field, or nothing by which the two could be registered."""


@dataclass(frozen=True)
class Displacement:
    """An affine displacement field on (H, W): rows (a0, a1, a2), columns (b0, b1, b2), in px."""

    shape: tuple[int, int]
    rows: Coefficients = (0.0, 0.0, 0.0)
    columns: Coefficients = (0.0, 0.0, 0.0)

    def at(self, row: Any, column: Any) -> tuple[Any, Any]:
        """(dy, dx) in px at pixel coordinates, numbers or arrays."""
        half_height, half_width = self.shape[0] / 2, self.shape[1] / 2
        yn, xn = (row - half_height) / half_height, (column - half_width) / half_width
        (a0, a1, a2), (b0, b1, b2) = self.rows, self.columns
        return a0 + a1 * yn + a2 * xn, b0 + b1 * yn + b2 * xn

    @cached_property
    def source(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(2, 2) matrix and (2,) offset that bring (row, col) to the reference's (row - dy, col - dx)."""
        offset = -np.array(self.at(0.0, 0.0))
        slopes = np.array([self.rows[1:], self.columns[1:]]) / (np.array(self.shape) / 2)
        return np.eye(2) - slopes, offset

    @property
    def inverse(self) -> "Displacement":
        """The displacement that brings the input to the reference's grid."""
        matrix, offset = self.source
        inverted = np.linalg.inv(matrix)
        return self._of_source(inverted, -inverted @ offset)

    def distance(self, other: "Displacement") -> float:
        """Largest distance (px) between two displacements of one shape in the field."""
        height, width = self.shape
        corners = [(row, column) for row in (0, height - 1) for column in (0, width - 1)]
        pairs = ((self.at(*corner), other.at(*corner)) for corner in corners)
        return max(math.hypot(one[0] - two[0], one[1] - two[1]) for one, two in pairs)

    def overlap(self) -> Window:
        """The rectangle (rows, columns) of the field where the displaced reference has pixels; it may be empty."""
        return self._valid(0), self._valid(1)

    def _valid(self, axis: int) -> slice:
        """Lines along one axis of which every pixel lies inside the reference in that direction."""
        length, other = self.shape[axis], self.shape[1 - axis]
        lines, ends = np.arange(length)[:, None], np.array([[0, other - 1]])
        moved = lines - self.at(*((lines, ends) if axis == 0 else (ends, lines)))[axis]
        inside = np.flatnonzero((moved >= -1e-9).all(axis=1) & (moved <= length - 1 + 1e-9).all(axis=1))
        return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)

    def _of_source(self, matrix: NDArray[Any], offset: NDArray[Any]) -> "Displacement":
        half = np.array(self.shape) / 2
        slopes = (np.eye(2) - matrix) * half
        middle = half - matrix @ half - offset
        rows, columns = (tuple(map(float, (middle[i], *slopes[i]))) for i in (0, 1))
        return Displacement(self.shape, rows, columns)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Alignment:
    """How a reference lies on its input, and how far that can be trusted; lengths in px.

    displacement: of the reference on the input's grid; trusted: whether both estimators agree and are certain enough;
    reason: why not; disagreement_px: largest distance between them in the field; uncertainty_px: two standard errors
    of the first, the largest in the field; residual_median_px, residual_p95_px: shifts left over in the more textured
    half of the blocks; blocks: their number; consensus: share (0..1) of the texture in blocks that agree with the
    transform; correlation: of the two smoothed images in the overlap; gain, offset (gray levels): reference = gain
    input + offset.
    """

    model: str
    displacement: Displacement
    trusted: bool
    reason: str
    warnings: tuple[str, ...]
    disagreement_px: float
    uncertainty_px: float
    residual_median_px: float
    residual_p95_px: float
    blocks: int
    consensus: float
    correlation: float
    gain: float
    offset: float

    @property
    def overlap(self) -> Window:
        """The rectangle (rows, columns) of the input's field where the warped reference is valid."""
        return self.displacement.overlap()

    @property
    def margin(self) -> int:
        """The margin (px) on every side outside of which the warped reference is not valid everywhere."""
        height, width = self.displacement.shape
        rows, columns = self.overlap
        return int(max(rows.start, height - rows.stop, columns.start, width - columns.stop))

    def warp(self, reference: Gray) -> Array:
        """The reference on the input's grid, float32 (H, W), by cubic spline; beyond the overlap its edge goes on.

        The spline may overshoot 0..255. Raises InputError where the reference has another size.
        """
        if np.shape(reference) != self.displacement.shape:
            raise InputError(f"a reference of {self.displacement.shape} was registered, not one of {reference.shape}")
        if self.displacement == Displacement(self.displacement.shape):
            return np.array(reference, np.float32)
        from scipy.ndimage import spline_filter

        return _resample(spline_filter(reference, order=3, mode="mirror"), self.displacement)

    def as_record(self) -> dict[str, Any]:
        """All numbers, flat, as JSON takes them; None for what could not be measured."""
        (a0, a1, a2), (b0, b1, b2) = self.displacement.rows, self.displacement.columns
        numbers = {
            **{"a0": a0, "a1": a1, "a2": a2, "b0": b0, "b1": b1, "b2": b2},
            "disagreement_px": self.disagreement_px,
            "uncertainty_px": self.uncertainty_px,
            "residual_median_px": self.residual_median_px,
            "residual_p95_px": self.residual_p95_px,
            "consensus": self.consensus,
            "correlation": self.correlation,
            "gain": self.gain,
            "offset": self.offset,
        }
        return {
            "model": self.model,
            "trusted": self.trusted,
            "reason": self.reason,
            "warnings": list(self.warnings),
            "margin_px": self.margin,
            "blocks": self.blocks,
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
        }


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Shifts (N, 2) of the input's blocks against the warped reference's, at centres (N, 2).

    texture: (N, 2), an axis, of the warped reference; seen: (N,), whether the two blocks are alike there at all.
    """

    centres: NDArray[np.float64]
    shifts: NDArray[np.float64]
    texture: NDArray[np.float64]
    seen: NDArray[np.bool_]

    @property
    def textured(self) -> NDArray[np.bool_]:
        """Which blocks (N,) belong to the more textured half."""
        total = self.texture.sum(axis=1)
        return np.asarray(total >= np.median(total))

    def left_over(self, by: Displacement) -> NDArray[np.float64]:
        """Length (N,) of what a displacement leaves of the shifts."""
        fitted = np.stack(by.at(self.centres[:, 0], self.centres[:, 1]), axis=1)
        return np.asarray(np.hypot(*(self.shifts - fitted).T))

    def moved(self, by: Displacement) -> "_Blocks":
        """The same blocks, their shifts counted from where the reference lay before a displacement."""
        return replace(self, shifts=self.shifts + np.stack(by.at(self.centres[:, 0], self.centres[:, 1]), axis=1))

    def consensus(self, shape: tuple[int, int]) -> float:
        """Share (0..1) of the texture in blocks that agree with the affine fit to all."""
        fitted, _ = _fit(self, shape, "affine")
        texture = self.texture.sum(axis=1)
        agreeing = float(texture[self.seen & (self.left_over(fitted) < CONSENSUS_PX)].sum())
        return agreeing / float(texture.sum()) if agreeing > 0 else 0.0


def align(input: Gray, reference: Gray, *, model: str = "affine") -> Alignment:
    """Register a reference on its raw input, both (H, W) of one size, 128 px a side at least.

    model: `affine`, `translation` or `none`, which leaves the reference as it lies and reports how far it is off (NaN
    for images under 128 px). Neither gain nor offset between the two matters, nor noise or blur of either. The first
    estimator correlates blocks and fits the transform to their shifts; the second minimises the difference of the
    images directly, from a start of its own.
    Raises InputError: sizes that differ, values not finite, another model; AlignmentRefused: a flat image, a reference
    of another field.
    """
    if model not in MODELS:
        raise InputError(f"no alignment model {model!r}: known are {', '.join(MODELS)}")
    first, second = _checked(input, reference)
    if min(first.shape) < SMALLEST_SIDE:
        if model != "none":
            raise InputError(
                f"registration needs {SMALLEST_SIDE} px a side at least, not {first.shape}: use model none"
            )
        return _as_it_lies(first, second)
    estimated = "affine" if model == "none" else model
    found, blocks, error = _by_blocks(_smooth(first, SMOOTHING_SIGMA), _smooth(second, SMOOTHING_SIGMA), estimated)
    consensus = blocks.consensus(found.shape)
    if consensus < LEAST_CONSENSUS:
        raise AlignmentRefused(
            f"the reference shows another field than the input: blocks with {consensus:.0%} of the texture agree on "
            "how it lies; give the reference of the same place, or leave the pair out"
        )
    unmoved = Displacement(found.shape)
    if model == "none":
        blocks = blocks.moved(found)
        taken, disagreement, error = unmoved, 0.0, 0.0
    else:
        taken, disagreement = found, found.distance(_by_difference(first, second, model))
    left = blocks.left_over(unmoved)[blocks.textured]
    reason = _distrust(disagreement, error)
    gain, offset, correlation = _relation(first, second, taken)
    return Alignment(
        model=model,
        displacement=taken,
        trusted=not reason,
        reason=reason,
        warnings=_warnings(_swapped(first, second, found), float(np.median(left)), model),
        disagreement_px=disagreement,
        uncertainty_px=error,
        residual_median_px=float(np.median(left)),
        residual_p95_px=float(np.percentile(left, 95)),
        blocks=len(left),
        consensus=consensus,
        correlation=correlation,
        gain=gain,
        offset=offset,
    )


def _as_it_lies(image: Array, reference: Array) -> Alignment:
    """No transform, and no measurement, for images too small to measure one."""
    taken = Displacement(image.shape)
    gain, offset, correlation = _relation(image, reference, taken)
    return Alignment(
        model="none",
        displacement=taken,
        trusted=True,
        reason="",
        warnings=(),
        disagreement_px=0.0,
        uncertainty_px=0.0,
        residual_median_px=math.nan,
        residual_p95_px=math.nan,
        blocks=0,
        consensus=math.nan,
        correlation=correlation,
        gain=gain,
        offset=offset,
    )


def _checked(input: Gray, reference: Gray) -> tuple[Array, Array]:
    """Both images as float32."""
    shapes = np.shape(input), np.shape(reference)
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise InputError(
            f"input of {shapes[0]} and reference of {shapes[1]} cannot be registered: "
            "give two (H, W) images of one size"
        )
    first, second = np.asarray(input, np.float32), np.asarray(reference, np.float32)
    for name, image in (("input", first), ("reference", second)):
        if not np.isfinite(image).all():
            raise InputError(f"the {name} has values that are not finite: give gray levels")
        if np.ptp(image) == 0:
            raise AlignmentRefused(f"the {name} is flat: nothing in it can be registered; leave the pair out")
    return first, second


def _distrust(disagreement: float, error: float) -> str:
    """Why a transform is not to be trusted; empty where it is."""
    if not disagreement <= LARGEST_DISAGREEMENT_PX:
        return f"two estimators differ by {disagreement:.3f} px, more than {LARGEST_DISAGREEMENT_PX} px"
    if not error <= LARGEST_DISAGREEMENT_PX:
        return f"the images leave the transform open by {error:.3f} px, more than {LARGEST_DISAGREEMENT_PX} px"
    return ""


def _smooth(image: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(image, sigma, mode="reflect", truncate=3.5))


def _resample(spline: NDArray[Any], by: Displacement, order: int = 3, stride: int = 1) -> Array:
    """Values of a prefiltered image at (row - dy, col - dx) for every stride-th row and column of the field."""
    from scipy.ndimage import affine_transform

    matrix, offset = by.source
    shape = tuple(-(-side // stride) for side in by.shape)
    return np.asarray(
        affine_transform(
            spline, matrix * stride, offset, shape, output=np.float32, order=order, mode="nearest", prefilter=False
        )
    )


# First estimator: correlation, of the field and of blocks


def _by_blocks(image: Array, reference: Array, model: str) -> tuple[Displacement, _Blocks, float]:
    """The transform by the shifts of blocks, the shifts that it leaves, and its uncertainty (px)."""
    from scipy.ndimage import spline_filter

    spline = spline_filter(reference, order=3, output=np.float32, mode="mirror")
    dy, dx = _correlation_shift(image, reference)
    found = Displacement(image.shape, (dy, 0.0, 0.0), (dx, 0.0, 0.0))
    blocks = _block_shifts(image, _resample(spline, found), found)
    for _ in range(ITERATIONS):
        change, error = _fit(blocks, image.shape, model)
        found = _sum(found, change)
        blocks = _block_shifts(image, _resample(spline, found), found)
    return found, blocks, error


def _correlation_shift(image: Array, reference: Array) -> tuple[float, float]:
    """Whole shift (dy, dx) of the reference by phase correlation without normalisation, under a Hann window."""
    from scipy import fft

    window = _hann(image.shape)
    spectra = [fft.rfft2((part - part.mean()) * window) for part in (image, reference)]
    surface = fft.irfft2(spectra[0] * spectra[1].conj(), s=image.shape)
    peak = np.unravel_index(np.argmax(surface), surface.shape)
    dy, dx = (float((p + side // 2) % side - side // 2) for p, side in zip(peak, image.shape, strict=True))
    return dy, dx


def _block_shifts(image: Array, warped: Array, so_far: Displacement) -> _Blocks:
    """Shift of every block inside the overlap, to parts of a pixel, by its correlation with the warped reference."""
    from scipy import fft

    windows = so_far.overlap()
    if any(part.stop - part.start < LEAST_OVERLAP * side for part, side in zip(windows, image.shape, strict=True)):
        raise AlignmentRefused(
            f"the reference shows less than {LEAST_OVERLAP:.0%} of the input's field: "
            "give the reference of the same place, or leave the pair out"
        )
    side = int(np.clip(min(image.shape) // 4, *BLOCK_SIDES))
    sides = [min(side, part.stop - part.start) for part in windows]
    starts = [_starts(part, side) for part, side in zip(windows, sides, strict=True)]
    window = _hann(sides)
    pairs = [_cut(part, starts, sides) for part in (image, warped)]
    texture = np.stack([np.square(np.diff(pairs[1], axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)], axis=1)
    tapered = [(part - part.mean(axis=(1, 2), keepdims=True)) * window for part in pairs]
    energies = [np.square(part).sum(axis=(1, 2)) for part in tapered]
    spectra = [fft.rfft2(part) for part in tapered]
    surface = fft.irfft2(spectra[0] * spectra[1].conj(), s=sides)
    reach = min(REACH, *(side // 3 for side in sides))
    near = np.roll(surface, (reach, reach), axis=(1, 2))[:, : 2 * reach + 1, : 2 * reach + 1]
    centres = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2) + (np.array(sides) - 1) / 2
    seen = near.max(axis=(1, 2)) > LEAST_LIKENESS * np.sqrt(energies[0] * energies[1])
    return _Blocks(centres, _peaks(near) - reach, texture.astype(np.float64), seen)


def _starts(part: slice, side: int) -> NDArray[np.int64]:
    """First lines of MOST_BLOCKS blocks that cover a part evenly, or of fewer, half a block apart at most."""
    room = part.stop - part.start - side
    count = min(MOST_BLOCKS, 1 + -(-room // (side // 2)))
    return np.rint(np.linspace(part.start, part.start + room, count)).astype(np.int64)


def _cut(image: Array, starts: list[NDArray[np.int64]], sides: list[int]) -> Array:
    """Blocks (N, h, w) of an image."""
    views = np.lib.stride_tricks.sliding_window_view(image, sides)
    return views[np.ix_(*starts)].reshape(-1, *sides)


def _peaks(surfaces: Array) -> NDArray[np.float64]:
    """Place (N, 2) of the highest value of each (N, h, w) surface, by parabolas through its neighbours."""
    count, _, width = surfaces.shape
    flat = surfaces[:, 1:-1, 1:-1].reshape(count, -1).argmax(axis=1)
    row, column = flat // (width - 2) + 1, flat % (width - 2) + 1
    each = np.arange(count)
    places = []
    for place, (down, right) in ((row, (1, 0)), (column, (0, 1))):
        below, middle, above = (surfaces[each, row + k * down, column + k * right] for k in (-1, 0, 1))
        bend = below - 2 * middle + above
        part = np.where(bend < 0, (below - above) / np.where(bend < 0, 2 * bend, 1), 0)
        places.append(place + np.clip(part, -0.5, 0.5))
    return np.stack(places, axis=1).astype(np.float64)


def _fit(blocks: _Blocks, shape: tuple[int, int], model: str) -> tuple[Displacement, float]:
    """Robust fit of a transform to the blocks' shifts, each axis weighted by its texture; its uncertainty (px).

    Tukey's weights, four times the median deviation wide, after a start by absolute deviations.
    """
    half = np.array(shape) / 2
    normal = (blocks.centres - half) / half
    basis = np.column_stack([np.ones(len(normal)), normal])[:, : 1 if model == "translation" else 3]
    robust = blocks.seen.astype(np.float64)
    solution = np.zeros((basis.shape[1], 2))
    for step in range(20):
        for axis in (0, 1):
            root = np.sqrt(robust * blocks.texture[:, axis])
            solution[:, axis] = np.linalg.lstsq(basis * root[:, None], blocks.shifts[:, axis] * root, rcond=None)[0]
        left = np.hypot(*(blocks.shifts - basis @ solution).T)
        if step < 8:
            robust = blocks.seen / np.maximum(left, 0.05)
        else:
            width = 4 * max(float(np.median(left)), 0.05)
            robust = blocks.seen * np.square(np.maximum(0, 1 - np.square(left / width)))
    rows, columns = (tuple(map(float, np.pad(solution[:, axis], (0, 3 - len(solution))))) for axis in (0, 1))
    return Displacement(shape, rows, columns), _uncertainty(blocks, basis, solution, robust)  # type: ignore[arg-type]


def _uncertainty(
    blocks: _Blocks, basis: NDArray[np.float64], solution: NDArray[np.float64], robust: NDArray[np.float64]
) -> float:
    """Two standard errors (px) of the fitted shift, the largest in the field, by the scatter of the blocks."""
    corners = np.array([[1.0, y, x] for y in (-1, 1) for x in (-1, 1)])[:, : basis.shape[1]]
    variance = np.zeros(len(corners))
    for axis in (0, 1):
        weight = robust * blocks.texture[:, axis]
        left = blocks.shifts[:, axis] - basis @ solution[:, axis]
        bread = np.linalg.pinv(basis.T @ (weight[:, None] * basis))
        spread = basis.T @ (np.square(weight * left)[:, None] * basis)
        variance += np.einsum("ki,ij,kj->k", corners, bread @ spread @ bread, corners)
    return 2 * math.sqrt(float(variance.max()))


def _sum(one: Displacement, change: Displacement) -> Displacement:
    """The displacement `one` after a small change found on the image that `one` has moved."""
    rows, columns = (
        tuple(a + b for a, b in zip(*pair, strict=True))
        for pair in ((one.rows, change.rows), (one.columns, change.columns))
    )
    return Displacement(one.shape, rows, columns)  # type: ignore[arg-type]


def _hann(sides: Any) -> Array:
    rows, columns = (np.hanning(side + 2)[1:-1] for side in sides)
    return np.outer(rows, columns).astype(np.float32)


# Second estimator: the least difference


def _by_difference(image: Array, reference: Array, model: str) -> Displacement:
    """The transform that leaves the least squared difference after gain and offset, from coarse to fine."""
    dy, dx = _search(image, reference)
    found = Displacement(image.shape, (dy, 0.0, 0.0), (dx, 0.0, 0.0))
    for sigma, stride, steps in REFINEMENTS:
        found = _descend(_smooth(image, sigma), _smooth(reference, sigma), found, model, sigma, stride, steps)
    return found


def _search(image: Array, reference: Array, shrink: int = 4) -> tuple[float, float]:
    """The shift (dy, dx) of the highest correlation of the overlap, over all whole shifts of the shrunk images."""
    from scipy import fft

    levelled = (_smooth(part - part.mean(), 0.75 * shrink) for part in (image, reference))
    small = [part[::shrink, ::shrink].astype(np.float64) for part in levelled]
    shape = [fft.next_fast_len(2 * side, real=True) for side in small[0].shape]
    one, two = small
    inside = np.ones_like(one)
    ones, firsts, seconds, first_squares, second_squares = (
        fft.rfft2(part, s=shape) for part in (inside, one, two, one * one, two * two)
    )

    def summed(left: Any, right: Any) -> NDArray[np.float64]:
        return np.asarray(fft.irfft2(left * right.conj(), s=shape))

    count = np.maximum(summed(ones, ones), 1)
    mean_one, mean_two = summed(firsts, ones) / count, summed(ones, seconds) / count
    variance_one = summed(first_squares, ones) / count - mean_one**2
    variance_two = summed(ones, second_squares) / count - mean_two**2
    floor = 1e-3 * one.var() * two.var()
    correlation = (summed(firsts, seconds) / count - mean_one * mean_two) / np.sqrt(
        np.maximum(variance_one * variance_two, floor)
    )
    correlation[count < LEAST_OVERLAP * one.size] = -1
    peak = np.unravel_index(np.argmax(correlation), correlation.shape)
    dy, dx = (shrink * float((p + side // 2) % side - side // 2) for p, side in zip(peak, shape, strict=True))
    return dy, dx


def _descend(
    image: Array, reference: Array, start: Displacement, model: str, sigma: float, stride: int, steps: int
) -> Displacement:
    """Gauss-Newton steps on the difference of two smoothed images, gain and offset solved for beside the transform."""
    from scipy.ndimage import spline_filter

    spline = spline_filter(reference, order=3, output=np.float32, mode="mirror")
    slope_down, slope_right = np.gradient(reference, axis=0), np.gradient(reference, axis=1)
    rows, columns = (np.arange(0, side, stride) for side in image.shape)
    border = math.ceil(2 * sigma)
    half = np.array(image.shape) / 2
    yn, xn = np.meshgrid((rows - half[0]) / half[0], (columns - half[1]) / half[1], indexing="ij")
    basis = [np.ones_like(yn), yn, xn][: 1 if model == "translation" else 3]
    target, found = image[::stride, ::stride], start
    for _ in range(steps):
        moved = _resample(spline, found, stride=stride)
        down, right = (_resample(slope, found, order=1, stride=stride) for slope in (slope_down, slope_right))
        used = _usable(found, rows, columns, border)
        if np.count_nonzero(used) < LEAST_USED * used.size:
            break
        columns_of = [moved, np.ones_like(moved), *(-down * b for b in basis), *(-right * b for b in basis)]
        design = np.stack([column[used] for column in columns_of]).astype(np.float64)
        normal, right_side = design @ design.T, design @ target[used]
        solution = np.linalg.lstsq(normal, right_side, rcond=1e-12)[0]
        if not solution[0] > 0:
            break
        change = solution[2:].reshape(2, -1) / solution[0]
        moves = (tuple(map(float, np.pad(part, (0, 3 - len(part))))) for part in change)
        step = Displacement(found.shape, *moves)  # type: ignore[arg-type]
        found = _sum(found, step)
        if step.distance(Displacement(found.shape)) < 1e-3:
            break
    return found


def _usable(by: Displacement, rows: Any, columns: Any, border: int) -> NDArray[np.bool_]:
    """Where neither image's border can be felt."""
    height, width = by.shape
    grid = np.meshgrid(rows, columns, indexing="ij")
    dy, dx = by.at(*grid)
    used = np.ones(grid[0].shape, bool)
    for place, side in ((grid[0], height), (grid[0] - dy, height), (grid[1], width), (grid[1] - dx, width)):
        used &= (place >= border) & (place <= side - 1 - border)
    return used


# Gray levels and sharpness


def _relation(image: Array, reference: Array, by: Displacement) -> tuple[float, float, float]:
    """Gain and offset with reference = gain input + offset, and the correlation, of the smoothed overlap."""
    window = by.overlap()
    one = _smooth(image, MATCH_SIGMA)[window].astype(np.float64)
    two = _resample(_smooth(reference, MATCH_SIGMA), by, order=1)[window].astype(np.float64)
    first, second = one - one.mean(), two - two.mean()
    both, squares = float(np.sum(first * second)), [float(np.sum(part * part)) for part in (first, second)]
    if min(squares) == 0:
        raise AlignmentRefused("one of the two images is flat where they overlap; leave the pair out")
    gain, correlation = both / squares[0], both / math.sqrt(squares[0] * squares[1])
    return gain, float(two.mean() - gain * one.mean()), correlation


def _warnings(swapped: bool, residual: float, model: str) -> tuple[str, ...]:
    warnings = []
    if residual > 1 and model != "affine":
        warnings.append(f"the alignment model {model} leaves shifts of {residual:.1f} px: use affine")
    if swapped:
        warnings.append("the input is sharper or less noisy than the reference: are the two swapped?")
    return tuple(warnings)


def _swapped(image: Array, reference: Array, by: Displacement) -> bool:
    """Whether the input is the better image of the two.

    The regression of one spectrum on the other falls like a blur where all noise is the former's, and like blur and
    noise together where it is the latter's. Regressed on its reference, an input must not rise with frequency, nor
    fall much faster than the reference regressed on it, unless that rises.
    """
    on_reference, on_input = _regressions(image, reference, by)
    sharper = max(on_reference[:-1]) > 1.1
    noisier = max(on_input[:-1]) <= 1.1 and on_input[-1] > 1.5 * on_reference[-1]
    return sharper or noisier


def _regressions(image: Array, reference: Array, by: Displacement) -> tuple[list[float], list[float]]:
    """Slope of the input's spectrum on the reference's and the other way, in each band but the first, which is 1."""
    from scipy import fft
    from scipy.ndimage import spline_filter

    window = by.overlap()
    warped = _resample(spline_filter(reference, order=3, output=np.float32, mode="mirror"), by)
    taper = _hann(warped[window].shape)
    first, second = (fft.rfft2((part - part.mean()) * taper) for part in (image[window], warped[window]))
    frequency = np.hypot(fft.fftfreq(taper.shape[0])[:, None], fft.rfftfreq(taper.shape[1]))
    slopes = []
    for low, high in BANDS:
        band = (frequency >= low) & (frequency < high)
        cross = max(float((first[band] * second[band].conj()).real.sum()), 1e-12)
        floor = ROUNDING * np.count_nonzero(band) * float(np.square(taper).sum())
        powers = [float(np.square(np.abs(part[band])).sum()) + floor for part in (first, second)]
        slopes.append((cross / powers[1], cross / powers[0]))
    gain = math.sqrt(slopes[0][0] / slopes[0][1])
    return [forth / gain for forth, _ in slopes[1:]], [back * gain for _, back in slopes[1:]]
