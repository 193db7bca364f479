"""The diffusion: where it starts, which steps it takes, and how the conditional and unconditional halves are joined.

The schedule is DDIM's (Song et al. 2020, "Denoising Diffusion Implicit Models") with v-prediction and zero
terminal SNR (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed"). Knows the denoising UNet
only as something to call; knows nothing of audio, poses, pixels or clips.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from echo_rtc.model.unet3d import ClipConditions

NOISE_BOUND = 1.5
"""Initial noise is clamped to this on both sides."""

INIT_LATENT_SHARE = 0.6
"""How much of the previous clip's final latent goes into the first frame of the noise."""

STILL, MOVED = 0.5, 0.8
"""Where latents of two frames differ by less than the first of these (as a share of their root mean square, the mean of
3 x 3 places), a face speaks, blinks or turns; where they differ by more than the second, a hand has gone elsewhere."""

SHIFT_PER_STEP = 3
"""Frames by which the window is cyclically shifted further at each step."""


TIMESTEPS = 1000
"""How many timesteps the networks were trained at."""


@functools.cache
def signal_shares() -> Tensor:
    """The published noise schedule: how much of the signal's power is left at each timestep, (TIMESTEPS,) float32 on
    the CPU, down to 0. Linear betas, rescaled to zero terminal SNR."""
    root = (1 - torch.linspace(0.00085, 0.012, TIMESTEPS)).cumprod(0).sqrt()
    share = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    # Back to betas and forth again: so does the published code, and each rounding is part of the schedule.
    betas = 1 - torch.cat([share[:1], share[1:] / share[:-1]])
    return (1 - betas).cumprod(0)


def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Gaussian noise, float32, drawn on the CPU so that a seed gives the same noise whatever the device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def initial_latents(noise: Tensor, init_latent: Tensor | None) -> Tensor:
    """Where the diffusion starts: noise (1, C, F, h, w), clamped -> (1, C, F, h, w).

    With ``init_latent`` (C, h, w), the previous clip's final latent of its last frame, frame 0 becomes
    0.6 * init_latent + 0.4 * noise.
    """
    latents = noise.clamp(-NOISE_BOUND, NOISE_BOUND)
    if init_latent is not None:
        latents[:, :, 0] = INIT_LATENT_SHARE * init_latent.to(latents) + (1 - INIT_LATENT_SHARE) * latents[:, :, 0]
    return latents


def reference_latents(reference: Tensor, frames: int, init_latent: Tensor | None) -> Tensor:
    """Where the diffusion starts of a model that begins from the reference: its latents (1, C, h, w), for each of the
    frames: (1, C, F, h, w).

    With ``init_latent`` (C, h, w), the previous clip's final latent of its last frame, frame 0 is that. There is no
    noise: such a model takes a single step from an early timestep (as in Meng et al. 2021, "SDEdit: Guided Image
    Synthesis and Editing with Stochastic Differential Equations") and says what differs from the reference.
    """
    latents = reference.float()[:, :, None].repeat(1, 1, frames, 1, 1)
    if init_latent is not None:
        latents[:, :, 0] = init_latent.to(latents)
    return latents


def bridged(latents: Tensor, init_latent: Tensor | None) -> Tensor:
    """A clip (1, C, F, h, w) whose first frame lies halfway between the last one before it, ``init_latent`` (C, h, w),
    and its own second one, which it equals where there is none before; but where these differ much, it stays.

    A model that begins from the reference makes the first frame from another start than the others, and it shows: two
    jumps where clips meet, two and three times as large as the changes inside of them. Halfway between two places of a
    hand, however, are two pale hands, while in something that moves the jump is not seen.
    """
    if latents.shape[2] < 2:
        return latents
    first, second = latents[:, :, :1], latents[:, :, 1:2]
    before = second if init_latent is None else init_latent.to(latents)[None, :, None]
    scale = second.square().mean().sqrt().clamp_min(1e-6)
    moved = (second - before).abs().mean(dim=(1, 2)) / scale  # (1, h, w)
    moved = avg_pool2d(moved[:, None], 3, stride=1, padding=1, count_include_pad=False)
    moved = max_pool2d(moved, 3, stride=1, padding=1)[:, :, None]  # (1, 1, 1, h, w)
    own = ((moved - STILL) / (MOVED - STILL)).clamp(0, 1)
    return torch.cat([torch.lerp((before + second) / 2, first, own), latents[:, :, 1:]], dim=2)


@dataclass(frozen=True, slots=True)
class Step:
    """One step taken: the guided prediction of v and the latents after it, both (1, C, F, h, w) float32."""

    guided_prediction: Tensor
    latents: Tensor


class Denoiser(Protocol):
    """The denoising UNet, plain or fused."""

    def halves(self, latents: Tensor, timestep: float, given: ClipConditions, shift: int, guided: bool) -> Tensor:
        """v for latents (1, C, F, h, w): (2, C, F, h, w), without conditions and with them, where ``guided``, else
        (1, C, F, h, w) with them."""
        ...


class Sampler:
    """Takes a fixed number of DDIM steps (eta 0) under classifier-free guidance.

    ``cfg`` is the guidance scale: prediction = unconditional + cfg * (conditional - unconditional). At 1 and below only
    the conditional half is computed, and so it is after the first ``guided_steps`` steps (None: all are guided), where
    the noise is low and guidance changes little (Kynkaanniemi et al. 2024, arXiv 2404.07724). ``start`` is the timestep
    of the first and only step of a model that begins from the reference; None is the published schedule. Raises
    ValueError for more steps than one from there.
    """

    def __init__(
        self, denoiser: Denoiser, steps: int, cfg: float, guided_steps: int | None = None, start: int | None = None
    ) -> None:
        if start is not None and steps != 1:
            raise ValueError(f"{steps} steps from timestep {start}; such a model takes one")
        self._denoiser, self._cfg, self._start = denoiser, cfg, start
        self._guided_steps = steps if guided_steps is None else min(guided_steps, steps)
        self._number = steps

    @property
    def timesteps(self) -> list[int]:
        """The timesteps of the steps, from the noisiest."""
        if self._start is not None:
            return [self._start]
        return [round(TIMESTEPS - n * TIMESTEPS / self._number) - 1 for n in range(self._number)]

    def steps(self, latents: Tensor, given: ClipConditions) -> Iterator[Step]:
        """From initial latents (1, C, F, h, w) float32, the steps one by one; the last one's latents are final."""
        for index, timestep in enumerate(self.timesteps):
            guided = index < self._guided_steps
            prediction = self.predict(latents, timestep, given, SHIFT_PER_STEP * index, guided)
            latents = self.advance(prediction, timestep, latents)
            yield Step(prediction, latents)

    def advance(self, prediction: Tensor, timestep: int, latents: Tensor) -> Tensor:
        """One DDIM step: from the latents at ``timestep`` and the guided prediction of v to the next latents."""
        shares, following = signal_shares(), timestep - TIMESTEPS // self._number
        now, after = shares[timestep], shares[following] if following >= 0 else torch.tensor(1.0)
        clean = now.sqrt() * latents - (1 - now).sqrt() * prediction
        noise = now.sqrt() * prediction + (1 - now).sqrt() * latents
        return after.sqrt() * clean + (1 - after).sqrt() * noise

    def predict(self, latents: Tensor, timestep: int, given: ClipConditions, shift: int, guided: bool = True) -> Tensor:
        """The prediction of v, float32, for latents (1, C, F, h, w) whose window is shifted by ``shift`` frames; with
        guidance if ``guided``, and if there is any.

        Instead of moving the frames and everything that goes with them, the motion modules' positions are moved, which
        are all that notices.
        """
        halves = self.halves(latents, timestep, given, shift, guided).float()
        if len(halves) == 1:
            return halves
        unconditional, conditional = halves[:1], halves[1:]
        return unconditional + self._cfg * (conditional - unconditional)

    def halves(self, latents: Tensor, timestep: int, given: ClipConditions, shift: int, guided: bool = True) -> Tensor:
        """What guidance joins: (2, C, F, h, w), without conditions and with them, or (1, C, F, h, w) where there is
        none."""
        return self._denoiser.halves(latents, timestep, given, shift, guided and self._cfg > 1)
