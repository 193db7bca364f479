"""Augmentation: each step does what it says, nothing moves in time, everything follows the generator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from echo_rtc.train import augment as steps
from echo_rtc.train.augment import Chances, augment

RATE = 16_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def voices() -> Tensor:
    """(8, 16000): a buzz at 120 Hz with a burst from 0.4 to 0.6 s, silence elsewhere."""
    time = torch.arange(RATE) / RATE
    harmonics = torch.arange(1, 30)[:, None]
    buzz = (torch.sin(2 * torch.pi * 120 * harmonics * time) / harmonics).sum(0)
    burst = buzz * ((time > 0.4) & (time < 0.6))
    return (0.2 * burst).repeat(8, 1)


def energy_share(audio: Tensor, low_hz: float, high_hz: float) -> Tensor:
    spectrum = torch.fft.rfft(audio).abs().square()
    frequency = torch.fft.rfftfreq(audio.shape[1], 1 / RATE)
    share: Tensor = spectrum[:, (frequency >= low_hz) & (frequency < high_hz)].sum(1) / spectrum.sum(1)
    return share


def test_augment_keeps_shape_is_finite_and_never_overloads(voices: Tensor) -> None:
    out = augment(voices, seeded())
    assert out.shape == voices.shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.abs().max() <= 1.0
    assert not torch.equal(out[0], out[1])


def test_augment_follows_its_generator(voices: Tensor) -> None:
    assert torch.equal(augment(voices, seeded(3)), augment(voices, seeded(3)))
    assert not torch.equal(augment(voices, seeded(3)), augment(voices, seeded(4)))


STEPS: list[Callable[[Tensor, torch.Generator], Tensor]] = [
    lambda a, g: steps.equalise(a, g, RATE),
    lambda a, g: steps.band_limit(a, g, RATE),
    lambda a, g: steps.reverberate(a, g, RATE),
    steps.clip_peaks,
    steps.quantise,
    steps.gain,
]


@pytest.mark.parametrize("step", STEPS)
def test_no_step_moves_the_sound_or_leaves_it_as_it_was(
    step: Callable[[Tensor, torch.Generator], Tensor], voices: Tensor
) -> None:
    out = step(voices, seeded())
    assert (out - voices).abs().amax(1).min() > 1e-3
    for before, after in zip(voices, out, strict=True):
        size = 2 * len(before)
        lags = torch.fft.irfft(torch.fft.rfft(after, size) * torch.fft.rfft(before, size).conj(), size)
        best = int(lags.argmax())
        assert min(best, size - best) <= 4


def test_gain_sets_the_peak(voices: Tensor) -> None:
    peaks = steps.gain(voices, seeded(), -25.0, -5.0).abs().amax(1)
    assert peaks.min() >= 10 ** (-25 / 20) - 1e-4
    assert peaks.max() <= 10 ** (-5 / 20) + 1e-4
    assert peaks.std() > 0.01
    assert not steps.gain(torch.zeros(2, 100), seeded()).any()


def test_noise_has_the_asked_level(voices: Tensor) -> None:
    noise = steps.coloured_noise(len(voices), RATE, seeded(), RATE)
    assert noise.square().mean(1).sqrt() == pytest.approx([1.0] * len(voices), abs=1e-3)
    added = steps.add_noise(voices, noise, seeded(), 20.0, 20.0) - voices
    ratio = steps.level(voices)[:, 0] / added.square().mean(1).sqrt()
    assert 20 * torch.log10(ratio) == pytest.approx([20.0] * len(voices), abs=0.1)


def test_noises_differ_in_colour() -> None:
    low = energy_share(steps.coloured_noise(64, RATE, seeded(), RATE), 0.0, 500.0)
    assert low.min() < 0.2
    assert low.max() > 0.8


def test_clatter_comes_in_strikes() -> None:
    sound = steps.clatter(16, 4 * RATE, seeded(1), RATE)
    frames = sound.reshape(16, -1, 160).square().mean(2)
    # Most of the time there is next to nothing, and a few frames hold the energy.
    assert (frames.median(1).values < 0.05 * frames.amax(1)).float().mean() > 0.8
    assert sound.square().mean(1).sqrt() == pytest.approx([1.0] * 16, abs=1e-3)


def test_babble_is_other_rows() -> None:
    time = torch.arange(RATE) / RATE
    rows = torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (200, 400, 800, 1600)])
    mix = steps.babble(rows, seeded(), voices=8)
    for row in mix:
        shares = [float(energy_share(row[None], hertz - 20, hertz + 20)) for hertz in (200, 400, 800, 1600)]
        assert sum(shares) > 0.99
        assert sorted(shares)[-2] > 0.02


def test_band_limit_cuts_highs_of_some_rows() -> None:
    white = torch.randn(32, RATE, generator=seeded())
    highs = energy_share(steps.band_limit(white, seeded(1), RATE), 7000.0, 8000.0)
    assert highs.min() < 1e-3
    assert highs.max() > 0.05


def test_reverberation_adds_only_a_tail(voices: Tensor) -> None:
    tail = steps.reverberate(voices, seeded(), RATE) - voices
    start = int(0.4 * RATE)
    assert tail[:, :start].abs().max() < 1e-5
    assert tail[:, int(0.61 * RATE) :].abs().amax(1).min() > 1e-4


def test_silent_rows_become_noise_of_room_level_or_stay_silent(voices: Tensor) -> None:
    batch = torch.cat([voices, torch.zeros(64, RATE)])
    out = augment(batch, seeded(), chances=Chances(babble=1.0))[len(voices) :]
    peaks = out.abs().amax(1)
    assert peaks.max() <= 10 ** (-12 / 20) + 1e-4
    assert 4 < int((peaks == 0).sum()) < 32
    # No voice may leak into rows whose mouth is shut: the voices' lines at 120 Hz and its multiples stay away.
    lines = torch.fft.rfft(out[peaks > 0]).abs()
    at_voice = lines[:, [240, 360, 480, 840]].mean(1)
    beside = lines[:, [230, 250, 350, 370, 470, 490, 830, 850]].mean(1)
    assert (at_voice / beside).median() < 3.0


def test_chances_and_shapes_are_checked(voices: Tensor) -> None:
    with pytest.raises(ValueError, match="babble is 1\\.5"):
        Chances(babble=1.5)
    with pytest.raises(ValueError, match="rows, samples"):
        augment(voices[0], seeded())
    nothing = Chances(0, 0, 0, 0, 0, 0, 0, 0)
    kept = augment(voices, seeded(), chances=nothing)
    scale = voices.abs().amax(1, keepdim=True) / kept.abs().amax(1, keepdim=True)
    assert torch.allclose(kept * scale, voices, atol=1e-5)
