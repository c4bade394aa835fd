"""Registration: known transforms come back, what cannot be registered is refused, what is doubtful is said."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from sembench.alignment import Alignment, AlignmentRefused, Displacement, align
from sembench.datasets.cache import locate
from sembench.datasets.manifest import load_alignment, load_manifest
from sembench.errors import InputError
from sembench.micrograph import read

SHAPE = (200, 240)
AFFINE = Displacement(SHAPE, (1.3, -0.9, 0.4), (-2.1, 0.5, 1.1))
Image = NDArray[np.floating]


class Scene:
    """Smooth bright spots on a dark ground, a sum of Gaussians: its gray level is known at every real coordinate."""

    def __init__(self, seed: int, spots: int = 150) -> None:
        rng = np.random.default_rng(seed)
        self.places = rng.uniform(-20, 20 + max(SHAPE), (spots, 2))
        self.radii = rng.uniform(3, 8, spots)
        self.heights = rng.uniform(20, 80, spots)

    def at(self, row: Image, column: Image) -> Image:
        image = np.full(row.shape, 30.0)
        for (y, x), radius, height in zip(self.places, self.radii, self.heights, strict=True):
            image += height * np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * radius**2))
        return image

    def pair(self, by: Displacement) -> tuple[Image, Image]:
        """The displaced image and the one that lies still, both exact: the first is the second at (row - dy, ...)."""
        row, column = np.indices(by.shape, dtype=float)
        dy, dx = by.at(row, column)
        return self.at(row - dy, column - dx), self.at(row, column)


def noisy(image: Image, sigma: float, seed: int) -> Image:
    return image + np.random.default_rng(seed).normal(0, sigma, image.shape)


@pytest.fixture(scope="module")
def affine_pair() -> tuple[Image, Image]:
    return Scene(1).pair(AFFINE)


@pytest.fixture(scope="module")
def aligned(affine_pair: tuple[Image, Image]) -> Alignment:
    return align(*affine_pair)


@pytest.mark.parametrize("shift", [(0.37, -0.61), (-3.25, 4.5), (17.4, -22.8)])
@pytest.mark.parametrize("model", ["affine", "translation"])
def test_a_shift_by_parts_of_a_pixel_comes_back(shift: tuple[float, float], model: str) -> None:
    truth = Displacement(SHAPE, (shift[0], 0, 0), (shift[1], 0, 0))
    found = align(*Scene(2).pair(truth), model=model)
    assert found.displacement.distance(truth) < 0.02
    assert found.trusted
    assert found.disagreement_px < 0.02
    assert found.residual_p95_px < 0.02


def test_identity(affine_pair: tuple[Image, Image]) -> None:
    image = affine_pair[1]
    found = align(image, image)
    assert found.displacement.distance(Displacement(SHAPE)) < 1e-3
    assert (found.gain, found.offset, found.correlation) == pytest.approx((1, 0, 1), abs=1e-3)
    assert found.margin <= 1
    assert found.warnings == ()


def test_an_affine_transform_comes_back(aligned: Alignment, affine_pair: tuple[Image, Image]) -> None:
    assert aligned.displacement.distance(AFFINE) < 0.03
    assert aligned.trusted
    assert aligned.reason == ""
    rows, columns = aligned.overlap
    inner = slice(rows.start + 6, rows.stop - 6), slice(columns.start + 6, columns.stop - 6)
    assert np.abs(aligned.warp(affine_pair[1]) - affine_pair[0])[inner].max() < 0.3
    assert np.abs(affine_pair[1] - affine_pair[0])[inner].max() > 20


def test_noise_and_blur_of_the_input(affine_pair: tuple[Image, Image]) -> None:
    found = align(noisy(gaussian_filter(affine_pair[0], 2), 10, 3), affine_pair[1])
    assert found.displacement.distance(AFFINE) < 0.3
    assert found.trusted
    assert 0.02 < found.uncertainty_px <= 0.3
    assert 0.02 < found.disagreement_px <= 0.3
    assert found.warnings == ()


@pytest.mark.parametrize(("gain", "offset"), [(0.4, 90.0), (2.5, -60.0)])
def test_gain_and_offset_do_not_matter_and_are_told(
    gain: float, offset: float, affine_pair: tuple[Image, Image], aligned: Alignment
) -> None:
    found = align((affine_pair[0] - offset) / gain, affine_pair[1])
    assert found.displacement.distance(aligned.displacement) < 1e-3
    assert found.gain == pytest.approx(gain, rel=5e-3)
    assert found.offset == pytest.approx(offset, abs=0.5)


def test_swapping_gives_the_inverse(affine_pair: tuple[Image, Image], aligned: Alignment) -> None:
    back = align(affine_pair[1], affine_pair[0])
    assert back.displacement.distance(AFFINE.inverse) < 0.03
    assert back.displacement.inverse.distance(aligned.displacement) < 0.03


def test_swapped_input_and_reference_are_warned_of(affine_pair: tuple[Image, Image]) -> None:
    for worse in (noisy(affine_pair[1], 20, 4), gaussian_filter(affine_pair[1], 3)):
        assert align(worse, affine_pair[0]).warnings == ()
        (warning,) = align(affine_pair[0], worse).warnings
        assert "swapped" in warning


def test_other_models_say_what_they_leave(affine_pair: tuple[Image, Image]) -> None:
    still = align(*affine_pair, model="none")
    assert still.displacement == Displacement(SHAPE)
    assert np.array_equal(still.warp(affine_pair[1]), affine_pair[1].astype(np.float32))
    row, column = np.meshgrid(np.linspace(25, 175, 9), np.linspace(25, 215, 9), indexing="ij")
    assert still.residual_median_px == pytest.approx(np.median(np.hypot(*AFFINE.at(row, column))), abs=0.5)
    assert "none leaves shifts" in still.warnings[0]
    assert align(*affine_pair, model="translation").residual_median_px > 0.3


def test_small_pairs_pass_only_as_they_lie() -> None:
    image = Scene(5).pair(AFFINE)[1][:100, :100]
    found = align(image, image + 3, model="none")
    assert (found.gain, found.offset) == pytest.approx((1, 3), abs=1e-3)
    assert math.isnan(found.residual_median_px)
    assert found.as_record()["residual_median_px"] is None
    with pytest.raises(InputError, match="128 px a side at least"):
        align(image, image)


@pytest.mark.parametrize("model", ["affine", "translation", "none"])
def test_a_reference_of_another_field_is_refused(model: str, affine_pair: tuple[Image, Image]) -> None:
    other = Scene(77).pair(AFFINE)[1]
    with pytest.raises(AlignmentRefused, match="another field") as refusal:
        align(noisy(affine_pair[0], 15, 5), other, model=model)
    assert "\n" not in str(refusal.value)
    with pytest.raises(AlignmentRefused):
        align(affine_pair[0], affine_pair[1][::-1, ::-1], model=model)


def test_noise_alone_is_refused() -> None:
    empty = np.full(SHAPE, 100.0)
    with pytest.raises(AlignmentRefused):
        align(noisy(empty, 20, 6), noisy(empty, 2, 7))


def test_structure_in_one_image_only_is_refused() -> None:
    spot = np.full(SHAPE, 50.0)
    spot[100, 100] = 255
    everywhere = noisy(np.full(SHAPE, 100.0), 20, 10)
    for pair in ((spot, everywhere), (everywhere, spot)):
        with pytest.raises(AlignmentRefused):
            align(*pair)


def test_little_overlap_is_refused() -> None:
    truth = Displacement(SHAPE, (120.0, 0, 0), (0, 0, 0))
    with pytest.raises(AlignmentRefused):
        align(*Scene(8).pair(truth))


def test_lines_leave_the_shift_along_them_open() -> None:
    column = np.indices(SHAPE)[1]
    lines = np.clip(60 * np.sin(2 * np.pi * column / 31.7 + 4 * np.sin(column / 40)), -20, 20) + 100
    found = align(noisy(lines, 10, 8), noisy(lines, 3, 9))
    assert not found.trusted
    assert "estimators differ" in found.reason


def test_a_bend_that_no_affine_transform_follows_is_left_over() -> None:
    scene, (row, column) = Scene(9), np.indices(SHAPE, dtype=float)
    bent = scene.at(row, column - 2.5 * np.sin(2 * np.pi * row / SHAPE[0]))
    found = align(bent, scene.at(row, column))
    assert found.residual_p95_px > 0.5
    assert not found.trusted


def test_noise_that_leaves_the_transform_open_is_said(affine_pair: tuple[Image, Image]) -> None:
    found = align(noisy(gaussian_filter(affine_pair[0], 2), 45, 1), affine_pair[1])
    assert max(found.uncertainty_px, found.disagreement_px) > 0.3
    assert not found.trusted
    assert "more than 0.3 px" in found.reason


@pytest.mark.parametrize("which", [0, 1])
def test_flat_images_are_refused(which: int, affine_pair: tuple[Image, Image]) -> None:
    images = list(affine_pair)
    images[which] = np.full(SHAPE, 80.0)
    with pytest.raises(AlignmentRefused, match=f"the {('input', 'reference')[which]} is flat"):
        align(*images)


def test_wrong_input_is_told(affine_pair: tuple[Image, Image]) -> None:
    image, reference = affine_pair
    with pytest.raises(InputError, match=r"input of \(200, 240\) and reference of \(200, 239\)"):
        align(image, reference[:, :-1])
    with pytest.raises(InputError, match="cannot be registered"):
        align(image[None], reference[None])
    with pytest.raises(InputError, match="no alignment model 'rigid'"):
        align(image, reference, model="rigid")
    holed = image.copy()
    holed[3, 4] = np.nan
    with pytest.raises(InputError, match="the input has values that are not finite"):
        align(holed, reference)


def test_images_given_are_left_as_they_are(affine_pair: tuple[Image, Image]) -> None:
    image, reference = (part.astype(np.float32) for part in affine_pair)
    before = image.copy(), reference.copy()
    align(image, reference).warp(reference)
    assert np.array_equal(image, before[0])
    assert np.array_equal(reference, before[1])


def test_the_warp_follows_the_formula_and_keeps_a_cubic_polynomial(aligned: Alignment) -> None:
    """A cubic spline reproduces polynomials of degree 3; the boundary's error dies away within 20 px."""

    def polynomial(row: Image, column: Image) -> Image:
        y, x = row / 100 - 1, column / 120 - 1
        return 100 + 40 * y**3 - 30 * x**3 + 25 * y * y * x - 35 * x * x * y + 20 * x * y - 10 * y + 15 * x

    row, column = np.indices(SHAPE, dtype=float)
    (a0, a1, a2), (b0, b1, b2) = aligned.displacement.rows, aligned.displacement.columns
    yn, xn = (row - 100) / 100, (column - 120) / 120
    expected = polynomial(row - (a0 + a1 * yn + a2 * xn), column - (b0 + b1 * yn + b2 * xn))
    warped = aligned.warp(polynomial(row, column))
    assert warped.dtype == np.float32
    inner = (slice(25, -25), slice(25, -25))
    np.testing.assert_allclose(warped[inner], expected[inner], atol=2e-5)


def test_the_overlap_is_where_the_reference_has_pixels(aligned: Alignment) -> None:
    row, column = np.indices(SHAPE, dtype=float)
    dy, dx = aligned.displacement.at(row, column)
    inside = (row - dy >= 0) & (row - dy <= SHAPE[0] - 1) & (column - dx >= 0) & (column - dx <= SHAPE[1] - 1)
    rows, columns = aligned.overlap
    assert inside[rows, columns].all()
    assert not inside[rows.start - 1].all()
    assert not inside[:, columns.stop].all()
    cuts = rows.start, SHAPE[0] - rows.stop, columns.start, SHAPE[1] - columns.stop
    assert aligned.margin == max(cuts) == 3


def test_the_inverse_undoes_the_displacement() -> None:
    row, column = np.array([0.0, 13.0, 199.0]), np.array([239.0, 4.0, 100.0])
    dy, dx = AFFINE.at(row, column)
    back_dy, back_dx = AFFINE.inverse.at(row - dy, column - dx)
    np.testing.assert_allclose(dy + back_dy, 0, atol=1e-12)
    np.testing.assert_allclose(dx + back_dx, 0, atol=1e-12)


def test_a_record_is_flat_and_of_plain_values(aligned: Alignment) -> None:
    record = aligned.as_record()
    assert record["a0"] == aligned.displacement.rows[0]
    assert record["b2"] == aligned.displacement.columns[2]
    assert all(isinstance(value, (str, bool, int, float, list)) for value in record.values())


@pytest.mark.data
@pytest.mark.parametrize("pair", ["dwell_040", "line_003", "line_033"])
def test_real_pairs_agree_with_their_table(pair: str, data_folder: Path) -> None:
    images = {}
    for row in load_manifest("kriss").select(split="evaluation"):
        if row.pair == pair:
            path = locate("kriss", row, download=False)
            assert path is not None
            images[row.role] = read(path, crop=row.crop_px).pixels
    found = align(images["input"], images["reference"])
    line = {
        key: float(value) for key, value in load_alignment("kriss")[pair].items() if key not in ("pair", "kind", "site")
    }
    listed = Displacement(
        found.displacement.shape, (line["a0"], line["a1"], line["a2"]), (line["b0"], line["b1"], line["b2"])
    )
    assert found.displacement.distance(listed) < 0.2
    assert found.trusted
    assert found.warnings == ()
    assert found.residual_median_px == pytest.approx(line["res_median_px"], abs=0.06)
    assert found.gain == pytest.approx(line["gain"], abs=0.01)
    assert found.offset == pytest.approx(line["offset"], abs=1)
    moved = affine_transform(images["reference"].astype(float), *listed.source, order=3, mode="mirror")[12:-12, 12:-12]
    assert np.sqrt(np.mean((found.warp(images["reference"])[12:-12, 12:-12] - moved) ** 2)) < 3
