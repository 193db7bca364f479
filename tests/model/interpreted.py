"""Runs every kernel of ours under Triton's interpreter, on the CPU, beside its plain version; prints the relative
errors as JSON. A program of its own, because Triton decides at its import whether it interprets."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor, nn

from echo_rtc.model.kernels import launch
from echo_rtc.model.kernels.frame_attention import frame_attention
from echo_rtc.model.kernels.geglu import geglu, interleaved
from echo_rtc.model.kernels.group_norm import add_moments, affine, coefficients, interleave_moments
from echo_rtc.model.kernels.joining import joined
from echo_rtc.model.kernels.layer_norm import add_layer_norm

IMAGES, CHANNELS = 2, 48
GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=GENERATOR) + 1


def norms() -> nn.LayerNorm:
    norm = nn.LayerNorm(CHANNELS)
    with torch.no_grad():
        norm.weight.copy_(noise(CHANNELS))
        norm.bias.copy_(noise(CHANNELS))
    return norm


def group_norm() -> Callable[[], list[Tensor]]:
    """Two activations side by side, of 150 pixels: two parts of different sizes."""
    x, residual, other, bias = noise(2, 150, 32), noise(2, 150, 32), noise(2, 150, 16), noise(32)
    weight, shift, offset = noise(48), noise(48), noise(48)

    def compute() -> list[Tensor]:
        total, moments = add_moments(x, bias, residual)
        same, other_moments = add_moments(other)
        bare, none = add_moments(x, bias, moments=False)
        assert same is other
        assert none is None
        assert moments is not None
        assert other_moments is not None
        numbers = coefficients([moments, other_moments], weight, shift, 8, 1e-5, offset)
        return [total, bare, affine([total, other], numbers, True), affine([total, other], numbers, False)]

    return compute


def upsampling() -> Callable[[], list[Tensor]]:
    x, bias, weight = noise(2, 4 * 5, 4 * 32), noise(32), noise(32)

    def compute() -> list[Tensor]:
        image, moments = interleave_moments(x, bias, 6, 8)
        return [image, coefficients([moments], weight, bias, 4, 1e-6)]

    return compute


def layer_norm() -> Callable[[], list[Tensor]]:
    norm, x, branch = norms(), noise(6, 5, CHANNELS), noise(6, 5, CHANNELS)
    constant, ahead, position = noise(CHANNELS), noise(CHANNELS), noise(3, CHANNELS)

    def compute() -> list[Tensor]:
        out = (torch.full_like(x, torch.nan), torch.full_like(x, torch.nan))
        return [
            *add_layer_norm(x, norm),
            *add_layer_norm(x, norm, branch, scale=3.0, position=position),
            *add_layer_norm(x, norm, branch, constant=constant, ahead=ahead, out=out),
        ]

    return compute


def frames() -> Callable[[], list[Tensor]]:
    few, many = noise(2 * 5, 27, 3 * CHANNELS), noise(40, 3, 3 * CHANNELS)
    return lambda: [frame_attention(few, 5, 2), frame_attention(many, 40, 4)]


def joining() -> Callable[[], list[Tensor]]:
    products, keys, values = noise(3, 21, 3 * CHANNELS), noise(1, 50, CHANNELS), noise(1, 50, CHANNELS)
    return lambda: list(joined(products[1:], keys, values))


def gate() -> Callable[[], list[Tensor]]:
    x, weight, bias = noise(1, 150, CHANNELS), noise(2 * 72, CHANNELS) / 10, noise(2 * 72)
    halves = [x.half(), interleaved(weight).half(), interleaved(bias).half()]
    return lambda: [geglu(x, interleaved(weight), interleaved(bias)), geglu(*halves).float()]


def main() -> None:
    errors = {}
    with torch.inference_mode():
        for case in (group_norm, upsampling, layer_norm, frames, joining, gate):
            compute = case()
            ours = compute()
            launch.INTERPRETED = False
            plain = compute()
            launch.INTERPRETED = True
            errors[case.__name__] = [float((a - b).norm() / b.norm()) for a, b in zip(ours, plain, strict=True)]
    sys.stdout.write(json.dumps(errors))


if __name__ == "__main__":
    main()
