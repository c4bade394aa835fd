"""Images for benchmarks/metrology.py: lines and contacts with known truth, and images that hold no measurable lines."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from sembench import phantom
from sembench.datasets.cache import locate
from sembench.datasets.manifest import ManifestRow, load_manifest
from sembench.errors import UnavailableError
from sembench.micrograph import read
from sembench.optics import generator

Image = NDArray[np.float64]

SIDE = 1024
LOW, HIGH = 60.0, 180.0
RIM_HIGH = 140.0
"""Bright level of lines with a rim, so that the rim stays below white."""

LINE_PATTERNS = ("litho-lines", "nffa-electrodes")
"""Images of semcorpus that do show lines."""

# fmt: off
BUNDLED = (
    "astronaut", "brick", "camera", "cell", "chelsea", "checkerboard", "clock", "coffee", "coins", "colorwheel",
    "grass", "gravel", "horse", "hubble_deep_field", "immunohistochemistry", "logo", "microaneurysms", "moon", "page",
    "retina", "rocket", "shepp_logan_phantom", "text",
)
# fmt: on
"""Images that scikit-image brings along."""


@dataclass(frozen=True, eq=False)
class LineScene:
    """A noise-free image of lines, its edges in each row (lines, 2, rows) in px, and what they were drawn from."""

    image: Image
    edges: Image
    drawn: dict[str, Any]
    transposed: bool
    step: float


def line_scene(seed: int, duty: float, index: int, rim: float = 0.0, rim_length: float = 3.0) -> LineScene:
    """One scene: pitch, roughness, blur and tilt drawn anew from (seed, duty, index); every other one transposed."""
    name = f"lines-{duty}-{index}"
    rng = generator(seed, name, "parameters")
    pitch = float(rng.uniform(20, 80))
    narrower = pitch * min(duty, 1 - duty)
    return drawn_lines(
        seed,
        name,
        pitch=pitch,
        duty=duty,
        sigma=min(float(rng.uniform(0.5, 2)), narrower / 8),
        xi=float(rng.uniform(8, 40)),
        hurst=float(rng.uniform(0.3, 0.9)),
        edge_sigma=float(rng.uniform(0.8, 2)),
        tilt_deg=float(rng.uniform(-2, 2)),
        rim=rim,
        rim_length=rim_length,
        transposed=index % 2 == 1,
        high=RIM_HIGH if rim else HIGH,
    )


def drawn_lines(seed: int, name: str, *, high: float = HIGH, **drawn: Any) -> LineScene:
    """A scene of 1024 x 1024 px from the parameters of `phantom.lines`."""
    scene = phantom.lines(generator(seed, name, "scene"), height=SIDE, width=SIDE, low=LOW, high=high, **drawn)
    edges = np.stack([scene.truth["left_px"], scene.truth["right_px"]], axis=1)
    return LineScene(scene.image.astype(np.float64), edges, scene.truth["drawn"], scene.truth["transposed"], high - LOW)


def with_noise(scene: LineScene, contrast: float, rng: np.random.Generator, correlation: float = 0.0) -> Image:
    """The scene with Gaussian noise of (line level - space level) / contrast.

    correlation: sigma (px) of a Gaussian that smooths the noise across the lines before it is scaled.
    """
    if math.isinf(contrast):
        return scene.image
    noise = rng.standard_normal(scene.image.shape)
    if correlation:
        noise = gaussian_filter1d(noise, correlation, axis=0 if scene.transposed else 1, mode="wrap")
        noise /= noise.std()
    return scene.image + scene.step / contrast * noise


def contact_scene(seed: int, index: int) -> tuple[Image, dict[str, Any], float]:
    """Holes or pillars, every third grid staggered: the noise-free image, its truth and the step between levels."""
    rng = generator(seed, f"contacts-{index}", "parameters")
    pitch = float(rng.uniform(26, 64))
    diameter = pitch * float(rng.uniform(0.45, 0.62))
    scene = phantom.contacts(
        generator(seed, f"contacts-{index}", "scene"),
        height=SIDE,
        width=SIDE,
        pitch=pitch,
        diameter=diameter,
        edge_sigma=float(rng.uniform(0.8, 1.6)),
        ellipticity=float(rng.uniform(0.85, 1.18)),
        sigma=0.02 * diameter,
        xi=float(rng.uniform(4, 12)),
        diameter_sigma=0.025 * diameter,
        placement_sigma=0.012 * pitch,
        staggered=index % 3 == 2,
        pillars=index % 2 == 1,
        low=LOW,
        high=HIGH,
    )
    return scene.image.astype(np.float64), scene.truth, HIGH - LOW


def foreign_images(seed: int) -> "Iterator[tuple[str, Image]]":
    """Named images that are not to be measured as lines: drawn ones, photographs, real micrographs."""
    yield from _drawn_fields(seed)
    yield from _broken_lines(seed)
    yield from _other_phantoms(seed)
    yield from _photographs()
    yield from _micrographs()


def _drawn_fields(seed: int) -> "Iterator[tuple[str, Image]]":
    rng = generator(seed, "foreign", "fields")
    side = 512
    y, x = np.mgrid[:side, :side].astype(np.float64)
    white = rng.standard_normal((side, side))
    yield "white noise", 120 + 30 * white
    for sigma in (1.0, 3.0, 8.0):
        yield f"noise blurred by {sigma:g} px", _scaled(gaussian_filter(white, sigma, mode="wrap"))
    for sigma_y, sigma_x in ((1, 4), (20, 1), (2, 12)):
        yield f"noise blurred by {sigma_y} x {sigma_x} px", _scaled(gaussian_filter(white, (sigma_y, sigma_x)))
    for power in (1, 2):
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
        frequency[0, 0] = 1
        yield f"1/f^{power} noise", _scaled(np.fft.irfft2(np.fft.rfft2(white) / frequency**power, (side, side)))
    yield "flat", np.full((side, side), 100.0)
    yield "all black", np.zeros((side, side))
    yield "all white", np.full((side, side), 255.0)
    yield "flat but for one pixel", np.where((x == 100) & (y == 100), 200.0, 100.0)
    yield "ramp", 40 + 0.3 * x
    yield "ramp with noise", 40 + 0.3 * x + 5 * white
    yield "one step", np.where(x < 256, 60.0, 180.0) + 5 * white
    yield "rings", 120 + 60 * np.sin(np.hypot(x - 256, y - 256) / 4)
    yield "chirp", 120 + 60 * np.sin(x**2 / 700)
    yield "chessboard", np.where((x // 16 + y // 16) % 2 == 0, 60.0, 180.0) + 5 * white
    yield "grating at 45 degrees", 120 + 60 * np.sign(np.sin((x + y) / 5)) + 5 * white
    yield "grating at 15 degrees", 120 + 60 * np.sign(np.sin((x + 0.27 * y) / 5)) + 5 * white
    yield "dots", np.where(np.hypot(x % 24 - 12, y % 24 - 12) < 7, 180.0, 60.0) + 5 * white
    yield "crossed gratings", 120 + 30 * np.sign(np.sin(x / 5)) + 30 * np.sign(np.sin(y / 5)) + 5 * white
    yield "offsets of rows", 120 + 20 * rng.standard_normal((side, 1)) + np.zeros((side, side))
    yield "offsets of columns", 120 + 20 * rng.standard_normal((1, side)) + np.zeros((side, side))
    yield "random stripes", 60 + 120 * np.repeat(rng.random(64) > 0.5, 8)[None, :] + 5 * white
    widths = np.cumsum(rng.uniform(4, 40, 60))
    yield "stripes of random width", 60 + 120.0 * (np.searchsorted(widths, x) % 2) + 5 * white
    yield "lines of 2 px", 60 + 120.0 * (x % 4 < 2) + 5 * white
    yield "two lines", np.where((x % 200 > 60) & (x % 200 < 140) & (x < 400), 180.0, 60.0) + 5 * white
    yield "tiny", 60 + 120.0 * (x[:40, :40] % 20 < 10)
    yield "lines with a NaN", np.where((x == 9) & (y == 9), np.nan, 60 + 120.0 * (x % 40 < 20))
    yield "lines with an infinity", np.where((x == 9) & (y == 9), np.inf, 60 + 120.0 * (x % 40 < 20))


def _broken_lines(seed: int) -> "Iterator[tuple[str, Image]]":
    rng = generator(seed, "foreign", "lines")
    shape = {"sigma": 0.8, "xi": 20.0, "hurst": 0.6, "edge_sigma": 1.2, "duty": 0.5}
    scene = drawn_lines(seed, "foreign", pitch=32.0, **shape)
    narrow = drawn_lines(seed, "foreign-narrow", pitch=20.0, **shape)
    yield "lines at C = 0.15", with_noise(scene, 0.15, rng)
    yield "lines at C = 0.1", with_noise(narrow, 0.1, rng)
    for sigma in (9.0, 14.0):
        yield f"lines of pitch 20 blurred by {sigma:g} px", gaussian_filter(narrow.image, sigma)
        yield (
            f"the same with noise, {sigma:g} px",
            gaussian_filter(narrow.image, sigma) + rng.standard_normal((1, 1024, 1024))[0],
        )
    noisy = with_noise(scene, 8, rng)
    shifts = rng.integers(0, 32, SIDE)
    yield "lines, every row shifted", np.stack([np.roll(row, shift) for row, shift in zip(noisy, shifts, strict=True)])
    walk = np.cumsum(rng.integers(-9, 10, SIDE))
    yield (
        "lines, rows on a random walk",
        np.stack([np.roll(row, shift) for row, shift in zip(noisy, walk, strict=True)]),
    )
    half = noisy.copy()
    half[:400] = LOW + 5 * rng.standard_normal((400, SIDE))
    yield "lines in the lower part alone", half
    bitten = noisy.copy()
    bitten[300:700, 200:800] = 120 + 15 * rng.standard_normal((400, 600))
    yield "lines with a hole of a quarter", bitten
    turned = noisy.copy()
    turned[512:] = noisy.T[512:]
    yield "lines that turn half way", turned
    inverted = noisy.copy()
    inverted[:, 512:] = 240 - inverted[:, 512:]
    inverted[512:] = 240 - inverted[512:]
    yield "lines of changing polarity", inverted
    yield "lines too few", noisy[:, :80]


def _other_phantoms(seed: int) -> "Iterator[tuple[str, Image]]":
    for index in range(4):
        image, _, _ = contact_scene(seed, index)
        yield (
            f"contacts {index}",
            image + 15 * generator(seed, "foreign", f"contacts{index}").standard_normal(image.shape),
        )
    for case in ("P003", "P004", "P005", "P008", "P009", "P010"):
        scene = phantom.corpus_scene(seed, case)
        yield f"phantom {scene.truth['kind']} {case}", scene.image.astype(np.float64)


def _photographs() -> "Iterator[tuple[str, Image]]":
    import skimage.data

    for name in BUNDLED:
        image = np.asarray(getattr(skimage.data, name)(), np.float64)
        gray = image[..., :3].mean(axis=2) if image.ndim == 3 else image
        yield f"scikit-image {name}", gray * (255 if gray.max() <= 1 else 1)


def _micrographs() -> "Iterator[tuple[str, Image]]":
    for row in load_manifest("lines").rows:
        if "lines_test" not in row.file:
            yield from _real("lines", row)
    for row in load_manifest("semcorpus").rows:
        if row.width and not any(name in row.file for name in LINE_PATTERNS):
            yield from _real("semcorpus", row)


def _real(name: str, row: ManifestRow) -> "Iterator[tuple[str, Image]]":
    try:
        path = locate(name, row, download=False)
    except UnavailableError:
        path = None
    if path is not None:
        yield f"{name} {row.file}", read(path, crop=row.crop_px).pixels.astype(np.float64)


def real_lines() -> "Iterator[tuple[str, Image, float]]":
    """The three EUV line images: name, pixels, pixel size (nm); none where the files are not at hand."""
    for row in load_manifest("lines").rows:
        if "lines_test" in row.file:
            for name, image in _real("lines", row):
                yield (
                    name.removeprefix("lines smile2_lines_").removesuffix(".tif"),
                    image,
                    row.pixel_size_nm or math.nan,
                )


def _scaled(field: Image) -> Image:
    return 120 + 30 * (field - field.mean()) / field.std()
