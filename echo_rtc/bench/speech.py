"""``python -m echo_rtc.bench speech``: how soon pushed speech is heard and seen, and how soon an interruption ends it.

A client speaks by the WebSocket to a stream of test cards at a real server, which a viewer watches by WHEP. What comes
back is taken to the sender's wall clock by the RTP time stamps and the latest sender report, so that network, decoders
and players of this machine stay out of it; the client reads the same clock as it sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from echo_rtc.bench.support.calls import Caller, Heard, Seen
from echo_rtc.bench.support.real_server import RealServer
from echo_rtc.bench.support.report import report
from echo_rtc.bench.sync import BEEP_AMPLITUDE, BEEP_HZ, BEEP_S, GAP_S, Beeps, Recording, offsets
from echo_rtc.clips import MEDIA_RATE, S16Array

NTP_EPOCH_S = 2_208_988_800
"""From 1900, where the sender's wall clock begins, to 1970 (s)."""
FIRST_S, SPEECH_S = 0.5, 4.0
"""The first message of sound, and all of an event (s)."""
SPEAKING_S = 1.5
"""How long an event is heard before it is interrupted."""
REST_S = 2.0
"""Silence after an interruption: the next event begins on an idle stream."""
PATIENCE_S = 20.0
FPS = 24


@dataclass(slots=True)
class Round:
    """One event: when its first half second was sent and when it was interrupted (wall clock, s), what was reported as
    heard (ms), and what came back."""

    sent_s: float
    recording: Recording
    cut_s: float = 0.0
    played_ms: float = 0.0


@dataclass(slots=True)
class Client:
    """A speaker's channel and a viewer of the same stream."""

    socket: aiohttp.ClientWebSocketResponse
    rounds: list[Round] = field(default_factory=list)
    recording: Recording = field(default_factory=lambda: Recording(FPS))
    caller: Caller = field(init=False)

    def __post_init__(self) -> None:
        self.caller = Caller(None, self.hear, self.see, "H264", speaks=False)

    def hear(self, heard: Heard) -> None:
        self.recording.hear(heard)

    def see(self, seen: Seen) -> None:
        self.recording.see(seen)

    async def speak_and_interrupt(self) -> None:
        """One round."""
        said = tone(SPEECH_S)
        self.recording = Recording(FPS)
        first = round(FIRST_S * MEDIA_RATE)
        now = Round(wall_time(), self.recording)
        await self.socket.send_bytes(said[:first].tobytes())
        await self.socket.send_bytes(said[first:].tobytes())
        await self.until("agent.speak_started")
        await asyncio.sleep(SPEAKING_S)
        now.cut_s = wall_time()
        await self.socket.send_json({"type": "agent.interrupt"})
        now.played_ms = float(str((await self.until("agent.speak_interrupted"))["played_ms"]))
        await asyncio.sleep(REST_S)
        self.rounds.append(now)

    async def beep(self, count: int) -> list[float]:
        """Pushes beeps at once; the offsets (ms) of those that were heard and seen."""
        self.recording = Recording(FPS)
        seconds = count * (BEEP_S + sum(GAP_S) / 2) * 1.1
        sound = Beeps.lasting(seconds).voice(0, round(seconds * MEDIA_RATE))
        for begin in range(0, len(sound), MEDIA_RATE * 5):
            await self.socket.send_bytes(sound[begin : begin + MEDIA_RATE * 5].tobytes())
        await self.socket.send_json({"type": "agent.speak_end"})
        await self.until("agent.speak_ended", seconds + PATIENCE_S)
        await asyncio.sleep(1.0)
        return offsets(self.caller, self.recording, settle_s=0.0)

    async def until(self, kind: str, within_s: float = PATIENCE_S) -> dict[str, object]:
        """The next message of this kind. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while True:
                message: dict[str, object] = json.loads(await self.socket.receive_str())
                if message["type"] == kind:
                    return message


def main(argv: list[str]) -> int:
    """Measures and prints; 1 where something never came back."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench speech", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="events that are spoken and interrupted")
    parser.add_argument("--beeps", type=int, default=20, help="beeps by which the sync is measured")
    parser.add_argument("--size", type=int, default=256, help="width and height of the picture (pixels)")
    arguments = parser.parse_args(argv)
    measured, offsets_ms, render_ms = asyncio.run(measure(arguments.rounds, arguments.beeps, arguments.size))
    bounds = {
        "first_sound_ms": render_ms + 200,
        "first_motion_ms": render_ms + 200,
        "interrupt_silence_ms": 90,
        "interrupt_idle_ms": 250,
        "position_error_ms": 20,
    }
    rows: list[list[object]] = []
    figures: dict[str, float | None] = {}
    for name, bound in bounds.items():
        values = [one[name] for one in measured]
        figures[name] = round(max(values), 1) if values else None
        rows.append([name, len(values), float(np.median(values)), max(values), bound] if values else [name, 0])
    p95 = round(float(np.percentile(np.abs(offsets_ms), 95)), 2) if offsets_ms else None
    figures["sync_p95_ms"] = p95
    if offsets_ms:
        rows.append(["sync_ms", len(offsets_ms), float(np.median(offsets_ms)), max(map(abs, offsets_ms)), 20])
    report(["what", "n", "median", "most", "bound"], [row + [""] * (5 - len(row)) for row in rows], figures)
    complete = len(measured) == arguments.rounds and len(offsets_ms) >= arguments.beeps // 2
    return 0 if complete else 1


async def measure(rounds: int, beeps: int, size: int) -> tuple[list[dict[str, float]], list[float], float]:
    """Figures of each round, the offsets of beeps, and what rendering a clip takes by the server's count; all in ms."""
    flags = ("--engine", "testcard", "--width", str(size), "--height", str(size), "--fps", str(FPS))
    async with RealServer(*flags) as server, aiohttp.ClientSession(server.url) as http:
        async with http.post("/streams") as response:
            response.raise_for_status()
            opened = await response.json()
        async with connected(http, opened) as client:
            await asyncio.sleep(REST_S)
            for _ in range(rounds):
                await client.speak_and_interrupt()
            offsets_ms = await client.beep(beeps)
            async with http.get(opened["stream"]) as response:
                statistics = await response.json()
            made = [figures for one in client.rounds if (figures := figures_of(one, client.caller)) is not None]
    return made, offsets_ms, 1000 * float(statistics["playout"]["render_p95_s"])


@asynccontextmanager
async def connected(http: aiohttp.ClientSession, opened: dict[str, str]) -> AsyncIterator[Client]:
    """Speaks to a stream and watches it."""
    async with http.ws_connect(f"{opened['speech']}?rate={MEDIA_RATE}") as socket:
        client = Client(socket)

        async def exchange(offer: str) -> str:
            headers = {"Content-Type": "application/sdp"}
            async with http.post(opened["whep"], data=offer, headers=headers) as response:
                response.raise_for_status()
                return await response.text()

        try:
            await client.caller.connect(exchange)
            yield client
        finally:
            await client.caller.close()


def figures_of(one: Round, caller: Caller) -> dict[str, float] | None:
    """The figures of a round (ms); None if its sound or its picture never came."""
    loud = [
        heard.pts + int(at)
        for heard in one.recording.sound
        for at in np.flatnonzero(np.abs(heard.pcm.astype(np.int32)) > BEEP_AMPLITUDE // 3)
    ]
    lamp = [(caller.picture_clock.wall_time(pts), number is None) for pts, _, number in one.recording.lamp]
    moving = [when for when, idle in lamp if not idle and when > one.sent_s]
    shut = [when for when, idle in lamp if idle and when > one.cut_s]
    if not loud or not moving or not shut:
        return None
    first, last = (caller.sound_clock.wall_time(pts) for pts in (loud[0], loud[-1]))
    return {
        "first_sound_ms": 1000 * (first - one.sent_s),
        "first_motion_ms": 1000 * (moving[0] - one.sent_s),
        "interrupt_silence_ms": 1000 * (last - one.cut_s),
        "interrupt_idle_ms": 1000 * (shut[0] - one.cut_s),
        "position_error_ms": abs(one.played_ms - 1000 * (loud[-1] + 1 - loud[0]) / MEDIA_RATE),
    }


def tone(seconds: float) -> S16Array:
    """The tone of a beep, at 48 kHz."""
    when = np.arange(round(seconds * MEDIA_RATE)) / MEDIA_RATE
    return (np.sin(2 * np.pi * BEEP_HZ * when) * BEEP_AMPLITUDE).astype(np.int16)


def wall_time() -> float:
    """The clock of sender reports (s since 1900)."""
    return time.time() + NTP_EPOCH_S
