"""Images per second of a pretraining step, against the same model built from transformers' ViT-MAE.

One step is mask, forward, masked L1 (eq. 4), backward and fused AdamW, on one gray channel of 224 x 224 px, patch 16,
mask 0.75. Both models have equal size, batch, precision and optimizer and take turns in one process; the ratio is the
median over pairs of steps. Exits with 1 where ours is slower (bar: ratio 1; aim: 1.2).

    python benchmarks/pretraining.py [--config tiny] [--batch 32] [--precision bf16] [--pairs 10] [--threads 2]

--clock cpu counts the process' own time, which other programs disturb less; take it with one thread.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from restorers.semfm.losses import masked_l1
from restorers.semfm.model import CONFIGS, MaskedAutoencoder, ModelConfig, patchify, random_mask
from sembench.torchvision_compat import ensure_torchvision

BAR = 1.0
AIM = 1.2


def ours(config: ModelConfig) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """Our model and its loss of a batch of images."""
    model, generator = MaskedAutoencoder(config), torch.Generator().manual_seed(0)
    rows, columns = config.grid

    def loss(images: Tensor) -> Tensor:
        mask = random_mask(generator, len(images), rows * columns).to(images.device)
        return masked_l1(model(images, mask).prediction, model.targets(images), mask)

    return model, loss


def theirs(config: ModelConfig) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """The same network from transformers, and the same loss; its own squared loss is left out."""
    ensure_torchvision()
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=config.image_size,
            patch_size=config.patch,
            num_channels=config.channels,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=round(config.dim * config.mlp_ratio),
            decoder_hidden_size=config.decoder_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=round(config.decoder_dim * config.mlp_ratio),
            layer_norm_eps=config.layer_norm_eps,
        )
    ).train()

    def loss(images: Tensor) -> Tensor:
        latent = model.vit(images)
        prediction = model.decoder(latent.last_hidden_state, latent.ids_restore).logits
        return masked_l1(prediction, patchify(images, config.patch), latent.mask)

    return model, loss


def stepper(
    model: torch.nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor, precision: str, clock: Callable[[], float]
) -> Callable[[], float]:
    """A function that trains one step and gives the seconds it took."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, weight_decay=0, fused=True)
    device = images.device.type

    def step() -> float:
        start = clock()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(images)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        value.item()
        return clock() - start

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="tiny")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    torch.set_num_threads(arguments.threads)
    config = CONFIGS[arguments.config]
    images = torch.randn(arguments.batch, 1, config.image_size, config.image_size, device=arguments.device)
    steps, sizes = [], []
    for made, loss in (ours(config), theirs(config)):
        made.to(arguments.device)
        sizes.append(sum(p.numel() for p in made.parameters() if p.requires_grad))
        steps.append(stepper(made, loss, images, arguments.precision, clock))
    if sizes[0] != sizes[1]:
        print(f"the models differ: {sizes[0]} and {sizes[1]} trained parameters")
        return 1
    for _ in range(3):
        for step in steps:
            step()
    pairs = [(steps[0](), steps[1]()) for _ in range(arguments.pairs)]
    ratio = statistics.median(other / own for own, other in pairs)
    speeds = [arguments.batch / statistics.median(pair[i] for pair in pairs) for i in (0, 1)]
    print(
        f"{arguments.config}, {sizes[0]:,} parameters, batch {arguments.batch}, {arguments.precision}, "
        f"{arguments.device}, {arguments.threads} threads, {arguments.pairs} pairs, {arguments.clock} time\n"
        f"ours          {speeds[0]:8.1f} images/s\n"
        f"transformers  {speeds[1]:8.1f} images/s\n"
        f"ratio         {ratio:8.2f} (bar {BAR}, aim {AIM}; pairs from "
        f"{min(b / a for a, b in pairs):.2f} to {max(b / a for a, b in pairs):.2f})"
    )
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
