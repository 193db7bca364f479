"""``python -m echo_rtc.bench soak``: visitors come and go for a long time, and nothing of them is left.

Callers, WHIP publishers and WHEP viewers come to a real server of test cards at even intervals, at most ten streams at
a time, and leave by DELETE, by hanging up, or without a word; before that, all places were taken once. The server's
memory is read all along; its slope is that of a line through it after the first quarter of the time (five of twenty
minutes), and its mean in each fifth of the time says where that comes from. In the end all leave, and what the
server still has of sockets, descriptors, threads and processes beyond its beginning is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import psutil

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.real_server import ROOT, RealServer
from echo_rtc.bench.support.report import report
from echo_rtc.bench.support.visitors import Leaving, Part, RefusedError, Visitor, gone

WARM_S = 3.0
WARM_SHARE = 0.25
SAMPLE_S = 2.0
GONE_S = 30.0
MAX_STREAMS = 10
MAX_VISITORS = 14
MAX_SLOPE_MB = 1.0
PARTS = 5
_WAYS = (Leaving.DELETE, Leaving.DELETE, Leaving.HANG_UP, Leaving.VANISH)


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a process holds. ``sockets``: UDP and listening TCP; ``threads`` are the system's, encoders' among them."""

    sockets: int
    descriptors: int
    threads: int
    children: int

    @classmethod
    def of(cls, process: psutil.Process) -> Belongings:
        listening = [entry for entry in process.net_connections("tcp") if entry.status == psutil.CONN_LISTEN]
        sockets = len(process.net_connections("udp")) + len(listening)
        return cls(sockets, process.num_fds(), process.num_threads(), len(process.children(recursive=True)))

    def beyond(self, before: Belongings) -> dict[str, int]:
        """What there is more of than before."""
        names = ("sockets", "descriptors", "threads", "children")
        return {name: max(0, getattr(self, name) - getattr(before, name)) for name in names}


@dataclass
class Soaked:
    """What a soak has seen. ``memory``: seconds since the beginning and MB, of the server."""

    joined: Counter[Part] = field(default_factory=Counter)
    left: Counter[Leaving] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    leaked: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def slope_mb_per_10min(self) -> float:
        """Of a line through the memory after the warm part."""
        when, size = np.array(self.memory).T
        warm = when >= when[-1] * WARM_SHARE
        return float(np.polyfit(when[warm], size[warm], 1)[0] * 600)

    def memory_by_part(self) -> list[tuple[float, float, float]]:
        """The mean memory in each of PARTS equal parts of the time: from when (s), until when, MB."""
        when, size = np.array(self.memory).T
        borders = np.linspace(0.0, when[-1], PARTS + 1)
        part_of = np.minimum(np.searchsorted(borders, when, side="right") - 1, PARTS - 1)
        return [
            (float(borders[part]), float(borders[part + 1]), float(size[part_of == part].mean()))
            for part in range(PARTS)
            if (part_of == part).any()
        ]


def main(argv: list[str]) -> int:
    """Soaks and prints; 1 if memory grew too fast or anything was left."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long visitors come and go (min)")
    parser.add_argument("--joins", type=int, default=200, help="how many visitors come in that time")
    parser.add_argument("--size", type=int, default=128, help="width and height of the picture (pixels)")
    parser.add_argument("--seed", type=int, default=1, help="of who comes and goes")
    arguments = parser.parse_args(argv)
    soaked = asyncio.run(soak(arguments.minutes * 60, arguments.joins, arguments.size, arguments.seed))
    slope, leaked = soaked.slope_mb_per_10min(), sum(soaked.leaked.values())
    rows: list[list[object]] = [[f"came to {part}", soaked.joined[part]] for part in Part]
    rows += [[f"left by {how}" if how is Leaving.DELETE else how, soaked.left[how]] for how in Leaving]
    rows += [[f"refused: {why}", count] for why, count in soaked.refused.items()]
    rows += [["frames received", soaked.frames]]
    rows += [[f"left over: {what}", count] for what, count in soaked.leaked.items()]
    rows += [
        [f"memory from {begin_s / 60:.3g} to {end_s / 60:.3g} min, MB", size]
        for begin_s, end_s, size in soaked.memory_by_part()
    ]
    rows += [["memory at the end, MB", soaked.memory[-1][1]], ["errors in the log", len(soaked.troubles)]]
    figures = {"joins": soaked.joined.total(), "rss_slope_mb_per_10min": round(slope, 3), "leaked": leaked}
    for trouble in soaked.troubles[:10]:
        print(trouble)  # noqa: T201  what went wrong stands above the table
    report(["what", "count"], rows, figures)
    return 0 if slope < MAX_SLOPE_MB and not leaked and not soaked.troubles else 1


async def soak(seconds: float, joins: int, size: int, seed: int) -> Soaked:
    """Runs it on a server of its own."""
    soaked = Soaked()
    with tempfile.TemporaryDirectory() as logs:
        flags = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--width", str(size), "--height", str(size))
        async with (
            RealServer(*flags, "--max-streams", str(MAX_STREAMS), "--log-dir", logs) as server,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
        ):
            await _full_house(session, server.url)
            before = Belongings.of(server.process)
            sampling = asyncio.create_task(_sample(server.process, soaked), name="sample memory")
            try:
                await _come_and_go(session, server.url, seconds, joins, random.Random(seed), soaked)
                left_s = await gone(session, server.url, GONE_S)
                await asyncio.sleep(max(0.0, 2.0 - left_s))
            finally:
                sampling.cancel()
            soaked.leaked = Belongings.of(server.process).beyond(before)
        soaked.troubles = server.troubles
    return soaked


async def _full_house(session: aiohttp.ClientSession, url: str) -> None:
    """As many visitors at once as there may be: they make what every later one finds, threads, tables, memory."""
    speaking = [Visitor(Part.CALL, f"first-{number}", babble) for number in range(MAX_STREAMS)]
    watching = [Visitor(Part.VIEW, visitor.name) for visitor in speaking[: MAX_VISITORS - MAX_STREAMS]]
    for visitor in (*speaking, *watching):
        await visitor.come(session, url)
    await asyncio.sleep(WARM_S)
    for visitor in (*watching, *speaking):
        await visitor.leave(session, url, Leaving.DELETE)
    await gone(session, url, GONE_S)


async def _come_and_go(
    session: aiohttp.ClientSession, url: str, seconds: float, joins: int, chance: random.Random, soaked: Soaked
) -> None:
    present: list[Visitor] = []
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(joins):
        await asyncio.sleep(max(0.0, begun + number * seconds / joins - loop.time()))
        if len(present) >= MAX_VISITORS or (len(present) > 4 and chance.random() < 0.3):
            await _leave(session, url, present.pop(chance.randrange(len(present))), chance, soaked)
        speaking = [visitor for visitor in present if visitor.part is not Part.VIEW]
        part = Part.VIEW
        if len(speaking) < 2 or (len(speaking) < MAX_STREAMS - 1 and chance.random() < 0.6):
            part = chance.choice((Part.CALL, Part.PUBLISH))
        name = chance.choice(speaking).name if part is Part.VIEW else f"visit-{number}"
        visitor = Visitor(part, name, None if part is Part.VIEW else babble)
        try:
            await visitor.come(session, url)
        except (RefusedError, TimeoutError) as error:
            # Its publisher may just have vanished, or its place is not free yet: servers refuse, clients ask again.
            soaked.refused[str(error.status) if isinstance(error, RefusedError) else "no connection"] += 1
            continue
        soaked.joined[part] += 1
        present.append(visitor)
    await asyncio.sleep(max(0.0, begun + seconds - loop.time()))
    while present:
        await _leave(session, url, present.pop(), chance, soaked)


async def _leave(
    session: aiohttp.ClientSession, url: str, visitor: Visitor, chance: random.Random, soaked: Soaked
) -> None:
    how = chance.choice(_WAYS)
    await visitor.leave(session, url, how)
    soaked.left[how] += 1
    soaked.frames += visitor.frames


async def _sample(process: psutil.Process, soaked: Soaked) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while True:
        soaked.memory.append((loop.time() - begun, process.memory_info().rss / 1e6))
        await asyncio.sleep(SAMPLE_S)
