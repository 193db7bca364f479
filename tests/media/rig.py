"""A whole call in virtual time: microphone, network, timeline, clipper, gate, a scripted renderer, playout, listener.

Everything is an event at a time that the script chose; nothing sleeps and nothing is left to chance. Frames carry their
number and sound is compared sample by sample, so what comes out says exactly where it came from.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array, YuvFrames
from echo_rtc.media.clipper import Clipper
from echo_rtc.media.delay_line import DelayPolicy
from echo_rtc.media.gate import SpeechGate
from echo_rtc.media.playout import FrameKind, Playout
from echo_rtc.media.timeline import Piece, Timeline

FORMAT = ClipFormat(fps=24, clip_frames=12, width=16, height=16, sample_rate=16_000, history_s=2.0)
LEAD_S = 0.06
TICK_S = 0.02
IDLE_FRAMES = 31
IDLE_MARK = 7


def numbered_frames(first: int, length: int, mark: int = 0) -> YuvFrames:
    """Frames that carry their number in the first bytes of y, and ``mark`` in u."""
    y = np.zeros((length, 16, 16), np.uint8)
    numbers = np.arange(first, first + length)
    for place in range(4):
        y[:, 0, place] = numbers >> (8 * place) & 255
    chroma = np.full((length, 8, 8), mark, np.uint8)
    return YuvFrames(y, chroma, chroma)


def number_of(frame: YuvFrames) -> int:
    assert len(frame) == 1
    return sum(int(frame.y[0, 0, place]) << (8 * place) for place in range(4))


def is_idle(frame: YuvFrames) -> bool:
    return int(frame.u[0, 0, 0]) == IDLE_MARK


IDLE = numbered_frames(0, IDLE_FRAMES, IDLE_MARK)


def voice(seconds: float, silences: Iterable[tuple[float, float]] = (), floor: int = 0, seed: int = 1) -> S16Array:
    """A loud voice, no sample of it within -2000..2000, with silences (begin, end) in seconds of ``floor`` noise."""
    rng = np.random.default_rng(seed)
    length = round(seconds * MEDIA_RATE)
    sound = rng.integers(2001, 9000, length) * rng.choice([-1, 1], length)
    for begin, end in silences:
        place = slice(round(begin * MEDIA_RATE), round(end * MEDIA_RATE))
        sound[place] = rng.integers(-floor, floor + 1, len(sound[place]))
    voiced: S16Array = sound.astype(np.int16)
    return voiced


def phrases(seconds: float, floor: int = 0, seed: int = 1) -> S16Array:
    """Ordinary speech: a loud voice in phrases of 1.2 to 2.8 s, 0.2 to 0.6 s apart, and 0.1 s between words; there is
    ``floor`` noise between."""
    rng = np.random.default_rng(seed)
    silences: list[tuple[float, float]] = []
    now = 0.0
    while now < seconds:
        ends = now + rng.uniform(1.2, 2.8)
        while (now := now + rng.uniform(0.25, 0.5)) < ends:
            silences.append((now, now + 0.1))
            now += 0.1
        now += rng.uniform(0.2, 0.6)
        silences.append((ends, now))
    return voice(seconds, silences, floor, seed)


def loud(sound: S16Array) -> S16Array:
    """The samples of the voice, without the silence between."""
    above: S16Array = sound[np.abs(sound.astype(np.int32)) > 2000]
    return above


@dataclass(frozen=True)
class Shown:
    """One output frame: its number, what it was, and the number its picture carries."""

    number: int
    kind: FrameKind
    source: int


@dataclass
class Rig:
    """``render(clip_index)`` says how many seconds the renderer takes for a clip; None: it never answers.

    ``chained``: one clip is rendered at a time. The last ``decode_s`` of its time pass while ``run_frames`` frames at a
    time come. ``picture_lead_samples``: how much further ahead than sound the
    listener asks for frames (negative: less far).
    """

    policy: DelayPolicy
    render: Callable[[int], float | None] = lambda _: 0.1
    threshold: float = 0.015
    format: ClipFormat = FORMAT
    rate_ppm: float = 0.0
    block: int = 960
    chained: bool = False
    run_frames: int = 12
    decode_s: float = 0.0
    picture_lead_samples: int = 0
    began_s: float = 1000.0
    events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    media: list[S16Array] = field(default_factory=list)
    sound: list[S16Array] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    delays: list[tuple[float, float]] = field(default_factory=list)
    jumps: bool = False
    """Whether frames of speech may be cross-faded into idle ones."""

    def __post_init__(self) -> None:
        self.timeline = Timeline()
        self.clipper = Clipper(self.format)
        self.gate = SpeechGate(self.threshold, self.format.sample_rate)
        self.playout = Playout(self.format, IDLE, self.policy)
        self.admitted: dict[int, bool] = {}
        self.position = 0
        self.next_frame = 0
        self.busy_until = 0.0
        self.ticked_s = 0.0
        self.order = count()

    # The script

    def at(self, when_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (self.began_s + when_s, next(self.order), act))

    def speak(
        self,
        sound: S16Array,
        begin_s: float = 0.0,
        pts: int = 0,
        delay_s: Callable[[int], float | None] = lambda _: 0.0,
    ) -> None:
        """Sends ``sound`` in blocks from ``begin_s`` on. ``delay_s(block)``: network delay, None: lost.

        No block overtakes another; the jitter buffer sees to that.
        """
        arrives = 0.0
        for index in range(len(sound) // self.block):
            delay = delay_s(index)
            if delay is None:
                continue
            start = index * self.block
            ends = begin_s + (start + self.block) / MEDIA_RATE / (1.0 + self.rate_ppm * 1e-6)
            pcm = sound[start : start + self.block]
            arrives = max(arrives, ends + delay)
            self.at(arrives, lambda now, stamp=pts + start, pcm=pcm: self.hear(stamp, pcm, now))  # type: ignore[misc]

    def run(self, until_s: float) -> None:
        """Plays all events until ``until_s``, ticking every TICK_S."""
        while self.ticked_s <= until_s:
            self.at(self.ticked_s, self.tick)
            self.ticked_s += TICK_S
        while self.events and self.events[0][0] <= self.began_s + until_s:
            when, _, act = heapq.heappop(self.events)
            act(when)

    # What happens

    def tick(self, now: float) -> None:
        self.take(self.timeline.advance(now), now)
        self.listen(now)

    def hear(self, pts: int, pcm: S16Array, now: float) -> None:
        self.take(self.timeline.block(pts, pcm, now), now)

    def take(self, pieces: list[Piece], now: float) -> None:
        self.playout.discipline(self.timeline.arrived(now), now)
        self.delays.append((now - self.began_s, self.playout.delay_s))
        for start, pcm in pieces:
            self.media.append(pcm)
            self.playout.push_sound(start, pcm, now)
            decimated = pcm[-start % 3 :: 3].astype(np.float32) / np.float32(32768.0)
            for clip in self.clipper.push(decimated):
                self.admitted[clip.index] = self.gate.admit(clip)
                self.playout.expect(clip, self.admitted[clip.index])
                if self.admitted[clip.index]:
                    self.start_render(clip.index, now)

    def start_render(self, index: int, now: float) -> None:
        seconds = self.render(index)
        if seconds is None:
            self.playout.lose(index)
            return
        frames = self.format.clip_frames
        begins = max(now, self.busy_until) if self.chained else now
        self.busy_until = begins + seconds
        rendered = numbered_frames(index * frames, frames)
        for first in range(0, frames, self.run_frames):
            run = rendered[first : first + self.run_frames]
            took = seconds - self.decode_s * (1 - (first + len(run)) / frames)
            self.at(
                begins + took - self.began_s,
                lambda when, run=run, took=took: self.playout.put(index, run, took, when),  # type: ignore[misc]
            )

    def listen(self, now: float) -> None:
        while self.playout.due(self.position) - LEAD_S <= now:
            while (
                self.format.sample_of_frame(self.next_frame, MEDIA_RATE)
                < self.position + 960 + self.picture_lead_samples
            ):
                picture, kind = self.playout.frame(self.next_frame)
                assert (kind is FrameKind.IDLE) <= is_idle(picture) or self.jumps
                self.shown.append(Shown(self.next_frame, kind, number_of(picture)))
                self.next_frame += 1
            self.sound.append(self.playout.sound(self.position, 960))
            self.position += 960

    # What came out

    @property
    def heard(self) -> S16Array:
        return np.concatenate(self.sound)

    @property
    def media_time(self) -> S16Array:
        return np.concatenate(self.media)

    def kinds(self) -> list[FrameKind]:
        return [shown.kind for shown in self.shown]

    def assert_in_step(self) -> None:
        """Each frame leaves with the very sound of its moment, to the sample.

        Rendered frames with that of their number, idle ones with that of a number which the loop's length takes to
        theirs.
        """
        heard, media = self.heard, self.media_time
        checked = set()
        for shown in self.shown:
            ours = self.sound_of(heard, shown.number)
            if shown.kind is FrameKind.HELD or len(ours) < 240:
                continue
            sources = [shown.source]
            if shown.kind is FrameKind.IDLE:
                nearest = shown.number - (shown.number - shown.source) % IDLE_FRAMES
                sources = [nearest + turn * IDLE_FRAMES for turn in (-1, 0, 1)]
            assert any(np.array_equal(ours, self.sound_of(media, source)) for source in sources if source >= 0), shown
            checked.add(shown.kind)
        assert FrameKind.RENDERED in checked

    def sound_of(self, sound: S16Array, frame: int) -> S16Array:
        """5 ms of the sound of a frame."""
        start = self.format.sample_of_frame(frame, MEDIA_RATE) + 240
        return sound[start : start + 240]
