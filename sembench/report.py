"""What a run folder shows beside its records: tables and figures, always remade from them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sembench import figures, results
from sembench.cases import TileSetSpec
from sembench.execution.embed import load
from sembench.execution.records import Record
from sembench.execution.run import RunPlan
from sembench.micrograph import read_grid_png
from sembench.registry import METRICS, plugin
from sembench.results import SummaryRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sembench.metrology.lines import LineMeasurement
    from sembench.restorer import Image

EXAMPLES = 4
"""Tiles shown of a cluster."""


def write_derived(plan: RunPlan, records: list[Record]) -> list[SummaryRow]:
    """Remake every file of the run folder that follows from its records; returns the summary in table order."""
    primary_name = plan.protocol.metrics.primary
    if primary_name not in plan.metrics:
        primary_name = plan.metrics[0]
    primary = plugin(METRICS, primary_name).load()
    summary = results.ordered(results.summarise(plan.rows, records, plan.metrics), primary)
    results.write_cases(plan.folder / "cases.csv", plan.rows, records, plan.metrics)
    results.write_summary(plan.folder / "summary.csv", summary, plan.metrics)
    for stratum in results.strata(records):
        part = results.summarise(plan.rows, results.in_stratum(records, stratum), plan.metrics)
        results.write_summary(plan.folder / f"summary-{stratum}.csv", results.ordered(part, primary), plan.metrics)
    if plan.protocol.scope == "set":
        _draw_clusters(plan, records, primary_name)
        return summary
    _draw_intervals(plan, summary, primary_name)
    _draw_first_case(plan, summary, records, primary_name)
    if "cd_bias" in plan.metrics:
        _draw_bias(plan, summary, records)
    return summary


def _label(name: str) -> str:
    metric = plugin(METRICS, name).load()
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title


def _where(plan: RunPlan) -> str:
    return f"{plan.protocol.name} on {plan.cases.data}"


def _draw_intervals(plan: RunPlan, summary: list[SummaryRow], name: str) -> None:
    rows, controls = [], {}
    for line in summary:
        interval = line.metrics[name]
        if interval is None:
            continue
        if line.row.kind == "control":
            if line.row.name != "oracle":
                controls[line.row.name] = interval.mean
        else:
            rows.append((line.row.name, interval.mean, interval.low, interval.high))
    if rows:
        path = plan.folder / "figures" / f"{name}.png"
        figures.intervals(path, f"{_where(plan)}: mean and 95 % interval", _label(name), rows, controls)


def _draw_first_case(plan: RunPlan, summary: list[SummaryRow], records: list[Record], name: str) -> None:
    """Input, restored images and reference of the first case, and how lines were measured on them."""
    spec = plan.cases.specs[0]
    solved = {r["row"]: r for r in records if r["case"] == spec.case_id and r["status"] == "ok"}
    if not solved:
        return
    case = spec.make(plan.protocol)
    unit = plugin(METRICS, name).load().unit
    images, captions = {}, {}
    if not any(line.row.name == "input" for line in summary):
        images["input"] = case.degraded
    for line in sorted(summary, key=lambda line: line.row.name != "input"):
        record = solved.get(line.row.row_id)
        if record is None:
            continue
        images[line.row.name] = read_grid_png(plan.folder / record["image"])
        value = record["metrics"].get(name)
        captions[line.row.name] = "" if value is None else f"{value:.2f} {unit}".rstrip()
    shown = case.degraded if case.reference is None else case.reference
    if case.reference is not None:
        images["reference"] = case.reference
    title = f"{_where(plan)}, case {spec.case_id}"
    path = plan.folder / "figures" / "panel.png"
    figures.panel(path, f"{title}; under each name: {_label(name)}", images, captions, shown)
    if "cd_bias" in plan.metrics:
        images.pop("oracle", None)
        _draw_lines(plan.folder / "figures", title, images, shown, case.pixel_size_nm)


def _draw_clusters(plan: RunPlan, records: list[Record], name: str) -> None:
    """Each restorer's embeddings laid out in a plane, coloured by cluster, with example tiles."""
    from sembench.metrics import clustering

    specs = {spec.case_id: spec for spec in plan.cases.specs if isinstance(spec, TileSetSpec)}
    for record in records:
        if record["status"] != "ok":
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
        title = f"{_where(plan)}, {record['restorer']}: {name} {record['metrics'][name]:.3f}"
        note = "t-SNE of the cosine distances: what lies near is alike, how far apart means little; KMeans, first seed"
        path = plan.folder / "figures" / f"clusters-{record['row']}.png"
        figures.cluster_map(path, title, note, clustering.projected(vectors), labels, shown)


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


def _draw_lines(
    folder: Path, title: str, images: "Mapping[str, Image]", shown: "Image", size: tuple[float, float] | None
) -> None:
    """Edges found in each image side by side, and their spectra over each other."""
    from sembench.metrology.lines import measure_lines
    from sembench.metrology.refusal import MeasurementRefused

    found: dict[str, LineMeasurement] = {}
    measurements: dict[str, LineMeasurement | str] = {}
    for name, image in images.items():
        try:
            measurements[name] = found[name] = measure_lines(image)
        except MeasurementRefused as refusal:
            measurements[name] = str(refusal)
    figures.overlays_side_by_side(folder / "lines.png", title, images, measurements, shown, size)
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


def _draw_bias(plan: RunPlan, summary: list[SummaryRow], records: list[Record]) -> None:
    series = {}
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
            series[line.row.name] = pairs
    if series:
        path = plan.folder / "figures" / "bias.png"
        figures.bias_panels(path, f"{_where(plan)}: difference to the reference", series)
