"""``python -m echo_rtc.bench stream``: what one call costs the server, in cores.

A server of test cards in a process of its own holds one call whose caller talks all the time; its processor time
(user and system, all threads) is read before and after. Echo, clips, gate, playout, encoders, RTP, DTLS: all included.
The last row is the call in H.264 once more, which is recorded into a file of a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import numpy as np
import psutil

from echo_rtc.bench.support.call_server import CallServer
from echo_rtc.bench.support.calls import Caller
from echo_rtc.bench.support.report import report
from echo_rtc.clips import MEDIA_RATE, S16Array

SETTLE_S = 6.0
"""Left out at the beginning: connecting, the first clips, the first estimates of the bitrate."""


def main(argv: list[str]) -> int:
    """Measures and prints; always 0."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench stream", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement (s)")
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture (pixels)")
    parser.add_argument("--fps", type=int, default=24, help="frames per second")
    arguments = parser.parse_args(argv)
    clip_format = {"width": arguments.size, "height": arguments.size, "fps": arguments.fps}
    figures: dict[str, object] = {}
    rows: list[list[object]] = []
    for codec in ("H264", "VP8"):
        core, kbit, fps = asyncio.run(measure(codec, clip_format, arguments.seconds))
        figures[f"{codec.lower()}_core"] = round(core, 4)
        rows.append([codec, core, kbit, fps])
    with tempfile.TemporaryDirectory() as folder:
        core, kbit, fps = asyncio.run(measure("H264", clip_format, arguments.seconds, record=Path(folder)))
    figures["recorded_core"] = round(core, 4)
    rows.append(["H264, recorded", core, kbit, fps])
    report(["codec", "cores", "kbit/s sent", "frames/s"], rows, figures)
    return 0


async def measure(
    codec: str, clip_format: dict[str, int], seconds: float, settle_s: float = SETTLE_S, record: Path | None = None
) -> tuple[float, float, float]:
    """(CPU seconds of the server's process a second, kbit/s of picture and sound, frames a second) of one call, which
    is recorded into the folder ``record``."""
    async with CallServer(clip_format, record=record) as server:
        caller = Caller(babble, codec=codec)
        stream_id = ""

        async def exchange(offer: str) -> str:
            nonlocal stream_id
            stream_id, sdp = await server.open_call(offer)
            return sdp

        try:
            await caller.connect(exchange)
            await asyncio.sleep(settle_s)
            before = await _reading(server, caller, stream_id)
            await asyncio.sleep(seconds)
            after = await _reading(server, caller, stream_id)
        finally:
            await caller.close()
    elapsed, cpu, received, frames = (b - a for a, b in zip(before, after, strict=True))
    return cpu / elapsed, received * 8 / 1000 / elapsed, frames / elapsed


async def _reading(server: CallServer, caller: Caller, stream_id: str) -> tuple[float, float, float, float]:
    """(time s, CPU time s, bytes received, frames encoded), all since some beginning."""
    statistics = await server.statistics(stream_id)
    encoder = statistics["encoder"]
    assert isinstance(encoder, dict)
    times = psutil.Process(server.pid).cpu_times()
    received = await caller.received_bytes()
    return asyncio.get_running_loop().time(), times.user + times.system, received, float(encoder["frames"])


def babble(start: int, count: int) -> S16Array:
    """A voice that never pauses for long: syllables of changing loudness, four a second, of a buzzing 120 Hz."""
    t = (start + np.arange(count)) / MEDIA_RATE
    syllable = np.clip(np.sin(2 * np.pi * 4 * t), 0.0, None) * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t))
    buzz = sum(np.sin(2 * np.pi * 120 * n * t) / n for n in range(1, 12))
    return np.asarray(syllable * buzz * 6_000, np.int16)
