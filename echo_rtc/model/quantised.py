"""Eight-bit floating point for the plain networks, by torchao: of weights only, or of activations, too, each scaled by
its largest value as it comes. The fused networks have an eight-bit form of their own (``kernels/eight_bits.py``).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from echo_rtc.errors import SettingsError
from echo_rtc.model.options import choices_of
from echo_rtc.model.unet3d import DenoisingUNet

MODES = choices_of("quantize_fp8_mode")

ADA = (8, 9)
HOPPER = (9, 0)
"""Compute capabilities: the first GPUs that multiply eight-bit floating point, and those that our kernels are for."""


def check_fp8(device: torch.device) -> None:
    """Raises SettingsError, in one sentence, if a device cannot multiply eight-bit floating point."""
    if device.type != "cuda":
        raise SettingsError(f"quantize_fp8 is set, but the device is {device.type}; it needs a GPU, so leave it out")
    capability = torch.cuda.get_device_capability(device)
    if capability < ADA:
        name = torch.cuda.get_device_name(device)
        raise SettingsError(
            f"quantize_fp8 is set, but {name} has no eight-bit floating point (its compute capability is "
            f"{capability[0]}.{capability[1]}, 8.9 is needed); leave it out"
        )


def quantise_linear(denoiser: DenoisingUNet, mode: str) -> None:
    """Quantises the linear layers, but for those of the timestep: their weights only in the mode "weight-only", else
    what they are given, too. Raises SettingsError without torchao."""
    try:
        quantization: Any = import_module("torchao.quantization")
    except ImportError as error:
        raise SettingsError(
            "quantize_fp8 needs torchao here, which is not installed; install the extra gpu or leave it out"
        ) from error
    config = (
        quantization.Float8WeightOnlyConfig()
        if mode == "weight-only"
        else quantization.Float8DynamicActivationFloat8WeightConfig(granularity=quantization.PerTensor())
    )

    def wanted(module: nn.Module, name: str) -> bool:
        return (
            isinstance(module, nn.Linear)
            and not name.startswith("time_embedding")
            and ".time_emb_proj" not in name
            and module.in_features % 16 == 0
            and module.out_features % 16 == 0
        )

    quantization.quantize_(denoiser, config, filter_fn=wanted)
