"""Training on several devices, started by torchrun: one process per device, with negatives gathered from all.

Each process embeds its share of the pairs and takes the loss over all pairs. The gradient, summed over the processes,
is thus that of one process with the whole batch.

Shape legend: M vectors of this process, W processes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

from bench.errors import ConfigError

TIMEOUT = timedelta(days=1)  # of a process waiting for the first, which may itself wait for a run with the same weights


@dataclass(frozen=True)
class Ranks:
    """Rank and world size; a single process communicates with no other."""

    rank: int = 0
    world_size: int = 1

    def share(self, pairs: int) -> slice:
        """Return this process's slice of a batch's pairs. Raises: ConfigError if they cannot be divided equally."""
        if pairs % self.world_size:
            raise ConfigError(
                f"train.batch_pairs must be a multiple of the {self.world_size} processes (negatives are gathered from "
                f"equal shares), got {pairs}"
            )
        share = pairs // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def all_gather(self, local_MD: Tensor) -> Tensor:
        """Return the vectors of all processes (W x M, D); gradients flow only to those of this process."""
        if self.world_size == 1:
            return local_MD
        parts = [torch.empty_like(local_MD) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, local_MD.detach().contiguous())
        parts[self.rank] = local_MD
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients over all processes, in one message."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def broadcast_first(self, value: float, device: torch.device) -> float:
        """Return the first process's value, so that all processes decide alike."""
        if self.world_size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)


ALONE = Ranks()


def init_ranks(device: torch.device) -> Ranks:
    """Return the rank of this process among those that torchrun started; without torchrun it is alone."""
    if not torch.distributed.is_torchelastic_launched():
        return ALONE
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
