"""8-bit integers for the layers that cost a CPU most, by oneDNN: for processors that multiply no bfloat16.

What a layer is given becomes unsigned bytes, with one scale and zero point that a few clips have shown to fit; weights
become signed bytes, with a scale for each output channel; sums are exact, and results float32. Attention, norms and
what happens once a clip stay as they are. Knows layers, and neither clips nor avatars.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.errors import SettingsError
from echo_rtc.model.autoencoder import ResidualBlock
from echo_rtc.model.blocks import GEGLU, Pointwise, ShiftedConv2d, image_of, tokens_of

LEAST_ROWS = 64
"""Layers that are given fewer vectors than this (those of the timestep) cost nothing, and stay."""

MARGIN = 1.1
"""How much wider the range of a layer is taken than what was seen: other avatars and voices go a little further."""

_BYTE = 255

_QUANTISE: Callable[..., Tensor] | None = getattr(torch, "quantize_per_tensor", None)
"""PyTorch's own, a third of the time of plain arithmetic; it is to be removed from PyTorch one day."""


@cache
def weight_limit() -> int:
    """The largest weight, as an integer: 127, or 63 where the processor adds two products of bytes in 16 bits, which
    would overflow. Raises SettingsError where PyTorch cannot multiply bytes here."""
    width = 64
    layer = nn.Linear(width, width, bias=False).requires_grad_(False)
    layer.weight.fill_(127.0)
    given = torch.full((width, width), float(_BYTE))
    try:
        with warnings.catch_warnings():
            # That tensors of bytes are to go: once, at the first of them.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            made = IntegerLinear(layer, Levels(1.0, 0), 127)(given)
            conv = nn.Conv2d(width, width, 1).requires_grad_(False)
            IntegerConv2d(conv, Levels(1.0, 0), 127)(given.view(1, width, width, 1))
    except (AttributeError, RuntimeError) as error:
        raise SettingsError(
            "dtype is int8, but this build of PyTorch has no 8-bit layers of oneDNN; choose float32"
        ) from error
    return 127 if float(made[0, 0]) == 127.0 * _BYTE * width else 63


@dataclass(frozen=True, slots=True)
class Levels:
    """How numbers become bytes: number / ``scale`` + ``zero``, rounded, cut off at 0 and 255."""

    scale: float
    zero: int

    @classmethod
    def between(cls, low: float, high: float) -> Levels:
        """For numbers from ``low`` to ``high``, with zero among them, which is exact."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max(high - low, 1e-6) / _BYTE
        return cls(scale, round(-low / scale))

    def bytes_of(self, x: Tensor) -> Tensor:
        """float32 -> uint8, of the same shape and layout."""
        if _QUANTISE is None:
            shifted = torch.add(x.new_tensor(float(self.zero)), x, alpha=1 / self.scale)
            return shifted.round_().clamp_(0, _BYTE).to(torch.uint8)
        typed = _QUANTISE(x, self.scale, self.zero, torch.quint8)
        # The bytes of a quantised tensor without the copy that int_repr() makes.
        return torch.empty(0, dtype=torch.uint8).set_(typed.untyped_storage(), 0, typed.size(), typed.stride())


def integer_weight(weight: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """A weight (O, ...) as int8 of at most ``limit``, and the scales (O,) that give it back."""
    scales = weight.float().flatten(1).abs().amax(1).clamp(min=1e-12) / limit
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight / scales.view(shape)).round().to(torch.int8), scales


class IntegerConv2d(nn.Module):
    """A convolution without groups: (N, C, h, w) float32 -> (N, C', h', w') float32, channels_last."""

    def __init__(self, conv: nn.Conv2d, levels: Levels, limit: int) -> None:
        super().__init__()
        self.levels = levels
        self.places: tuple[list[int], list[int], list[int]] = (
            [int(n) for n in conv.stride],
            [int(n) for n in conv.padding],
            [int(n) for n in conv.dilation],
        )
        weight, self.scales = integer_weight(conv.weight, limit)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = conv.bias
        self.packed = torch.ops.onednn.qconv_prepack(
            weight.contiguous(memory_format=torch.channels_last),
            self.scales,
            levels.scale,
            levels.zero,
            *self.places,
            1,
            None,
        )

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """``shift`` (C',) is added to the bias."""
        return self._of(self.levels.bytes_of(x), shift, 1.0, 0, torch.float32, "none")

    def activated(self, given: Tensor, levels: Levels) -> Tensor:
        """What is ``given`` as bytes -> SiLU of the result, as bytes of ``levels``."""
        return self._of(given, None, levels.scale, levels.zero, torch.uint8, "swish")

    def added(self, given: Tensor, x: Tensor) -> Tensor:
        """What is ``given`` as bytes -> the result on top of ``x``, which is overwritten."""
        out: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            given,
            *(self.levels.scale, self.levels.zero),
            *(self.packed, self.scales, self.zeros),
            x,
            self.bias,
            *self.places,
            1,
            *(1.0, 0, torch.float32),
            *(1.0, 0, "sum", 1.0, "none", [], ""),
        )
        return out

    def _of(
        self, given: Tensor, shift: Tensor | None, scale: float, zero: int, kind: torch.dtype, activation: str
    ) -> Tensor:
        bias = self.bias if shift is None else shift if self.bias is None else self.bias + shift
        out: Tensor = torch.ops.onednn.qconv_pointwise(
            given,
            *(self.levels.scale, self.levels.zero),
            *(self.packed, self.scales, self.zeros),
            bias,
            *self.places,
            1,
            *(scale, zero, kind, activation, [], ""),
        )
        return out


class IntegerLinear(nn.Module):
    """A linear layer: (..., C) float32 -> (..., C') float32."""

    def __init__(self, linear: nn.Linear | nn.Conv2d, levels: Levels, limit: int) -> None:
        super().__init__()
        self.levels = levels
        weight, self.scales = integer_weight(linear.weight.flatten(1), limit)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = linear.bias
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self.levels.bytes_of(x))

    def of(self, given: Tensor, activation: str = "none") -> Tensor:
        """What is ``given`` as bytes -> float32, after ``activation``."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            given,
            *(self.levels.scale, self.levels.zero),
            *(self.packed, self.scales, self.zeros),
            self.bias,
            *(1.0, 0, torch.float32, activation, [], "none" if activation == "gelu" else ""),
        )
        return out


class IntegerPointwise(IntegerLinear):
    """A 1x1 convolution, of images or of tokens, as ``blocks.Pointwise``."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return super().forward(x)
        return image_of(super().forward(tokens_of(x)), *x.shape[2:])


class IntegerGEGLU(nn.Module):
    """A gated linear layer, as ``blocks.GEGLU``: both halves are multiplied from the same bytes."""

    def __init__(self, layer: GEGLU, levels: Levels, limit: int) -> None:
        super().__init__()
        halves = []
        for weight, bias in zip(layer.proj.weight.chunk(2), layer.proj.bias.chunk(2), strict=True):
            half = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            half.weight, half.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            halves.append(IntegerLinear(half, levels, limit))
        self.value, self.gate = halves

    def forward(self, x: Tensor) -> Tensor:
        given = self.value.levels.bytes_of(x)
        gated: Tensor = self.value.of(given).mul_(self.gate.of(given, "gelu"))
        return gated


class IntegerBlock(nn.Module):
    """The autoencoder's residual block; what is between its convolutions are bytes only."""

    def __init__(self, block: ResidualBlock, levels: tuple[Levels, Levels], limit: int) -> None:
        super().__init__()
        self.conv1 = IntegerConv2d(block.conv1, levels[0], limit)
        self.conv2 = IntegerConv2d(block.conv2, levels[1], limit)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same tensor, changed."""
        given = self.conv1.levels.bytes_of(F.silu(x))
        return self.conv2.added(self.conv1.activated(given, self.conv2.levels), x)


Seen = dict[nn.Module, tuple[float, float]]
"""The smallest and the largest number that each layer was given."""


@contextmanager
def watched(roots: Sequence[nn.Module], seen: Seen) -> Iterator[None]:
    """While inside, what the layers of networks are given is noted in ``seen``."""

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        x: Tensor = given[0]
        channels = x.shape[-1] if isinstance(layer, nn.Linear) or x.dim() == 3 else x.shape[1]
        if x.numel() // channels < LEAST_ROWS:
            return
        low, high = (float(value) for value in torch.aminmax(x))
        before = seen.get(layer, (low, high))
        seen[layer] = (min(low, before[0]), max(high, before[1]))

    layers = [
        layer
        for root in roots
        for layer in root.modules()
        if type(layer) is nn.Linear or (type(layer) in (nn.Conv2d, ShiftedConv2d, Pointwise) and layer.groups == 1)
    ]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Integers:
    """The layers of networks in both forms, and which of them compute."""

    def __init__(self, roots: Sequence[nn.Module], seen: Seen) -> None:
        """Makes the integer form of the layers that were ``seen`` at work. Raises SettingsError as
        :func:`weight_limit` does."""
        limit = weight_limit()
        levels = {layer: Levels.between(MARGIN * low, MARGIN * high) for layer, (low, high) in seen.items()}
        self._places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        for root in roots:
            self._visit(root, levels, limit)

    def _visit(self, parent: nn.Module, levels: Mapping[nn.Module, Levels], limit: int) -> None:
        for name, layer in parent.named_children():
            made = _integer_form(layer, levels, limit)
            if made is None:
                self._visit(layer, levels, limit)
            else:
                self._places.append((parent, name, layer, made))

    def use(self, integers: bool) -> None:
        """Has the integer layers compute, or those of floating point."""
        for parent, name, floats, made in self._places:
            setattr(parent, name, made if integers else floats)


def _integer_form(layer: nn.Module, levels: Mapping[nn.Module, Levels], limit: int) -> nn.Module | None:
    """The integer form of a layer; None where it has none or was never at work."""
    if isinstance(layer, ResidualBlock):
        pair = (levels.get(layer.conv1), levels.get(layer.conv2))
        return None if pair[0] is None or pair[1] is None else IntegerBlock(layer, (pair[0], pair[1]), limit)
    if isinstance(layer, GEGLU):
        return IntegerGEGLU(layer, levels[layer.proj], limit) if layer.proj in levels else None
    if layer not in levels:
        return None
    if isinstance(layer, Pointwise):
        return IntegerPointwise(layer, levels[layer], limit)
    if isinstance(layer, nn.Conv2d):
        return IntegerConv2d(layer, levels[layer], limit)
    return IntegerLinear(layer, levels[layer], limit) if isinstance(layer, nn.Linear) else None
