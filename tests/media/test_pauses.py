"""Which sound is a pause in speech: near the room's noise, far below the voice."""

from __future__ import annotations

import numpy as np
import pytest

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.media.pauses import BELOW_VOICE, QUIET_RMS, PauseLevel
from tests.media.rig import voice

MOST = 0.015


def level_of(*sounds: S16Array, most: float = MOST, block: int = 960) -> float:
    level = PauseLevel(most)
    for sound in sounds:
        for start in range(0, len(sound), block):
            level.push(sound[start : start + block])
    return level.rms


def noise(seconds: float, rms: float) -> S16Array:
    rng = np.random.default_rng(3)
    return np.rint(rng.normal(0.0, rms * 32768, round(seconds * MEDIA_RATE))).astype(np.int16)


@pytest.mark.parametrize("block", [480, 960, 1000, 48_000])
def test_a_pause_is_a_little_above_the_noise_of_the_room(block: int) -> None:
    room = noise(0.4, 0.002)
    assert 0.0045 < level_of(voice(2.0), room, voice(2.0), block=block) < 0.0075


def test_a_voice_without_pauses_has_none() -> None:
    spoken = voice(5.0)
    assert level_of(spoken, most=1.0) <= BELOW_VOICE * np.sqrt(np.mean(np.square(spoken / 32768.0))) * 1.1
    # Room noise alone is no voice.
    assert level_of(noise(5.0, 0.002)) < 0.002


def test_no_pause_is_louder_than_what_the_gate_takes_for_speech() -> None:
    assert level_of(voice(2.0), noise(0.5, 0.014)) == MOST
    assert level_of(voice(2.0), noise(0.5, 0.002), most=0.0) == QUIET_RMS


def test_gaps_say_nothing_of_the_room() -> None:
    gap = np.zeros(MEDIA_RATE // 5, np.int16)
    assert level_of() == level_of(gap) == QUIET_RMS
    assert level_of(voice(2.0), gap, noise(0.4, 0.002), gap) > 0.0045


def test_the_room_may_change() -> None:
    assert level_of(voice(2.0), noise(1.0, 0.0001)) == QUIET_RMS
    louder = [sound for _ in range(6) for sound in (voice(1.5), noise(0.4, 0.003))]
    assert level_of(voice(2.0), noise(1.0, 0.0001), *louder) > 0.007
