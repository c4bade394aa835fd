"""Records for benchmarks/metrology.py: what was measured on each scene, less the truth of the same lines and rows."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from metrology_scenes import LineScene, contact_scene, foreign_images, line_scene, real_lines, with_noise
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from sembench.errors import SembenchError
from sembench.metrology.contacts import measure_contacts
from sembench.metrology.lines import LineMeasurement, measure_lines
from sembench.metrology.spectrum import expected_power, noise_floor, spectrum
from sembench.optics import generator

Array = NDArray[np.float64]
Record = dict[str, Any]

DUTIES = (0.5, 0.35, 0.65)
CONTRASTS = (math.inf, 8.0, 4.0, 2.7, 2.0)
FAINT = (1.5, 1.0, 0.7)
RIMS = (0.5, 1.0)
RIM_LENGTHS = (3.0, 6.0)
CONTACT_CONTRASTS = (math.inf, 8.0, 4.0)


def rms(values: Sequence[float] | Array) -> float:
    """Root mean square; infinite where nothing was seen."""
    array = np.asarray(values, np.float64)
    return float(np.sqrt(np.mean(array**2))) if array.size else math.inf


def truth_of(edges: Array) -> dict[str, float]:
    """The numbers of edges (lines, 2, rows), by the definitions of the measurement."""
    rows = edges.shape[2]
    heights = np.arange(rows) - (rows - 1) / 2
    slope = float((edges @ heights).mean() / (heights @ heights))
    cosine = math.cos(math.atan(slope))
    widths = (edges[:, 1] - edges[:, 0]) * cosine
    upright = (edges - slope * heights) * cosine
    return {
        "cd": float(widths.mean()),
        "pitch": float(np.diff(edges.mean(axis=2), axis=0).mean() * cosine),
        "lwr": 3 * float(np.sqrt(np.mean((widths - widths.mean(axis=1, keepdims=True)) ** 2))),
        "ler": 3 * float(np.sqrt(np.mean((upright - upright.mean(axis=2, keepdims=True)) ** 2))),
        "tilt": math.degrees(math.atan(slope)),
    }


def matched(edges: Array, found: LineMeasurement) -> Array:
    """The true edges (lines, 2, rows) of the lines and rows that were measured, by position."""
    rows = np.rint(found.edge_rows).astype(int)
    centres = edges[:, :, rows].mean(axis=(1, 2))
    measured = found.edge_positions.mean(axis=0).reshape(-1, 2).mean(axis=1)
    nearest = np.abs(measured[:, None] - centres).argmin(axis=1)
    if np.abs(measured - centres[nearest]).max() > found.pitch / 4 or len(set(nearest)) < len(nearest):
        raise SystemExit("a measured line lies on no true line: the benchmark cannot compare them")
    return edges[nearest][:, :, rows]


def compare(scene: LineScene, found: LineMeasurement) -> Record:
    """Errors of one measurement: lengths in px, roughness in %, the model against what the edges were drawn from."""
    true_edges = matched(scene.edges, found)
    truth = truth_of(true_edges)
    rows = true_edges.shape[2]
    apart = found.edge_positions - true_edges.reshape(-1, rows).T
    for side in (0, 1):
        apart[:, side::2] -= apart[:, side::2].mean()
    drawn = scene.drawn

    def percent(value: float | None, name: str) -> float | None:
        return None if value is None else 100 * (value / truth[name] - 1)

    floor = max(found.lwr**2 - 9 * noise_floor(found.width_spectrum), 0) ** 0.5
    record: Record = {
        "lines": found.lines,
        "cd": found.cd_mean - truth["cd"],
        "edge_rms": rms(apart.ravel()),
        "cd_error": math.sqrt(2 / (rows * found.lines)) * rms(apart.ravel()),
        "edge_noise": found.edge_noise,
        "lwr_raw": percent(found.lwr, "lwr"),
        "lwr_floor": percent(floor, "lwr"),
        "lwr": percent(found.lwr_unbiased, "lwr"),
        "ler_raw": percent(found.ler, "ler"),
        "ler": percent(found.ler_unbiased, "ler"),
        "pitch": found.pitch - truth["pitch"],
        "tilt": found.tilt_deg - truth["tilt"],
        "lost": found.lost_fraction,
        "contrast_seen": found.contrast_to_noise,
        "flags": list(found.flags),
        "scene": {"pitch": drawn["pitch"], "blur": drawn["edge_sigma"], "sigma": drawn["sigma"], "xi": drawn["xi"]},
    }
    record["scene"]["hurst"] = drawn["hurst"]
    for name, value in attainable(drawn, record["edge_rms"], rows, found.edges).items():
        record[f"{name}_attainable"] = value
    for name, model, scale in (("edge", found.model, 1.0), ("width", found.width_model, math.sqrt(2))):
        if model is not None and math.isfinite(model.xi):
            record[f"{name}_sigma"] = 100 * (model.sigma / (scale * drawn["sigma"]) - 1)
            record[f"{name}_xi"] = 100 * (model.xi / drawn["xi"] - 1)
            record[f"{name}_hurst"] = model.hurst - drawn["hurst"]
    return record


def attainable(drawn: Record, noise: float, rows: int, curves: int) -> dict[str, float]:
    """Median error that no unbiased estimate from so many edges can beat: the Cramer-Rao bound of the Whittle model."""
    truth = np.array([math.log(drawn["sigma"]), math.log(drawn["xi"]), drawn["hurst"], math.log(max(noise, 1e-3))])

    def logarithm(theta: Array) -> Array:
        sigma, xi, edge_noise = np.exp(theta[[0, 1, 3]])
        return np.log(expected_power(rows, sigma, xi, theta[2], edge_noise**2)[1:])

    step = 1e-4
    slopes = np.array([(logarithm(truth + d) - logarithm(truth - d)) / (2 * step) for d in step * np.eye(4)])
    errors = 0.6745 * np.sqrt(np.diag(np.linalg.inv(curves * slopes @ slopes.T)))
    return {"sigma": 100 * float(errors[0]), "xi": 100 * float(errors[1]), "hurst": float(errors[2])}


def line_record(scene: LineScene, image: Array, label: Record, level: str = "plateau") -> Record:
    """The errors of one image, or why it was refused, with its label."""
    started = time.perf_counter()
    try:
        found = measure_lines(image, level=level)
    except SembenchError as error:
        return {**label, "refused": str(error), "pitch_drawn": scene.drawn["pitch"]}
    seconds = time.perf_counter() - started
    return {**label, "refused": None, "seconds": seconds, **compare(scene, found)}


def white_unit(seed: int, duty: float, index: int) -> list[Record]:
    """One scene without noise and at four contrast-to-noise ratios."""
    scene = line_scene(seed, duty, index)
    return [
        line_record(
            scene,
            with_noise(scene, contrast, generator(seed, f"white-{duty}-{index}-{contrast}")),
            {"group": "white", "duty": duty, "index": index, "C": contrast},
        )
        for contrast in CONTRASTS
    ]


def correlated_unit(seed: int, index: int) -> list[Record]:
    """One scene with noise that a Gaussian of 1 px smoothed across the lines."""
    scene = line_scene(seed, 0.5, index)
    return [
        line_record(
            scene,
            with_noise(scene, contrast, generator(seed, f"correlated-{index}-{contrast}"), correlation=1.0),
            {"group": "correlated", "index": index, "C": contrast},
        )
        for contrast in CONTRASTS[1:]
    ]


def faint_unit(seed: int, index: int) -> list[Record]:
    """One scene where the noise is above the contrast at which roughness can be had."""
    scene = line_scene(seed, 0.5, index)
    return [
        line_record(
            scene,
            with_noise(scene, contrast, generator(seed, f"faint-{index}-{contrast}")),
            {"group": "faint", "index": index, "C": contrast},
        )
        for contrast in FAINT
    ]


def rims_unit(seed: int, index: int) -> list[Record]:
    """One scene with bright rims, by two definitions of the edge."""
    records = []
    for rim in RIMS:
        for length in RIM_LENGTHS:
            scene = line_scene(seed, 0.5, index, rim, length)
            for contrast in (math.inf, 4.0):
                image = with_noise(scene, contrast, generator(seed, f"rims-{rim}-{length}-{index}-{contrast}"))
                label = {"group": "rims", "rim": rim, "length": length, "index": index, "C": contrast}
                records += [line_record(scene, image, {**label, "level": level}, level) for level in ("plateau", "rim")]
    return records


def contacts_unit(seed: int, index: int) -> list[Record]:
    """One array of holes or pillars, measured against the contacts that lie at the same places."""
    image, truth, step = contact_scene(seed, index)
    polarity = "bright" if truth["pillars"] else "dark"
    true = [one for one in truth["contacts"] if one["complete"]]
    places = np.array([[one["x_px"], one["y_px"]] for one in true])
    records = []
    for contrast in CONTACT_CONTRASTS:
        label: Record = {"group": "contacts", "index": index, "C": contrast, "pillars": truth["pillars"]}
        noise = 0.0 if math.isinf(contrast) else step / contrast
        rng = generator(seed, f"contacts-{index}-{contrast}")
        started = time.perf_counter()
        try:
            found = measure_contacts(image + noise * rng.standard_normal(image.shape), polarity=polarity)
        except SembenchError as error:
            records.append({**label, "refused": str(error)})
            continue
        seconds = time.perf_counter() - started
        distance = np.hypot(*(places[:, None] - [[one.x, one.y] for one in found.contacts]).transpose(2, 0, 1))
        nearest = distance.argmin(axis=0)
        near = distance.min(axis=0) < 3
        diameters = np.array([one.diameter for one in found.contacts])
        expected = np.array([true[at]["diameter_px"] for at in nearest])
        axes = [
            np.mean(
                [getattr(one, name) - true[at][f"{name}_px"] for one, at in zip(found.contacts, nearest, strict=True)]
            )
            for name in ("cd_x", "cd_y")
        ]
        roughness = 3 * rms([true[at]["roughness_px"] / 3 for at in nearest])
        records.append(
            {
                **label,
                "refused": None,
                "seconds": seconds,
                "pitch_drawn": truth["pitch_px"],
                "count": found.count,
                "complete": len(true),
                "strange": int((~near).sum()),
                "diameter": float((diameters - expected)[near].mean()),
                "diameter_rms": rms((diameters - expected)[near]),
                "cd_x": float(axes[0]),
                "cd_y": float(axes[1]),
                "lcdu_raw": 100 * (found.lcdu / (3 * float(expected.std(ddof=1))) - 1),
                "lcdu": 100 * (found.lcdu_unbiased / (3 * float(expected.std(ddof=1))) - 1),
                "cer_raw": 100 * (found.cer / roughness - 1),
                "cer": 100 * (found.cer_unbiased / roughness - 1),
                "flags": list(found.flags),
            }
        )
    return records


def refusals_unit(seed: int) -> list[Record]:
    """Every image that shows no measurable lines: the reason, or the numbers that should not be."""
    records = []
    for name, image in foreign_images(seed):
        started = time.perf_counter()
        record: Record = {"group": "refusals", "name": name}
        try:
            found = measure_lines(image)
            record |= {"refused": None, "lwr": found.lwr, "pitch": found.pitch, "lines": found.lines}
        except SembenchError as error:
            record |= {"refused": str(error)}
        records.append({**record, "seconds": time.perf_counter() - started})
    return records


def real_unit() -> list[Record]:
    """The EUV lines: pitch, CD by both definitions, and the rest for the table."""
    records = []
    for name, image, nm in real_lines():
        plateau, published = measure_lines(image), measure_lines(image, level="smile2", fit=False)
        records.append(
            {
                "group": "real",
                "name": name,
                "lines": plateau.lines,
                "pitch_nm": plateau.pitch * nm,
                "cd": plateau.cd_mean,
                "cd_smile2": published.cd_mean,
                "level": published.level_fraction,
                "C": plateau.contrast_to_noise,
                "lwr_raw": plateau.lwr,
                "lwr": plateau.lwr_unbiased,
                "ler_raw": plateau.ler,
                "ler": plateau.ler_unbiased,
                "tilt": plateau.tilt_deg,
                "xi": plateau.model.xi if plateau.model else None,
                "hurst": plateau.model.hurst if plateau.model else None,
                "flags": list(plateau.flags),
            }
        )
    return records


def speed_unit() -> list[Record]:
    """benchmarks/metrology_loop.py: seconds of one measurement, and of a plain loop over rows and edges."""
    script = Path(__file__).with_name("metrology_loop.py")
    done = subprocess.run([sys.executable, str(script), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr}")
    return [{"group": "speed", **json.loads(done.stdout.strip().splitlines()[-1])}]


def numbers_of(found: LineMeasurement) -> dict[str, float]:
    """What should not depend on how an image is held."""
    values = {
        name: getattr(found, name)
        for name in ("pitch", "cd_mean", "cd_std", "lwr", "ler", "lwr_unbiased", "ler_unbiased", "lwr_se", "edge_noise")
    }
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def properties_unit(seed: int, index: int) -> list[Record]:
    """What must hold on any image: Parseval, invariance, white edges."""
    scene = line_scene(seed, DUTIES[index % 3], index)
    image = with_noise(scene, 4.0, generator(seed, f"properties-{index}"))
    found = measure_lines(image)
    base = numbers_of(found)

    def change(other: Array) -> float:
        held = numbers_of(measure_lines(other))
        return max(abs(held[name] / base[name] - 1) for name in base)

    half = measure_lines(image[:, : image.shape[1] // 2] if scene.transposed else image[: image.shape[0] // 2])
    rng = generator(seed, f"properties-{index}-edges")
    left, right = 0.7 * rng.standard_normal((2, 1024, 40))
    widths = spectrum(right - left)
    return [
        {
            "group": "properties",
            "index": index,
            "parseval": max(
                abs(9 * float(s.power.sum()) * s.df / value**2 - 1)
                for s, value in ((found.width_spectrum, found.lwr), (found.edge_spectrum, found.ler))
            ),
            "turned": change(np.rot90(image)),
            "mirrored": change(image[:, ::-1]),
            "flipped": change(image[::-1]),
            "scaled": change(0.4 * image + 31),
            "half": abs(half.lwr - found.lwr) / (half.lwr_se**2 + found.lwr_se**2) ** 0.5,
            "white_edges": abs(widths.variance / (2 * 0.49) - 1) / math.sqrt(2 / (1024 * 40)),
        }
    ]


Unit = tuple[str, tuple[Any, ...]]
UNITS: dict[str, Callable[..., list[Record]]] = {
    "white": white_unit,
    "correlated": correlated_unit,
    "faint": faint_unit,
    "rims": rims_unit,
    "contacts": contacts_unit,
    "properties": properties_unit,
    "refusals": refusals_unit,
    "real": real_unit,
    "speed": speed_unit,
}


def units_of(group: str, seed: int, scenes: int) -> Iterator[Unit]:
    """The pieces of work behind a group of rows."""
    if group == "white":
        yield from ((group, (seed, duty, index)) for duty in DUTIES for index in range(scenes))
    elif group in ("correlated", "faint", "rims", "contacts"):
        yield from ((group, (seed, index)) for index in range(scenes))
    elif group == "properties":
        yield from ((group, (seed, index)) for index in range(4))
    elif group == "refusals":
        yield (group, (seed,))
    else:
        yield (group, ())


def work(unit: Unit) -> list[Record]:
    """The records of one unit."""
    with threadpool_limits(1):
        return UNITS[unit[0]](*unit[1])


def collect(units: Sequence[Unit], workers: int, keep: Path | None) -> list[Record]:
    """All records; those of units in the kept file are taken from there, the others added to it."""
    known: dict[str, list[Record]] = {}
    if keep is not None and keep.exists():
        for line in keep.read_text(encoding="utf-8").splitlines():
            kept = json.loads(line)
            known[json.dumps(kept["unit"])] = kept["records"]
    missing = [unit for unit in units if json.dumps(unit) not in known]
    for done, (unit, records) in enumerate(_run(missing, workers), 1):
        known[json.dumps(unit)] = records
        print(f"\r{done} of {len(missing)}: {unit[0]:12}", end="", file=sys.stderr, flush=True)
        if keep is not None:
            with keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"unit": unit, "records": records}) + "\n")
    if missing:
        print(file=sys.stderr)
    return [record for unit in units for record in known[json.dumps(unit)]]


def _run(units: Sequence[Unit], workers: int) -> Iterator[tuple[Unit, list[Record]]]:
    if workers == 1:
        yield from ((unit, work(unit)) for unit in units)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from zip(units, pool.map(work, units), strict=True)
