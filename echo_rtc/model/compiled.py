"""The plain networks under torch.compile, layer by layer.

A UNet has dozens of layers of a few kinds and sizes: compiled one by one, each kind and size is compiled once and used
by all, which takes a quarter of the time of compiling the whole at once. Recording the whole (``captured.py``) then
makes up for the calls between them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from echo_rtc.model.blocks import ResnetBlock
from echo_rtc.model.motion import MotionModule
from echo_rtc.model.unet3d import DenoisingTransformer, DenoisingUNet

_MOST_VARIANTS = 64
"""How many sizes of one layer are compiled before PyTorch gives up on it: a UNet has a dozen, a clip of another length
as many again."""

_MODES = {"default": "default", "reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""PyTorch's modes of these names; where they would record each layer by itself, the whole clip is recorded instead."""


def compile_layers(network: nn.Module, mode: str = "default") -> None:
    """Marks a UNet's layers to be compiled when they are first used; ``mode`` is one of PyTorch's."""
    torch._dynamo.config.recompile_limit = _MOST_VARIANTS
    for module in network.modules():
        if isinstance(module, ResnetBlock | DenoisingTransformer | MotionModule):
            module.compile(mode=_MODES[mode], dynamic=False)


def compile_networks(
    denoiser: DenoisingUNet, decode: Callable[[Tensor], Tensor], mode: str
) -> Callable[[Tensor], Tensor]:
    """Marks the denoising UNet's layers to be compiled when they are first used, and returns ``decode`` compiled."""
    compile_layers(denoiser, mode)
    compiled: Callable[[Tensor], Tensor] = torch.compile(decode, mode=_MODES[mode], dynamic=False)
    return compiled
