"""A stream's encoded frames without a stream: pictures that are dark or lit, and a tone while they are lit."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from echo_rtc.clips import MEDIA_RATE, ClipFormat, YuvFrames
from echo_rtc.codec.picture import BitrateRange, VideoCodec
from echo_rtc.rtc.tracks import packetizer
from echo_rtc.stream.encoder_bank import EncoderBank, Portion
from echo_rtc.stream.log import StreamLog
from echo_rtc.stream.sinks import PacketSink

FORMAT = ClipFormat(fps=25, clip_frames=10, width=64, height=64)
BLOCK, BLOCKS_PER_FRAME = 960, 2
LIT = range(10, 16)
"""Of each second's frames, those that are lit."""


@dataclass
class Film:
    """Encodes on and on: one frame and two blocks at a time, as soon as the sink has taken the ones before."""

    bank: EncoderBank
    first_pts: int = 7 * MEDIA_RATE
    frame: int = 0
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    async def play(self, sink: PacketSink, frames: int) -> None:
        """So many more frames, each with its sound."""
        for number in range(self.frame, self.frame + frames):
            start = number * BLOCK * BLOCKS_PER_FRAME
            lit = number % FORMAT.fps in LIT
            blocks = []
            for n in range(BLOCKS_PER_FRAME):
                at = start + n * BLOCK + self.bank.lookahead_samples + np.arange(BLOCK)
                heard = at // (BLOCK * BLOCKS_PER_FRAME) % FORMAT.fps
                tone = np.sin(2 * np.pi * 1000 * at / MEDIA_RATE) * 12_000
                loud = (heard >= LIT.start) & (heard < LIT.stop)
                blocks.append((np.where(loud, tone, 0).astype(np.int16), self.first_pts + start + n * BLOCK))
            pts = (self.first_pts + start) * 90 // 48
            encoded = await self.bank.encode(Portion(tuple(blocks), ((self._picture(lit), pts),)), number / FORMAT.fps)
            sink.take_sound(encoded.sounds[0])
            for packet in encoded.pictures[VideoCodec.H264]:
                sink.take_picture(packet)
            sink.take_sound(encoded.sounds[1])
        self.frame += frames

    def _picture(self, lit: bool) -> YuvFrames:
        y = np.full((1, 64, 64), 200 if lit else 30, np.uint8)
        y[:, :32] += self.chance.integers(0, 20, (1, 32, 64), np.uint8)
        chroma = np.full((1, 32, 32), 128, np.uint8)
        return YuvFrames(y, chroma, chroma.copy())


@asynccontextmanager
async def film() -> AsyncIterator[Film]:
    bitrates = dict.fromkeys(VideoCodec, BitrateRange(start=100_000, minimum=50_000, maximum=400_000))
    bank = EncoderBank(FORMAT, packetizer, StreamLog(logging.getLogger("test"), "0123456789"), bitrates)
    bank.use([], [VideoCodec.H264])
    try:
        yield Film(bank)
    finally:
        await bank.close()


@dataclass
class Watched:
    """A file as a player sees it: how long it says it is, when its frames are shown and when light and sound begin."""

    duration_s: float
    frames: int
    light_s: list[float]
    tone_s: list[float]

    @property
    def offsets_ms(self) -> list[float]:
        return [1000 * (light - tone) for light, tone in zip(self.light_s, self.tone_s, strict=True)]


def watch(path: Path) -> Watched:
    """Decodes all of a file."""
    with av.open(str(path)) as container:
        luma: list[tuple[float, float]] = []
        loud: list[float] = []
        for decoded in container.decode():
            assert decoded.time is not None
            if isinstance(decoded, av.VideoFrame):
                luma.append((float(decoded.time), float(np.mean(decoded.to_ndarray()[40:64]))))
            else:
                samples = decoded.to_ndarray()[0]
                loud += (float(decoded.time) + np.flatnonzero(np.abs(samples) > 0.1) / MEDIA_RATE).tolist()
        lit = [b[0] for a, b in pairwise(luma) if a[1] < 100 <= b[1]]
        tones = [b for a, b in pairwise([-1.0, *loud]) if b - a > 0.2]
        return Watched(float(container.duration or 0) / 1e6, len(luma), lit, tones)
