"""The pixel-shuffle autoencoder: shapes, scale, normalisation, and configurations that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from echo_rtc.model.autoencoder import PATCH, AutoencoderConfig, PixelShuffleAutoencoder, ResidualBlock


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (AutoencoderConfig(), 16),
        (AutoencoderConfig(8, (16, 24), (24, 16), (1, 1)), 8),
        (AutoencoderConfig(4, (8,), (8,), (0,)), 4),
    ],
)
def test_sides_shrink_by_the_scale_and_grow_back(config: AutoencoderConfig, scale: int) -> None:
    model = PixelShuffleAutoencoder(config)
    assert model.scale == scale
    images = torch.rand(2, 3, 2 * scale, 3 * scale)
    with torch.inference_mode():
        latents = model.encode(images)
        restored = model.decode(latents)
    assert latents.shape == (2, model.latent_channels, 2, 3)
    assert restored.shape == images.shape


def test_the_configuration_makes_the_same_network_again() -> None:
    model = PixelShuffleAutoencoder(AutoencoderConfig(8, (16, 24), (32, 16), (2, 1)))
    again = PixelShuffleAutoencoder(AutoencoderConfig.from_mapping(model.config))
    again.load_state_dict(model.state_dict())
    images = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(model.decode(model.encode(images)), again.decode(again.encode(images)))


def test_latents_are_normalised_by_channel_and_back() -> None:
    torch.manual_seed(0)
    model = PixelShuffleAutoencoder(AutoencoderConfig(3, (8, 8), (8, 8), (1, 1)))
    images = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        plain = model.encode(images)
        restored = model.decode(plain)
        model.latent_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
        model.latent_std.copy_(torch.tensor([2.0, 0.5, 4.0]))
        latents = model.encode(images)
        for channel, (mean, std) in enumerate(((1.0, 2.0), (-2.0, 0.5), (0.5, 4.0))):
            assert torch.allclose(latents[:, channel], (plain[:, channel] - mean) / std, atol=1e-6)
        assert torch.allclose(model.decode(latents), restored, atol=1e-5)
    assert {"latent_mean", "latent_std"} <= set(model.state_dict())


def test_a_residual_block_starts_as_the_identity_plus_a_bias() -> None:
    block = ResidualBlock(4)
    x = torch.randn(1, 4, 5, 5)
    assert block.conv2.bias is not None
    assert torch.allclose(block(x), x + block.conv2.bias[None, :, None, None], atol=1e-6)


def test_each_pixel_of_a_patch_has_its_own_output() -> None:
    """The decoder's last layer writes blocks of pixels: one of its channels is one pixel of every block."""
    model = PixelShuffleAutoencoder(AutoencoderConfig(3, (8,), (8,), (0,)))
    last = model.decoder[-2]
    assert isinstance(last, torch.nn.Conv2d)
    with torch.inference_mode():
        before = model.decode(torch.zeros(1, 3, 2, 2))
        assert last.bias is not None
        last.bias[5] += 1.0  # red, second row, second column
        change = model.decode(torch.zeros(1, 3, 2, 2)) - before
    assert change[0, 0, 1::PATCH, 1::PATCH].flatten().tolist() == pytest.approx([1.0] * 4)
    assert change.abs().sum().item() == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"latent_chanels": 4}, "autoencoder: unknown key 'latent_chanels'; known are latent_channels"),
        ({"encoder_channels": [8, 8]}, r"encoder_channels \(8, 8\).* must have the same number of levels"),
        ({"encoder_channels": [], "decoder_channels": [], "decoder_blocks": []}, "must have the same number of levels"),
    ],
)
def test_configurations_that_cannot_be(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig.from_mapping(mapping)


def test_gradients_reach_the_image_and_every_layer() -> None:
    model = PixelShuffleAutoencoder(AutoencoderConfig(4, (8, 8), (8, 8), (1, 1)))
    for name, parameter in model.named_parameters():
        if name.endswith("conv2.weight"):
            torch.nn.init.normal_(parameter)
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    model.decode(model.encode(images)).square().mean().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
