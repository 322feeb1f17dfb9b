"""Training on several devices, started by torchrun: one process for each, negatives gathered from all.

Each process embeds its share of the pairs and takes the loss over all of them, so the gradient, summed
over the processes, is that of one process with the whole batch.

Shape legend: M own vectors, W processes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

from bench.errors import ConfigError

PATIENCE = timedelta(days=1)  # the first process may wait that long for another run that makes the same weights


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. One process alone talks to nobody."""

    rank: int = 0
    world_size: int = 1

    def share(self, pairs: int) -> slice:
        """Return which pairs of a batch are this process's. Raises: ConfigError if they cannot be shared equally."""
        if pairs % self.world_size:
            raise ConfigError(
                f"train.batch_pairs must be a multiple of the {self.world_size} processes (negatives are gathered from "
                f"equal shares), got {pairs}"
            )
        own = pairs // self.world_size
        return slice(self.rank * own, (self.rank + 1) * own)

    def all_gather(self, own_MD: Tensor) -> Tensor:
        """Return the vectors of all processes (W M, D); gradients flow to this process's own alone."""
        if self.world_size == 1:
            return own_MD
        parts = [torch.empty_like(own_MD) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, own_MD.detach().contiguous())
        parts[self.rank] = own_MD
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in one message."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, piece in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))

    def broadcast_first(self, value: float, device: torch.device) -> float:
        """Return the value that the first process holds, so that all decide alike."""
        if self.world_size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=device)
        torch.distributed.broadcast(told, src=0)
        return float(told)


ALONE = Ranks()


def init_ranks(device: torch.device) -> Ranks:
    """Return this process's place among those that torchrun started; without torchrun it is alone."""
    if not torch.distributed.is_torchelastic_launched():
        return ALONE
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
