"""A training's share of rented time: how far it is, at which rate it learns, when it saves.

Knows nothing of what is trained. All ranks go through the same number of steps, by the first one's clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echo_rtc.errors import InputError
from echo_rtc.train.loop import Schedule
from echo_rtc.train.ranks import Ranks

log = logging.getLogger(__name__)

LOOK_EVERY = 10
"""Steps between two looks at the clock, which all ranks take together."""


class Budget:
    """Iterates over the steps of a training of ``schedule.minutes``, going on from ``spent_s`` where it was resumed,
    for at most ``schedule.piece_minutes``.

    ``save`` is called by every rank every ``save_s`` seconds and at the end.
    """

    def __init__(self, name: str, ranks: Ranks, schedule: Schedule, save: Callable[[], None], save_s: float) -> None:
        self.name, self.ranks, self.schedule = name, ranks, schedule
        self.spent_s, self.step = 0.0, 0
        self.figures: Mapping[str, Tensor] = {}
        self._save, self._save_s = save, save_s

    @property
    def progress(self) -> float:
        """How much of the time is over, 0..1."""
        return min(1.0, self.spent_s / (60 * self.schedule.minutes))

    @property
    def over(self) -> bool:
        """Whether all of the time is over, and not only this piece of it."""
        return self.progress >= 1

    @property
    def rate(self) -> float:
        """The present learning rate."""
        return self.schedule.rate(self.progress)

    def __iter__(self) -> Iterator[int]:
        begun = time.monotonic() - self.spent_s
        until_s = self.spent_s + 60 * self.schedule.piece_minutes
        saved = reported = self.spent_s
        while True:
            if self.step % LOOK_EVERY == 0:
                self.spent_s = self.ranks.agree(time.monotonic() - begun)
                if self.over or self.spent_s >= until_s:
                    break
                if self.spent_s - saved > self._save_s:
                    self._save()
                    saved = self.spent_s
                if self.spent_s - reported > self.schedule.report_s or self.step == LOOK_EVERY:
                    reported = self.spent_s
                    self._report()
            yield self.step
            self.step += 1
        self._report()
        self._save()
        self.ranks.wait()

    def _report(self) -> None:
        if self.ranks.first:
            figures = "  ".join(f"{key} {float(value):.4f}" for key, value in self.figures.items())
            log.info("%s: %3.0f %%  step %d  %s", self.name, 100 * self.progress, self.step, figures)


def save_checkpoint(folder: Path, name: str, budget: Budget, parts: Mapping[str, Any]) -> None:
    """Writes all that this rank's next step depends on: a file for each rank, whole or not at all."""
    device = budget.ranks.device
    content = {
        "parts": dict(parts),
        "spent_s": budget.spent_s,
        "step": budget.step,
        "random": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        },
    }
    path = folder / f"{name}-{budget.ranks.rank}.checkpoint"
    unfinished = path.with_suffix(".part")
    torch.save(content, unfinished)
    unfinished.replace(path)


def load_checkpoint(folder: Path, name: str, budget: Budget) -> Mapping[str, Any]:
    """The first rank's parts and this rank's own over them; time, step and random state are taken up.

    Raises InputError.
    """
    parts: dict[str, Any] = {}
    for rank in sorted({0, budget.ranks.rank}):
        path = folder / f"{name}-{rank}.checkpoint"
        try:
            # A generator's state is no plain tensor. Only files that this command wrote itself are read here.
            content = torch.load(path, map_location=budget.ranks.device, weights_only=False)
            parts |= content["parts"]
            budget.spent_s, budget.step = float(content["spent_s"]), int(content["step"])
            states = content["random"]
            torch.set_rng_state(states["torch"].cpu())
            if states["cuda"] is not None and budget.ranks.device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"].cpu(), budget.ranks.device)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} is no checkpoint of this training ({error}); start without --resume") from error
    return parts
