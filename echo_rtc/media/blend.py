"""Joins clips that several workers rendered with K frames in common: a linear cross-fade of the same moments.

Each clip shows the last K frames of the clip before once more: same pose, same sound, other noise. Knows frames only:
not which worker rendered them, nor when they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(slots=True)
class _Clip:
    """What is kept of a clip: the runs of frames of its ``head``, which it shares with the clip before, and of its
    ``own``; both are emptied once they are blended. ``came``: how many of its frames have come, of any kind."""

    overlap: int
    head: list[YuvFrames] = field(default_factory=list)
    own: list[YuvFrames] = field(default_factory=list)
    came: int = 0
    complete: bool = False

    def leads_over(self) -> YuvFrames | None:
        """The head, once all of it is there."""
        return YuvFrames.joined(self.head) if self.head and self.came >= self.overlap else None


class CrossFader:
    """Joins clips, in whatever order they come. A clip that shows K frames of the one before is cross-faded with it,
    however that one began; one that shows none continues it."""

    def __init__(self) -> None:
        self._clips: dict[int, _Clip] = {}

    def push(
        self, clip: int, frames: YuvFrames, overlap_frames: int, last: bool = True
    ) -> tuple[YuvFrames, list[tuple[int, YuvFrames]]]:
        """Takes the next frames of clip number ``clip``: the ``overlap_frames`` frames before it, then its own.
        ``last``: no others of it come.

        Returns those that are its own, and the cross-fades that are complete now: (clip, what replaces its last
        frames). Raises ValueError for a negative overlap, and a clip that is not longer than what it shares on both
        sides.
        """
        if overlap_frames < 0:
            raise ValueError(f"overlap_frames is {overlap_frames}; it must not be negative")
        kept = self._clips.setdefault(clip, _Clip(overlap_frames))
        shared = max(0, overlap_frames - kept.came)
        head, own = frames[:shared], frames[shared:]
        kept.came += len(frames)
        kept.complete = last
        if last and kept.came < 2 * overlap_frames:
            raise ValueError(f"a clip of {kept.came} frames is too short for {overlap_frames} overlap frames")
        kept.head += [head] if len(head) else []
        kept.own += [own] if len(own) else []
        closed = [seam for left in (clip - 1, clip) if (seam := self._seam(left)) is not None]
        for number in [*self._clips]:
            if number < clip - KEPT_CLIPS:
                del self._clips[number]
            elif number < clip and last and not overlap_frames:
                self._clips[number].own.clear()  # it is continued
        return own, closed

    def _seam(self, left: int) -> tuple[int, YuvFrames] | None:
        """The cross-fade of clip ``left`` into the next one, once both sides of it are there."""
        clip, after = self._clips.get(left), self._clips.get(left + 1)
        if clip is None or after is None or not clip.own or not clip.complete:
            return None
        head = after.leads_over()
        if head is None:
            return None
        tail = YuvFrames.joined(clip.own)
        clip.own.clear()
        after.head.clear()
        return (left, cross_fade(tail[len(tail) - len(head) :], head)) if len(head) <= len(tail) else None
