"""``python -m echo_rtc.bench admission --cards 0.49 --workers 2``: how many streams are admitted, and are they held?

Worker processes that draw test cards take so many seconds for a clip, as a GPU at the edge of real time would. Real
calls are opened until one is refused; then all of them speak. Before that, one call at one worker gives the delay to
compare with. The line of JSON has {"streams", "steps", "held", "delay_ms", "alone_delay_ms"}: the streams that were
admitted, the fewest denoising steps that one of them got in the end, the frames held of all of them, and the longest
delay (ms).
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, replace

from echo_rtc.bench.engine import bench_specs, calls, running
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.bench.support.report import report
from echo_rtc.bench.support.speaking import CallFigures
from echo_rtc.engine.factory import fleet_options
from echo_rtc.engine.local import LocalEngine
from echo_rtc.errors import CapacityError, SettingsError
from echo_rtc.settings import Settings, SettingsParser, settings_from

SETTLE_S = 5.0
"""Of every call, before its frames count."""

MOST_CALLS = 32

STEPS, MIN_STEPS = 6, 4
"""Denoising steps of a clip, and the fewest, where the settings leave no choice: as full-size set-ups have it."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What the calls of one engine came to; ``expected``: what the engine says that it holds."""

    expected: int
    calls: list[CallFigures]

    @property
    def delay_ms(self) -> float:
        return max(call.delay_p50_ms or 0.0 for call in self.calls)


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if frames were held."""
    parser = SettingsParser("python -m echo_rtc.bench admission", "Measures what is admitted at the edge of real time.")
    parser.add_argument("--cards", type=float, default=0.49, help="seconds that a clip of all steps takes [0.49]")
    parser.add_argument("--workers", type=int, default=2, help="worker processes [2]")
    parser.add_argument("--seconds", type=float, default=20.0, help="time that all calls speak [20]")
    parser.add_argument("--calls", type=int, default=MOST_CALLS, help=f"most calls that are tried [{MOST_CALLS}]")
    arguments = parser.arguments(argv)
    if arguments.workers < 1 or arguments.cards <= 0 or arguments.calls < 1:
        raise SettingsError("--workers and --calls must be at least 1, --cards more than 0")
    settings = settings_from(arguments, os.environ)
    if settings.steps == 1:  # as the embedded model has it; at the edge of real time there is something to choose
        settings = replace(settings, steps=STEPS, min_steps=MIN_STEPS)
    alone = asyncio.run(admitted(settings, 1, arguments.cards, arguments.seconds, 1))
    together = asyncio.run(admitted(settings, arguments.workers, arguments.cards, arguments.seconds, arguments.calls))
    rows: list[list[object]] = [
        [name, *row(call)]
        for name, found in ((f"{arguments.workers} workers", together), ("1 worker, 1 call", alone))
        for call in found.calls
    ]
    held = sum(call.held for call in together.calls)
    figures = {
        "streams": len(together.calls),
        "steps": min(call.steps for call in together.calls),
        "held": held,
        "delay_ms": together.delay_ms,
        "alone_delay_ms": alone.delay_ms,
    }
    report(["", "steps", "rendered", "held", "lost clips", "delay p50, ms", "p95, ms"], rows, figures)
    return int(held > 0)


def row(call: CallFigures) -> list[object]:
    return [call.steps, call.rendered, call.held, call.lost_clips, call.delay_p50_ms or "", call.delay_p95_ms or ""]


async def admitted(settings: Settings, workers: int, clip_s: float, seconds: float, most: int) -> Admission:
    """Opens calls until one is refused, or there are ``most``; all speak for ``seconds``."""
    specs = bench_specs(settings, workers, cards_s=clip_s)
    engine = LocalEngine(settings.clip_format, lambda: specs, fleet_options(settings))
    callers: list[Caller] = []
    async with running(engine), calls(engine, 0, vad_threshold=0.0) as call:
        try:
            readers = []
            for _ in range(most):
                callers.append(Caller(babble, codec="H264"))
                try:
                    readers.append(await call(callers[-1]))
                except CapacityError as error:
                    sys.stderr.write(f"call {len(callers)}: {error}\n")
                    break
            await asyncio.sleep(SETTLE_S)
            before = [read() for read in readers]
            await asyncio.sleep(seconds)
            after = [read() for read in readers]
            return Admission(engine.capacity, [CallFigures.between(*pair) for pair in zip(before, after, strict=True)])
        finally:
            for caller in callers:
                await caller.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
