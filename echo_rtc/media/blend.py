"""Joins clips that several workers rendered with K frames in common: a linear cross-fade of the same moments.

Each clip shows the last K frames of the clip before once more: same pose, same sound, other noise. Knows frames only:
not which worker rendered them, nor when they are shown.
"""

from __future__ import annotations

import numpy as np

from echo_rtc.clips import U8Array, YuvFrames

KEPT_CLIPS = 8
"""Clips whose first and last frames are kept until the neighbouring clip arrives."""


def cross_fade(old: YuvFrames, new: YuvFrames) -> YuvFrames:
    """K frames that lead from ``old`` to ``new`` (both K frames of one size).

    Frame j is ((K - j) * old + (j + 1) * new) / (K + 1), rounded half up in whole numbers: neither end repeats a
    neighbour, and where both agree the value stays as it is. Raises ValueError if the two differ in shape.
    """
    if old.y.shape != new.y.shape:
        raise ValueError(f"frames {old.y.shape} and {new.y.shape} cannot be cross-faded; their shapes must agree")
    return YuvFrames(_fade(old.y, new.y), _fade(old.u, new.u), _fade(old.v, new.v))


def mixed(old: YuvFrames, new: YuvFrames, part: int, total: int) -> YuvFrames:
    """``part`` of ``total`` parts of ``new``, the rest of ``old``, rounded half up; both of one shape."""

    def plane(before: U8Array, after: U8Array) -> U8Array:
        sums = before * np.uint32(total - part) + after * np.uint32(part)
        mix: U8Array = ((sums + total // 2) // total).astype(np.uint8)
        return mix

    return YuvFrames(plane(old.y, new.y), plane(old.u, new.u), plane(old.v, new.v))


def _fade(old: U8Array, new: U8Array) -> U8Array:
    count = len(old)
    incoming = np.arange(1, count + 1, dtype=np.uint32)[:, None, None]
    total = np.uint32(count + 1)
    mixed = old * (total - incoming) + new * incoming
    faded: U8Array = ((mixed + total // 2) // total).astype(np.uint8)
    return faded


class Seams:
    """The seams between clips that share K frames, whatever order the clips come in."""

    def __init__(self, overlap_frames: int) -> None:
        """Raises ValueError for a negative ``overlap_frames``."""
        if overlap_frames < 0:
            raise ValueError(f"overlap_frames is {overlap_frames}; it must not be negative")
        self._overlap = overlap_frames
        self._heads: dict[int, YuvFrames] = {}
        self._tails: dict[int, YuvFrames] = {}

    def push(self, clip: int, frames: YuvFrames) -> tuple[YuvFrames, list[tuple[int, YuvFrames]]]:
        """Takes clip number ``clip``: the K frames before it, then its own.

        Returns its own frames, and the seams that can be closed now: (clip, what its last K frames are to become).
        Raises ValueError for a clip that is not longer than what it shares on both sides.
        """
        count = self._overlap
        if not count:
            return frames, []
        if len(frames) < 2 * count:
            raise ValueError(f"a clip of {len(frames)} frames is too short for {count} overlap frames")
        self._heads[clip], self._tails[clip] = frames[:count], frames[-count:]
        closed = []
        for left in (clip - 1, clip):
            if left in self._tails and left + 1 in self._heads:
                closed.append((left, cross_fade(self._tails.pop(left), self._heads.pop(left + 1))))
        for ends in (self._heads, self._tails):
            for old in [number for number in ends if number < clip - KEPT_CLIPS]:
                del ends[old]
        return frames[count:], closed
