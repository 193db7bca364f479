"""The words within the picture: in their place, readable after encoding, and nothing else is changed."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.codec.burned_mark import BurnedMark
from echo_rtc.codec.marking import Mark
from echo_rtc.codec.picture import PictureEncoder, VideoCodec, bitrates_for, video_frame
from echo_rtc.errors import SettingsError
from tests.codec.test_marking import decoded

SIZES = [(384, 384), (512, 512), (1280, 720), (720, 1280)]


def grey(clip_format: ClipFormat, luma: int, frames: int = 2) -> YuvFrames:
    """Coloured, so that a mark that leaves the chroma shows."""
    y = np.full((frames, clip_format.height, clip_format.width), luma, np.uint8)
    chroma = np.full((frames, clip_format.height // 2, clip_format.width // 2), 90, np.uint8)
    return YuvFrames(y, chroma, chroma.copy())


def box(changed: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is True in (H, W)."""
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_is_small_and_in_the_corner(width: int, height: int) -> None:
    clip_format = ClipFormat(width=width, height=height)
    before = grey(clip_format, 128)
    after = BurnedMark(clip_format).on(before)
    assert (before.y == 128).all(), "frames of the idle loop are shown again and again"
    top, left, bottom, right = box((after.y != before.y)[1])
    assert 0.01 * width < width - right < 0.05 * width
    assert 0.01 * height < height - bottom < 0.05 * height
    assert 0.08 < (right - left) / width < 0.25
    assert 16 <= bottom - top < 0.07 * height
    coarse = box((after.u != before.u)[1])
    assert np.abs(np.array(coarse) * 2 - (top, left, bottom, right)).max() <= 2
    assert np.array_equal(after.u, after.v)


@pytest.mark.parametrize("luma", [20, 128, 230])
@pytest.mark.parametrize(("width", "height"), SIZES[::2])
def test_it_can_be_read_on_any_picture_after_encoding(luma: int, width: int, height: int) -> None:
    clip_format = ClipFormat(width=width, height=height)
    drawn = BurnedMark(clip_format).on(grey(clip_format, luma, 1))
    bitrate = bitrates_for(width, height)[VideoCodec.H264].minimum
    (packet,) = PictureEncoder(VideoCodec.H264, clip_format, bitrate, Mark()).encode(video_frame(drawn), 0, key=True)
    (frame,) = decoded([packet])
    top, left, bottom, right = box((drawn.y != luma)[0])
    inside = (slice(top, bottom), slice(left, right))
    seen = frame.to_ndarray()[:height][inside].astype(float)
    letters, plate = drawn.y[0][inside] > 220, drawn.y[0][inside] < 120
    assert 0.03 < letters.mean() < 0.5
    assert seen[letters].mean() - seen[plate].mean() > 110


def test_too_small_pictures_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"burn_mark needs pictures of at least .* they have 64 x 64"):
        BurnedMark(ClipFormat(width=64, height=64))
    BurnedMark(ClipFormat(width=128, height=128))
