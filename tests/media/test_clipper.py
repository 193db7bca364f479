"""Clips are what slicing the whole audio at once would give, however it comes in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.clips import AudioClip, ClipFormat, F32Array
from echo_rtc.media.clipper import Clipper


def numbered(count: int) -> F32Array:
    """Samples that tell their own number and are never 0."""
    return np.arange(1, count + 1, dtype=np.float32)


def one_shot(audio: F32Array, clip_format: ClipFormat) -> list[AudioClip]:
    """The slow path: every clip sliced from the whole audio with silence before it."""
    rate, frames = clip_format.sample_rate, clip_format.clip_frames
    reach = clip_format.history_frames
    before = -clip_format.sample_of_frame(-reach, rate)
    padded = np.concatenate([np.zeros(before, np.float32), audio])
    clips = []
    index = 0
    while clip_format.sample_of_frame((index + 1) * frames, rate) <= len(audio):
        begin = clip_format.sample_of_frame(index * frames - reach, rate)
        end = clip_format.sample_of_frame((index + 1) * frames, rate)
        own = end - clip_format.sample_of_frame(index * frames, rate)
        clips.append(AudioClip(index, index * frames, frames, padded[begin + before : end + before], own))
        index += 1
    return clips


def same(left: AudioClip, right: AudioClip) -> bool:
    return (
        (left.index, left.first_frame, left.frames, left.own_samples)
        == (right.index, right.first_frame, right.frames, right.own_samples)
    ) and np.array_equal(left.window, right.window)


def test_half_second_clips_with_two_seconds_of_history() -> None:
    clips = Clipper(ClipFormat()).push(numbered(8000 * 6))
    assert [clip.index for clip in clips] == list(range(6))
    assert [clip.first_frame for clip in clips] == [0, 12, 24, 36, 48, 60]
    assert all(len(clip.window) == 40_000 and clip.own_samples == 8000 for clip in clips)
    assert not clips[0].window[:32_000].any()
    assert np.array_equal(clips[0].own, numbered(8000))
    assert np.array_equal(clips[5].window, numbered(48_000)[-40_000:])


def test_a_clip_comes_with_its_very_last_sample() -> None:
    clipper = Clipper(ClipFormat())
    assert clipper.push(numbered(7999)) == []
    (clip,) = clipper.push(np.array([8000.0], np.float32))
    assert clip.own[-1] == 8000.0


def test_windows_belong_to_the_caller() -> None:
    clipper = Clipper(ClipFormat())
    audio = numbered(8000)
    (first,) = clipper.push(audio)
    audio[:] = -1.0
    first.window[:] = -1.0
    (second,) = clipper.push(numbered(8000))
    assert np.array_equal(second.window[-16_000:-8000], numbered(8000))


def test_borders_stay_exact_for_three_hours_at_an_odd_rate() -> None:
    clip_format = ClipFormat(fps=29, clip_frames=13, sample_rate=16_001, history_s=0.1)
    clipper = Clipper(clip_format)
    block = np.zeros(16_001 * 60, np.float32)
    total, last = 0, None
    for _ in range(180):
        for clip in clipper.push(block):
            assert last is None or clip.first_frame == last.first_frame + last.frames
            total += clip.own_samples
            last = clip
    assert last is not None
    assert total == clip_format.sample_of_frame(last.first_frame + last.frames, clip_format.sample_rate)
    assert sum(len(piece) for piece in clipper._pieces) < clip_format.sample_rate


FORMATS = st.builds(
    ClipFormat,
    fps=st.integers(1, 60),
    clip_frames=st.integers(1, 16),
    width=st.just(16),
    height=st.just(16),
    sample_rate=st.integers(60, 2000),
    history_s=st.floats(0.0, 2.0),
)


@settings(max_examples=200, deadline=None)
@given(FORMATS, st.lists(st.integers(0, 3000), max_size=12))
def test_pushing_in_pieces_is_slicing_at_once(clip_format: ClipFormat, sizes: list[int]) -> None:
    audio = numbered(sum(sizes))
    clipper = Clipper(clip_format)
    clips: list[AudioClip] = []
    at = 0
    for size in sizes:
        clips += clipper.push(audio[at : at + size])
        at += size
    expected = one_shot(audio, clip_format)
    assert len(clips) == len(expected)
    assert all(same(clip, other) for clip, other in zip(clips, expected, strict=True))


def test_anything_but_mono_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="mono float32 is expected"):
        Clipper(ClipFormat()).push(np.zeros((100, 2), np.float32))
