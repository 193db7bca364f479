"""What the gate admits: speech, one clip after it, and with threshold 0 everything."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import AudioClip, F32Array
from echo_rtc.media.gate import SpeechGate, loudest_stretch

RATE = 16_000
THRESHOLD = 0.015


def clip(own: F32Array, history: float = 0.0) -> AudioClip:
    window = np.concatenate([np.full(4 * len(own), history, np.float32), own]).astype(np.float32)
    return AudioClip(0, 0, 12, window, len(own))


def level(rms: float, samples: int = 8000) -> F32Array:
    """A sine of the given RMS."""
    sine: F32Array = (rms * np.sqrt(2.0) * np.sin(2 * np.pi * 200 * np.arange(samples) / RATE)).astype(np.float32)
    return sine


SILENCE = clip(level(0.001))
SPEECH = clip(level(0.1))


def test_speech_and_one_clip_after_it() -> None:
    gate = SpeechGate(THRESHOLD)
    decisions = [gate.admit(each) for each in (SILENCE, SPEECH, SPEECH, SILENCE, SILENCE, SPEECH, SILENCE, SILENCE)]
    assert decisions == [False, True, True, True, False, True, True, False]


def test_threshold_is_an_rms() -> None:
    assert SpeechGate(THRESHOLD).admit(clip(level(THRESHOLD * 1.01)))
    assert not SpeechGate(THRESHOLD).admit(clip(level(THRESHOLD * 0.99)))


def test_zero_admits_everything() -> None:
    gate = SpeechGate(0.0)
    assert all(gate.admit(clip(np.zeros(8000, np.float32))) for _ in range(4))


def test_speech_that_begins_at_the_end_of_a_clip_is_found() -> None:
    own = np.zeros(8000, np.float32)
    own[-1600:] = level(THRESHOLD * 1.05, 1600)
    # Over the whole clip its level is far below the threshold.
    assert np.sqrt(np.mean(own**2)) < THRESHOLD / 2
    assert SpeechGate(THRESHOLD).admit(clip(own))


def test_a_click_is_not_speech() -> None:
    own = np.zeros(8000, np.float32)
    own[4000:4004] = 0.25
    assert not SpeechGate(THRESHOLD).admit(clip(own))


def test_the_history_does_not_count() -> None:
    assert not SpeechGate(THRESHOLD).admit(clip(np.zeros(8000, np.float32), history=0.5))


def test_broken_samples_count_as_silence() -> None:
    for value in (np.nan, np.inf, -np.inf):
        own = np.full(8000, value, np.float32)
        assert not SpeechGate(THRESHOLD).admit(clip(own))
        own[2000:6000] = level(0.1, 4000)
        assert SpeechGate(THRESHOLD).admit(clip(own))


def test_huge_samples_are_limited_to_full_scale() -> None:
    assert loudest_stretch(np.full(100, 1e30, np.float32), 100) == pytest.approx(1.0)


def test_any_stretch_is_looked_at() -> None:
    rng = np.random.default_rng(3)
    samples = rng.standard_normal(3000).astype(np.float32) * 0.1
    slow = max(np.sqrt(np.mean(samples[i : i + 700].astype(np.float64) ** 2)) for i in range(3000 - 700 + 1))
    assert loudest_stretch(samples, 700) == pytest.approx(slow, rel=1e-9)


def test_short_and_empty_audio() -> None:
    assert loudest_stretch(np.full(10, 0.5, np.float32), 1600) == pytest.approx(0.5)
    assert loudest_stretch(np.zeros(0, np.float32), 1600) == 0.0


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        SpeechGate(threshold)


def test_impossible_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="sample rate is 0"):
        SpeechGate(THRESHOLD, 0)
