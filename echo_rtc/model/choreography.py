"""What an avatar's body does from frame to frame: the poses of its speech, calm ones in silence, and the way between.

A stream says only which frame it is at and what is heard. In silence the idle poses are shown; while someone speaks
the hands follow the pose sequence, from a start of the stream's own; how much of each is read off the sound alone
(:func:`activity`), so that any worker can make any clip. Knows no networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_rtc.clips import F32Array, U8Array
from echo_rtc.model.life import make_life, paint_life
from echo_rtc.model.pose import Pose
from echo_rtc.model.pose_drawing import draw_pose

IDLE_S = 8.0
"""An idle loop is at least so long. Each second of it is rendered once for each avatar, before the first stream."""

LIFE_S = 72.0
"""Blinks and turns of the head do not repeat for so long while someone speaks."""

IDLE_LIVELINESS = 0.6
"""How much head and gaze move in silence of what they do in speech."""

SPEECH_RMS = 0.012
"""A frame whose sound is louder than this is speech."""

HOLD_S, FALL_S, RISE_S = 0.1, 0.38, 0.5
"""Gestures go on for so long after the last speech, then take so long to end; at the first speech so long to begin. The
first two are over within the one clip that is rendered after speech."""


def activity(sound: F32Array, frames: int, fps: int, sample_rate: int) -> F32Array:
    """How far the hands are at what speech has them do, 0 (at rest) to 1, for the last ``frames`` frames of ``sound``.

    It looks back only, so consecutive clips agree: what was heard before the window is forgotten after two seconds
    anyway.
    """
    total = max(frames, round(len(sound) * fps / sample_rate))
    edges = len(sound) - np.round(np.arange(total, -1, -1) * sample_rate / fps).astype(int)
    level, since, out = 0.0, 10.0, np.zeros(total, np.float32)
    for frame, (start, stop) in enumerate(zip(edges[:-1].clip(min=0), edges[1:].clip(min=0), strict=True)):
        part = sound[start:stop]
        loud = len(part) > 0 and float(np.sqrt(np.mean(np.square(part, dtype=np.float64)))) > SPEECH_RMS
        since = 0.0 if loud else since + 1 / fps
        level = level + 1 / (RISE_S * fps) if since <= HOLD_S else level - 1 / (FALL_S * fps)
        level = min(1.0, max(0.0, level))
        out[frame] = level * level * (3 - 2 * level)
    return out[total - frames :]


def between(first: Pose, second: Pose, share: float) -> Pose:
    """The pose ``share`` of the way from ``first`` to ``second``; where they are drawn in different regions, the nearer
    one. A joint that one of them lacks is the other's."""
    if first.region != second.region:
        return first if share < 0.5 else second
    found_first, found_second = (pose.hands.min(axis=2, keepdims=True) > 0 for pose in (first, second))
    start = np.where(found_first, first.hands, second.hands)
    end = np.where(found_second, second.hands, first.hands)
    hands = (1 - share) * start + share * end
    score = (1 - share) * first.hands_score + share * second.hands_score
    return Pose(hands, score, first.region)


def calm_loop(poses: Sequence[Pose], fps: int) -> list[Pose]:
    """A loop of :data:`IDLE_S`: the stretch in which hands move least, forwards and backwards, so that nothing jumps.
    All of a sequence that is no longer."""
    count = round(IDLE_S * fps / 2) + 1
    if len(poses) <= 2 * count:
        return list(poses)
    hands = np.stack([pose.hands for pose in poses])
    steps = np.abs(np.diff(hands, axis=0)).mean(axis=(1, 2, 3))  # (P - 1,)
    sums = np.concatenate(([0.0], np.cumsum(steps)))
    start = int(np.argmin(sums[count - 1 :] - sums[: len(sums) - count + 1]))
    stretch = list(poses[start : start + count])
    return stretch + stretch[-2:0:-1]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is drawn for a frame: the hands, and the ``life`` (6,) of a model that is shown it."""

    pose: Pose
    life: F32Array | None = None

    def draw(self, width: int, height: int) -> U8Array:
        """(height, width, 3) uint8."""
        picture = draw_pose(self.pose, width, height)
        return picture if self.life is None else paint_life(picture, self.life)


class Choreography:
    """The moments of one avatar: ``idle``, a loop, and ``speaking``, another.

    ``liveliness`` is how much head and gaze move where the model is shown blinks and turns of the head (see
    :mod:`echo_rtc.model.life`), None where it is not; they are the same for an avatar of the same ``seed``.
    """

    def __init__(
        self, speaking: Sequence[Pose], idle: Sequence[Pose] | None, fps: int, liveliness: float | None, seed: int
    ) -> None:
        calm = list(idle) if idle else calm_loop(speaking, fps)
        still = None if liveliness is None else IDLE_LIVELINESS * liveliness
        self.idle = _moments(calm, round(IDLE_S * fps), fps, still, seed)
        self.speaking = _moments(speaking, round(LIFE_S * fps), fps, liveliness, seed + 1)

    def start_of(self, seed: int) -> int:
        """Where in the speaking loop a stream of this seed begins."""
        return int(np.random.default_rng([seed, 5]).integers(len(self.speaking))) if seed else 0

    def moment(self, position: int, idle_position: int, share: float) -> Moment:
        """The frame at these positions of the two loops: ``share`` 0 is at rest, 1 in speech."""
        resting = self.idle[idle_position % len(self.idle)]
        moving = self.speaking[position % len(self.speaking)]
        if share <= 0 or share >= 1:
            return moving if share >= 1 else resting
        life: F32Array | None = None
        if resting.life is not None and moving.life is not None:
            life = ((1 - share) * resting.life + share * moving.life).astype(np.float32)
            # Half a blink is no blink: the lids are those of whichever is shut more, by turns.
            life[3] = (resting if share < 0.5 else moving).life[3]  # type: ignore[index]
        return Moment(between(resting.pose, moving.pose, share), life)


def _moments(poses: Sequence[Pose], least: int, fps: int, liveliness: float | None, seed: int) -> list[Moment]:
    """The poses; with life as often as makes ``least`` frames."""
    if liveliness is None:
        return [Moment(pose) for pose in poses]
    repeated = list(poses) * max(1, -(-least // len(poses)))
    table: NDArray[np.float32] = make_life(seed, len(repeated), fps, liveliness).table()
    return [Moment(pose, row) for pose, row in zip(repeated, table, strict=True)]
