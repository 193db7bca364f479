"""Layers in 8-bit integers against the same layers in floating point, and a generator that changes between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.errors import SettingsError
from echo_rtc.model import integers
from echo_rtc.model.autoencoder import ResidualBlock
from echo_rtc.model.blocks import GEGLU, Pointwise, ShiftedConv2d
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings
from echo_rtc.model.integers import Integers, Levels, integer_weight, watched, weight_limit
from tests.model.small import MINI_FORMAT
from tests.model.test_generator import luma_difference, prepared, request

LEAST_DB = {127: 33.0, 63: 30.0}
"""How near layers come with weights of 8 and of 7 bits."""


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    """The limit is found out once, with PyTorch's own warning that tensors of bytes are to go."""
    weight_limit()
    with torch.inference_mode():
        yield


def decibels(wanted: Tensor, made: Tensor) -> float:
    """Signal against error."""
    return float(10 * torch.log10(wanted.square().mean() / (wanted - made).square().mean()))


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


class Zoo(nn.Module):
    """A layer of each kind that has an integer form."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(24, 40, 3, stride=2, padding=1)
        self.block = ResidualBlock(40)
        nn.init.normal_(self.block.conv2.weight, std=0.05)
        self.pointwise = Pointwise(40, 48)
        self.shifted = ShiftedConv2d(48, 32, 3, padding=1)
        self.gated = GEGLU(32, 64)
        self.linear = nn.Linear(64, 16, bias=False)
        self.time = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shifted(self.pointwise(self.block(self.conv(x))), torch.ones(32))
        y = self.linear(self.gated(y.flatten(2).transpose(1, 2)))
        out: Tensor = y + self.time(y.mean((0, 1))[None])
        return out


@pytest.mark.parametrize("limit", [127, 63])
def test_all_kinds_of_layers_are_near(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = min(limit, weight_limit())
    monkeypatch.setattr(integers, "weight_limit", lambda: limit)
    zoo, x, seen = Zoo(), image(2, 24, 24, 24), integers.Seen()
    wanted = zoo(x)
    with watched([zoo], seen):
        zoo(x)
    assert zoo.time not in seen, "a few vectors are not worth it"
    both = Integers([zoo], seen)
    both.use(True)
    assert not any(isinstance(layer, nn.Linear) for layer in (zoo.linear, zoo.gated, zoo.pointwise))
    assert decibels(wanted, zoo(x)) > LEAST_DB[limit]
    both.use(False)
    assert torch.equal(zoo(x), wanted)


@pytest.mark.parametrize("by_library", [True, False])
def test_bytes_keep_zero_and_stop_at_the_ends(by_library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not by_library:
        monkeypatch.setattr(integers, "_QUANTISE", None)
    levels = Levels.between(-1.0, 4.1)
    x = image(1, 8, 4, 4)
    made = levels.bytes_of(x)
    assert (made.dtype, made.shape, made.stride()) == (torch.uint8, x.shape, x.stride())
    back = (made.float() - levels.zero) * levels.scale
    assert float((back - x.clamp(-1.0, 4.1)).abs().max()) < 0.51 * levels.scale
    ends = levels.bytes_of(torch.tensor([[-9.0, 0.0, 9.0, 1.0]]))
    assert ends.tolist() == [[0, levels.zero, 255, levels.zero + 50]]


def test_weights_have_a_scale_for_each_channel() -> None:
    weight = torch.tensor([[0.25, -1.0], [0.0, 0.0], [200.0, 100.0]])
    made, scales = integer_weight(weight, 63)
    assert made.tolist() == [[16, -63], [0, 0], [63, 32]]
    assert torch.allclose(made * scales[:, None], weight, atol=2.0)


@pytest.mark.parametrize("kind", ["IntegerLinear", "IntegerConv2d"])
def test_it_says_where_pytorch_has_no_such_layers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> nn.Module:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'q..._prepack'")

    monkeypatch.setattr(integers, kind, missing)
    with pytest.raises(SettingsError, match="dtype is int8, but this build of PyTorch has no 8-bit layers of oneDNN"):
        weight_limit.__wrapped__()


def test_a_generator_renders_in_integers_when_it_is_told_to() -> None:
    floats, told = prepared(), prepared(dtype="int8")
    wanted, made = (generator.generate(request()) for generator in (floats, told))
    assert 0 < luma_difference(wanted, made) < 6
    assert told.settings.dtype == "int8"
    told.use_floats()
    assert np.array_equal(told.generate(request()).frames.y, wanted.frames.y)
    assert told.settings.dtype == "float32"
    told.use_integers("anna")
    assert np.array_equal(told.generate(request()).frames.y, made.frames.y)


def test_int8_is_refused_beside_what_it_does_not_go_with() -> None:
    with pytest.raises(SettingsError, match="compile_unet is set, but dtype is int8"):
        GeneratorSettings(format=MINI_FORMAT, dtype="int8", compile_unet=True)
    generator = ClipGenerator.__new__(ClipGenerator)
    generator._integers = None
    generator.settings = replace(GeneratorSettings(format=MINI_FORMAT, dtype="float16"), device="cuda:0")
    with pytest.raises(SettingsError, match="dtype is int8, which is for the CPU, but the device is cuda:0"):
        generator.use_integers("anna")


def test_swish_of_a_convolution_is_between_the_bytes() -> None:
    conv = nn.Conv2d(16, 32, 3, padding=1).requires_grad_(False)
    x = image(2, 16, 12, 12)
    wanted = F.silu(conv(x))
    layer = integers.IntegerConv2d(conv, Levels.between(float(x.min()), float(x.max())), weight_limit())
    out = Levels.between(float(wanted.min()), float(wanted.max()))
    made = layer.activated(layer.levels.bytes_of(x), out)
    assert decibels(wanted, (made.float() - out.zero) * out.scale) > LEAST_DB[weight_limit()]
