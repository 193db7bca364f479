"""The mark in H.264: FFmpeg's decoder gives back what was put in, and the picture stays what it was."""

from __future__ import annotations

import json
from typing import Any

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from hypothesis import given
from hypothesis import strategies as st

from echo_rtc.codec.marking import MARK_UUID, SYNTHETIC, Mark, escaped, mark_in, marked
from echo_rtc.codec.picture import PictureEncoder, VideoCodec, unregistered_messages, video_frame
from tests.codec.test_picture import FORMAT, picture


def decoded(packets: list[av.Packet[Any]], codec: str = "h264") -> list[av.VideoFrame]:
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, VideoCodecContext)
    return [frame for packet in [*packets, None] for frame in context.decode(packet)]


def messages(frame: av.VideoFrame) -> list[bytes]:
    """Those of user data unregistered that FFmpeg found, but for x264's own."""
    return [message for message in unregistered_messages(frame) if b"x264" not in message]


def encoded(codec: VideoCodec, mark: Mark, keys: tuple[int, ...] = (0, 5)) -> list[av.Packet[Any]]:
    encoder = PictureEncoder(codec, FORMAT, 500_000, mark)
    return [
        packet
        for number in range(8)
        for packet in encoder.encode(video_frame(picture(40 + number)), number * 3750, key=number in keys)
    ]


def test_ffmpeg_reads_the_mark_of_each_keyframe_and_no_other() -> None:
    frames = decoded(encoded(VideoCodec.H264, Mark("nia", "1.2.3")))
    assert [len(messages(frame)) for frame in frames] == [1, 0, 0, 0, 0, 1, 0, 0]
    (message,) = messages(frames[5])
    assert message[:16] == MARK_UUID.bytes
    assert (
        mark_in(message)
        == json.loads(message[16:])
        == {
            "generator": "echo_rtc",
            "version": "1.2.3",
            "digitalSourceType": SYNTHETIC,
            "avatar": "nia",
        }
    )


def test_a_marked_keyframe_is_the_same_picture_at_the_same_time() -> None:
    packets = encoded(VideoCodec.H264, Mark())
    assert [packet.pts for packet in packets] == [number * 3750 for number in range(8)]
    assert [packet.is_keyframe for packet in packets] == [number in (0, 5) for number in range(8)]
    unit = Mark().nal_unit()
    plain = [av.Packet(bytes(packet).replace(b"\0\0\0\1" + unit, b"")) for packet in packets]
    assert sum(packet.size for packet in packets) == sum(packet.size for packet in plain) + 2 * (len(unit) + 4)
    for before, after in zip(decoded(plain), decoded(packets), strict=True):
        assert np.array_equal(before.to_ndarray(), after.to_ndarray())


def test_vp8_stays_as_it_is() -> None:
    assert len(decoded(encoded(VideoCodec.VP8, Mark()), "vp8")) == 8
    assert not any(MARK_UUID.bytes in bytes(packet) for packet in encoded(VideoCodec.VP8, Mark()))


@given(st.binary(max_size=40) | st.lists(st.sampled_from([0, 1, 3, 4]), max_size=40).map(bytes))
def test_no_payload_makes_a_start_code(payload: bytes) -> None:
    done = escaped(payload)
    assert not any(code in done for code in (b"\0\0\0", b"\0\0\1", b"\0\0\2"))
    assert done.replace(b"\0\0\3", b"\0\0") == payload if b"\0\0\3" not in payload else len(done) > len(payload)


@pytest.mark.parametrize("length", [0, 1, 254, 255, 600])
def test_messages_of_any_length_are_read_whole(length: int) -> None:
    mark = Mark("a" * length)
    packet = encoded(VideoCodec.H264, mark)[0]
    (message,) = messages(decoded([packet])[0])
    assert message == mark.message()


def test_the_mark_stands_before_the_first_slice() -> None:
    unit = b"\x06mark"
    assert marked(b"\0\0\1\x67sps\0\0\0\1\x65one\0\0\1\x65two", unit) == (
        b"\0\0\1\x67sps\0\0\0\1\x06mark\0\0\0\1\x65one\0\0\1\x65two"
    )
    assert marked(b"\0\0\1\x65one", unit) == b"\0\0\0\1\x06mark\0\0\1\x65one"
    with pytest.raises(ValueError, match="no slice"):
        marked(b"\0\0\1\x67sps\0\0\1", unit)


@pytest.mark.parametrize(
    "content",
    [b"", b"no JSON", b"[1]", b"[" * 4_000, b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", b'{"a":1}' + b" " * 5_000],
)
def test_what_is_not_ours_is_no_mark(content: bytes) -> None:
    assert mark_in(MARK_UUID.bytes + content) is None
    assert mark_in(content) is None
