"""Small things to run on: a protocol, images, a folder of pairs, a plugin, and the records of a run folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from sembench import micrograph, phantom
from sembench.restorer import Image

ROUND = {"rx": 2.0, "ry": 2.0}
"""A blur that is the same in every direction and in every case."""
LEARNING = {"fields": "s2s_fields", "training_fields": "train_fields"}
"""Names of lists, for the part data: evaluation fields, training images."""


def _keys(values: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def protocol_text(
    *,
    metrics: Sequence[str] = ("psnr", "ssim"),
    data: Mapping[str, Any] = {},
    fixed: Mapping[str, float] = ROUND,
    **head: Any,
) -> str:
    """A protocol of cases of 192 px whose primary metric is psnr.

    data: further keys of that part; fixed: parameters of the degradation that are not drawn; head: keys that stand
    before the parts, such as seed.
    """
    head = {"name": "small", "version": 1, "title": "Small cases", "question": "Does the bench run?", "seed": 7, **head}
    parts = {
        "data": {"set": "semcorpus", "size": 192, **data},
        "degradation": {"name": "paper"},
        "degradation.fixed": fixed,
        "metrics": {"primary": "psnr", "names": metrics},
    }
    return "\n".join([_keys(head), *(f"[{part}]\n{_keys(values)}" for part, values in parts.items())])


def protocol_file(folder: Path, **told: Any) -> Path:
    """Write that protocol as small.toml into a folder; told: as for its text."""
    file = folder / "small.toml"
    file.write_text(protocol_text(**told))
    return file


SMALL_MODEL = """\
image_size = 32
dim = 16
depth = 2
heads = 2
decoder_dim = 16
decoder_depth = 1
decoder_heads = 2"""
"""Sizes of a masked autoencoder in a recipe, all but its patch."""


def texture(height: int, width: int, seed: int = 0) -> Image:
    """Smooth blobs, (height, width) float32, mean 120, standard deviation 40, gray 0..255."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), 3)
    return np.clip(120 + 40 * field / field.std(), 0, 255).astype(np.float32)


def scene(number: int, side: int = 256) -> Image:
    """A simulated scene, (side, side)."""
    return phantom.corpus_scene(5, f"P{number:03d}", side).image


def pair_folder(
    folder: Path,
    names: Iterable[str] = ("a", "b"),
    *,
    prefix: str = "",
    blur: float = 0.6,
    offset: float = 0.0,
    gain: float = 1.0,
) -> Path:
    """Write a folder of pairs: inputs are scenes blurred, moved by 1.4 px and noisy, references offset + gain * scene.

    prefix: what goes before the names of the references.
    """
    rng = np.random.default_rng(0)
    for number, name in enumerate(names, 3):
        whole = scene(number)
        moved = shift(gaussian_filter(whole, blur), (0.0, 1.4), order=3, mode="nearest")
        micrograph.write(folder / "input" / f"{name}.tif", np.clip(moved + rng.normal(0, 8, moved.shape), 0, 255))
        micrograph.write(folder / "reference" / f"{prefix}{name}.tif", offset + gain * whole)
    return folder


def install_plugin(site: Path, distribution: str, restorers: Mapping[str, str]) -> None:
    """Make a folder tell of an installed distribution; restorers: name -> target."""
    information = site / f"{distribution}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    entries = "".join(f"{name} = {target}\n" for name, target in restorers.items())
    (information / "entry_points.txt").write_text(f"[sembench.restorers]\n{entries}")


def records_of(run: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    """The records of a run folder, in the order of their lines."""
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def write_records(run: Path, records: Iterable[Mapping[str, Any]], name: str = "records.jsonl") -> None:
    """Let these be the records of a run folder, written as a run writes them."""
    (run / name).write_text("".join(json.dumps(record, sort_keys=True) + "\n" for record in records))
