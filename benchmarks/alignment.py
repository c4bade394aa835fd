"""How well real pairs are registered: every bar beside what was seen; exit 1 where one is missed.

    python benchmarks/alignment.py                     all rows, minutes on one core
    python benchmarks/alignment.py --rows known,blur   some groups of rows

known, blur: kriss references displaced by a drawn transform, given the noise of its fast scan (and a blur) and aligned
to where they were. kriss, semsr: evaluation pairs against the transforms found independently (alignment.csv), and the
scores of four classical methods after registration. refusal, swapped, speed: what the names say. Needs both sets.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from restorers.gaussian import Gaussian
from restorers.median import Median
from restorers.tv import TotalVariation
from sembench.alignment import Alignment, AlignmentRefused, Displacement, align
from sembench.datasets.cache import locate
from sembench.datasets.manifest import load_alignment, load_manifest
from sembench.metrics.fidelity import apply_match, match, psnr, ssim
from sembench.micrograph import read
from sembench.optics import airy_psf, blur, generator

Image = NDArray[Any]
Pairs = dict[str, dict[str, Image]]

BORDER = 24
"""Rows and columns cut from a displaced image, so that nothing from beyond its edge is left."""

MARGINS = {"kriss": 12, "semsr": 28}

NOISE_SLOPE, NOISE_OFFSET, NOISE_CORRELATION = 3.65, -14.0, (0.48, 0.07)
"""Variance (gray levels) by the mean, and correlation along x, of kriss' fast scan, measured on its pairs."""

GAIN, OFFSET = 1.028, -5.3
"""Reference = gain input + offset between kriss' dwell scans, measured on its pairs."""

PUBLISHED = {
    "dwell": {
        "input": (22.25, 0.439, 22.16, 0.436),
        "gaussian": (28.80, 0.753, 29.38, 0.752),
        "median": (29.77, 0.797, 30.13, 0.797),
        "tv": (29.57, 0.834, 30.55, 0.838),
    },
    "line": {
        "input": (22.13, 0.460, 22.41, 0.464),
        "gaussian": (28.81, 0.756, 29.52, 0.758),
        "median": (29.65, 0.787, 30.11, 0.789),
        "tv": (29.65, 0.814, 30.49, 0.816),
    },
}
"""PSNR (dB) and SSIM, plain and matched, after an independent registration of the same pairs."""


@dataclass(frozen=True)
class Row:
    """One bar: what, the bar in words, what was seen, and whether it holds (None: told, without a bar)."""

    what: str
    bar: str
    seen: str
    holds: bool | None

    def __str__(self) -> str:
        verdict = {True: "ok", False: "MISSED", None: ""}[self.holds]
        return f"{self.what:<62} {self.bar:<34} {self.seen:<44} {verdict}".rstrip()


def pairs_of(name: str) -> Pairs:
    """Input and reference of every evaluation pair, tiles put together."""
    dataset = load_manifest(name)
    parts: dict[str, dict[str, dict[tuple[int, int], Image]]] = {}
    for row in dataset.select(split="evaluation"):
        path = locate(dataset, row)
        if path is None:
            raise SystemExit(f"{row.file} of {name} cannot be had: set SEMBENCH_DATA or allow its download")
        y, x = map(int, (row.tile or "0,0").split(","))
        parts.setdefault(row.pair, {}).setdefault(row.role, {})[y, x] = read(path, crop=row.crop_px).pixels
    return {pair: {role: _stitch(tiles) for role, tiles in roles.items()} for pair, roles in sorted(parts.items())}


def _stitch(tiles: dict[tuple[int, int], Image]) -> Image:
    lines = sorted({y for y, _ in tiles})
    return np.block([[tiles[key] for key in sorted(tiles) if key[0] == y] for y in lines])


# Known transforms


def drawn(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> Displacement:
    """A transform of one kind: shift to 12 px, magnification to 1 % an axis, shear and drift to 2 px at the edges."""
    half = np.array(shape) / 2
    rows, columns = np.zeros(3), np.zeros(3)
    rows[0], columns[0] = rng.uniform(-12, 12, 2) if kind == "shift" else rng.uniform(-3, 3, 2)
    if kind in ("magnification", "all"):
        rows[1], columns[2] = rng.uniform(-0.01, 0.01, 2) * half
    if kind in ("shear", "all"):
        rows[2], columns[1] = rng.uniform(-2, 2, 2)
    if kind == "drift":
        rows[1], columns[1] = rng.uniform(-2, 2, 2)
    return Displacement(shape, tuple(rows), tuple(columns))


def fast_scan(image: Image, rng: np.random.Generator) -> Image:
    """The image as kriss' fast scan would have it: gain, offset, correlated noise, clipped, in whole gray levels."""
    signal = (image - OFFSET) / GAIN
    angle = 2 * np.pi * np.fft.rfftfreq(image.shape[1])
    near, far = NOISE_CORRELATION
    shape = np.sqrt(1 + 2 * near * np.cos(angle) + 2 * far * np.cos(2 * angle))
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=image.shape), axis=1) * shape, image.shape[1], axis=1)
    noisy = signal + noise * np.sqrt(np.maximum(NOISE_SLOPE * signal + NOISE_OFFSET, 1.0))
    return np.rint(np.clip(noisy, 0, 255)).astype(np.float32)


def displaced(reference: Image, by: Displacement, bend: Callable[[Image], Image] | None = None) -> tuple[Image, Image]:
    """The displaced image and the reference, both less BORDER; `by` is that of the cut field."""
    grid = np.indices(reference.shape, dtype=np.float64)
    dy, dx = by.at(grid[0] - BORDER, grid[1] - BORDER)
    extra = 0.0 if bend is None else bend((grid[0] - BORDER) / by.shape[0])
    moved = map_coordinates(reference, [grid[0] - dy, grid[1] - dx - extra], order=5, mode="mirror", output=np.float64)
    inner = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return moved[inner], reference[inner]


def field_errors(found: Displacement, truth: Displacement, bend: Callable[[Image], Image] | None = None) -> Image:
    """Distance (px) of two displacements on a grid over the field."""
    row, column = np.meshgrid(*(np.linspace(0, side - 1, 15) for side in truth.shape), indexing="ij")
    one, two = found.at(row, column), truth.at(row, column)
    extra = 0.0 if bend is None else bend(row / truth.shape[0])
    return np.hypot(one[0] - two[0], one[1] - two[1] - extra).ravel()


def _settling(position: Image) -> Image:
    """A drift along x that dies away down the frame, 1 px at its start, less its best straight line (px)."""
    grid = np.linspace(0, 1, 201)
    line = np.polyfit(grid, np.exp(-4 * grid), 1)
    return np.exp(-4 * position) - np.polyval(line, position)


def known(seed: int, pairs: Pairs, count: int) -> Iterator[Row]:
    """Shifts, magnifications, shears and drifts put on slow scans and found under the fast scan's noise."""
    references = [parts["reference"] for parts in pairs.values()]
    for kind in ("shift", "magnification", "shear", "drift", "all"):
        errors, trusted = [], 0
        for number in range(count):
            rng = generator(seed, f"{kind}-{number}")
            reference = references[int(rng.integers(len(references)))]
            truth = drawn(kind, tuple(side - 2 * BORDER for side in reference.shape), rng)
            moved, still = displaced(reference, truth)
            found = align(fast_scan(moved, rng), still)
            trusted += found.trusted
            errors.append(field_errors(found.displacement, truth))
        yield _recovered(f"known {kind}, {count} images", np.concatenate(errors), 0.1, 0.3)
        yield Row(f"known {kind}: estimators agree", f"{count} of {count}", f"{trusted}", trusted == count)
    errors, left = [], []
    for number in range(count):
        rng = generator(seed, f"curved-{number}")
        reference = references[int(rng.integers(len(references)))]
        truth = drawn("shift", tuple(side - 2 * BORDER for side in reference.shape), rng)
        moved, still = displaced(reference, truth, _settling)
        found = align(fast_scan(moved, rng), still)
        errors.append(field_errors(found.displacement, truth))
        left.append(field_errors(found.displacement, truth, _settling))
    seen = f"{_spread(np.concatenate(errors))}; left {_spread(np.concatenate(left))} px"
    yield Row("settling drift of 1 px: from the best affine", "told", seen, None)


def blurred(seed: int, pairs: Pairs, count: int) -> Iterator[Row]:
    """The same under a defocus blur."""
    references = [parts["reference"] for parts in pairs.values()]
    for radius in (1.0, 2.0, 4.0, 6.0, 8.0):
        errors, trusted = [], 0
        for number in range(count):
            rng = generator(seed, f"blur-{radius:g}-{number}")
            reference = references[int(rng.integers(len(references)))]
            truth = drawn("all", tuple(side - 2 * BORDER for side in reference.shape), rng)
            moved, still = displaced(reference, truth)
            found = align(fast_scan(blur(moved, airy_psf(radius, radius)), rng), still)
            trusted += found.trusted
            errors.append(field_errors(found.displacement, truth))
        yield _recovered(f"known, blur rx {radius:g} px, {count} images", np.concatenate(errors), None, 0.3)
        yield Row(f"blur rx {radius:g} px: estimators agree", "told", f"{trusted} of {count}", None)


def _spread(errors: Image) -> str:
    return f"{np.median(errors):.3f} / {np.percentile(errors, 95):.3f}"


def _recovered(what: str, errors: Image, median: float | None, most: float) -> Row:
    bar = f"median {median:g}, 95 % {most:g} px" if median else f"95 % {most:g} px"
    holds = np.percentile(errors, 95) <= most and (median is None or np.median(errors) <= median)
    return Row(what, bar, f"{_spread(errors)} px", bool(holds))


# Real pairs


def listed(name: str, pair: str, shape: tuple[int, int]) -> Displacement:
    """The transform of alignment.csv."""
    line = load_alignment(name)[pair]
    if name == "kriss":
        rows, columns = (tuple(float(line[f"{axis}{n}"]) for n in range(3)) for axis in "ab")
        return Displacement(shape, rows, columns)
    matrix = np.array([[float(line[f"m{i}{j}"]) for j in range(3)] for i in range(2)])
    half = np.array(shape) / 2
    slopes = (np.eye(2) - matrix[:, :2]) * half
    middle = half - matrix[:, :2] @ half - matrix[:, 2]
    return Displacement(shape, (middle[0], *slopes[0]), (middle[1], *slopes[1]))


def scores(image: Image, reference: Image, margin: int) -> tuple[float, float, float, float]:
    """PSNR and SSIM, plain and matched, inside a margin."""
    inner = (slice(margin, -margin), slice(margin, -margin))
    restored, warped = image[inner], reference[inner]
    fitted = apply_match(match(warped, restored), restored)
    return psnr(warped, restored), ssim(warped, restored), psnr(warped, fitted), ssim(warped, fitted)


def real(name: str, pairs: Pairs, found: dict[str, Alignment]) -> Iterator[Row]:
    """Agreement with alignment.csv, what is left over, and which of the two transforms brings the images nearer."""
    margin = MARGINS[name]
    distances, gains = [], []
    for pair, parts in pairs.items():
        theirs = listed(name, pair, parts["input"].shape)
        distances.append(found[pair].displacement.distance(theirs))
        smooth = Gaussian().restore(parts["input"])
        ours = scores(smooth, found[pair].warp(parts["reference"]), margin)[2]
        gains.append(
            ours - scores(smooth, replace(found[pair], displacement=theirs).warp(parts["reference"]), margin)[2]
        )
    far = sum(distance > 0.2 for distance in distances)
    seen = f"median {np.median(distances):.3f}, most {max(distances):.3f} px, {far} beyond"
    better = f"PSNR {np.mean(gains):+.3f} dB mean, {min(gains):+.3f} least"
    nearer = float(np.mean(gains)) >= 0 and min(gains) > -0.05
    yield Row(
        f"{name}: {len(pairs)} transforms against alignment.csv", "0.2 px, or nearer by PSNR", seen, not far or nearer
    )
    yield Row(f"{name}: gaussian, matched, ours less alignment.csv's", "mean 0, least -0.05 dB", better, nearer)
    trusted = sum(alignment.trusted for alignment in found.values())
    told = "all" if name == "kriss" else "told"
    yield Row(
        f"{name}: estimators agree",
        told,
        f"{trusted} of {len(pairs)}",
        trusted == len(pairs) if told == "all" else None,
    )
    for pair, alignment in found.items():
        if not alignment.trusted:
            yield Row(f"  {pair}", "", alignment.reason, None)
    need = max(alignment.margin for alignment in found.values())
    yield Row(f"{name}: margin needed", f"{margin} px", f"{need} px", need <= margin)
    groups = sorted({pair.split("_")[0] for pair in pairs}) if name == "kriss" else [""]
    for group in groups:
        chosen = [alignment for pair, alignment in found.items() if pair.startswith(group)]
        medians, mosts = ([getattr(a, f"residual_{part}_px") for a in chosen] for part in ("median", "p95"))
        yield Row(
            f"{name} {group}: shift left in blocks, median / 95 %",
            "told",
            f"{np.mean(medians):.3f} / {np.mean(mosts):.3f} px",
            None,
        )


def table(pairs: Pairs, found: dict[str, Alignment]) -> Iterator[Row]:
    """Four classical methods on kriss against the published table."""
    methods = {"input": None, "gaussian": Gaussian(), "median": Median(), "tv": TotalVariation()}
    for group, lines in PUBLISHED.items():
        for name, published in lines.items():
            method = methods[name]
            seen = []
            for pair, parts in pairs.items():
                if pair.startswith(group):
                    restored = parts["input"] if method is None else method.restore(parts["input"])
                    seen.append(scores(restored, found[pair].warp(parts["reference"]), MARGINS["kriss"]))
            mean = np.mean(seen, axis=0)
            for at, kind in ((0, "plain"), (2, "matched")):
                off = mean[at] - published[at], mean[at + 1] - published[at + 1]
                words = f"{mean[at]:.2f} / {mean[at + 1]:.3f} ({off[0]:+.2f} dB, {off[1]:+.3f})"
                bar = f"{published[at]:.2f} +- 0.15 / {published[at + 1]:.3f} +- 0.01"
                yield Row(f"kriss {group}: {name}, {kind}", bar, words, abs(off[0]) <= 0.15 and abs(off[1]) <= 0.01)


def refusal(name: str, pairs: Pairs) -> Iterator[Row]:
    """Every input with the next pair's reference."""
    names = list(pairs)
    refused = 0
    for pair, other in zip(names, names[1:] + names[:1], strict=True):
        try:
            align(pairs[pair]["input"], pairs[other]["reference"])
        except AlignmentRefused:
            refused += 1
    yield Row(
        f"{name}: reference of another field refused",
        f"{len(names)} of {len(names)}",
        f"{refused}",
        refused == len(names),
    )


def swapped(name: str, pairs: Pairs, found: dict[str, Alignment]) -> Iterator[Row]:
    """Input and reference the other way round: a warning, and the inverse transform."""
    warned, distances = 0, []
    for pair, parts in pairs.items():
        back = align(parts["reference"], parts["input"])
        warned += bool(back.warnings)
        distances.append(back.displacement.inverse.distance(found[pair].displacement))
    false = sum(bool(alignment.warnings) for alignment in found.values())
    yield Row(f"{name}: swapped pairs warned of", f"{len(pairs)} of {len(pairs)}", f"{warned}", warned == len(pairs))
    yield Row(f"{name}: right pairs warned of", "0", f"{false}", false == 0)
    seen = f"{np.median(distances):.3f} / {max(distances):.3f} px"
    yield Row(f"{name}: swapped gives the inverse, median / most", "most 0.15 px", seen, max(distances) <= 0.15)


def speed(pairs: Pairs) -> Iterator[Row]:
    """Processor time of one registration."""
    parts = next(iter(pairs.values()))
    image, reference = (
        np.pad(part, ((0, 480 - part.shape[0]), (0, 640 - part.shape[1])), mode="reflect")
        for part in (parts["input"], parts["reference"])
    )
    taken = []
    for _ in range(5):
        start = time.process_time()
        align(image, reference)
        taken.append(time.process_time() - start)
    yield Row("640 x 480 px, both estimators, processor time", "0.7 s", f"{min(taken):.2f} s", min(taken) < 0.7)


def main() -> int:
    """Print every bar and what was seen; 1 where one is missed."""
    groups = ("known", "blur", "kriss", "semsr", "refusal", "swapped", "speed")
    parser = argparse.ArgumentParser(description="Accuracy of the registration beside its bars.")
    parser.add_argument("--seed", type=int, default=1, help="of all drawn transforms and noise")
    parser.add_argument("--images", type=int, default=10, help="images a kind of transform and a blur")
    parser.add_argument("--rows", default=",".join(groups), help=f"groups of rows: {', '.join(groups)}")
    given = parser.parse_args()
    chosen = given.rows.split(",")
    unknown = [group for group in chosen if group not in groups]
    if unknown:
        parser.error(f"no rows {unknown[0]!r}: give some of {', '.join(groups)}")
    missed = sum(row.holds is False for row in _printed(rows(chosen, given.seed, given.images)))
    print(f"{missed} missed" if missed else "all ok")
    return 1 if missed else 0


def rows(chosen: list[str], seed: int, count: int) -> Iterator[Row]:
    """The rows of the groups chosen, as they are found."""
    sets = {name: pairs_of(name) for name in MARGINS}
    found: dict[str, dict[str, Alignment]] = {}
    for name in MARGINS:
        if name in chosen or "swapped" in chosen:
            found[name] = {pair: align(parts["input"], parts["reference"]) for pair, parts in sets[name].items()}
    for group in chosen:
        if group == "known":
            yield from known(seed, sets["kriss"], count)
        elif group == "blur":
            yield from blurred(seed, sets["kriss"], count)
        elif group == "speed":
            yield from speed(sets["kriss"])
        elif group in sets:
            yield from real(group, sets[group], found[group])
            if group == "kriss":
                yield from table(sets[group], found[group])
        else:
            for name, pairs in sets.items():
                yield from refusal(name, pairs) if group == "refusal" else swapped(name, pairs, found[name])


def _printed(found: Iterator[Row]) -> Iterator[Row]:
    for row in found:
        print(row, flush=True)
        yield row


if __name__ == "__main__":
    sys.exit(main())
