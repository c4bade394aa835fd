"""The one training loop of all learned restorers: seeded, resumable, its state selected by validation.

Patches and the steps' seeds follow from (fit seed, step) alone, so a fit that was killed goes on as if it had not been.
"""

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from restorers.batches import Arrays, Batches, patch_arrays
from sembench.errors import CheckError, InputError, SembenchError
from sembench.micrograph import write_atomically
from sembench.restorer import Crops, FitProgress, Patch, TrainingSet

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

VALIDATIONS = 20
"""How often a fit is validated: every 5 % of its budget."""

AVERAGING = 10
"""After n steps the running average of the weights forgets at the rate 9 / (n + 10): it spans a ninth of the fit."""

ANCHOR = 0.5
"""How far from its first weights to the best trained ones an anchored fit ends.

Validation images as few as those of adaptation cannot choose it: their two like all of the way best, those of other
groups none of it, and both lose least by half. Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models.
"""

WARMUP = 0.02
"""Share of the budget over which the learning rate rises from 0."""

LAST_RATE = 0.01
"""Learning rate at the end of the cosine, as a share of the highest."""

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINTED = ("plan", "step", "best_loss", "curve", "losses", "waiting", "validations")
CURVE = "curve.csv"
CURVE_COLUMNS = ("step", "seconds", "learning_rate", "loss", "validation", "psnr", "psnr_matched")


class Unfinished(SembenchError):
    """A fit was asked to stop before its end; its checkpoint stands at that step."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit gives: the trained part of the network's state, float16, and a report of plain values.

    report: steps, seconds, waiting (share of time spent waiting for data), parameters (trained and all),
    multiply_adds_per_px, validation (loss of the kept state, after rounding) and the curve, a row a validation.
    """

    state: "dict[str, Tensor]"
    report: dict[str, Any]


def fit(
    network: "nn.Module",
    loss: "Callable[[Any, dict[str, Tensor]], Tensor]",
    training: TrainingSet,
    *,
    prepare: Callable[[Patch], Arrays] = patch_arrays,
    restored: "Callable[[Any, dict[str, Tensor]], Tensor] | None" = None,
    crops: Crops = "native",
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    schedule: Literal["cosine", "constant"] = "cosine",
    workers: int | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
    stop: Callable[[], bool] | None = None,
    anchored: bool = False,
) -> Fitted:
    """Train the parameters of `network` that require gradients, by AdamW under bfloat16 autocast where it is native.

    loss(network, batch) -> mean loss; batch: the arrays of `prepare`, stacked, on the training's device. restored(
    network, batch) -> gray levels (B, 1, H, W), for the curve's PSNR against batch["clean"]; selection is by the loss
    on the fixed validation patches, every 5 % of the budget. prepare must be a function of a module (it is sent to the
    workers that make batches ahead; workers=0: they are made in between). The global random state of torch is
    untouched; within a step it is seeded by (training.seed, step). Gradients are clipped at norm 1. What is validated
    and kept is a running average of the weights, which on restoration is ahead of the weights themselves.
    rates: share of the learning rate of the parameters whose names begin so; 1 for all others.
    anchored: the fit ends half way (ANCHOR) between the first weights and the best trained ones; for first weights that
    know more than the training images tell.
    With training.start, training begins from its state, at its share of the learning rate.
    With training.folder, a checkpoint and the curve are kept there, and a fit that was killed resumes.
    Raises CheckError where the loss is not finite; the last checkpoint stays. Raises Unfinished, after a checkpoint,
    once `stop`, which is asked after each step, says so.
    """
    import torch

    device = torch.device(training.device)
    network.to(device)
    if training.start:
        load(network, training.start.state)
        learning_rate *= training.start.rate
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(_groups(network, rates), lr=learning_rate, weight_decay=weight_decay)
    plan = [training.digest, training.degradation, training.seed, str(training.budget), crops]
    plan += [learning_rate, weight_decay, schedule, [list(p.shape) for p in trained]]
    plan += [training.start.sha256] if training.start else []
    plan += [dict(rates)] if rates else []
    first = trained_state(network) if anchored else {}
    run = _Run(network, optimiser, training, hashlib.sha256(json.dumps(plan).encode()).hexdigest())
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        Batches(training, prepare, crops, workers) as batches,
        _threads(batches.cores_left),
    ):
        judge = _Judge(loss, restored, batches.validation(), device)
        run.resume()
        batches.start(run.step)
        _to_train(network)
        while not run.done():
            batch = run.waited(batches.next)
            rate = learning_rate * _share_of_rate(run.progress(), schedule)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            torch.manual_seed(step_seed(training.seed, run.step))
            with _autocast(device):
                value = loss(network, _on(batch, device))
            told = float(value.detach())
            if not math.isfinite(told):
                raise CheckError(f"loss is {told} at step {run.step}: lower the learning rate")
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            run.stepped(told)
            if run.validation_due():
                run.validated(judge, rate)
            if stop and stop() and not run.done():
                run.pause()
        report = run.report()
        if anchored:
            run.best = _between(first, run.best, ANCHOR)
        state = {name: _rounded(name, value) for name, value in run.best.items()}
        load(network, state)
        report |= {"validation": judge(network)["validation"], "multiply_adds_per_px": judge.multiply_adds(network)}
    if training.folder:
        (training.folder / CHECKPOINT).unlink(missing_ok=True)
    return Fitted(state, report)


def _groups(network: "nn.Module", rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters that are trained, those of one share of the learning rate together."""
    groups: dict[float, list[Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            share = next((share for prefix, share in rates.items() if name.startswith(prefix)), 1.0)
            groups.setdefault(share, []).append(parameter)
    return [{"params": parameters, "share": share} for share, parameters in groups.items()]


def _between(first: "dict[str, Tensor]", last: "dict[str, Tensor]", share: float) -> "dict[str, Tensor]":
    """The state at a share of the way from one to another; what is no floating-point number is the last one's."""
    return {k: v.lerp(last[k], share) if v.is_floating_point() else last[k] for k, v in first.items()}


@contextmanager
def _threads(most: int) -> Iterator[None]:
    """Torch leaves the cores to the workers that they keep busy: threads that outnumber cores wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step_seed(seed: int, step: int) -> int:
    """The seed of torch within one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}.{step}".encode()).digest()[:7], "big")


def trained_state(network: "nn.Module") -> "dict[str, Tensor]":
    """A copy of what training changes: state less frozen parameters and less buffers of wholly frozen modules."""
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    for prefix, module in network.named_modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            frozen |= {f"{prefix}.{name}" if prefix else name for name in module.state_dict()}
    return {k: v.detach().cpu().clone() for k, v in network.state_dict().items() if k not in frozen}


def load(network: "nn.Module", state: "Mapping[str, Tensor]") -> None:
    """Set the trained part of a network, float16 becoming the network's precision; InputError where it does not fit."""
    wanted = trained_state(network)
    lacking, foreign = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    differing = [k for k in wanted if k in state and wanted[k].shape != state[k].shape]
    if lacking or foreign or differing:
        first = (lacking or foreign or differing)[0]
        raise InputError(f"a fitted state does not fit the network ({first!r}): fit again with these settings")
    network.load_state_dict(dict(state), strict=False)


def _to_train(network: "nn.Module") -> None:
    """Training mode, but for wholly frozen modules, whose running statistics and dropout stay as in use."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch draws from `seed` inside, and afterwards as if nothing had been drawn: for the first weights."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _share_of_rate(progress: float, schedule: str) -> float:
    if schedule == "constant":
        return 1.0
    rising = min(1.0, (progress + 1e-3) / WARMUP)
    return rising * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _rounded(name: str, value: "Tensor") -> "Tensor":
    if not value.is_floating_point():
        return value.contiguous()
    half = value.half().contiguous()
    if not half.isfinite().all():
        raise CheckError(f"{name} does not fit into half precision: lower the learning rate")
    return half


def _on(batch: Arrays, device: "torch.device") -> "dict[str, Tensor]":
    import torch

    return {name: torch.from_numpy(value).to(device) for name, value in batch.items()}


def _autocast(device: "torch.device") -> Any:
    """bfloat16 where the processor computes it natively, else float32."""
    import torch

    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


class _Judge:
    """The loss, and the PSNR in dB, of a network on the fixed validation patches."""

    def __init__(self, loss: Any, restored: Any, batches: list[Arrays], device: "torch.device") -> None:
        self.loss, self.restored, self.batches, self.device = loss, restored, batches, device

    def __call__(self, network: "nn.Module") -> dict[str, float]:
        import torch

        losses, plain, matched = [], [], []
        network.eval()
        with torch.no_grad(), _autocast(self.device):
            for arrays in self.batches:
                batch = _on(arrays, self.device)
                torch.manual_seed(0)
                losses.append(float(self.loss(network, batch)))
                if self.restored:
                    images = self.restored(network, batch).float().clamp(0, 255).cpu().numpy()
                    for one, clean in zip(images[:, 0], arrays["clean"][:, 0], strict=True):
                        plain.append(_psnr(one - clean))
                        matched.append(_psnr(_matched(one, clean) - clean))
        _to_train(network)
        scores = {"validation": float(np.mean(losses))}
        if plain:
            scores |= {"psnr": float(np.mean(plain)), "psnr_matched": float(np.mean(matched))}
        return scores

    def multiply_adds(self, network: "nn.Module") -> float:
        """Multiply-adds of a forward pass of the loss for each pixel of a patch."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        batch = _on({name: value[:1] for name, value in self.batches[0].items()}, self.device)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.loss(network, batch)
        return counter.get_total_flops() / 2 / batch["clean"].numel()


def _psnr(error: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / max(float(np.mean(error.astype(np.float64) ** 2)), 1e-5)))


def _matched(image: NDArray[Any], clean: NDArray[Any]) -> NDArray[Any]:
    """The image after the gain and offset of the suite's matched metrics."""
    from scipy.ndimage import gaussian_filter

    x, y = (gaussian_filter(a.astype(np.float64), 3) for a in (image, clean))
    gain = max(float(((x - x.mean()) * (y - y.mean())).sum() / max(float(((x - x.mean()) ** 2).sum()), 1e-9)), 1e-3)
    return np.clip(gain * (image - x.mean()) + y.mean(), 0, 255)


class _Run:
    """Where a fit stands: its step, its best state, its curve, its checkpoint."""

    def __init__(self, network: Any, optimiser: Any, training: TrainingSet, plan: str) -> None:
        self.network, self.optimiser, self.training, self.plan = network, optimiser, training, plan
        self.step, self.best_loss, self.best = 0, math.inf, dict[str, Any]()
        self.curve: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.average: dict[str, Any] = trained_state(network)
        self.waiting, self.before, self.started, self.validations = 0.0, 0.0, time.monotonic(), 0
        self.told = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def progress(self) -> float:
        """Share of the budget that is spent."""
        budget = self.training.budget
        return self.step / budget.steps if budget.steps else self.seconds / (60 * (budget.minutes or 1))

    def done(self) -> bool:
        """Whether the budget is spent and the last state judged."""
        return self.progress() >= 1 and bool(self.curve) and self.curve[-1]["step"] == self.step

    def waited(self, get: Callable[[], Arrays]) -> Arrays:
        """A batch, the time until it came being counted."""
        before = time.monotonic()
        batch = get()
        self.waiting += time.monotonic() - before
        return batch

    def stepped(self, loss: float) -> None:
        """Count a step and tell of it, ten times a second at most."""
        self.step += 1
        self.losses.append(loss)
        self._average()
        if time.monotonic() - self.told > 0.1:
            self._tell(None)

    def _average(self) -> None:
        import torch

        forget = (AVERAGING - 1) / (self.step + AVERAGING)
        now = self.network.state_dict()
        with torch.no_grad():
            for name, mean in self.average.items():
                value = now[name].to(mean.device)
                mean.lerp_(value, forget) if mean.is_floating_point() else mean.copy_(value)

    def _tell(self, validation: float | None) -> None:
        self.told = time.monotonic()
        if self.training.on_progress:
            left = self.seconds * (1 / max(self.progress(), 1e-6) - 1)
            loss = float(np.mean(self.losses[-50:]))
            share = self.waiting / max(self.seconds, 1e-9)
            steps = self.training.budget.steps
            self.training.on_progress(FitProgress(self.step, steps, loss, validation, max(left, 0.0), share))

    def validation_due(self) -> bool:
        """Whether another 5 % of the budget is spent."""
        return math.floor(self.progress() * VALIDATIONS + 1e-9) > self.validations or self.progress() >= 1

    def validated(self, judge: "_Judge", rate: float) -> None:
        """Judge the average of the weights; keep it if it is the best so far, the curve, and a checkpoint."""
        now = trained_state(self.network)
        load(self.network, self.average)
        scores = judge(self.network)
        load(self.network, now)
        self.validations = math.floor(self.progress() * VALIDATIONS + 1e-9)
        row = {"step": self.step, "seconds": round(self.seconds, 2), "learning_rate": rate}
        self.curve.append({**row, "loss": float(np.mean(self.losses)), **scores})
        self.losses.clear()
        self.losses.append(self.curve[-1]["loss"])
        if scores["validation"] < self.best_loss or not self.best:
            self.best_loss = scores["validation"]
            self.best = {name: value.clone() for name, value in self.average.items()}
        if self.training.folder:
            self._write_curve(self.training.folder / CURVE)
            self._save(self.training.folder / CHECKPOINT)
        self._tell(scores["validation"])

    def pause(self) -> None:
        """Leave a checkpoint and raise Unfinished."""
        if self.training.folder:
            self._save(self.training.folder / CHECKPOINT)
        raise Unfinished(f"stopped at step {self.step} of {self.training.budget.steps}: the same command goes on")

    def _write_curve(self, path: Path) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.curve)
        write_atomically(path, text.getvalue().encode())

    def _save(self, path: Path) -> None:
        from safetensors.torch import save

        tensors = {f"network.{name}": value.contiguous() for name, value in trained_state(self.network).items()}
        tensors |= {f"average.{name}": value.contiguous() for name, value in self.average.items()}
        tensors |= {f"best.{name}": value.contiguous() for name, value in self.best.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"moment.{number}.{name}": value.contiguous() for name, value in moments.items()}
        told = {name: getattr(self, name) for name in CHECKPOINTED}
        write_atomically(path, save(tensors, {"fit": json.dumps(told | {"before": self.seconds})}))

    def resume(self) -> None:
        """Go on from the folder's checkpoint; one that is damaged, or of another fit, is as good as none."""
        from safetensors import SafetensorError, safe_open

        path = self.training.folder / CHECKPOINT if self.training.folder else None
        if path is None or not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["fit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError):
            return
        if told.pop("plan", None) != self.plan:
            return
        load(self.network, _under(tensors, "network."))
        moments: dict[int, dict[str, Any]] = {}
        for name, value in _under(tensors, "moment.").items():
            number, _, kind = name.partition(".")
            moments.setdefault(int(number), {})[kind] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self.best, self.average = _under(tensors, "best."), _under(tensors, "average.")
        for name, value in told.items():
            setattr(self, name, value)

    def report(self) -> dict[str, Any]:
        """Plain values for the fit's record."""
        import torch

        return {
            "steps": self.step,
            "batch": self.training.budget.batch,
            "seconds": round(self.seconds, 1),
            "waiting": round(self.waiting / max(self.seconds, 1e-9), 4),
            "parameters_trained": sum(p.numel() for p in self.network.parameters() if p.requires_grad),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "torch": torch.__version__,
            "device": self.training.device,
            "threads": torch.get_num_threads(),
            "curve": self.curve,
        }


def _under(tensors: "Mapping[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
