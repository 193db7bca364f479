"""``python -m echo_rtc.bench viewers``: what it costs the server that one stream is watched by many.

A server of test cards, all of it on one processor core, and a publisher; then viewers, each a real connection with
reports and bitrate estimates, who put frames together and do not decode them. All of the server's processor time is
divided by their number: rendering, encoding and the publisher are in it. A dropped frame is one that a viewer did not
get whole, or that the server did not send.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import psutil
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.call_server import CallServer
from echo_rtc.bench.support.calls import Publisher, connect, received_bytes
from echo_rtc.bench.support.receivers import without_decoding
from echo_rtc.bench.support.report import report
from echo_rtc.codec.picture import PICTURE_RATE

NAME = "bench"
SETTLE_S = 3.0


@dataclass(slots=True)
class Spectator:
    """A viewer who looks at nothing, but counts. ``frames``: their time stamps (90 kHz), as they became whole."""

    codec: str
    connection: RTCPeerConnection = field(default_factory=lambda: RTCPeerConnection(RTCConfiguration(iceServers=[])))
    frames: list[int] = field(default_factory=list)
    blocks: int = 0

    def prepare(self) -> None:
        """Makes the transceivers; before the offer."""
        sound = self.connection.addTransceiver("audio", "recvonly")
        picture = self.connection.addTransceiver("video", "recvonly")
        known = RTCRtpSender.getCapabilities("video").codecs
        picture.setCodecPreferences([codec for codec in known if codec.name in (self.codec, "rtx")])
        without_decoding(picture.receiver, self.frames.append)
        without_decoding(sound.receiver, self._hear)

    def _hear(self, _: int) -> None:
        self.blocks += 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one number of viewers: the server's processor seconds a second; frames that each viewer should have got, and
    how many were missing, of all viewers together; what a viewer gets; the most by which a packet left late (ms)."""

    viewers: int
    core: float
    frames: int
    dropped: int
    kbit_s: float
    worst_late_ms: float


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if a frame was dropped."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench viewers", description=__doc__)
    parser.add_argument("--viewers", type=int, default=20, help="how many viewers to measure")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement (s)")
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture (pixels)")
    parser.add_argument("--fps", type=int, default=24, help="frames per second")
    parser.add_argument("--codec", choices=("H264", "VP8"), default="H264", help="picture codec")
    arguments = parser.parse_args(argv)
    clip_format = {"width": arguments.size, "height": arguments.size, "fps": arguments.fps}
    counts = sorted({1, arguments.viewers})
    measured = [asyncio.run(measure(count, arguments.codec, clip_format, arguments.seconds)) for count in counts]
    rows = [[m.viewers, m.core, m.core / m.viewers, m.frames, m.dropped, m.kbit_s, m.worst_late_ms] for m in measured]
    report(["viewers", "cores", "cores a viewer", "frames", "dropped", "kbit/s", "latest ms"], rows, figures(measured))
    return int(measured[-1].dropped > 0)


def figures(measured: Sequence[Measured]) -> dict[str, float | int]:
    """The figures of the README: those of the most viewers, and what a further one adds."""
    first, last = measured[0], measured[-1]
    found: dict[str, float | int] = {"core_per_viewer": round(last.core / last.viewers, 4), "dropped": last.dropped}
    if last.viewers > first.viewers:
        found["core_per_further_viewer"] = round((last.core - first.core) / (last.viewers - first.viewers), 4)
    return found


async def measure(
    count: int, codec: str, clip_format: dict[str, int], seconds: float, settle_s: float = SETTLE_S
) -> Measured:
    """A server, its publisher and ``count`` viewers for some seconds."""
    cores = sorted(os.sched_getaffinity(0))
    async with AsyncExitStack() as life:
        # The last core is the server's, the others are left to the viewers.
        server = await life.enter_async_context(CallServer(clip_format, core=cores[-1]))
        if len(cores) > 1:
            os.sched_setaffinity(0, set(cores[:-1]))
            life.callback(os.sched_setaffinity, 0, cores)
        publisher = Publisher(babble)
        life.push_async_callback(publisher.close)
        stream_id = ""

        async def publish(offer: str) -> str:
            nonlocal stream_id
            stream_id, answer = await server.publish(offer, NAME)
            return answer

        await publisher.connect(publish)
        spectators = [Spectator(codec) for _ in range(count)]
        for spectator in spectators:
            life.push_async_callback(spectator.connection.close)
            spectator.prepare()
            await connect(spectator.connection, lambda offer: _view(server, offer))
        await asyncio.sleep(settle_s)
        marks = [len(spectator.frames) for spectator in spectators]
        before = await _reading(server, stream_id, spectators[0].connection)
        await asyncio.sleep(seconds)
        after = await _reading(server, stream_id, spectators[0].connection)
        frames = [spectator.frames[mark:] for spectator, mark in zip(spectators, marks, strict=True)]
    elapsed, cpu, skipped = after.at_s - before.at_s, after.cpu_s - before.cpu_s, after.skipped - before.skipped
    kbit_s = (after.received - before.received) * 8 / 1000 / elapsed
    due = round(elapsed * clip_format["fps"])
    missing = [missing_frames(stamps, clip_format["fps"]) for stamps in frames]
    return Measured(count, cpu / elapsed, due, sum(missing) + skipped * count, kbit_s, after.worst_late_ms)


def missing_frames(stamps: Sequence[int], fps: int) -> int:
    """How many frames are missing between the first and the last of these time stamps (90 kHz)."""
    if not stamps:
        return 1
    return round((max(stamps) - min(stamps)) * fps / PICTURE_RATE) + 1 - len(set(stamps))


async def _view(server: CallServer, offer: str) -> str:
    return (await server.view(offer, NAME))[1]


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    cpu_s: float
    skipped: int
    received: float
    worst_late_ms: float


async def _reading(server: CallServer, stream_id: str, viewer: RTCPeerConnection) -> _Reading:
    statistics = await server.statistics(stream_id)
    output = statistics["output"]
    assert isinstance(output, dict)
    times = psutil.Process(server.pid).cpu_times()
    return _Reading(
        at_s=asyncio.get_running_loop().time(),
        cpu_s=times.user + times.system,
        skipped=output["skipped_frames"],
        received=await received_bytes(viewer),
        worst_late_ms=round(output["worst_late_s"] * 1000, 1),
    )
