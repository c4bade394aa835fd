"""Contacts: drawn arrays of known dimensions, real arrays, invariances, and what is refused."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sembench import micrograph, phantom
from sembench.errors import InputError
from sembench.metrology.contacts import ContactMeasurement, measure_contacts
from sembench.metrology.ellipse import fit_ellipses
from sembench.metrology.refusal import MeasurementRefused

STEP = 120.0


def draw(seed: int, **changed: Any) -> phantom.Scene:
    settings: dict[str, Any] = {
        "height": 400,
        "width": 512,
        "pitch": 44.0,
        "diameter": 24.0,
        "edge_sigma": 1.2,
        "ellipticity": 1.15,
        "sigma": 0.4,
        "xi": 8.0,
        "diameter_sigma": 0.7,
        "placement_sigma": 0.5,
    }
    return phantom.contacts(np.random.default_rng(seed), **{**settings, **changed})


def noisy(scene: phantom.Scene, contrast_to_noise: float) -> NDArray[np.float64]:
    noise = np.random.default_rng(9).normal(0, STEP, scene.image.shape) / contrast_to_noise
    return scene.image + noise


def true_of(scene: phantom.Scene, found: ContactMeasurement) -> list[dict[str, float]]:
    drawn = scene.truth["contacts"]
    places = np.array([(one["x_px"], one["y_px"]) for one in drawn])
    order = [int(np.argmin(np.hypot(*(places - (one.x, one.y)).T))) for one in found.contacts]
    assert len(set(order)) == len(order)
    return [drawn[i] for i in order]


SCENES = [
    {},
    {"pitch": 31.0, "diameter": 11.0, "edge_sigma": 1.6, "diameter_sigma": 0.6, "sigma": 0.2, "staggered": True},
    {"pitch": 70.0, "diameter": 42.0, "edge_sigma": 2.0, "ellipticity": 0.85, "pillars": True, "diameter_sigma": 1.0},
    {"pitch": 36.0, "diameter": 22.0, "edge_sigma": 0.8, "pillars": True, "staggered": True},
]


@pytest.mark.parametrize("changed", SCENES)
@pytest.mark.parametrize("contrast_to_noise", [np.inf, 4])
def test_drawn_contacts_come_back(changed: dict[str, Any], contrast_to_noise: float) -> None:
    scene = draw(1, **changed)
    polarity = "bright" if scene.truth["pillars"] else "dark"
    found = measure_contacts(noisy(scene, contrast_to_noise), polarity=polarity)
    true = true_of(scene, found)
    assert found.count >= 0.95 * scene.truth["complete"]
    diameter = np.array([one["diameter_px"] for one in true])
    difference = np.array([one.diameter for one in found.contacts]) - diameter
    assert abs(difference.mean()) < 0.05 + 2 * difference.std() / found.count**0.5
    assert found.cd_x_mean == pytest.approx(np.mean([one["cd_x_px"] for one in true]), abs=0.08)
    assert found.cd_y_mean == pytest.approx(np.mean([one["cd_y_px"] for one in true]), abs=0.08)
    sampling = 0.0 if np.isinf(contrast_to_noise) else 2 * difference.std() / (diameter.std() * found.count**0.5)
    assert found.lcdu_unbiased / (3 * diameter.std(ddof=1)) == pytest.approx(1, abs=0.01 + sampling)
    assert found.pitch == pytest.approx(scene.truth["pitch_px"], rel=0.03)
    assert found.lost_fraction < 0.01


def test_noise_is_told_from_roughness_and_size() -> None:
    scene = draw(2, sigma=0.0, diameter_sigma=0.0)
    found = measure_contacts(noisy(scene, 6), polarity="dark")
    spread = np.std([one.diameter for one in found.contacts], ddof=1)
    predicted = np.sqrt(found.lcdu**2 - found.lcdu_unbiased**2) / 3
    assert predicted == pytest.approx(spread, rel=0.2)
    assert found.cer_unbiased < 0.35 * found.cer
    assert found.contrast_to_noise == pytest.approx(6, rel=0.02)
    assert found.edge_blur == pytest.approx(1.2, abs=0.05)


def test_a_gradient_of_the_field_changes_little() -> None:
    scene = draw(3)
    y, x = np.mgrid[:400, :512] / 512 - 0.5
    plain = measure_contacts(noisy(scene, 8), polarity="dark")
    tilted = measure_contacts(noisy(scene, 8) + 60 * x - 40 * y + 30 * x * y, polarity="dark")
    assert tilted.count == plain.count
    assert tilted.diameter_mean == pytest.approx(plain.diameter_mean, abs=0.01)
    assert tilted.lcdu == pytest.approx(plain.lcdu, rel=0.01)


NUMBERS = ("diameter_mean", "cer", "cer_unbiased", "lcdu", "lcdu_unbiased", "pitch", "edge_blur", "contrast_to_noise")


def test_turning_swaps_x_and_y_and_nothing_else() -> None:
    image = noisy(draw(4, height=320, width=384), 6)
    plain = measure_contacts(image, polarity="dark")
    for turned in (measure_contacts(np.rot90(image), polarity="dark"), measure_contacts(image.T, polarity="dark")):
        assert turned.count == plain.count
        assert turned.cd_x_mean == pytest.approx(plain.cd_y_mean, abs=1e-6)
        assert turned.cd_y_mean == pytest.approx(plain.cd_x_mean, abs=1e-6)
        for name in NUMBERS:
            assert getattr(turned, name) == pytest.approx(getattr(plain, name), abs=1e-6), name


def test_gray_scale_and_polarity_change_nothing() -> None:
    image = noisy(draw(4, height=320, width=384), 6)
    plain = measure_contacts(image, polarity="dark")
    for other, polarity in ((7 + 0.03 * image, "dark"), (300 - 2 * image, "bright")):
        again = measure_contacts(other, polarity=polarity)
        for name in (*NUMBERS, "cd_x_mean", "cd_y_mean"):
            assert getattr(again, name) == pytest.approx(getattr(plain, name), abs=1e-6), name


def test_moving_the_field_by_whole_pixels_moves_the_contacts() -> None:
    image = noisy(draw(5), 8)
    first = measure_contacts(image[:360, :430], polarity="dark")
    second = measure_contacts(image[11:371, 17:447], polarity="dark")
    pairs = [
        (one, other)
        for one in first.contacts
        for other in second.contacts
        if np.hypot(one.x - other.x - 17, one.y - other.y - 11) < 3
    ]
    assert len(pairs) >= 40
    assert max(abs(one.diameter - other.diameter) for one, other in pairs) < 0.03
    assert max(abs(one.x - other.x - 17) for one, other in pairs) < 0.03


def test_the_record_holds_lengths_in_nm_also_where_pixels_are_not_square() -> None:
    found = measure_contacts(draw(6).image, polarity="dark")
    pixels, nm, oblong = (found.as_record(size) for size in (None, (2.0, 2.0), (2.0, 0.5)))
    lengths = [name.removesuffix("_px") for name in pixels if name.endswith("_px")]
    assert {"pitch", "cd_x", "cd_y", "diameter", "cer", "lcdu", "cer_unbiased", "lcdu_unbiased"} <= set(lengths)
    for name in lengths:
        assert nm[f"{name}_nm"] == pytest.approx(2 * pixels[f"{name}_px"])
    assert oblong["cd_x_nm"] == pytest.approx(2 * found.cd_x_mean)
    assert oblong["cd_y_nm"] == pytest.approx(0.5 * found.cd_y_mean)
    assert oblong["diameter_nm"] == pytest.approx(found.diameter_mean)
    assert oblong["pitch_nm"] == pytest.approx(22, rel=0.03)
    assert pixels["kind"] == "contacts"
    assert pixels["count"] == found.count
    with pytest.raises(InputError, match="above 0"):
        found.as_record((1.0, 0.0))


def test_ellipses_are_exact_and_lost_points_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    half_a, half_b = rng.uniform(5, 20, 50), rng.uniform(5, 20, 50)
    turn = rng.uniform(-1.5, 1.5, 50)[:, None]
    along, across = half_a[:, None] * np.cos(angle), half_b[:, None] * np.sin(angle)
    x = 500 + along * np.cos(turn) - across * np.sin(turn)
    y = 300 + along * np.sin(turn) + across * np.cos(turn)
    weight = (rng.random(x.shape) < 0.7).astype(float)
    ellipses, good = fit_ellipses(x + 100 * (weight == 0), y, weight)
    assert good.all()
    assert ellipses.diameter() == pytest.approx(2 * np.sqrt(half_a * half_b), abs=1e-7)
    assert ellipses.extent()[:, 0] == pytest.approx(
        2 * np.hypot(half_a * np.cos(turn[:, 0]), half_b * np.sin(turn[:, 0]))
    )
    assert ellipses.half_axes() == pytest.approx(np.sort(np.stack([half_a, half_b], axis=1)), abs=1e-7)


def noise(size: int = 320) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(100, 20, (size, size))


def lines() -> NDArray[np.float32]:
    return phantom.lines(
        np.random.default_rng(0), height=320, width=320, pitch=30, duty=0.5, sigma=1, xi=15, hurst=0.6, edge_sigma=1
    ).image


REFUSED = {
    "white noise": noise(),
    "blurred noise": gaussian_filter(noise(), 2),
    "coarse noise": gaussian_filter(noise(), 6),
    "flat": np.full((200, 200), 80.0),
    "ramp": np.tile(np.arange(300.0), (300, 1)),
    "lines": lines(),
    "lines across": lines().T,
    "noisy lines": lines() + 0.4 * noise(),
    "grains": phantom.grains(np.random.default_rng(1), height=320, width=320, diameter=40, edge_sigma=1).image,
    "fibres": phantom.corpus_scene(1, "P005", 320).image,
    "particles": phantom.corpus_scene(1, "P003", 512).image,
    "three contacts": draw(7, height=96, width=180, pitch=60).image[:90, :170],
    "not finite": np.full((200, 200), np.nan),
    "too small": np.zeros((30, 200)),
    "not two dimensions": np.zeros((100, 100, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("polarity", ["bright", "dark"])
def test_what_is_no_array_is_refused_with_a_reason(name: str, polarity: str) -> None:
    with pytest.raises(MeasurementRefused) as refusal:
        measure_contacts(REFUSED[name], polarity=polarity)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) > 15


def test_an_unknown_polarity_is_refused() -> None:
    with pytest.raises(InputError, match="'holes'"):
        measure_contacts(noise(), polarity="holes")


@pytest.mark.data
@pytest.mark.parametrize(
    ("number", "polarity", "pitch"), [(1, "dark", 42.4), (2, "bright", 42.6), (3, "dark", 46.3), (4, "dark", 46.9)]
)
def test_real_arrays_are_measured(data_folder: Path, number: int, polarity: str, pitch: float) -> None:
    """Pitch read by hand off the images: first to last contact of a row, over the number of steps."""
    file = f"smile2_contacts_ctest{number}.tif"
    with (data_folder / "lines" / "manifest.csv").open() as manifest:
        crop = next(int(row["crop_px"].split(",")[1]) for row in csv.DictReader(manifest) if row["file"] == file)
    pixels = micrograph.read(data_folder / "lines" / file).pixels
    record = measure_contacts(pixels[: pixels.shape[0] - crop], polarity=polarity).as_record((0.9009, 0.9009))
    assert record["count"] > 200
    assert record["pitch_nm"] == pytest.approx(pitch, abs=0.6)
    assert 0.35 < record["diameter_nm"] / record["pitch_nm"] < 0.75
    assert record["lost_fraction"] < 0.02


@pytest.mark.data
def test_the_square_windows_of_a_specimen_grid_are_no_contacts(data_folder: Path) -> None:
    image = micrograph.read(data_folder / "semcorpus" / "pretrain" / "odemis-jeol__jeol-example-sem.tif").pixels
    with pytest.raises(MeasurementRefused, match="of the contour points show no edge"):
        measure_contacts(image, polarity="dark")
