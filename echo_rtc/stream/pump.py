"""The output of a stream: takes sound and frames from the playout a little ahead of time, has them encoded, and hands
the packets to every viewer, and the raw frames to every tap, when they are due (pacing).

Output is counted in positions (samples at 48 kHz), which the playout's clock maps to times; sound goes in blocks of
20 ms, and a frame belongs to the block into which it falls. So both leave by one clock and carry pts of one count.
Knows neither the microphone nor the engine.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVarTuple

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array, YuvFrames
from echo_rtc.codec.picture import PICTURE_RATE, VideoCodec
from echo_rtc.codec.sound import SOUND_BLOCK_SAMPLES
from echo_rtc.counting import CounterMetric, counter, counters
from echo_rtc.media.playout import FRAMES, FrameKind
from echo_rtc.stream.encoder_bank import EncodedFrame, EncodedPortion, Portion
from echo_rtc.stream.sinks import PacketSink
from echo_rtc.stream.sync import SyncMeter
from echo_rtc.stream.taps import Tap
from echo_rtc.stream.viewers import Viewer

LEAD_S = 0.03
"""How long before it is due sound is taken from the playout, to be encoded in between. Packets that are ready when due
keep encode time out of the sync."""
PORTION_BLOCKS = 3
"""Most blocks of 20 ms that are encoded at once: more cost less, but are taken earlier. A portion begins with each
block into which a frame falls, so that no frame is taken earlier than LEAD_S and a block before it is due; the
playout's margin must be larger than that."""
MAX_PORTION_BLOCKS = 10
"""Where the machine is too busy to keep up, up to this many blocks that are wanted already are encoded at once."""
MAX_LAG_S = 0.5
"""If the pump is later than this (the machine slept, or is far too busy), it goes on with what is due now."""
LATE_S = 0.02
"""A packet that leaves later than this after it was due is counted."""
RECENT_S = 1.0
"""The state of a stream is judged by the frames of this many seconds."""


class Source(Protocol):
    """The part of the playout that gives out sound and frames, by position; see ``media.playout``."""

    def due(self, position: int) -> float: ...

    def media_now(self, now: float) -> int: ...

    def media_sample(self, position: int) -> int: ...

    def sound(self, start_sample: int, count: int) -> S16Array: ...

    def frame(self, number: int) -> tuple[YuvFrames, FrameKind]: ...

    def idle_frame(self, number: int) -> YuvFrames: ...


class PortionEncoder(Protocol):
    """The part of the encoder bank that the pump uses."""

    @property
    def lookahead_samples(self) -> int: ...

    async def encode(self, portion: Portion, now: float) -> EncodedPortion: ...


class Receivers(Protocol):
    """The receivers of the output, as they are at each moment."""

    @property
    def viewers(self) -> Sequence[Viewer]: ...

    @property
    def sinks(self) -> Sequence[PacketSink]: ...

    @property
    def taps(self) -> Sequence[Tap]: ...


SOUND_BLOCKS = CounterMetric("sound_blocks", "Blocks of 20 ms of sound that left.")
SOUND_SKIPPED_BLOCKS = CounterMetric(
    "sound_skipped_blocks", "Blocks of 20 ms left out because the server was more than half a second late."
)
LATE_PACKETS = CounterMetric("late_packets", "Packets that left more than 20 ms after they were due.")
ENCODED_BYTES = CounterMetric(
    "encoded_bytes", "Bytes of encoded packets that left, once each however many viewers there are.", "codec"
)


@dataclass(slots=True)
class PumpCounters:
    """Blocks of sound sent; blocks skipped because the pump was more than MAX_LAG_S late; frames not encoded because
    they were late already; packets that left more than LATE_S after they were due; the most that one was late; and the
    bytes that left by codec ("Opus"), once each however many viewers there are."""

    blocks: int = counter(SOUND_BLOCKS)
    skipped_blocks: int = counter(SOUND_SKIPPED_BLOCKS)
    skipped_frames: int = counter(FRAMES, "unencoded")
    late_packets: int = counter(LATE_PACKETS)
    worst_late_s: float = 0.0
    sent_bytes: dict[str, int] = counters(ENCODED_BYTES, "Opus", *VideoCodec)


@dataclass(frozen=True, slots=True)
class Recent:
    """The frames of the last RECENT_S seconds: how many left, how many of them were held, and the latest one's kind."""

    frames: int
    held: int
    latest: FrameKind | None


@dataclass(frozen=True, slots=True)
class PumpOptions:
    """``portion_blocks``: most blocks of 20 ms that are encoded at once; what is taken can no longer be interrupted.
    ``draw``: makes of each picture the one that leaves."""

    portion_blocks: int = PORTION_BLOCKS
    draw: Callable[[YuvFrames], YuvFrames] | None = None


class Pump:
    """Runs a stream's output for its audience."""

    def __init__(
        self,
        clip_format: ClipFormat,
        source: Source,
        bank: PortionEncoder,
        audience: Receivers,
        options: PumpOptions | None = None,
    ) -> None:
        self._options = options or PumpOptions()
        self._format = clip_format
        self._source = source
        self._bank = bank
        self._audience = audience
        self._clock = asyncio.get_running_loop().time
        self._shown: deque[tuple[float, FrameKind]] = deque(maxlen=2 * math.ceil((RECENT_S + LEAD_S) * clip_format.fps))
        self.counters = PumpCounters()
        self.sync = SyncMeter()

    async def run(self) -> None:
        """Runs until it is cancelled. The source must have begun: ``due(0)`` is finite."""
        outbox = _Outbox(self._deliver)
        raw = _Outbox(self._deliver_raw)
        try:
            await self._prepare(outbox, raw)
        finally:
            outbox.close()
            raw.close()

    def recent(self) -> Recent:
        """How the picture did in the last second."""
        now = self._clock()
        while self._shown and self._shown[0][0] <= now - RECENT_S:
            self._shown.popleft()
        kinds = [kind for due, kind in self._shown if due <= now]
        return Recent(len(kinds), kinds.count(FrameKind.HELD), kinds[-1] if kinds else None)

    async def _prepare(self, outbox: _Packets, raw: _RawFrames) -> None:
        number = self._first_block()
        base = -number * SOUND_BLOCK_SAMPLES
        while True:
            due = self._source.due(number * SOUND_BLOCK_SAMPLES)
            await self._until(due - LEAD_S)
            now = self._clock()
            if now - due > MAX_LAG_S:
                current = max(number + 1, self._source.media_now(now) // SOUND_BLOCK_SAMPLES)
                self.counters.skipped_blocks += current - number
                number = current
                continue
            end = self._portion_end(number)
            while end < number + MAX_PORTION_BLOCKS and self._source.due(end * SOUND_BLOCK_SAMPLES) - LEAD_S <= now:
                end += 1
            dues, portion = self._take(range(number, end), base, now)
            if any(tap.live for tap in self._audience.taps):
                self._send_raw(raw, range(number, end), base, portion.pictures)
            if self._audience.sinks or any(viewer.live for viewer in self._audience.viewers):
                self._send(outbox, dues, await self._bank.encode(portion, now))
            number = end

    def _first_block(self) -> int:
        """The block to begin with: before position 0, so that the idle loop is seen until the first sound is due."""
        ahead_s = self._source.due(0) - self._clock() - LEAD_S
        return min(0, -math.floor(ahead_s * MEDIA_RATE / SOUND_BLOCK_SAMPLES))

    def _portion_end(self, number: int) -> int:
        """The block before which a portion ends that begins with block ``number``."""
        last = number + self._options.portion_blocks
        return next((end for end in range(number + 1, last) if self._frames_within(end * SOUND_BLOCK_SAMPLES)), last)

    def _take(self, numbers: range, base: int, now: float) -> tuple[_Dues, Portion]:
        """Takes blocks from the source, and the frames that fall into them. ``base`` makes their pts count from 0."""
        dues = _Dues()
        sounds: list[tuple[S16Array, int]] = []
        pictures: list[tuple[YuvFrames, int]] = []
        for number in numbers:
            start = number * SOUND_BLOCK_SAMPLES
            for k in self._frames_within(start):
                due = self._source.due(self._format.sample_of_frame(k, MEDIA_RATE))
                if now - due > 1 / self._format.fps:
                    self.counters.skipped_frames += 1
                    continue
                pts = self._format.sample_of_frame(k, PICTURE_RATE) + base * PICTURE_RATE // MEDIA_RATE
                pictures.append((self._picture(k, due), pts))
                dues.pictures[pts] = due
            pcm = self._source.sound(start + self._bank.lookahead_samples, SOUND_BLOCK_SAMPLES)
            sounds.append((pcm, start + base))
            dues.sounds[start + base] = self._source.due(start)
        return dues, Portion(tuple(sounds), tuple(pictures))

    def _frames_within(self, start: int) -> range:
        """The numbers of the frames whose first sample lies in the block that begins at ``start``."""
        before = self._format.frame_of_sample(start - 1, MEDIA_RATE)
        last = self._format.frame_of_sample(start + SOUND_BLOCK_SAMPLES - 1, MEDIA_RATE)
        return range(before + 1, last + 1)

    def _picture(self, number: int, due: float) -> YuvFrames:
        if number < 0:
            picture, kind = self._source.idle_frame(number), FrameKind.IDLE
        else:
            picture, kind = self._source.frame(number)
        self._shown.append((due, kind))
        return picture if self._options.draw is None else self._options.draw(picture)

    def _send(self, outbox: _Packets, dues: _Dues, encoded: EncodedPortion) -> None:
        """Puts a portion's packets where they wait until they are due."""
        waiting: list[tuple[float, VideoCodec | None, EncodedFrame]] = [
            (dues.sounds[packet.pts], None, packet) for packet in encoded.sounds
        ]
        for codec, packets in encoded.pictures.items():
            waiting += [(dues.pictures[packet.pts], codec, packet) for packet in packets]
        for entry in sorted(waiting, key=lambda entry: entry[0]):
            outbox.put(*entry)

    def _deliver(self, due: float, codec: VideoCodec | None, packet: EncodedFrame) -> None:
        """Hands a packet that is due to the viewers of its codec; ``codec`` is None for sound, which all get."""
        now = self._clock()
        if codec is None:
            self.sync.sound(packet.pts / MEDIA_RATE, now)
        else:
            self.sync.picture(packet.pts / PICTURE_RATE, now)
        name = "Opus" if codec is None else codec.value
        self.counters.sent_bytes[name] = self.counters.sent_bytes.get(name, 0) + packet.size
        late_s = now - due
        self.counters.late_packets += late_s > LATE_S
        self.counters.worst_late_s = max(self.counters.worst_late_s, late_s)
        self.counters.blocks += codec is None
        for viewer in self._audience.viewers:
            if codec is None:
                viewer.take_sound(packet, due)
            elif viewer.codec is codec:
                viewer.take_picture(packet, due)
        for sink in self._audience.sinks:
            if codec is None:
                sink.take_sound(packet)
            elif sink.codec is codec:
                sink.take_picture(packet)

    def _send_raw(
        self, raw: _RawFrames, numbers: range, base: int, pictures: tuple[tuple[YuvFrames, int], ...]
    ) -> None:
        """Puts a portion's raw frames where they wait until they are due. Nothing lags here as the encoder does, so the
        sound is that of its own time."""
        waiting: list[tuple[float, int, int, S16Array | YuvFrames]] = []
        for start in (number * SOUND_BLOCK_SAMPLES for number in numbers):
            media_sample = self._source.media_sample(start)
            pcm = self._source.sound(start, SOUND_BLOCK_SAMPLES)
            waiting.append((self._source.due(start), start + base, media_sample, pcm))
        for picture, pts in pictures:
            position = -(-pts * MEDIA_RATE // PICTURE_RATE) - base
            waiting.append((self._source.due(position), pts, self._source.media_sample(position), picture))
        for entry in sorted(waiting, key=lambda entry: entry[0]):
            raw.put(*entry)

    def _deliver_raw(self, _: float, pts: int, media_sample: int, what: S16Array | YuvFrames) -> None:
        """Hands a frame that is due to every tap that is read."""
        for tap in self._audience.taps:
            if isinstance(what, YuvFrames):
                tap.take_picture(what, pts, media_sample)
            else:
                tap.take_sound(what, pts, media_sample)

    async def _until(self, when: float) -> None:
        wait = when - self._clock()
        if wait > 0:
            await asyncio.sleep(wait)


@dataclass(frozen=True, slots=True)
class _Dues:
    """When the blocks and the frames of a portion are due, by their pts."""

    sounds: dict[int, float] = field(default_factory=dict)
    pictures: dict[int, float] = field(default_factory=dict)


W = TypeVarTuple("W")


class _Outbox(Generic[*W]):
    """What leaves, in the order in which it is due, each handed over at its time by one timer of the event loop, which
    is cheaper than a task that sleeps. What waits is bounded, because nothing is put in long before it is due."""

    def __init__(self, deliver: Callable[[float, *W], None]) -> None:
        self._deliver = deliver
        self._waiting: deque[tuple[float, *W]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, due: float, *what: *W) -> None:
        self._waiting.append((due, *what))
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._hand_over)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()

    def _hand_over(self) -> None:
        self._timer = None
        try:
            while self._waiting and self._waiting[0][0] <= self._loop.time():
                self._deliver(*self._waiting.popleft())
        finally:
            if self._waiting:
                self._timer = self._loop.call_at(self._waiting[0][0], self._hand_over)


_Packets: TypeAlias = "_Outbox[VideoCodec | None, EncodedFrame]"
_RawFrames: TypeAlias = "_Outbox[int, int, S16Array | YuvFrames]"
