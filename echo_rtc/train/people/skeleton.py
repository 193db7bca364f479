"""Bones in motion: forward kinematics, arms by inverse kinematics, fingers by curl, and the joints that poses draw.

Rotations are in world axes, relative to the parent. Everything works on B frames at once. A hand is posed by 17 numbers
(:data:`HAND`); hand 0 is the person's left, on the right of the picture, as in the pose files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from echo_rtc.train.people.asset import F32, Asset

HAND = {
    "wrist": slice(0, 3),
    "fingers": slice(3, 6),
    "palm": slice(6, 9),
    "curl": slice(9, 14),
    "spread": slice(14, 15),
    "thumb": slice(15, 17),
}
"""Columns of a hand's pose: where the wrist is (metres from the middle of the body at the eyes' height), where the
middle finger points, where the palm faces, curl of thumb to little finger (0 straight .. 1.3 fist), spread of the
fingers, thumb outwards and forwards."""

HAND_VALUES = 17
SIDES = ("L", "R")


def rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations (..., 3, 3) about unit axes (..., 3) by angles (...)."""
    x, y, z = (value + torch.zeros_like(angle) for value in axis.unbind(-1))
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    cross = torch.stack([torch.stack(row, -1) for row in rows], -2)
    eye = torch.eye(3, device=axis.device)
    turn: Tensor = eye + angle.sin()[..., None, None] * cross + (1 - angle.cos())[..., None, None] * (cross @ cross)
    return turn


def unit(vector: Tensor) -> Tensor:
    """Vectors (..., 3) of length 1."""
    scaled: Tensor = vector / vector.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    return scaled


def frame(along: Tensor, towards: Tensor) -> Tensor:
    """Axes (..., 3, 3) as columns: the first along a vector, the second as near to another as it can be."""
    x = unit(along)
    z = unit(torch.linalg.cross(x, towards.expand_as(x)))
    return torch.stack([x, torch.linalg.cross(z, x), z], -1)


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the bones are in B frames: ``turn`` (B, J, 3, 3) and ``place`` (B, J, 3) of their heads."""

    turn: Tensor
    place: Tensor


class Skeleton:
    """The bones of one person at rest: ``heads`` and ``tails`` (J, 3)."""

    def __init__(self, asset: Asset, heads: F32, tails: F32, device: torch.device) -> None:
        self._asset = asset
        self.heads = torch.from_numpy(heads).to(device)
        self.tails = torch.from_numpy(tails).to(device)
        self._bone = asset.bone

    def head(self, name: str) -> Tensor:
        """Where a bone begins at rest, (3,)."""
        return self.heads[self._bone[name]]

    def pose(self, turns: Mapping[str, Tensor], frames: int) -> Pose:
        """Forward kinematics; bones without a turn (B, 3, 3) keep their rest."""
        turn: list[Tensor] = []
        place: list[Tensor] = []
        still = torch.eye(3, device=self.heads.device).expand(frames, 3, 3)
        for index, parent in enumerate(self._asset.parents):
            own = turns.get(self._asset.bones[index])
            if parent < 0:
                turn.append(still if own is None else own)
                place.append(self.heads[index].expand(frames, 3))
                continue
            place.append(place[parent] + turn[parent] @ (self.heads[index] - self.heads[parent]))
            turn.append(turn[parent] if own is None else turn[parent] @ own)
        return Pose(torch.stack(turn, 1), torch.stack(place, 1))

    def bone_matrices(self, pose: Pose) -> Tensor:
        """(B, J, 3, 4) matrices that move what is skinned."""
        shift = pose.place - (pose.turn @ self.heads[..., None])[..., 0]
        return torch.cat([pose.turn, shift[..., None]], -1)

    # ------------------------------------------------------------------------------------------------- head and arms

    def neck(self, head: Tensor) -> dict[str, Tensor]:
        """Turns for a head's (B, 3) yaw, pitch and roll in rad, shared by the neck."""
        x, y, z = torch.eye(3, device=head.device)
        turns = {}
        for name, share in (("neck01", 0.2), ("neck02", 0.2), ("neck03", 0.2), ("head", 0.4)):
            yaw, pitch, roll = (share * head).unbind(-1)
            turns[name] = rotation(z, yaw) @ rotation(x, pitch) @ rotation(y, roll)
        return turns

    @cached_property
    def _palms(self) -> tuple[Tensor, Tensor]:
        """Where the palms face at rest, each (3,)."""
        found = []
        for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
            fingers = self.head(f"finger3-1.{side}") - self.head(f"wrist.{side}")
            across = self.head(f"finger2-1.{side}") - self.head(f"finger5-1.{side}")
            found.append(unit(torch.linalg.cross(fingers, across) * sign))
        return found[0], found[1]

    def arms(self, hands: Tensor, eyes: Tensor, shrug: Tensor) -> dict[str, Tensor]:
        """Turns for hands (B, 2, 17); ``eyes`` (3,) is where wrists are counted from, ``shrug`` (B,) lifts the
        shoulders (rad)."""
        turns: dict[str, Tensor] = {}
        for index in (0, 1):
            turns |= self._arm(index, hands[:, index], eyes, shrug)
            turns |= self._fingers(index, hands[:, index])
        return turns

    def _arm(self, index: int, hand: Tensor, eyes: Tensor, shrug: Tensor) -> dict[str, Tensor]:
        side, sign = SIDES[index], (1.0, -1.0)[index]
        clavicle = rotation(torch.tensor([0.0, 1.0, 0.0], device=hand.device), -sign * shrug)
        base = self.head(f"clavicle.{side}")
        shoulder = base + clavicle @ (self.head(f"upperarm01.{side}") - base)
        upper = self.head(f"lowerarm01.{side}") - self.head(f"upperarm01.{side}")
        lower = self.head(f"wrist.{side}") - self.head(f"lowerarm01.{side}")
        a, c = upper.norm(), lower.norm()
        reach = hand[:, HAND["wrist"]] + eyes - shoulder
        distance = reach.norm(dim=-1, keepdim=True)
        span = torch.minimum(distance, (a + c) * 0.999)
        towards = reach / distance
        along = (a * a - c * c + span * span) / (2 * span)
        across = (a * a - along * along).clamp(min=1e-9).sqrt()
        pole = torch.tensor([sign * 0.55, 0.35, -1.0], device=hand.device)
        pole = unit(pole - towards * (towards * pole).sum(-1, keepdim=True))
        elbow = towards * along + pole * across  # from the shoulder
        wrist = towards * span
        bend = torch.linalg.cross(upper, lower)
        bent = torch.linalg.cross(elbow, wrist - elbow)
        upper_turn = frame(elbow, bent) @ frame(upper, bend).T
        lower_turn = frame(wrist - elbow, bent) @ frame(lower, bend).T
        fingers = self.head(f"finger3-1.{side}") - self.head(f"wrist.{side}")
        hand_turn = frame(hand[:, HAND["fingers"]], hand[:, HAND["palm"]]) @ frame(fingers, self._palms[index]).T
        # The forearm takes most of the hand's turn about its axis, in two steps, so that the wrist does not wring.
        relative = lower_turn.transpose(-1, -2) @ hand_turn
        axis = unit(lower)
        skew = torch.stack(
            [
                relative[:, 2, 1] - relative[:, 1, 2],
                relative[:, 0, 2] - relative[:, 2, 0],
                relative[:, 1, 0] - relative[:, 0, 1],
            ],
            -1,
        )
        trace = relative.diagonal(dim1=-2, dim2=-1).sum(-1)
        twist = _unwrapped(2 * torch.atan2(skew @ axis, 1 + trace))
        first, second = rotation(axis, 0.35 * twist), rotation(axis, 0.45 * twist)
        return {
            f"clavicle.{side}": clavicle,
            f"upperarm01.{side}": clavicle.transpose(-1, -2) @ upper_turn,
            f"lowerarm01.{side}": upper_turn.transpose(-1, -2) @ lower_turn @ first,
            f"lowerarm02.{side}": second,
            f"wrist.{side}": (lower_turn @ first @ second).transpose(-1, -2) @ hand_turn,
        }

    def _fingers(self, index: int, hand: Tensor) -> dict[str, Tensor]:
        side, sign = SIDES[index], (1.0, -1.0)[index]
        palm = self._palms[index]
        curl = hand[:, HAND["curl"]]
        spread, thumb = hand[:, HAND["spread"]][:, 0], hand[:, HAND["thumb"]]
        turns = {}
        for finger in range(2, 6):
            bone = self.head(f"finger{finger}-2.{side}") - self.head(f"finger{finger}-1.{side}")
            axis = unit(torch.linalg.cross(unit(bone), palm))
            bend = curl[:, finger - 1]
            fan = rotation(palm, sign * 0.13 * (3.4 - finger) * spread)
            turns[f"finger{finger}-1.{side}"] = fan @ rotation(axis, 1.1 * bend - 0.25)
            turns[f"finger{finger}-2.{side}"] = rotation(axis, 1.3 * bend - 0.15)
            turns[f"finger{finger}-3.{side}"] = rotation(axis, 0.8 * bend - 0.1)
        bone = self.head(f"finger1-3.{side}") - self.head(f"finger1-1.{side}")
        axis = unit(torch.linalg.cross(unit(bone), palm))
        turns[f"finger1-1.{side}"] = rotation(palm, sign * thumb[:, 0]) @ rotation(axis, thumb[:, 1])
        turns[f"finger1-2.{side}"] = rotation(axis, 0.6 * curl[:, 0])
        turns[f"finger1-3.{side}"] = rotation(axis, 0.9 * curl[:, 0])
        return turns

    def hand_joints(self, pose: Pose) -> Tensor:
        """(B, 2, 21, 3): wrist, then four joints of each finger from the thumb on, as pose files have them."""
        hands = []
        for side in SIDES:
            joints = [pose.place[:, self._bone[f"wrist.{side}"]]]
            for finger in range(1, 6):
                joints += [pose.place[:, self._bone[f"finger{finger}-{part}.{side}"]] for part in (1, 2, 3)]
                last = self._bone[f"finger{finger}-3.{side}"]
                joints.append(joints[-1] + pose.turn[:, last] @ (self.tails[last] - self.heads[last]))
            hands.append(torch.stack(joints, 1))
        return torch.stack(hands, 1)


def _unwrapped(angle: Tensor) -> Tensor:
    """Angles (B,) of consecutive frames without jumps of a whole turn."""
    wrapped = (angle + math.pi) % (2 * math.pi) - math.pi
    smooth = np.unwrap(wrapped.double().cpu().numpy())
    return torch.from_numpy(smooth).to(angle)
