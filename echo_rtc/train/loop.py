"""What the three training commands share: a wall-clock schedule, averaged weights and a line of progress.

A training here runs for a given number of minutes, not steps, because rented accelerators are paid by the minute. It
knows nothing of what is trained.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from echo_rtc.errors import InputError, SettingsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises over ``warmup`` of the ``minutes`` and falls along a cosine to a hundredth. A run that
    is to go on later ends after ``piece_minutes`` of them.

    Raises SettingsError for a time or a rate that is not above 0.
    """

    minutes: float
    learning_rate: float
    warmup: float = 0.03
    report_s: float = 15.0
    piece_minutes: float = math.inf

    def __post_init__(self) -> None:
        for name in ("minutes", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if not self.piece_minutes > 0:
            raise SettingsError(f"--piece-minutes is {self.piece_minutes}; it must be above 0")

    def rate(self, progress: float) -> float:
        """The learning rate at ``progress`` in 0..1 of the run."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))
        return self.learning_rate * (0.01 + 0.99 * fall)


class Average:
    """Exponential moving average of a module's parameters and buffers, warmed up so that early values do not linger."""

    EVERY = 5
    """Steps between two updates: each is hundreds of small launches."""

    def __init__(self, module: nn.Module, decay: float = 0.995) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: value.detach().clone().float() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        state = module.state_dict()
        own = [self.values[name] for name in state]
        torch._foreach_lerp_(own, [value.detach().float() for value in state.values()], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict({name: value.to(module.state_dict()[name].dtype) for name, value in self.values.items()})


class Run:
    """Iterates over the steps of one training: sets the learning rate, steps the optimiser, reports.

    Use as ``for step in run: loss = ...; run.descend(loss, mouth=...)``.
    """

    def __init__(self, modules: list[nn.Module], schedule: Schedule, name: str) -> None:
        self.schedule = schedule
        self.name = name
        self.modules = modules
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.parameters = parameters
        cuda = parameters[0].is_cuda
        # On an accelerator the rate is a tensor, so that a captured step reads its present value.
        self.rate = torch.zeros((), device=parameters[0].device)
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=self.rate if cuda else 0.0,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            fused=cuda,
            capturable=cuda,
        )
        self.averages = [Average(module) for module in modules]
        self.progress = 0.0

    def __iter__(self) -> Iterator[int]:
        start = reported = time.monotonic()
        step = 0
        while True:
            now = time.monotonic()
            self.progress = (now - start) / (60 * self.schedule.minutes)
            if self.progress >= 1:
                break
            self._set_rate(self.schedule.rate(self.progress))
            self.figures: dict[str, Tensor] = {}
            yield step
            step += 1
            if step % Average.EVERY == 0:
                for module, average in zip(self.modules, self.averages, strict=True):
                    average.update(module)
            if now - reported >= self.schedule.report_s or step == 1:
                reported = now
                figures = "  ".join(f"{key} {float(value):.4f}" for key, value in self.figures.items())
                log.info("%s: %3.0f %%  step %d  %s", self.name, 100 * self.progress, step, figures)
        for module, average in zip(self.modules, self.averages, strict=True):
            average.copy_to(module)
        log.info("%s: done after %d steps", self.name, step)

    def _set_rate(self, rate: float) -> None:
        self.rate.fill_(rate)
        if not self.rate.is_cuda:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def descend(self, loss: Tensor, **figures: Tensor) -> None:
        """One optimiser step down ``loss``; ``figures`` are reported beside it now and then."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.figures = {"loss": loss.detach(), **figures}


def start_log() -> None:
    """Progress lines on the console."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def best_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device where there is one. Raises SettingsError for a device that is not there."""
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"--device is {device!r}, which is not there; give auto, cpu or cuda:N") from error
    return torch.device(device)


def make_folder(path: Path) -> Path:
    """Makes the folder for a training's result: before it, not after. Raises InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {path} cannot be made ({error.strerror}); name another") from error
    return path
