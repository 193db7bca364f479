"""``python -m echo_rtc.bench capacity``: how many calls one core holds, and what one more does to them.

A real server of test cards, all of it on one processor core, gets one call after the other, each with a caller who
talks all the time. After each, every caller's frames are counted for a while: the core holds the calls as long as every
caller gets every frame. Then a server that is told this number as ``--max-streams`` gets as many calls and one more,
which must be refused while the others miss nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.real_server import ROOT, RealServer
from echo_rtc.bench.support.report import report
from echo_rtc.bench.support.visitors import Leaving, Part, RefusedError, Visitor

FPS = 24
SETTLE_S = 4.0
FEWEST_SHARE = 0.98
"""Of the frames that were due; the counting begins and ends between two."""


@dataclass(frozen=True, slots=True)
class Load:
    """Calls at once: the core's share that the server used, the share of due frames that the worst-off caller got, and
    the most by which a packet of any of them left late since its call began (ms)."""

    calls: int
    core: float
    fewest: float
    late_ms: float

    @property
    def held(self) -> bool:
        return self.fewest >= FEWEST_SHARE


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if one call too many was let in or harmed the others."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench capacity", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture (pixels)")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each number of calls is counted (s)")
    parser.add_argument("--most", type=int, default=24, help="stop at this number of calls")
    arguments = parser.parse_args(argv)
    loads, refused, after = asyncio.run(measure(arguments.size, arguments.seconds, arguments.most))
    held = max((load.calls for load in loads if load.held), default=0)
    rows = [[load.calls, load.core, load.fewest, load.late_ms, "yes" if load.held else "no"] for load in loads]
    rows.append(
        [f"{after.calls}, one more refused", after.core, after.fewest, after.late_ms, "yes" if after.held else "no"]
    )
    figures = {"calls_per_core": held, "one_more_refused": refused, "others_unharmed": after.held}
    report(["calls", "core", "frames", "latest ms", "held"], rows, figures)
    return 0 if refused and after.held else 1


async def measure(size: int, seconds: float, most: int) -> tuple[list[Load], bool, Load]:
    """The loads up to the first that is not held; whether one more than was held was refused; the others' load then."""
    loads: list[Load] = []
    async with _server(size, most) as (server, session), AsyncExitStack() as calls:
        visitors: list[Visitor] = []
        while not loads or (loads[-1].held and len(visitors) < most):
            visitors.append(await _call(calls, session, server.url, len(visitors)))
            loads.append(await _count(server, visitors, seconds))
    held = max([load.calls for load in loads if load.held] or [1])
    async with _server(size, held) as (server, session), AsyncExitStack() as calls:
        visitors = [await _call(calls, session, server.url, number) for number in range(held)]
        counting = asyncio.create_task(_count(server, visitors, seconds))
        await asyncio.sleep(SETTLE_S + seconds / 2)
        try:
            await _call(calls, session, server.url, held)
            refused = False
        except RefusedError as error:
            refused = error.status == 503
        after = await counting
    return loads, refused, after


@asynccontextmanager
async def _server(size: int, streams: int) -> AsyncIterator[tuple[RealServer, aiohttp.ClientSession]]:
    with tempfile.TemporaryDirectory() as logs:
        flags = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--width", str(size), "--height", str(size))
        async with (
            RealServer(*flags, "--fps", str(FPS), "--max-streams", str(streams), "--log-dir", logs) as server,
            aiohttp.ClientSession() as session,
        ):
            core = min(os.sched_getaffinity(0))
            for thread in server.process.threads():
                os.sched_setaffinity(thread.id, {core})
            yield server, session


async def _call(calls: AsyncExitStack, session: aiohttp.ClientSession, url: str, number: int) -> Visitor:
    visitor = Visitor(Part.CALL, f"caller-{number}", babble)
    await visitor.come(session, url)
    calls.push_async_callback(visitor.leave, session, url, Leaving.HANG_UP)
    return visitor


async def _count(server: RealServer, visitors: list[Visitor], seconds: float) -> Load:
    await asyncio.sleep(SETTLE_S)
    loop = asyncio.get_running_loop()
    begun, used = loop.time(), _cpu_s(server)
    before = [visitor.frames for visitor in visitors]
    await asyncio.sleep(seconds)
    elapsed = loop.time() - begun
    got = [visitor.frames - frames for visitor, frames in zip(visitors, before, strict=True)]
    core = (_cpu_s(server) - used) / elapsed
    late_s = [await visitor.statistic(server.url, "output", "worst_late_s") for visitor in visitors]
    return Load(len(visitors), core, round(min(got) / (elapsed * FPS), 3), round(max(late_s) * 1000, 1))


def _cpu_s(server: RealServer) -> float:
    times = server.process.cpu_times()
    return times.user + times.system
