"""Small networks with random weights for the model room's tests, and the miniature of the published model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from echo_rtc.clips import ClipFormat
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet

torch.set_num_threads(1)

DATA = Path(__file__).parents[1] / "data"
MINI = DATA / "mini"
POSES = DATA / "poses"
MINI_FORMAT = ClipFormat(width=64, height=64)
AUDIO_WIDTH = 16
TOKENS = 5


def unet_config(**changes: Any) -> dict[str, Any]:
    """Three levels of 32, 32 and 64 channels, the coarsest without transformers."""
    return {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 32, 64],
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "attention_head_dim": 4,
        "cross_attention_dim": AUDIO_WIDTH,
        **changes,
    }


def motion_config(**changes: Any) -> dict[str, Any]:
    return {"motion_module_kwargs": {"num_attention_heads": 4}, **changes}


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Gives every parameter that starts as zeros (and every bias) random values, so that each one counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias") or not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def reference_unet(**changes: Any) -> ReferenceUNet:
    torch.manual_seed(1)
    network = ReferenceUNet(unet_config(**changes))
    randomise(network)
    return network


def denoising_unet(motion: dict[str, Any] | None = None, **changes: Any) -> DenoisingUNet:
    torch.manual_seed(2)
    network = DenoisingUNet(unet_config(**changes), motion_config() if motion is None else motion)
    randomise(network)
    return network
