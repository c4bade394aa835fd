"""Pretraining in three stages (paper sections 2.3 to 2.5): masked autoencoding, gates, all with frequency losses.

The same code runs in one process or in those of torchrun. What sample and mask a step sees depends on the seed and
the sample's index alone, so the number of processes changes nothing but rounding, and a run that stopped at any point
goes on as if it had not. Settings: recipe.py; samples: packing.py; losses by equation: losses.py.
"""

import contextlib
import hashlib
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from restorers.fitting import Unfinished
from restorers.semfm import losses
from restorers.semfm.card import ship
from restorers.semfm.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    read_checkpoint,
    require_same,
    restore_optimizer,
    write_checkpoint,
)
from restorers.semfm.experts import ExpertFeedForward, GateUse
from restorers.semfm.journal import Journal, Listener
from restorers.semfm.model import MaskedAutoencoder, ModelConfig, grow_experts, patchify, unpatchify
from restorers.semfm.packing import (
    TRAIN,
    VALIDATION,
    VALIDATION_STREAM,
    Ahead,
    Augmentation,
    Packed,
    Samples,
    pack,
    pack_phantoms,
    statistics,
)
from restorers.semfm.ranks import Ranks, joined
from restorers.semfm.recipe import Recipe, StagePart, load_recipe
from restorers.semfm.restoring import NAME as RESTORING
from restorers.semfm.restoring import train_restoring
from restorers.semfm.storage import load_model, save_model
from sembench.errors import CheckError, InputError

STAGES = (1, 2, 3)
TERMS = ("mae", "kd", "balance", "fft", "psd")
"""Of the loss: stage 1 has the first, stage 2 the first three, stage 3 all (eq. 4, 10, 16); kinship is told apart."""
PICTURES = 6
BATCHES_AHEAD = 4
DATA_WORKERS = {"cpu": 1, "cuda": 8}
VALIDATION_SEED = 0


class NonFiniteError(CheckError):
    """The loss or its gradient is no finite number; the checkpoint before stays as it is."""


@dataclass(frozen=True, eq=False)
class Task:
    """What one stage trains, and against what: built anew for every start, before a checkpoint is read into it."""

    number: int
    settings: StagePart
    model: MaskedAutoencoder
    teacher: MaskedAutoencoder | None
    weights: dict[str, float]
    started_from: str

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that this stage's loss has."""
        own = TERMS[: {1: 1, 2: 3, 3: 5}[self.number]]
        return (*own, "kinship") if self.settings.kinship else own


def pretrain(
    *,
    config: Path,
    stage: int | None = None,
    data: str | None = None,
    out: Path | None = None,
    minutes: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    fresh: bool = False,
    listener: Listener | None = None,
) -> Path:
    """Run one stage of pretraining, or all that the recipe has, or go on with them; return what was written last.

    config: a recipe; stage: None for all, one after the other; data: a set or folder in place of the recipe's; out: the
    folder of all stages, stage 2 starts from OUT/stage1/best.json and stage 3 from OUT/stage2/best.json; minutes: stop
    with a checkpoint after so many; fresh: forget what OUT/stage<N> holds. A stage leaves its best model in
    OUT/stage<N>/best.json, restoring in OUT/restoring/best.json; all of them end with what ships in OUT/weights, its
    card beside it.
    SIGINT and SIGTERM end with a checkpoint and KeyboardInterrupt.
    Raises InputError (recipe, data, checkpoint), NonFiniteError, UnavailableError, WriteError, each in one line.
    """
    deadline = time.monotonic() + 60 * minutes if minutes is not None else math.inf
    if stage is not None and stage not in STAGES:
        raise InputError(f"--stage {stage}: there are the stages 1, 2 and 3")
    recipe = load_recipe(config)
    if recipe.restoring and stage is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{config}: restoring takes one process: train its stages under torchrun by --stage, one each")
    folder = out or Path("runs") / f"semfm-{config.stem}"
    with joined(device, threads) as ranks, torch.random.fork_rng():
        torch.manual_seed(recipe.data.seed + ranks.rank)
        teller = listener if listener and ranks.first else None
        packed = _packed(data or recipe.data.name, recipe, ranks)
        asked = {"recipe": str(config), "source": packed.source, "pretrained on": packed.counted(TRAIN)}
        for number in recipe.stages if stage is None else (stage,):
            task = _build(number, recipe, packed, folder / f"stage{number}", ranks, teller)
            run = _Run(task, recipe, packed, folder / f"stage{number}", ranks, teller, asked)
            run.resume(fresh)
            with _signals() as stopped:
                finished = run.train(stopped, deadline)
            if stopped:
                raise KeyboardInterrupt
            if stage is not None or not finished:
                return folder / f"stage{number}" / "best.json"
        if recipe.restoring:
            trained = _restore(recipe, packed, folder, ranks, deadline, fresh, teller, asked)
            if trained is None or recipe.restoring.encoder != "pretrained":
                return trained or folder / RESTORING
        return ship(folder, folder / "weights") if ranks.first else folder / "weights"


def _restore(
    recipe: Recipe,
    packed: Packed,
    folder: Path,
    ranks: Ranks,
    deadline: float,
    fresh: bool,
    teller: Listener | None,
    asked: dict[str, Any],
) -> Path | None:
    """What follows the stages: the model's file, or None where the deadline came first."""
    with _signals() as stopped:
        try:
            return train_restoring(
                recipe,
                packed,
                folder,
                told=asked,
                device=str(ranks.device),
                fresh=fresh,
                stop=lambda: bool(stopped) or time.monotonic() > deadline,
                listener=teller,
            )
        except Unfinished as unfinished:
            if stopped:
                raise KeyboardInterrupt from unfinished
            return None


def stage_loss(
    task: Task, network: nn.Module, images: Tensor, mask: Tensor, ranks: Ranks
) -> tuple[Tensor, dict[str, Tensor], list[GateUse], Tensor]:
    """The stage's loss on normalised images (B, 1, H, W) with masks (B, P): eq. 4, 10 or 16, and kinship if asked for.

    Returns the weighted sum, its terms, the gates' use, and the prediction (B, P, pixels of a patch).
    """
    model = task.model
    target = model.targets(images)
    prediction, gates, mean_token = network(images, mask)
    terms = {"mae": losses.masked_l1(prediction, target, mask)}
    if task.teacher is not None:
        with torch.no_grad():
            taught = task.teacher(images, mask).prediction
        terms["kd"] = losses.distillation(prediction, taught, mask)
    if gates:
        means = ranks.mean_of_gates(torch.stack([losses.gate_mean(use.probabilities) for use in gates]))
        shares = ranks.mean(torch.stack([_use(use)[0] for use in gates]))
        terms["balance"] = _balance(means, shares, task.settings)
    if task.number == 3:
        patch, grid = model.config.patch, model.config.grid
        drawn, true = (unpatchify(patches.float(), patch, grid) for patches in (prediction, target))
        pixels = losses.pixel_mask(mask, patch, grid)
        terms["fft"] = losses.fft_amplitude(losses.error_spectrum(drawn, true, pixels), drawn.shape[-1])
        terms["psd"] = losses.psd_difference(drawn, true, pixels, log1p=task.settings.psd_log)
    if task.settings.kinship:
        terms["kinship"] = losses.kinship(mean_token)
    total = torch.stack([task.weights[name] * value for name, value in terms.items()]).sum()
    return total, terms, gates, prediction


def learning_rate(settings: StagePart, step: int, steps: int) -> float:
    """Rate of a step from 0: a linear rise over warmup_steps, then a half cosine to final_share of the highest."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * fall)


class _Run:
    """One stage under way: model, optimizer and samples, and the loop over steps."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        packed: Packed,
        folder: Path,
        ranks: Ranks,
        listener: Listener | None,
        asked: dict[str, Any],
    ) -> None:
        self.task, self.recipe, self.folder, self.ranks, self.listener = task, recipe, folder, ranks, listener
        settings, model = task.settings, task.model
        self.samples, self.validation = _samples(recipe, settings, packed, model)
        self.asked = asked
        self.images_per_step = settings.batch * settings.accumulate * ranks.world
        epochs = settings.epochs or 0
        self.steps = settings.steps or math.ceil(epochs * self.samples.per_epoch / self.images_per_step)
        self.identity = {
            **recipe.identity(task.number, self.images_per_step),
            "data": packed.digest,
            "the model to start from": task.started_from,
        }
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [name for name, p in trained.items() if p.ndim > 1 and "weight" in name]
        self.names = decayed + [name for name in trained if name not in decayed]
        groups = [
            {"params": [trained[name] for name in decayed], "weight_decay": settings.weight_decay},
            {"params": [trained[name] for name in self.names[len(decayed) :]], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True, weight_decay=0.0
        )
        self.network: nn.Module = DistributedDataParallel(model) if ranks.world > 1 else model
        self.start, self.best = 0, math.inf
        self.history: list[list[float]] = []

    def resume(self, fresh: bool) -> None:
        """Read the folder's checkpoint, if there is one and it is of these settings."""
        checkpoint = None if fresh else read_checkpoint(self.folder)
        self.ranks.barrier()
        if checkpoint is None:
            return
        require_same(self.folder, checkpoint.facts.get("identity", {}), self.identity)
        try:
            self.task.model.load_state_dict(checkpoint.parts["model"])
            restore_optimizer(self.optimizer, self.names, checkpoint.parts["optimizer"])
            self.start, self.best = checkpoint.step, float(checkpoint.facts["best"] or math.inf)
            self.history = [list(map(float, point)) for point in checkpoint.facts["validation"]]
            _set_rng(checkpoint.parts["rng"], self.ranks)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{self.folder}: its checkpoint does not fit the config ({reason}); --fresh") from error

    def train(self, stopped: list[int], deadline: float) -> bool:
        """Steps from the checkpoint to the end, or until a signal or the deadline; whether that is the end.

        stopped: signals that came meanwhile; deadline: of time.monotonic. What ends one process ends all.
        """
        settings, ranks, task, report = self.task.settings, self.ranks, self.task, self.recipe.report
        if self.listener:
            self.listener.notice(self._opening())
        if self.start >= self.steps:
            return True
        journal = Journal(self.folder, self.start, tensorboard=report.tensorboard) if ranks.first else None
        device = ranks.device.type
        ahead = Ahead(self._batches, range(self.start, self.steps), workers=DATA_WORKERS[device], depth=BATCHES_AHEAD)
        logged = _Meter(self.start)
        step = saved = self.start
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        task.model.train()
        try:
            for step, batches in enumerate(ahead, self.start + 1):
                rate = learning_rate(settings, step - 1, self.steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                sums: dict[str, Tensor] = {}
                for number, (gray, masks) in enumerate(batches, 1):
                    images = task.model.normalise(gray.to(ranks.device, non_blocking=True))
                    mask = masks.to(ranks.device, non_blocking=True)
                    with self._synchronised(number == len(batches)):
                        with self._autocast():
                            loss, terms, _, _ = stage_loss(task, self.network, images, mask, ranks)
                        (loss / len(batches)).backward()
                    for name, value in {"loss": loss, **terms}.items():
                        sums[name] = sums.get(name, 0) + value.detach() / len(batches)
                norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf)
                asked = torch.tensor(float(bool(stopped) or time.monotonic() > deadline), device=ranks.device)
                agreed = ranks.mean(torch.stack([*sums.values(), norm.detach(), asked]).float()).tolist()
                values = dict(zip([*sums, "grad_norm"], agreed[:-1], strict=True))
                if not all(map(math.isfinite, values.values())):
                    raise NonFiniteError(self._non_finite(step, values, saved))
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

                ending = agreed[-1] > 0 or step == self.steps
                logged.add(values, self.images_per_step)
                row: dict[str, float] = {}
                if step % settings.validate_every == 0 or step == self.steps:
                    row = self._validate(step, journal)
                if step % report.log_every == 0 or row or ending:
                    row = logged.row(ahead.waited, images=step * self.images_per_step, learning_rate=rate) | row
                    if journal:
                        journal.row(step, row)
                if self.listener:
                    self.listener.step(step, self.steps, values, logged.speed(step, self.steps, ahead.waited))
                if step % report.picture_every == 0 or ending:
                    self._draw(step, journal)
                if step % report.checkpoint_every == 0 or ending:
                    self._save(step)
                    saved = step
                if ending:
                    break
        finally:
            ahead.close()
            if journal:
                journal.close()
        if self.listener:
            self.listener.notice(self._closing(step, ahead.waited, logged))
        return step >= self.steps

    def _batches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """This process' share of a step from 0: for each forward pass, gray (B, 1, H, W) and masks (B, P)."""
        settings, ranks = self.task.settings, self.ranks
        batches = []
        for number in range(settings.accumulate):
            place = (step * settings.accumulate + number) * ranks.world + ranks.rank
            gray, masks = map(torch.from_numpy, self.samples.batch(place * settings.batch, settings.batch))
            if ranks.device.type == "cuda":
                gray, masks = gray.pin_memory(), masks.pin_memory()
            batches.append((gray.unsqueeze(1), masks))
        return batches

    def _autocast(self) -> Any:
        device = self.ranks.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.task.settings.precision == "bf16")

    def _synchronised(self, last: bool) -> Any:
        """Gradients are averaged over processes in a step's last backward pass only."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    @torch.no_grad()
    def _validate(self, step: int, journal: Journal | None) -> dict[str, float]:
        """Losses on fixed crops with fixed masks, a share of them in each process; the best model is kept.

        Balance is that of all validation tokens together, so the loss does not depend on how they were batched.
        """
        task, ranks, batch = self.task, self.ranks, self.task.settings.batch
        alone, wanted = Ranks(0, 1, ranks.device), self.recipe.data.validation_samples
        names = [name for name in task.terms if name != "balance"]
        layers = [module for module in task.model.modules() if isinstance(module, ExpertFeedForward)]
        sums = torch.zeros(len(names), device=ranks.device)
        use = torch.zeros(len(layers), 2, self.recipe.experts.experts, device=ranks.device)
        task.model.eval()
        for first in range(ranks.rank * batch, wanted, ranks.world * batch):
            count = min(batch, wanted - first)
            gray, masks = map(torch.from_numpy, self.validation.batch(first, count))
            images = task.model.normalise(gray.unsqueeze(1).to(ranks.device))
            with self._autocast():
                _, terms, gates, _ = stage_loss(task, task.model, images, masks.to(ranks.device), alone)
            sums += count * torch.stack([terms[name] for name in names])
            for layer, gate in enumerate(gates):
                use[layer] += count * _use(gate)
        task.model.train()
        means = dict(zip(names, (ranks.mean(sums) * ranks.world / wanted).tolist(), strict=True))
        found = {"validation_mae": means["mae"]}
        if layers:
            use = ranks.mean(use) * ranks.world / wanted
            means["balance"] = _balance(use[:, 1], use[:, 0], task.settings).item()
            found |= {"expert_least": use[:, 0].min().item(), "expert_most": use[:, 0].max().item()}
            if journal:
                journal.experts(step, *use.double().cpu().numpy().swapaxes(0, 1))
        found["validation"] = sum(task.weights[name] * value for name, value in means.items())
        if not math.isfinite(found["validation"]):
            raise NonFiniteError(f"the validation loss of step {step} is not finite; lower the learning rate")
        self.history.append([step, found["validation"], found["validation_mae"]])
        if found["validation"] < self.best:
            self.best = found["validation"]
            if ranks.first:
                save_model(self.folder / "best.json", task.model, {"stage": task.number, "step": step, **found})
        ranks.barrier()
        return found

    @torch.no_grad()
    def _draw(self, step: int, journal: Journal | None) -> None:
        """The masked-reconstruction picture of the first validation samples."""
        if journal is None:
            return
        model, config = self.task.model, self.task.model.config
        gray, masks = map(torch.from_numpy, self.validation.batch(0, PICTURES))
        images = model.normalise(gray.unsqueeze(1).to(self.ranks.device))
        mask = masks.to(self.ranks.device)
        model.eval()
        with self._autocast():
            prediction = model(images, mask).prediction.float()
        model.train()
        patches = patchify(images, config.patch)
        if config.norm_pix_loss:
            spread = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
            prediction = prediction * spread + patches.mean(-1, keepdim=True)
        hidden = mask.unsqueeze(-1)
        seen = unpatchify(patches.masked_fill(hidden, 0), config.patch, config.grid)
        drawn = unpatchify(torch.where(hidden, prediction, patches), config.patch, config.grid)
        tiles = [model.denormalise(x)[:, 0].float().cpu().numpy() for x in (images, seen, drawn)]
        journal.picture(step, list(zip(*tiles, strict=True)))

    def _save(self, step: int) -> None:
        """The first process writes the checkpoint; the others hand over their random state and wait."""
        states = self.ranks.gather(torch.get_rng_state())
        on_gpu = self.ranks.device.type == "cuda"
        gpu_states = self.ranks.gather(torch.cuda.get_rng_state()) if on_gpu else []
        rng = {f"cpu.{rank}": state for rank, state in enumerate(states)}
        rng |= {f"cuda.{rank}": state for rank, state in enumerate(gpu_states)}
        if self.ranks.first:
            parts = {
                "model": dict(self.task.model.state_dict()),
                "optimizer": flatten_optimizer(self.optimizer, self.names),
                "rng": rng,
            }
            facts = {
                "identity": self.identity,
                "next_sample": step * self.images_per_step,
                "steps": self.steps,
                "best": self.best if math.isfinite(self.best) else None,
                "validation": self.history,
                **self.asked,
                "torch": torch.__version__,
                "processes": self.ranks.world,
                "device": self.ranks.device.type,
            }
            write_checkpoint(self.folder, Checkpoint(step, parts, facts))
        self.ranks.barrier()

    def _opening(self) -> str:
        number, trained = self.task.number, sum(p.numel() for p in self.task.model.parameters() if p.requires_grad)
        if self.start >= self.steps:
            return f"stage {number} is finished: {self.steps} steps, best validation loss {self.best:.5f}"
        place = f"goes on from step {self.start} of {self.steps}" if self.start else f"starts: {self.steps} steps"
        return (
            f"stage {number} {place} of {self.images_per_step} images on {self.ranks.world} "
            f"process{'es' * (self.ranks.world > 1)} ({self.ranks.device.type}), {trained:,} weights trained"
        )

    def _closing(self, step: int, waited: float, meter: "_Meter") -> str:
        what = "finished" if step == self.steps else f"stopped at step {step} of {self.steps}, checkpoint written"
        share = waited / max(meter.elapsed, 1e-9)
        best = f"best validation loss {self.best:.5f}" if math.isfinite(self.best) else "not validated yet"
        return f"stage {self.task.number} {what}; {best}; {100 * share:.1f} % of the time spent waiting for data"

    def _non_finite(self, step: int, values: dict[str, float], saved: int) -> str:
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        kept = f"the checkpoint of step {saved} stays" if saved else "no checkpoint was written yet"
        return f"step {step}: {bad} not finite; {kept}; lower the learning rate, or set clip_norm"


class _Meter:
    """Means of losses and speed since the last row of the log, and over the whole run."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.began = self.since = time.perf_counter()
        self.images = self.all_images = self.count = 0
        self.waited_before = 0.0
        self.sums: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def add(self, values: dict[str, float], images: int) -> None:
        self.count += 1
        self.images += images
        self.all_images += images
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def row(self, waited: float, **more: float) -> dict[str, float]:
        now = time.perf_counter()
        means = {name: value / self.count for name, value in self.sums.items()}
        speed = {
            "images_per_second": self.images / (now - self.since),
            "waiting": (waited - self.waited_before) / (now - self.since),
        }
        self.since, self.waited_before, self.images, self.count, self.sums = now, waited, 0, 0, {}
        return {**more, **means, **speed}

    def speed(self, step: int, steps: int, waited: float) -> dict[str, float]:
        elapsed = self.elapsed
        left = elapsed / (step - self.start) * (steps - step)
        return {
            "images_per_second": self.all_images / elapsed,
            "seconds_left": left,
            "waiting": waited / elapsed,
        }


def _packed(data: str, recipe: Recipe, ranks: Ranks) -> Packed:
    """The images: the first process makes the packed file where there is none, then all read it."""
    if ranks.first:
        pack(data, megabytes=recipe.data.megabytes)
        if recipe.data.phantom_share:
            pack_phantoms(recipe.data.phantom_scenes)
    ranks.barrier()
    return pack(data, megabytes=recipe.data.megabytes)


def _samples(recipe: Recipe, settings: StagePart, packed: Packed, model: MaskedAutoencoder) -> tuple[Samples, Samples]:
    size, tokens = model.config.image_size, math.prod(model.config.grid)
    phantoms = pack_phantoms(recipe.data.phantom_scenes).pixels(TRAIN) if recipe.data.phantom_share else ()
    train = Samples(
        packed.pixels(TRAIN),
        augmentation=recipe.data.augmentation(size),
        tokens=tokens,
        mask_ratio=settings.mask_ratio,
        seed=recipe.data.seed,
        phantoms=phantoms,
        pairs=settings.kinship is not None,
    )
    validation = Samples(
        packed.pixels(VALIDATION),
        augmentation=Augmentation(
            size, recipe.data.native_share, recipe.data.smallest_crop, contrast_jitter=0.0, brightness_jitter=0.0
        ),
        tokens=tokens,
        mask_ratio=settings.mask_ratio,
        seed=VALIDATION_SEED,
        stream=VALIDATION_STREAM,
        pairs=settings.kinship is not None,
    )
    return train, validation


def _build(stage: int, recipe: Recipe, packed: Packed, folder: Path, ranks: Ranks, listener: Listener | None) -> Task:
    """Stage 1: a drawn model. Stage 2: experts grown from stage 1, gates alone trained. Stage 3: all of stage 2's."""
    settings, seed = recipe.stage(stage), recipe.data.seed
    weights = dict(zip(TERMS, (1.0, settings.distillation, settings.balance, settings.fft, settings.psd), strict=True))
    weights["kinship"] = settings.kinship or 0.0
    architecture = recipe.architecture(*statistics(packed.pixels(TRAIN)))
    if stage == 1:
        model = MaskedAutoencoder(architecture, seed)
        return Task(1, settings, model.to(ranks.device), None, weights, "")
    teacher, first_digest = _earlier(folder.parent, 1, listener)
    _require_equal(folder.parent / "stage1", teacher.config, architecture)
    grown = replace(teacher.config, **recipe.experts.model_dump(exclude={"noise"}), gate_gradient="scale")
    if stage == 2:
        dense = replace(grown, gate_gradient="dense")
        model, digest = grow_experts(teacher, dense, seed, recipe.experts.noise), first_digest
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, ExpertFeedForward):
                module.gate.requires_grad_(True)
    else:
        before, digest = _earlier(folder.parent, 2, listener)
        _require_equal(folder.parent / "stage2", replace(before.config, gate_gradient="scale"), grown)
        model = MaskedAutoencoder(grown, seed)
        model.load_state_dict(before.state_dict())
    teacher.requires_grad_(False).eval()
    return Task(stage, settings, model.to(ranks.device), teacher.to(ranks.device), weights, digest)


def _require_equal(folder: Path, found: ModelConfig, wanted: ModelConfig) -> None:
    for field in fields(ModelConfig):
        got, asked = getattr(found, field.name), getattr(wanted, field.name)
        if got != asked:
            raise InputError(
                f"{folder}: its model has {field.name} = {got!r}, the config and its data give {asked!r}; mend the "
                "config, or train that stage anew"
            )


def _earlier(out: Path, stage: int, listener: Listener | None) -> tuple[MaskedAutoencoder, str]:
    """The best model of an earlier stage, and the digest of its file."""
    path = out / f"stage{stage}" / "best.json"
    if not path.is_file():
        raise InputError(f"{path}: not there; train stage {stage} first, with the same --out")
    model, _ = load_model(path)
    checkpoint = read_checkpoint(path.parent)
    if listener and checkpoint and checkpoint.step < checkpoint.facts.get("steps", 0):
        listener.notice(f"stage {stage} stands at step {checkpoint.step} of {checkpoint.facts['steps']}; used as it is")
    return model, hashlib.sha256(path.read_bytes()).hexdigest()


def _balance(means: Tensor, shares: Tensor, settings: StagePart) -> Tensor:
    """Eq. 9 from mean probabilities (layers, K), mean over layers; or, by choice, K sum of share times probability.

    Flat gates satisfy eq. 9 whatever they choose; the other form (Fedus et al. 2022, Switch transformers, eq. 4) pushes
    down those that take more than their share of tokens.
    """
    if settings.balance_by == "choice":
        return means.shape[-1] * (shares.detach() * means).sum(-1).mean()
    return torch.stack([losses.balance(mean) for mean in means]).mean()


def _use(gate: GateUse) -> Tensor:
    """Share of tokens and mean probability of each expert: (2, K)."""
    experts = gate.probabilities.shape[-1]
    counts = gate.choice.bincount(minlength=experts).float()
    return torch.stack([counts / counts.sum(), gate.probabilities.mean(0)])


def _set_rng(states: dict[str, Tensor], ranks: Ranks) -> None:
    if f"cpu.{ranks.rank}" in states:
        torch.set_rng_state(states[f"cpu.{ranks.rank}"])
    if ranks.device.type == "cuda" and f"cuda.{ranks.rank}" in states:
        torch.cuda.set_rng_state(states[f"cuda.{ranks.rank}"])


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying by it; a second one interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
