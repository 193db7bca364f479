"""The fused networks against the plain ones, and our kernels against their plain versions."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from echo_rtc.model.attention import AttentionChoice
from echo_rtc.model.blocks import image_of, tokens_of
from echo_rtc.model.fused import DoubledConvolution, FusedDenoiser, picture
from echo_rtc.model.fused_decoder import FusedDecoder
from echo_rtc.model.kernels.convolution import EightBitConvolution
from echo_rtc.model.kernels.eight_bits import factor_of_norm, quantise
from echo_rtc.model.kl_autoencoder import KLAutoencoder
from echo_rtc.model.unet3d import ClipConditions
from tests.model.small import AUDIO_WIDTH, TOKENS, denoising_unet, motion_config, randomise, reference_unet

FRAMES = 5
ROOT = Path(__file__).parents[2]


def relative_error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [(8, 8), (6, 16), (9, 7)], ids=["square", "wide", "odd"])
@pytest.mark.parametrize("shift", [0, 3, 7])
@pytest.mark.parametrize("guided", [True, False])
@torch.inference_mode()
def test_both_halves_are_those_of_the_plain_network(size: tuple[int, int], shift: int, guided: bool) -> None:
    network, reference = denoising_unet(layers_per_block=2), reference_unet(layers_per_block=2)
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, FRAMES, *size, generator=generator)
    audio = network.project_audio(torch.randn(1, FRAMES, TOKENS, AUDIO_WIDTH, generator=generator))
    pose = torch.randn(1, 32, FRAMES, *size, generator=generator)
    bank = network.project_bank(reference(torch.randn(1, 4, *size, generator=generator)))
    given = ClipConditions(audio, bank, pose)
    expected = network.halves(latents, 321, given, shift, guided)
    fused = FusedDenoiser(network, AttentionChoice())
    for _ in range(2):  # the second time, what is computed once is there
        ours = fused.halves(latents, 321, given, shift, guided)
        assert ours.shape == expected.shape == (2 if guided else 1, 4, FRAMES, *size)
        for half, one in zip(ours, expected, strict=True):
            assert relative_error(half, one) < 1e-5


@torch.inference_mode()
def test_conditions_may_be_left_out_and_timesteps_differ() -> None:
    network = denoising_unet(motion_config(use_motion_module=False))
    fused = FusedDenoiser(network, AttentionChoice())
    latents = torch.randn(1, 4, 2, 8, 8)
    for timestep in (999, 167):
        expected = network.halves(latents, timestep, ClipConditions(), 0, True)
        ours = fused.halves(latents, timestep, ClipConditions(), 0, True)
        assert relative_error(ours, expected) < 1e-5


@torch.inference_mode()
def test_the_plain_network_stays_usable() -> None:
    network = denoising_unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    FusedDenoiser(network, AttentionChoice())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
@torch.inference_mode()
def test_the_decoder_is_diffusers(size: tuple[int, int]) -> None:
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()
    randomise(theirs)
    ours = KLAutoencoder(dict(theirs.config))
    ours.load_state_dict(theirs.state_dict())
    latents = torch.randn(3, 4, *size)
    expected = ours.decode(latents)
    assert relative_error(FusedDecoder(ours, AttentionChoice()).decode(latents), expected) < 1e-5


@pytest.mark.parametrize("less", [0, 1])
@torch.inference_mode()
def test_a_doubled_image_is_convolved_in_fewer_operations(less: int) -> None:
    conv = torch.nn.Conv2d(16, 32, 3, padding=1)
    x = torch.randn(2, 16, 5, 6)
    size = (10 - less, 12)
    expected = conv(torch.nn.functional.interpolate(x, size=size, mode="nearest"))
    ours = DoubledConvolution(conv)(picture(tokens_of(x), 5, 6), size)
    assert (ours.height, ours.width) == size
    assert relative_error(ours.tokens, tokens_of(expected)) < 1e-6


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_compute_what_their_plain_versions_do() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.model.interpreted"], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert child.returncode == 0, child.stderr
    errors = json.loads(child.stdout)
    assert set(errors) == {"group_norm", "upsampling", "layer_norm", "frames", "joining", "gate"}
    for name, values in errors.items():
        assert max(values) < 2e-3 if name == "gate" else max(values) < 1e-5, (name, values)


@torch.inference_mode()
def test_eight_bits_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number is off by up to 1/16; the errors of many average out. Convolutions count as well."""
    network, reference = denoising_unet(block_out_channels=[128, 32]), reference_unet(block_out_channels=[128, 32])
    size, generator = (16, 8), torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, FRAMES, *size, generator=generator)
    audio = network.project_audio(torch.randn(1, FRAMES, TOKENS, AUDIO_WIDTH, generator=generator))
    bank = network.project_bank(reference(torch.randn(1, 4, *size, generator=generator)))
    given = ClipConditions(audio, bank)
    expected = network.halves(latents, 321, given, 3, True)
    convolved: list[int] = []
    plain = EightBitConvolution._plain

    def count(self: EightBitConvolution, x: Tensor, *rest: Any) -> Any:
        convolved.append(x.element_size())
        return plain(self, x, *rest)

    monkeypatch.setattr(EightBitConvolution, "_plain", count)
    ours = FusedDenoiser(network, AttentionChoice(), eight_bits=True).halves(latents, 321, given, 3, True)
    assert 1e-3 < relative_error(ours, expected) < 0.1
    assert convolved
    assert set(convolved) == {1}


@torch.inference_mode()
def test_an_eight_bit_convolution_is_near_and_has_its_moments() -> None:
    conv = torch.nn.Conv2d(32, 128, 3, padding=1)
    x, residual = torch.randn(2, 8 * 16, 32), torch.randn(2, 8 * 16, 128)
    assert EightBitConvolution.suits(conv, 8, 16)
    assert not EightBitConvolution.suits(conv, 8, 8), "fewer than 128 pixels"
    assert not EightBitConvolution.suits(conv, 9, 16), "no rectangle of 128 pixels divides it"
    assert conv.bias is not None
    total, moments = EightBitConvolution(conv, 16.0)(quantise(x, 16.0), 8, 16, conv.bias, residual)
    expected = tokens_of(conv(image_of(x, 8, 16))) + residual
    assert relative_error(total, expected) < 0.05
    assert torch.allclose(moments.parts[:, 0, 0], total.mean(1), atol=1e-5)


@torch.inference_mode()
def test_eight_bits_hold_what_is_far_too_large() -> None:
    stored = quantise(torch.tensor([1e6, -1e6, 3.0]), 2.0)
    assert stored.float().tolist() == [448.0, -448.0, 6.0]
    norm = torch.nn.LayerNorm(8)
    assert factor_of_norm(norm) == 16.0
    norm.weight.fill_(100.0)
    assert factor_of_norm(norm) == 0.125
