"""A new pose encoder can be trained: it starts without influence, but not without anything to learn from."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from echo_rtc.model.pose_drawing import draw_pose
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.pose_files import load_pose
from tests.model.small import POSES

CONFIG = {
    "conditioning_embedding_channels": 64,
    "conditioning_channels": 3,
    "block_out_channels": [16, 32, 48, 64, 96],
}


def test_it_starts_without_influence_and_learns_to_tell_poses() -> None:
    torch.manual_seed(0)
    encoder = PoseEncoder(CONFIG)
    drawn = np.stack([draw_pose(load_pose(POSES / f"{number}.npy"), 128, 128) for number in (0, 1)])
    poses = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    assert not encoder(poses).any()

    nn.init.normal_(encoder.conv_out.weight, std=0.05)
    features = encoder(poses)
    apart = (features[0] - features[1]).square().mean().sqrt()
    assert apart > 0.05 * features.square().mean().sqrt() > 0
    features.square().sum().backward()
    assert encoder.conv_in.weight.grad is not None
    assert encoder.conv_in.weight.grad.abs().max() > 1e-4
