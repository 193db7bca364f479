"""Joins clips that several workers rendered with K frames in common: a linear cross-fade, strictly in order.

Knows frames only: which worker rendered what, and when it is shown, is no matter of this file.
"""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import U8Array, YuvFrames


def cross_fade(old: YuvFrames, new: YuvFrames) -> YuvFrames:
    """K frames that lead from ``old`` to ``new`` (both K frames of one size).

    Frame j is ((K - j) * old + (j + 1) * new) / (K + 1), rounded half up in whole numbers: neither end repeats a
    neighbour, and where both agree the value stays as it is. Raises ValueError if the two differ in shape.
    """
    if old.y.shape != new.y.shape:
        raise ValueError(f"frames {old.y.shape} and {new.y.shape} cannot be cross-faded; their shapes must agree")
    return YuvFrames(_fade(old.y, new.y), _fade(old.u, new.u), _fade(old.v, new.v))


def _fade(old: U8Array, new: U8Array) -> U8Array:
    count = len(old)
    incoming = np.arange(1, count + 1, dtype=np.uint32)[:, None, None]
    total = np.uint32(count + 1)
    mixed = old * (total - incoming) + new * incoming
    faded: U8Array = ((mixed + total // 2) // total).astype(np.uint8)
    return faded


class OverlapBlender:
    """Turns clips that share K frames with their neighbours into one run of frames without seams.

    The last K frames of a clip wait for the next clip, whose first K show the same moments. A clip that does not
    follow on the one before (a clip between them was lost or silent) starts afresh: what waited comes out as it is.
    """

    def __init__(self, overlap_frames: int) -> None:
        """Raises ValueError for a negative ``overlap_frames``."""
        if overlap_frames < 0:
            raise ValueError(f"overlap_frames is {overlap_frames}; it must not be negative")
        self._overlap = overlap_frames
        self._tail: tuple[int, YuvFrames] | None = None
        self._given_to = 0

    def push(self, first_frame: int, frames: YuvFrames) -> list[tuple[int, YuvFrames]]:
        """Takes the next clip, which begins at frame number ``first_frame``; returns runs (first frame, frames).

        The runs are in order and never overlap; frames that are not blended are views of what was pushed. Raises
        ValueError for a clip that is out of order, shares other than K frames with the one before, or is shorter than
        what it shares.
        """
        follows = self._tail is not None and self._tail[0] == first_frame
        if len(frames) < self._overlap * (2 if follows else 1):
            raise ValueError(f"a clip of {len(frames)} frames is too short for {self._overlap} overlap frames")
        if not follows and first_frame < self._given_to + (self._overlap if self._tail else 0):
            raise ValueError(
                f"a clip from frame {first_frame} does not fit: frames before {self._given_to} were given out and "
                f"{self._overlap if self._tail else 0} wait; push clips in order, with {self._overlap} frames in common"
            )
        runs: list[tuple[int, YuvFrames]] = []
        begin = 0
        if follows and self._tail is not None:
            begin = self._overlap
            runs.append((first_frame, cross_fade(self._tail[1], frames[:begin])))
        else:
            runs += self.flush()
        end = len(frames) - self._overlap
        if begin < end:
            runs.append((first_frame + begin, frames[begin:end]))
        self._given_to = first_frame + end
        self._tail = (self._given_to, frames[end:]) if self._overlap else None
        return runs

    def flush(self) -> list[tuple[int, YuvFrames]]:
        """The frames that wait, unblended: the next clip is lost, silent, or there is none."""
        if self._tail is None:
            return []
        run, self._tail = self._tail, None
        self._given_to = run[0] + len(run[1])
        return [run]
