"""Packets leave when they are due, sound and picture by one count, whatever the encoder does meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array, YuvFrames
from echo_rtc.codec.picture import VideoCodec
from echo_rtc.media.playout import FrameKind
from echo_rtc.stream.encoder_bank import EncodedFrame, EncodedPortion, Portion
from echo_rtc.stream.pump import LEAD_S, MAX_LAG_S, MAX_PORTION_BLOCKS, PORTION_BLOCKS, Pump, PumpOptions
from echo_rtc.stream.queues import MediaQueue
from echo_rtc.stream.sinks import PacketSink
from echo_rtc.stream.stream import StreamOptions
from echo_rtc.stream.taps import FrameQueue, Tap
from echo_rtc.stream.viewers import DueFrame, Viewer
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=16, height=16)
DELAY_S = 0.7


def frames(count: int, luma: int) -> YuvFrames:
    chroma = np.zeros((count, 8, 8), np.uint8)
    return YuvFrames(np.full((count, 16, 16), luma, np.uint8), chroma, chroma)


@dataclass
class Source:
    """Position 0 leaves at ``begins``; the clock runs ``rate`` times as fast as ours; sample n is n % 1000."""

    begins: float
    rate: float = 1.0
    kind: FrameKind = FrameKind.RENDERED
    asked: list[int] = field(default_factory=list)
    ahead_s: list[float] = field(default_factory=list)
    """How long before it was due each frame was asked for."""

    def due(self, position: int) -> float:
        return self.begins + position / MEDIA_RATE / self.rate

    def media_now(self, now: float) -> int:
        return math.floor((now - self.begins) * MEDIA_RATE * self.rate)

    def media_sample(self, position: int) -> int:
        return position - 100

    def sound(self, start: int, count: int) -> S16Array:
        return (np.arange(start, start + count) % 1000).astype(np.int16)

    def frame(self, number: int) -> tuple[YuvFrames, FrameKind]:
        self.asked.append(number)
        due = self.due(-(-number * MEDIA_RATE // FORMAT.fps))
        self.ahead_s.append(due - asyncio.get_running_loop().time())
        return frames(1, 100), self.kind

    def idle_frame(self, number: int) -> YuvFrames:
        return frames(1, 50)


@dataclass
class Bank:
    """Encodes nothing: packets carry their pts, and the first sample or luma as payload. Takes ``seconds`` a block."""

    seconds: float = 0.003
    lookahead: int = 312
    codecs: tuple[VideoCodec, ...] = (VideoCodec.H264,)
    stall: Callable[[int], float] = lambda _: 0.0
    portions: int = 0
    most_blocks: int = 0

    @property
    def lookahead_samples(self) -> int:
        return self.lookahead

    async def encode(self, portion: Portion, now: float) -> EncodedPortion:
        self.portions += 1
        self.most_blocks = max(self.most_blocks, len(portion.sounds))
        await asyncio.sleep(self.seconds + sum(self.stall(pts) for _, pts in portion.sounds))
        pictures = {
            codec: tuple(packet(pts, 90_000, bytes([int(shown.y[0, 0, 0])])) for shown, pts in portion.pictures)
            for codec in self.codecs
        }
        sounds = (packet(pts, MEDIA_RATE, int(pcm[0]).to_bytes(2, "big")) for pcm, pts in portion.sounds)
        return EncodedPortion(tuple(sounds), pictures)


def packet(pts: int, rate: int, payload: bytes) -> EncodedFrame:
    return EncodedFrame((payload,), pts, Fraction(1, rate), payload, is_keyframe=True)


@dataclass
class Receivers:
    viewers: list[Viewer] = field(default_factory=list)
    taps: list[Tap] = field(default_factory=list)
    sinks: tuple[PacketSink, ...] = ()


@dataclass
class Watched:
    """What a viewer got: (time, pts, payload) of sound and of pictures."""

    sound: list[tuple[float, int, bytes]] = field(default_factory=list)
    picture: list[tuple[float, int, bytes]] = field(default_factory=list)


async def watch(viewer: Viewer, seen: Watched) -> None:
    async def read(queue: MediaQueue[DueFrame] | None, into: list[tuple[float, int, bytes]]) -> None:
        assert queue is not None
        while True:
            got, _ = await queue.get()
            into.append((asyncio.get_running_loop().time(), got.pts, got.payloads[0]))

    await asyncio.gather(read(viewer.sound, seen.sound), read(viewer.picture, seen.picture))


def pump_for(
    seconds: float,
    bank: Bank | None = None,
    rate: float = 1.0,
    kind: FrameKind = FrameKind.RENDERED,
    during: Callable[[Pump], Awaitable[None]] | None = None,
) -> tuple[Watched, Pump, Source, float]:
    """Runs a pump for ``seconds`` with one viewer; what it saw, and when the pump began."""

    async def live() -> tuple[Watched, Pump, Source, float]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        source = Source(begun + DELAY_S, rate, kind)
        viewer = Viewer(0, VideoCodec.H264, True, lambda: None, lambda *_: None)
        seen = Watched()
        watching = asyncio.create_task(watch(viewer, seen))
        pump = Pump(FORMAT, source, bank or Bank(), Receivers([viewer]))
        pumping = asyncio.create_task(pump.run())
        await asyncio.sleep(0)
        if during is not None:
            await during(pump)
        await asyncio.sleep(seconds - (loop.time() - begun))
        for task in (pumping, watching):
            task.cancel()
        await asyncio.gather(pumping, watching, return_exceptions=True)
        return seen, pump, source, begun

    return run(live())


def test_packets_leave_when_due_and_count_from_one_zero() -> None:
    seen, pump, source, _ = pump_for(5.0)
    base = seen.sound[0][1] - round((seen.sound[0][0] - source.begins) * MEDIA_RATE)
    assert seen.sound[0][1] >= 0
    assert np.all(np.diff([pts for _, pts, _ in seen.sound]) == 960)
    for when, pts, _ in seen.sound:
        assert when == pytest.approx(source.begins + (pts - base) / MEDIA_RATE, abs=1e-4)
    for when, pts, _ in seen.picture:
        assert when == pytest.approx(source.begins + (pts / 90_000 - base / MEDIA_RATE), abs=1e-4)
    assert np.all(np.diff([pts for _, pts, _ in seen.picture]) == 3_750)
    assert pump.counters.late_packets == 0


def test_the_sound_is_taken_ahead_by_what_the_encoder_lags() -> None:
    seen, _, source, _ = pump_for(3.0)
    base = seen.sound[0][1] - round((seen.sound[0][0] - source.begins) * MEDIA_RATE)
    for _, pts, payload in seen.sound:
        assert int.from_bytes(payload, "big") == (pts - base + 312) % 1000


def test_the_idle_loop_shows_until_the_sources_first_frame() -> None:
    seen, _, source, begun = pump_for(3.0)
    assert seen.picture[0][0] - begun < LEAD_S + 0.05
    before = [payload for when, _, payload in seen.picture if when < source.begins - 1e-6]
    after = [payload for when, _, payload in seen.picture if when >= source.begins - 1e-6]
    assert set(before) == {bytes([50])}
    assert len(before) >= (DELAY_S - LEAD_S - 0.05) * 24
    assert set(after) == {bytes([100])}
    assert source.asked == list(range(len(source.asked)))


def test_no_frame_is_taken_long_before_it_is_due() -> None:
    """The playout's margin has room for it, and a portion for each frame is enough."""
    bank = Bank()
    seen, _, source, _ = pump_for(20.0, bank)
    assert LEAD_S - 1e-3 <= min(source.ahead_s) <= max(source.ahead_s) <= LEAD_S + 0.02
    assert max(source.ahead_s) < StreamOptions().margin_s - 0.03
    assert bank.portions <= len(seen.picture) + 2


@pytest.mark.parametrize("rate", [1 - 500e-6, 1 + 500e-6])
def test_a_slewed_clock_moves_both_alike(rate: float) -> None:
    seen, _, _, _ = pump_for(120.0, rate=rate)
    sound_when, sound_pts, _ = seen.sound[-1]
    picture_when, picture_pts, _ = seen.picture[-1]
    assert (sound_when - picture_when) * rate == pytest.approx(sound_pts / MEDIA_RATE - picture_pts / 90_000, abs=1e-3)
    assert len(seen.sound) == pytest.approx(120.0 * 50 * rate, abs=5)


def test_a_slow_block_makes_its_packets_late_and_no_others() -> None:
    bank = Bank(stall=lambda pts: 0.15 if 48_000 <= pts < 48_960 else 0.0)
    seen, pump, source, _ = pump_for(4.0, bank)
    base = seen.sound[0][1] - round((seen.sound[0][0] - source.begins) * MEDIA_RATE)
    late = [when - (source.begins + (pts - base) / MEDIA_RATE) for when, pts, _ in seen.sound]
    assert np.all(np.diff([pts for _, pts, _ in seen.sound]) == 960)
    assert max(late) == pytest.approx(0.15 + 0.003 - LEAD_S, abs=0.01)
    assert late[-1] < 0.001
    assert pump.counters.late_packets > 0
    assert pump.counters.worst_late_s == pytest.approx(max(late), abs=0.002)


def test_after_a_long_sleep_the_pump_goes_on_with_what_is_due() -> None:
    bank = Bank(stall=lambda pts: 5.0 if pts == 960 * 100 else 0.0)
    seen, pump, source, _ = pump_for(12.0, bank)
    base = seen.sound[0][1] - round((seen.sound[0][0] - source.begins) * MEDIA_RATE)
    assert pump.counters.skipped_blocks == pytest.approx(5.0 * 50, abs=MAX_LAG_S * 50)
    when, pts, _ = seen.sound[-1]
    assert when == pytest.approx(source.begins + (pts - base) / MEDIA_RATE, abs=1e-3)
    assert len(seen.sound) >= (12.0 - 5.0 - 0.2) * 50
    when, pts, _ = seen.picture[-1]
    assert when == pytest.approx(source.begins + pts / 90_000 - base / MEDIA_RATE, abs=1e-3)


def test_a_machine_that_is_slow_to_answer_gets_larger_portions() -> None:
    bank = Bank(seconds=0.09)
    seen, pump, _, _ = pump_for(20.0, bank)
    lags = [when - pts / MEDIA_RATE for when, pts, _ in seen.sound]
    assert PORTION_BLOCKS < bank.most_blocks <= MAX_PORTION_BLOCKS
    assert pump.counters.skipped_blocks == 0
    assert np.all(np.diff([pts for _, pts, _ in seen.sound]) == 960)
    assert max(lags) - min(lags) < 0.15


def test_an_encoder_that_is_far_too_slow_builds_no_backlog() -> None:
    seen, pump, _, _ = pump_for(20.0, Bank(stall=lambda _: 0.03))
    lags = [when - pts / MEDIA_RATE for when, pts, _ in seen.sound]
    assert max(lags) - min(lags) < MAX_LAG_S + 0.5
    assert pump.counters.skipped_blocks > 0


def test_without_viewers_nothing_is_encoded_and_time_goes_on() -> None:
    async def live() -> tuple[int, list[int]]:
        loop = asyncio.get_running_loop()
        source, bank = Source(loop.time() + DELAY_S), Bank()
        pump = Pump(FORMAT, source, bank, Receivers())
        pumping = asyncio.create_task(pump.run())
        await asyncio.sleep(3)
        pumping.cancel()
        await asyncio.gather(pumping, return_exceptions=True)
        return bank.portions, source.asked

    portions, asked = run(live())
    assert portions == 0
    assert asked == list(range(len(asked)))
    assert len(asked) > 50


async def read_frames(queue: FrameQueue[Any], into: list[tuple[float, int, int, int]]) -> None:
    """Reads (time, pts, media sample, first sample or luma) for ever."""
    while True:
        frame, media_sample = await queue.get()
        first = int(frame.to_ndarray().flat[0])
        into.append((asyncio.get_running_loop().time(), frame.pts, media_sample, first))


def test_a_tap_gets_raw_frames_when_due_with_their_own_sound() -> None:
    async def live() -> tuple[Tap, list[tuple[float, int, int, int]], list[tuple[float, int, int, int]], Source, Bank]:
        loop = asyncio.get_running_loop()
        source, bank, tap = Source(loop.time() + DELAY_S), Bank(), Tap()
        pump = Pump(FORMAT, source, bank, Receivers(taps=[tap]))
        pumping = asyncio.create_task(pump.run())
        await asyncio.sleep(1.0)  # nobody reads yet, and nothing is kept for later
        sound: list[tuple[float, int, int, int]] = []
        picture: list[tuple[float, int, int, int]] = []
        reading = [
            asyncio.create_task(read_frames(queue, into))
            for queue, into in ((tap.sound, sound), (tap.picture, picture))
        ]
        await asyncio.sleep(3.0)
        for task in (pumping, *reading):
            task.cancel()
        await asyncio.gather(pumping, *reading, return_exceptions=True)
        return tap, sound, picture, source, bank

    tap, sound, picture, source, bank = run(live())
    assert bank.portions == 0
    assert len(sound) == pytest.approx(148, abs=4)
    assert len(picture) == pytest.approx(71, abs=3)
    assert tap.sound.dropped == tap.picture.dropped == 0
    for when, pts, media_sample, first in sound:
        assert when == pytest.approx(source.due(media_sample + 100), abs=1e-4)
        assert first == (media_sample + 100) % 1000
        assert media_sample - pts == sound[0][2] - sound[0][1]
    assert np.all(np.diff([pts for _, pts, _, _ in picture]) == 3_750)
    for when, pts, media_sample, _ in picture:
        assert when == pytest.approx(source.due(media_sample + 100), abs=1e-4)
        # One count for both: the same place in media time has the same time stamp.
        assert pts / 90_000 - media_sample / MEDIA_RATE == pytest.approx((sound[0][1] - sound[0][2]) / MEDIA_RATE)


def test_what_is_drawn_is_in_every_picture_that_leaves() -> None:
    async def live() -> tuple[Watched, list[tuple[float, int, int, int]]]:
        viewer, tap = Viewer(0, VideoCodec.H264, True, lambda: None, lambda *_: None), Tap()
        source = Source(asyncio.get_running_loop().time() + DELAY_S)
        options = PumpOptions(draw=lambda picture: frames(1, int(picture.y[0, 0, 0]) + 1))
        pump = Pump(FORMAT, source, Bank(), Receivers([viewer], [tap]), options)
        seen, raw = Watched(), list[tuple[float, int, int, int]]()
        tasks = [asyncio.create_task(work) for work in (pump.run(), watch(viewer, seen), read_frames(tap.picture, raw))]
        await asyncio.sleep(2.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seen, raw

    seen, raw = run(live())
    assert {payload[0] for _, _, payload in seen.picture} == {51, 101}  # of the idle loop and of speech
    assert {luma for _, _, _, luma in raw} == {51, 101}


@pytest.mark.parametrize(("kind", "held"), [(FrameKind.HELD, 24), (FrameKind.RENDERED, 0)])
def test_the_last_second_is_judged(kind: FrameKind, held: int) -> None:
    _, pump, _, _ = pump_for(4.0, kind=kind)
    recent = pump.recent()
    assert recent.frames == 24
    assert recent.held == held
    assert recent.latest is kind
