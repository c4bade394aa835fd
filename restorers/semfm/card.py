"""What ships of a pretraining run, in half precision, and the model card beside it.

    python -m restorers.semfm.card RUN [OUT]

RUN is the folder that `sembench train semfm` wrote; OUT defaults to the weights of this package. Of a recipe that ends
with restoring the model that restores ships; of another its first and its last stage.
"""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from restorers.semfm import restoring
from restorers.semfm.packing import TRAIN, VALIDATION
from restorers.semfm.storage import load_model, load_part, save_model, save_part
from sembench.errors import InputError, SembenchError
from sembench.micrograph import write_atomically

WEIGHTS = Path(__file__).parent / "weights"
CARD, CURVES = "README.md", "curves.png"
WORTH = "restoring-worth.md"
"""What the model is worth, as docs/pretraining.md measures it; the card takes it in."""

LIMITS = """\
## Limits

- A model of {parameters} parameters, trained for {minutes:.0f} minutes on {device}: the paper's has about 1.7 billion
  and is trained for 400 epochs on two GPUs, so this shows that the whole system runs, not what pretraining can reach.
- The gates are balanced by the share of tokens that each expert takes (`balance_by = "choice"`), not by equation 9 of
  the paper: by that equation alone the mean probabilities become even while a few experts take nearly all tokens.
- It has seen gray micrographs of the listed specimens alone; no defocus, no added noise. What it is worth for
  restoration is measured in docs/results-semfm.md, beside the same network without any encoder.
- It must not be taken for a source of measurements: a masked autoencoder draws what is likely, not what is there.
"""

RESTORING_LIMITS = """\
## Limits

- A model of {parameters} parameters beside a pixel path, trained for {minutes:.0f} minutes on {device}; the paper's has
  about 1.7 billion, and knows neither restoring nor kinship: both are named here as what they are, additions.
- It has seen gray micrographs of the listed specimens alone, degraded as the suite degrades: a real defocus that
  differs from that model is not what it learned.
- It must not be taken for a source of measurements before docs/results-metrology.md is read: a network that was
  trained to restore draws what is likely.
"""


@dataclass(frozen=True)
class Stage:
    """One stage as its folder tells it: facts of the checkpoint, log and use of experts, a dict a line."""

    number: int
    facts: dict[str, Any]
    log: list[dict[str, str]]
    experts: list[dict[str, str]]

    @property
    def minutes(self) -> float:
        """Minutes of training, validations left out."""
        steps = [0, *(int(line["images"]) for line in self.log)]
        done = (after - before for before, after in pairwise(steps))
        return sum(n / float(line["images_per_second"]) for n, line in zip(done, self.log, strict=True)) / 60

    @property
    def kinship(self) -> float:
        """Weight of kinship in its loss."""
        return float(self.facts["identity"].get(f"stage{self.number}.kinship") or 0.0)

    @property
    def best(self) -> Sequence[float]:
        """Step, validation loss and validation L1 of the model that is kept."""
        return min(self.facts["validation"], key=lambda row: float(row[1]))


@dataclass(frozen=True)
class Restoring:
    """What follows the stages, as its folder tells it: its settings and the report of its fit."""

    settings: dict[str, Any]
    report: dict[str, Any]

    @property
    def curve(self) -> list[dict[str, float]]:
        """A row a validation."""
        return list(self.report["curve"])


def ship(run: Path, out: Path = WEIGHTS) -> Path:
    """Write what ships of a run in half precision, its curves and its card; return the card.

    Raises InputError where a stage lacks or is not finished, WriteError.
    """
    numbers = [number for number in (1, 2, 3) if (run / f"stage{number}").is_dir()] or [1]
    stages = [_read(run, number) for number in numbers]
    if (run / restoring.NAME).is_dir():
        return _ship_restoring(run, stages, out)
    shipped = sorted({numbers[0], numbers[-1]})
    for number in shipped:
        model, extra = load_model(run / f"stage{number}" / "best.json")
        save_model(out / f"stage{number}.json", model, extra, half=True)
    write_atomically(out / CURVES, _curves(stages))
    write_atomically(out / CARD, _card(stages, shipped, out).encode())
    return out / CARD


def _ship_restoring(run: Path, stages: list[Stage], out: Path) -> Path:
    folder, name = run / restoring.NAME, restoring.NAME
    told = _read_restoring(folder)
    model, extra = load_model(folder / restoring.BEST)
    part = load_part(folder / restoring.BEST, extra[restoring.PATH])
    extra[restoring.PATH] |= save_part(out / f"{name}.json", restoring.PATH, part)
    save_model(out / f"{name}.json", model, extra, half=True)
    write_atomically(out / f"{name}.png", _curves(stages, told))
    write_atomically(out / f"{name}.md", _restoring_card(stages, told, out).encode())
    return out / f"{name}.md"


def _read_restoring(folder: Path) -> Restoring:
    try:
        texts = [(folder / file).read_text(encoding="utf-8") for file in (restoring.SETTINGS, restoring.REPORT)]
        settings, report = map(json.loads, texts)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: restoring is not finished ({error}): the same `sembench train` goes on") from error
    if settings["encoder"] != "pretrained":
        raise InputError(f"{folder}: its encoder is {settings['encoder']}, to compare with: it does not ship")
    return Restoring(settings, report)


def _read(run: Path, number: int) -> Stage:
    folder = run / f"stage{number}"
    try:
        facts = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["facts"]
        tables = []
        for name in ("log.csv", "experts.csv"):
            with (folder / name).open(encoding="utf-8", newline="") as file:
                tables.append(list(csv.DictReader(file)))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: holds no finished stage {number} ({error}): train it first") from error
    if facts["next_sample"] < facts["steps"] * facts["identity"]["images a step"]:
        raise InputError(f"{folder}: stage {number} is not finished: the same `sembench train` goes on with it")
    return Stage(number, facts, *tables)


def _card(stages: list[Stage], shipped: list[int], out: Path) -> str:
    parameters = {f"stage{number}": _parameters(out / f"stage{number}.json") for number in shipped}
    text = ["# semfm: the weights that ship", "", *_files(out, parameters), "", *_data(stages[0]), ""]
    text += [*_training(stages), ""]
    if stages[-1].experts:
        text += [*_experts(stages[-1]), ""]
    text += ["![validation curves and use of experts](curves.png)", ""]
    text += ["## Remade by", "", "```", *_commands(stages[0].facts["recipe"]), "```", ""]
    told = {"parameters": f"{parameters[f'stage{shipped[-1]}'] / 1e6:.1f} million", "device": _where(stages[0])}
    return "\n".join(text) + "\n" + LIMITS.format(minutes=sum(stage.minutes for stage in stages), **told)


def _restoring_card(stages: list[Stage], told: Restoring, out: Path) -> str:
    parameters = _parameters(out / f"{restoring.NAME}.json")
    minutes = sum(stage.minutes for stage in stages) + told.report["seconds"] / 60
    text = ["# semfm: the weights that restore", "", *_files(out, {restoring.NAME: parameters}), ""]
    text += [*_data(stages[0]), "", *_training(stages), "", *_restored(told), ""]
    text += [f"![validation curves]({restoring.NAME}.png)", ""]
    worth = out / WORTH
    text += [worth.read_text(encoding="utf-8")] if worth.is_file() else []
    text += ["## Remade by", "", "```", *_commands(told.report["recipe"]), "```", ""]
    count = f"{parameters / 1e6:.1f} million"
    return "\n".join(text) + "\n" + RESTORING_LIMITS.format(parameters=count, minutes=minutes, device=_where(stages[0]))


def _restored(told: Restoring) -> list[str]:
    """What followed the stages, in words and figures."""
    settings, curve = told.settings, told.curve
    best = min(curve, key=lambda row: row["validation"])
    encoder = f"at {settings['encoder_rate']:g} of that rate" if settings["encoder_rate"] else "frozen"
    return [
        "## Restoring",
        "",
        "After the stages the network of adaptation (encoder, decoder, pixel path on the blind spectral estimate) "
        f"learned for {settings['steps']} steps of {settings['batch']} patches to undo every degradation that the "
        f"suite trains for, on the images above: AdamW, highest rate {settings['learning_rate']:g}, "
        f"the encoder {encoder}, "
        f"{told.report['seconds'] / 60:.0f} minutes. The mean token of the degraded patch was held to what the stage "
        f"before said of the clean one (weight {settings['kept']:g} of 1 - cosine). Best validation loss "
        f"{best['validation']:.4f} at step {best['step']:g}: the squared error as a share of the spectral estimate's, "
        "mean over patches, plus what holds the token. That state ships, the pixel path beside the model.",
    ]


def _parameters(model: Path) -> int:
    return sum(p.numel() for p in load_model(model)[0].parameters())


def _files(out: Path, parameters: dict[str, int]) -> list[str]:
    lines = [
        "Masked autoencoders of micrographs, float16 in safetensors; read by `restorers.semfm.storage.load_model`.",
        "",
        "| stage | blocks x width, decoder | experts | parameters | MB | SHA-256 of the shards (first 16 digits) |",
        "|---|---|---|---|---|---|",
    ]
    for name, count in parameters.items():
        told = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        config, path = told["config"], told["extra"].get(restoring.PATH)
        shards = [*told["shards"], *([path] if path else [])]
        size = sum(shard["bytes"] for shard in shards) / 1e6
        digests = ", ".join(shard["sha256"][:16] for shard in shards)
        sizes = f"{config['depth']} x {config['dim']}, {config['decoder_depth']} x {config['decoder_dim']}"
        where = {1: "each block", 2: "each second block"}.get(config["every"], f"one block in {config['every']}")
        experts = f"{config['experts']} in {where}" if config["experts"] else "none"
        lines.append(f"| {name.removeprefix('stage')} | {sizes} | {experts} | {count:,} | {size:.1f} | {digests} |")
    return lines


def _data(stage: Stage) -> list[str]:
    counted, identity = stage.facts["pretrained on"], stage.facts["identity"]
    lines = [
        "## Data",
        "",
        f"`{stage.facts['source']}`, split `{TRAIN}`: {counted['images']} micrographs in {counted['groups']} groups "
        "(sources and citations of a set: `sembench data list`, its manifest). "
        f"Validation: split `{VALIDATION}`, other groups, {identity['data.validation_samples']} fixed crops. "
        f"{100 * identity['data.phantom_share']:.0f} % of the samples are phantom line scenes. "
        f"Digest of what was packed: `{identity['data']}`.",
        "",
        "| licence of the images | images | groups |",
        "|---|---|---|",
    ]
    return lines + [f"| {name or 'not told'} | {one} | {other} |" for name, (one, other) in counted["licences"].items()]


def _where(stage: Stage) -> str:
    processes, kind = stage.facts["processes"], {"cpu": "processor", "cuda": "GPU"}[stage.facts["device"]]
    return f"one {kind}" if processes == 1 else f"{processes} {kind}s"


def _training(stages: list[Stage]) -> list[str]:
    lines = [
        "## Training",
        "",
        f"torch {stages[0].facts['torch']} on {_where(stages[0])} (minutes tell of what else ran there), "
        f"{stages[0].facts['identity']['stage1.precision']}; AdamW.",
        "",
        "| stage | trains | steps | images a step | mask | highest rate | minutes | best step | validation loss | "
        "L1 alone |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    trains = {1: "everything, dense", 2: "gates", 3: "everything, experts"}
    for stage in stages:
        identity, best = stage.facts["identity"], stage.best
        mask, rate = (identity[f"stage{stage.number}.{name}"] for name in ("mask_ratio", "learning_rate"))
        cells = [stage.number, trains[stage.number], stage.facts["steps"], identity["images a step"]]
        cells += [f"{mask:g}", f"{rate:g}"]
        cells += [f"{stage.minutes:.0f}", int(best[0]), f"{best[1]:.4f}", f"{best[2]:.4f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "L1: mean absolute error over masked pixels (equation 4), of normalised gray levels. The loss of stage 2 adds "
        "distillation and balance (equation 10), that of stage 3 spectra too (equation 16), so losses of different "
        "stages are not comparable; their L1 is.",
    ]
    return lines + [
        f"Stage {stage.number} has kinship (weight {stage.kinship:g}) and was validated on pairs of crops: its L1 is "
        "not comparable with that of stages without."
        for stage in stages
        if stage.kinship
    ]


def _experts(stage: Stage) -> list[str]:
    experts = stage.facts["identity"]["experts.experts"]
    at_best = [float(line["share"]) for line in stage.experts if int(line["step"]) == int(stage.best[0])]
    return [
        "## Use of experts",
        "",
        f"Share of validation tokens that each expert takes: {100 * min(at_best):.1f} % at least and "
        f"{100 * max(at_best):.1f} % at most, layer by layer, in the model that ships (step {int(stage.best[0])} of "
        f"stage {stage.number}); even use would be {100 / experts:.1f} %.",
    ]


def _commands(recipe: str) -> list[str]:
    return [
        f"sembench train semfm --recipe {recipe} --out RUN",
        "python -m restorers.semfm.card RUN",
    ]


def _curves(stages: list[Stage], told: Restoring | None = None) -> bytes:
    """Validation L1 against step in all stages; beside it restoring, or else the experts' use at the end, if any."""
    from matplotlib.figure import Figure

    beside = bool(told or stages[-1].experts)
    figure = Figure(figsize=(10 if beside else 6, 3.2), layout="constrained")
    curve, *others = figure.subplots(1, 1 + beside, width_ratios=(1.4, 1)[: 1 + beside], squeeze=False)[0]
    start = 0
    for stage, colour in zip(stages, ("#0072b2", "#6b7480", "#d55e00"), strict=False):
        rows = stage.facts["validation"]
        curve.plot([start + row[0] for row in rows], [row[2] for row in rows], ".-", color=colour, markersize=4)
        place = (4, -14) if stage.number == 2 else (4, 6)
        label = f"stage {stage.number}{', on pairs' if stage.kinship else ''}"
        curve.annotate(label, (start + rows[0][0], rows[0][2]), xytext=place, color=colour,
                       textcoords="offset points", fontsize=9)  # fmt: skip
        start += stage.facts["steps"]
    curve.margins(y=0.1)
    curve.set_xlabel("step")
    curve.set_ylabel("validation L1, normalised gray")
    if told:
        others[0].plot([row["step"] for row in told.curve], [row["validation"] for row in told.curve], ".-")
        others[0].set_xlabel("step of restoring")
        others[0].set_ylabel("validation loss")
    elif others:
        _bars(others[0], stages[-1])
    for axes in (curve, *others):
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _bars(bars: Any, stage: Stage) -> None:
    """The share of validation tokens that each expert takes, a bar for each layer."""
    import numpy as np

    last = max(int(line["step"]) for line in stage.experts)
    lines = [line for line in stage.experts if int(line["step"]) == last]
    layers = sorted({int(line["layer"]) for line in lines})
    for layer in layers:
        shares = [100 * float(line["share"]) for line in lines if int(line["layer"]) == layer]
        places = np.arange(len(shares)) + (layer - (len(layers) - 1) / 2) * 0.8 / len(layers)
        bars.bar(places, shares, 0.8 / len(layers), color="#0072b2", alpha=0.4 + 0.6 * layer / max(1, len(layers) - 1))
    bars.axhline(2, color="#d55e00", linewidth=1)
    bars.set_xlabel("expert (a bar for each of its layers, darker: later)")
    bars.set_ylabel("share of validation tokens, %")
    bars.set_xticks(range(len(lines) // len(layers)))


if __name__ == "__main__":
    try:
        if len(sys.argv) not in (2, 3):
            raise InputError("python -m restorers.semfm.card RUN [OUT]: name the folder of a pretraining run")
        ship(Path(sys.argv[1]), *map(Path, sys.argv[2:]))
    except SembenchError as error:
        sys.exit(f"sembench: {error}")
