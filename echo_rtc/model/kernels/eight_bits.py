"""Eight-bit floating point (e4m3): three bits of mantissa, so each number is off by up to 1/16, and twice the speed of
half precision on the multipliers of Ada and Hopper GPUs. Lossy.

A tensor is stored times a factor that puts its values well inside the format's range; products are divided by it again.
Because the format floats, the factor need not fit closely: it is fixed beforehand, from what is known of the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FORMAT = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number that the format has; what is larger is stored as that."""

_USUAL = 16.0
"""Where a normalised activation's standard deviation is put: 28 times as much still fits."""


def quantise(x: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """x times ``factor`` in eight bits."""
    return (x.float() * factor).clamp(-LARGEST, LARGEST).to(FORMAT)


def factor_of_norm(norm: nn.Module) -> float:
    """The factor, a power of two, for what comes out of a group or layer norm."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return _power_of_two(_USUAL / max(float(weight.abs().max()), 1e-6))


def _power_of_two(x: float) -> float:
    return 2.0 ** math.floor(math.log2(x))


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight (N, K) in eight bits: ``values`` are the weight's times a factor; ``scale``, a float32 number on the
    device and the same in ``number``, undoes that factor and the input's in a product."""

    values: Tensor
    scale: Tensor
    number: float

    @classmethod
    def of(cls, weight: Tensor, input_factor: float) -> Weight:
        """Quantises a weight whose input comes times ``input_factor``."""
        factor = _power_of_two(LARGEST / 2 / max(float(weight.abs().max()), 1e-12))
        number = 1 / (factor * input_factor)
        return cls(quantise(weight, factor), torch.tensor(number, device=weight.device), number)


def product(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x (N, L, K) in eight bits by a weight (M, K), plus bias (M,) -> (N, L, M) of ``dtype``."""
    rows = x.flatten(0, 1)
    if not x.is_cuda:
        y = rows.float() @ weight.values.float().t() * weight.scale
        y = (y if bias is None else y + bias.float()).to(dtype)
    else:
        one = torch.ones_like(weight.scale)
        y = torch._scaled_mm(
            rows, weight.values.t(), weight.scale, one, bias=bias, out_dtype=dtype, use_fast_accum=True
        )
    return y.view(*x.shape[:2], -1)
