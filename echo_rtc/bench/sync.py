"""``python -m echo_rtc.bench sync``: by how much the picture comes before or after the sound it was made from.

A caller beeps through a real connection at a server of test cards. Each beep comes back as sound, and as a lamp that
follows the loudness of each frame's own sound. The onsets of both are taken to the sender's wall clock by the RTP time
stamps and the latest sender report, as a browser does it; so network, decoders and players of this machine stay out of
it, and what is left is the server's own error. Positive: the picture is late.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from echo_rtc.bench.support.call_server import CallServer
from echo_rtc.bench.support.calls import Caller, Heard, Seen
from echo_rtc.bench.support.report import report
from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.codec.picture import PICTURE_RATE
from echo_rtc.engine.card import CardError, read_card, rms_of

BEEP_S = 0.3
BEEP_AMPLITUDE = 12_000
BEEP_HZ = 1_000
GAP_S = (0.7, 1.2)
"""A beep follows the one before by a time between these, so that beeps begin anywhere within frames and clips."""
SETTLE_S = 4.0
"""The beeps of the first seconds do not count: no sender report may have come, and the delay may still move."""
TAIL_S = 3.0
"""Time for the last beep to come back."""
MATCH_S = 0.25
"""A picture belongs to a sound if their onsets are no further apart than this."""
QUIET_S = 0.2
"""A beep begins where it was quiet for this long."""
LIT_SHARE = 0.02
"""A lamp is lit if it shows at least this share of a beep's power."""


@dataclass(frozen=True, slots=True)
class Beeps:
    """Beeps of a fixed seed that begin at ``starts`` (samples at 48 kHz)."""

    starts: tuple[int, ...]

    @classmethod
    def lasting(cls, seconds: float, gap_s: tuple[float, float] = GAP_S, seed: int = 1) -> Beeps:
        """Beeps from the first second on, with gaps between the two lengths of ``gap_s``."""
        chance = random.Random(seed)
        starts, at = [], 1.0
        while at < seconds:
            starts.append(round(at * MEDIA_RATE))
            at += BEEP_S + chance.uniform(*gap_s)
        return cls(tuple(starts))

    def voice(self, start: int, count: int) -> S16Array:
        """The samples ``start`` .. ``start + count``."""
        when = np.arange(start, start + count)
        index = np.clip(np.searchsorted(self.starts, when, side="right") - 1, 0, None)
        since = when - np.asarray(self.starts)[index]
        beeping = (since >= 0) & (since < BEEP_S * MEDIA_RATE)
        tone = np.sin(2 * np.pi * BEEP_HZ * since / MEDIA_RATE) * BEEP_AMPLITUDE
        return np.where(beeping, tone, 0.0).astype(np.int16)


@dataclass(slots=True)
class Recording:
    """What came back, as far as onsets need it. Its methods are a caller's callbacks."""

    fps: int
    sound: list[Heard] = field(default_factory=list)
    lamp: list[tuple[int, float, int | None]] = field(default_factory=list)
    """Each frame's pts (90 kHz), the mean square (-1..1) that its lamp shows, and its number; no number if it is of the
    idle loop."""
    unreadable: int = 0

    def hear(self, heard: Heard) -> None:
        self.sound.append(heard)

    def see(self, seen: Seen) -> None:
        try:
            facts = read_card(seen.luma)
        except CardError:
            self.unreadable += 1
            return
        power = 0.0 if facts.idle or facts.level <= 0 else rms_of(facts.level) ** 2
        self.lamp.append((seen.pts, power, None if facts.idle else facts.frame))

    def sound_onsets(self) -> list[float]:
        """The pts (samples) at which beeps begin."""
        if not self.sound:
            return []
        first = self.sound[0].pts
        line = np.zeros(self.sound[-1].pts + len(self.sound[-1].pcm) - first, np.int16)
        for heard in self.sound:
            line[heard.pts - first : heard.pts - first + len(heard.pcm)] = heard.pcm
        loud = np.abs(line.astype(np.int32)) > BEEP_AMPLITUDE // 3
        # The threshold is crossed within a quarter of the tone's period: 0.1 ms after the beep began.
        at = np.flatnonzero(loud)
        quiet_before = np.diff(at, prepend=-MEDIA_RATE) > QUIET_S * MEDIA_RATE
        return [float(first + sample) for sample in at[quiet_before]]

    def picture_onsets(self) -> list[float]:
        """The pts (90 kHz) at which beeps begin, to a fraction of a frame: a beep that begins within a frame lights its
        lamp with the share of the power that is left of it.

        Only where a dark frame and the lit one after it were both seen: a beep whose first frames were held or dropped
        has no onset in the picture.
        """
        onsets: list[float] = []
        full = float(np.median([power for _, power, _ in self.lamp if power > 0] or [0.0]))
        ticks = PICTURE_RATE / self.fps
        for (_, before, earlier), (pts, power, number) in pairwise(self.lamp):
            if earlier is not None and number == earlier + 1 and before < LIT_SHARE * full <= power:
                onsets.append(pts + (1.0 - min(1.0, power / full)) * ticks)
        return onsets


def main(argv: list[str]) -> int:
    """Measures and prints; 1 if fewer beeps were matched than asked for."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench sync", description=__doc__)
    parser.add_argument("--beeps", type=int, default=30, help="how many beeps to measure at least")
    parser.add_argument("--codec", choices=("H264", "VP8"), default="H264", help="picture codec")
    parser.add_argument("--size", type=int, default=512, help="width and height of the picture (pixels)")
    arguments = parser.parse_args(argv)
    seconds = SETTLE_S + arguments.beeps * (BEEP_S + sum(GAP_S) / 2) * 1.1
    offsets = asyncio.run(measure(arguments.codec, arguments.size, seconds))
    figures = summary(offsets)
    rows = [["sound and picture", *figures.values(), min(offsets), max(offsets)]] if offsets else []
    report(["offset of", "n", "mean ms", "p95 ms", "least ms", "most ms"], rows, figures)
    return 0 if len(offsets) >= arguments.beeps else 1


def summary(offsets_ms: Sequence[float]) -> dict[str, float | int | None]:
    """The figures of the README: how many, the mean, and the 95th percentile of the magnitude."""
    if not offsets_ms:
        return {"n": 0, "mean_ms": None, "p95_ms": None}
    return {
        "n": len(offsets_ms),
        "mean_ms": round(float(np.mean(offsets_ms)), 2),
        "p95_ms": round(float(np.percentile(np.abs(offsets_ms), 95)), 2),
    }


async def measure(codec: str, size: int, seconds: float) -> list[float]:
    """The offsets (ms) of all beeps of a call that were both heard and seen."""
    fps = 24
    beeps = Beeps.lasting(seconds)
    recording = Recording(fps)
    async with CallServer({"width": size, "height": size, "fps": fps}) as server:
        caller = Caller(beeps.voice, recording.hear, recording.see, codec)

        async def exchange(offer: str) -> str:
            return (await server.open_call(offer))[1]

        try:
            await caller.connect(exchange)
            await asyncio.sleep(seconds + TAIL_S)
        finally:
            await caller.close()
    return offsets(caller, recording)


def offsets(caller: Caller, recording: Recording, settle_s: float = SETTLE_S) -> list[float]:
    """How much later (ms) each beep's picture begins than its sound, on the sender's wall clock.

    Left out: beeps of the first ``settle_s`` seconds, and those of which no picture came.
    """
    heard = [caller.sound_clock.wall_time(pts) for pts in recording.sound_onsets()]
    began = caller.sound_clock.wall_time(0)
    seen = sorted(caller.picture_clock.wall_time(pts) for pts in recording.picture_onsets())
    if not heard or not seen:
        return []
    matched: list[float] = []
    for when in heard:
        if when < began + settle_s:
            continue
        at = bisect_right(seen, when)
        nearest = min(seen[max(0, at - 1) : at + 1], key=lambda other: abs(other - when))
        if abs(nearest - when) <= MATCH_S:
            matched.append((nearest - when) * 1000)
    return matched
