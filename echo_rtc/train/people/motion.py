"""What a person does over the frames of a take: hands that rest or gesture, and the head, lids and breath of a life.

Hands are posed by the 17 numbers of :data:`echo_rtc.train.people.skeleton.HAND`. Poses go from one to the next by the
smoothest way (least jerk), with a little sway; gestures come while someone speaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echo_rtc.train.people.asset import F32, F64, Bool

FPS = 24

_Hand = tuple[
    tuple[float, float, float], tuple[float, float, float], tuple[float, float, float], tuple[float, ...], float
]


def _hand(
    wrist: tuple[float, float, float],
    fingers: tuple[float, float, float],
    palm: tuple[float, float, float],
    curl: tuple[float, ...] = (0.2, 0.22, 0.26, 0.3, 0.34),
    spread: float = 0.1,
    thumb: tuple[float, float] = (0.0, 0.0),
) -> F64:
    """The left hand's 17 numbers."""
    return np.array([*wrist, *fingers, *palm, *curl, spread, *thumb])


_MIRROR = np.array([-1, 1, 1, -1, 1, 1, -1, 1, 1, *(1,) * 8], np.float64)
"""What makes the right hand's numbers of the left hand's."""

_RELAXED = (0.32, 0.34, 0.38, 0.42, 0.46)
_OPEN = (0.05, 0.1, 0.12, 0.14, 0.18)

_LOW = _hand((0.15, -0.10, -0.50), (-0.25, -0.3, -0.9), (-0.9, 0.2, 0.1), _RELAXED)
_FOLDED_OVER = _hand((0.088, -0.262, -0.305), (-0.88, -0.05, 0.40), (-0.15, 0.95, -0.1), _RELAXED, 0.0, (0.1, 0.1))
_FOLDED_UNDER = _hand((0.100, -0.205, -0.332), (-0.88, -0.02, 0.34), (-0.1, 0.95, -0.1), _RELAXED, 0.0, (0.1, 0.1))
_SIDE = _hand((0.20, -0.15, -0.365), (-0.50, -0.35, 0.55), (-0.75, 0.35, -0.3), _RELAXED, 0.05)
_LAP = _hand((0.115, -0.20, -0.375), (-0.85, -0.1, 0.30), (-0.1, 0.95, -0.2), _RELAXED, 0.0, (0.1, 0.1))

RESTS: tuple[tuple[F64, F64], ...] = (
    (_FOLDED_OVER, _FOLDED_UNDER * _MIRROR),
    (_FOLDED_UNDER, _FOLDED_OVER * _MIRROR),
    (_LOW, _LOW * _MIRROR),
    (_SIDE, _SIDE * _MIRROR),
    (_LOW, _SIDE * _MIRROR),
    (_LAP, _LOW * _MIRROR),
)
"""Left and right hand at rest."""

GESTURES: tuple[F64, ...] = (
    _hand((0.175, -0.23, -0.300), (0.30, -0.50, 0.78), (-0.50, -0.25, 0.80), _OPEN, 0.4),
    _hand((0.150, -0.26, -0.325), (-0.10, -0.78, 0.42), (-0.20, 0.20, 0.95), (0.12, 0.15, 0.2, 0.24, 0.28), 0.3),
    _hand(
        (0.165, -0.22, -0.275),
        (-0.10, -0.25, 0.95),
        (-0.65, -0.72, -0.05),
        (0.55, 0.05, 1.0, 1.1, 1.1),
        0.0,
        (0.2, 0.3),
    ),
    _hand(
        (0.140, -0.24, -0.300),
        (-0.35, -0.35, 0.85),
        (-0.78, -0.15, -0.25),
        (0.55, 0.62, 0.45, 0.40, 0.36),
        0.2,
        (0.2, 0.35),
    ),
    _hand((0.130, -0.25, -0.315), (-0.55, -0.40, 0.70), (-0.80, 0.30, -0.45), _OPEN, 0.1),
    _hand((0.215, -0.20, -0.300), (0.35, -0.40, 0.80), (-0.60, -0.55, 0.35), (0.15, 0.2, 0.24, 0.28, 0.32), 0.5),
    _hand(
        (0.150, -0.23, -0.325), (-0.45, -0.40, 0.75), (-0.80, 0.25, -0.30), (0.6, 1.0, 1.05, 1.1, 1.1), 0.0, (0.2, 0.3)
    ),
    _hand((0.075, -0.200, -0.300), (-0.80, -0.10, 0.55), (-0.10, 0.97, -0.10), (0.2, 0.15, 0.16, 0.18, 0.22), 0.15),
    _hand((0.190, -0.21, -0.260), (0.10, -0.20, 0.97), (-0.15, -0.97, -0.15), _OPEN, 0.7),
    _hand((0.160, -0.25, -0.310), (0.00, -0.55, 0.72), (-0.85, -0.10, 0.25), (0.1, 0.16, 0.2, 0.24, 0.28), 0.3),
)
"""What the left hand does in a stroke: open, offering, index up, pinch, flat, wide, loose fist, on the heart, palm to
the viewer, measuring."""

_LOOSE = np.array([0.010, 0.010, 0.010, *(0.07,) * 3, *(0.07,) * 3, *(0.06,) * 5, 0.1, 0.04, 0.04])
"""How much hands differ from one time to the next."""


@dataclass(frozen=True)
class Habit:
    """How a person moves the hands: rest pose, gestures a second while speaking, how large they are, how much the hands
    sway, and how many times the usual 0.34 to 0.62 s a hand takes to its next place."""

    rest: int
    rate: float
    size: float
    sway: float = 1.0
    slowness: float = 1.0


def sample_habit(rng: np.random.Generator) -> Habit:
    """Any habit."""
    return Habit(int(rng.integers(len(RESTS))), rng.uniform(0.3, 0.9), rng.uniform(0.75, 1.1), rng.uniform(0.6, 1.3))


def rest_hands(habit: Habit) -> F32:
    """(2, 17) hands of the reference picture: left, right."""
    return np.stack(RESTS[habit.rest]).astype(np.float32)


def gesture_hands(rng: np.random.Generator, speaking: Bool, habit: Habit, *, loop: bool = False) -> F32:
    """Hands (N, 2, 17) at 24 frames/s: at rest where ``speaking`` (N,) is false for long, gesturing where it is true.

    With ``loop`` the end leads back to the beginning.
    """
    frames = len(speaking)
    rest = np.stack(RESTS[habit.rest])
    keys = _key_poses(rng, speaking, habit)
    hands = np.empty((frames, 2, 17))
    for side in (0, 1):
        track = np.broadcast_to(rest[side], (frames, 17)).copy()
        goal = rest[side]
        for at, length, pose in keys:
            share = _least_jerk((np.arange(frames) - at) / length)[:, None]
            track += share * (pose[side] - goal)
            goal = pose[side]
        hands[:, side] = track
    sway = np.stack([_sway(rng, frames, loop) for _ in range(34)], 1).reshape(frames, 2, 17)
    sway[..., 9:14] = sway[..., 9:10] + 0.3 * sway[..., 9:14]
    active = np.convolve(speaking.astype(float), np.ones(13) / 13)[6 : 6 + frames, None]
    hands += sway * _LOOSE * 0.35 * habit.sway
    cycles = max(1, round(rng.uniform(1.6, 2.4) * frames / FPS))  # whole ones, so that a loop closes
    beat = np.sin(2 * np.pi * cycles * np.arange(frames) / frames + 1.5 * _sway(rng, frames, loop))
    lifted = np.clip((hands[..., 2] - rest[:, 2]) / 0.08, 0, 1)
    hands[..., 2] += 0.006 * beat[:, None] * active * lifted
    return hands.astype(np.float32)


def _key_poses(rng: np.random.Generator, speaking: Bool, habit: Habit) -> list[tuple[float, float, F64]]:
    """When the hands set out (frames), how long they take, and where they go (2, 17)."""
    rest = np.stack(RESTS[habit.rest])
    keys: list[tuple[float, float, F64]] = []
    quiet, raised, frames = 0, False, len(speaking)
    at = rng.uniform(0, 1.0) * FPS
    if speaking[: FPS // 2].any() and rng.random() < 0.6:  # the take begins amid a gesture
        keys.append((-30.0, 10.0, _stroke(rng, rest, habit)))
        raised = True
    frame = 0
    while frame < frames:
        quiet = 0 if speaking[frame] else quiet + 1
        if raised and quiet > 0.5 * FPS:
            keys.append((frame, rng.uniform(0.55, 0.9) * FPS, rest))
            raised, at = False, frame + rng.uniform(0.6, 1.5) * FPS
        elif speaking[frame] and frame >= at:
            if raised and rng.random() < 0.3:
                goal, raised = rest, False
            else:
                goal, raised = _stroke(rng, rest, habit), True
            length = rng.uniform(0.34, 0.62) * FPS * habit.slowness
            keys.append((frame, length, goal))
            at = frame + length + rng.exponential(1 / habit.rate) * FPS * 0.6 + rng.uniform(0.15, 0.5) * FPS
        frame += 1
    return keys


def _stroke(rng: np.random.Generator, rest: F64, habit: Habit) -> F64:
    """A gesture of one hand, the other or both, the same or not."""
    who = rng.random()
    used = (who < 0.75, who > 0.25)
    first = int(rng.integers(len(GESTURES)))
    second = first if rng.random() < 0.65 else int(rng.integers(len(GESTURES)))
    goal = rest.copy()
    for side, kind in ((0, first), (1, second)):
        if used[side]:
            pose = GESTURES[kind] + rng.normal(size=17) * _LOOSE
            pose[9:14] = np.clip(pose[9:14], 0, 1.25)
            pose[0] = max(pose[0], 0.10 if all(used) else 0.06)
            pose = pose * (_MIRROR if side else 1)
            goal[side] = rest[side] + (pose - rest[side]) * min(1.0, habit.size)
    return goal


def _least_jerk(share: NDArray[np.floating]) -> F64:
    t = np.clip(share, 0, 1)
    return np.asarray(t**3 * (t * (6 * t - 15) + 10))


def _sway(rng: np.random.Generator, frames: int, loop: bool) -> F64:
    """Smooth noise (frames,) of about unit strength."""
    period_s = frames / FPS if loop else max(frames / FPS, 8.0) * 1.37
    time = np.arange(frames) / FPS
    total = np.zeros(frames)
    for rate in (0.12, 0.21, 0.34, 0.55):
        cycles = max(1, round(rate * period_s * rng.uniform(0.7, 1.3)))
        total += (0.12 / rate) ** 0.5 * np.sin(2 * np.pi * (cycles * time / period_s + rng.random()))
    return total * 0.8
