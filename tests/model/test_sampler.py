"""The diffusion: its schedule, where it starts, and how guidance joins its halves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from echo_rtc.model.sampler import Sampler, draw_noise, initial_latents, signal_shares
from echo_rtc.model.unet3d import ClipConditions, DenoisingUNet, KeysValues
from tests.bench.made import published_scheduler
from tests.model.small import denoising_unet, motion_config, reference_unet
from tests.model.test_networks import inputs


def test_the_schedule_is_spaced_from_its_end_in_pure_noise() -> None:
    assert signal_shares()[-1] == 0
    assert signal_shares()[0] > 0.999
    unet = denoising_unet()
    assert Sampler(unet, 6, 1.0).timesteps == [999, 832, 666, 499, 332, 166]
    assert Sampler(unet, 2, 1.0).timesteps == [999, 499]


@pytest.mark.parametrize("steps", [1, 3, 6, 7, 30, 64])
def test_the_schedule_is_the_published_one(steps: int) -> None:
    theirs, ours = published_scheduler(), Sampler(denoising_unet(), steps, 1.0)
    theirs.set_timesteps(steps)
    assert torch.equal(signal_shares(), theirs.alphas_cumprod)
    assert ours.timesteps == theirs.timesteps.tolist()
    latents, prediction = torch.randn(2, 1, 4, 3, 2, 2)
    for timestep in ours.timesteps:
        expected = theirs.step(prediction, timestep, latents, eta=0.0).prev_sample
        assert torch.equal(ours.advance(prediction, timestep, latents), expected)


def test_initial_noise_is_clamped_and_its_first_frame_is_chained() -> None:
    noise = 3 * torch.randn(1, 4, 6, 2, 3)
    fresh = initial_latents(noise, None)
    assert fresh.abs().max() == 1.5
    assert torch.equal(fresh, noise.clamp(-1.5, 1.5))
    before = torch.full((4, 2, 3), 2.0, dtype=torch.float16)
    chained = initial_latents(noise, before)
    assert torch.allclose(chained[0, :, 0], 0.6 * before.float() + 0.4 * fresh[0, :, 0])
    assert torch.equal(chained[:, :, 1:], fresh[:, :, 1:])


def test_a_seed_is_a_noise() -> None:
    assert torch.equal(draw_noise((1, 4, 3, 2, 2), 7), draw_noise((1, 4, 3, 2, 2), 7))
    assert not torch.equal(draw_noise((1, 4, 3, 2, 2), 7), draw_noise((1, 4, 3, 2, 2), 8))


class _Halves(torch.nn.Module):
    """Stands in for the UNet: says which half it is asked for and with which shift."""

    halves = DenoisingUNet.halves

    def __init__(self) -> None:
        super().__init__()
        self.conv_norm_out = torch.nn.GroupNorm(1, 1)
        self.asked: list[tuple[str, int]] = []

    def forward(self, sample: Tensor, _t: int, audio: object, pose: object, bank: object, shift: int) -> Tensor:
        given = [condition is not None for condition in (audio, pose, bank)]
        assert len(set(given)) == 1
        self.asked.append(("conditional" if given[0] else "unconditional", shift))
        return torch.full_like(sample, 3.0 if given[0] else 1.0)


def conditions() -> ClipConditions:
    return ClipConditions(KeysValues({}), KeysValues({}), torch.zeros(1))


@pytest.mark.parametrize(("cfg", "expected"), [(2.5, 1 + 2.5 * 2), (1.5, 4.0), (1.0, 3.0), (0.0, 3.0)])
def test_guidance_joins_the_halves(cfg: float, expected: float) -> None:
    unet = _Halves()
    sampler = Sampler(unet, 3, cfg)
    steps = list(sampler.steps(torch.zeros(1, 1, 4, 2, 2), conditions()))
    assert [float(step.guided_prediction.mean()) for step in steps] == [expected] * 3
    halves = ["conditional", "unconditional"] if cfg > 1 else ["conditional"]
    assert unet.asked == [(half, 3 * step) for step in range(3) for half in halves]


def test_only_the_first_steps_are_guided() -> None:
    unet = _Halves()
    steps = list(Sampler(unet, 3, 2.5, guided_steps=1).steps(torch.zeros(1, 1, 4, 2, 2), conditions()))
    assert [float(step.guided_prediction.mean()) for step in steps] == [6.0, 3.0, 3.0]
    assert [half for half, _ in unet.asked] == ["conditional", "unconditional", "conditional", "conditional"]


@torch.inference_mode()
def test_a_perfect_prediction_of_v_ends_in_the_clean_latents() -> None:
    """v = sqrt(a) noise - sqrt(1 - a) clean (Salimans & Ho 2022), from which every step must find the same clean."""
    clean, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
    sampler = Sampler(denoising_unet(motion_config(use_motion_module=False)), 4, 1.0)
    alphas = signal_shares()
    latents = noise
    for timestep in sampler.timesteps:
        v = alphas[timestep].sqrt() * noise - (1 - alphas[timestep]).sqrt() * clean
        latents = sampler.advance(v, timestep, latents)
    assert torch.allclose(latents, clean, atol=0.05)  # the last step leaves the noise of timestep 0


@torch.inference_mode()
def test_half_precision_is_inside_the_unet_only() -> None:
    unet = denoising_unet().bfloat16()
    sample, audio, pose = (tensor.bfloat16() for tensor in inputs(batch=1))
    bank = {name: value.bfloat16() for name, value in reference_unet()(torch.randn(1, 4, 8, 8)).items()}
    given = ClipConditions(unet.project_audio(audio), unet.project_bank(bank), pose)
    steps = list(Sampler(unet, 2, 2.0).steps(sample.float(), given))
    assert {step.latents.dtype for step in steps} == {torch.float32}
    assert torch.isfinite(steps[-1].latents).all()
