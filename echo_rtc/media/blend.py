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


class CrossFader:
    """Joins clips, in whatever order they come. A clip that shows K frames of the one before is cross-faded with it,
    however that one began; one that shows none continues it."""

    def __init__(self) -> None:
        self._heads: dict[int, YuvFrames] = {}
        self._tails: dict[int, YuvFrames] = {}

    def push(self, clip: int, frames: YuvFrames, overlap_frames: int) -> tuple[YuvFrames, list[tuple[int, YuvFrames]]]:
        """Takes clip number ``clip``: the ``overlap_frames`` frames before it, then its own.

        Returns its own frames, and the cross-fades that are complete now: (clip, what replaces its last frames).
        Raises ValueError for a negative overlap, and a clip that is not longer than what it shares on both sides.
        """
        if overlap_frames < 0:
            raise ValueError(f"overlap_frames is {overlap_frames}; it must not be negative")
        if len(frames) < 2 * overlap_frames:
            raise ValueError(f"a clip of {len(frames)} frames is too short for {overlap_frames} overlap frames")
        own = frames[overlap_frames:]
        self._tails[clip] = own
        if overlap_frames:
            self._heads[clip] = frames[:overlap_frames]
        else:
            self._tails = {number: tail for number, tail in self._tails.items() if number >= clip}
        closed = []
        for left in (clip - 1, clip):
            if left in self._tails and left + 1 in self._heads:
                tail, head = self._tails.pop(left), self._heads.pop(left + 1)
                if len(head) <= len(tail):
                    closed.append((left, cross_fade(tail[len(tail) - len(head) :], head)))
        for ends in (self._heads, self._tails):
            for old in [number for number in ends if number < clip - KEPT_CLIPS]:
                del ends[old]
        return own, closed
