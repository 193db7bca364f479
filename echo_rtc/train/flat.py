"""All parameters of some networks as one tensor, with its gradient, optimiser and average.

Small networks have hundreds of small parameters. As views of one tensor they cost one kernel each for the optimiser,
the gradient's norm, the mean over ranks and the moving average, and a checkpoint is a few tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class FlatParameters:
    """The trainable parameters of ``modules``, each of which becomes a view of one float32 tensor.

    ``share`` multiplies the training's learning rate. Move the modules to their device before, never after.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        share: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.98),
        decay: float = 0.999,
        weight_decay: float = 0.01,
    ) -> None:
        self.modules, self.share, self.decay = list(modules), share, decay
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self.parameters)
        device = self.parameters[0].device
        flat, self.gradient = torch.empty(total, device=device), torch.zeros(total, device=device)
        offset = 0
        for parameter in self.parameters:
            part = slice(offset, offset + parameter.numel())
            flat[part] = parameter.data.flatten()
            parameter.data = flat[part].view(parameter.shape)
            parameter.grad = self.gradient[part].view(parameter.shape)
            offset = part.stop
        self.value = nn.Parameter(flat)
        self.value.grad = self.gradient
        self.average = flat.detach().clone()
        self.steps = 0
        self.rate = torch.zeros((), device=device)
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            [self.value],
            lr=self.rate if cuda else 0.0,
            betas=betas,
            weight_decay=weight_decay,
            fused=cuda,
            capturable=cuda,
        )

    @torch.no_grad()
    def step(self, rate: float, limit: float = 1.0) -> Tensor:
        """One optimiser step down the gradient, cut to the norm ``limit``, which is left out where it is not finite;
        the gradient is zero afterwards. Returns the gradient's norm."""
        norm: Tensor = self.gradient.norm()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        self.gradient.mul_(scale)
        torch.nan_to_num_(self.gradient, nan=0.0, posinf=0.0, neginf=0.0)
        self.rate.fill_(rate * self.share)
        if not self.rate.is_cuda:
            self.optimizer.param_groups[0]["lr"] = rate * self.share
        self.optimizer.step()
        self.gradient.zero_()
        self.steps += 1
        self.average.lerp_(self.value.detach(), 1 - min(self.decay, (1 + self.steps) / (10 + self.steps)))
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules have the averaged parameters inside this context."""
        own = self.value.detach().clone()
        try:
            self.value.data.copy_(self.average)
            yield
        finally:
            self.value.data.copy_(own)

    def take_average(self) -> None:
        """From now on the parameters are their average."""
        self.value.data.copy_(self.average)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "value": self.value.detach(),
            "average": self.average,
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of :meth:`state`. Raises ValueError where the networks are others."""
        if state["value"].shape != self.value.shape:
            raise ValueError(f"{state['value'].numel()} parameters for networks of {self.value.numel()}")
        self.value.data.copy_(state["value"])
        self.average.copy_(state["average"])
        self.steps = int(state["steps"])
        own = self.optimizer.param_groups[0]["lr"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["lr"] = own
