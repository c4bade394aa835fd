"""The processes that train one model together: one alone, or those that torchrun started."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from sembench.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, how many there are, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            distributed.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same everywhere."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
            values = values / self.world
        return values

    def mean_of_gates(self, shares: Tensor) -> Tensor:
        """Mean over all processes whose gradient, once DistributedDataParallel has averaged, is the whole batch's."""
        return shares + (self.mean(shares.detach()) - shares.detach())

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors of all processes, in order, everywhere."""
        if self.world == 1:
            return [values]
        on_device = values.to(self.device)
        gathered = [torch.empty_like(on_device) for _ in range(self.world)]
        distributed.all_gather(gathered, on_device)
        return [tensor.cpu() for tensor in gathered]


@contextlib.contextmanager
def joined(device: str | None, threads: int | None) -> Iterator[Ranks]:
    """Join the processes of torchrun (gloo on CPUs, nccl on GPUs), or be the only one; leave them at the end.

    device: cpu, cuda or None for a GPU where there is one; threads: of this process, None for its share of the cores.
    Raises InputError for a device that is not here.
    """
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"--device {device!r} is not known: give cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no GPU here; leave it out, or give cpu")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local, locals_ = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise InputError(f"{locals_} processes for {torch.cuda.device_count()} GPUs: start one a GPU")
    chosen = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(chosen)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // locals_))
    if world > 1:
        distributed.init_process_group("nccl" if kind == "cuda" else "gloo", rank=rank, world_size=world)
    try:
        yield Ranks(rank, world, chosen)
    finally:
        torch.set_num_threads(before)
        if world > 1:
            distributed.destroy_process_group()
