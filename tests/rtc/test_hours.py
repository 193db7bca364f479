"""A stream's whole way in virtual time, from the microphone's track to a viewer's: a long call drifts nowhere and grows
nothing. Only codecs are left out; three hours of what lies between are in ``tests/media/test_call.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import MEDIA_RATE, ClipFormat
from echo_rtc.codec.picture import PICTURE_RATE, VideoCodec
from echo_rtc.engine.testcard import AVATAR, ScriptedFaults, TestCardEngine
from echo_rtc.media.timeline import Timeline
from echo_rtc.rtc.tracks import PacketTrack, packetizer
from echo_rtc.rtc.voice import microphone
from echo_rtc.stream import stream as stream_module
from echo_rtc.stream.encoder_bank import EncodedFrame, EncodedPortion, EncoderBank, Portion
from echo_rtc.stream.stream import Stream, StreamOptions
from echo_rtc.stream.viewers import Viewer
from tests.support.virtual import run

FORMAT = ClipFormat(fps=12, clip_frames=6, width=32, height=32)
BLOCK = 960
MINUTES = 6
MUTED = range(120, 180)
"""Seconds in which the microphone sends nothing."""


class Bank(EncoderBank):
    """Packets without encoding, at once: under virtual time nothing may take real time."""

    async def encode(self, portion: Portion, now: float) -> EncodedPortion:
        sounds = tuple(_packet(pts, MEDIA_RATE) for _, pts in portion.sounds)
        pictures = tuple(_packet(pts, PICTURE_RATE) for _, pts in portion.pictures)
        return EncodedPortion(sounds, dict.fromkeys(self._codecs, pictures))

    async def close(self) -> None:
        self._thread.shutdown()


def _packet(pts: int, rate: int) -> EncodedFrame:
    return EncodedFrame((b"x",), pts, Fraction(1, rate), data=b"x", is_keyframe=True)


class Voice(MediaStreamTrack):
    """A microphone whose clock is off by ``ppm``; it speaks and pauses by turns, and is muted for a minute."""

    kind = "audio"

    def __init__(self, seconds: int, ppm: float) -> None:
        super().__init__()
        self._blocks = seconds * MEDIA_RATE // BLOCK
        self._rate = 1.0 + ppm * 1e-6
        self._number = 0
        self._began: float | None = None
        rng = np.random.default_rng(2)
        self._speech = rng.integers(-9_000, 9_000, BLOCK).astype(np.int16)

    async def recv(self) -> av.AudioFrame:
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
        while self._number * BLOCK // MEDIA_RATE in MUTED:
            self._number += 1
        if self._number >= self._blocks:
            raise MediaStreamError
        due = self._began + (self._number + 1) * BLOCK / MEDIA_RATE / self._rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        second = self._number * BLOCK // MEDIA_RATE
        pcm = self._speech if second % 20 < 12 else np.zeros(BLOCK, np.int16)
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = MEDIA_RATE, self._number * BLOCK, Fraction(1, MEDIA_RATE)
        self._number += 1
        return frame


class Reader:
    """Reads a track as a connection does: when each packet came, and its pts."""

    def __init__(self, track: PacketTrack) -> None:
        self._track = track
        self.count = 0
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)
        self.step: set[int] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                packet = await self._track.recv()
            except MediaStreamError:
                return
            if self.first is None:
                self.first = (loop.time(), packet.pts)
            else:
                self.step.add(packet.pts - self.last[1])
            self.last = (loop.time(), packet.pts)
            self.count += 1

    def pace(self, rate: int) -> float:
        """Seconds of pts for each second of our clock, minus one."""
        assert self.first is not None
        return (self.last[1] - self.first[1]) / rate / (self.last[0] - self.first[0]) - 1.0


async def talk(seconds: int, ppm: float) -> tuple[Stream, Reader, Reader, list[float], list[dict[str, int]]]:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.05))
    await engine.start(lambda _: None)
    stream = Stream(engine, engine.avatars[AVATAR], StreamOptions(), packetizer)
    viewer: Viewer = stream.add_viewer(VideoCodec.H264, with_sound=True)
    assert viewer.sound is not None
    assert viewer.picture is not None
    sound = Reader(PacketTrack("audio", viewer.sound))
    picture = Reader(PacketTrack("video", viewer.picture))
    readers = [asyncio.create_task(reader.run()) for reader in (sound, picture)]
    stream.begin()
    stream.listen(microphone(Voice(seconds, ppm)))
    delays: list[float] = []
    kept: list[dict[str, int]] = []
    for _ in range(seconds // 10):
        await asyncio.sleep(10.0)
        delays.append(stream.delay_s)
        kept.append(belongings(stream))
    await stream.close("the test is over")
    await asyncio.gather(*readers)
    await engine.close()
    return stream, sound, picture, delays, kept


def belongings(stream: Stream) -> dict[str, int]:
    """How much everything holds that could grow."""
    playout, timeline = stream._playout, stream._listener.timeline
    assert isinstance(timeline, Timeline)
    sized: dict[str, Callable[[], int]] = {
        "clips": lambda: len(playout._store),
        "shifts": lambda: len(playout._line._shifts),
        "needs": lambda: len(playout._line._need._needs),
        "line": lambda: playout._line.ring.capacity,
        "late": lambda: len(timeline._late),
        "pieces": lambda: sum(map(len, stream._listener._feed._clipper._pieces)),
        "resampled": lambda: stream._listener._feed._resampler._waiting,
        "pending": lambda: stream._dispatcher.pending,
        "tasks": lambda: len(stream._tasks),
    }
    return {name: size() for name, size in sized.items()}


@pytest.mark.parametrize("ppm", [-200.0, 200.0])
def test_a_long_call_drifts_nowhere_and_grows_nothing(ppm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "EncoderBank", Bank)
    seconds = MINUTES * 60
    stream, sound, picture, delays, kept = run(talk(seconds, ppm))
    playout = stream._playout.statistics()
    # Every packet of sound in its place, all along; and the picture's clock is the sound's.
    assert sound.step == {BLOCK}
    # The player follows the microphone's clock: three hours at 200 ppm are two seconds more.
    assert sound.count * BLOCK / MEDIA_RATE == pytest.approx(seconds * (1 + ppm * 1e-6), abs=1.0)
    assert picture.step == {PICTURE_RATE // FORMAT.fps}
    assert sound.last[1] / MEDIA_RATE == pytest.approx(picture.last[1] / PICTURE_RATE, abs=1 / FORMAT.fps + 0.02)
    assert abs(sound.pace(MEDIA_RATE) - picture.pace(PICTURE_RATE)) < 1e-4
    # The delay is what it was after the first minute, whatever the microphone's clock does to it.
    assert np.ptp(delays[6:12]) < 0.05
    assert np.ptp(delays[24:]) < 0.05
    assert playout.underruns == playout.skipped == 0
    assert playout.rendered > 0.4 * seconds * FORMAT.fps
    assert stream._pump.counters.skipped_blocks == stream._pump.counters.late_packets == 0
    # Nothing holds more in the end than after two minutes; the clipper's history grows and is cut with every clip.
    for name in kept[0].keys() - {"pieces"}:
        assert max(k[name] for k in kept[24:]) <= max(k[name] for k in kept[6:12]), name
    clip_s = float(FORMAT.clip_duration)
    assert max(k["pieces"] for k in kept) <= (FORMAT.history_s + clip_s) * FORMAT.sample_rate
    assert kept[-1]["tasks"] <= kept[0]["tasks"]
