"""``python -m echo_rtc.bench latency``: how long a sound takes from the microphone through the server and back.

A caller beeps through a real connection at a server of test cards. Counted is from the moment a beep's first sample
passes the microphone to the moment at which a player without any buffer of its own would play it: packets of 20 ms,
both ways, and the server's jitter buffer are included. A caller in Python has aiortc's jitter buffer of four packets,
which browsers do not have; its 80 ms are left out. ``delay_ms`` is what the server itself says: media time minus
playout time.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np

from echo_rtc.bench.support.call_server import CallServer
from echo_rtc.bench.support.calls import CALLER_BUFFER_MS, Caller, Heard
from echo_rtc.bench.support.report import report
from echo_rtc.bench.sync import MATCH_S, SETTLE_S, TAIL_S, Beeps, Recording
from echo_rtc.clips import MEDIA_RATE
from echo_rtc.errors import SettingsError

LONGEST_WAY_S = 6.0
"""Longer than any delay that a server may be set to."""


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if no beep came back."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench latency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the call (s)")
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture (pixels)")
    parser.add_argument("--render", type=float, default=0.0, help="time that each clip takes to render (s)")
    parser.add_argument("--decode", type=float, default=0.0, help="of it, the time in which its frames come (s)")
    arguments = parser.parse_args(argv)
    if not 0.0 <= arguments.decode <= arguments.render:
        raise SettingsError(f"--decode is {arguments.decode:g}; it must be from 0 to --render")
    measured = measure(arguments.size, arguments.seconds, arguments.render, arguments.decode)
    latencies, delay_ms = asyncio.run(measured)
    if not latencies:
        report(["latency"], [], {"mic_to_sound_ms": None, "delay_ms": delay_ms})
        return 1
    median = float(np.median(latencies))
    rows = [
        ["microphone to sound", median, min(latencies), max(latencies), len(latencies)],
        ["of it the server's delay", delay_ms, delay_ms, delay_ms, ""],
    ]
    figures = {"mic_to_sound_ms": round(median, 1), "delay_ms": delay_ms}
    report(["ms", "median", "least", "most", "n"], rows, figures)
    return 0


async def measure(size: int, seconds: float, render_s: float, decode_s: float = 0.0) -> tuple[list[float], float]:
    """(each beep's way in ms, the server's delay in ms) of a call whose clips take ``render_s``, of which the last
    ``decode_s`` while their frames come."""
    beeps = Beeps.lasting(seconds)
    arrivals: list[Heard] = []
    stream_id = ""
    async with CallServer({"width": size, "height": size, "fps": 24}, render_s, decode_s=decode_s) as server:
        caller = Caller(beeps.voice, arrivals.append, codec="H264")

        async def exchange(offer: str) -> str:
            nonlocal stream_id
            stream_id, sdp = await server.open_call(offer)
            return sdp

        try:
            await caller.connect(exchange)
            await asyncio.sleep(seconds + TAIL_S)
            statistics = await server.statistics(stream_id)
        finally:
            await caller.close()
    delay_ms = statistics["delay_ms"]
    assert isinstance(delay_ms, int | float)
    assert caller.microphone is not None
    return latencies(beeps, caller.microphone.began_s, arrivals), float(delay_ms)


def latencies(beeps: Beeps, began_s: float | None, arrivals: list[Heard]) -> list[float]:
    """Each beep's way (ms). Beeps of the first SETTLE_S do not count."""
    onsets = Recording(fps=24, sound=arrivals).sound_onsets()
    if began_s is None or not onsets:
        return []
    starts = np.array([heard.pts for heard in arrivals])
    played = []
    for onset in onsets:
        heard = arrivals[int(np.searchsorted(starts, onset, side="right")) - 1]
        played.append(heard.arrived_s + (onset - heard.pts) / MEDIA_RATE)
    spoken = began_s + np.array(beeps.starts) / MEDIA_RATE
    # Beeps come at odd intervals, so only one way fits nearly all of them; what fits none was torn on the way.
    ways = np.subtract.outer(np.array(played), spoken)
    candidates = ways[(ways > 0) & (ways < LONGEST_WAY_S)]
    if not len(candidates):
        return []
    misfits = [np.minimum(np.abs(ways - way).min(axis=1), MATCH_S).sum() for way in candidates]
    usual = candidates[int(np.argmin(misfits))]
    nearest = ways[np.arange(len(ways)), np.abs(ways - usual).argmin(axis=1)]
    counted = (np.array(played) - began_s >= SETTLE_S) & (np.abs(nearest - usual) < MATCH_S)
    return [float(way) * 1000 - CALLER_BUFFER_MS for way in nearest[counted]]
