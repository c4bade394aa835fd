"""The figures: what they show is found again in the decoded PNG."""

from pathlib import Path

import numpy as np
import pytest
from pictures import coloured, decoded

from sembench.figures import ACCENT, MOST_COLUMNS, difference_reach, intervals, panel, zoom_window
from sembench.restorer import Image


def scene() -> Image:
    """A flat image with one patch of detail around row 150, column 70."""
    image = np.full((240, 200), 90, np.float32)
    image[140:160, 60:80] = 60 + 120 * (np.indices((20, 20)).sum(axis=0) // 4 % 2)
    return image


def test_the_window_holds_the_planted_detail() -> None:
    top, left = zoom_window(scene(), 40)
    assert top <= 140
    assert top + 40 >= 160
    assert left <= 60
    assert left + 40 >= 80


def test_the_window_of_a_small_image_is_central() -> None:
    assert zoom_window(np.zeros((40, 32), np.float32), 16) == (12, 8)


@pytest.mark.parametrize("count", [1, 3, MOST_COLUMNS + 2])
def test_a_panel_shows_every_image_and_frames_the_window_in_each(tmp_path: Path, count: int) -> None:
    images = {f"method {i}": scene() for i in range(count)}
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        panel(path, "a title", images, {"method 0": "20.1 dB"}, scene())
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    pixels = decoded(tmp_path / "one.png")
    frame = (abs(pixels - np.array([255, 176, 0])).max(axis=2) < 60).any(axis=0)
    starts = np.count_nonzero(np.diff(frame.astype(int)) == 1)
    assert starts == -(-count // -(-count // MOST_COLUMNS))


def test_differences_are_shown_in_their_colours_below_the_magnified_window(tmp_path: Path) -> None:
    """Brighter than the reference is red, darker blue, as far as the title says; the reference has no difference."""
    base = scene()
    images = {"brighter": base + 200, "darker": base - 200, "equal": base, "reference": base}
    others = {name: image - base for name, image in images.items() if name != "reference"}
    assert difference_reach(base) == pytest.approx((np.percentile(base, 99.7) - np.percentile(base, 0.3)) / 4)
    panel(tmp_path / "panel.png", "a title", images, {}, base, others)
    pixels = decoded(tmp_path / "panel.png")
    red, blue = ((abs(pixels - np.array(colour)).max(axis=2) < 3) for colour in ((103, 0, 31), (5, 48, 97)))
    columns = [np.flatnonzero(found.any(axis=0)) for found in (red, blue)]
    rows = [np.flatnonzero(found.any(axis=1)) for found in (red, blue)]
    assert columns[0].max() < columns[1].min() < columns[1].max() < 0.55 * pixels.shape[1]
    assert rows[0].min() == rows[1].min() > 0.6 * pixels.shape[0]
    assert red.sum() == pytest.approx(np.ptp(columns[0]) * np.ptp(rows[0]), rel=0.05)


def test_intervals_stand_in_order_and_are_as_long_as_they_say(tmp_path: Path) -> None:
    rows = [("best", 30.0, 29.0, 31.0), ("second", 25.0, 21.0, 29.0), ("alone", 22.0, None, None)]
    for path in (tmp_path / "one.png", tmp_path / "two.png"):
        intervals(path, "a title", "PSNR (dB)", rows, {"affine": 27.0})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    dots = np.argwhere(coloured(decoded(tmp_path / "one.png"), ACCENT))
    gaps = np.flatnonzero(np.diff(np.unique(dots[:, 0])) > 5)
    assert len(gaps) == 2
    heights = np.split(np.unique(dots[:, 0]), gaps + 1)
    centres = [dots[np.isin(dots[:, 0], rows_)][:, 1].mean() for rows_ in heights]
    assert (centres[0] - centres[1]) / (centres[1] - centres[2]) == pytest.approx(5 / 3, rel=0.05)
