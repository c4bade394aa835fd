"""Every plot, one function a figure; matplotlib without a display."""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sembench.micrograph import write_atomically
from sembench.restorer import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from sembench.metrology.contacts import ContactMeasurement
    from sembench.metrology.lines import LineMeasurement
    from sembench.metrology.spectrum import Spectrum, SpectrumModel
    from sembench.statistics import Interval
    from sembench.trend import PolynomialFit

INK = "#1b1f24"
SOFT = "#6b7480"
ACCENT = "#0b6e99"
MOST_COLUMNS = 7
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that stay apart for colour-blind readers (Okabe and Ito 2008)."""
DIVERGING = "RdBu_r"
"""Colour map of differences: blue below, red above."""
LEFT, RIGHT, LOST = "#56b4e9", "#f0e442", "#ff3d00"
"""On an overlay: left or upper edges, right or lower edges, points that were lost."""
_DPI = 120
_WHOLE = (960, 860)
"""Box (width, height) into which the whole image of an overlay is fitted, px of the figure."""
_DETAIL = 540
"""Width of an overlay's magnified parts, px of the figure."""
_LEAST_ZOOM, _MOST_ZOOM = 4.0, 12.0


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    write_atomically(path, content.getvalue())


def zoom_window(reference: Image, side: int) -> tuple[int, int]:
    """Top left corner (row, column) of the window of the reference that holds most gradient, away from borders."""
    from scipy.ndimage import gaussian_gradient_magnitude, uniform_filter

    height, width = reference.shape
    if min(height, width) <= 2 * side:
        return (height - side) // 2, (width - side) // 2
    detail = uniform_filter(gaussian_gradient_magnitude(reference.astype(np.float64), 1.5), side)
    half = side // 2
    inner = detail[side : height - side, side : width - side]
    row, column = np.unravel_index(int(np.argmax(inner)), inner.shape)
    return int(row) + side - half, int(column) + side - half


def panel(
    path: Path,
    title: str,
    images: Mapping[str, Image],
    captions: Mapping[str, str],
    reference: Image,
    differences: Mapping[str, Image] | None = None,
) -> None:
    """Input, restored images and reference of one case, each whole and below it a magnified window.

    images: name -> (H, W), shown in this order; captions: the line under a name; all share the reference's gray range.
    differences: name -> (H, W), what an image differs by from the reference (gray levels), shown below in the window.
    """
    low, high = np.percentile(reference, (0.3, 99.7))
    reach = difference_reach(reference)
    side = max(16, min(reference.shape) // 5)
    top, left = zoom_window(reference, side)
    window = (slice(top, top + side), slice(left, left + side))
    parts = 3 if differences else 2
    rows = -(-len(images) // MOST_COLUMNS)
    columns = -(-len(images) // rows)
    figure = _figure(2.3 * columns, (2.55 * rows) * parts + 0.4)
    if differences:
        title += f"\nthird rows: less the reference after one gain and offset, blue to red: {-reach:.0f} to {reach:.0f}"
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    grid = figure.subplots(parts * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (name, image) in enumerate(images.items()):
        whole, part, *below = grid[parts * (index // columns) : parts * (index // columns + 1), index % columns]
        for axes, shown in ((whole, image), (part, image[window])):
            axes.imshow(shown, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        if differences and name in differences:
            below[0].imshow(differences[name][window], cmap=DIVERGING, vmin=-reach, vmax=reach, interpolation="nearest")
        _frame(whole, left, top, side)
        whole.set_title(f"{name}\n{captions.get(name, '')}", fontsize=9, color=INK, loc="left")
    _save(figure, path)


def difference_reach(reference: Image) -> float:
    """Gray levels at which a difference from the reference (H, W) is shown in full colour: a quarter of its range."""
    low, high = np.percentile(reference, (0.3, 99.7))
    return max(1.0, float(high - low) / 4)


def _frame(axes: "Axes", left: int, top: int, side: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor="#ffb000", linewidth=1.2))


def intervals(
    path: Path,
    title: str,
    label: str,
    rows: Sequence[tuple[str, float, float | None, float | None]],
    references: Mapping[str, float],
) -> None:
    """Mean and 95 % interval of one metric, a line a restorer, best on top; controls as vertical reference lines."""
    figure = _figure(7.2, 0.42 * len(rows) + 1.5)
    axes = figure.subplots()
    for position, (_, mean, low, high) in enumerate(rows):
        if low is not None and high is not None:
            axes.plot(
                [low, high], [position, position], color=ACCENT, linewidth=2.2, alpha=0.55, solid_capstyle="round"
            )
        axes.plot([mean], [position], "o", color=ACCENT, markersize=6)
    for name, value in references.items():
        axes.axvline(value, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -3), textcoords="offset points",
            rotation=90, va="top", fontsize=7.5, color=SOFT,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -2.0 if references else -0.6)
    axes.set_xlabel(label, color=INK)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.grid(axis="x", color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _save(figure, path)


def differences(
    path: Path, title: str, label: str, rows: "Sequence[tuple[str, Interval, str]]", margin: float | None
) -> None:
    """Mean difference and 95 % interval of each pair, a line a pair; zero, and the band of what does not matter.

    rows: what is compared, its interval, what is known of it; margin: half width of the band, or None.
    """
    figure = _figure(8.4, 0.36 * len(rows) + 1.5)
    axes = figure.subplots()
    if margin is not None:
        axes.axvspan(-margin, margin, color=PALETTE[2], alpha=0.16, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1.0)
    for position, (_, interval, mark) in enumerate(rows):
        told = mark.split(", ")[0]
        colour = PALETTE[2] if told == "equivalent" else ACCENT if told in ("better", "worse", "different") else SOFT
        if interval.low is not None and interval.high is not None:
            axes.plot([interval.low, interval.high], [position] * 2, color=colour, linewidth=2.2, alpha=0.55)
        axes.plot([interval.mean], [position], "o", color=colour, markersize=5.5)
        axes.annotate(
            mark, (1.0, position), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    band = "" if margin is None else f"; band: ±{margin:g} does not matter"
    axes.set_xlabel(f"{label}{band}", color=INK)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.grid(axis="x", color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _save(figure, path)


@dataclass(frozen=True, eq=False)
class ClusterExamples:
    """What is shown of one cluster: its number, the line below it, its tiles (h, w), gray levels 0..255."""

    number: int
    caption: str
    tiles: Sequence[Image]


def cluster_map(
    path: Path,
    title: str,
    note: str,
    positions: "NDArray[Any]",
    labels: "NDArray[Any]",
    shown: Sequence[ClusterExamples],
) -> None:
    """Embeddings laid out in a plane, coloured and numbered by cluster, and beside them example tiles of each.

    positions: (n, 2), axes without meaning; labels: (n,), the cluster of each; note: how the plane was made.
    """
    from matplotlib import colormaps
    from matplotlib.patheffects import withStroke

    columns = 2
    rows = -(-len(shown) // columns)
    width = max((len(cluster.tiles) for cluster in shown), default=1)
    figure = _figure(7.0 + columns * 0.98 * width, max(5.6, 1.28 * rows + 0.8))
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    plane, sheet = figure.subfigures(1, 2, squeeze=False, width_ratios=(7.0, columns * 0.98 * width))[0]
    axes = plane.subplots()
    axes.set_xlabel(note, fontsize=8, color=SOFT, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#e3e7eb")
    colours = [colormaps["tab10"](i % 10) for i in range(len(shown))]
    for cluster, colour in zip(shown, colours, strict=True):
        own = positions[labels == cluster.number]
        axes.scatter(own[:, 0], own[:, 1], s=15, color=[colour], edgecolors="white", linewidths=0.4)
        axes.annotate(
            str(cluster.number), np.median(own, axis=0), fontsize=12, fontweight="bold", color=colour, ha="center",
            va="center", path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    strips = sheet.subfigures(rows, columns, squeeze=False)
    for strip, cluster, colour in zip(strips.flat, shown, colours, strict=False):
        strip.suptitle(f"{cluster.number}: {cluster.caption}", fontsize=8, color=INK, x=0.02, ha="left")
        for cell in strip.subplots(1, width, squeeze=False)[0]:
            cell.set_axis_off()
        for cell, tile in zip(strip.axes, cluster.tiles, strict=False):
            low, high = np.percentile(tile, (0.5, 99.5))
            cell.imshow(tile, cmap="gray", vmin=low, vmax=max(high, low + 1), interpolation="nearest")
            _outline_axes(cell, colour)
    _save(figure, path)


def _outline_axes(axes: "Axes", colour: Any) -> None:
    """A frame in one colour in place of axes."""
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2)


# Metrology


def line_overlay(
    path: Path,
    name: str,
    image: Image,
    measurement: "LineMeasurement",
    pixel_size_nm: tuple[float, float] | None = None,
) -> None:
    """The edges found, drawn on the image: whole, and magnified at its centre and where most points were lost.

    image: (H, W), the pixels that were measured; pixel_size_nm: (x, y), lengths are given in px without it.
    """
    across, _, unit = _scale(measurement.orientation, pixel_size_nm)
    lines = f"{measurement.lines} {measurement.polarity} {measurement.orientation} lines"
    facts = (
        f"{lines}, {measurement.rows} rows each; pitch {_length(measurement.pitch * across, unit)}; level "
        f"{measurement.level} ({100 * measurement.level_fraction:.0f} % between plateaus); contrast to noise "
        f"{measurement.contrast_to_noise:.1f}; {100 * measurement.lost_fraction:.2f} % of points lost"
    )
    vertical = measurement.orientation == "vertical"
    lost_x, lost_y = _lost_points(measurement)

    def draw(axes: "Axes", zoom: float) -> None:
        _draw_edges(axes, measurement, 0.8 if zoom < _LEAST_ZOOM else 1.6)

    _overlay(
        path,
        f"{name}: {_line_numbers(measurement, pixel_size_nm)}",
        facts,
        measurement.flags,
        image,
        draw,
        {
            "left edge" if vertical else "upper edge": LEFT,
            "right edge" if vertical else "lower edge": RIGHT,
            **({"lost points, bridged by a straight line": LOST} if len(lost_x) else {}),
        },
        period=measurement.pitch,
        middle=(image.shape[1] / 2, image.shape[0] / 2),
        troubles=(lost_x, lost_y),
        pixel_size_nm=pixel_size_nm,
    )


def contact_overlay(
    path: Path,
    name: str,
    image: Image,
    measurement: "ContactMeasurement",
    pixel_size_nm: tuple[float, float] | None = None,
) -> None:
    """The contours found, drawn on the image: whole, and magnified in the middle and where most rays were lost.

    image: (H, W), the pixels that were measured; pixel_size_nm: (x, y), lengths are given in px without it.
    """
    x, y = pixel_size_nm or (1.0, 1.0)
    unit, mean = ("px" if pixel_size_nm is None else "nm"), math.sqrt(x * y)
    headline = (
        f"{name}: diameter {_length(measurement.diameter_mean * mean, unit)}, CD x "
        f"{_length(measurement.cd_x_mean * x, unit)}, y {_length(measurement.cd_y_mean * y, unit)}, LCDU "
        f"{_length(measurement.lcdu * mean, unit)}, contour roughness {_length(measurement.cer * mean, unit)}"
    )
    facts = (
        f"{measurement.count} complete {measurement.polarity} contacts; level {measurement.level}; contrast to noise "
        f"{measurement.contrast_to_noise:.1f}; {100 * measurement.lost_fraction:.2f} % of rays lost"
    )
    height, width = image.shape
    lost = np.concatenate([one.contour[one.lost] for one in measurement.contacts])
    centres = np.array([(one.x, one.y) for one in measurement.contacts])
    nearest = centres[np.argmin(np.hypot(centres[:, 0] - width / 2, centres[:, 1] - height / 2))]
    lost = lost if np.isfinite(lost).all() else _centres_of_lost(measurement)

    def draw(axes: "Axes", zoom: float) -> None:
        width = 0.9 if zoom < _LEAST_ZOOM else 1.6
        for one in measurement.contacts:
            kept = np.where(one.lost[:, None], np.nan, one.contour)
            closed = np.vstack([kept, kept[:1]])
            axes.plot(closed[:, 0], closed[:, 1], color=RIGHT, linewidth=width)
        axes.plot(centres[:, 0], centres[:, 1], "+", color=LEFT, markersize=3 if zoom < _LEAST_ZOOM else 6)
        axes.plot(lost[:, 0], lost[:, 1], ".", color=LOST, markersize=2 if zoom < _LEAST_ZOOM else 5)

    legend = {"contour": RIGHT, "centre": LEFT, **({"lost rays": LOST} if len(lost) else {})}
    _overlay(
        path,
        headline,
        facts,
        measurement.flags,
        image,
        draw,
        legend,
        period=measurement.diameter_mean,
        middle=(float(nearest[0]), float(nearest[1])),
        troubles=(lost[:, 0], lost[:, 1]),
        pixel_size_nm=pixel_size_nm,
    )


def _centres_of_lost(measurement: "ContactMeasurement") -> "NDArray[Any]":
    return np.array([(one.x, one.y) for one in measurement.contacts if one.lost.any()]).reshape(-1, 2)


def _line_numbers(measurement: "LineMeasurement", pixel_size_nm: tuple[float, float] | None) -> str:
    """CD, LWR and LER in one line, raw and, where they could be had, unbiased."""
    across, _, unit = _scale(measurement.orientation, pixel_size_nm)
    text = (
        f"CD {_length(measurement.cd_mean * across, unit)}, LWR {_length(measurement.lwr * across, unit)}, "
        f"LER {_length(measurement.ler * across, unit)}"
    )
    if measurement.lwr_unbiased is None or measurement.ler_unbiased is None:
        return text
    unbiased = [_length(value * across, unit) for value in (measurement.lwr_unbiased, measurement.ler_unbiased)]
    return f"{text} (unbiased LWR {unbiased[0]}, LER {unbiased[1]})"


def _length(value: float, unit: str) -> str:
    """A length with as many decimals as a reader can use."""
    decimals = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:.{decimals}f} {unit}"


def _scale(orientation: str, pixel_size_nm: tuple[float, float] | None) -> tuple[float, float, str]:
    """Length of a pixel across and along the lines, and the unit of both."""
    if pixel_size_nm is None:
        return 1.0, 1.0, "px"
    x, y = pixel_size_nm
    return (x, y, "nm") if orientation == "vertical" else (y, x, "nm")


def _edge_curves(measurement: "LineMeasurement") -> "list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]":
    """x, y and lost of each edge, in image coordinates."""
    curves = []
    for edge in range(measurement.edge_positions.shape[1]):
        across, along = measurement.edge_positions[:, edge], measurement.edge_rows
        x, y = (across, along) if measurement.orientation == "vertical" else (along, across)
        curves.append((x, y, measurement.lost[:, edge]))
    return curves


def _lost_points(measurement: "LineMeasurement") -> "tuple[NDArray[Any], NDArray[Any]]":
    curves = _edge_curves(measurement)
    return np.concatenate([x[lost] for x, _, lost in curves]), np.concatenate([y[lost] for _, y, lost in curves])


def _draw_edges(axes: "Axes", measurement: "LineMeasurement", width: float) -> None:
    for edge, (x, y, lost) in enumerate(_edge_curves(measurement)):
        colour = RIGHT if edge % 2 else LEFT
        axes.plot(np.where(lost, np.nan, x), np.where(lost, np.nan, y), color=colour, linewidth=width)
        if lost.any():
            beside = lost | np.r_[lost[1:], False] | np.r_[False, lost[:-1]]
            axes.plot(np.where(beside, x, np.nan), np.where(beside, y, np.nan), color=LOST, linewidth=2.2 * width)


def _overlay(
    path: Path,
    headline: str,
    facts: str,
    flags: Sequence[str],
    image: Image,
    draw: "Callable[[Axes, float], None]",
    legend: Mapping[str, str],
    *,
    period: float,
    middle: tuple[float, float],
    troubles: "tuple[NDArray[Any], NDArray[Any]]",
    pixel_size_nm: tuple[float, float] | None,
) -> None:
    """An image with what was found on it, whole and beside it magnified; every place is set in px of the figure.

    draw: puts what was found on axes of a given magnification; period: px, of which a detail shows three or more;
    middle: x and y of the first detail; troubles: those of points around which a second is laid where there are any.
    """
    height, width = image.shape
    scale = min(_WHOLE[0] / width, _WHOLE[1] / height, _LEAST_ZOOM)
    pad, gap, caption = 16, 24, 24
    places = [(*middle, "centre")]
    if len(troubles[0]):
        places.append((*_densest(troubles, image.shape), "where most points were lost"))
    body = max(scale * height, 420.0)
    column = max(scale * width, 200.0)
    total_width = pad + column + gap + _DETAIL + pad
    texts = [(line, 11.5, INK) for line in _wrapped(headline, total_width - 2 * pad, 11.5)]
    texts += [(line, 8.5, SOFT) for line in _wrapped(facts, total_width - 2 * pad, 8.5)]
    texts += [(line, 8.5, LOST) for line in _wrapped("; ".join(flags), total_width - 2 * pad, 8.5)]
    head = pad + sum(2.3 * size for _, size, _ in texts) + 24
    total_height = head + caption + body + pad
    figure = _figure(total_width / _DPI, total_height / _DPI)
    figure.set_layout_engine("none")
    top = float(pad)
    for line, size, colour in texts:
        figure.text(pad / total_width, 1 - top / total_height, line, fontsize=size, color=colour, va="top")
        top += 2.3 * size
    left = float(pad)
    for label, colour in legend.items():
        beside = 1 - (top + 6) / total_height
        figure.text(left / total_width, beside, "\u25ac", fontsize=11, color=colour, va="center")
        figure.text((left + 24) / total_width, beside, label, fontsize=8.5, color=INK, va="center")
        left += 24 + 0.95 * 8.5 * len(label) + 28
    low, high = np.percentile(image, (0.3, 99.7))

    def place(x: float, y: float, wide: float, tall: float, title: str) -> "Axes":
        """Axes with their upper left corner at (x, y) px of the figure, counted from the upper left."""
        axes = figure.add_axes(
            (x / total_width, 1 - (y + tall) / total_height, wide / total_width, tall / total_height)
        )
        axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect="auto")
        axes.set_axis_off()
        axes.set_title(title, fontsize=8.5, color=INK, loc="left", pad=4)
        return axes

    whole = place(pad, head + caption, scale * width, scale * height, f"whole, {width} x {height} px")
    draw(whole, scale)
    _scale_bar(whole, width, scale, pixel_size_nm)
    tall = (body - (len(places) - 1) * (caption + 6)) / len(places)
    zoom = min(max(_DETAIL / (3.5 * period), _LEAST_ZOOM), _MOST_ZOOM)
    zoom = max(zoom, _DETAIL / width, tall / height)
    for number, (x, y, what) in enumerate(places):
        side_x, side_y = _DETAIL / zoom, tall / zoom
        corner_x = min(max(x - side_x / 2, 0), width - side_x) - 0.5
        corner_y = min(max(y - side_y / 2, 0), height - side_y) - 0.5
        above = head + caption + number * (tall + caption + 6)
        part = place(pad + column + gap, above, _DETAIL, tall, f"{what}, {zoom:.1f} times")
        draw(part, zoom)
        part.set_xlim(corner_x, corner_x + side_x)
        part.set_ylim(corner_y + side_y, corner_y)
        part.images[0].set_interpolation("nearest")
        _scale_bar(part, side_x, zoom, pixel_size_nm)
        _outline(whole, corner_x, corner_y, side_x, side_y)
    _save(figure, path)


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of at most so many px at a font size in points."""
    return textwrap.wrap(text, max(20, int(width / (0.95 * size))), break_long_words=True)


def _densest(
    points: "tuple[NDArray[Any], NDArray[Any]]", shape: tuple[int, ...], side: int = 64
) -> tuple[float, float]:
    """Centre (x, y) of the field of a grid that holds most of the points."""
    counts, x, y = np.histogram2d(
        points[0], points[1], [max(1, shape[1] // side), max(1, shape[0] // side)], [[0, shape[1]], [0, shape[0]]]
    )
    column, row = np.unravel_index(int(np.argmax(counts)), counts.shape)
    return float(x[column] + x[column + 1]) / 2, float(y[row] + y[row + 1]) / 2


def _outline(axes: "Axes", left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    for colour, thickness in (("black", 2.6), ("white", 1.2)):
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=colour, linewidth=thickness))


def _scale_bar(axes: "Axes", width: float, zoom: float, pixel_size_nm: tuple[float, float] | None) -> None:
    """A bar of a round length, about a fifth of a field of `width` px, in its lower left corner."""
    from matplotlib.patches import Rectangle

    pixel = pixel_size_nm[0] if pixel_size_nm else 1.0
    length = _round_length(width * pixel / 5)
    label = f"{length:g} px" if pixel_size_nm is None else _length_text(length)
    bar = length / pixel
    right, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    wide = max(bar, 7.4 * len(label) / zoom)
    box = Rectangle(
        (right + 8 / zoom, bottom - 46 / zoom),
        wide + 16 / zoom,
        38 / zoom,
        facecolor="black",
        alpha=0.7,
        linewidth=0,
        zorder=6,
    )
    axes.add_patch(box)
    centre = right + 16 / zoom + wide / 2
    axes.add_patch(
        Rectangle((centre - bar / 2, bottom - 18 / zoom), bar, 4 / zoom, facecolor="white", linewidth=0, zorder=7)
    )
    axes.text(centre, bottom - 30 / zoom, label, color="white", fontsize=8, ha="center", va="center", zorder=7)


def _round_length(length: float) -> float:
    """The greatest of 1, 2, 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(step * power for step in (5.0, 2.0, 1.0) if step * power <= length * (1 + 1e-9))


def _length_text(nm: float) -> str:
    for factor, unit in ((1e6, "mm"), (1e3, "\u00b5m")):
        if nm >= factor:
            return f"{nm / factor:g} {unit}"
    return f"{nm:g} nm"


def psd_curves(
    path: Path,
    title: str,
    measurement: "LineMeasurement",
    pixel_size_nm: tuple[float, float] | None = None,
) -> None:
    """Spectra of edges and of widths on log axes: measured, fitted model, noise floor, and where xi puts the bend."""
    figure = _figure(11.2, 5.0)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "edges", measurement.edge_spectrum, measurement.model, PALETTE[0]),
        (right, "widths", measurement.width_spectrum, measurement.width_model, PALETTE[2]),
    )
    scale = _scale(measurement.orientation, pixel_size_nm)
    lowest = min(float(np.min(s.power[1:])) for s in (measurement.edge_spectrum, measurement.width_spectrum))
    for axes, what, s, model, colour in panels:
        _spectrum_axes(axes, scale)
        _draw_spectrum(axes, s, model, scale, colour, what)
        axes.legend(loc="lower left", fontsize=8, frameon=False)
        axes.set_title(_model_text(model, scale), fontsize=9, color=INK, loc="left")
    left.set_ylim(bottom=lowest * scale[0] ** 2 * scale[1] / 40)
    right.set_ylabel("")
    _save(figure, path)


def _spectrum_axes(axes: "Axes", scale: tuple[float, float, str]) -> None:
    unit = scale[2]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"frequency along the line (1/{unit})", color=INK)
    axes.set_ylabel(f"one-sided power spectral density ({unit}\u00b3)", color=INK)
    axes.grid(which="major", color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_spectrum(
    axes: "Axes",
    s: "Spectrum",
    model: "SpectrumModel | None",
    scale: tuple[float, float, str],
    colour: str,
    what: str,
) -> None:
    across, along, _ = scale
    volume = across**2 * along
    inner = _two_sided(s)
    frequency, power = s.frequency[inner] / along, s.power[inner] * volume
    axes.plot(frequency, power, color=colour, linewidth=0.9, alpha=0.65, label=f"{s.curves} {what}, mean")
    if model is None or not math.isfinite(model.xi):
        return
    expected, bare, floor = _fitted(s, model, volume)
    axes.plot(frequency, expected, color=INK, linewidth=1.6, label="model and noise")
    axes.plot(frequency, bare, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), label="model alone")
    if floor > 0:
        axes.axhline(floor, color=PALETTE[1], linewidth=1.2, linestyle=(0, (1, 1.5)), label="noise floor")
    bend = 1 / (2 * math.pi * model.xi * along)
    axes.axvline(bend, color=PALETTE[3], linewidth=1.2, linestyle=(0, (3, 2)), label="1/(2\u03c0\u03be)")


def _draw_fit(
    axes: "Axes", s: "Spectrum", model: "SpectrumModel", scale: tuple[float, float, str], colour: str, label: str
) -> None:
    """The fitted spectrum without its noise, dashed, and the noise floor, dotted."""
    _, bare, floor = _fitted(s, model, scale[0] ** 2 * scale[1])
    frequency = s.frequency[_two_sided(s)] / scale[1]
    axes.plot(frequency, bare, color=colour, linewidth=1.2, linestyle=(0, (5, 3)), label=label)
    if floor > 0:
        axes.axhline(floor, color=colour, linewidth=1.0, linestyle=(0, (1, 1.5)), alpha=0.8)


def _fitted(s: "Spectrum", model: "SpectrumModel", volume: float) -> "tuple[NDArray[Any], NDArray[Any], float]":
    """The expected spectrum with noise and without, at the two-sided frequencies, and the level of the noise."""
    from sembench.metrology.spectrum import expected_power

    inner = _two_sided(s)
    noisy, bare = (
        expected_power(s.length, model.sigma, model.xi, model.hurst, noise, s.spacing)[inner] * volume
        for noise in (model.noise_variance, 0.0)
    )
    return noisy, bare, 2 * model.noise_variance * s.spacing * volume


def _two_sided(s: "Spectrum") -> slice:
    """The frequencies that count twice in a one-sided spectrum: all but 0 and, of an even length, the last."""
    return slice(1, -1 if s.length % 2 == 0 else None)


def _model_text(model: "SpectrumModel | None", scale: tuple[float, float, str]) -> str:
    if model is None or not math.isfinite(model.xi):
        return "no model could be fitted"
    across, along, unit = scale
    text = (
        f"\u03c3 {_length(model.sigma * across, unit)}, \u03be {_length(model.xi * along, unit)}, H {model.hurst:.2f}, "
        f"noise {_length(math.sqrt(max(model.noise_variance, 0)) * across, unit)}"
    )
    return "\n".join([text, *textwrap.wrap("; ".join(model.flags), 80)])


def psd_comparison(
    path: Path,
    title: str,
    spectra: "Mapping[str, Spectrum]",
    reference: str,
    scale: tuple[float, float, str] = (1.0, 1.0, "px"),
    models: "Mapping[str, SpectrumModel] | None" = None,
) -> None:
    """Spectra of the same lines in several images over one another, the reference in black and thick.

    reference: the key of one of them; scale: length of a pixel across and along the lines, and their unit; models: the
    fits to some of them, drawn dashed, with their noise floors dotted.
    """
    figure = _figure(8.2, 5.4)
    axes = figure.subplots()
    _spectrum_axes(axes, scale)
    others = [name for name in spectra if name != reference]
    for name in [*others, *([reference] if reference in spectra else [])]:
        s = spectra[name]
        place = others.index(name) if name in others else 0
        style: dict[str, Any] = {
            "color": INK if name == reference else PALETTE[place % len(PALETTE)],
            "linewidth": 2.0 if name == reference else 1.2,
            "linestyle": "-" if name == reference or place < len(PALETTE) else (0, (4, 2)),
        }
        inner = _two_sided(s)
        axes.plot(s.frequency[inner] / scale[1], s.power[inner] * scale[0] ** 2 * scale[1], label=name, **style)
        if models and name in models and math.isfinite(models[name].xi):
            _draw_fit(axes, s, models[name], scale, style["color"], f"{name}: model")
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8.5, frameon=False)
    _save(figure, path)


def overlays_side_by_side(
    path: Path,
    title: str,
    images: Mapping[str, Image],
    measurements: "Mapping[str, LineMeasurement | str]",
    reference: Image,
    pixel_size_nm: tuple[float, float] | None = None,
) -> None:
    """The same window of each image, plain and with the edges found in it; a refused image shows a cross and why.

    images: name -> (H, W), in this order (input, restorers, reference); measurements: name -> what was measured, or the
    reason of the refusal. All share the gray range of the reference and its window, the image's centre.
    """
    from matplotlib.patheffects import withStroke

    found = [m for m in measurements.values() if not isinstance(m, str)]
    height, width = reference.shape
    side = min(height, width, int(max(64, min(128, 4 * found[0].pitch))) if found else 96)
    left, top = (width - side) / 2 - 0.5, (height - side) / 2 - 0.5
    low, high = np.percentile(reference, (0.3, 99.7))
    bands = -(-len(images) // MOST_COLUMNS)
    columns = -(-len(images) // bands)
    figure = _figure(2.55 * columns, 5.7 * bands + 0.4)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (name, image) in enumerate(images.items()):
        plain = grid[2 * (index // columns)][index % columns]
        marked = grid[2 * (index // columns) + 1][index % columns]
        measurement = measurements[name]
        for axes in (plain, marked):
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        if isinstance(measurement, str):
            axes = marked
            for x, y in (((0, 1), (0, 1)), ((0, 1), (1, 0))):
                axes.plot(x, y, color=LOST, linewidth=2.0, transform=axes.transAxes, scalex=False, scaley=False)
            text = "\n".join(textwrap.wrap(measurement, 24))
            reason = axes.text(0.5, 0.5, text, transform=axes.transAxes, fontsize=8, color="white", ha="center")
            reason.set_verticalalignment("center")
            reason.set_path_effects([withStroke(linewidth=3, foreground="black")])
            caption = "not measured"
        else:
            _draw_edges(marked, measurement, 1.4)
            across, _, unit = _scale(measurement.orientation, pixel_size_nm)
            lengths = [_length(value * across, unit) for value in (measurement.cd_mean, measurement.lwr)]
            caption = f"CD {lengths[0]}\nLWR {lengths[1]}"
        for axes in (plain, marked):
            axes.set_xlim(left, left + side)
            axes.set_ylim(top + side, top)
        plain.set_title("\n".join(textwrap.wrap(name, 28)), fontsize=9, color=INK, loc="left")
        marked.set_title(caption, fontsize=8.5, color=INK, loc="left")
        _scale_bar(plain, side, 2.3 * _DPI / side, pixel_size_nm)
    _save(figure, path)


def bias_panels(
    path: Path, title: str, series: "Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]", remark: str = ""
) -> None:
    """Difference to the reference against the reference, with the mean and the limits of agreement of each panel.

    series: restorer -> quantity with its unit (`CD (nm)`) -> values of the reference and of the restored images, of
    equal length; a column a restorer, a row a quantity, differences of a row on one scale. Points beyond the scale
    stand at its border as triangles. Source: Bland and Altman 1986.
    """
    from sembench.statistics import limits_of_agreement

    quantities = list(next(iter(series.values())))
    figure = _figure(max(6.0, 2.6 * len(series) + 0.8), 2.9 * len(quantities) + 0.7)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    grid = figure.subplots(len(quantities), len(series), squeeze=False, sharex="row", sharey="row")
    for row, quantity in enumerate(quantities):
        differences = {}
        for name, pairs in series.items():
            reference, restored = (np.asarray(values, np.float64) for values in pairs[quantity])
            differences[name] = (reference, restored - reference)
        reach = _common_reach([values for _, values in differences.values()])
        for column, (name, (reference, values)) in enumerate(differences.items()):
            axes = grid[row][column]
            _draw_bias(axes, reference, values, reach)
            if row == 0:
                axes.set_title("\n".join(textwrap.wrap(name, 28)), fontsize=9.5, color=INK, loc="left")
            if len(values):
                agreement = limits_of_agreement(values)
                text = f"mean {agreement.mean:+.3g}"
                if agreement.low is not None and agreement.high is not None:
                    text += f", limits {agreement.low:+.3g} to {agreement.high:+.3g}"
                axes.text(0.02, 0.985, text, transform=axes.transAxes, fontsize=7.2, color=INK, va="top")
            axes.set_xlabel(f"reference {quantity}", color=INK, fontsize=8.5)
        name, _, unit = quantity.partition(" (")
        grid[row][0].set_ylabel(f"{name} \u2212 reference" + (f" ({unit}" if unit else ""), color=INK, fontsize=8.5)
    if remark:
        figure.supxlabel("\n".join(textwrap.wrap(remark, int(28 * max(2, len(series))))), fontsize=8, color=SOFT)
    _save(figure, path)


def _common_reach(differences: "Sequence[NDArray[Any]]") -> float:
    """Half height of a row's panels: all points, unless one restorer's lie far beyond those of the middle one."""
    largest = [float(np.abs(values).max()) for values in differences if len(values)]
    if not largest:
        return 1.0
    return 1.35 * min(max(largest), 4 * float(np.median(largest))) or 1.0


def _draw_bias(axes: "Axes", reference: "NDArray[Any]", values: "NDArray[Any]", reach: float) -> None:
    from sembench.statistics import limits_of_agreement

    axes.axhline(0, color=SOFT, linewidth=0.9)
    inside = np.abs(values) <= reach
    axes.plot(reference[inside], values[inside], "o", color=ACCENT, markersize=4, alpha=0.7, markeredgewidth=0)
    beyond = np.clip(values[~inside], -0.82 * reach, 0.82 * reach)
    for marker, chosen in (("^", beyond > 0), ("v", beyond < 0)):
        axes.plot(reference[~inside][chosen], beyond[chosen], marker, color=PALETTE[1], markersize=6)
    if len(values):
        agreement = limits_of_agreement(values)
        axes.axhline(agreement.mean, color=PALETTE[1], linewidth=1.6)
        for limit in (agreement.low, agreement.high):
            if limit is not None:
                axes.axhline(limit, color=PALETTE[1], linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_ylim(-reach, reach)
    axes.tick_params(labelsize=7.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def trend(
    path: Path,
    title: str,
    label: str,
    series: "Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike, PolynomialFit | None]]]",
) -> None:
    """Measured quantities against dose or focus, each with its polynomial; a panel a group of quantities.

    label: of the abscissa; series: panel's axis label -> name of a curve -> its x, its y, and the fit or None.
    """
    figure = _figure(max(5.6, 4.6 * len(series)), 4.3)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    for axes, (quantity, curves) in zip(figure.subplots(1, len(series), squeeze=False)[0], series.items(), strict=True):
        for number, (name, (x, y, fit)) in enumerate(curves.items()):
            abscissa, ordinate = np.asarray(x, np.float64), np.asarray(y, np.float64)
            colour, marker = PALETTE[number % len(PALETTE)], "osD^v"[number % 5]
            axes.plot(abscissa, ordinate, marker, color=colour, markersize=5.5, label=name)
            if fit is not None:
                drawn = np.linspace(abscissa.min(), abscissa.max(), 201)
                order = "line" if len(fit.coefficients) == 2 else "parabola"
                spread = "" if fit.residual is None else f", residual {fit.residual:.2g}"
                axes.plot(drawn, fit(drawn), color=colour, linewidth=1.4, label=f"{order}{spread}")
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel(quantity, color=INK)
        axes.margins(y=0.12)
        axes.grid(color="#e3e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _save(figure, path)
