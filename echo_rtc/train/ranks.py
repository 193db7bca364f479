"""One training spread over the GPUs of a machine: who is who, and means over all of them.

Started with ``torchrun``, one process a GPU; without it there is one rank. It knows nothing of what is trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from echo_rtc.train.loop import best_device


@dataclass(frozen=True)
class Ranks:
    """This process's number among ``count`` processes that train together, and its device."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls, device: str) -> Ranks:
        """The rank that torchrun gave this process; alone where it gave none. Raises SettingsError."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        if count > 1 and device == "auto" and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        found = best_device(device)
        if found.type == "cuda":
            torch.cuda.set_device(found)
        if count > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if found.type == "cuda" else "gloo")
        return cls(rank, count, found)

    @property
    def first(self) -> bool:
        """Whether this process is the one that reports and writes."""
        return self.rank == 0

    def mean_(self, value: Tensor) -> None:
        """Replaces ``value`` with its mean over all ranks."""
        if self.count > 1:
            distributed.all_reduce(value)
            value.div_(self.count)

    def share_(self, value: Tensor) -> None:
        """Replaces ``value`` with the first rank's."""
        if self.count > 1:
            distributed.broadcast(value, 0)

    def agree(self, value: float) -> float:
        """The first rank's ``value``: what each rank reads off its own clock differs, and all must take the same number
        of steps."""
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        self.share_(shared)
        return float(shared)

    def wait(self) -> None:
        """Returns once all ranks have come here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Ends the group."""
        if self.count > 1:
            distributed.destroy_process_group()
