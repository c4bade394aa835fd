"""Every plot, one function a figure; matplotlib without a display."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sembench.micrograph import write_atomically
from sembench.restorer import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1f24"
SOFT = "#6b7480"
ACCENT = "#0b6e99"
MOST_COLUMNS = 7


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")


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


def panel(path: Path, title: str, images: Mapping[str, Image], captions: Mapping[str, str], reference: Image) -> None:
    """Input, restored images and reference of one case, each whole and beside it a magnified window.

    images: name -> (H, W), shown in this order; captions: the line under a name; all share the reference's gray range.
    """
    low, high = np.percentile(reference, (0.3, 99.7))
    side = max(16, min(reference.shape) // 5)
    top, left = zoom_window(reference, side)
    rows = -(-len(images) // MOST_COLUMNS)
    columns = -(-len(images) // rows)
    figure = _figure(2.3 * columns, 5.1 * rows + 0.4)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, (name, image) in enumerate(images.items()):
        whole = grid[2 * (index // columns)][index % columns]
        part = grid[2 * (index // columns) + 1][index % columns]
        for axes, shown in ((whole, image), (part, image[top : top + side, left : left + side])):
            axes.imshow(shown, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        _frame(whole, left, top, side)
        whole.set_title(f"{name}\n{captions.get(name, '')}", fontsize=9, color=INK, loc="left")
    _save(figure, path)


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
