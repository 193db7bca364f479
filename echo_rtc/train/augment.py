"""Audio augmentation on batches: what rooms, microphones, lines and other sounds do to a voice.

Every function takes samples (B, N) float32 at ``sample_rate`` Hz on any device and a ``torch.Generator`` of that
device, draws its own parameters for each row, and returns a new tensor of the same shape. Nothing moves in time, so the
mouths that go with the sound stay right. :func:`augment` applies everything in the order in which it happens in the
world.

Knows nothing of phonemes, models or files. Voices of other sizes are not made here: the corpus has them already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-8

_SILENT = 1e-3
"""Rows whose peak is below this have no speech in them."""


def uniform(count: int, low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """(count, 1) values drawn evenly from ``low`` to ``high`` on the device of ``like``."""
    return low + (high - low) * torch.rand((count, 1), generator=generator, device=like.device)


def level(audio: Tensor) -> Tensor:
    """RMS of each row, (B, 1); of the louder parts only, so that pauses do not lower it."""
    frame = 320
    frames = audio[:, : audio.shape[1] // frame * frame].reshape(len(audio), -1, frame).square().mean(-1)
    loud = torch.topk(frames, max(1, frames.shape[1] // 4), dim=1).values
    return loud.mean(1, keepdim=True).sqrt()


def gain(audio: Tensor, generator: torch.Generator, low_db: float = -25.0, high_db: float = 0.0) -> Tensor:
    """Set each row's peak to ``low_db`` .. ``high_db`` dB of full scale; silent rows stay silent."""
    peak = audio.abs().amax(1, keepdim=True)
    wanted = 10.0 ** (uniform(len(audio), low_db, high_db, audio, generator) / 20.0)
    return torch.where(peak > _TINY, audio * wanted / peak.clamp(min=_TINY), audio)


def coloured_noise(
    rows: int, samples: int, generator: torch.Generator, sample_rate: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(rows, samples) of noise with RMS 1: slopes from white over pink to brown, one in five rows mains hum.

    Levels wander slowly by a few dB, as noises do.
    """
    like = torch.empty((), device=device)
    white = torch.randn((rows, samples), generator=generator, device=device)
    spectrum = torch.fft.rfft(white)
    frequency = torch.fft.rfftfreq(samples, 1.0 / sample_rate, device=device)
    slope = uniform(rows, 0.0, 1.0, like, generator)
    noise = torch.fft.irfft(spectrum * frequency.clamp(min=30.0)[None] ** -slope, samples)

    base = torch.where(torch.rand((rows, 1), generator=generator, device=device) < 0.5, 50.0, 60.0)
    time = torch.arange(samples, device=device)[None] / sample_rate
    hum = torch.zeros_like(noise)
    for harmonic in range(1, 9):
        strength = torch.rand((rows, 1), generator=generator, device=device) / harmonic
        phase = uniform(rows, 0.0, 2.0 * math.pi, like, generator)
        hum = hum + strength * torch.sin(2.0 * math.pi * harmonic * base * time + phase)
    hums = torch.rand((rows, 1), generator=generator, device=device) < 0.2
    noise = torch.where(hums, _unit(hum) + 0.2 * _unit(noise), noise)

    points = 2 + samples // sample_rate
    wander = torch.randn((rows, 1, points), generator=generator, device=device)
    swell = functional.interpolate(wander, size=samples, mode="linear", align_corners=True)[:, 0]
    return _unit(noise * 10.0 ** (2.0 * swell / 20.0))


def clatter(
    rows: int, samples: int, generator: torch.Generator, sample_rate: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(rows, samples) of knocks, key strokes and clinks, RMS 1: 0.5 to 8 a second, each a ringing that dies away."""
    like = torch.empty((), device=device)
    rate = 0.5 * 16.0 ** torch.rand((rows, 1), generator=generator, device=device) / sample_rate
    strikes = torch.rand((rows, samples), generator=generator, device=device) < rate
    force = torch.randn((rows, samples), generator=generator, device=device) * strikes
    length = min(samples, sample_rate // 4)
    time = torch.arange(length, device=device)[None] / sample_rate
    decay_s = uniform(rows, 0.004, 0.06, like, generator)
    pitch = 150.0 * 30.0 ** torch.rand((rows, 1), generator=generator, device=device)
    grain = torch.randn((rows, length), generator=generator, device=device)
    ring = torch.exp(-time / decay_s) * (torch.sin(2.0 * math.pi * pitch * time) + 0.5 * grain)
    size = samples + length
    return _unit(torch.fft.irfft(torch.fft.rfft(force, size) * torch.fft.rfft(ring, size), size)[:, :samples])


def babble(audio: Tensor, generator: torch.Generator, voices: int = 5) -> Tensor:
    """(B, N) of many people speaking, RMS 1: every row is the sum of ``voices`` other rows, each shifted in time."""
    rows, samples = audio.shape
    mix = torch.zeros_like(audio)
    place = torch.arange(samples, device=audio.device)
    for _ in range(voices):
        order = torch.randperm(rows, generator=generator, device=audio.device)
        # The shift stays on the device: reading it would make the host wait for all that runs there.
        shift = torch.randint(samples, (1,), generator=generator, device=audio.device)
        mix = mix + _unit(audio[order][:, (place - shift) % samples])
    return _unit(mix)


def add_noise(
    audio: Tensor, noise: Tensor, generator: torch.Generator, low_db: float = 5.0, high_db: float = 40.0
) -> Tensor:
    """Add ``noise`` (B, N) of RMS 1 at ``low_db`` .. ``high_db`` dB below each row's speech; faint in silent rows."""
    ratio = 10.0 ** (-uniform(len(audio), low_db, high_db, audio, generator) / 20.0)
    return audio + noise * ratio * level(audio).clamp(min=1e-3)


def equalise(audio: Tensor, generator: torch.Generator, sample_rate: int, depth_db: float = 9.0) -> Tensor:
    """A smooth random frequency response, up to about ``depth_db`` dB up and down, drawn over the octaves."""
    bands = 8
    gains = depth_db / 2.0 * torch.randn((len(audio), 1, bands), generator=generator, device=audio.device)
    gains = gains.clamp(-depth_db, depth_db)
    table = functional.interpolate(gains, size=256, mode="linear", align_corners=True)[:, 0]
    frequency = torch.fft.rfftfreq(audio.shape[1], 1.0 / sample_rate, device=audio.device).clamp(min=60.0)
    place = torch.log(frequency / 60.0) / math.log(sample_rate / 2.0 / 60.0) * 255.0
    response = 10.0 ** (table[:, place.round().long()] / 20.0)
    return _filter(audio, response)


def band_limit(audio: Tensor, generator: torch.Generator, sample_rate: int) -> Tensor:
    """A telephone, a cheap microphone or a codec: a high-pass at 20 .. 350 Hz and a low-pass at 3.2 .. 8 kHz."""
    frequency = torch.fft.rfftfreq(audio.shape[1], 1.0 / sample_rate, device=audio.device)[None]
    low = uniform(len(audio), 20.0, 350.0, audio, generator)
    high = uniform(len(audio), 3200.0, sample_rate / 2.0, audio, generator)
    response = torch.sigmoid((frequency - low) / (0.15 * low)) * torch.sigmoid((high - frequency) / (0.03 * high))
    return _filter(audio, response)


def reverberate(audio: Tensor, generator: torch.Generator, sample_rate: int) -> Tensor:
    """A small room: the direct sound and a tail of exponentially decaying noise (60 dB in 0.1 .. 0.5 s), in time.

    The direct sound stays where it is, so the mouth's times stay right. The tail is 5 .. 20 dB below it.
    """
    rows, samples = audio.shape
    length = min(samples, sample_rate // 2)
    time = torch.arange(length, device=audio.device)[None] / sample_rate
    decay_s = uniform(rows, 0.1, 0.5, audio, generator)
    tail = torch.randn((rows, length), generator=generator, device=audio.device)
    tail = tail * 10.0 ** (-3.0 * time / decay_s)
    gap_s = uniform(rows, 0.002, 0.015, audio, generator)
    tail = torch.where(time >= gap_s, tail, torch.zeros_like(tail))
    strength = 10.0 ** (-uniform(rows, 5.0, 20.0, audio, generator) / 20.0)
    tail = strength * tail / tail.norm(dim=1, keepdim=True).clamp(min=_TINY)
    size = samples + length
    wet: Tensor = torch.fft.irfft(torch.fft.rfft(audio, size) * torch.fft.rfft(tail, size), size)[:, :samples]
    return audio + wet


def clip_peaks(audio: Tensor, generator: torch.Generator) -> Tensor:
    """An overdriven microphone: each row is cut off at 0.3 .. 1 of its peak."""
    limit = audio.abs().amax(1, keepdim=True) * uniform(len(audio), 0.3, 1.0, audio, generator)
    return torch.minimum(torch.maximum(audio, -limit), limit)


def quantise(audio: Tensor, generator: torch.Generator) -> Tensor:
    """A coarse codec: mu-law with 5 to 8 bits, relative to each row's peak."""
    peak = audio.abs().amax(1, keepdim=True).clamp(min=_TINY)
    steps = 2.0 ** torch.randint(4, 8, (len(audio), 1), generator=generator, device=audio.device)
    folded = torch.log1p(255.0 * (audio / peak).abs()) / math.log(256.0)
    coarse = torch.expm1((folded * steps).round() / steps * math.log(256.0)) / 255.0
    return audio.sign() * peak * coarse


@dataclass(frozen=True, slots=True)
class Chances:
    """How likely each thing happens to a row; and how loud rows without speech are, in dB of full scale."""

    room: float = 0.4
    noise: float = 0.75
    clatter: float = 0.15
    babble: float = 0.12
    equaliser: float = 0.6
    clipping: float = 0.08
    band: float = 0.3
    codec: float = 0.1
    quiet_db: tuple[float, float] = (-60.0, -12.0)

    def __post_init__(self) -> None:
        for name in ("room", "noise", "clatter", "babble", "equaliser", "clipping", "band", "codec"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; a chance lies in 0 to 1")


USUAL = Chances()


def augment(audio: Tensor, generator: torch.Generator, sample_rate: int = 16_000, chances: Chances = USUAL) -> Tensor:
    """Voices (B, N) as a microphone somewhere might hear them: room, noise, response, overload, line, level.

    Peaks never exceed 1. Three in four rows without speech become noise alone, the others stay silent: there the mouth
    has to learn that noise is not speech. Such rows never get background speech.
    """
    if audio.ndim != 2:
        raise ValueError(f"audio has shape {tuple(audio.shape)}; (rows, samples) is expected")
    rows, samples = audio.shape
    wordless = audio.abs().amax(1, keepdim=True) < _SILENT

    def maybe(chance: float, before: Tensor, after: Tensor) -> Tensor:
        return torch.where(torch.rand((rows, 1), generator=generator, device=audio.device) < chance, after, before)

    noise = coloured_noise(rows, samples, generator, sample_rate, audio.device)
    noise = maybe(chances.clatter, noise, clatter(rows, samples, generator, sample_rate, audio.device))
    # Another voice that is nearly as loud would rightly move the mouth: background speech is 8 dB further down.
    crowd = maybe(chances.babble, noise, 0.4 * babble(audio, generator))
    noise = torch.where(wordless, noise, crowd)
    out = maybe(chances.room, audio, reverberate(audio, generator, sample_rate))
    out = maybe(chances.noise, out, add_noise(out, noise, generator))
    out = maybe(chances.equaliser, out, equalise(out, generator, sample_rate))
    out = maybe(chances.clipping, out, clip_peaks(out, generator))
    out = maybe(chances.band, out, band_limit(out, generator, sample_rate))
    out = maybe(chances.codec, out, quantise(out, generator))
    return torch.where(wordless, gain(out, generator, *chances.quiet_db), gain(out, generator))


def _filter(audio: Tensor, response: Tensor) -> Tensor:
    """Each row with its frequencies weighted by ``response`` (B, N // 2 + 1), without delay."""
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(audio) * response, audio.shape[1])
    return filtered


def _unit(audio: Tensor) -> Tensor:
    """Each row at RMS 1; silent rows stay silent."""
    return audio / audio.square().mean(1, keepdim=True).sqrt().clamp(min=_TINY)
