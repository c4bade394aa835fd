"""The figures of metrology: what they draw against what they were given, and that no text hides another."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pictures import coloured, decoded

from sembench import figures
from sembench.metrology.contacts import Contact, ContactMeasurement
from sembench.metrology.lines import LineMeasurement
from sembench.metrology.spectrum import SpectrumModel, expected_power, spectrum
from sembench.statistics import limits_of_agreement
from sembench.trend import fit_polynomial

PITCH, WIDTH = 32.0, 15.0
ROWS, COLUMNS = 240, 260


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved, in turn."""
    saved: list[Figure] = []
    save = figures._save

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        saved.append(figure)

    monkeypatch.setattr(figures, "_save", keep)
    return saved


def measurement(*, lost: tuple[int, int, int] | None = None, orientation: str = "vertical") -> LineMeasurement:
    """Straight edges with white noise, seven lines; lost: edge, first and last row of what is marked lost."""
    rng = np.random.default_rng(6)
    left = 20 + PITCH * np.arange(7)
    edges = np.column_stack([left, left + WIDTH]).reshape(-1) + rng.normal(0, 0.3, (ROWS, 14))
    gone = np.zeros(edges.shape, bool)
    if lost is not None:
        gone[lost[1] : lost[2], lost[0]] = True
    edge_spectrum, width_spectrum = spectrum(edges), spectrum(edges[:, 1::2] - edges[:, ::2])
    numbers: dict[str, Any] = dict.fromkeys(LineMeasurement.__dataclass_fields__, 1.0)
    model = SpectrumModel(0.5, 12.0, 0.6, 0.09, True, ())
    numbers |= {
        "polarity": "bright", "level": "plateau", "level_fraction": 0.5, "orientation": orientation, "rows": ROWS,
        "lines": 7, "edges": 14, "pitch": PITCH, "cd_mean": WIDTH, "lwr": 1.25, "ler": 0.9, "lwr_unbiased": 0.75,
        "ler_unbiased": 0.5, "flags": (), "lost_fraction": float(gone.mean()), "edge_positions": edges, "lost": gone,
        "edge_rows": np.arange(ROWS, dtype=float), "edge_spectrum": edge_spectrum, "width_spectrum": width_spectrum,
        "model": model, "width_model": model,
    }  # fmt: skip
    return LineMeasurement(**numbers)


def image(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bright = (np.arange(COLUMNS) - 20) % PITCH < WIDTH
    return (60 + 120 * bright + rng.normal(0, 15, (ROWS, COLUMNS))).astype(np.float32)


def shown_texts(figure: Figure) -> list[Any]:
    """Every text that a reader sees, but the numbers on log axes, which matplotlib itself keeps apart."""
    found = [*figure.texts, *(text for text in (figure._suptitle, figure._supxlabel) if text is not None)]
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes._right_title]
        if axes.get_legend() is not None:
            found += axes.get_legend().get_texts()
        if axes.axison:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                found.append(axis.label)
                if axis.get_scale() == "linear":
                    found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def texts_are_apart(figure: Figure) -> None:
    """No two texts overlap, and none leaves the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [
        (text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in dict.fromkeys(shown_texts(figure))
    ]
    inside = figure.bbox.padded(2)
    assert len(boxes) > 3
    for number, (text, box) in enumerate(boxes):
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, text
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1, text
        for other, beside in boxes[number + 1 :]:
            assert not box.overlaps(beside), f"{text!r} and {other!r}"


@pytest.mark.parametrize("pixel", [None, (0.5, 0.5)])
def test_an_overlay_magnifies_the_edges_four_times_or_more(
    tmp_path: Path, drawn: list[Figure], pixel: tuple[float, float] | None
) -> None:
    figures.line_overlay(tmp_path / "o.png", "scene.tif", image(), measurement(), pixel)
    pixels = decoded(tmp_path / "o.png")
    whole, part = drawn[0].axes
    for axes, least in ((whole, 1.0), (part, 4.0)):
        box = axes.get_window_extent()
        zoom = box.width / abs(np.diff(axes.get_xlim())[0])
        assert zoom >= least
        inside = pixels[:, int(box.x0) + 2 : int(box.x1) - 2]
        for colour, shift in ((figures.LEFT, 0.0), (figures.RIGHT, WIDTH)):
            columns = np.flatnonzero(coloured(inside, colour)[-int(box.y1) + 4 : -int(box.y0) - 60 or None].any(axis=0))
            at = (columns + 2.5 + int(box.x0) - box.x0) / zoom + axes.get_xlim()[0]
            away = np.abs((at - 20 - shift + PITCH / 2) % PITCH - PITCH / 2)
            assert columns.size
            assert away.max() < 1.7
    assert not coloured(pixels, figures.LOST).any()
    shown = " ".join(text.get_text() for text in drawn[0].texts)
    expected = "CD 15.00 px, LWR 1.25 px" if pixel is None else "CD 7.50 nm, LWR 0.62 nm"
    assert expected in shown
    texts_are_apart(drawn[0])


def test_lost_points_stand_out_and_have_a_detail_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.line_overlay(tmp_path / "o.png", "scene.tif", image(), measurement(lost=(4, 100, 120)), (0.5, 0.5))
    marked = coloured(decoded(tmp_path / "o.png"), figures.LOST)
    whole, _, trouble = drawn[0].axes
    x, y = 20 + 2 * PITCH, 110
    assert trouble.get_xlim()[0] < x < trouble.get_xlim()[1]
    assert trouble.get_ylim()[1] < y < trouble.get_ylim()[0]
    height = marked.shape[0]
    for axes in (whole, trouble):
        box = axes.get_window_extent()
        inside = marked[height - int(box.y1) : height - int(box.y0), int(box.x0) : int(box.x1)]
        down = np.flatnonzero(inside.any(axis=1)) / box.height * np.ptp(axes.get_ylim()) + min(axes.get_ylim())
        assert down.min() == pytest.approx(100, abs=3)
        assert down.max() == pytest.approx(119, abs=3)
    texts_are_apart(drawn[0])


def test_horizontal_lines_have_upper_and_lower_edges(tmp_path: Path, drawn: list[Figure]) -> None:
    found = measurement(orientation="horizontal")
    figures.line_overlay(tmp_path / "o.png", "scene.tif", np.ascontiguousarray(image().T), found)
    upper = drawn[0].axes[0].lines[0]
    np.testing.assert_array_equal(upper.get_xdata(), np.arange(ROWS))
    np.testing.assert_array_equal(upper.get_ydata(), found.edge_positions[:, 0])
    assert any(text.get_text() == "upper edge" for text in drawn[0].texts)


@pytest.mark.parametrize("shape", [(64, 64), (64, 400), (1500, 90)])
def test_overlays_of_odd_shapes_keep_their_texts_apart(
    tmp_path: Path, drawn: list[Figure], shape: tuple[int, int]
) -> None:
    flags = ("a remark that a reader should see before the numbers are used",) * 3
    found = measurement()
    object.__setattr__(found, "flags", flags)
    name = "a_very_long_name_of_a_file_that_a_microscope_made_up_from_date_and_sample_and_operator.tif"
    figures.line_overlay(tmp_path / "o.png", name, np.zeros(shape, np.float32), found, (0.1, 0.1))
    texts_are_apart(drawn[0])


def pillars(at: list[tuple[float, float]]) -> ContactMeasurement:
    """Round contacts of diameter 20 px at the places given; four rays of the last are lost."""
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    circle = 10 * np.column_stack([np.cos(angle), np.sin(angle)])
    found = []
    for number, centre in enumerate(at):
        lost = (np.arange(32) < 4) & (number == len(at) - 1)
        values: dict[str, Any] = dict.fromkeys(Contact.__dataclass_fields__, 20.0)
        values |= {"x": centre[0], "y": centre[1], "contour": np.array(centre) + circle, "lost": lost}
        found.append(Contact(**values))
    numbers: dict[str, Any] = dict.fromkeys(ContactMeasurement.__dataclass_fields__, 1.0)
    numbers |= {
        "polarity": "bright", "level": "plateau", "contacts": tuple(found), "diameter_mean": 20.0, "cd_x_mean": 20.0,
        "cd_y_mean": 20.0, "lcdu": 1.5, "cer": 2.5, "flags": ("a flag",),
    }  # fmt: skip
    return ContactMeasurement(**numbers)


def test_contours_are_drawn_and_magnified(tmp_path: Path, drawn: list[Figure]) -> None:
    found = pillars([(40.0, 50.0), (90.0, 50.0), (40.0, 180.0), (200.0, 200.0)])
    figures.contact_overlay(tmp_path / "c.png", "scene.tif", image(), found, (0.5, 1.0))
    whole, centre, trouble = drawn[0].axes
    first = np.column_stack(whole.lines[0].get_data())
    np.testing.assert_array_equal(first, np.vstack([found.contacts[0].contour, found.contacts[0].contour[:1]]))
    assert np.isnan(np.column_stack(whole.lines[3].get_data())[:4]).all()
    for axes, (x, y) in ((centre, (90, 50)), (trouble, (209, 203))):
        assert axes.get_xlim()[0] < x < axes.get_xlim()[1]
        assert axes.get_ylim()[1] < y < axes.get_ylim()[0]
        assert axes.get_window_extent().width / np.ptp(axes.get_xlim()) >= 4
    shown = " ".join(text.get_text() for text in drawn[0].texts)
    assert "diameter 14.14 nm, CD x 10.00 nm, y 20.00 nm, LCDU 1.06 nm" in shown
    assert "a flag" in shown
    texts_are_apart(drawn[0])


def test_equal_measurements_give_equal_files(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        figures.line_overlay(tmp_path / name, "scene.tif", image(), measurement(), None)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def labelled(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


def test_spectra_are_drawn_in_their_units_with_model_floor_and_bend(tmp_path: Path, drawn: list[Figure]) -> None:
    found = measurement()
    figures.psd_curves(tmp_path / "p.png", "scene.tif", found, (0.5, 2.0))
    for axes, s, what in zip(
        drawn[0].axes, (found.edge_spectrum, found.width_spectrum), ("14 edges", "7 widths"), strict=True
    ):
        lines = labelled(axes)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert "1/nm" in axes.get_xlabel()
        measured = lines[f"{what}, mean"]
        np.testing.assert_allclose(measured.get_xdata(), s.frequency[1:-1] / 2)
        np.testing.assert_allclose(measured.get_ydata(), s.power[1:-1] * 0.5**2 * 2)
        model = expected_power(ROWS, 0.5, 12.0, 0.6, 0.09)[1:-1] * 0.5
        np.testing.assert_allclose(lines["model and noise"].get_ydata(), model)
        assert lines["noise floor"].get_ydata()[0] == pytest.approx(2 * 0.09 * 0.5)
        assert lines["1/(2πξ)"].get_xdata()[0] == pytest.approx(1 / (2 * np.pi * 12 * 2))
    assert "nm³" in drawn[0].axes[0].get_ylabel()
    texts_are_apart(drawn[0])


def test_a_spectrum_without_model_says_so(tmp_path: Path, drawn: list[Figure]) -> None:
    found = measurement()
    object.__setattr__(found, "model", None)
    figures.psd_curves(tmp_path / "p.png", "scene.tif", found)
    assert drawn[0].axes[0].get_title(loc="left") == "no model could be fitted"
    assert "px³" in drawn[0].axes[0].get_ylabel()


def test_a_comparison_of_spectra_puts_the_reference_on_top(tmp_path: Path, drawn: list[Figure]) -> None:
    spectra = {name: measurement().width_spectrum for name in ("input", "reference", "tv")}
    figures.psd_comparison(tmp_path / "p.png", "case M001", spectra, "reference", (0.5, 0.5, "nm"))
    lines = drawn[0].axes[0].lines
    assert [line.get_label() for line in lines] == ["input", "tv", "reference"]
    np.testing.assert_allclose(lines[2].get_ydata(), spectra["input"].power[1:-1] * 0.125)
    texts_are_apart(drawn[0])


def test_a_comparison_draws_the_fit_and_its_noise_floor_in_the_colour_of_its_image(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    found = measurement()
    spectra = dict.fromkeys(("input", "reference"), found.width_spectrum)
    assert found.width_model is not None
    scale = (0.5, 0.5, "nm")
    figures.psd_comparison(tmp_path / "p.png", "M001", spectra, "reference", scale, {"input": found.width_model})
    lines = {line.get_label(): line for line in drawn[0].axes[0].lines}
    assert "reference: model" not in lines
    assert lines["input: model"].get_color() == lines["input"].get_color()
    model = found.width_model
    bare = expected_power(found.width_spectrum.length, model.sigma, model.xi, model.hurst, 0.0)
    np.testing.assert_allclose(lines["input: model"].get_ydata(), bare[1:-1] * 0.125)
    floors = [line.get_ydata()[0] for line in drawn[0].axes[0].lines if len(line.get_ydata()) == 2]
    assert floors == pytest.approx([2 * model.noise_variance * 0.125])


def test_overlays_side_by_side_cross_out_what_was_refused(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["input", *(f"restorer {i}" for i in range(7)), "reference"]
    measured: dict[str, Any] = {name: measurement() for name in names}
    measured["restorer 3"] = "lines not resolved: too little of the contrast is left between line and space"
    figures.overlays_side_by_side(
        tmp_path / "s.png", "case M001", {name: image(i) for i, name in enumerate(names)}, measured, image(), (0.5, 0.5)
    )
    assert coloured(decoded(tmp_path / "s.png"), figures.LOST).any()
    shown = " ".join(text.get_text() for axes in drawn[0].axes for text in axes.texts)
    assert "not resolved" in shown.replace("\n", " ")
    captions = [axes.get_title(loc="left") for axes in drawn[0].axes]
    assert captions.count("CD 7.50 nm\nLWR 0.62 nm") == 8
    assert captions.count("not measured") == 1
    windows = {(axes.get_xlim(), axes.get_ylim()) for axes in drawn[0].axes if axes.images}
    assert len(windows) == 1
    texts_are_apart(drawn[0])


def test_bias_panels_draw_mean_and_limits_of_agreement(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(2)
    reference = rng.uniform(10, 30, 40)
    noise = {name: rng.normal(shift, 0.3, 40) for name, shift in (("input", 0.5), ("tv", -0.2), ("wild", 60.0))}
    series = {
        name: {"CD (nm)": (reference, reference + error), "LWR (nm)": (reference / 6, reference / 6 + error / 9)}
        for name, error in noise.items()
    }
    figures.bias_panels(tmp_path / "b.png", "difference to the reference", series, "one point a scene")
    axes = drawn[0].axes
    assert len(axes) == 6
    for column, error in enumerate(noise.values()):
        heights = sorted(line.get_ydata()[0] for line in axes[column].lines if list(line.get_xdata()) == [0, 1])
        spread = 1.96 * error.std(ddof=1)
        assert heights == pytest.approx(sorted([0, error.mean() - spread, error.mean(), error.mean() + spread]))
    assert len({panel.get_ylim() for panel in axes[:3]}) == 1
    beyond = [line for line in axes[2].lines if line.get_marker() == "^"]
    assert len(beyond[0].get_xdata()) == 40
    assert axes[0].get_ylabel() == "CD − reference (nm)"
    texts_are_apart(drawn[0])


def test_bias_panels_of_one_case_have_no_limits(tmp_path: Path, drawn: list[Figure]) -> None:
    figures.bias_panels(tmp_path / "b.png", "one", {"input": {"CD (px)": ([10.0], [10.5]), "LWR (px)": ([], [])}})
    assert any("+0.5" in text.get_text() for text in drawn[0].axes[0].texts)


def test_a_trend_draws_points_and_polynomials(tmp_path: Path, drawn: list[Figure]) -> None:
    x = np.array([36.0, 38, 40, 42, 44])
    y = 20 - 0.2 * (x - 36) + 0.01 * (x - 40) ** 2
    fit = fit_polynomial(x, y)
    series = {
        "CD (nm)": {"CD": (x, y, fit)},
        "LWR (nm)": {"LWR raw": (x, y / 4, None), "LWR unbiased": (x, y / 5, fit)},
    }
    figures.trend(tmp_path / "t.png", "dose.csv", "dose (mJ/cm²)", series)
    points, curve = drawn[0].axes[0].lines
    np.testing.assert_array_equal(points.get_ydata(), y)
    assert (curve.get_xdata().min(), curve.get_xdata().max()) == (36, 44)
    np.testing.assert_allclose(curve.get_ydata()[[0, -1]], y[[0, -1]])
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["CD (nm)", "LWR (nm)"]
    texts_are_apart(drawn[0])


def test_limits_of_agreement_of_the_published_example() -> None:
    """Bland and Altman 1986, first readings of two peak flow meters: mean -2.1 and standard deviation 38.8 l/min."""
    large = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
    small = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]
    found = limits_of_agreement(np.subtract(large, small))
    assert found.n == 17
    assert found.mean == pytest.approx(-2.1, abs=0.05)
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(38.8, abs=0.05)
    assert found.high + found.low == pytest.approx(2 * found.mean)


@pytest.mark.parametrize(("length", "expected"), [(37.0, 20.0), (50.0, 50.0), (0.3, 0.2), (1999.0, 1000.0), (1.0, 1.0)])
def test_scale_bars_have_round_lengths(length: float, expected: float) -> None:
    assert figures._round_length(length) == pytest.approx(expected)


def test_lengths_have_readable_units() -> None:
    assert [figures._length_text(nm) for nm in (0.5, 200.0, 2000.0, 5e6)] == ["0.5 nm", "200 nm", "2 µm", "5 mm"]
