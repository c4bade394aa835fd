"""Ratios of what the suite does to what would be done without it, as a Markdown table.

windows  Restoring 512 x 512 px in batches of windows, against one window at a time: the states that ship for `paper`
         (bar: results within 0.001 gray levels).
metrics  SSIM, LPIPS and NIQE of 512 x 512 px, against pyiqa called for each image: one pair, and eight restored images
         of one case, as a run scores them (bar: values within each metric's tolerance). pyiqa's LPIPS is given the
         weights at hand in place of its downloads; gray levels are whole, as pyiqa's SSIM and NIQE round to these.
runner   `sembench run` on 10, 100 and 1000 images of 160 x 160 px, two restorers, with 1 and with 2 workers: processor
         time of a further case after 100 over one before (aim: at most 1.1), peak memory at 1000 over that at 10 (aim:
         at most 1.05), wall time of 1 worker over that of 2 at 1000 cases.
shares   Where a run of s2s spends its time: no ratio, shares of the processor time.

A ratio above 1 says how many times longer the other way takes; it is the median of pairs taken in turn, the smallest
and the largest pair in brackets. One thread each. Times are the processes' own, which other programs disturb little; of
two workers the wall time is meant, which needs two idle cores. Exits with 1 where a bar or an aim is missed.

    python benchmarks/speed.py [windows] [metrics] [runner] [shares] [--pairs 9] [--turns 3] [--workers 1,2]
"""

import argparse
import contextlib
import cProfile
import io
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from in_turn import Ratio, compare
from numpy.typing import NDArray
from programs import SMALL, Used, draw_images, sembench
from scipy.ndimage import gaussian_filter
from threadpoolctl import threadpool_limits

from sembench.cases import Case, plan_cases
from sembench.execution import fits, worker
from sembench.execution.prepare import find_weights, prepare
from sembench.execution.request import RunRequest
from sembench.metrics import perceptual
from sembench.metrics.table import MetricCase, MetricSpec, evaluate
from sembench.micrograph import write_grid_png
from sembench.protocol import load
from sembench.registry import METRICS, find_method, plugin, resolve_settings

Image = NDArray[np.float32]

WINDOWED = ("semfm", "semfm_plain", "semfm_no_encoder", "semfm_zero_shot")
LARGEST_DIFFERENCE = 1e-3
"""Gray levels by which batched and single windows may differ."""

RESTORED = 8
"""Restored images of one case."""

CASES = (10, 100, 1000)
MOST_TIME, MOST_MEMORY = 1.1, 1.05


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    what: str
    against: str
    ratio: Ratio
    bar: str = ""
    seen: str = ""
    missed: bool = False

    def __str__(self) -> str:
        return f"| {self.what} | {self.against} | {self.ratio} | {self.bar} | {self.seen}{' MISSED' * self.missed} |"


def phantom_case() -> Case:
    """The first phantom case of s2s."""
    protocol = load("s2s")
    return plan_cases(protocol, "phantom", limit=1).specs[0].make(protocol)


def windows(given: argparse.Namespace) -> Iterator[Line]:
    """Batches of windows against single ones, through `restore`."""
    from restorers.semfm import restorer as semfm

    image, batch = phantom_case().degraded, semfm._BATCH
    for name in WINDOWED:
        method = find_method(name)
        settings = resolve_settings(method, {}, "paper")
        restorer = method.cls(settings)
        if method.cls.learns():
            shipped = fits.find_shipped(method, settings, "paper")
            if shipped is None:
                raise SystemExit(f"no state of {name} ships for these settings")
            restorer.state = fits.load_state(shipped.path, shipped.sha256)

        def by(size: int, restorer: Any = restorer) -> Image:
            with mock.patch.object(semfm, "_BATCH", size):
                return restorer.restore(image)

        both = compare(partial(by, batch), partial(by, 1), given.pairs)
        apart = float(np.abs(both.results[0] - both.results[1]).max())
        bar, missed = f"{LARGEST_DIFFERENCE:g} gray levels", apart > LARGEST_DIFFERENCE
        yield Line(f"{name}, batches of {batch} windows", "one at a time", both.ratio, bar, f"{apart:.1e}", missed)


def metrics(given: argparse.Namespace) -> Iterator[Line]:
    """The suite's metrics against pyiqa's."""
    weights, missing = find_weights()
    if missing:
        raise SystemExit(missing[0])
    perceptual.use_weights(weights)
    case = phantom_case()
    assert case.reference is not None
    degraded, reference = np.round(case.degraded), np.round(case.reference)
    restored = [np.round(gaussian_filter(degraded, sigma)) for sigma in np.linspace(0.5, 4, RESTORED)]
    for name, call in pyiqa_metrics(weights).items():
        spec = plugin(METRICS, name).load()
        for images, told in ((restored[:1], "one image"), (restored, f"{RESTORED} images of one case")):
            both = compare(
                partial(ours, spec, images, degraded, reference), partial(theirs, call, images, reference), given.pairs
            )
            apart = max(abs(a - b) for a, b in zip(*both.results, strict=True))
            missed = apart > spec.tolerance
            yield Line(f"{name}, {told}", "pyiqa", both.ratio, f"{spec.tolerance:g}", f"{apart:.1e}", missed)


def ours(spec: MetricSpec, images: list[Image], degraded: Image, reference: Image) -> list[Any]:
    """One metric of images of one case, as a worker scores them."""
    case = MetricCase(degraded, reference)
    return [evaluate([spec], image, case).values[spec.name] for image in images]


def theirs(call: Callable[..., Any], images: list[Image], reference: Image) -> list[float]:
    """The same from pyiqa, called with each image and the reference."""
    return [float(call(*(as_tensor(one) for one in (image, reference)))) for image in images]


def as_tensor(image: Image) -> torch.Tensor:
    """(1, 1, H, W) in 0..1."""
    return torch.from_numpy(image / np.float32(255))[None, None]


def pyiqa_metrics(weights: dict[str, Path]) -> dict[str, Callable[..., Any]]:
    """pyiqa's metrics by the suite's names; its LPIPS asks torchvision for AlexNet and is handed ours."""
    perceptual.ensure_torchvision()
    import lpips
    import pyiqa
    from safetensors.torch import load_file
    from torchvision import models

    bare, features = models.alexnet, load_file(weights[perceptual.ALEXNET])

    def alexnet(**asked: Any) -> torch.nn.Module:
        network = bare()
        network.load_state_dict(features, strict=False)
        return network

    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    parameters = weights[perceptual.NIQE_PARAMETERS]
    with mock.patch.object(models, "alexnet", alexnet), contextlib.redirect_stdout(io.StringIO()):
        return {
            "ssim": pyiqa.create_metric("ssim", device="cpu"),
            "lpips": pyiqa.create_metric("lpips", pretrained_model_path=str(heads), device="cpu"),
            "niqe": pyiqa.create_metric("niqe", pretrained_model_path=str(parameters), device="cpu"),
        }


def runner(given: argparse.Namespace) -> Iterator[Line]:
    """Whole runs on more and more cases."""
    numbers = [int(number) for number in given.workers.split(",")]
    used: dict[int, list[list[Used]]] = {number: [] for number in numbers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small.toml").write_text(SMALL.format(size=192, names='"psnr", "ssim"'))
        draw_images(folder / "images", max(CASES))
        for _ in range(given.turns):
            for number in numbers:
                used[number].append([run(folder, cases, number) for cases in CASES])
    for number, turns in used.items():
        by = f"{number} worker{'s' * (number > 1)}"
        growth = Ratio(tuple(further(turn, 1) / further(turn, 0) for turn in turns))
        costs = np.median([[further(turn, 0), further(turn, 1)] for turn in turns], axis=0)
        seen = f"{1e3 * costs[0]:.1f} and {1e3 * costs[1]:.1f} ms"
        yield _aimed(f"a further case, {by}, {CASES[1]} to {CASES[2]}", f"{CASES[0]} to {CASES[1]}", growth, seen)
        for what in ("command", "worker"):
            peaks = np.array([[getattr(one, f"{what}_mib") for one in turn] for turn in turns])
            ratio = Ratio(tuple(peaks[:, -1] / peaks[:, 0]))
            seen = ", ".join(f"{mib:.0f}" for mib in np.median(peaks, axis=0)) + " MiB"
            yield _aimed(f"peak memory of the {what}, {by}, {CASES[-1]} cases", f"{CASES[0]}", ratio, seen, MOST_MEMORY)
    if set(numbers) >= {1, 2}:
        walls = [(one[-1].wall_s, two[-1].wall_s) for one, two in zip(used[1], used[2], strict=True)]
        yield Line(f"2 workers, {CASES[-1]} cases, wall time", "1 worker", Ratio(tuple(a / b for a, b in walls)))


def run(folder: Path, cases: int, workers: int) -> Used:
    """A run of its own on the folder's images, told on the way."""
    asked = ["--protocol", folder / "small.toml", "--data", folder / "images", "--restorer", "input,gaussian"]
    out = ["--out", folder / "run", "--fresh"]
    used = sembench("run", *asked, *out, "--limit", str(cases), "--workers", str(workers))
    print(f"{cases} cases, {workers} workers: {used}", file=sys.stderr, flush=True)
    return used


def further(turn: list[Used], index: int) -> float:
    """Processor seconds of one case more, between two numbers of cases."""
    return (turn[index + 1].cpu_s - turn[index].cpu_s) / (CASES[index + 1] - CASES[index])


def _aimed(what: str, against: str, ratio: Ratio, seen: str, most: float = MOST_TIME) -> Line:
    return Line(what, against, ratio, f"at most {most:g}", seen, bool(ratio.median > most))


def shares(given: argparse.Namespace) -> None:
    """Profile a worker in this process on the first cases of s2s, and print what its steps take."""
    with tempfile.TemporaryDirectory() as folder:
        request = RunRequest(("input", "gaussian", "semfm"), "s2s", given.data, Path(folder), limit=4, workers=1)
        plan = prepare(request)
        states = {row_id: fits.ensure(fit) for row_id, fit in plan.fit_plans.items()}
        files = {row_id: (state.path, state.sha256) for row_id, state in states.items()}
        worker.start(worker.Job(plan.protocol, plan.metrics, plan.weights, plan.folder, files), quiet=False)
        profile = cProfile.Profile(time.process_time)
        for row in plan.rows:
            worker.solve(row, plan.cases.specs[0])
        worker._made.cache_clear()
        for spec in plan.cases.specs:
            for row in plan.rows:
                record = profile.runcall(worker.solve, row, spec)
                if record["status"] != "ok":
                    raise SystemExit(f"{row.name} on {spec.case_id}: {record['reason']}")
    spent = pstats.Stats(profile).stats  # type: ignore[attr-defined]

    def seconds(function: Callable[..., Any]) -> float:
        code = function.__code__
        return spent.get((code.co_filename, code.co_firstlineno, code.co_name), (0, 0, 0, 0.0))[3]

    parts = {"making cases": worker._made.__wrapped__, "writing": write_grid_png}
    parts |= {f"restoring, {row.name}": find_method(row.name).cls.restore for row in plan.rows}
    parts |= {f"scoring, {name}": plugin(METRICS, name).load().function for name in plan.metrics}
    total = seconds(worker.solve)
    print(f"\n{len(plan.cases.specs)} cases of {plan.cases.data} x {len(plan.rows)} restorers, {total:.1f} s\n")
    print("| step | share |\n|---|---|")
    for name, took in sorted(
        ((name, seconds(part) / total) for name, part in parts.items()), key=lambda pair: -pair[1]
    ):
        if took > 0.001:
            print(f"| {name} | {100 * took:.1f} % |")


SECTIONS = {"windows": windows, "metrics": metrics, "runner": runner}


def main() -> int:
    """Print the lines of the sections asked for; 1 where one misses its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help="windows, metrics, runner, shares; all where none is named")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of windows and metrics")
    parser.add_argument("--turns", type=int, default=3, help="turns of the runner")
    parser.add_argument("--workers", default="1,2", help="numbers of workers of the runner")
    parser.add_argument("--data", help="data of the shares; the protocol's where none is named")
    given = parser.parse_args()
    asked = given.sections or [*SECTIONS, "shares"]
    unknown = [name for name in asked if name not in (*SECTIONS, "shares")]
    if unknown:
        parser.error(f"{unknown[0]}: give windows, metrics, runner or shares")
    torch.set_num_threads(1)
    missed = False
    with threadpool_limits(1):
        print("| what | against | times as long or as much | bar, aim | seen |\n|---|---|---|---|---|", flush=True)
        for name in asked:
            for line in SECTIONS[name](given) if name in SECTIONS else ():
                print(line, flush=True)
                missed |= line.missed
        if "shares" in asked:
            shares(given)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
