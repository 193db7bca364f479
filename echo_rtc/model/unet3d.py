"""The denoising UNet: latents of a clip's frames, given audio tokens, pose features and a reference bank.

Frames are folded into the batch, (B*F, C, h, w) channels_last, for every layer but the motion modules. Conditions are
arguments; what is left out (None) is the unconditional half of classifier-free guidance. Knows nothing of noise
schedules, of audio encoders or of how a bank is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from echo_rtc.model.blocks import (
    Attention,
    Downsample,
    FeedForward,
    GroupNorm,
    Pointwise,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    image_of,
    join,
    tokens_of,
    up_channels,
)
from echo_rtc.model.config import MotionConfig, UNetConfig
from echo_rtc.model.motion import MotionModule

AUDIO_SCALE = 3.0
"""How much the audio's cross-attention counts, by the published model."""


Pair = tuple[Tensor, Tensor]
"""Keys and values of one block."""


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values of one kind of condition for each transformer block: block name -> (keys, values).

    The denoising steps of a clip share them (audio, (B*F, T, C)), and all clips of an avatar (bank, (B, L, C)).
    """

    blocks: Mapping[str, Pair]


@dataclass(frozen=True, slots=True)
class ClipConditions:
    """What a clip is made from, each ready for every step: the audio's and the bank's keys and values, and the pose
    features (1, C0, F, h, w). None leaves a condition out."""

    audio: KeysValues | None = None
    bank: KeysValues | None = None
    pose: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """What every layer of one forward pass is told: the number of frames, at which positions they stand (F,), the
    timestep's embedding (1 or B, T), and the conditions."""

    frames: int
    order: Tensor
    time: Tensor
    audio: KeysValues | None
    bank: KeysValues | None

    def of(self, name: str) -> tuple[Pair | None, Pair | None]:
        """The keys and values of the bank and of the audio for the transformer block of that name."""
        return (
            None if self.bank is None else self.bank.blocks[name],
            None if self.audio is None else self.audio.blocks[name],
        )


class DenoisingBlock(nn.Module):
    """Self-attention that also looks at the reference, cross-attention to the audio, feed-forward; each added."""

    name = ""
    """The block's name in the bank, set by the UNet that owns it."""

    def __init__(self, width: int, heads: int, audio_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, audio_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, frames: int, bank: Pair | None, audio: Pair | None) -> Tensor:
        """x (B*F, L, C) -> (B*F, L, C)."""
        x = x + self.look(self.norm1(x), frames, bank)
        x = x + AUDIO_SCALE * self.listen(x, audio)
        x = x + self.ff(self.norm3(x))
        return x

    def look(self, y: Tensor, frames: int, bank: Pair | None) -> Tensor:
        """Attention of each frame over itself and, if there is one, over the bank: (B*F, L, C) -> (B*F, L, C)."""
        attention = self.attn1
        keys, values = attention.to_k(y), attention.to_v(y)
        if bank is not None:
            keys, values = (
                torch.cat((own, per_frame(seen, frames, len(own))), dim=1)  # (B*F, 2 L, C)
                for own, seen in zip((keys, values), bank, strict=True)
            )
        return attention.attend(attention.to_q(y), keys, values)

    def listen(self, x: Tensor, audio: Pair | None) -> Tensor:
        """Attention of each frame over its audio tokens: (B*F, L, C) -> (B*F, L, C), or (C,) without audio."""
        if audio is None:  # tokens of zeros have keys and values of zeros: only the output's bias is left
            return self.attn2.output_bias
        return self.attn2.attend(self.attn2.to_q(self.norm2(x)), *audio)


def per_frame(bank: Tensor, frames: int, total: int) -> Tensor:
    """(B, L, C) -> (B*F, L, C), a view where B is 1. Raises ValueError if the batch is not the sample's."""
    if len(bank) * frames != total and len(bank) != 1:
        raise ValueError(f"a bank of {len(bank)} identities for a batch of {total // frames}")
    expanded = bank[:, None].expand(-1, total // len(bank), -1, -1)
    return expanded.reshape(total, *bank.shape[1:]) if len(bank) > 1 else expanded[0]


class DenoisingTransformer(nn.Module):
    """A transformer block over the pixels of each frame, between two 1x1 convolutions."""

    def __init__(self, width: int, heads: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = GroupNorm(config.norm_groups, width, eps=1e-6)
        self.proj_in = Pointwise(width, width)
        self.transformer_blocks = nn.ModuleList([DenoisingBlock(width, heads, config.audio_width)])
        self.proj_out = Pointwise(width, width)

    @property
    def block(self) -> DenoisingBlock:
        block = self.transformer_blocks[0]
        assert isinstance(block, DenoisingBlock)
        return block

    def forward(self, x: Tensor, frames: int, bank: Pair | None, audio: Pair | None) -> Tensor:
        """x (B*F, C, h, w) -> (B*F, C, h, w)."""
        tokens = self.proj_in(tokens_of(self.norm(x)))
        tokens = self.block(tokens, frames, bank, audio)
        return x + image_of(self.proj_out(tokens), *x.shape[2:])


def attended(transformer: nn.Module, x: Tensor, given: Conditions) -> Tensor:
    """x through a transformer, with its own part of the conditions."""
    assert isinstance(transformer, DenoisingTransformer)
    y: Tensor = transformer(x, given.frames, *given.of(transformer.block.name))
    return y


def _transformers(count: int, config: UNetConfig, level: int) -> nn.ModuleList:
    width, heads = config.widths[level], config.heads[level]
    return nn.ModuleList([DenoisingTransformer(width, heads, config) for _ in range(count)])


def _motions(count: int, motion: MotionConfig, width: int) -> nn.ModuleList:
    return nn.ModuleList([MotionModule(width, motion) for _ in range(count)])


class DenoisingDown(nn.Module):
    """``layers`` times resnet, transformer, motion at one level, then half the sides unless it is the coarsest."""

    def __init__(self, config: UNetConfig, motion: MotionConfig, level: int) -> None:
        super().__init__()
        width, before = config.widths[level], config.widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            [ResnetBlock(before if layer == 0 else width, width, config) for layer in range(config.layers)]
        )
        self.attentions = _transformers(config.layers if config.down_attention[level] else 0, config, level)
        self.motion_modules = _motions(config.layers if motion.down[level] else 0, motion, width)
        last = level == len(config.widths) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(self, x: Tensor, skips: list[Tensor], given: Conditions) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, given.time)
            if self.attentions:
                x = attended(self.attentions[layer], x, given)
            if self.motion_modules:
                x = self.motion_modules[layer](x, given.frames, given.order)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class DenoisingMid(nn.Module):
    """Resnet, transformer, motion, resnet at the coarsest level."""

    def __init__(self, config: UNetConfig, motion: MotionConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.attentions = _transformers(1, config, len(config.widths) - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, width, config) for _ in range(2)])
        self.motion_modules = _motions(1 if motion.mid else 0, motion, width)

    def forward(self, x: Tensor, given: Conditions) -> Tensor:
        x = self.resnets[0](x, given.time)
        x = attended(self.attentions[0], x, given)
        for motion in self.motion_modules:
            x = motion(x, given.frames, given.order)
        out: Tensor = self.resnets[1](x, given.time)
        return out


class DenoisingUp(nn.Module):
    """``layers`` + 1 times resnet over the joined skip, transformer, motion, then twice the sides unless it is the
    finest level. ``index`` counts from the coarsest level."""

    def __init__(self, config: UNetConfig, motion: MotionConfig, index: int) -> None:
        super().__init__()
        level = len(config.widths) - 1 - index
        width = config.widths[level]
        channels = up_channels(config, index)
        self.resnets = nn.ModuleList([ResnetBlock(c, width, config) for c in channels])
        self.attentions = _transformers(len(channels) if config.up_attention[index] else 0, config, level)
        self.motion_modules = _motions(len(channels) if motion.up[index] else 0, motion, width)
        self.upsamplers = nn.ModuleList([Upsample(width)] if level else [])

    def forward(self, x: Tensor, skips: list[Tensor], given: Conditions) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            x = resnet(join(x, skips.pop()), given.time)
            if self.attentions:
                x = attended(self.attentions[layer], x, given)
            if self.motion_modules:
                x = self.motion_modules[layer](x, given.frames, given.order)
        for upsample in self.upsamplers:
            x = upsample(x, tuple(skips[-1].shape[2:]))
        return x


class DenoisingUNet(nn.Module):
    """The 3D UNet: predicts v for noisy latents.

    ``config`` and ``additional`` are mappings of the form of the published configuration: the UNet's widths, layers,
    heads and block types, and where the motion modules are.
    """

    def __init__(self, config: Mapping[str, Any], additional: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = parsed = UNetConfig.from_mapping(config, "denoising_unet")
        self.motion = motion = MotionConfig.from_mapping(additional, parsed.widths, "denoising_unet_additional")
        levels = range(len(parsed.widths))
        width = parsed.widths[0]
        self.conv_in = nn.Conv2d(parsed.in_channels, width, 3, padding=1)
        self.time_embedding = TimestepEmbedding(parsed)
        self.down_blocks = nn.ModuleList([DenoisingDown(parsed, motion, level) for level in levels])
        self.mid_block = DenoisingMid(parsed, motion)
        self.up_blocks = nn.ModuleList([DenoisingUp(parsed, motion, index) for index in levels])
        self.conv_norm_out = GroupNorm(parsed.norm_groups, width, eps=parsed.norm_eps)
        self.conv_out = nn.Conv2d(width, parsed.out_channels, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, DenoisingBlock):
                module.name = name

    def transformer_blocks(self) -> Iterator[DenoisingBlock]:
        """Every transformer block that looks at the bank and listens to the audio, in the order of computation."""
        return (module for module in self.modules() if isinstance(module, DenoisingBlock))

    def project_audio(self, audio: Tensor) -> KeysValues:
        """audio tokens (B, F, T, W) -> their keys and values (B*F, T, C) for every block."""
        tokens = audio.flatten(0, 1)
        return KeysValues(
            {block.name: (block.attn2.to_k(tokens), block.attn2.to_v(tokens)) for block in self.transformer_blocks()}
        )

    def project_bank(self, bank: Mapping[str, Tensor]) -> KeysValues:
        """bank, (B, L, C) for every block -> its keys and values (B, L, C) for every block."""
        return KeysValues(
            {
                block.name: (block.attn1.to_k(bank[block.name]), block.attn1.to_v(bank[block.name]))
                for block in self.transformer_blocks()
            }
        )

    def halves(self, latents: Tensor, timestep: float, given: ClipConditions, shift: int, guided: bool) -> Tensor:
        """v for latents (1, C, F, h, w): (2, C, F, h, w), without conditions and with them, where ``guided``, else
        (1, C, F, h, w) with them. ``timestep`` and ``shift`` are those of :meth:`forward`."""
        sample = latents.to(self.conv_norm_out.weight.dtype)
        conditional: Tensor = self(sample, timestep, given.audio, given.pose, given.bank, shift)
        if not guided:
            return conditional
        return torch.cat((self(sample, timestep, None, None, None, shift), conditional))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        audio: Tensor | KeysValues | None,
        pose: Tensor | None,
        bank: Mapping[str, Tensor] | KeysValues | None,
        shift: int = 0,
    ) -> Tensor:
        """Predicts v, (B, C, F, h, w), for ``sample`` (B, C, F, h, w).

        ``timestep``: a number or (B,). ``audio``: tokens (B, F, T, W) or :meth:`project_audio` of them. ``pose``:
        features (B, C0, F, h, w). ``bank``: (B or 1, L, C) for every block or :meth:`project_bank` of it. None leaves a
        condition out. ``shift``: the window's cyclic shift, frame j stands at position (j - shift) modulo F.
        """
        batch, _, frames = sample.shape[:3]
        x = self.conv_in(fold(sample))
        if pose is not None:
            x = x + fold(pose)
        given = Conditions(
            frames=frames,
            order=(torch.arange(frames, device=x.device) - shift) % frames,
            time=self.time_embedding(timestep, batch),
            audio=self.project_audio(audio) if isinstance(audio, Tensor) else audio,
            bank=bank if bank is None or isinstance(bank, KeysValues) else self.project_bank(bank),
        )
        skips = [x]
        for down in self.down_blocks:
            x = down(x, skips, given)
        x = self.mid_block(x, given)
        for up in self.up_blocks:
            x = up(x, skips, given)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out.view(batch, frames, *out.shape[1:]).transpose(1, 2)


def fold(x: Tensor) -> Tensor:
    """(B, C, F, h, w) -> (B*F, C, h, w) channels_last."""
    folded: Tensor = rearrange(x, "b c f h w -> (b f) c h w")
    return folded.contiguous(memory_format=torch.channels_last)
