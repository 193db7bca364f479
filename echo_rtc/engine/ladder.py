"""``--quality auto``: measures this machine at the start, and walks down the ladder until a rung holds real time.

The rungs are told by ``model/quality.py``. Each that is tried is measured as the engine would measure it: by workers
on all devices, of which the slowest counts. A rung that by arithmetic cannot hold is not tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from echo_rtc.engine.devices import has_eight_bits, resolve_devices
from echo_rtc.engine.factory import MakeSpecs, worker_specs
from echo_rtc.engine.pace import ADMISSION
from echo_rtc.engine.process import WorkerProcess
from echo_rtc.engine.supervision import all_or_first_error
from echo_rtc.errors import RenderError
from echo_rtc.model.quality import AUTO, RUNGS, Able, Choice, on_rung, preset
from echo_rtc.rendering import Progress
from echo_rtc.settings import Settings

logger = logging.getLogger(__name__)

START_S = 1800.0
"""How long a worker may take to load and to be measured."""

DOUBT = 1.25
"""A rung is tried unless arithmetic says that it falls short by more than this factor."""

Measure = Callable[[Settings], Awaitable[float]]
"""Frames a second of the slowest worker with these settings; 0 where it cannot work with them."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A rung as it is here: what this machine or model cannot do is left out of it."""

    name: str
    settings: Settings

    @property
    def choice(self) -> Choice:
        return Choice.of(self.settings)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rung that was chosen, with its frames a second, and what was measured of those that were tried. ``holds``:
    whether it is quick enough."""

    rung: Rung
    frames_per_second: float
    holds: bool
    tried: dict[str, float]

    @property
    def facts(self) -> dict[str, object]:
        """The same for programs."""
        speeds = {name: round(speed, 1) for name, speed in self.tried.items()}
        return {
            "rung": self.rung.name,
            "choice": str(self.rung.choice),
            "holds": self.holds,
            "frames_per_second": speeds,
        }

    def __str__(self) -> str:
        """One line for people."""
        settings, choice = self.rung.settings, self.rung.choice
        speed = f"{self.frames_per_second:.1f} frames/s for the {settings.fps} of real time"
        if not self.holds:
            return f"quality {self.rung.name}, the last rung, does not hold real time: {speed} ({choice})"
        slower = [f"{name} {tried:.1f}" for name, tried in self.tried.items() if name != self.rung.name]
        above = f"; measured above it: {', '.join(slower)}" if slower else ""
        return f"quality {self.rung.name}: {speed} ({choice}){above}"


def rungs(settings: Settings, able: Able) -> list[Rung]:
    """The rungs that make a difference here, the best first; what the user gave explicitly stays."""
    found: list[Rung] = []
    for name in RUNGS:
        rung = Rung(name, on_rung(settings, name, settings.explicit | _beyond(able, settings, name)))
        if not found or rung.choice != found[-1].choice:
            found.append(rung)
    return found


def _beyond(able: Able, settings: Settings, name: str) -> set[str]:
    """What of a rung this machine and this model cannot do."""
    trained, steps = able.trained, preset(name, Choice.of(settings)).get("steps")
    beyond = {
        "quantize_fp8": not able.fp8,
        "vae": not able.tiny,
        "width": trained.size is not None,
        "height": trained.size is not None,
        "steps": steps is not None and trained.steps is not None and steps not in trained.steps,
    }
    return {key for key, out_of_reach in beyond.items() if out_of_reach}


async def walk(ladder: Sequence[Rung], measure: Measure) -> Chosen:
    """Measures down the ladder until a rung holds real time with the margin of admission; else the last is taken."""
    tried: dict[str, float] = {}
    latest: Rung | None = None
    for rung in ladder:
        needed = rung.settings.fps / ADMISSION
        if latest is not None and rung is not ladder[-1]:
            likely = tried[latest.name] * latest.choice.cost / rung.choice.cost
            if likely * DOUBT < needed:
                continue
        tried[rung.name] = await measure(rung.settings)
        latest = rung
        if tried[rung.name] >= needed:
            return Chosen(rung, tried[rung.name], True, tried)
    assert latest is not None, "a ladder has at least one rung"
    return Chosen(latest, tried[latest.name], False, tried)


async def settled(
    settings: Settings,
    progress: Progress,
    able: Callable[[bool], Able],
    specs: MakeSpecs | None = None,
) -> tuple[Settings, Chosen | None]:
    """The settings with a rung in place of ``--quality auto``, which is measured with workers of ``specs``, or of the
    settings where it is None; as they are without ``auto``. ``able``: what machine and model can do, from whether the
    devices have 8-bit floating point. Raises what workers raise that do not start."""
    if settings.quality != AUTO:
        return settings, None
    eight_bits = await asyncio.to_thread(lambda: has_eight_bits(resolve_devices(settings.devices)))
    ladder = rungs(settings, able(eight_bits))
    progress(f"quality auto: {len(ladder)} rung{'' if len(ladder) == 1 else 's'} to choose from")

    async def measure(tried: Settings) -> float:
        progress(f"quality {tried.quality}: measuring {Choice.of(tried)}")
        return await measured(tried, progress, specs or worker_specs)

    chosen = await walk(ladder, measure)
    progress(str(chosen))
    return chosen.rung.settings, chosen


async def measured(settings: Settings, progress: Progress, specs: MakeSpecs = worker_specs) -> float:
    """Frames a second of the slowest device with these settings; 0 where a worker cannot render with them, as one that
    has too little memory."""
    found = await asyncio.to_thread(specs, settings)
    workers = [
        WorkerProcess(replace(spec, other_steps=()), settings.clip_format, progress, lambda: None) for spec in found
    ]
    try:
        reports = await all_or_first_error([worker.start(START_S) for worker in workers])
        slowest: float = min(report.speed.frames_per_second for report in reports)
        return slowest
    except RenderError as error:
        logger.warning("quality %s cannot be rendered: %s", settings.quality, error)
        return 0.0
    finally:
        await asyncio.gather(*(worker.close() for worker in workers))
