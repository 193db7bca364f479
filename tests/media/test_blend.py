"""The cross-fade is exact in whole numbers, and seams close whatever side comes first."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import YuvFrames
from echo_rtc.media.blend import KEPT_CLIPS, CrossFader, cross_fade


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


def test_clips_are_joined_in_whatever_order_they_come() -> None:
    # Each clip has four frames of its own, and shows two of the clip before once more.
    clips = {n: flat([100 * n + 10] * 6) for n in range(3)}
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        seams = CrossFader()
        closed: dict[int, list[int]] = {}
        for n in order:
            own, now = seams.push(n, clips[n], 2)
            assert values(own) == [100 * n + 10] * 4
            closed |= {index: values(frames) for index, frames in now}
        assert closed == {0: [43, 77], 1: [143, 177]}


def test_what_is_not_blended_is_not_copied() -> None:
    first = frames(6, 1)
    own, _ = CrossFader().push(0, first, 2)
    assert np.shares_memory(own.y, first.y)


def test_without_a_neighbour_nothing_is_blended() -> None:
    seams = CrossFader()
    assert seams.push(3, flat([10] * 6), 2)[1] == []
    assert seams.push(5, flat([90] * 6), 2)[1] == []


def test_what_waits_for_a_neighbour_is_bounded() -> None:
    seams = CrossFader()
    for n in range(0, 200, 2):
        assert seams.push(n, frames(3, n), 1)[1] == []
    assert len(seams._clips) <= KEPT_CLIPS + 2


def test_no_overlap_passes_everything_on() -> None:
    own, closed = CrossFader().push(0, flat([1] * 3), 0)
    assert (values(own), closed) == ([1] * 3, [])


def test_clips_shorter_than_what_they_share_are_refused() -> None:
    with pytest.raises(ValueError, match="too short for 3"):
        CrossFader().push(1, flat([1] * 5), 3)


def test_negative_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap_frames is -1"):
        CrossFader().push(0, frames(3, 1), -1)


def test_a_stream_changes_over_without_a_seam_of_its_own() -> None:
    """Chained, then spread, then chained: only where a clip shows the end of the one before is anything blended."""
    seams = CrossFader()
    closed: list[tuple[int, list[int]]] = []
    for n, overlap in enumerate((0, 0, 2, 2, 0, 0)):
        own, now = seams.push(n, flat([10 * n + 10] * (4 + overlap)), overlap)
        assert values(own) == [10 * n + 10] * 4
        closed += [(index, values(blended)) for index, blended in now]
    assert closed == [(1, [23, 27]), (2, [33, 37])]
    assert sum(bool(kept.own or kept.head) for kept in seams._clips.values()) == 1, "a chained clip keeps its own end"


def test_clips_that_come_in_pieces_are_joined_as_whole_ones_are() -> None:
    """Pieces of two frames: the head of a clip is there before the clip is, and so is the seam."""
    seams = CrossFader()
    seen: list[tuple[int, int, list[int]]] = []
    for n in range(3):
        for at in (0, 2, 4):
            own, closed = seams.push(n, flat([100 * n + 10] * 2), 2, last=at == 4)
            assert len(own) == (2 if at else 0)
            seen += [(n, at, values(blended)) for _, blended in closed]
    assert seen == [(1, 0, [43, 77]), (2, 0, [143, 177])]
