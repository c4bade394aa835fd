"""Axes, numbers and lines of the pages: what a reader reads off them is what was measured."""

import base64
import io
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, features

from sembench.pages import pixels
from sembench.pages.document import breakable, link, render
from sembench.pages.numbers import decimals, fixed, places, signed
from sembench.pages.scale import LENGTH, scale, scale_of
from sembench.pages.standings import Column, Line, sharing, standings
from sembench.statistics import Interval

PSNR = Column("psnr", "PSNR", "dB", "higher")


def interval(mean: float, half: float = 1.0) -> Interval:
    return Interval(mean, mean - half, mean + half, 100, 40, "bootstrap-t")


@example([5e-324], [])
@example([0.0, 5e-324], [])
@example([1.0, 1.0 + 2**-52], [])
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.lists(st.floats(-1e6, 1e6), max_size=3))
def test_an_axis_keeps_order_and_its_ticks_stand_where_they_say(values: list[float], also: list[float]) -> None:
    axis = scale(values, also)
    placed = [axis.place(value) for value in sorted(values)]
    assert placed == sorted(placed)
    assert all(0 <= place <= LENGTH for place in placed)
    assert all(place in (0, LENGTH) for value in values if axis.beyond(value) for place in [axis.place(value)])
    for place, label in axis.ticks:
        told = float(label.replace("−", "-"))
        assert place == pytest.approx(axis.place(told), abs=0.11)
    assert [place for place, _ in axis.ticks] == sorted({place for place, _ in axis.ticks})


def test_an_axis_shows_every_interval_unless_they_would_be_too_short_to_see() -> None:
    near = [interval(mean) for mean in (20.0, 21.0, 22.0, 17.0)]
    axis = scale_of(near)
    assert not any(axis.beyond(end) for one in near for end in (one.low, one.high))
    far = [*near, interval(2000.0)]
    axis = scale_of(far)
    assert axis.beyond(2000.0) == 1
    assert not any(axis.beyond(one.mean) for one in near)


def test_an_axis_takes_a_control_in_only_where_it_stands_near() -> None:
    shown = [interval(20.0), interval(22.0)]
    assert not scale_of(shown, [23.4]).beyond(23.4)
    assert scale_of(shown, [100.0]).beyond(100.0) == 1


@pytest.mark.parametrize("values", [[], [0.0], [5.0, 5.0], [math.inf, 1.0], [1e308, -1e308]])
def test_odd_values_have_an_axis_too(values: list[float]) -> None:
    axis = scale(values)
    assert axis.low < axis.high
    assert axis.ticks


def test_two_digits_of_the_half_width_are_shown() -> None:
    assert decimals([interval(27.3, 0.45)]) == 2
    assert decimals([interval(0.712, 0.012)]) == 3
    assert decimals([interval(1500.0, 130.0)]) == 0
    assert decimals([]) == 2


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert fixed(-1.25, 1) == "−1.2"
    assert fixed(-0.0004, 2) == "0.00"
    assert signed(-0.0004, 2) == "0.00"
    assert signed(0.5, 1) == "+0.5"
    assert fixed(None, 2) == places(None) == "–"
    assert places((2, 2)) == "2"
    assert places((2, 4)) == "2–4"


def test_lines_sort_by_the_primary_metric_and_controls_stand_apart() -> None:
    means = {"a": 20.0, "b": None, "c": 23.0, "oracle": 100.0, "affine": 21.0}
    lines = [
        Line(
            name,
            name,
            "control" if name in ("oracle", "affine") else "restorer",
            {"psnr": None if mean is None else interval(mean)},
        )
        for name, mean in means.items()
    ]
    table = standings("key", "caption", PSNR, [], lines)
    assert [line.name for line in table.ranked] == ["c", "a", "b"]
    assert [line.name for line in table.references] == ["affine"]
    assert [line.name for line in table.unseen] == ["oracle"]
    lower = standings("key", "caption", Column("lpips", "LPIPS", "", "lower"), [], [])
    assert lower.lines == ()


def test_letters_beyond_the_alphabet_are_read_whole() -> None:
    assert sharing({"a": "z(53)", "b": "(53)", "c": "(54)"}) == [["a"], ["a", "b"], ["c"]]


def test_a_path_is_never_taken_for_an_address_with_a_scheme() -> None:
    assert link("javascript:alert(1)/a b.png") == "./javascript%3Aalert%281%29/a%20b.png"


def test_a_name_may_break_and_is_escaped() -> None:
    assert breakable("a_<b>") == "a_<wbr>&lt;b&gt;"
    assert breakable("(pairs=2)") == "(pairs=<wbr>2)"


def test_the_policy_names_the_style_and_script_that_stand_in_the_page() -> None:
    import hashlib
    import re

    page = render("leaderboard.html", {"tabs": []})
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    told = policy[1].replace("&#39;", "'")
    assert told.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert inside is not None
        assert base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode() in told


def decoded(address: str) -> tuple[str, np.ndarray, int]:
    """Kind, pixels and bytes of an image that an address holds."""
    head, _, content = address.partition(";base64,")
    held = base64.b64decode(content)
    image = Image.open(io.BytesIO(held))
    return head, np.asarray(image), len(held)


def test_pixels_come_back_from_the_address_that_holds_them() -> None:
    rng = np.random.default_rng(2)
    gray = np.clip(np.linspace(40, 200, 96)[None, :] + rng.normal(0, 6, (96, 96)), 0, 255).astype(np.uint8)
    colours = rng.integers(0, 255, (20, 3), np.uint8)[rng.integers(0, 20, (64, 64))]
    for some in (gray, colours):
        kind, found, _ = decoded(pixels.png(some))
        assert kind == "data:image/png"
        assert np.array_equal(found, some)
    kind, found, _ = decoded(pixels.webp(colours))
    assert kind == "data:image/webp"
    assert np.array_equal(found, colours)
    kind, found, size = decoded(pixels.webp(gray))
    assert kind == "data:image/webp"
    assert np.sqrt(np.mean((found[..., 0] - gray.astype(float)) ** 2)) < 4
    assert size < decoded(pixels.png(gray))[2] / 2


def test_without_webp_pixels_are_held_as_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _name: False)
    assert pixels.webp(np.zeros((4, 4), np.uint8)) == pixels.png(np.zeros((4, 4), np.uint8))
