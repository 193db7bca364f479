"""The cross-fade is exact in whole numbers, and clips that share frames come out as one run."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import YuvFrames
from echo_rtc.media.blend import OverlapBlender, cross_fade


def frames(count: int, seed: int) -> YuvFrames:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 256, (count, 8, 12), np.uint8)
    u, v = rng.integers(0, 256, (2, count, 4, 6), np.uint8)
    return YuvFrames(y, u, v)


def flat(values: list[int]) -> YuvFrames:
    level = np.array(values, np.uint8)[:, None, None]
    return YuvFrames(np.tile(level, (1, 4, 4)), np.tile(level, (1, 2, 2)), np.tile(level, (1, 2, 2)))


def values(run: YuvFrames) -> list[int]:
    assert all(len(np.unique(frame)) == 1 for frame in run.y)
    assert np.array_equal(run.u[:, 0, 0], run.y[:, 0, 0])
    assert np.array_equal(run.v[:, 1, 1], run.y[:, 0, 0])
    return [int(frame[0, 0]) for frame in run.y]


def test_cross_fade_is_linear() -> None:
    assert values(cross_fade(flat([0] * 4), flat([250] * 4))) == [50, 100, 150, 200]
    assert values(cross_fade(flat([255] * 4), flat([0] * 4))) == [204, 153, 102, 51]


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_cross_fade_is_exact(count: int) -> None:
    old, new = frames(count, 1), frames(count, 2)
    faded = cross_fade(old, new)
    for plane in ("y", "u", "v"):
        left, right, got = getattr(old, plane), getattr(new, plane), getattr(faded, plane)
        for j in range(count):
            for at in np.ndindex(left.shape[1:]):
                total = (count - j) * int(left[j][at]) + (j + 1) * int(right[j][at])
                assert got[j][at] == (2 * total + count + 1) // (2 * (count + 1))


def test_frames_that_agree_stay_as_they_are() -> None:
    same = frames(6, 3)
    assert np.array_equal(cross_fade(same, same).y, same.y)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes must agree"):
        cross_fade(frames(2, 1), frames(3, 1))


def test_clips_in_order_become_one_run() -> None:
    blender = OverlapBlender(2)
    runs = blender.push(0, flat([10] * 4))
    runs += blender.push(2, flat([40] * 6))
    runs += blender.push(6, flat([100] * 6))
    runs += blender.flush()
    numbers = [first + j for first, run in runs for j in range(len(run))]
    assert numbers == list(range(12))
    assert [value for _, run in runs for value in values(run)] == [10, 10, 20, 30, 40, 40, 60, 80, 100, 100, 100, 100]
    assert blender.flush() == []


def test_what_is_not_blended_is_not_copied() -> None:
    blender = OverlapBlender(2)
    first, second = frames(4, 1), frames(6, 2)
    ((_, body),) = blender.push(0, first)
    _, (_, middle) = blender.push(2, second)
    assert np.shares_memory(body.y, first.y)
    assert np.shares_memory(middle.y, second.y)


def test_a_missing_clip_ends_the_run_and_the_next_starts_afresh() -> None:
    blender = OverlapBlender(2)
    assert [first for first, _ in blender.push(0, flat([10] * 4))] == [0]
    runs = blender.push(6, flat([90] * 6))
    assert [(first, values(run)) for first, run in runs] == [(2, [10, 10]), (6, [90] * 4)]
    assert [(first, values(run)) for first, run in blender.flush()] == [(10, [90, 90])]


def test_no_overlap_passes_everything_on() -> None:
    blender = OverlapBlender(0)
    assert [(first, len(run)) for first, run in blender.push(0, flat([1] * 3)) + blender.push(3, flat([2] * 3))] == [
        (0, 3),
        (3, 3),
    ]
    assert blender.flush() == []


def test_disorder_is_refused() -> None:
    blender = OverlapBlender(2)
    blender.push(6, flat([1] * 6))
    for first in (0, 6, 9, 11):
        with pytest.raises(ValueError, match="push clips in order"):
            blender.push(first, flat([1] * 6))
    assert len(blender.push(10, flat([1] * 6))) == 2


def test_clips_shorter_than_what_they_share_are_refused() -> None:
    blender = OverlapBlender(3)
    blender.push(0, flat([1] * 4))
    with pytest.raises(ValueError, match="too short for 3"):
        blender.push(1, flat([1] * 5))


def test_negative_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap_frames is -1"):
        OverlapBlender(-1)
