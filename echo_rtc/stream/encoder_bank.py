"""All encoders of one stream on one thread: frames and sound in, encoded frames out that any number of viewers share.

The encoders are synchronous and used on the stream's encoder thread only, which :class:`EncoderBank` owns. The bank is
the only part that knows the event loop. Nothing here knows peers, connections or when a packet is due: positions come
in and go out as pts.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import av
import numpy as np

from echo_rtc.clips import ClipFormat, S16Array, YuvFrames
from echo_rtc.codec.marking import Mark
from echo_rtc.codec.picture import (
    PICTURE_TIME_BASE,
    BitrateRange,
    PictureEncoder,
    VideoCodec,
    bitrates_for,
    video_frame,
)
from echo_rtc.codec.sound import SOUND_TIME_BASE, SoundEncoder
from echo_rtc.counting import CounterMetric, counter
from echo_rtc.stream.log import Complaints, StreamLog

FEC_FROM, FEC_UNTIL = 0.02, 0.005
"""Shares of lost packets of sound."""
FEC_LOSS_PERCENT = 15
"""What the encoder is told then: enough for it to use FEC for any sound."""
QUIET = 300
"""The loudest sample of a block (int16) in which an encoder may be replaced: a new one begins from silence."""
KEY_FRAME_SPACING_S = 0.5
"""Keyframes that viewers ask for come at most this often; a request in between waits."""
KEY_FRAME_PATIENCE_S = 3.0
"""Where a codec has several viewers, requests of the same viewer are met at most this often: a viewer that keeps losing
packets must not lower the picture quality of the others."""
BITRATE_STEP = 0.15
"""A smaller relative change of the wanted bitrate changes nothing: a change costs a keyframe."""
RATE_TIME_S = 2.0
"""Time constant with which the rate really sent is averaged."""
BITRATE_DOWN_SPACING_S = 1.0
BITRATE_UP_SPACING_S = 5.0
"""Changes of the bitrate come at most this often; down is urgent, up is not."""

Packetizer: TypeAlias = "Callable[[av.Packet[Any]], tuple[bytes, ...]]"
"""Cuts the encoded frames of one stream and codec, in order, into the payloads of RTP packets."""
PacketizerFactory: TypeAlias = Callable[[VideoCodec], Packetizer]


@dataclass(frozen=True, slots=True)
class Portion:
    """A few blocks of a stream, encoded at once: blocks (960,) int16 of sound, each with its pts in samples, and the
    frames (F = 1) that fall into them, each with its pts at 90 kHz."""

    sounds: tuple[tuple[S16Array, int], ...]
    pictures: tuple[tuple[YuvFrames, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFrame:
    """An encoded frame of sound or picture, packetized into RTP payloads once, however many viewers get it.

    ``pts`` in units of ``time_base``, which is that of its RTP clock; ``data``: as the encoder made it (H.264 in Annex
    B), ``size`` bytes, before packetizing.
    """

    payloads: tuple[bytes, ...]
    pts: int
    time_base: Fraction
    data: bytes
    is_keyframe: bool

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class EncodedPortion:
    """A portion's encoded frames: one for each block of sound, and one for each frame and picture codec in use; fewer
    where a codec failed."""

    sounds: tuple[EncodedFrame, ...]
    pictures: Mapping[VideoCodec, tuple[EncodedFrame, ...]]


@dataclass(slots=True)
class _CodecState:
    """What the event loop decides for one picture codec; the encoder thread gets a copy of the decisions."""

    bitrate: int
    viewers: int = 1
    fresh: bool = True
    """Whether its encoder has not started; it starts with a keyframe."""
    key_wanted_by: set[int] = field(default_factory=set)
    key_given_at: dict[int, float] = field(default_factory=dict)
    """When the latest request of each viewer was met."""
    key_at: float = -KEY_FRAME_SPACING_S
    changed_at: float = -BITRATE_UP_SPACING_S
    estimates: dict[int, int] = field(default_factory=dict)
    sent: float = 0.0
    """Bit/s really sent, averaged over RATE_TIME_S."""


@dataclass(frozen=True, slots=True)
class _EncodeOrder:
    """For one portion and codec: the bitrate, and whether the first frame is to be a keyframe."""

    codec: VideoCodec
    bitrate: int
    key: bool


ENCODER_SECONDS = CounterMetric("encoder_seconds", "Time that encoding took, sound and picture.")
ENCODED_FRAMES = CounterMetric("encoded_frames", "Frames encoded.")
ENCODED_KEY_FRAMES = CounterMetric("encoded_key_frames", "Keyframes among the encoded frames.")
ENCODER_FAILURES = CounterMetric("encoder_failures", "Encodings that failed.")
ENCODER_BUILDS = CounterMetric("encoder_builds", "Picture encoders built: for a codec, or for another bitrate.")


@dataclass(slots=True)
class EncoderCounters:
    """A stream's encoders: frames, keyframes and failures; encoders built; wall-clock seconds of the encoder thread."""

    busy_s: float = counter(ENCODER_SECONDS)
    frames: int = counter(ENCODED_FRAMES)
    key_frames: int = counter(ENCODED_KEY_FRAMES)
    failures: int = counter(ENCODER_FAILURES)
    builds: int = counter(ENCODER_BUILDS)


class EncoderBank:
    """All encoders of one stream on one thread of their own. Picture encoders exist only for codecs in use.

    The methods are the event loop's; ``now`` is its monotonic clock in seconds.
    """

    def __init__(
        self,
        clip_format: ClipFormat,
        packetizer: PacketizerFactory,
        log: StreamLog,
        bitrates: Mapping[VideoCodec, BitrateRange] | None = None,
        mark: Mark | None = None,
    ) -> None:
        """``mark``: what keyframes of H.264 say of themselves."""
        self._format = clip_format
        self._mark = mark or Mark()
        self._bitrates = bitrates_for(clip_format.width, clip_format.height) if bitrates is None else bitrates
        self._complaints = Complaints(log)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="echo-encoder")
        self._sound = SoundEncoder()
        self._sound_loss_percent = 0
        self._pictures: dict[VideoCodec, PictureEncoder] = {}
        # VP8 numbers its pictures in their payloads: the count must go on when an encoder is rebuilt.
        self._packetizers = {codec: packetizer(codec) for codec in VideoCodec}
        self._codecs: dict[VideoCodec, _CodecState] = {}
        self.counters = EncoderCounters()

    @property
    def lookahead_samples(self) -> int:
        """How far ahead of its pts a block's sound is to be taken; see :class:`SoundEncoder`."""
        return self._sound.lookahead_samples

    @property
    def bitrates(self) -> dict[VideoCodec, int]:
        """The bitrate of each codec in use, bit/s."""
        return {codec: state.bitrate for codec, state in self._codecs.items()}

    def use(self, codecs: Iterable[VideoCodec], content: Iterable[VideoCodec] = ()) -> None:
        """Sets the picture codecs in use, one entry for each viewer; the encoders of all others are removed.
        ``content``: codecs that are wanted by whatever takes any bitrate, and has no say in it."""
        viewers = Counter(codecs)
        wanted = viewers.keys() | set(content)
        for codec in wanted:
            if codec not in self._codecs:
                self._codecs[codec] = _CodecState(self._bitrates[codec].start)
            self._codecs[codec].viewers = viewers[codec]
        for codec in self._codecs.keys() - wanted:
            del self._codecs[codec]

    def want_key_frame(self, codec: VideoCodec, viewer: int) -> None:
        """Viewer number ``viewer`` cannot decode before the next keyframe."""
        if codec in self._codecs:
            self._codecs[codec].key_wanted_by.add(viewer)

    def forget(self, codec: VideoCodec, viewer: int) -> None:
        """Viewer number ``viewer`` has left."""
        state = self._codecs.get(codec)
        if state is not None:
            state.estimates.pop(viewer, None)
            state.key_wanted_by.discard(viewer)
            state.key_given_at.pop(viewer, None)

    def estimate(self, codec: VideoCodec, viewer: int, bitrate: int) -> None:
        """Viewer number ``viewer`` can take ``bitrate`` bit/s (REMB)."""
        if codec in self._codecs:
            self._codecs[codec].estimates[viewer] = bitrate

    def expect_loss(self, share: float) -> None:
        """The viewer that loses most packets of sound loses this share (0..1): in-band FEC begins at FEC_FROM and ends
        below FEC_UNTIL, each time at the next pause, because a change rebuilds the encoder."""
        if share >= FEC_FROM:
            self._sound_loss_percent = FEC_LOSS_PERCENT
        elif share < FEC_UNTIL:
            self._sound_loss_percent = 0

    async def encode(self, portion: Portion, now: float) -> EncodedPortion:
        """Encodes a portion on the stream's thread. What fails is logged, counted and left out; it never raises."""
        orders = [self._order(codec, state, now) for codec, state in self._codecs.items()] if portion.pictures else []
        keep = frozenset(self._codecs)
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._thread, self._encode, portion, orders, keep)
        for codec, packets in encoded.pictures.items():
            if codec in self._codecs:
                self._measure_rate(self._codecs[codec], packets)
        return encoded

    async def close(self) -> None:
        """Waits for what is being encoded and ends the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._pictures.clear)
        self._thread.shutdown(wait=True)
        # Ends FFmpeg's threads now instead of at the next garbage collection.
        del self._sound

    def _order(self, codec: VideoCodec, state: _CodecState, now: float) -> _EncodeOrder:
        self._steer(codec, state, now)
        patience_s = KEY_FRAME_PATIENCE_S if state.viewers > 1 else KEY_FRAME_SPACING_S
        wanted = any(now - state.key_given_at.get(v, -patience_s) >= patience_s for v in state.key_wanted_by)
        key = state.fresh or (wanted and now - state.key_at >= KEY_FRAME_SPACING_S)
        state.fresh = False
        if key:
            self._keyframe_sent(state, now)
        return _EncodeOrder(codec, state.bitrate, key)

    def _steer(self, codec: VideoCodec, state: _CodecState, now: float) -> None:
        """Sets the bitrate to the median of the viewers' estimates, so that one slow viewer does not lower the others'
        quality. Viewers without an estimate count as content with the current bitrate."""
        if not state.estimates:
            return
        content = [state.bitrate] * (state.viewers - len(state.estimates))
        estimate = statistics.median_high([*state.estimates.values(), *content])
        wanted = self._bitrates[codec].clamp(estimate)
        # Receivers estimate little more than what they get, so a low estimate may only say that the picture is easy.
        # The network is the limit only if more is being sent than the estimate.
        if wanted < state.bitrate and state.sent < estimate:
            return
        spacing = BITRATE_DOWN_SPACING_S if wanted < state.bitrate else BITRATE_UP_SPACING_S
        if abs(wanted - state.bitrate) > BITRATE_STEP * state.bitrate and now - state.changed_at >= spacing:
            state.bitrate, state.changed_at = wanted, now
            self._keyframe_sent(state, now)  # the new encoder begins with one

    @staticmethod
    def _keyframe_sent(state: _CodecState, now: float) -> None:
        """Notes that a keyframe is sent, which meets all open requests."""
        state.key_given_at |= dict.fromkeys(state.key_wanted_by, now)
        state.key_wanted_by.clear()
        state.key_at = now

    def _measure_rate(self, state: _CodecState, packets: tuple[EncodedFrame, ...]) -> None:
        """Averages the bitrate really sent over RATE_TIME_S."""
        weight = 1 / (RATE_TIME_S * self._format.fps)
        for packet in packets:
            state.sent += weight * (8 * packet.size * self._format.fps - state.sent)

    def _encode(self, portion: Portion, orders: list[_EncodeOrder], keep: frozenset[VideoCodec]) -> EncodedPortion:
        begun = time.perf_counter()
        for codec in self._pictures.keys() - keep:
            del self._pictures[codec]
        sounds = self._encode_sounds(portion)
        pictures: dict[VideoCodec, tuple[EncodedFrame, ...]] = {}
        if orders:
            frames = [(video_frame(picture), pts) for picture, pts in portion.pictures]
            pictures = {order.codec: self._encode_pictures(order, frames) for order in orders}
        self.counters.busy_s += time.perf_counter() - begun
        return EncodedPortion(sounds, pictures)

    def _encode_sounds(self, portion: Portion) -> tuple[EncodedFrame, ...]:
        packets: list[EncodedFrame] = []
        loss_percent = self._sound_loss_percent
        for pcm, pts in portion.sounds:
            try:
                if self._sound.loss_percent != loss_percent and np.abs(pcm).max() <= QUIET:
                    self._sound = SoundEncoder(loss_percent)
                data = bytes(self._sound.encode(pcm, pts))
                packets.append(EncodedFrame((data,), pts, SOUND_TIME_BASE, data, is_keyframe=True))
            except (av.FFmpegError, ValueError) as error:
                self._failed("Opus", error)
        return tuple(packets)

    def _encode_pictures(
        self, order: _EncodeOrder, frames: list[tuple[av.VideoFrame, int]]
    ) -> tuple[EncodedFrame, ...]:
        packets: list[EncodedFrame] = []
        try:
            encoder = self._pictures.get(order.codec)
            if encoder is None or encoder.bitrate != order.bitrate:
                encoder = PictureEncoder(order.codec, self._format, order.bitrate, self._mark)
                self._pictures[order.codec] = encoder
                self.counters.builds += 1
            for i, (frame, pts) in enumerate(frames):
                for packet in encoder.encode(frame, pts, key=order.key and i == 0):
                    payloads = self._packetizers[order.codec](packet)
                    packets.append(EncodedFrame(payloads, pts, PICTURE_TIME_BASE, bytes(packet), packet.is_keyframe))
        except (av.FFmpegError, ValueError) as error:
            # The encoder is rebuilt for the next frame, which is then a keyframe.
            self._pictures.pop(order.codec, None)
            self._failed(order.codec, error)
        self.counters.frames += len(packets)
        self.counters.key_frames += sum(packet.is_keyframe for packet in packets)
        return tuple(packets)

    def _failed(self, codec: str, error: Exception) -> None:
        self.counters.failures += 1
        self._complaints.warning("%s could not encode: %s", codec, error)
