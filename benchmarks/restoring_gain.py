"""What networks gain over the blind spectral estimate on patches of the images that pretraining validates by.

    python benchmarks/restoring_gain.py NAME=WEIGHTS.json|NAME=STATE.safetensors ... [--against NAME]

WEIGHTS.json: best.json of a run of restoring, not adapted; STATE.safetensors: a fitted state of semfm, semfm_no_encoder
or vit_mae_sem, its description beside it. Six patches of each of the images, degraded once as `paper` and once as
`broad`; gain: dB of squared error below that of the estimate, mean over patches with the interval over groups (there
are four, so it is wide). A state counts for the degradation that it was fitted for.
Prints a Markdown table.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders import cell
from numpy.typing import NDArray

from restorers.fitting import load
from restorers.semfm.adaptation import PathNetwork, TokenPathNetwork
from restorers.semfm.packing import VALIDATION, pack
from restorers.semfm.restoring import PATH
from restorers.semfm.spectral import patch_arrays, patch_arrays_of_scans
from restorers.semfm.storage import load_model, load_part
from sembench.errors import InputError, SembenchError
from sembench.optics import DEGRADATIONS
from sembench.registry import find_method
from sembench.restorer import Budget, TrainingSet
from sembench.statistics import mean_interval

PATCHES = 6
SEED = 77
Network = torch.nn.Module
Batch = dict[str, torch.Tensor]


def patches(degradation: str) -> tuple[Batch, list[str]]:
    """All patches of one degradation, and the group of each."""
    found, groups = [], []
    prepare = patch_arrays if degradation == "paper" else patch_arrays_of_scans
    for number, image in enumerate(image for image in pack("semcorpus").images if image.split == VALIDATION):
        pixels = (image.pixels.astype(np.float32),)
        training = TrainingSet(pixels, pixels, degradation, Budget("gain", 1, PATCHES), SEED)
        found += [prepare(patch) for patch in training.batch(number)]
        groups += [image.group] * PATCHES
    return {name: torch.from_numpy(np.stack([one[name] for one in found])) for name in found[0]}, groups


def network_of(file: Path) -> tuple[Network, tuple[str, ...]]:
    """The network of a file, and the degradations that it is for."""
    if file.suffix == ".safetensors":
        return _adapted(file)
    told = json.loads(file.read_text(encoding="utf-8"))
    part: Mapping[str, Any] = told.get(PATH) or told["extra"][PATH]
    sizes, shape = (part["width"], (1, 1, part["coarse_blocks"])), {"physics": True, "rectified": part["rectified"]}
    state = load_part(file, dict(part))
    if PATH in told:
        alone = PathNetwork(*sizes, **shape)
        alone.load_state_dict(state)
        return alone, tuple(DEGRADATIONS)
    network = TokenPathNetwork(load_model(file)[0], *sizes, **shape)
    network.path.load_state_dict(state)
    return network, tuple(DEGRADATIONS)


def _adapted(file: Path) -> tuple[Network, tuple[str, ...]]:
    from safetensors.torch import load_file

    told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["identity"]
    degradation = str(told["degradation"])
    method = find_method(told["name"]).cls({**told["settings"], "degradation": degradation, "seed": told["seed"]})
    network: Network = method._new()
    load(network, load_file(file))
    return network, (degradation,)


def gains(network: Network, batch: Batch) -> NDArray[np.float64]:
    """dB of each patch."""
    error = []
    with torch.inference_mode():
        for first in range(0, len(batch["clean"]), 8):
            part = {name: value[first : first + 8] for name, value in batch.items()}
            restored = network.eval()(part).float()
            after, before = ((x - part["target"]).square().mean((1, 2, 3)) for x in (restored, part["estimate"]))
            error.append(after / before)
    return -10 * np.log10(torch.cat(error).double().numpy())


def table(files: dict[str, Path], against: str) -> str:
    """The table as Markdown; InputError where `against` is none of the names."""
    if against not in files:
        raise InputError(f"--against {against}: give one of {', '.join(files)}")
    networks = {name: network_of(file) for name, file in files.items()}
    lines = []
    for degradation in DEGRADATIONS:
        batch, groups = patches(degradation)
        scores = {n: gains(network, batch) for n, (network, told) in networks.items() if degradation in told}
        order = sorted(set(groups))
        lines += [f"| `{degradation}` | gain (dB) | less {against} (dB) | {' | '.join(order)} |"]
        lines += ["|---" * (3 + len(order)) + "|"]
        for name, values in scores.items():
            other = scores.get(against)
            apart = "" if other is None or name == against else cell(mean_interval(values - other, groups), "+")
            own = [f"{values[np.array(groups) == group].mean():+.3f}" for group in order]
            lines.append(f"| {name} | {cell(mean_interval(values, groups), '+')} | {apart} | {' | '.join(own)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--against", help="the name to take differences from; the first without it")
    given = parser.parse_args()
    try:
        files = {name: Path(file) for name, _, file in (one.partition("=") for one in given.files)}
        print(table(files, given.against or next(iter(files))))
    except (SembenchError, OSError) as error:
        sys.exit(f"restoring_gain: {error}")


if __name__ == "__main__":
    main()
