"""What a run shows in pictures: PNG files beside its records, and the same cut small enough for a page."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sembench import figures
from sembench.cases import Case, TileSetSpec
from sembench.comparison import row_labels
from sembench.execution.embed import load
from sembench.execution.records import Record
from sembench.execution.request import RunPlan
from sembench.metrics.fidelity import apply_match, match
from sembench.metrics.table import UndefinedError
from sembench.micrograph import read_grid_png
from sembench.pages import pixels
from sembench.pages.numbers import fixed
from sembench.registry import METRICS, plugin
from sembench.results import SummaryRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sembench.metrology.lines import LineMeasurement
    from sembench.restorer import Image

EXAMPLES = 4
"""Tiles shown of a cluster."""
_PAGE_SIDE = 360
"""Longest side (px) of a whole image on the page."""

Encoder = Callable[["NDArray[np.uint8]"], str]
"""From 8-bit pixels to an address that holds them, see sembench.pages.pixels."""


@dataclass(frozen=True)
class View:
    """How all images of one case are shown.

    levels: gray levels that are black and white; reach: those at which a difference is shown in full colour;
    frame: column, row and side (px) of the part that is magnified.
    """

    levels: tuple[float, float]
    reach: float
    frame: tuple[int, int, int]

    @property
    def part(self) -> str:
        """Which part is magnified, in words."""
        left, top, side = self.frame
        return f"{side} x {side} px at column {left}, row {top}"

    def gray(self, image: "Image", encode: Encoder = pixels.png) -> str:
        """An address that holds the whole image (H, W) in 8 bits."""
        low, high = self.levels
        stretched = np.clip((image - low) / (high - low), 0, 1) * 255
        return encode(np.rint(stretched).astype(np.uint8))

    def gray_part(self, image: "Image", encode: Encoder = pixels.png) -> str:
        """As `gray`, the magnified part alone."""
        return self.gray(self._cut(image), encode)

    def difference_part(self, difference: "Image", encode: Encoder = pixels.png, colours: int = 256) -> str:
        """The part of a difference (H, W, gray levels) in so many colours from blue, below, to red, above."""
        from matplotlib import colormaps

        placed = np.clip(self._cut(difference) / self.reach, -1, 1) / 2 + 0.5
        if colours < 256:
            placed = np.rint(placed * (colours - 1)) / (colours - 1)
        return encode(np.ascontiguousarray(colormaps[figures.DIVERGING](placed, bytes=True)[..., :3]))

    def _cut(self, image: "Image") -> "Image":
        left, top, side = self.frame
        return image[top : top + side, left : left + side]


def view_of(base: "Image", most: int | None = None) -> View:
    """The view of a case that shows most of its reference, or input, (H, W); most: px that the part's side may have."""
    low, high = np.percentile(base, (0.3, 99.7))
    side = max(16, min(base.shape) // 5)
    side = side if most is None else min(side, most)
    top, left = figures.zoom_window(base, side)
    return View((float(low), max(float(high), float(low) + 1e-6)), figures.difference_reach(base), (left, top, side))


def difference(image: "Image", reference: "Image") -> "Image":
    """The image less the reference after one gain and offset; less it as it is where none can be found."""
    matched: NDArray[Any] = image
    with suppress(UndefinedError):
        matched = apply_match(match(reference, image), image)
    return np.asarray(matched - reference, np.float32)


@dataclass(frozen=True)
class Shot:
    """One image of the first case: a line below its name; the whole and a magnified part, as addresses that hold them.

    size: width and height of the image (px); frame: column, row and side of the part; file: the stored image, relative
    to the run folder, empty where there is none; difference: the part less the reference's, empty likewise.
    """

    name: str
    caption: str
    whole: str
    part: str
    size: tuple[int, int]
    frame: tuple[int, int, int]
    file: str = ""
    difference: str = ""


@dataclass(frozen=True)
class EdgeShot:
    """A window of one image with the edges found in it: kind (left, right, lost) and SVG path of each piece.

    side: of the window (px); refusal: why nothing was measured, else empty.
    """

    name: str
    caption: str
    window: str
    side: int
    paths: tuple[tuple[str, str], ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure that stands in a file of the run folder: its path there, what it is, and what it shows."""

    file: str
    title: str
    told: str


@dataclass
class Pictures:
    """Everything that is shown of a run.

    case: the one whose images are shown; part: which part of it is magnified; levels: the image whose gray range is
    shown in all; reach: gray levels at which a difference is shown in full colour.
    """

    case: str = ""
    part: str = ""
    levels: str = "reference"
    reach: float = 0.0
    shots: list[Shot] = field(default_factory=list)
    edges: list[EdgeShot] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)


def draw(plan: RunPlan, summary: Sequence[SummaryRow], records: Sequence[Record], name: str) -> Pictures:
    """Draw all figures of a run into its folder; name: of the primary metric."""
    shown = Pictures()
    if plan.protocol.scope == "set":
        shown.drawings += _clusters(plan, records, name)
        return shown
    _intervals(plan, summary, name)
    _first_case(plan, summary, records, name, shown)
    if "cd_bias" in plan.metrics:
        shown.drawings += _bias(plan, summary, records)
    return shown


def _label(name: str) -> str:
    metric = plugin(METRICS, name).load()
    return f"{metric.title} ({metric.unit})" if metric.unit else str(metric.title)


def _where(plan: RunPlan) -> str:
    return f"{plan.protocol.name} on {plan.cases.data}"


def _intervals(plan: RunPlan, summary: Sequence[SummaryRow], name: str) -> None:
    rows, controls, labels = [], {}, row_labels(plan.rows)
    for line in summary:
        interval = line.metrics[name]
        if interval is None:
            continue
        if line.row.kind == "control":
            if line.row.name != "oracle":
                controls[labels[line.row.row_id]] = interval.mean
        else:
            rows.append((labels[line.row.row_id], interval.mean, interval.low, interval.high))
    if rows:
        path = plan.folder / "figures" / f"{name}.png"
        figures.intervals(path, f"{_where(plan)}: mean and 95 % interval", _label(name), rows, controls)


def _first_case(
    plan: RunPlan, summary: Sequence[SummaryRow], records: Sequence[Record], name: str, shown: Pictures
) -> None:
    """Input, restored images and reference of the first case, and how lines were measured on them."""
    spec = plan.cases.specs[0]
    solved = {r["row"]: r for r in records if r["case"] == spec.case_id and r["status"] == "ok"}
    if not solved:
        return
    case = spec.make(plan.protocol)
    unit = plugin(METRICS, name).load().unit
    images, captions, stored = {"input": case.degraded}, {}, {}
    labels = row_labels(plan.rows)
    for line in summary:
        record = solved.get(line.row.row_id)
        if record is None or not (plan.folder / record["image"]).is_file():
            continue
        label = labels[line.row.row_id]
        images[label] = read_grid_png(plan.folder / record["image"])
        stored[label] = record["image"]
        value = record["metrics"].get(name)
        captions[label] = "" if value is None else f"{value:.2f} {unit}".rstrip()
    if case.reference is not None:
        images["reference"] = case.reference
    base = case.degraded if case.reference is None else case.reference
    title = f"{_where(plan)}, case {spec.case_id}"
    path = plan.folder / "figures" / "panel.png"
    differences = {}
    if case.reference is not None:
        restored = {name: image for name, image in images.items() if image is not case.reference}
        differences = {name: difference(image, case.reference) for name, image in restored.items()}
    told = f"; under each name: {_label(name)}" if any(captions.values()) else ""
    figures.panel(path, f"{title}{told}", images, captions, base, differences)
    shown.case = spec.case_id
    shown.levels = "input" if case.reference is None else "reference"
    if case.reference is not None:
        images.pop("oracle", None)
        images = {"input": images["input"], "reference": images["reference"], **images}
    _shots(images, captions, stored, base, differences, shown)
    if "cd_bias" in plan.metrics:
        _lines(plan.folder / "figures", title, images, base, case, shown)


def _shots(
    images: "Mapping[str, Image]",
    captions: Mapping[str, str],
    stored: Mapping[str, str],
    base: "Image",
    differences: "Mapping[str, Image]",
    shown: Pictures,
) -> None:
    view = view_of(base)
    shown.reach, shown.part = view.reach, view.part
    height, width = base.shape
    shown.shots = [
        Shot(
            name,
            captions.get(name, ""),
            view.gray(_reduced(image)),
            view.gray_part(image),
            (width, height),
            view.frame,
            stored.get(name, ""),
            view.difference_part(differences[name]) if name in differences else "",
        )
        for name, image in images.items()
    ]


def _reduced(image: "Image") -> "Image":
    """The image, in a size for the page: each pixel the mean of the field that it stands for."""
    from PIL import Image as Pillow

    height, width = image.shape
    factor = max(height, width) / _PAGE_SIDE
    if factor <= 1:
        return image
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return np.asarray(Pillow.fromarray(image).resize(size, Pillow.Resampling.BOX), np.float32)


def _lines(folder: Path, title: str, images: "Mapping[str, Image]", base: "Image", case: Case, shown: Pictures) -> None:
    """Edges found in each image side by side, and their spectra over each other."""
    from sembench.metrology.lines import measure_lines
    from sembench.metrology.refusal import MeasurementRefused

    size = case.pixel_size_nm
    found: dict[str, LineMeasurement] = {}
    measurements: dict[str, LineMeasurement | str] = {}
    for name, image in images.items():
        try:
            measurements[name] = found[name] = measure_lines(image)
        except MeasurementRefused as refusal:
            measurements[name] = str(refusal)
    figures.overlays_side_by_side(folder / "lines.png", title, images, measurements, base, size)
    pitch = next((measurement.pitch for measurement in found.values()), None)
    view = view_of(base)
    shown.edges = [_edge_shot(name, image, measurements[name], pitch, view, size) for name, image in images.items()]
    if "reference" in found:
        spectra = {name: measurement.width_spectrum for name, measurement in found.items()}
        vertical = found["reference"].orientation == "vertical"
        scale = (1.0, 1.0, "px") if size is None else (*(size if vertical else size[::-1]), "nm")
        models = {name: found[name].width_model for name in ("input", "reference") if name in found}
        figures.psd_comparison(
            folder / "psd.png",
            f"{title}: PSD of line widths; dashed: fitted model, dotted: noise floor",
            spectra,
            "reference",
            scale,
            {name: model for name, model in models.items() if model is not None},
        )
        told = (
            "Power spectral density of the line widths in each image, the reference in black. Dashed: the model fitted "
            "to input and reference, dotted: its noise floor."
        )
        shown.drawings.append(Drawing("figures/psd.png", "Spectra of the line widths", told))


def _edge_shot(
    name: str,
    image: "Image",
    measurement: "LineMeasurement | str",
    pitch: float | None,
    view: View,
    size: tuple[float, float] | None,
) -> EdgeShot:
    height, width = image.shape
    side = min(height, width, 96 if pitch is None else int(max(64, min(128, 4 * pitch))))
    left, top = (width - side) // 2, (height - side) // 2
    window = view.gray(image[top : top + side, left : left + side])
    if isinstance(measurement, str):
        return EdgeShot(name, "not measured", window, side, refusal=measurement)
    vertical = measurement.orientation == "vertical"
    scale, unit = (1.0, "px") if size is None else (size[0] if vertical else size[1], "nm")
    caption = f"CD {fixed(measurement.cd_mean * scale, 2)} {unit}, LWR {fixed(measurement.lwr * scale, 2)} {unit}"
    return EdgeShot(name, caption, window, side, tuple(_edge_paths(measurement, left, top, side)))


def _edge_paths(measurement: "LineMeasurement", left: int, top: int, side: int) -> list[tuple[str, str]]:
    """The edges inside a window, as SVG paths in its px; lost stretches apart."""
    first, offset = (top, left) if measurement.orientation == "vertical" else (left, top)
    rows = np.flatnonzero((measurement.edge_rows >= first) & (measurement.edge_rows < first + side))
    paths = []
    for edge in range(measurement.edges):
        across = measurement.edge_positions[rows, edge] - offset + 0.5
        if not ((across > 0) & (across < side)).any():
            continue
        along = measurement.edge_rows[rows] - first + 0.5
        lost = measurement.lost[rows, edge]
        beside = lost | np.r_[lost[1:], False] | np.r_[False, lost[:-1]]
        for kind, kept in (("right" if edge % 2 else "left", ~lost), ("lost", beside)):
            path = _path(across, along, kept, measurement.orientation == "vertical")
            if path:
                paths.append((kind, path))
    return paths


def _path(across: "NDArray[np.float64]", along: "NDArray[np.float64]", kept: "NDArray[np.bool_]", upright: bool) -> str:
    """The kept stretches of a curve as one SVG path."""
    pieces, drawing = [], False
    for a, b, keep in zip(across, along, kept, strict=True):
        if keep and math.isfinite(a):
            x, y = (a, b) if upright else (b, a)
            pieces.append(f"{'L' if drawing else 'M'}{x:.2f} {y:.2f}")
            drawing = True
        else:
            drawing = False
    return "".join(pieces)


def _clusters(plan: RunPlan, records: Sequence[Record], name: str) -> list[Drawing]:
    """Each restorer's embeddings laid out in a plane, coloured by cluster, with example tiles."""
    from sembench.metrics import clustering

    specs = {spec.case_id: spec for spec in plan.cases.specs if isinstance(spec, TileSetSpec)}
    named = row_labels(plan.rows)
    drawn = []
    for record in records:
        if record["status"] != "ok" or not (plan.folder / record["embeddings"]).is_file():
            continue
        spec = specs[record["case"]]
        vectors = clustering.normalised(load(plan.folder / record["embeddings"], record["embeddings_sha256"]))
        labels = clustering.clusters(vectors, seed=0)
        chosen = {number: _examples(vectors, labels == number, spec.groups) for number in range(clustering.CLUSTERS)}
        pixels = dict(spec.only([index for indices in chosen.values() for index in indices]).images(plan.protocol))
        shown = [
            figures.ClusterExamples(
                number, _told(spec.groups, labels == number), [pixels[spec.tiles[index].case_id] for index in indices]
            )
            for number, indices in chosen.items()
        ]
        label = named[record["row"]]
        title = f"{_where(plan)}, {label}: {name} {record['metrics'][name]:.3f}"
        note = "t-SNE of the cosine distances: what lies near is alike, how far apart means little; KMeans, first seed"
        file = f"figures/clusters-{record['row']}.png"
        figures.cluster_map(plan.folder / file, title, note, clustering.projected(vectors), labels, shown)
        told = "Embeddings in a plane, coloured by cluster; beside them the tiles nearest to each cluster's middle."
        drawn.append(Drawing(file, f"Clusters of {label}", told))
    return drawn


def _examples(vectors: "NDArray[np.float64]", own: "NDArray[np.bool_]", groups: Sequence[str]) -> list[int]:
    """The tiles nearest to a cluster's middle, as far as there are of different groups."""
    inside = np.flatnonzero(own)
    nearest = inside[np.argsort(-vectors[inside] @ vectors[inside].mean(axis=0), kind="stable")]
    seen = [groups[index] for index in nearest]
    first = [index for place, index in enumerate(nearest) if groups[index] not in seen[:place]]
    rest = [index for index in nearest if index not in first]
    return sorted(int(index) for index in (first + rest)[:EXAMPLES])


def _told(groups: Sequence[str], own: "NDArray[np.bool_]") -> str:
    """How many tiles of how many groups a cluster has, and its largest group."""
    counts = Counter(group for group, inside in zip(groups, own, strict=True) if inside)
    group, most = counts.most_common(1)[0]
    return f"{own.sum()} tiles, {len(counts)} groups, {most / own.sum():.0%} {group}"


def _bias(plan: RunPlan, summary: Sequence[SummaryRow], records: Sequence[Record]) -> list[Drawing]:
    series, labels = {}, row_labels(plan.rows)
    for line in summary:
        if line.row.name == "oracle":
            continue
        values = [r["metrics"] for r in records if r["row"] == line.row.row_id and r["status"] == "ok"]
        pairs = {}
        for what, name in (("CD (px)", "cd"), ("LWR (px)", "lwr")):
            found = [(v.get(f"{name}_measured"), v.get(f"{name}_bias")) for v in values]
            both = [(restored, bias) for restored, bias in found if restored is not None and bias is not None]
            pairs[what] = ([restored - bias for restored, bias in both], [restored for restored, _ in both])
        if all(restored for _, restored in pairs.values()):
            series[labels[line.row.row_id]] = pairs
    if not series:
        return []
    path = plan.folder / "figures" / "bias.png"
    figures.bias_panels(path, f"{_where(plan)}: difference to the reference", series)
    told = (
        "CD and LWR of the restored images less those of the reference, against the reference's, a point a case. "
        "Solid: the mean, dashed: limits of agreement, within which 95 % of cases are expected; triangles: beyond "
        "the scale."
    )
    return [Drawing("figures/bias.png", "Bias of CD and LWR", told)]
