"""Lost packets of a voice are concealed where they belong, better than silence by the distance of spectra."""

from __future__ import annotations

import random
from typing import Any

import av
import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.codec.concealment import (
    MAX_CONCEALED_SAMPLES,
    LibopusDecoder,
    PitchDecoder,
    VoiceDecoder,
    continued,
    libopus_is_there,
    packet_samples,
    pitch_period,
)

BLOCK = 960
SECONDS = 8
FORMANTS = ((600, 1.0), (1_200, 0.6), (2_500, 0.3))
"""Hz, and how loud."""


def speech() -> S16Array:
    """A voice as far as its spectrum goes: a gliding pitch with formants, in syllables (n,) int16."""
    time = np.arange(SECONDS * MEDIA_RATE) / MEDIA_RATE
    phase = 2 * np.pi * np.cumsum(130 + 25 * np.sin(2 * np.pi * 0.7 * time)) / MEDIA_RATE
    sound = np.zeros_like(time)
    for harmonic in range(1, 28):
        at = harmonic * 130
        formants = sum(gain * np.exp(-(((at - centre) / 160) ** 2)) for centre, gain in FORMANTS)
        sound += (0.05 + formants) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time) + 0.6, 0, 1)
    sound = sound * syllables
    return np.asarray(sound / np.abs(sound).max() * 12_000, np.int16)


def encoded(pcm: S16Array, fec: bool) -> list[bytes]:
    """As a browser sends it: Opus for voices, with in-band FEC where it was asked for."""
    codec: Any = av.CodecContext.create("libopus", "w")
    codec.bit_rate, codec.format, codec.layout, codec.sample_rate = 32_000, "s16", "mono", MEDIA_RATE
    codec.options = {"application": "voip", "frame_duration": "20"}
    if fec:
        codec.options = {**codec.options, "fec": "1", "packet_loss": "20"}
    packets = []
    for at in range(0, len(pcm) - BLOCK + 1, BLOCK):
        frame = av.AudioFrame.from_ndarray(pcm[at : at + BLOCK].reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate, frame.pts = MEDIA_RATE, at
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets


def heard(packets: list[bytes], losses: set[int], decoder: VoiceDecoder) -> S16Array:
    """The whole of it, silence where nothing came."""
    line = np.zeros(len(packets) * BLOCK, np.int16)
    missing = 0
    for number, packet in enumerate(packets):
        if number in losses:
            missing += 1
            continue
        for pts, pcm in decoder.decode(packet, number * BLOCK, missing):
            line[pts : pts + len(pcm)] = pcm
        missing = 0
    return line


def distance_db(reference: S16Array, other: S16Array) -> float:
    """Log-spectral distance over frames of 20 ms that are no silence, above a floor 60 dB below full scale."""
    spectra = []
    for pcm in (reference, other):
        frames = pcm[: len(pcm) // BLOCK * BLOCK].reshape(-1, BLOCK) / 32_768 * np.hanning(BLOCK)
        spectra.append(20 * np.log10(np.maximum(np.abs(np.fft.rfft(frames))[:, :170], 1e-3)))
    loud = reference[: len(reference) // BLOCK * BLOCK].reshape(-1, BLOCK).std(axis=1) > 300
    return float(np.sqrt(((spectra[0] - spectra[1]) ** 2).mean(axis=1))[loud].mean())


def decoders() -> list[Any]:
    return [pytest.param(PitchDecoder, False, 0.75, id="pitch")] + (
        [pytest.param(LibopusDecoder, True, 0.6, id="libopus")] if libopus_is_there() else []
    )


@pytest.mark.parametrize("share", [0.05, 0.1])
@pytest.mark.parametrize(("kind", "fec", "bound"), decoders())
def test_concealment_is_nearer_than_silence(kind: Any, fec: bool, bound: float, share: float) -> None:
    packets = encoded(speech(), fec)
    chance = random.Random(3)
    losses = {n for n in range(10, len(packets)) if chance.random() < share}
    whole = heard(packets, set(), VoiceDecoder(kind()))
    silent = distance_db(whole, heard(packets, losses, VoiceDecoder(kind(), conceal=False)))
    concealed = distance_db(whole, heard(packets, losses, VoiceDecoder(kind())))
    assert silent > 0.5
    assert concealed < bound * silent


@pytest.mark.parametrize(("kind", "fec", "bound"), decoders())
def test_media_time_stays(kind: Any, fec: bool, bound: float) -> None:
    packets = encoded(speech()[: 60 * BLOCK], fec)
    decoder = VoiceDecoder(kind())
    assert [pts for pts, _ in decoder.decode(packets[0], 500)] == [500]
    assert [(pts, len(pcm)) for pts, pcm in decoder.decode(packets[3], 500 + 3 * BLOCK, 2)] == [
        (500 + BLOCK, 2 * BLOCK),
        (500 + 3 * BLOCK, BLOCK),
    ]
    # A long loss is silence after a while, and a gap without a loss stays one.
    [(first, long), (last, _)] = decoder.decode(packets[4], 500 + 54 * BLOCK, 50)
    assert (first, len(long), last) == (500 + 4 * BLOCK, MAX_CONCEALED_SAMPLES, 500 + 54 * BLOCK)
    assert [pts for pts, _ in decoder.decode(packets[5], 500 + 99 * BLOCK)] == [500 + 99 * BLOCK]
    assert decoder.concealed_samples == 2 * BLOCK + MAX_CONCEALED_SAMPLES


@pytest.mark.parametrize(("kind", "fec", "bound"), decoders())
def test_broken_packets_are_refused_and_the_next_is_heard(kind: Any, fec: bool, bound: float) -> None:
    decoder = VoiceDecoder(kind())
    for broken in (b"", b"\x03", b"\xff\xff"):
        with pytest.raises(ValueError, match="Opus packet"):
            decoder.decode(broken, 0)
    assert decoder.decode(encoded(speech()[: 4 * BLOCK], fec)[0], 0)


def test_the_length_of_a_packet_is_read() -> None:
    lengths = {0: 480, 3: 2_880, 12: 480, 13: 960, 16: 120, 31: 960}
    assert {config: packet_samples(bytes([config << 3])) for config in lengths} == lengths
    assert packet_samples(bytes([31 << 3 | 1])) == 1_920
    assert packet_samples(bytes([31 << 3 | 3, 6])) == 5_760


def test_a_pitch_period_goes_on_and_fades() -> None:
    time = np.arange(3 * 800) / MEDIA_RATE
    history = np.asarray(np.sin(2 * np.pi * 200 * time) * 10_000, np.int16)
    assert pitch_period(history.astype(np.float32)) % 240 <= 4
    following = continued(history, 4_000)
    expected = np.sin(2 * np.pi * 200 * np.arange(len(history), len(history) + 200) / MEDIA_RATE) * 10_000
    assert np.abs(following[:200] - expected).max() < 2_500
    assert not following[2_900:].any()
