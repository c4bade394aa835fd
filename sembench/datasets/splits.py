"""Whether splits are independent: no group in two of them, no content shared between them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from sembench.datasets.cache import locate
from sembench.datasets.manifest import Dataset, ManifestRow
from sembench.errors import InputError
from sembench.micrograph import read

HASH_SIDE = 32
HASH_FREQUENCIES = 8
LARGEST_HASH_DISTANCE = 8
"""Bits of 64 in which the hashes of one picture may differ: 4 at most after rescaling, brightness and noise on the
images of semcorpus, 16 at least between two of its splits."""

SIDE = 128
"""Longest side (px) at which overlaps are looked for; both images of a pair are shrunk alike."""
DETAIL_SIGMA = 0.7
"""Gaussian (px, so shrunk) that evens out shifts by parts of a pixel."""
BACKGROUND_SIGMA = 4.0
"""Gaussian (px, so shrunk) against which every pixel is measured, so that neither shading nor one edge decides."""
FLAT = 0.1
"""Share of the mean local variance that is added to it, so that noise in flat regions is not blown up."""
LEAST_STRUCTURE = 0.05
"""Variance of an overlap, as a share of its whole image's, below which it is too flat to tell anything."""
SMALLEST_OVERLAP = 0.25
"""Share of the smaller image that must overlap."""
SMALLEST_AREA = 600
"""Pixels (so shrunk) that must overlap."""
LEAST_CORRELATION = 0.72
"""Correlation from which on two images share content: 0.82 at least for planted overlaps of 60 % (other contrast,
noise) on the images of semcorpus, 0.57 at most between two of its splits."""


@dataclass(frozen=True)
class SplitImage:
    """One image of a split, reduced to what comparisons need.

    bits: its perceptual hash; shape: (H, W) in px; reduced: its pixels, shrunk by sqrt(2) ** level to SIDE px at most.
    """

    file: str
    split: str
    bits: NDArray[np.bool_]
    shape: tuple[int, int]
    level: int
    reduced: NDArray[np.float64]

    @classmethod
    def of(cls, file: str, split: str, pixels: NDArray[Any]) -> "SplitImage":
        """Reduce an (H, W) image of any gray scale."""
        height, width = pixels.shape
        level = max(0, math.ceil(2 * math.log2(max(height, width) / SIDE)))
        return cls(
            file, split, perceptual_hash(pixels), (height, width), level, _shrink(pixels, (height, width), level)
        )

    def at(self, level: int) -> NDArray[np.float64]:
        """Its pixels, shrunk by sqrt(2) ** level."""
        return self.reduced if level == self.level else _shrink(self.reduced, self.shape, level)


@dataclass(frozen=True)
class Finding:
    """Two images of different splits that share content.

    how: "hash" (score: bits of 64 that differ) or "overlap" (score: correlation in the overlap, at most 1).
    """

    file_a: str
    split_a: str
    file_b: str
    split_b: str
    how: str
    score: float

    def __str__(self) -> str:
        what = f"{self.score:.0f} of 64 hash bits differ" if self.how == "hash" else f"correlation {self.score:.2f}"
        return f"{self.file_a} ({self.split_a}) shares content with {self.file_b} ({self.split_b}): {what}"


def check_groups(dataset: Dataset) -> list[str]:
    """One line for every group of the set that stands in more than one split; none where all is well."""
    splits: dict[str, set[str]] = {}
    for row in dataset.rows:
        if row.group:
            splits.setdefault(row.group, set()).add(row.split)
    return [
        f"{dataset.name}: group {group} stands in {' and '.join(sorted(found))}; keep it in one split"
        for group, found in splits.items()
        if len(found) > 1
    ]


def check_content(dataset: Dataset, *, on_progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Content shared between splits, among the images of a set that are here; nothing is downloaded.

    on_progress is told (done, in all), first of images read, then of pairs compared.
    Raises as cache.locate and micrograph.read do.
    """
    rows = list({row.file: row for row in dataset.rows if row.role not in ("", "sidecar")}.values())
    images = []
    for number, row in enumerate(rows, 1):
        path = locate(dataset, row, download=False)
        if path is not None:
            images.append(SplitImage.of(row.file, row.split, read(path, crop=row.crop_px).pixels))
        if on_progress:
            on_progress(number, len(rows))
    return find_shared(images, on_progress=on_progress)


def find_shared(
    images: Sequence[SplitImage],
    *,
    largest_hash_distance: int = LARGEST_HASH_DISTANCE,
    least_correlation: float = LEAST_CORRELATION,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Pairs of images in different splits that are one picture (hash), or parts of one at equal scale (overlap).

    Turned or mirrored copies, and overlaps at different scales, are not found. on_progress: (pairs done, pairs in all).
    """
    pairs = [(a, b) for a, b in combinations(range(len(images)), 2) if images[a].split != images[b].split]
    pairs.sort(key=lambda pair: max(images[pair[0]].level, images[pair[1]].level))
    found, prepared, prepared_level = [], dict[int, Prepared](), -1
    for done, (a, b) in enumerate(pairs, 1):
        level = max(images[a].level, images[b].level)
        if level != prepared_level:
            prepared, prepared_level = {}, level
        for index in (a, b):
            if index not in prepared:
                prepared[index] = prepare(flatten(images[index].at(level)), 2 * SIDE)
        distance = int((images[a].bits != images[b].bits).sum())
        score = correlation(prepared[a], prepared[b])
        names = images[a].file, images[a].split, images[b].file, images[b].split
        if distance <= largest_hash_distance:
            found.append((pairs[done - 1], Finding(*names, "hash", distance)))
        elif score >= least_correlation:
            found.append((pairs[done - 1], Finding(*names, "overlap", score)))
        if on_progress:
            on_progress(done, len(pairs))
    return [finding for _, finding in sorted(found, key=lambda entry: entry[0])]


def check_disjoint(roles: Mapping[str, Iterable[ManifestRow]]) -> None:
    """Raise InputError where two roles (train, evaluation, ...) share a group, a file or a file's content."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    for role, rows in roles.items():
        for row in rows:
            for what, value in (("file", row.file), ("content", row.sha256), (f"group {row.group}", row.group)):
                if not value:
                    continue
                other, file = seen.setdefault((what, value), (role, row.file))
                if other != role:
                    raise InputError(
                        f"{row.file} ({role}) and {file} ({other}) have the same {what}; keep it in one role"
                    )


def resize_area(image: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """Resize an (H, W) image to (height, width) by the exact mean over the area that each new pixel covers."""
    result = np.asarray(image, dtype=np.float64)
    for axis, size in ((0, height), (1, width)):
        moved = np.moveaxis(result, axis, 0)
        length = len(moved)
        integral = np.concatenate([np.zeros((1, moved.shape[1])), np.cumsum(moved, axis=0)])
        edges = np.linspace(0, length, size + 1)
        below = np.minimum(edges.astype(int), length - 1)
        share = (edges - below)[:, None]
        at_edges = (1 - share) * integral[below] + share * integral[below + 1]
        result = np.moveaxis(np.diff(at_edges, axis=0) * (size / length), 0, axis)
    return result


def perceptual_hash(image: NDArray[Any]) -> NDArray[np.bool_]:
    """64 bits of an (H, W) image: which of the 8 x 8 lowest DCT coefficients of its reduction exceed their median.

    The first, the mean gray level, takes no part in the median: brightness, contrast and size do not matter.
    """
    spectrum = fft.dctn(resize_area(image, HASH_SIDE, HASH_SIDE), norm="ortho")
    low = spectrum[:HASH_FREQUENCIES, :HASH_FREQUENCIES].ravel()
    return np.asarray(low > np.median(low[1:]))


def flatten(image: NDArray[Any]) -> NDArray[np.float64]:
    """An (H, W) image less its local mean, over its local standard deviation: shading and contrast taken out."""
    smooth = ndimage.gaussian_filter(np.asarray(image, dtype=np.float64), DETAIL_SIGMA)
    detail = smooth - ndimage.gaussian_filter(smooth, BACKGROUND_SIGMA)
    variance = ndimage.gaussian_filter(detail**2, BACKGROUND_SIGMA)
    floor = FLAT * variance.mean()
    return np.asarray(detail / np.sqrt(variance + floor) if floor > 0 else detail)


@dataclass(frozen=True)
class Prepared:
    """What of an image serves for all its partners: its transform on a padded square, its sums from the origin on."""

    shape: tuple[int, int]
    spectrum: NDArray[np.complex64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]


def prepare(image: NDArray[Any], side: int) -> Prepared:
    """Make an (H, W) image ready for `correlation`; side (px): at least the sum of both partners' longest sides."""
    values = np.asarray(image, dtype=np.float64)
    values = (values - values.mean()) / (values.std() or 1.0)
    spectrum = fft.rfft2(values.astype(np.float32), (side, side))
    return Prepared((values.shape[0], values.shape[1]), spectrum, _integral(values), _integral(values**2))


def correlation(
    a: Prepared, b: Prepared, *, smallest_overlap: float = SMALLEST_OVERLAP, smallest_area: int = SMALLEST_AREA
) -> float:
    """Highest Pearson correlation of two images over all whole-pixel shifts, each computed in its own overlap.

    Shifts count that leave at least `smallest_area` px and this share of the smaller image, and structure in both.
    Returns -1 where none does.
    """
    side = a.spectrum.shape[0]
    shift_y, top_a, bottom_a, top_b, bottom_b = _spans(a.shape[0], b.shape[0])
    shift_x, left_a, right_a, left_b, right_b = _spans(a.shape[1], b.shape[1])
    area = np.outer(bottom_a - top_a, right_a - left_a)
    allowed = area >= max(smallest_area, smallest_overlap * min(math.prod(a.shape), math.prod(b.shape)))
    if not allowed.any():
        return -1.0
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    allowed, count = allowed[np.ix_(rows, columns)], area[np.ix_(rows, columns)]
    products = fft.irfft2(a.spectrum * b.spectrum.conj(), (side, side))[np.ix_(shift_y[rows], shift_x[columns])]
    in_a = (top_a[rows], bottom_a[rows], left_a[columns], right_a[columns])
    in_b = (top_b[rows], bottom_b[rows], left_b[columns], right_b[columns])
    sum_a, sum_b = _box(a.sums, *in_a), _box(b.sums, *in_b)
    spread_a = _box(a.squares, *in_a) - sum_a**2 / count
    spread_b = _box(b.squares, *in_b) - sum_b**2 / count
    allowed &= (spread_a > LEAST_STRUCTURE * count) & (spread_b > LEAST_STRUCTURE * count)
    scale = np.sqrt(np.where(allowed, spread_a * spread_b, 1.0))
    return float(np.where(allowed, (products - sum_a * sum_b / count) / scale, -1.0).max())


def _shrink(image: NDArray[Any], shape: tuple[int, int], level: int) -> NDArray[np.float64]:
    factor = 2 ** (level / 2)
    height, width = (max(1, round(length / factor)) for length in shape)
    return resize_area(image, height, width)


def _integral(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)


def _spans(length_a: int, length_b: int) -> tuple[NDArray[np.int_], ...]:
    """All shifts of b against a along one axis, and where their overlap begins and ends in a and in b."""
    shift = np.arange(1 - length_b, length_a)
    begin, end = np.maximum(0, shift), np.minimum(length_a, shift + length_b)
    return shift, begin, end, begin - shift, end - shift


def _box(
    integral: NDArray[np.float64],
    top: NDArray[np.int_],
    bottom: NDArray[np.int_],
    left: NDArray[np.int_],
    right: NDArray[np.int_],
) -> NDArray[np.float64]:
    """Sums over the rectangles of all row spans with all column spans."""
    by_columns = integral[:, right] - integral[:, left]
    return by_columns[bottom] - by_columns[top]
