"""What the experts of a pretrained model learnt: which take which kinds of image, and what their patches look like.

    python benchmarks/expert_use.py [--model restorers/semfm/weights/stage3.json] [--write docs/experts.md]

Use by kind is counted on drawn scenes of five kinds and on the clustering tiles of semcorpus, by group, none of which
pretraining saw. Real micrographs are not ours to show, so the patches are those of drawn scenes. How much an expert
tells of the kind is the mutual information of the two as a share of the kind's entropy, beside that of the patches'
own gray level and contrast (each cut into as many classes of equal size as there are experts), and of a gate that was
never trained. Writes the page and its two figures beside it.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from restorers.semfm.experts import ExpertFeedForward
from restorers.semfm.model import MaskedAutoencoder, patchify
from restorers.semfm.storage import load_model
from sembench.cases import PHANTOM, plan_cases
from sembench.cases.tiles import TileSetSpec
from sembench.protocol import load

MODEL = Path(__file__).resolve().parents[1] / "restorers" / "semfm" / "weights" / "stage3.json"
SHOWN = 12
Choices = NDArray[np.int64]
"""Experts chosen: (layers, tokens)."""


def choices(model: MaskedAutoencoder, image: NDArray[np.float32]) -> tuple[Choices, NDArray[np.float64]]:
    """The expert that each patch takes in each layer, and its probability: both (layers, patches)."""
    gray = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    with torch.inference_mode():
        _, gates = model.encoder(model.normalise(gray))
    chosen = np.stack([gate.choice.numpy()[model.prefix :] for gate in gates])
    sure = np.stack([gate.probabilities.double().max(-1).values.numpy()[model.prefix :] for gate in gates])
    return chosen, sure


def told(experts: NDArray[Any], kinds: NDArray[Any]) -> float:
    """Mutual information of two labels as a share of the entropy of the second."""
    joint = np.histogram2d(experts, kinds, (np.arange(experts.max() + 2), np.arange(kinds.max() + 2)))[0]
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) @ joint.sum(0, keepdims=True)
    seen = joint > 0
    of_kinds = joint.sum(0)[joint.sum(0) > 0]
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum() / -(of_kinds * np.log(of_kinds)).sum())


def classes(values: NDArray[np.float64], number: int) -> NDArray[np.int64]:
    """Classes of equal size by rank."""
    return (values.argsort().argsort() * number // len(values)).astype(np.int64)


def untrained_gates(model: MaskedAutoencoder) -> None:
    """Draw the gates anew, so that they choose by chance directions of the same tokens."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, ExpertFeedForward):
            weight = module.gate.weight
            weight.data = torch.randn(weight.shape, generator=generator) * weight.std()
            module.gate.bias.data.zero_()


def measured(images: list[NDArray[np.float32]], groups: list[str], path: Path) -> dict[str, Any]:
    """Choices on all patches, and how much they tell of the kind."""
    kinds = sorted(set(groups))
    model = load_model(path)[0].eval()
    found = [choices(model, image) for image in images]
    chosen, sure = (np.concatenate([pair[i] for pair in found], 1) for i in (0, 1))
    patches = np.concatenate(
        [patchify(torch.from_numpy(np.ascontiguousarray(i))[None, None], model.config.patch)[0].numpy() for i in images]
    )
    numbers = [pair[0].shape[1] for pair in found]
    kind = np.repeat([kinds.index(group) for group in groups], numbers)
    untrained_gates(model)
    by_chance = np.concatenate([choices(model, image)[0] for image in images], 1)
    number = model.config.experts
    gray, contrast = (classes(values.astype(np.float64), number) for values in (patches.mean(1), patches.std(1)))
    return {
        **{"chosen": chosen, "sure": sure, "patches": patches, "kind": kind, "kinds": kinds, "experts": number},
        "image": np.repeat(np.arange(len(images)), numbers),
        "told": [told(layer, kind) for layer in chosen],
        "gray": told(gray, kind),
        "contrast": told(contrast, kind),
        "by gray": [told(layer, gray) for layer in chosen],
        "by contrast": [told(layer, contrast) for layer in chosen],
        "untrained": [told(layer, kind) for layer in by_chance],
    }


def tiles(data: str) -> tuple[list[NDArray[np.float32]], list[str]]:
    """The tiles of the protocol `clustering` and the group of each: of scenes, the kind."""
    protocol = load("clustering")
    (spec,) = plan_cases(protocol, data, require_real=data != PHANTOM).specs
    assert isinstance(spec, TileSetSpec)
    return [image for _, image in spec.images(protocol)], list(spec.groups)


def use_figure(shares: NDArray[np.float64], kinds: list[str]) -> Any:
    """A square for each expert and kind, a panel a layer; shares: (layers, experts, kinds), of a kind's patches."""
    from matplotlib.figure import Figure

    layers, experts, _ = shares.shape
    figure = Figure(figsize=(2.6 * layers + 1.4, 0.34 * experts + 1.6), layout="constrained")
    panels = figure.subplots(1, layers, squeeze=False)[0]
    for layer, axes in enumerate(panels):
        drawn = axes.imshow(100 * shares[layer], cmap="Blues", vmin=0, vmax=50, aspect="auto")
        for (expert, kind), share in np.ndenumerate(shares[layer]):
            colour = "white" if share > 0.3 else "black"
            axes.text(kind, expert, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(f"layer {layer + 1} with experts", fontsize=9)
        axes.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(experts), [str(n + 1) for n in range(experts)] if layer == 0 else [], fontsize=8)
    panels[0].set_ylabel("expert")
    figure.colorbar(drawn, ax=list(panels), label="share of the kind's patches, %", shrink=0.8)
    return figure


def patches_figure(found: dict[str, Any], layer: int, side: int) -> Any:
    """The patches that each expert of a layer takes with the highest probability, one from an image at most."""
    from matplotlib.figure import Figure

    experts = found["experts"]
    figure = Figure(figsize=(0.52 * SHOWN + 0.8, 0.52 * experts + 0.3), layout="constrained")
    grid = figure.subplots(experts, SHOWN)
    for expert in range(experts):
        own = np.flatnonzero(found["chosen"][layer] == expert)
        order = own[np.argsort(-found["sure"][layer][own], kind="stable")]
        _, first = np.unique(found["image"][order], return_index=True)
        kept = order[np.sort(first)][:SHOWN]
        for place, axes in enumerate(grid[expert]):
            axes.set_axis_off()
            if place < len(kept):
                axes.imshow(found["patches"][kept[place]].reshape(side, side), cmap="gray", vmin=0, vmax=255)
        grid[expert][0].text(-0.3, 0.5, str(expert + 1), transform=grid[expert][0].transAxes, va="center", fontsize=9)
    return figure


def page(found: dict[str, dict[str, Any]], model: Path, figures: dict[str, str]) -> str:
    """The page as Markdown; found: by data set."""
    text = [
        "# What the experts learnt",
        "",
        f"Written by `python benchmarks/expert_use.py --write docs/experts.md` from `{model.name}`. Tiles are "
        "those of the protocol `clustering`, which pretraining saw none of; a patch takes one expert in each layer.",
        "",
        "## How much an expert tells of the kind of image",
        "",
        "Mutual information of the two labels of a patch, as a share of the kind's entropy: 0, nothing; 1, the kind is "
        "known. For scale: what the patch's gray level or contrast alone tells, cut into as many classes as there are "
        "experts, and what gates tell that were drawn by chance in front of the same experts.",
        "",
        "| tiles | kinds | layer | expert | by chance | gray level alone | contrast alone | expert of gray level | "
        "expert of contrast |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for data, own in found.items():
        for layer, share in enumerate(own["told"]):
            cells = [data, str(len(own["kinds"])), str(layer + 1), f"{share:.3f}", f"{own['untrained'][layer]:.3f}"]
            cells += [f"{own['gray']:.3f}", f"{own['contrast']:.3f}"]
            cells += [f"{own['by gray'][layer]:.3f}", f"{own['by contrast'][layer]:.3f}"]
            text.append("| " + " | ".join(cells) + " |")
    text += [
        "",
        "The last two columns: how much an expert tells of the gray level and of the contrast, as a share of their "
        "entropy.",
        "",
        "## Use by kind of scene",
        "",
        f"![share of each kind's patches that each expert takes]({figures['use']})",
        "",
        "## Patches",
        "",
        "Those that each expert of the last layer takes with the highest probability, one from a tile at most. Tiles "
        "are drawn scenes: real micrographs are not ours to show.",
        "",
        f"![patches of each expert]({figures['patches']})",
    ]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--write", type=Path, help="the page to write, its figures beside it; else it is printed")
    given = parser.parse_args()
    found = {}
    for data in (PHANTOM, "semcorpus"):
        images, groups = tiles(data)
        found[data] = measured(images, groups, given.model)
    drawn = found[PHANTOM]
    shares = np.stack(
        [
            [
                [(layer[drawn["kind"] == k] == e).mean() for k in range(len(drawn["kinds"]))]
                for e in range(drawn["experts"])
            ]
            for layer in drawn["chosen"]
        ]
    )
    stem = given.write.stem if given.write else "experts"
    figures = {"use": f"{stem}-use.png", "patches": f"{stem}-patches.png"}
    text = page(found, given.model, figures)
    if not given.write:
        print(text, end="")
        return
    side = math.isqrt(drawn["patches"].shape[1])
    for name, figure in (("use", use_figure(shares, drawn["kinds"])), ("patches", patches_figure(drawn, -1, side))):
        figure.savefig(given.write.with_name(figures[name]), dpi=120)
    given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
