"""``echo-rtc bench live [--random-weights] [--calls N] [--kill-worker] [settings]``: whole calls at a whole server.

Starts the server with the settings, opens real calls one after another, lets all of them hold a conversation (speech
with pauses), and says what came of each: frames rendered, held and dropped, clips lost, denoising steps, delay, the
picture against the sound, and how long sound took from the microphone to a player without a buffer (the server's
delay, and packets and jitter buffer both ways). ``--kill-worker`` kills the worker that renders, a third of the way in.
The line of JSON also has how long the start took, when it came to which stage, and which calls were refused.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp

from echo_rtc.bench.support.calls import Caller, Heard
from echo_rtc.bench.support.real_server import ADMIN_HEADERS, RealServer
from echo_rtc.bench.support.report import report
from echo_rtc.bench.support.speaking import CallFigures, conversation, ways_ms
from echo_rtc.errors import InputError, SettingsError
from echo_rtc.settings import SettingsParser, settings_from

START_S = 900.0
"""How long the server may take to start: full-size weights are read, kernels compiled."""

SETTLE_S = 6.0
"""Of every call, before its frames count."""

RANDOM_SERVER = ("-m", "echo_rtc.bench.support.random_server")
SERVER = ("-m", "echo_rtc", "serve")


@dataclass(slots=True)
class Live:
    """What was seen. ``start``: what the server said while it started, and when (s). ``killed``: the name of the worker
    that was."""

    start_s: float = 0.0
    start: list[tuple[float, str]] = field(default_factory=list)
    calls: list[CallFigures] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    killed: str | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if no call could be opened."""
    parser = SettingsParser("echo-rtc bench live", "Measures whole calls at a whole server.")
    parser.add_argument("--random-weights", action="store_true", help="networks of the published sizes, no files")
    parser.add_argument("--calls", type=int, default=1, help="calls [1]")
    parser.add_argument("--seconds", type=float, default=30.0, help="time that the calls are watched [30]")
    parser.add_argument("--kill-worker", action="store_true", help="kill the worker that renders the first call")
    arguments = parser.arguments(argv)
    if arguments.calls < 1 or arguments.seconds <= 0:
        raise SettingsError("--calls must be at least 1, --seconds more than 0")
    settings_from(arguments, os.environ)  # so that what is wrong with them is told at once
    own = ("--random-weights", "--kill-worker", "--calls", "--seconds")
    program = RANDOM_SERVER if arguments.random_weights else SERVER
    server = RealServer(*_without(argv, own), program=program, start_s=START_S)
    seen = asyncio.run(measure(server, arguments.calls, arguments.seconds, arguments.kill_worker))
    for said_s, line in seen.start:
        sys.stderr.write(f"{said_s:6.1f} s  {line}\n")
    sys.stderr.writelines(f"{line}\n" for line in server.troubles)
    columns = ["rendered", "held", "dropped", "lost clips", "steps", "delay p50, ms", "p95, ms", "offset, ms"]
    columns.append("to the sound, ms")
    values = [[number + 1, *asdict(call).values()] for number, call in enumerate(seen.calls)]
    figures = {
        "start_s": seen.start_s,
        "start": seen.start,
        "calls": [asdict(call) for call in seen.calls],
        "refused": seen.refused,
        "killed": seen.killed,
        "workers": seen.workers,
    }
    report(["call", *columns], [["" if value is None else value for value in row] for row in values], figures)
    return 0 if seen.calls else 1


def _without(argv: list[str], flags: tuple[str, ...]) -> list[str]:
    """The arguments that are the server's."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        name, assigned, _ = word.partition("=")
        if name not in flags:
            kept.append(word)
        elif name in ("--calls", "--seconds") and not assigned:
            next(words, None)
    return kept


async def measure(server: RealServer, calls: int, seconds: float, kill: bool) -> Live:
    """Starts the server, opens the calls and watches them. Raises InputError if it does not start."""
    seen = Live()
    begun = time.monotonic()
    async with server, aiohttp.ClientSession() as session:
        seen.start_s = round(time.monotonic() - begun, 1)
        seen.start = _stages(server)
        opened: list[_Call] = []
        try:
            for _ in range(calls):
                try:
                    opened.append(await _open(session, server.url))
                except InputError as error:
                    seen.refused.append(str(error))
            await asyncio.sleep(SETTLE_S)
            before = [await _statistics(session, server.url, call.stream) for call in opened]
            if kill:
                await asyncio.sleep(seconds / 3)
                await _kill_busiest(session, server.url, seen)
                await asyncio.sleep(seconds * 2 / 3)
            else:
                await asyncio.sleep(seconds)
            after = [await _statistics(session, server.url, call.stream) for call in opened]
            ways = [call.ways_ms for call in opened]
            seen.calls = [CallFigures.between(*looks) for looks in zip(before, after, ways, strict=True)]
            seen.workers = await _workers(session, server.url)
        finally:
            await asyncio.gather(*(call.caller.close() for call in opened))
    return seen


def _stages(server: RealServer) -> list[tuple[float, str]]:
    """What the server has said until it was ready, without the times and names in its log, and when (s)."""
    said = [re.sub(r"^\S+ \S+ [A-Z]+ +\S+: ", "", line) for line in server.lines]
    return [(round(at_s, 1), line) for at_s, line in zip(server.lines_s, said, strict=True)]


@dataclass(frozen=True, slots=True)
class _Call:
    """A call, its stream's id, and what was heard of it."""

    caller: Caller
    stream: str
    heard: list[Heard]

    @property
    def ways_ms(self) -> list[float]:
        assert self.caller.microphone is not None
        return ways_ms(conversation, self.caller.microphone.began_s, self.heard)


async def _open(session: aiohttp.ClientSession, url: str) -> _Call:
    """A call that is up. Raises InputError with the server's words if it refuses."""
    heard: list[Heard] = []
    streams: list[str] = []
    caller = Caller(conversation, heard.append, codec="H264")

    async def exchange(offer: str) -> str:
        async with session.post(f"{url}/offer", json={"sdp": offer, "type": "offer"}) as response:
            answer = await response.json(content_type=None)
            if response.status >= 400:
                raise InputError(str(answer.get("detail", response.status)))
            streams.append(answer["stream"])
            return str(answer["sdp"])

    try:
        await caller.connect(exchange)
    except BaseException:
        await caller.close()
        raise
    return _Call(caller, streams[0], heard)


async def _statistics(session: aiohttp.ClientSession, url: str, stream: str) -> dict[str, Any]:
    async with session.get(f"{url}/streams/{stream}", headers=ADMIN_HEADERS) as response:
        response.raise_for_status()
        return dict(await response.json())


async def _workers(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    async with session.get(f"{url}/admin/state", headers=ADMIN_HEADERS) as response:
        response.raise_for_status()
        return list((await response.json())["workers"])


async def _kill_busiest(session: aiohttp.ClientSession, url: str, seen: Live) -> None:
    """Kills the worker that has rendered the most clips in the last seconds."""
    before = {worker["name"]: worker["clips"] for worker in await _workers(session, url)}
    await asyncio.sleep(2.0)
    busiest = max(await _workers(session, url), key=lambda worker: int(worker["clips"]) - before[worker["name"]])
    os.kill(int(busiest["pid"]), signal.SIGKILL)
    seen.killed = str(busiest["name"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
