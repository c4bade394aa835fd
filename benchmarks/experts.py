"""What experts cost: a top-1 layer of eight against the dense feed-forward layer of one, on the same tokens.

1. Layer: forward (bar: ratio 1.25) and forward with backward (bar: 1.4), medians over pairs taken in turn in one
   process; parameters (8 times, and the gate).
2. Whole model, latency of one 224 x 224 image through encoder and decoder: without experts against with (no bar; the
   paper calls them comparable).
Exits with 1 where a bar is missed.

    python benchmarks/experts.py [--dim 192] [--tokens 3200] [--precision float32] [--pairs 15] [--threads 1]

3200 tokens are the visible ones of a batch of 64. bf16 is autocast: the weights of all eight are converted at each
step, so the ratio is larger, the more so the fewer tokens an expert has. --clock cpu counts the process' own time,
which other programs disturb less.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from restorers.semfm.experts import ExpertFeedForward, FeedForward
from restorers.semfm.model import CONFIGS, MaskedAutoencoder

EXPERTS = 8
BARS = {"forward": 1.25, "forward and backward": 1.4}


def seconds(run: Callable[[], object], device: str, clock: Callable[[], float]) -> float:
    """Time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare(
    dense: Callable[[], object], experts: Callable[[], object], pairs: int, device: str, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Median seconds of each, and the median ratio of pairs taken in turn."""
    for _ in range(3):
        dense(), experts()
    taken = [(seconds(dense, device, clock), seconds(experts, device, clock)) for _ in range(pairs)]
    own, other = (statistics.median(pair[i] for pair in taken) for i in (0, 1))
    return own, other, statistics.median(b / a for a, b in taken)


def passes(layer: nn.Module, x: Tensor, precision: str) -> dict[str, Callable[[], object]]:
    """The two measured passes of a layer over tokens (T, dim)."""
    device, upstream = x.device.type, torch.randn_like(x)

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            out = layer(x)
        return out[0] if isinstance(out, tuple) else out

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return forward()

    def both() -> None:
        layer.zero_grad(set_to_none=True)
        out = forward()
        out.backward(upstream.to(out.dtype))

    return {"forward": without_gradient, "forward and backward": both}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=CONFIGS["tiny"].dim)
    parser.add_argument("--tokens", type=int, default=3200)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--config", choices=sorted(CONFIGS), default="tiny", help="of the whole model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, dim = arguments.device, arguments.dim
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    dense, experts = FeedForward(dim, 4 * dim).to(device), ExpertFeedForward(dim, 4 * dim, EXPERTS).to(device)
    x = torch.randn(arguments.tokens, dim, device=device, requires_grad=True)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in (dense, experts)]
    print(
        f"{arguments.tokens} tokens of {dim}, {arguments.precision}, {device}, {arguments.threads} threads, "
        f"{arguments.pairs} pairs, {arguments.clock} time\n"
        f"parameters: {counts[0]:,} and {counts[1]:,}, {counts[1] / counts[0]:.2f} times"
    )
    missed = False
    one, eight = passes(dense, x, arguments.precision), passes(experts, x, arguments.precision)
    for name, bar in BARS.items():
        own, other, ratio = compare(one[name], eight[name], arguments.pairs, device, clock)
        print(f"{name}: {1e3 * own:.1f} and {1e3 * other:.1f} ms, ratio {ratio:.2f} (bar {bar})")
        missed |= ratio > bar
    latency(arguments, device, clock)
    return int(missed)


def latency(arguments: argparse.Namespace, device: str, clock: Callable[[], float]) -> None:
    """Print the time of one image through the whole model without and with experts in every encoder block."""
    config = CONFIGS[arguments.config]
    image = torch.randn(1, 1, config.image_size, config.image_size, device=device)

    def restore(model: MaskedAutoencoder) -> Callable[[], object]:
        def run() -> Tensor:
            bf16 = arguments.precision == "bf16"
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                return model.decode(model.encode(image))

        return run

    models = [MaskedAutoencoder(replace(config, experts=k)).to(device).eval() for k in (0, EXPERTS)]
    own, other, ratio = compare(restore(models[0]), restore(models[1]), arguments.pairs, device, clock)
    print(f"one image, {arguments.config}: {1e3 * own:.1f} and {1e3 * other:.1f} ms, ratio {ratio:.2f} (no bar)")


if __name__ == "__main__":
    sys.exit(main())
