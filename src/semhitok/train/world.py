"""One process or several: the few collective operations that training needs.

Under `torchrun` every rank trains on its rows of the global batch. Ranks hold the same weights from
start to end, since they start alike and every update is made from sums over all ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def join(cls) -> World:
        """Join the process group that `torchrun` describes, or stand alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if cuda else 0)
        if cuda:
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        if size == 1:
            return cls(device=device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank=dist.get_rank(), size=size, device=device)

    def leave(self) -> None:
        """Leave the process group, where there is one."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Add each tensor over all ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Rows of all ranks in the order of the global batch, whose row n is on rank n % size."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    def average_gradients(self, modules: Iterable[nn.Module]) -> None:
        """Replace gradients by their mean over ranks, in one message."""
        if self.size == 1:
            return
        gradients = [
            p.grad for module in modules for p in module.parameters() if p.grad is not None
        ]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over ranks, as Python numbers."""
        if not values:
            return {}
        stacked = torch.stack([v.detach().float().reshape(()) for v in values.values()]).double()
        self.sum_(stacked)
        return dict(zip(values, (stacked / self.size).tolist(), strict=True))

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()
