"""Encoders of one stream: YUV frames to H.264 or VP8, mono sound to Opus, as parcels that any number of peers share.

Each class here is synchronous and lives on its stream's encoder thread, which :class:`EncoderBank` owns; PyAV lets go
of the interpreter's lock while it encodes. The bank is the only part that knows the event loop. Nothing here knows
peers, connections or when a packet is due: positions come in and go out as pts.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array, YuvFrames
from echo_rtc.rtc.aiortc_seams import payload_cutter
from echo_rtc.stream.log import Complaints, StreamLog

SOUND_BLOCK_SAMPLES = 960
"""20 ms at 48 kHz: one Opus packet. More in one frame would give several packets one timestamp."""
SOUND_BITRATE = 64_000
"""Bit/s of the echo: mono, transparent."""
SOUND_EFFORT = 5
"""Opus complexity, 0..10. At this rate 5 sounds like 10 and costs a third."""
PICTURE_RATE = 90_000
"""RTP clock of video, Hz."""
SOUND_TIME_BASE = Fraction(1, MEDIA_RATE)
PICTURE_TIME_BASE = Fraction(1, PICTURE_RATE)

KEY_FRAME_INTERVAL_S = 10
"""A key frame comes at least this often, whatever the viewers say."""
KEY_FRAME_SPACING_S = 0.5
"""Key frames that viewers ask for come at most this often; a request in between waits."""
KEY_FRAME_PATIENCE_S = 3.0
"""Where several watch, the same viewer gets a further one at most this often: one who loses packets all the time is not
to blur everybody's picture."""
BITRATE_STEP = 0.15
"""A smaller relative change of the wanted bitrate changes nothing: a change costs a key frame."""
RATE_TIME_S = 2.0
"""Time constant with which the rate really sent is averaged."""
BITRATE_DOWN_SPACING_S = 1.0
BITRATE_UP_SPACING_S = 5.0
"""Changes of the bitrate come at most this often; down is urgent, up is not."""


class VideoCodec(StrEnum):
    """The picture codecs, by their names in SDP."""

    H264 = "H264"
    VP8 = "VP8"


@dataclass(frozen=True, slots=True)
class BitrateRange:
    """Bit/s: where an encoder starts, and the bounds within which viewers' estimates move it."""

    start: int
    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.start <= self.maximum:
            raise ValueError(f"bitrates {self.minimum} <= {self.start} <= {self.maximum} are not in order")

    def clamp(self, bitrate: float) -> int:
        return int(min(max(bitrate, self.minimum), self.maximum))


BITRATES: Mapping[VideoCodec, BitrateRange] = {
    VideoCodec.H264: BitrateRange(start=1_000_000, minimum=300_000, maximum=3_000_000),
    VideoCodec.VP8: BitrateRange(start=800_000, minimum=250_000, maximum=1_500_000),
}


class SoundEncoder:
    """Mono 48 kHz to Opus, 20 ms a packet.

    Opus packets lag the samples they are made from by ``lookahead_samples``. Whoever feeds the encoder makes up for it
    by feeding that much ahead: the packet made from samples from ``m + lookahead_samples`` plays those from ``m``.
    """

    def __init__(self) -> None:
        codec = av.CodecContext.create("libopus", "w")
        assert isinstance(codec, AudioCodecContext)
        codec.bit_rate = SOUND_BITRATE
        codec.format = "s16"
        codec.layout = "mono"
        codec.sample_rate = MEDIA_RATE
        codec.time_base = SOUND_TIME_BASE
        codec.options = {"application": "audio", "frame_duration": "20", "compression_level": str(SOUND_EFFORT)}
        self._codec = codec
        self._fed = 0
        # FFmpeg states the lag as the first packet's pts, below the first frame's.
        self.lookahead_samples = -int(self._packet(np.zeros(SOUND_BLOCK_SAMPLES, np.int16)).pts or 0)

    def encode(self, pcm: S16Array, pts: int) -> av.Packet[Any]:
        """One packet from ``pcm`` (960,) int16; ``pts`` in samples is written on it."""
        packet = self._packet(pcm)
        packet.pts = pts
        packet.time_base = SOUND_TIME_BASE
        return packet

    def _packet(self, pcm: S16Array) -> av.Packet[Any]:
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, SOUND_BLOCK_SAMPLES), format="s16", layout="mono")
        frame.sample_rate = MEDIA_RATE
        frame.time_base = SOUND_TIME_BASE
        frame.pts = self._fed
        self._fed += SOUND_BLOCK_SAMPLES
        (packet,) = self._codec.encode(frame)
        return packet


class PictureEncoder:
    """One codec at one bitrate: frames in, a packet each out, without delay. The first is a key frame."""

    def __init__(self, codec: VideoCodec, format: ClipFormat, bitrate: int) -> None:
        self.bitrate = bitrate
        context = av.CodecContext.create("libx264" if codec is VideoCodec.H264 else "libvpx", "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = format.width, format.height
        context.pix_fmt = "yuv420p"
        context.framerate = Fraction(format.fps)
        context.time_base = Fraction(1, format.fps)
        context.bit_rate = bitrate
        context.gop_size = KEY_FRAME_INTERVAL_S * format.fps
        context.thread_count = 1
        context.options = _h264_options(format, bitrate) if codec is VideoCodec.H264 else _vp8_options(bitrate)
        self._codec = context
        self._count = 0

    def encode(self, frame: av.VideoFrame, pts: int, key: bool) -> list[av.Packet[Any]]:
        """The packets (one) of a frame made by :func:`video_frame`; ``pts`` at 90 kHz is written on it.

        Raises ValueError for a frame of another size, which FFmpeg would read past its end.
        """
        if (frame.width, frame.height) != (self._codec.width, self._codec.height):
            size = f"{self._codec.width}x{self._codec.height}"
            raise ValueError(f"a frame has {frame.width}x{frame.height} pixels where the stream has {size}")
        frame.pict_type = PictureType.I if key else PictureType.NONE
        # The codec sees an even cadence, so that a pause in the stream does not look like bits to spare.
        frame.pts, frame.time_base = self._count, Fraction(1, self._codec.framerate)
        self._count += 1
        packets = self._codec.encode(frame)
        for packet in packets:
            packet.pts = packet.dts = pts
            packet.time_base = PICTURE_TIME_BASE
        return packets


def _h264_options(format: ClipFormat, bitrate: int) -> dict[str, str]:
    # Constrained baseline (42e01f is what every browser decodes), headers before every key frame, and a buffer of
    # half a second so that a key frame does not leave as a burst ten times an ordinary frame: nothing paces packets.
    return {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "profile": "baseline",
        "level": h264_level(format),
        "forced-idr": "1",
        "maxrate": str(bitrate),
        "bufsize": str(bitrate // 2),
    }


def _vp8_options(bitrate: int) -> dict[str, str]:
    return {
        "deadline": "realtime",
        "cpu-used": "-6",
        "lag-in-frames": "0",
        "minrate": str(bitrate),
        "maxrate": str(bitrate),
        "bufsize": str(bitrate),
        "static-thresh": "1",
        "undershoot-pct": "100",
        "overshoot-pct": "15",
    }


def h264_level(format: ClipFormat) -> str:
    """The lowest level from 3.1 on whose macroblock limits (H.264 table A-1) hold the format: "31" to "52"."""
    blocks = -(-format.width // 16) * -(-format.height // 16)
    for level, blocks_per_s, blocks_per_frame in (
        ("31", 108_000, 3_600),
        ("32", 216_000, 5_120),
        ("40", 245_760, 8_192),
        ("50", 589_824, 22_080),
        ("51", 983_040, 36_864),
    ):
        if blocks <= blocks_per_frame and blocks * format.fps <= blocks_per_s:
            return level
    return "52"


def codec_preference(format: ClipFormat) -> tuple[VideoCodec, ...]:
    """The codecs in the order in which they are wanted. H.264 costs a third of VP8; but what browsers offer for it is
    level 3.1, and some show black above what was agreed, so larger pictures prefer VP8."""
    if h264_level(format) == "31":
        return VideoCodec.H264, VideoCodec.VP8
    return VideoCodec.VP8, VideoCodec.H264


def video_frame(picture: YuvFrames) -> av.VideoFrame:
    """PyAV's form of one frame (F = 1); the planes are copied once."""
    frame = av.VideoFrame(picture.width, picture.height, "yuv420p")
    for plane, samples in zip(frame.planes, (picture.y[0], picture.u[0], picture.v[0]), strict=True):
        rows, columns = samples.shape
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:rows, :columns] = samples
    return frame


@dataclass(frozen=True, slots=True)
class Portion:
    """A stretch of a stream, to be encoded at once: blocks (960,) int16 of sound, each with its pts in samples, and
    the frames (F = 1) that fall into them, each with its pts at 90 kHz."""

    sounds: tuple[tuple[S16Array, int], ...]
    pictures: tuple[tuple[YuvFrames, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """An encoded block or frame, cut into the payloads of its RTP packets once, however many viewers get it.

    ``pts`` in units of ``time_base``, which is that of its RTP clock; ``size`` in bytes, before it was cut.
    """

    payloads: tuple[bytes, ...]
    pts: int
    time_base: Fraction
    size: int
    is_keyframe: bool


@dataclass(frozen=True, slots=True)
class EncodedPortion:
    """The parcels of a portion: one for each block of sound, and one for each frame and picture codec in use; fewer
    where a codec failed."""

    sounds: tuple[Parcel, ...]
    pictures: Mapping[VideoCodec, tuple[Parcel, ...]]


@dataclass(slots=True)
class _Lane:
    """What the event loop decides for one picture codec; the encoder thread gets a copy of the decisions."""

    bitrate: int
    viewers: int = 1
    fresh: bool = True
    """Whether its encoder has yet to begin, which it does with a key frame."""
    key_wanted_by: set[int] = field(default_factory=set)
    key_given_at: dict[int, float] = field(default_factory=dict)
    """When a viewer's latest request was met."""
    key_at: float = -KEY_FRAME_SPACING_S
    changed_at: float = -BITRATE_UP_SPACING_S
    estimates: dict[int, int] = field(default_factory=dict)
    sent: float = 0.0
    """Bit/s really sent, averaged over RATE_TIME_S."""


@dataclass(frozen=True, slots=True)
class _Order:
    """For one portion and codec: the bitrate, and whether the first frame is to be a key frame."""

    codec: VideoCodec
    bitrate: int
    key: bool


@dataclass(slots=True)
class EncoderCounters:
    """What an operator wants to know of a stream's encoders; seconds are of the encoder thread's wall clock."""

    frames: int = 0
    key_frames: int = 0
    failures: int = 0
    builds: int = 0
    busy_s: float = 0.0


class EncoderBank:
    """All encoders of one stream on one thread of their own. Picture encoders exist only for codecs in use.

    The methods are the event loop's; ``now`` is its monotonic clock in seconds.
    """

    def __init__(
        self, format: ClipFormat, log: StreamLog, bitrates: Mapping[VideoCodec, BitrateRange] = BITRATES
    ) -> None:
        self._format = format
        self._bitrates = bitrates
        self._complaints = Complaints(log)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="echo-encoder")
        self._sound = SoundEncoder()
        self._pictures: dict[VideoCodec, PictureEncoder] = {}
        # VP8 numbers its pictures in their payloads, so that these go on counting when an encoder is built anew.
        self._cutters = {codec: payload_cutter(f"video/{codec}") for codec in VideoCodec}
        self._lanes: dict[VideoCodec, _Lane] = {}
        self.counters = EncoderCounters()

    @property
    def lookahead_samples(self) -> int:
        """How far ahead of its pts a block's sound is to be taken; see :class:`SoundEncoder`."""
        return self._sound.lookahead_samples

    @property
    def bitrates(self) -> dict[VideoCodec, int]:
        """The bitrate of each codec in use, bit/s."""
        return {codec: lane.bitrate for codec, lane in self._lanes.items()}

    def use(self, codecs: Iterable[VideoCodec]) -> None:
        """Says which picture codecs are wanted from now on, once for each viewer; the others' encoders go."""
        wanted = Counter(codecs)
        for codec, viewers in wanted.items():
            if codec not in self._lanes:
                self._lanes[codec] = _Lane(self._bitrates[codec].start)
            self._lanes[codec].viewers = viewers
        for codec in self._lanes.keys() - wanted.keys():
            del self._lanes[codec]

    def want_key_frame(self, codec: VideoCodec, viewer: int) -> None:
        """Viewer number ``viewer`` cannot go on, or begin, without a key frame."""
        if codec in self._lanes:
            self._lanes[codec].key_wanted_by.add(viewer)

    def forget(self, codec: VideoCodec, viewer: int) -> None:
        """Viewer number ``viewer`` is gone."""
        lane = self._lanes.get(codec)
        if lane is not None:
            lane.estimates.pop(viewer, None)
            lane.key_wanted_by.discard(viewer)
            lane.key_given_at.pop(viewer, None)

    def estimate(self, codec: VideoCodec, viewer: int, bitrate: int) -> None:
        """Viewer number ``viewer`` can take ``bitrate`` bit/s (REMB)."""
        if codec in self._lanes:
            self._lanes[codec].estimates[viewer] = bitrate

    async def encode(self, portion: Portion, now: float) -> EncodedPortion:
        """Encodes a portion on the stream's thread. What fails is logged, counted and left out; it never raises."""
        orders = [self._order(codec, lane, now) for codec, lane in self._lanes.items()] if portion.pictures else []
        keep = frozenset(self._lanes)
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._thread, self._encode, portion, orders, keep)
        for codec, packets in encoded.pictures.items():
            if codec in self._lanes:
                self._weigh(self._lanes[codec], packets)
        return encoded

    async def close(self) -> None:
        """Waits for what is being encoded and ends the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._pictures.clear)
        self._thread.shutdown(wait=True)
        # FFmpeg keeps threads for it, which would else wait for Python's garbage collection.
        del self._sound

    def _order(self, codec: VideoCodec, lane: _Lane, now: float) -> _Order:
        self._steer(codec, lane, now)
        patience_s = KEY_FRAME_PATIENCE_S if lane.viewers > 1 else KEY_FRAME_SPACING_S
        wanted = any(now - lane.key_given_at.get(v, -patience_s) >= patience_s for v in lane.key_wanted_by)
        key = lane.fresh or (wanted and now - lane.key_at >= KEY_FRAME_SPACING_S)
        lane.fresh = False
        if key:
            self._give_key(lane, now)
        return _Order(codec, lane.bitrate, key)

    def _steer(self, codec: VideoCodec, lane: _Lane, now: float) -> None:
        """Follows the median of the viewers' estimates, so that one slow viewer does not set the picture of others. Who
        has sent none has no complaint."""
        if not lane.estimates:
            return
        content = [lane.bitrate] * (lane.viewers - len(lane.estimates))
        estimate = statistics.median_high([*lane.estimates.values(), *content])
        wanted = self._bitrates[codec].clamp(estimate)
        # Receivers estimate little more than what they get, so a low estimate may only say that the picture is easy.
        # The way is too narrow if more is being sent than the estimate.
        if wanted < lane.bitrate and lane.sent < estimate:
            return
        spacing = BITRATE_DOWN_SPACING_S if wanted < lane.bitrate else BITRATE_UP_SPACING_S
        if abs(wanted - lane.bitrate) > BITRATE_STEP * lane.bitrate and now - lane.changed_at >= spacing:
            lane.bitrate, lane.changed_at = wanted, now
            self._give_key(lane, now)  # the new encoder begins with one

    @staticmethod
    def _give_key(lane: _Lane, now: float) -> None:
        """A key frame meets all requests there are."""
        lane.key_given_at |= dict.fromkeys(lane.key_wanted_by, now)
        lane.key_wanted_by.clear()
        lane.key_at = now

    def _weigh(self, lane: _Lane, packets: tuple[Parcel, ...]) -> None:
        """Counts parcels, one a frame, towards the rate really sent."""
        weight = 1 / (RATE_TIME_S * self._format.fps)
        for packet in packets:
            lane.sent += weight * (8 * packet.size * self._format.fps - lane.sent)

    def _encode(self, portion: Portion, orders: list[_Order], keep: frozenset[VideoCodec]) -> EncodedPortion:
        begun = time.perf_counter()
        for codec in self._pictures.keys() - keep:
            del self._pictures[codec]
        sounds = self._encode_sounds(portion)
        pictures: dict[VideoCodec, tuple[Parcel, ...]] = {}
        if orders:
            frames = [(video_frame(picture), pts) for picture, pts in portion.pictures]
            pictures = {order.codec: self._encode_pictures(order, frames) for order in orders}
        self.counters.busy_s += time.perf_counter() - begun
        return EncodedPortion(sounds, pictures)

    def _encode_sounds(self, portion: Portion) -> tuple[Parcel, ...]:
        packets: list[Parcel] = []
        for pcm, pts in portion.sounds:
            try:
                data = bytes(self._sound.encode(pcm, pts))
                packets.append(Parcel((data,), pts, SOUND_TIME_BASE, len(data), is_keyframe=True))
            except (av.FFmpegError, ValueError) as error:
                self._failed("Opus", error)
        return tuple(packets)

    def _encode_pictures(self, order: _Order, frames: list[tuple[av.VideoFrame, int]]) -> tuple[Parcel, ...]:
        packets: list[Parcel] = []
        try:
            encoder = self._pictures.get(order.codec)
            if encoder is None or encoder.bitrate != order.bitrate:
                encoder = PictureEncoder(order.codec, self._format, order.bitrate)
                self._pictures[order.codec] = encoder
                self.counters.builds += 1
            for i, (frame, pts) in enumerate(frames):
                for packet in encoder.encode(frame, pts, key=order.key and i == 0):
                    payloads = self._cutters[order.codec](packet)
                    packets.append(Parcel(payloads, pts, PICTURE_TIME_BASE, packet.size, packet.is_keyframe))
        except (av.FFmpegError, ValueError) as error:
            # The encoder is built anew for the next frame, which is then a key frame.
            self._pictures.pop(order.codec, None)
            self._failed(order.codec, error)
        self.counters.frames += len(packets)
        self.counters.key_frames += sum(packet.is_keyframe for packet in packets)
        return tuple(packets)

    def _failed(self, codec: str, error: Exception) -> None:
        self.counters.failures += 1
        self._complaints.warning("%s could not encode: %s", codec, error)
