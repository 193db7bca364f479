"""Frames in YUV 4:2:0 to H.264 or VP8 packets.

Synchronous; PyAV releases the interpreter lock while it encodes. Knows no connection and no event loop: positions come
in and go out as pts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import count
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.codec.marking import Mark, mark_in, marked

PICTURE_RATE = 90_000
"""RTP clock of video, Hz."""
PICTURE_TIME_BASE = Fraction(1, PICTURE_RATE)
KEY_FRAME_INTERVAL_S = 10
"""A keyframe comes at least this often, whether or not a viewer asks for one."""


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
"""For pictures of any size; :func:`bitrates_for` lowers them for small ones."""

SMALL_PIXELS = 256 * 256
SMALL_BITRATE = 600_000
"""A talking head of 256 x 256 gains nothing visible from more than this."""
PIXEL_EXPONENT = 0.75
"""Bits grow more slowly than pixels: neighbours in a larger picture are more alike."""


def bitrates_for(width: int, height: int) -> dict[VideoCodec, BitrateRange]:
    """The bitrates of each codec for pictures of this size: no higher than what the picture can use."""
    usable = int(SMALL_BITRATE * (width * height / SMALL_PIXELS) ** PIXEL_EXPONENT)

    def capped(bounds: BitrateRange) -> BitrateRange:
        return BitrateRange(*(min(rate, usable) for rate in (bounds.start, bounds.minimum, bounds.maximum)))

    return {codec: capped(bounds) for codec, bounds in BITRATES.items()}


class PictureEncoder:
    """One codec at one bitrate: frames in, a packet each out, without delay. The first is a keyframe.

    Each keyframe of H.264 has the ``mark`` in it. VP8 has no place for one.
    """

    def __init__(self, codec: VideoCodec, clip_format: ClipFormat, bitrate: int, mark: Mark) -> None:
        self.bitrate = bitrate
        self._mark = mark.nal_unit() if codec is VideoCodec.H264 else None
        context = av.CodecContext.create("libx264" if codec is VideoCodec.H264 else "libvpx", "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = clip_format.width, clip_format.height
        context.pix_fmt = "yuv420p"
        context.framerate = Fraction(clip_format.fps)
        context.time_base = Fraction(1, clip_format.fps)
        context.bit_rate = bitrate
        context.gop_size = KEY_FRAME_INTERVAL_S * clip_format.fps
        context.thread_count = 1
        context.options = _h264_options(clip_format, bitrate) if codec is VideoCodec.H264 else _vp8_options(bitrate)
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
        # Frames are numbered without gaps, so that the rate control does not save up bits during a pause of the stream.
        frame.pts, frame.time_base = self._count, Fraction(1, self._codec.framerate)
        self._count += 1
        packets = self._codec.encode(frame)
        if self._mark is not None:
            packets = [marked_packet(packet, self._mark) for packet in packets]
        for packet in packets:
            packet.pts = packet.dts = pts
            packet.time_base = PICTURE_TIME_BASE
        return packets


def marked_packet(packet: av.Packet[Any], nal_unit: bytes) -> av.Packet[Any]:
    """A keyframe of H.264 as the encoder gives it (Annex B), with a further NAL unit before its first slice; any other
    packet as it is. Raises ValueError for what is no picture."""
    if not packet.is_keyframe:
        return packet
    made: av.Packet[Any] = av.Packet(marked(bytes(packet), nal_unit))
    made.pts, made.dts, made.duration = packet.pts, packet.dts, packet.duration
    made.is_keyframe = True
    if packet.time_base is not None:
        made.time_base = packet.time_base
    if packet.stream is not None:
        made.stream = packet.stream
    return made


def _h264_options(clip_format: ClipFormat, bitrate: int) -> dict[str, str]:
    # Constrained baseline (42e01f is what every browser decodes), headers before every keyframe, and a buffer of
    # half a second so that a keyframe does not leave as a burst ten times an ordinary frame: nothing paces packets.
    return {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "profile": "baseline",
        "level": h264_level(clip_format),
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


def h264_level(clip_format: ClipFormat) -> str:
    """The lowest level from 3.1 on whose macroblock limits (H.264 table A-1) hold the format: "31" to "52"."""
    blocks = -(-clip_format.width // 16) * -(-clip_format.height // 16)
    for level, blocks_per_s, blocks_per_frame in (
        ("31", 108_000, 3_600),
        ("32", 216_000, 5_120),
        ("40", 245_760, 8_192),
        ("50", 589_824, 22_080),
        ("51", 983_040, 36_864),
    ):
        if blocks <= blocks_per_frame and blocks * clip_format.fps <= blocks_per_s:
            return level
    return "52"


def codec_preference(clip_format: ClipFormat) -> tuple[VideoCodec, ...]:
    """The codecs in the order in which they are wanted. H.264 costs a third of VP8; but what browsers offer for it is
    level 3.1, and some show black above what was agreed, so larger pictures prefer VP8."""
    if h264_level(clip_format) == "31":
        return VideoCodec.H264, VideoCodec.VP8
    return VideoCodec.VP8, VideoCodec.H264


def video_frame(picture: YuvFrames) -> av.VideoFrame:
    """PyAV's form of one frame (F = 1); the planes are copied once."""
    frame = av.VideoFrame(picture.width, picture.height, "yuv420p")
    for plane, samples in zip(frame.planes, (picture.y[0], picture.u[0], picture.v[0]), strict=True):
        rows, columns = samples.shape
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:rows, :columns] = samples
    return frame


def marks_of(frame: av.VideoFrame) -> list[dict[str, Any]]:
    """What the marks say that came with a decoded picture."""
    return [mark for message in unregistered_messages(frame) if (mark := mark_in(message)) is not None]


def unregistered_messages(frame: av.VideoFrame) -> list[bytes]:
    """The user data (unregistered SEI) that came with a decoded picture."""
    found: list[bytes] = []
    entries: Any = frame.side_data
    # By number: iterating gives values up to PyAV 18 and keys from 19 on, and one type may be there several times.
    with suppress(IndexError):
        for index in count():
            if entries[index].type is Type.SEI_UNREGISTERED:
                found.append(bytes(entries[index]))
    return found
