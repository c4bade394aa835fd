"""Restoring: after its stages the model learns, with the pixel path, to restore the images it was pretrained on.

Not of the paper. The images are unlabelled still: they are degraded on the fly by every degradation that the suite
trains for, and the network that adaptation will go on with (encoder, decoder, pixel path) learns to undo that. So that
the encoder still tells images apart, the mean of its tokens is held to what it was before, on the clean patch.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from restorers.semfm import adaptation
from restorers.semfm.checkpoint import require_same
from restorers.semfm.journal import Listener
from restorers.semfm.model import MaskedAutoencoder
from restorers.semfm.packing import TRAIN, VALIDATION, Packed, statistics
from restorers.semfm.recipe import Recipe, RestoringPart
from restorers.semfm.spectral import patch_arrays_of_scans
from restorers.semfm.storage import load_model, save_model, save_part
from sembench.errors import InputError, WriteError
from sembench.micrograph import write_atomically
from sembench.optics import DEGRADATIONS
from sembench.restorer import Budget, Crops, FitProgress, Patch, TrainingSet

if TYPE_CHECKING:
    from restorers.fitting import Fitted

NAME = "restoring"
BEST, REPORT, SETTINGS = "best.json", "report.json", "settings.json"
RECTIFIED = True
"""Whether the pixel path has ReLU."""
PATH = "path"
"""Key under which a model's `extra` describes the pixel path that it was trained with."""


@dataclass(frozen=True, eq=False)
class EveryDegradation(TrainingSet):
    """Patches degraded by each of DEGRADATIONS in turn, step by step; validation has the patches of all."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pixels and of the degradations."""
        pixels = TrainingSet(self.images, self.validation).digest
        return hashlib.sha256("-".join([pixels, *DEGRADATIONS]).encode()).hexdigest()

    @cached_property
    def each(self) -> tuple[TrainingSet, ...]:
        """The same images with one degradation each."""
        return tuple(TrainingSet(self.images, self.validation, d, self.budget, self.seed) for d in DEGRADATIONS)

    def batch(self, step: int, *, crops: Crops = "native") -> list[Patch]:
        """As TrainingSet has it."""
        return self.each[step % len(self.each)].batch(step // len(self.each), crops=crops)

    def validation_patches(self) -> list[Patch]:
        """As TrainingSet has it."""
        return [patch for one in self.each for patch in one.validation_patches()]


class RestoringNetwork(nn.Module):
    """The network of adaptation, its encoder held to what it said of the clean patch before."""

    def __init__(self, network: adaptation.TokenPathNetwork, before: MaskedAutoencoder) -> None:
        super().__init__()
        self.network, self.before = network, adaptation.TokenEncoder(before)
        self.prefix = before.prefix

    def forward(self, batch: adaptation.Batch) -> tuple[Tensor, Tensor]:
        """Restored (B, 1, n, n), and how far the mean token has turned: 1 - cosine, mean over the batch."""
        tokens = self.network.tokens(batch["degraded"])
        now, then = (x[:, self.prefix :].float().mean(1) for x in (tokens, self.before(batch["clean"])))
        return self.network.restored(batch, tokens), 1 - functional.cosine_similarity(now, then, dim=-1).mean()


def train_restoring(
    recipe: Recipe,
    packed: Packed,
    run: Path,
    *,
    told: Mapping[str, Any] | None = None,
    device: str = "cpu",
    fresh: bool = False,
    stop: Callable[[], bool] | None = None,
    listener: Listener | None = None,
) -> Path:
    """Train what follows a recipe's stages, from the last one's best model in `run`; return RUN/restoring/best.json.

    best.json is the model, float16, and names the pixel path beside it; without an encoder it describes that alone.
    The same call goes on where it stopped. told: facts for the report, such as the recipe's name; fresh: forget what
    RUN/restoring holds; stop: asked after each step.
    Raises Unfinished where it was stopped, InputError for a folder of other settings or a stage that lacks.
    """
    from restorers.fitting import CHECKPOINT, fit, seeded

    part = recipe.restoring
    assert part is not None
    folder = run / NAME
    model, started_from = _start(recipe, part, packed, run)
    training = _training(part, packed, folder, device, listener)
    identity = {**part.model_dump(), "data": training.digest, "the model to start from": started_from}
    _check(folder, identity, fresh)
    if (folder / BEST).is_file():
        if listener:
            listener.notice(f"restoring is finished: {part.steps} steps")
        return folder / BEST
    sizes = part.width, (1, 1, part.coarse_blocks)
    rates = {"network.tokens.": part.encoder_rate} if part.encoder_rate else {}
    with seeded(part.seed):
        network: nn.Module
        if model is None:
            network = path = adaptation.PathNetwork(*sizes, physics=True, rectified=RECTIFIED)
        else:
            before = copy.deepcopy(model)
            joined = adaptation.TokenPathNetwork(
                model, *sizes, physics=True, rectified=RECTIFIED, frozen=not part.encoder_rate
            )
            network, path = RestoringNetwork(joined, before), joined.path
    if listener:
        place = "goes on" if (folder / CHECKPOINT).is_file() else "starts"
        count = sum(p.numel() for p in network.parameters() if p.requires_grad)
        listener.notice(f"restoring {place}: {part.steps} steps of {part.batch} patches, {count:,} weights trained")
    fitted = fit(
        network,
        lambda network, batch: _loss(network, batch, part.kept),
        training,
        prepare=patch_arrays_of_scans,
        crops="mixed",
        learning_rate=part.learning_rate,
        rates=rates,
        stop=stop,
    )
    return _keep(folder, replace(fitted, report={**fitted.report, **(told or {})}), path, model, part)


def _start(recipe: Recipe, part: RestoringPart, packed: Packed, run: Path) -> tuple[MaskedAutoencoder | None, str]:
    """The model whose encoder is trained on, and the digest of its file."""
    if part.encoder == "none":
        return None, ""
    if part.encoder == "random":
        return MaskedAutoencoder(recipe.architecture(*statistics(packed.pixels(TRAIN))), part.seed), ""
    path = run / f"stage{recipe.stages[-1]}" / "best.json"
    if not path.is_file():
        raise InputError(f"{path}: not there; train stage {recipe.stages[-1]} first, with the same --out")
    return load_model(path)[0], hashlib.sha256(path.read_bytes()).hexdigest()


def _training(
    part: RestoringPart, packed: Packed, folder: Path, device: str, listener: Listener | None
) -> EveryDegradation:
    def tell(told: FitProgress) -> None:
        if listener and told.steps:
            left = max(told.seconds_left, 1e-9)
            speed = {"images_per_second": part.batch * (told.steps - told.step) / left, "seconds_left": left}
            listener.step(told.step, told.steps, {"loss": told.loss}, speed | {"waiting": told.waiting})

    images, validation = (
        tuple(pixels.astype(np.float32) for pixels in packed.pixels(split)) for split in (TRAIN, VALIDATION)
    )
    budget = Budget(NAME, part.steps, part.batch)
    return EveryDegradation(
        images, validation, budget=budget, seed=part.seed, device=device, folder=folder, on_progress=tell
    )


def _check(folder: Path, identity: dict[str, Any], fresh: bool) -> None:
    """Keep the settings in the folder, empty it where it is to start over, and refuse those of another training."""
    path = folder / SETTINGS
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error}): --fresh starts over") from error
        require_same(folder, known, identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    write_atomically(path, (json.dumps(identity, indent=1) + "\n").encode())


def _loss(network: nn.Module, batch: adaptation.Batch, kept: float) -> Tensor:
    told = network(batch)
    restored, turned = told if isinstance(told, tuple) else (told, 0.0)
    return adaptation.restoration_loss(restored, batch["target"], batch["estimate"], "relative") + kept * turned


def _keep(
    folder: Path, fitted: "Fitted", path_: adaptation.PathNetwork, model: MaskedAutoencoder | None, part: RestoringPart
) -> Path:
    """Write the trained model with its pixel path, and the report of the fit; the file of the model."""
    path = folder / BEST
    described = {"width": part.width, "coarse_blocks": part.coarse_blocks, "rectified": RECTIFIED}
    described |= save_part(path, PATH, path_.state_dict())
    write_atomically(folder / REPORT, (json.dumps(fitted.report, indent=1) + "\n").encode())
    if model is None:
        write_atomically(path, (json.dumps({PATH: described}, indent=1) + "\n").encode())
    else:
        save_model(path, model, {"stage": NAME, "step": fitted.report["steps"], PATH: described}, half=True)
    return path
