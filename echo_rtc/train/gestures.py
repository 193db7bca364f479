"""How the drawn people move their hands, and with them their head and lids.

Head and lids are pure functions of the same frame's hand keypoints (:func:`head_of_hands`, :func:`blink_of_hands`): a
model that is shown nothing but the drawn hands can learn them exactly. The head leans with the palms; a blink goes with
a tap of index and middle finger. This file knows nothing of drawing or of speech.

A hand is a small skeleton of 21 points (wrist; thumb, index, middle, ring, little finger from base to tip), bent and
turned in space and projected straight onto the image. Hand 0 is on the right of the image, hand 1 on the left.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from echo_rtc.errors import EchoRtcError, InputError

_FINGERS = ((5, 6, 7, 8), (9, 10, 11, 12), (13, 14, 15, 16), (17, 18, 19, 20))
_PALM = (0, 5, 9, 13, 17)
_HAND_SIZE = 0.235  # wrist to middle fingertip in image heights

# columns of a hand's posture; u runs outwards from the image's middle, so that one table serves both hands
_COLUMNS = ("u", "y", "point", "turn", "pitch", "index", "middle", "ring", "little", "thumb", "spread", "tap")
_REST = (0.115, 0.905, 0.30, 0.15, 0.10, 0.30, 0.34, 0.38, 0.42, 0.25, 0.0, 0.0)

# what a hand does in a stroke; NaN-free and complete, chosen by eye
_STROKES = torch.tensor(
    [
        # u      y     point  turn  pitch index middle ring little thumb spread tap
        [0.235, 0.845, 1.15, 2.40, 0.35, 0.12, 0.15, 0.18, 0.22, 0.00, 0.35, 0.0],  # open, palm half towards the viewer
        [0.215, 0.880, 0.55, 1.60, 0.25, 0.18, 0.22, 0.26, 0.30, 0.05, 0.25, 0.0],  # palm up, offering
        [0.165, 0.860, 1.30, 0.25, 0.15, 0.10, 0.75, 0.85, 0.90, 0.50, 0.0, 0.0],  # index up
        [0.150, 0.865, 0.95, 0.60, 0.20, 0.55, 0.50, 0.45, 0.45, 0.55, 0.1, 0.0],  # thumb and index together
        [0.135, 0.850, 0.85, 0.10, 0.05, 0.12, 0.14, 0.16, 0.20, 0.15, 0.15, 0.0],  # flat hand, edge first
        [0.255, 0.900, 0.95, 2.70, 0.55, 0.25, 0.30, 0.34, 0.38, 0.05, 0.30, 0.0],  # wide apart, relaxed
        [0.125, 0.880, 0.70, 0.20, 0.10, 0.60, 0.62, 0.64, 0.66, 0.55, 0.0, 0.0],  # loose fist before the chest
    ]
)


@dataclass(frozen=True)
class Gestures:
    """B sequences of F frames; the fields are those of ``person.Motion`` for every frame."""

    hands: Tensor  # (B, F, 2, 21, 2) in 0..1 of the image
    scores: Tensor  # (B, F, 2, 21)
    head: Tensor  # (B, F, 3)
    blink: Tensor  # (B, F)


# ---------------------------------------------------------------------------------------------------------------------
# The skeleton of a hand
# ---------------------------------------------------------------------------------------------------------------------

# Lengths in hand sizes. Knuckles: along the hand, towards the thumb, out of the palm.
_KNUCKLES = torch.tensor([[0.49, 0.155, 0.0], [0.51, 0.045, 0.0], [0.485, -0.065, 0.0], [0.44, -0.165, 0.0]])
_BONES = torch.tensor([[0.215, 0.125, 0.095], [0.24, 0.14, 0.10], [0.225, 0.13, 0.095], [0.165, 0.095, 0.08]])
_FAN = torch.tensor([0.05, 0.0, -0.06, -0.14])  # how far the fingers lean from the hand's axis, rad
_BEND = torch.tensor([1.05, 1.45, 0.95])  # of the three joints at a curl of 1, rad
_THUMB = ((0.15, 0.14), (0.31, 0.27), (0.44, 0.36), (0.545, 0.42))


def _hand_points(posture: Tensor, side: int) -> Tensor:
    """Postures (..., 12) -> keypoints (..., 21, 2) in 0..1 of the image; ``side`` 0 is its right, 1 its left."""
    column = dict(zip(_COLUMNS, posture.unbind(-1), strict=True))
    tap = column["tap"]
    curls = torch.stack(
        [
            torch.lerp(column["index"], torch.full_like(tap, 1.35), tap),
            torch.lerp(column["middle"], torch.full_like(tap, 1.35), tap),
            torch.lerp(column["ring"], column["ring"].clamp(max=0.28), tap),
            torch.lerp(column["little"], column["little"].clamp(max=0.28), tap),
        ],
        dim=-1,
    )  # (..., 4)
    angles = (curls[..., None] * _BEND.to(curls)).cumsum(-1)  # (..., 4, 3) each bone against the palm's plane
    fan = _FAN.to(curls) + column["spread"][..., None] * torch.tensor([0.22, 0.05, -0.14, -0.34]).to(curls)
    bones = _BONES.to(curls)
    along = bones * angles.cos()
    step = torch.stack([along * fan.cos()[..., None], along * fan.sin()[..., None], bones * angles.sin()], dim=-1)
    knuckles = _KNUCKLES.to(curls).expand(*posture.shape[:-1], 4, 3)
    joints = torch.cat([knuckles[..., None, :], knuckles[..., None, :] + step.cumsum(-2)], dim=-2)  # (..., 4, 4, 3)
    thumb = []
    for number, (reach, out) in enumerate(_THUMB):
        fold = column["thumb"] * number / 3
        thumb.append(torch.stack([reach + 0.06 * fold, out - 0.20 * fold, 0.03 * number / 3 + 0.12 * fold], dim=-1))
    local = torch.cat(
        [torch.zeros_like(thumb[0])[..., None, :], torch.stack(thumb, dim=-2), joints.flatten(-3, -2)], dim=-2
    )  # (..., 21, 3)

    # fingers' direction, direction of the thumb, and out of the palm, in the image's plane (u outwards, y down) + depth
    point, turn, pitch = column["point"], column["turn"], column["pitch"]
    ahead_u, ahead_y = -point.cos() * pitch.cos(), -point.sin() * pitch.cos()
    rise_u, rise_y = point.cos() * pitch.sin(), point.sin() * pitch.sin()  # the viewer's direction, as pitch tilts it
    across_u = turn.cos() * point.sin() + turn.sin() * rise_u
    across_y = -turn.cos() * point.cos() + turn.sin() * rise_y
    out_u = turn.sin() * point.sin() - turn.cos() * rise_u
    out_y = -turn.sin() * point.cos() - turn.cos() * rise_y
    a, b, c = local.unbind(-1)
    u = column["u"][..., None] + _HAND_SIZE * (a * ahead_u[..., None] + b * across_u[..., None] + c * out_u[..., None])
    y = column["y"][..., None] + _HAND_SIZE * (a * ahead_y[..., None] + b * across_y[..., None] + c * out_y[..., None])
    x = 0.5 + u if side == 0 else 0.5 - u
    return torch.stack([x, y], dim=-1)


def rest_hands() -> Tensor:
    """Keypoints (2, 21, 2) of the neutral pose of every reference image: head 0 and blink 0 belong to it."""
    rest = torch.tensor(_REST)
    return torch.stack([_hand_points(rest, 0), _hand_points(_other_hand(rest), 1)])


def _other_hand(posture: Tensor) -> Tensor:
    """Hand 1 rests a little higher, on top of hand 0, so that the two do not look like a mirror's."""
    offset = torch.zeros(len(_COLUMNS))
    offset[_COLUMNS.index("y")] = -0.012
    offset[_COLUMNS.index("point")] = -0.10
    return posture + offset


# ---------------------------------------------------------------------------------------------------------------------
# Head and lids from the hands
# ---------------------------------------------------------------------------------------------------------------------


def head_of_hands(hands: Tensor) -> Tensor:
    """Where the head is while the hands are here: (..., 2, 21, 2) -> (..., 3): dx, dy (fractions of it), roll (rad).

    Zero at :func:`rest_hands`, smooth and bounded (0.03, 0.02, 0.14). The palms count, not the fingers, so that a tap
    does not shake the head.
    """
    palm = list(_PALM)
    shift = hands[..., palm, :].mean(-2) - rest_hands()[:, palm].mean(-2).to(hands)  # (..., 2, 2)
    together = shift.mean(-2)
    dx = 0.030 * torch.tanh(together[..., 0] / 0.06)
    dy = 0.020 * torch.tanh(together[..., 1] / 0.06)
    roll = 0.09 * torch.tanh((shift[..., 0, 1] - shift[..., 1, 1]) / 0.08) + 0.05 * torch.tanh(together[..., 0] / 0.06)
    return torch.stack([dx, dy, roll], dim=-1)


def blink_of_hands(hands: Tensor) -> Tensor:
    """How far the lids are shut, 0..1: (..., 2, 21, 2) -> (...).

    Read off how short index and middle finger look beside ring and little finger, each against its true length, which
    holds whichever way a hand is turned. Both hands tap; their mean counts.
    """
    reach: list[Tensor] = []
    for finger, bones in zip(_FINGERS, _BONES, strict=True):
        span = hands[..., finger[3], :] - hands[..., finger[0], :]
        reach.append((span.square().sum(-1) + 1e-8).sqrt() / bones.sum())
    ratio = (reach[0] + reach[1]) / (reach[2] + reach[3])
    amount = ((0.80 - ratio) / 0.30).clamp(0, 1)
    shut: Tensor = amount * amount * (3 - 2 * amount)
    return shut.mean(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------------------------


def _sway(shape: tuple[int, ...], time: Tensor, period_s: float, generator: torch.Generator) -> Tensor:
    """Smooth noise of about unit strength over ``time`` (F,), periodic in ``period_s``: (*shape, F)."""
    total = torch.zeros(*shape, len(time))
    for rate in (0.12, 0.21, 0.34, 0.55):
        cycles = (rate * period_s * (0.7 + 0.6 * torch.rand(*shape, 1, generator=generator))).round().clamp(min=1)
        phase = 2 * math.pi * torch.rand(*shape, 1, generator=generator)
        total += (0.12 / rate) ** 0.5 * torch.sin(2 * math.pi * cycles * time / period_s + phase)
    return total * 0.8


def _since(time: Tensor, event: Tensor, period_s: float) -> Tensor:
    """Seconds from the nearest repetition of each event: (F,), (...) -> (..., F)."""
    return (time - event[..., None] + period_s / 2) % period_s - period_s / 2


def _ease(value: Tensor) -> Tensor:
    t = value.clamp(0, 1)
    return t * t * t * (t * (6 * t - 15) + 10)


def sample_gestures(count: int, frames: int, fps: float, generator: torch.Generator, *, loop: bool = False) -> Gestures:
    """``count`` conversations' worth of hands, ``frames`` frames each at ``fps``.

    Hands rest, sway, and now and then make a stroke (one or both); about every 3.5 s index and middle finger tap and
    the eyes blink. With ``loop`` the last frame leads back to the first as to any next one.
    """
    period_s = frames / fps + (0.0 if loop else 1.7)
    time = torch.arange(frames) / fps
    rest = torch.tensor(_REST)
    rest = torch.stack([rest, _other_hand(rest)])  # (2, 12)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    loose = torch.tensor([0.012, 0.010, 0.10, 0.12, 0.06, 0.05, 0.05, 0.05, 0.05, 0.06, 0.04, 0.0])
    settled = rest + loose * 0.8 * (2 * rand(count, 2, len(_COLUMNS)) - 1)
    sway = _sway((count, 2, len(_COLUMNS)), time, period_s, generator).transpose(-1, -2)  # (B, 2, F, 12)
    curling = slice(_COLUMNS.index("index"), _COLUMNS.index("little") + 1)
    sway[..., curling] = sway[..., curling].mean(-1, keepdim=True)  # fingers of a resting hand move as one
    settled[..., curling] = rest[..., curling] + (settled - rest)[..., curling].mean(-1, keepdim=True)
    posture = settled[:, :, None] + loose * 0.6 * sway

    events = max(1, round(period_s / 2.4))
    at = (torch.arange(events) + 0.25 + 0.5 * rand(count, events)) * period_s / events + period_s * rand(count, 1)
    hold, rise, fall = (
        0.2 + 0.8 * rand(count, events, 1),
        0.28 + 0.2 * rand(count, events, 1),
        0.4 + 0.3 * rand(count, events, 1),
    )
    since = _since(time, at, period_s)  # (B, E, F)
    shape = _ease((since + hold / 2 + rise) / rise) * _ease((hold / 2 + fall - since) / fall)
    who = rand(count, events)
    used = torch.stack([who < 0.78, (who > 0.22)], dim=-1).float()  # (B, E, 2): one hand, the other, mostly both
    kind = torch.randint(len(_STROKES), (count, events), generator=generator)
    goal = _STROKES[kind] + loose * 1.2 * (2 * rand(count, events, len(_COLUMNS)) - 1)  # (B, E, 12)
    strength = (0.55 + 0.45 * rand(count, events, 1)) * used
    weight = shape[:, :, None] * strength[..., None]  # (B, E, 2, F)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    posture = posture + torch.einsum("behf,bec->bhfc", weight, goal) - weight.sum(1)[..., None] * posture
    beat = (1.4 + 1.2 * rand(count, events, 1)) * period_s
    beats = torch.sin(2 * math.pi * beat.round() * since / period_s) * 0.010
    posture[..., 1] = posture[..., 1] + (weight * beats[:, :, None]).sum(1)

    blinks = max(1, round(period_s / 3.5))
    at = (torch.arange(blinks) + 0.30 * rand(count, blinks)) * period_s / blinks + period_s * rand(count, 1)
    tap = _ease((0.150 - _since(time, at, period_s).abs()) / 0.10).amax(1)  # (B, F)
    posture[..., -1] = tap[:, None]

    hands = torch.stack([_hand_points(posture[:, hand], hand) for hand in (0, 1)], dim=2)  # (B, F, 2, 21, 2)
    return Gestures(hands, torch.ones(hands.shape[:-1]), head_of_hands(hands), blink_of_hands(hands))


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write_pose_sequence(folder: Path, hands: Tensor, scores: Tensor) -> None:
    """Writes hands (F, 2, 21, 2) and scores (F, 2, 21) as 0.npy, 1.npy ... in the published form of a pose sequence.

    The drawing area is the whole of a square canvas, so keypoints in 0..1 are those of the image. Raises InputError
    where the folder cannot be made or written.
    """
    from echo_rtc.model.pose import Pose, Region
    from echo_rtc.model.pose_files import save_pose

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (points, score) in enumerate(zip(hands, scores, strict=True)):
            pose = Pose(points.double().cpu().numpy(), score.double().cpu().numpy(), Region())
            save_pose(folder / f"{number}.npy", pose)
    except OSError as error:
        raise InputError(f"the pose folder {folder} cannot be written: {error.strerror or error}") from error


def main_poses(argv: Sequence[str]) -> int:
    """``python -m echo_rtc.train poses``: writes a seamless pose sequence. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="echo-rtc train poses", description="Writes a looping pose sequence.")
    parser.add_argument("--output", type=Path, required=True, help="folder for 0.npy, 1.npy ...")
    parser.add_argument(
        "--frames", type=int, default=144, help="length of the loop at 24 frames a second (default 144)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which sequence (default 0)")
    options = parser.parse_args(argv)
    try:
        if options.frames < 24:
            raise InputError(f"--frames {options.frames} is too short for a loop; give at least 24")
        gestures = sample_gestures(1, options.frames, 24, torch.Generator().manual_seed(options.seed), loop=True)
        write_pose_sequence(options.output, gestures.hands[0], gestures.scores[0])
    except EchoRtcError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0
