from __future__ import annotations

import numpy as np
import torch

from echo_rtc.train.people.figure import Figure
from echo_rtc.train.people.motion import GESTURES, RESTS
from echo_rtc.train.people.skeleton import HAND, frame, rotation


def test_rotations_are_orthogonal_and_exact() -> None:
    axis = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    turn = rotation(axis, torch.linspace(-3, 3, 5))
    assert torch.allclose(turn @ turn.transpose(-1, -2), torch.eye(3).expand(5, 3, 3), atol=1e-5)
    quarter = rotation(torch.tensor([0.0, 0, 1]), torch.tensor(np.pi / 2)) @ torch.tensor([1.0, 0, 0])
    assert torch.allclose(quarter, torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(torch.linalg.det(frame(axis, axis.roll(1, 0))), torch.ones(5), atol=1e-5)


def test_hands_reach_where_they_are_sent(omar: Figure) -> None:
    hands = np.stack([*(np.stack(rest) for rest in RESTS), *(np.stack([pose, RESTS[2][1]]) for pose in GESTURES)])
    posed = torch.from_numpy(hands.astype(np.float32))
    eyes = torch.tensor([0.0, 0.0, omar.eye_level])
    turns = omar.skeleton.arms(posed, eyes, torch.zeros(len(posed)))
    joints = omar.skeleton.hand_joints(omar.skeleton.pose(turns, len(posed)))
    assert joints.shape == (len(posed), 2, 21, 3)
    wanted = posed[:, :, HAND["wrist"]] + eyes
    error = (joints[:, :, 0] - wanted).norm(dim=-1)
    assert error[:, 0].max() < 0.01
    pointing = torch.nn.functional.normalize(joints[:, 0, 9] - joints[:, 0, 0], dim=-1)
    asked = torch.nn.functional.normalize(posed[:, 0, HAND["fingers"]], dim=-1)
    assert (pointing * asked).sum(-1).min() > 0.97


def test_bones_keep_their_lengths(omar: Figure) -> None:
    posed = torch.from_numpy(np.stack([np.stack(rest) for rest in RESTS]).astype(np.float32))
    turns = omar.skeleton.arms(posed, torch.tensor([0.0, 0.0, omar.eye_level]), torch.zeros(len(posed)))
    pose = omar.skeleton.pose(turns | omar.skeleton.neck(torch.full((len(posed), 3), 0.1)), len(posed))
    joints = omar.skeleton.hand_joints(pose)[:, 0]
    lengths = (joints[:, 1:] - joints[:, :-1])[:, [0, 1, 2, 5, 6, 9, 10]].norm(dim=-1)
    assert torch.allclose(lengths, lengths[:1].expand_as(lengths), atol=1e-4)
