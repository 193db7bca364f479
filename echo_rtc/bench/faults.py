"""``python -m echo_rtc.bench faults``: a live call while the network, the client and the server fail, as root on Linux.

A real server of test cards runs in a network namespace of its own, the caller outside; iptables loses packets between
them at random, both ways, or all of them. The caller beeps, and by RTP time stamps and sender reports it is read how
far sound and picture are apart (as ``sync`` does it), which packets of sound are missing, and how long no new picture
came. Then clients vanish, the server is told to stop under a call, and STUN and TURN servers are dead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import numpy as np

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller, Exchange, Seen
from echo_rtc.bench.support.real_server import ROOT, RealServer
from echo_rtc.bench.support.report import report
from echo_rtc.bench.support.visitors import Part, RefusedError, Visitor, gone
from echo_rtc.bench.sync import Beeps, Recording, offsets
from echo_rtc.clips import MEDIA_RATE
from echo_rtc.errors import InputError
from echo_rtc.rtc.seams.jitter import shorten_microphone_buffer

TOKEN = "a-token-of-this-measurement-only"
SERVER, CLIENT = "10.213.7.2", "10.213.7.1"
SIZE = 160
SETTLE_S = 3.0
BACK_S = 6.0
"""After a fault, how long the call is watched once picture and sound have come back."""
RETURN_S = 15.0
"""How long that is waited for."""
FPS = 24
PACKETS_S = 50
"""Packets of sound in a second."""
GONE_S = 30.0
HOUR_S = 3600.0
SYNC_PERCENTILE = 90
"""Of the beeps' offsets. Under loss a decoder may show an old lamp for a frame or two; the server has no part in it."""
NO_SYNC_MS = 999.0


@dataclass(frozen=True, slots=True)
class Fault:
    """That share of UDP packets is lost, each way, for ``seconds``."""

    name: str
    share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A call through a fault. ``sync_ms``: by how much nine of ten beeps' pictures are apart from their sound at most,
    in the fault or after it. In the fault: ``lost_share`` and ``gap_ms``, packets of sound that did not come, and the
    longest run of them; ``frozen_ms``, the longest time without a frame. ``underruns``: how often the server had no
    sound to send. ``held``: frames it repeated. ``came_back``: picture and sound came after it, and at least half of
    all frames and packets while the call was watched further."""

    fault: str
    sync_ms: float
    beeps: int
    lost_share: float
    gap_ms: float
    frozen_ms: float
    underruns: int
    held: int
    came_back: bool


def main(argv: list[str]) -> int:
    """Breaks and prints; 1 if a call did not come back or sync was lost."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each call under loss (s)")
    parser.add_argument("--block", type=float, default=60.0, help="length of the long block of all packets (s)")
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables"))):
        raise InputError("faults needs to be root on Linux, with ip and iptables, to make a network that loses packets")
    outcomes, times = asyncio.run(measure(arguments.seconds, arguments.block))
    rows = [
        [o.fault, o.sync_ms, o.beeps, o.lost_share, o.gap_ms, o.frozen_ms, o.underruns, o.held, o.came_back]
        for o in outcomes
    ]
    headings = ["fault", "sync ms", "beeps", "lost", "gap ms", "frozen ms", "underruns", "held", "back"]
    figures: dict[str, object] = {
        "worst_sync_ms": round(max(outcome.sync_ms for outcome in outcomes), 1),
        "underruns": sum(outcome.underruns for outcome in outcomes),
        **{name: round(seconds, 2) for name, seconds in times.items()},
    }
    report(headings, rows, figures)
    return 0 if all(outcome.came_back for outcome in outcomes) and max(o.sync_ms for o in outcomes) <= 30 else 1


async def measure(seconds: float, block_s: float) -> tuple[list[Outcome], dict[str, float]]:
    """All faults, one after the other; the calls through them, and times in seconds of what is no call."""
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as logs:
        async with Network.made() as network, _server(network, logs) as server, _session() as session:
            url = f"http://{SERVER}:{server.port}"
            faults = [
                Fault("no fault", 0.0, seconds),
                Fault("5 % lost both ways", 0.05, seconds),
                Fault("10 % lost both ways", 0.1, seconds),
                Fault("all lost for 3 s", 1.0, 3.0),
            ]
            outcomes = [await _call(session, url, network, fault) for fault in faults]
            times["freed_after_block_s"], times["again_after_block_s"] = await _long_block(
                session, url, network, block_s
            )
            visitor = await _visit(session, url, "vanishing")
            visitor.vanish()
            times["freed_after_vanishing_s"] = await gone(session, url, GONE_S)
            await visitor.connection.close()
            caller = Caller(babble)
            await caller.connect(_exchange(session, url, []))
            await asyncio.sleep(SETTLE_S)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await server.stop()
            times["stopped_under_a_call_s"] = loop.time() - begun
            await asyncio.sleep(0.5)
            times["told_that_it_stops"] = float(caller.events[-1]["type"] == "end")
            await caller.close()
        dead = ("--ice-server", f"stun:{CLIENT}:9", "--ice-server", f"turn:u:p@{CLIENT}:9?transport=udp")
        async with Network.made() as network, _server(network, logs, *dead) as server, _session() as session:
            begun = asyncio.get_running_loop().time()
            visitor = await _visit(session, f"http://{SERVER}:{server.port}", "dead-turn")
            times["up_with_dead_turn_s"] = asyncio.get_running_loop().time() - begun
            await visitor.connection.close()
    return outcomes, times


class LossyRecording(Recording):
    """A recording in which packets are missing: a beep whose beginning may have been among them has no onset."""

    def sound_onsets(self) -> list[float]:
        whole = {heard.pts for heard in self.sound}

        def certain(onset: float) -> bool:
            packet = int(onset) // 960 * 960
            return packet in whole and packet - 960 in whole

        return [onset for onset in super().sound_onsets() if certain(onset)]


class Network:
    """A namespace joined to ours by a pair of interfaces; what passes between them is lost as is asked for."""

    def __init__(self) -> None:
        self.space = f"echo-{secrets.token_hex(3)}"
        self._link = f"e{secrets.token_hex(4)}"

    @classmethod
    @asynccontextmanager
    async def made(cls) -> AsyncIterator[Network]:
        """Raises InputError where the system does not let us."""
        network = cls()
        inside = f"{network._link}i"
        try:
            await _run("ip", "netns", "add", network.space)
            await _run("ip", "link", "add", network._link, "type", "veth", "peer", "name", inside)
            await _run("ip", "link", "set", inside, "netns", network.space)
            await _run("ip", "addr", "add", f"{CLIENT}/30", "dev", network._link)
            await _run("ip", "link", "set", network._link, "up")
            await network.inside("ip", "addr", "add", f"{SERVER}/30", "dev", inside)
            await network.inside("ip", "link", "set", inside, "up")
            await network.inside("ip", "link", "set", "lo", "up")
            yield network
        finally:
            with contextlib.suppress(InputError):
                await _run("ip", "netns", "del", network.space)

    @property
    def command(self) -> tuple[str, ...]:
        """What to put before a command that is to run inside."""
        return ("ip", "netns", "exec", self.space)

    async def inside(self, *words: str) -> None:
        await _run(*self.command, *words)

    @asynccontextmanager
    async def losing(self, share: float) -> AsyncIterator[None]:
        """Loses that share of UDP packets at random while inside, each way; 1.0 loses all. HTTP is left alone."""
        rule = ["-p", "udp", "-j", "DROP"]
        if 0.0 < share < 1.0:
            rule = ["-p", "udp", "-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP"]
        if share:
            for chain in ("INPUT", "OUTPUT"):
                await self.inside("iptables", "-w", "-A", chain, *rule)
        try:
            yield
        finally:
            if share:
                for chain in ("INPUT", "OUTPUT"):
                    await self.inside("iptables", "-w", "-D", chain, *rule)


async def _run(*words: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdout=pipe, stderr=pipe)
    _, errors = await process.communicate()
    if process.returncode:
        raise InputError(f"{' '.join(words)} failed: {errors.decode(errors='replace').strip()[:200]}")


@asynccontextmanager
async def _server(network: Network, logs: str, *flags: str) -> AsyncIterator[RealServer]:
    card = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--width", str(SIZE), "--height", str(SIZE))
    access = ("--host", "0.0.0.0", "--auth-token", TOKEN, "--log-dir", logs)
    server = RealServer(*card, *access, *flags, command=(*network.command, sys.executable))
    async with server:
        yield server


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"})


def _exchange(session: aiohttp.ClientSession, url: str, streams: list[str]) -> Exchange:
    async def exchange(offer: str) -> str:
        async with session.post(f"{url}/offer", json={"sdp": offer, "type": "offer"}) as response:
            if response.status != 200:
                raise RefusedError(response.status, await response.text())
            answer = await response.json()
        streams.append(answer["stream"])
        return str(answer["sdp"])

    return exchange


async def _visit(session: aiohttp.ClientSession, url: str, name: str) -> Visitor:
    visitor = Visitor(Part.CALL, name, babble)
    await visitor.come(session, url)
    return visitor


async def _call(
    session: aiohttp.ClientSession, url: str, network: Network, fault: Fault, watched_s: float = BACK_S
) -> Outcome:
    """A call that beeps: for SETTLE_S without a fault, then through the fault, then until it has come back and for
    ``watched_s`` more."""
    beeps = Beeps.lasting(HOUR_S, gap_s=(0.35, 0.6))
    recording = LossyRecording(fps=FPS)
    arrivals: list[float] = []

    def see(seen: Seen) -> None:
        arrivals.append(seen.arrived_s)
        recording.see(seen)

    caller = Caller(beeps.voice, recording.hear, see, "H264")
    # aiortc's own buffer drops five times as many packets as the network.
    shorten_microphone_buffer(caller.connection.getTransceivers()[0].receiver)
    streams: list[str] = []
    loop = asyncio.get_running_loop()
    try:
        await caller.connect(_exchange(session, url, streams))
        await asyncio.sleep(SETTLE_S)
        async with network.losing(fault.share):
            begun, heard_by = loop.time(), len(recording.sound)
            await asyncio.sleep(fault.seconds)
            frozen_s = float(np.diff([begun, *(when for when in arrivals if when > begun), loop.time()]).max())
            during = recording.sound[heard_by:]
        came_back = await _came_back(recording, arrivals, watched_s)
        async with session.get(f"{url}/streams/{streams[0]}") as response:
            statistics = await response.json()
    finally:
        await caller.close()
    apart = offsets(caller, recording, settle_s=SETTLE_S)
    after = recording.sound[heard_by + len(during) :]
    stamps = [heard.pts for heard in (*recording.sound[heard_by - 1 : heard_by], *during, *after[:1])]
    return Outcome(
        fault=fault.name,
        sync_ms=round(float(np.percentile(np.abs(apart), SYNC_PERCENTILE)), 1) if apart else NO_SYNC_MS,
        beeps=len(apart),
        lost_share=round(1 - 960 * (len(stamps) - 1) / (stamps[-1] - stamps[0]), 3),
        gap_ms=round((np.diff(stamps).max() - 960) / MEDIA_RATE * 1000),
        frozen_ms=round(frozen_s * 1000),
        underruns=statistics["playout"]["underruns"],
        held=statistics["held"],
        came_back=came_back,
    )


async def _came_back(recording: Recording, arrivals: list[float], watched_s: float) -> bool:
    """Whether from now on half of all pictures and half of all sound come in ``watched_s`` seconds that begin within
    RETURN_S. ``arrivals``: when frames arrived."""
    loop = asyncio.get_running_loop()
    until, half_s = loop.time() + RETURN_S, watched_s / 2
    while loop.time() < until:
        frames, packets = len(arrivals), len(recording.sound)
        await asyncio.sleep(watched_s)
        if len(arrivals) - frames >= FPS * half_s and len(recording.sound) - packets >= PACKETS_S * half_s:
            return True
    return False


async def _long_block(
    session: aiohttp.ClientSession, url: str, network: Network, block_s: float
) -> tuple[float, float]:
    """Blocks all packets of a call; how long until its place is free, and how long a new call takes afterwards (s)."""
    loop = asyncio.get_running_loop()
    visitor = await _visit(session, url, "blocked")
    await asyncio.sleep(1.0)
    async with network.losing(1.0):
        blocked = loop.time()
        freed_s = await gone(session, url, GONE_S)
        await asyncio.sleep(max(0.0, blocked + block_s - loop.time()))
    await visitor.connection.close()
    begun = loop.time()
    again = await _visit(session, url, "blocked")
    while not again.frames:  # noqa: ASYNC110  frames have no event
        await asyncio.sleep(0.01)
    came_s = loop.time() - begun
    await again.connection.close()
    await gone(session, url, GONE_S)
    return freed_s, came_s
