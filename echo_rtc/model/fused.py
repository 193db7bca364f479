"""The denoising UNet as a GPU likes it: the same parameters and mathematics as ``unet3d.py`` in fewer, larger steps.

Both halves of classifier-free guidance are one batch, the unconditional images first. Activations stay (N, L, C), which
for a convolution is an image in channels-last layout. Biases, residuals, norms, gates, positions and the moments of
norms ride on passes that are made anyway (``kernels``); joined skips are never written; the convolutions after an
upsampling are done in 4/9 of the multiplications. Runs anywhere, so that tests compare it with the plain network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echo_rtc.model.attention import AttentionChoice
from echo_rtc.model.blocks import (
    GEGLU,
    Attention,
    FeedForward,
    ResnetBlock,
    Upsample,
    image_of,
    tokens_of,
)
from echo_rtc.model.kernels.convolution import EightBitConvolution
from echo_rtc.model.kernels.eight_bits import FORMAT, LARGEST, Weight, factor_of_norm, product
from echo_rtc.model.kernels.frame_attention import frame_attention
from echo_rtc.model.kernels.geglu import geglu, geglu_eight_bits, interleaved
from echo_rtc.model.kernels.group_norm import Moments, add_moments, affine, coefficients, interleave_moments
from echo_rtc.model.kernels.joining import joined
from echo_rtc.model.kernels.layer_norm import add_layer_norm
from echo_rtc.model.motion import FrameAttention, MotionBlock, MotionModule
from echo_rtc.model.unet3d import AUDIO_SCALE, ClipConditions, DenoisingTransformer, DenoisingUNet, KeysValues, fold


@dataclass(frozen=True, slots=True)
class Picture:
    """A batch of images: tokens (N, height * width, C) and the moments of their channels."""

    tokens: Tensor
    height: int
    width: int
    moments: Moments


def convolve(x: Tensor, height: int, width: int, conv: nn.Conv2d) -> tuple[Tensor, int, int]:
    """tokens (N, height * width, C) through a convolution, its bias left out -> tokens and their sides."""
    y = F.conv2d(image_of(x, height, width), conv.weight, None, conv.stride, conv.padding)
    return tokens_of(y), y.shape[2], y.shape[3]


def normalise(
    parts: Sequence[Picture],
    norm: nn.GroupNorm,
    silu: bool,
    offset: Tensor | None = None,
    factor: float | None = None,
) -> Tensor:
    """Group norm (and SiLU) of a picture plus ``offset`` (C,), or of two whose channels stand side by side ->
    (N, L, C); with ``factor`` in eight bits, times that."""
    numbers = coefficients([part.moments for part in parts], norm.weight, norm.bias, norm.num_groups, norm.eps, offset)
    return affine([part.tokens for part in parts], numbers, silu, factor)


def picture(x: Tensor, height: int, width: int, bias: Tensor | None = None, residual: Tensor | None = None) -> Picture:
    """x plus bias plus residual, with its moments."""
    total, moments = add_moments(x, bias, residual)
    assert moments is not None
    return Picture(total, height, width, moments)


class DoubledConvolution:
    """A 3x3 convolution of an image whose sides are doubled by repetition."""

    def __init__(self, conv: nn.Conv2d) -> None:
        weight = conv.weight.float()  # (C', C, 3, 3)
        rows = (
            torch.stack((weight[:, :, 0], weight[:, :, 1] + weight[:, :, 2]), dim=2),
            torch.stack((weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]), dim=2),
        )  # for even and odd rows of the result: (C', C, 2, 3)
        phases = [
            torch.stack(pair, dim=3)
            for row in rows
            for pair in (
                (row[..., 0], row[..., 1] + row[..., 2]),
                (row[..., 0] + row[..., 1], row[..., 2]),
            )
        ]
        self._weight = torch.cat(phases).to(conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        self._conv = conv

    def __call__(self, x: Picture, size: tuple[int, int]) -> Picture:
        """The picture at twice its sides, or at ``size`` where that is one pixel less."""
        conv = self._conv
        assert conv.bias is not None
        if size != (2 * x.height, 2 * x.width):
            image = F.interpolate(image_of(x.tokens, x.height, x.width), size=size, mode="nearest")
            y, height, width = convolve(tokens_of(image), *size, conv)
            return picture(y, height, width, conv.bias)
        y = tokens_of(F.conv2d(image_of(x.tokens, x.height, x.width), self._weight, None, padding=1))
        total, moments = interleave_moments(y, conv.bias, *size)
        return Picture(total, *size, moments)


class FusedResnet:
    """A residual block: ours, or the autoencoder's, which has parts of the same names and no timestep."""

    def __init__(self, block: Any, eight_bits: bool) -> None:
        self._block: Any = block
        self._bias: Tensor = self._block.conv2.bias
        if self._block.conv_shortcut is not None:
            self._bias = self._bias + self._block.conv_shortcut.bias
        self._small: list[tuple[float, EightBitConvolution] | None] = [None, None]
        if eight_bits:
            factors = factor_of_norm(block.norm1), factor_of_norm(block.norm2)
            self._small = [
                (factor, EightBitConvolution(conv, factor))
                for factor, conv in zip(factors, (block.conv1, block.conv2), strict=True)
            ]

    def offset(self, time: Tensor) -> Tensor:
        """What the first convolution's result is shifted by at a timestep: (C',), from its embedding (1, T)."""
        shift: Tensor = self._block.time_emb_proj(time)[0] + self._block.conv1.bias
        return shift

    def __call__(self, parts: Sequence[Picture], offset: Tensor | None = None) -> Picture:
        """One picture, or two whose channels stand side by side. Without ``offset`` there is no timestep."""
        block, (height, width) = self._block, (parts[0].height, parts[0].width)
        first, second = (
            small if small is not None and EightBitConvolution.suits(conv, height, width) else None
            for small, conv in zip(self._small, (block.conv1, block.conv2), strict=True)
        )
        offset = block.conv1.bias if offset is None else offset
        if first is not None:
            y, moments = first[1](normalise(parts, block.norm1, True, factor=first[0]), height, width, offset)
            middle, rest = Picture(y, height, width, moments), None
        else:
            y, _, _ = convolve(normalise(parts, block.norm1, True), height, width, block.conv1)
            middle, rest = picture(y, height, width), offset
        residual = self._shortcut(parts)
        if second is not None:
            y = normalise([middle], block.norm2, True, rest, factor=second[0])
            y, moments = second[1](y, height, width, self._bias, residual)
            return Picture(y, height, width, moments)
        y, _, _ = convolve(normalise([middle], block.norm2, True, rest), height, width, block.conv2)
        return picture(y, height, width, self._bias, residual)

    def _shortcut(self, parts: Sequence[Picture]) -> Tensor:
        shortcut = self._block.conv_shortcut
        if shortcut is None:
            return parts[0].tokens
        weight = shortcut.weight.flatten(1)
        first = parts[0].tokens
        channels = first.shape[2]
        y = F.linear(first, weight[:, :channels])
        for part in parts[1:]:
            y.flatten(0, 1).addmm_(part.tokens.flatten(0, 1), weight[:, channels:].t())
        return y


class Product:
    """A linear layer of what comes out of a norm, in half precision, or in eight bits where ``norm`` is given.

    ``factor`` is what its input must come multiplied by, in eight bits; None: as it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: nn.Module | None) -> None:
        self._weight, self._bias = weight, bias
        self.factor = None if norm is None else factor_of_norm(norm)
        self._small = None if self.factor is None else Weight.of(weight, self.factor)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, L, C) -> (N, L, C')."""
        if self._small is None:
            return F.linear(x, self._weight, self._bias)
        return product(x, self._small, self._bias, self._weight.dtype)


_USUAL_BOUND = 10.0
"""Standard deviations of a gated value, and of its gate, that still fit into eight bits."""


class FusedFeedForward:
    """A feed-forward, its residual, and the linear layer ``exit_weight`` (C', C) that follows, without its bias.

    In eight bits, where ``norm`` (the one before it) is given, the second product and the exit are one, of their joined
    weights; the residual goes through the exit alone. That takes as many operations and no pass for the sum.
    """

    def __init__(self, layer: FeedForward, norm: nn.LayerNorm | None, exit_weight: Tensor | None) -> None:
        gate, _, out = layer.net
        assert isinstance(gate, GEGLU)
        assert isinstance(out, nn.Linear)
        self._weight, self._gate_bias = interleaved(gate.proj.weight), interleaved(gate.proj.bias)
        self._out, self._exit = out, exit_weight
        self.factor: float | None = None
        if norm is not None and exit_weight is not None:
            self.factor = factor_of_norm(norm)
            spread = (gate.proj.weight.float() * norm.weight.float()).norm(dim=1)
            bound = _USUAL_BOUND * spread + gate.proj.bias.float().abs()
            values, gates = bound.chunk(2)
            self._factors = LARGEST / (values * gates).clamp(min=1e-6)
            self._small = Weight.of(self._weight, self.factor)
            self._joined = Weight.of(exit_weight.float() @ out.weight.float() / self._factors, 1.0)

    @property
    def bias(self) -> Tensor:
        """The bias of what is added, which the residual must already have."""
        return self._out.bias

    def __call__(self, total: Tensor, x: Tensor) -> Tensor:
        """total (N, L, C), which has the bias already, plus the feed-forward of x (N, L, C), through the exit if there
        is one."""
        if self.factor is None:
            h = geglu(x, self._weight, self._gate_bias)
            total.flatten(0, 1).addmm_(h.flatten(0, 1), self._out.weight.t())
            return total if self._exit is None else F.linear(total, self._exit)
        assert self._exit is not None
        y = product(geglu_eight_bits(x, self._small, self._gate_bias, self._factors), self._joined, None, total.dtype)
        y.flatten(0, 1).addmm_(total.flatten(0, 1), self._exit.t())
        return y


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, C) -> (N, L, H, C / H), a view."""
    return x.view(*x.shape[:2], heads, -1)


def fuse_products(attention: Attention) -> Tensor:
    """Queries', keys' and values' weights as one (3 C, C), of which the layers' own become views."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    joined = torch.cat([layer.weight for layer in layers])
    for layer, part in zip(layers, joined.chunk(3), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)
    return joined


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Inputs of every layer: number of frames, how many of the images (the last ones) have conditions, the conditions.

    ``positions`` are those of the frames, (F, C), for each attention over them, by its id.
    """

    frames: int
    conditioned: int
    audio: KeysValues | None
    bank: KeysValues | None
    positions: Mapping[int, Tensor]


class FusedTransformer:
    """A transformer block between two 1x1 convolutions."""

    def __init__(self, module: DenoisingTransformer, attend: AttentionChoice, eight_bits: bool) -> None:
        self._module, self._attend = module, attend
        self._block = block = module.block
        entry = module.proj_in
        self._entry = Product(entry.weight.flatten(1), entry.bias, module.norm if eight_bits else None)
        self._products = Product(fuse_products(block.attn1), None, block.norm1 if eight_bits else None)
        self._feed = FusedFeedForward(block.ff, block.norm3 if eight_bits else None, module.proj_out.weight.flatten(1))
        self._silence = AUDIO_SCALE * block.attn2.output_bias

    def __call__(self, x: Picture, given: LayerInputs) -> Picture:
        module, block, heads = self._module, self._block, self._block.attn1.heads
        t = self._entry(normalise([x], module.norm, silu=False, factor=self._entry.factor))
        plain = len(t) - given.conditioned
        _, n = add_layer_norm(t, block.norm1, factor=self._products.factor)
        qkv = self._products(n)
        factor = self._feed.factor
        total, n = torch.empty_like(t), torch.empty_like(t, dtype=t.dtype if factor is None else FORMAT)
        if plain:
            q, k, v = (split_heads(part, heads) for part in qkv[:plain].chunk(3, dim=2))
            y = block.attn1.to_out[0](self._attend(q, k, v).flatten(2))
            add_layer_norm(
                t[:plain], block.norm3, y,
                constant=self._silence, ahead=self._feed.bias, factor=factor, out=(total[:plain], n[:plain]),
            )  # fmt: skip
        if given.conditioned:
            q, k, v = qkv[plain:].chunk(3, dim=2)
            if given.bank is not None:
                k, v = joined(qkv[plain:], *given.bank.blocks[block.name])  # (F, 2 L, C)
            q, k, v = (split_heads(part, heads) for part in (q, k, v))
            y = block.attn1.to_out[0](self._attend(q, k, v).flatten(2))
            middle, heard = add_layer_norm(t[plain:], block.norm2, y)
            add_layer_norm(
                middle, block.norm3, self._listen(heard, given), scale=AUDIO_SCALE,
                ahead=self._feed.bias, factor=factor, out=(total[plain:], n[plain:]),
            )  # fmt: skip
        return picture(self._feed(total, n), x.height, x.width, module.proj_out.bias, x.tokens)

    def _listen(self, x: Tensor, given: LayerInputs) -> Tensor:
        attention = self._block.attn2
        if given.audio is None:
            return attention.output_bias.expand_as(x).contiguous()
        k, v = (split_heads(part, attention.heads) for part in given.audio.blocks[self._block.name])
        q = split_heads(attention.to_q(x), attention.heads)
        y: Tensor = attention.to_out[0](self._attend(q, k, v).flatten(2))
        return y


_Across = tuple[FrameAttention, nn.LayerNorm, Product]
"""An attention over the frames, the norm before it, and the products to its queries, keys and values."""


class FusedMotion:
    """A motion module."""

    def __init__(self, module: MotionModule, eight_bits: bool) -> None:
        self._module = transformer = module.temporal_transformer
        entry, last = transformer.proj_in, len(transformer.transformer_blocks) - 1
        self._entry = Product(entry.weight, entry.bias, transformer.norm if eight_bits else None)
        self._blocks: list[tuple[list[_Across], nn.LayerNorm, FusedFeedForward]] = []
        for index, block in enumerate(transformer.transformer_blocks):
            assert isinstance(block, MotionBlock)
            attentions: list[_Across] = []
            for attention, norm in zip(block.attention_blocks, block.norms, strict=True):
                assert isinstance(attention, FrameAttention)
                assert isinstance(norm, nn.LayerNorm)
                products = Product(fuse_products(attention), None, norm if eight_bits else None)
                attentions.append((attention, norm, products))
            exit_weight = transformer.proj_out.weight if index == last else None
            feed = FusedFeedForward(block.ff, block.ff_norm if eight_bits else None, exit_weight)
            self._blocks.append((attentions, block.ff_norm, feed))

    def __call__(self, x: Picture, given: LayerInputs) -> Picture:
        module = self._module
        t = self._entry(normalise([x], module.norm, silu=False, factor=self._entry.factor))
        for attentions, norm, feed in self._blocks:
            branch: Tensor | None = None
            for attention, before, products in attentions:
                position = given.positions.get(id(attention))
                t, n = add_layer_norm(t, before, branch, position=position, factor=products.factor)
                branch = attention.to_out[0](frame_attention(products(n), given.frames, attention.heads))
            t, n = add_layer_norm(t, norm, branch, ahead=feed.bias, factor=feed.factor)
            t = feed(t, n)
        return picture(t, x.height, x.width, module.proj_out.bias, x.tokens)


class FusedDenoiser:
    """A :class:`DenoisingUNet` in one pass for both halves of guidance. Its parameters are the network's own.

    ``eight_bits``: the products that follow a norm, and the wider convolutions, in eight bits. Lossy.
    """

    def __init__(self, unet: DenoisingUNet, attend: AttentionChoice, eight_bits: bool = False) -> None:
        self.unet = unet
        self._resnets = {m: FusedResnet(m, eight_bits) for m in unet.modules() if isinstance(m, ResnetBlock)}
        self._transformers = {
            m: FusedTransformer(m, attend, eight_bits) for m in unet.modules() if isinstance(m, DenoisingTransformer)
        }
        self._motions = {m: FusedMotion(m, eight_bits) for m in unet.modules() if isinstance(m, MotionModule)}
        self._doubled = {m: DoubledConvolution(m.conv) for m in unet.modules() if isinstance(m, Upsample)}
        self._offsets: dict[float, dict[ResnetBlock, Tensor]] = {}
        self._positions: dict[tuple[int, int], dict[int, Tensor]] = {}

    def halves(self, latents: Tensor, timestep: float, given: ClipConditions, shift: int, guided: bool) -> Tensor:
        """v for latents (1, C, F, h, w): (2, C, F, h, w), unconditional half first, where ``guided``, else (1, ...).

        The arguments are those of the plain network's.
        """
        unet, frames = self.unet, latents.shape[2]
        height, width = latents.shape[3:]
        conv = unet.conv_in
        assert conv.bias is not None
        x = tokens_of(F.conv2d(fold(latents.to(conv.weight.dtype)), conv.weight, conv.bias, padding=1))
        posed = x if given.pose is None else x + tokens_of(fold(given.pose))
        first = picture(torch.cat((x, posed)) if guided else posed, height, width)
        inputs = LayerInputs(frames, frames, given.audio, given.bank, self._positions_of(frames, shift % frames))
        x = tokens_of(self._run(first, inputs, self._offsets_of(timestep)))
        out = image_of(x, height, width)
        return out.reshape(-1, frames, *out.shape[1:]).transpose(1, 2)

    def _run(self, x: Picture, given: LayerInputs, offsets: Mapping[ResnetBlock, Tensor]) -> Tensor:
        """(N, C, h, w), the network after its first convolution."""
        unet: Any = self.unet
        skips = [x]

        def layer(parts: Sequence[Picture], index: int, block: Any) -> Picture:
            y = self._resnets[block.resnets[index]](parts, offsets[block.resnets[index]])
            if block.attentions:
                y = self._transformers[block.attentions[index]](y, given)
            if block.motion_modules:
                y = self._motions[block.motion_modules[index]](y, given)
            return y

        for down in unet.down_blocks:
            for index in range(len(down.resnets)):
                x = layer([x], index, down)
                skips.append(x)
            for downsample in down.downsamplers:
                x = picture(*convolve(x.tokens, x.height, x.width, downsample.conv), downsample.conv.bias)
                skips.append(x)
        mid = unet.mid_block
        x = layer([x], 0, mid)
        x = self._resnets[mid.resnets[1]]([x], offsets[mid.resnets[1]])
        for up in unet.up_blocks:
            for index in range(len(up.resnets)):
                x = layer([x, skips.pop()], index, up)
            for upsample in up.upsamplers:
                x = self._doubled[upsample](x, (skips[-1].height, skips[-1].width))
        y = normalise([x], unet.conv_norm_out, silu=True)
        out = unet.conv_out
        prediction: Tensor = F.conv2d(image_of(y, x.height, x.width), out.weight, out.bias, padding=1)
        return prediction

    def _offsets_of(self, timestep: float) -> dict[ResnetBlock, Tensor]:
        """What each residual block's first convolution is shifted by, computed once for each timestep."""
        if timestep not in self._offsets:
            time = self.unet.time_embedding(timestep, 1)
            self._offsets[timestep] = {module: block.offset(time) for module, block in self._resnets.items()}
        return self._offsets[timestep]

    def _positions_of(self, frames: int, shift: int) -> dict[int, Tensor]:
        """The positions of the frames (F, C) for each attention over them, computed once for each shift."""
        if (frames, shift) not in self._positions:
            self._positions[frames, shift] = {
                id(module): module.pos_encoder(frames).roll(shift, 0).contiguous()
                for module in self.unet.modules()
                if isinstance(module, FrameAttention) and module.pos_encoder is not None
            }
        return self._positions[frames, shift]
