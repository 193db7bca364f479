"""Pictures: what browsers decode, levels and bitrates by size."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.codec.marking import Mark
from echo_rtc.codec.picture import (
    BITRATES,
    BitrateRange,
    PictureEncoder,
    VideoCodec,
    bitrates_for,
    codec_preference,
    h264_level,
    video_frame,
)

FORMAT = ClipFormat(width=66, height=98)


def picture(level: int, clip_format: ClipFormat = FORMAT) -> YuvFrames:
    """A frame of one grey with a slope in it, so that a wrong line length shows."""
    y = np.clip(level + np.arange(clip_format.width) // 4, 16, 235).astype(np.uint8)
    chroma = np.full((1, clip_format.height // 2, clip_format.width // 2), 128, np.uint8)
    return YuvFrames(np.broadcast_to(y, (1, clip_format.height, clip_format.width)).copy(), chroma, chroma.copy())


def test_h264_is_what_every_browser_decodes() -> None:
    encoder = PictureEncoder(VideoCodec.H264, FORMAT, 500_000, Mark())
    for forced in (False, True):
        (packet,) = encoder.encode(video_frame(picture(90)), 0, key=forced)
        data = bytes(packet)
        start = data.index(b"\x00\x00\x01\x67") + 3
        profile, constraints, level = data[start + 1 : start + 4]
        assert (profile, constraints & 0xC0, level) == (66, 0xC0, 31)
        assert b"\x00\x00\x01\x65" in data
    assert data.count(b"\x00\x00\x01\x67") == 1


def test_levels_and_preference_follow_the_size() -> None:
    assert h264_level(ClipFormat(width=512, height=512, fps=24)) == "31"
    assert h264_level(ClipFormat(width=1024, height=1024, fps=24)) == "32"
    assert h264_level(ClipFormat(width=1280, height=720, fps=60)) == "32"
    assert h264_level(ClipFormat(width=4096, height=2304, fps=60)) == "52"
    assert codec_preference(ClipFormat())[0] is VideoCodec.H264
    assert codec_preference(ClipFormat(width=1024, height=1024))[0] is VideoCodec.VP8


def test_bitrates_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="not in order"):
        BitrateRange(start=1, minimum=2, maximum=3)


def test_a_small_picture_gets_no_more_bits_than_it_can_use() -> None:
    small = bitrates_for(256, 256)
    assert small[VideoCodec.H264] == BitrateRange(start=600_000, minimum=300_000, maximum=600_000)
    assert small[VideoCodec.VP8] == BitrateRange(start=600_000, minimum=250_000, maximum=600_000)
    middle = bitrates_for(512, 512)[VideoCodec.H264]
    assert middle.start == 1_000_000
    assert middle.maximum == pytest.approx(1_700_000, rel=0.01)
    assert bitrates_for(768, 768) == BITRATES
    assert bitrates_for(16, 16)[VideoCodec.H264].maximum < 10_000
