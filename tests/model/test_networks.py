"""The networks: the published names, diffusers' UNet as an independent oracle, and what training needs of them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from echo_rtc.model.blocks import GroupNorm, Pointwise
from echo_rtc.model.config import PUBLISHED
from echo_rtc.model.motion import FrameAttention, MotionModule, frame_sinusoid
from echo_rtc.model.pose_encoder import PoseEncoder
from echo_rtc.model.unet2d import ReferenceUNet
from echo_rtc.model.unet3d import DenoisingUNet, per_frame
from tests.model.small import AUDIO_WIDTH, DATA, TOKENS, denoising_unet, motion_config, reference_unet, unet_config

FRAMES = 5


def inputs(batch: int, size: tuple[int, int] = (8, 8), frames: int = FRAMES) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 4, F, h, w), audio tokens (B, F, T, W) and pose features (B, 32, F, h, w)."""
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(batch, 4, frames, *size, generator=generator),
        torch.randn(batch, frames, TOKENS, AUDIO_WIDTH, generator=generator),
        torch.randn(batch, 32, frames, *size, generator=generator),
    )


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((ours - expected).norm() <= tolerance * expected.norm())


# ------------------------------------------------------------------------------------------ the published checkpoints


def published() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {
            "reference_unet": ReferenceUNet(PUBLISHED["reference_unet"]),
            "denoising_unet": DenoisingUNet(PUBLISHED["denoising_unet"], PUBLISHED["denoising_unet_additional"]),
            "pose_encoder": PoseEncoder({"block_out_channels": [16, 32, 96, 256]}),
        }


def test_full_size_networks_have_the_published_parameters() -> None:
    shapes = json.loads(gzip.decompress((DATA / "state_dict_shapes.json.gz").read_bytes()))
    for name, network in published().items():
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes[name], name


# ------------------------------------------------------------------------- diffusers' 2D UNet as an independent oracle

KINDS: list[dict[str, Any]] = [
    {},
    {"layers_per_block": 2, "block_out_channels": [32, 64], "attention_head_dim": 8},
    {
        "block_out_channels": [16, 32, 32, 48],
        "attention_head_dim": [2, 4, 8, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
]


def oracle(ours: nn.Module, kind: dict[str, Any], audio_scale: float) -> UNet2DConditionModel:
    """diffusers' UNet with our parameters; its cross-attention's output is multiplied by ``audio_scale``."""
    config = unet_config(**kind)
    levels = len(config["block_out_channels"])
    config.setdefault("down_block_types", ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"])
    config.setdefault("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1))
    theirs = UNet2DConditionModel(**config).eval()
    report = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert all(".motion_modules." in key for key in report.unexpected_keys)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".attn2.to_out.0." in name:
                parameter.mul_(audio_scale)
    return theirs


@pytest.mark.parametrize("kind", KINDS, ids=["three levels", "two levels", "mixed blocks"])
@pytest.mark.parametrize("size", [(8, 8), (6, 16), (9, 7)], ids=["square", "wide", "odd"])
@torch.inference_mode()
def test_bank_is_what_diffusers_blocks_see(kind: dict[str, Any], size: tuple[int, int]) -> None:
    ours = reference_unet(**kind)
    theirs = oracle(ours, kind, audio_scale=0.0)
    seen: dict[str, Tensor] = {}
    for name, module in theirs.named_modules():
        if name.endswith(".transformer_blocks.0.norm1"):
            key = name.removesuffix(".norm1")
            module.register_forward_hook(lambda _module, _given, out, key=key: seen.__setitem__(key, out))
    latents = torch.randn(2, 4, *size)
    theirs(latents, 0, torch.zeros(2, 1, AUDIO_WIDTH))
    bank = ours(latents)
    assert bank.keys() == seen.keys()
    for name, value in bank.items():
        assert close(value, seen[name]), name


@pytest.mark.parametrize("kind", KINDS, ids=["three levels", "two levels", "mixed blocks"])
@pytest.mark.parametrize("size", [(8, 8), (6, 16), (9, 7)], ids=["square", "wide", "odd"])
@torch.inference_mode()
def test_without_motion_a_frame_is_that_of_diffusers_unet(kind: dict[str, Any], size: tuple[int, int]) -> None:
    ours = denoising_unet(motion_config(use_motion_module=False), **kind)
    theirs = oracle(ours, kind, audio_scale=3.0)
    sample, audio, _pose = inputs(batch=1, size=size)
    expected = theirs(sample[0].transpose(0, 1), 321, audio[0]).sample
    assert close(ours(sample, 321, audio, None, None)[0].transpose(0, 1), expected)


@torch.inference_mode()
def test_reference_joins_the_keys_of_self_attention() -> None:
    """Against attention written out for one block, whose input and output are seen from outside."""
    network = denoising_unet(motion_config(use_motion_module=False))
    block = next(network.transformer_blocks())
    y = block.norm1(torch.randn(FRAMES, 64, 32))
    bank = torch.randn(1, 40, 32)
    context = torch.cat((y, bank.expand(FRAMES, -1, -1)), dim=1)
    heads = []
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        q = y @ block.attn1.to_q.weight[part].T
        k, v = context @ block.attn1.to_k.weight[part].T, context @ block.attn1.to_v.weight[part].T
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v)
    expected = block.attn1.to_out[0](torch.cat(heads, dim=-1))
    keys, values = block.attn1.to_k(bank), block.attn1.to_v(bank)
    joined = block.attn1.attend(
        block.attn1.to_q(y),
        torch.cat((block.attn1.to_k(y), per_frame(keys, FRAMES, FRAMES)), dim=1),
        torch.cat((block.attn1.to_v(y), per_frame(values, FRAMES, FRAMES)), dim=1),
    )
    assert close(joined, expected)


# ------------------------------------------------------------------------------------------------------- conditions


@torch.inference_mode()
def test_the_unconditional_half_has_no_audio_pose_or_bank() -> None:
    network, (sample, audio, pose) = denoising_unet(), inputs(batch=2)
    zeros = network(sample, 100, torch.zeros_like(audio), torch.zeros_like(pose), None)
    assert close(network(sample, 100, None, None, None), zeros, 1e-5)
    assert not close(network(sample, 100, audio, None, None), zeros, 1e-2)
    assert not close(network(sample, 100, None, pose, None), zeros, 1e-2)


@torch.inference_mode()
def test_projected_conditions_give_the_same_as_raw_ones() -> None:
    network, (sample, audio, pose) = denoising_unet(), inputs(batch=2)
    bank = reference_unet()(torch.randn(2, 4, 8, 8))
    raw = network(sample, 100, audio, pose, bank)
    ready = network(sample, 100, network.project_audio(audio), pose, network.project_bank(bank))
    assert torch.equal(raw, ready)


@torch.inference_mode()
def test_a_batch_is_its_samples_one_by_one() -> None:
    """Each with its own timestep, audio, pose and identity."""
    network, (sample, audio, pose) = denoising_unet(), inputs(batch=3, size=(4, 6))
    bank = reference_unet()(torch.randn(3, 4, 4, 6))
    timesteps = torch.tensor([999, 500, 3])
    together = network(sample, timesteps, audio, pose, bank)
    for index in range(3):
        one = slice(index, index + 1)
        own = {name: value[one] for name, value in bank.items()}
        alone = network(sample[one], timesteps[index], audio[one], pose[one], own)
        assert close(together[one], alone)
    assert not close(together, network(sample, 500, audio, pose, bank), 1e-2)


@torch.inference_mode()
def test_one_identity_serves_a_whole_batch() -> None:
    network, (sample, audio, pose) = denoising_unet(), inputs(batch=2)
    bank = reference_unet()(torch.randn(1, 4, 8, 8))
    doubled = {name: value.expand(2, -1, -1) for name, value in bank.items()}
    assert close(network(sample, 9, audio, pose, bank), network(sample, 9, audio, pose, doubled))


@torch.inference_mode()
def test_conditions_of_another_batch_are_refused() -> None:
    network, (sample, _audio, _pose) = denoising_unet(), inputs(batch=2)
    with pytest.raises(ValueError, match="3 identities for a batch of 2"):
        network(sample, 9, None, None, reference_unet()(torch.randn(3, 4, 8, 8)))
    with pytest.raises(ValueError, match="3 timesteps for a batch of 2"):
        network(sample, torch.tensor([1, 2, 3]), None, None, None)


@torch.inference_mode()
def test_a_shifted_window_is_shifted_frames() -> None:
    """The fast path moves the positions; the slow path moves the frames and all that goes with them."""
    network, (sample, audio, pose) = denoising_unet(), inputs(batch=1)
    bank = reference_unet()(torch.randn(1, 4, 8, 8))
    for shift in (0, 3, FRAMES, 2 * FRAMES + 1):
        entering = [(frame + shift) % FRAMES for frame in range(FRAMES)]
        moved = network(sample[:, :, entering], 50, audio[:, entering], pose[:, :, entering], bank)
        slow = torch.empty_like(moved)
        slow[:, :, entering] = moved
        assert close(network(sample, 50, audio, pose, bank, shift), slow)
    assert not close(network(sample, 50, audio, pose, bank, 1), network(sample, 50, audio, pose, bank), 1e-3)


# ----------------------------------------------------------------------------------------------------------- motion


def test_positions_continue_beyond_the_stored_table() -> None:
    stored = FrameAttention(32, MOTION)
    assert stored.pos_encoder is not None
    with torch.no_grad():
        stored.pos_encoder.pe.mul_(2)  # what is stored holds, whatever the formula says
    table = stored.pos_encoder(40)
    assert torch.equal(table[:32], 2 * frame_sinusoid(0, 32, 32))
    longer = frame_sinusoid(0, 40, 32)
    assert torch.allclose(table[32:], longer[32:])
    position, channel = 37, 6
    assert longer[position, channel].item() == pytest.approx(torch.sin(torch.tensor(37 * 10000 ** (-6 / 32))).item())
    assert longer[position, 7].item() == pytest.approx(torch.cos(torch.tensor(37 * 10000 ** (-6 / 32))).item())


MOTION = denoising_unet().motion


@torch.inference_mode()
def test_more_frames_than_stored_positions_are_told_apart() -> None:
    network = denoising_unet(block_out_channels=[32], down_block_types=None, up_block_types=None)
    sample = torch.randn(1, 4, 1, 2, 2).expand(-1, -1, 40, -1, -1)
    out = network(sample, 10, None, None, None)
    assert out.shape == sample.shape
    assert not torch.allclose(out[:, :, 33], out[:, :, 39], atol=1e-4)


@torch.inference_mode()
def test_frames_meet_in_motion_modules_only() -> None:
    sample, audio, pose = inputs(batch=1)
    other = sample.clone()
    other[:, :, 0] += 1
    still = denoising_unet(motion_config(use_motion_module=False))
    moving = denoising_unet()
    for network, meet in ((still, False), (moving, True)):
        a, b = network(sample, 10, audio, pose, None), network(other, 10, audio, pose, None)
        assert torch.allclose(a[:, :, 1:], b[:, :, 1:], atol=1e-5) is not meet


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {},
            {
                "down_blocks.0",
                "down_blocks.1",
                "down_blocks.2",
                "mid_block",
                "up_blocks.0",
                "up_blocks.1",
                "up_blocks.2",
            },
        ),
        ({"motion_module_resolutions": [1]}, {"down_blocks.0", "mid_block", "up_blocks.2"}),
        ({"motion_module_decoder_only": True}, {"mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"}),
        (
            {"motion_module_mid_block": False, "motion_module_resolutions": [2, 4]},
            {"down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1"},
        ),
        ({"use_motion_module": False}, set()),
    ],
)
def test_motion_modules_are_where_the_configuration_wants_them(changes: dict[str, Any], expected: set[str]) -> None:
    with torch.device("meta"):
        network = DenoisingUNet(unet_config(), motion_config(**changes))
    found = {name.partition(".motion_modules.")[0] for name, _ in network.named_modules() if ".motion_modules." in name}
    assert found == expected


def test_an_untrained_motion_module_changes_nothing() -> None:
    module = MotionModule(32, MOTION)
    x = torch.randn(FRAMES, 32, 4, 4)
    assert torch.equal(module(x, FRAMES, torch.arange(FRAMES)), x)


# --------------------------------------------------------------------------------------------------------- training


def test_gradients_reach_every_parameter_that_matters() -> None:
    """Of both UNets and the pose encoder, from a batch with two identities and two timesteps."""
    reference, network = reference_unet(), denoising_unet()
    encoder = PoseEncoder({"block_out_channels": [8, 16], "conditioning_embedding_channels": 32})
    with torch.no_grad():
        encoder.conv_out.weight.normal_(std=0.1)
    sample, audio, _pose = inputs(batch=2, size=(4, 4))
    drawn = torch.rand(2 * FRAMES, 3, 8, 8)
    pose = encoder(drawn).unflatten(0, (2, FRAMES)).transpose(1, 2)
    bank = reference(torch.randn(2, 4, 4, 4))
    network(sample, torch.tensor([10, 900]), audio, pose, bank).square().mean().backward()

    def idle(module: nn.Module) -> list[str]:
        return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]

    assert idle(network) == []
    assert idle(encoder) == []
    last = f"up_blocks.2.attentions.1.{'transformer_blocks.0.'}"
    after_the_last_norm1 = [
        *(f"{last}attn1.{part}" for part in ("to_q.weight", "to_k.weight", "to_v.weight")),
        *(
            f"{last}{part}.{kind}"
            for part in ("attn1.to_out.0", "norm3", "ff.net.0.proj", "ff.net.2")
            for kind in ("weight", "bias")
        ),
        "up_blocks.2.attentions.1.proj_out.weight",
        "up_blocks.2.attentions.1.proj_out.bias",
    ]
    assert sorted(idle(reference)) == sorted(after_the_last_norm1)


def test_a_few_steps_of_training_follow_the_reference() -> None:
    """The denoiser learns to give back what only the bank tells."""
    torch.manual_seed(0)
    reference, network = reference_unet(block_out_channels=[32]), denoising_unet(block_out_channels=[32])
    latents = torch.randn(4, 4, 4, 4)
    target = latents[:, :, None].expand(-1, -1, 2, -1, -1)
    parameters = [*reference.parameters(), *network.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=2e-3)
    losses = []
    for _ in range(40):
        out = network(torch.zeros_like(target), 500, None, None, reference(latents))
        loss = (out - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ----------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_group_norm_is_exact_for_channels_last(size: tuple[int, int], mean: float) -> None:
    norm = GroupNorm(8, 32)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(6, 32, *size) + mean).contiguous(memory_format=torch.channels_last)
    expected = F.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    assert close(norm(x).double(), expected, 2e-5)
    assert close(norm(x.contiguous()).double(), expected, 2e-5)
    half = norm.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert close(half.double(), expected, 0.05 if mean else 0.01) or mean > 0


def test_group_norm_of_channels_last_has_the_right_gradient() -> None:
    norm = GroupNorm(4, 16).double()
    ours = torch.randn(2, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    theirs = ours.double().requires_grad_()
    ours.requires_grad_()
    weights = torch.randn(2, 16, 3, 3)
    (F.group_norm(theirs, 4, norm.weight, norm.bias, norm.eps) * weights).sum().backward()  # type: ignore[no-untyped-call]
    (norm.float()(ours) * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert close(ours.grad.double(), theirs.grad)


def test_pointwise_is_a_1x1_convolution() -> None:
    layer = Pointwise(8, 12)
    x = torch.randn(3, 8, 5, 4)
    assert close(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_pose_encoder_halves_as_often_as_it_has_widths() -> None:
    for widths, scale in (([4, 8], 2), ([16, 32, 96, 256], 8), ([4, 4, 8, 8, 8], 16)):
        encoder = PoseEncoder({"block_out_channels": widths, "conditioning_embedding_channels": 24})
        assert encoder.config.scale == scale
        assert encoder(torch.rand(2, 3, 48, 32)).shape == (2, 24, 48 // scale, 32 // scale)
