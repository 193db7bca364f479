"""Mouth tracks: targets reached, lips shut where they must be, rest in pauses, smooth in between."""

# ruff: noqa: RUF001 (phonetic letters are meant here)
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from echo_rtc.clips import F32Array
from echo_rtc.train.visemes import PARAMETERS, mouth_track, relative_loudness, visemes_of

OPEN, WIDTH, PRESS, TEETH, TONGUE = range(5)


@dataclass(frozen=True)
class Sound:
    symbol: str
    start_s: float
    end_s: float


def sounds(text: str, duration_s: float, start_s: float = 0.5) -> list[Sound]:
    """The symbols of ``text`` (spaces between them), each lasting ``duration_s``."""
    return [
        Sound(symbol, start_s + i * duration_s, start_s + (i + 1) * duration_s) for i, symbol in enumerate(text.split())
    ]


def at(phonemes: list[Sound], time_s: float) -> F32Array:
    track: F32Array = mouth_track(phonemes, [time_s])[0]
    return track


def middle(sound: Sound) -> float:
    return 0.5 * (sound.start_s + sound.end_s)


def test_five_columns_in_range_at_any_times() -> None:
    rng = np.random.default_rng(1)
    symbols = [*"pbmfvwtdnszlrθðʃʒkgŋhjaɛiouyøəæɑɔɪʊ", "tʃ", "dʒ", "aɪ", "oʊ", "pf", "iː"]
    phonemes = sounds(" ".join(rng.choice(symbols, 200)), 0.07)
    times = rng.uniform(-1.0, 16.0, 3000).astype(np.float32)
    track = mouth_track(phonemes, times)
    assert track.shape == (3000, len(PARAMETERS))
    assert track.dtype == np.float32
    assert track[:, [OPEN, PRESS, TEETH, TONGUE]].min() >= 0.0
    assert track[:, WIDTH].min() >= -1.0
    assert track.max() <= 1.0


@pytest.mark.parametrize("duration_s", [0.05, 0.08, 0.15])
@pytest.mark.parametrize("symbol", ["p", "b", "m"])
def test_bilabials_shut_the_lips_at_any_rate(symbol: str, duration_s: float) -> None:
    phonemes = sounds(f"ɑ {symbol} ɑ", duration_s)
    mouth = at(phonemes, middle(phonemes[1]))
    assert mouth[OPEN] < 0.02
    assert mouth[PRESS] > 0.98


@pytest.mark.parametrize("duration_s", [0.06, 0.1, 0.2])
def test_open_vowels_open_between_closures_at_any_rate(duration_s: float) -> None:
    phonemes = sounds("p ɑ m ɑ b ɑ p", duration_s)
    for sound in phonemes[1::2]:
        mouth = at(phonemes, middle(sound))
        assert mouth[OPEN] > 0.6
        assert mouth[PRESS] < 0.25


def test_vowels_differ_as_mouths_do() -> None:
    shapes = {v: at(phonemes := sounds(f"k {v} k", 0.12), middle(phonemes[1])) for v in "ɑiuɛɔ"}
    assert shapes["ɑ"][OPEN] > shapes["ɛ"][OPEN] > shapes["i"][OPEN]
    assert shapes["i"][WIDTH] > 0.6
    assert shapes["u"][WIDTH] < -0.7
    assert shapes["ɔ"][WIDTH] < -0.3 < 0.0 < shapes["ɛ"][WIDTH]


def test_teeth_and_tongue_show_in_their_consonants() -> None:
    for symbol, column in (("f", TEETH), ("v", TEETH), ("s", TEETH), ("ʃ", TEETH), ("l", TONGUE), ("θ", TONGUE)):
        phonemes = sounds(f"ə {symbol} ə", 0.1)
        assert at(phonemes, middle(phonemes[1]))[column] > 0.7, symbol
        assert at(phonemes, middle(phonemes[0]))[column] < 0.5, symbol


def test_consonants_take_the_shape_of_their_vowels() -> None:
    """Coarticulation: the lips are round already in the s of "soo" and spread in that of "see"."""
    round_s, spread_s = (at(phonemes := sounds(f"s {v}", 0.12), middle(phonemes[0]))[WIDTH] for v in "ui")
    assert spread_s - round_s > 0.3


def test_mouth_is_shut_before_after_and_in_pauses() -> None:
    phonemes = [Sound("ɑ", 0.5, 0.7), Sound("ɑ", 1.2, 1.4)]
    times = np.array([-5.0, 0.2, 0.35, 0.83, 1.0, 1.05, 1.53, 9.0], np.float32)
    track = mouth_track(phonemes, times)
    assert np.abs(track).max() < 0.06
    assert at(phonemes, 0.6)[OPEN] > 0.85
    # It begins to open before the sound, as mouths do.
    assert at(phonemes, 0.49)[OPEN] > 0.2


def test_tracks_are_continuous() -> None:
    phonemes = sounds("p aɪ v m f b tʃ ɑ p u s i m m v ɔ l", 0.06)
    times = np.arange(0.0, 2.0, 0.001, dtype=np.float32)
    steps = np.abs(np.diff(mouth_track(phonemes, times), axis=0))
    # From shut to open takes at least about 20 ms, so a millisecond changes less than a tenth.
    assert steps.max() < 0.1


def test_no_phonemes_is_a_shut_mouth() -> None:
    assert not mouth_track([], [0.0, 1.0]).any()


def test_quiet_speech_opens_less() -> None:
    phonemes = sounds("k ɑ k", 0.12)
    times = np.array([middle(phonemes[1])], np.float32)
    loud, quiet = (mouth_track(phonemes, times, np.array([v], np.float32))[0, OPEN] for v in (1.0, 0.2))
    assert loud == pytest.approx(at(phonemes, times[0])[OPEN])
    assert quiet == pytest.approx(0.8 * loud, abs=0.01)


def test_overlapping_phonemes_and_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="overlaps"):
        mouth_track([Sound("a", 0.0, 0.2), Sound("b", 0.1, 0.3)], [0.0])
    with pytest.raises(ValueError, match="loudness"):
        mouth_track(sounds("a", 0.1), [0.0, 0.1], np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("symbol", "letters"),
    [
        ("ˈaɪ", "aɪ"),
        ("iː", "i"),
        ("tʃ", "tʃ"),
        ("dʲ", "d"),
        ("ʈʰ", "ʈ"),
        ("ɑ̃", "ɑ"),
        ("ts.h", "ts"),
        ("əl", "əl"),
        ("5", "?"),
    ],
)
def test_symbols_are_read_letter_by_letter(symbol: str, letters: str) -> None:
    parts = visemes_of(symbol)
    assert sum(share for _, share in parts) == pytest.approx(1.0)
    assert [viseme for viseme, _ in parts] == [visemes_of(letter)[0][0] for letter in letters]


def test_relative_loudness_is_one_in_speech_zero_in_silence() -> None:
    rate = 16_000
    tone = 0.1 * np.sin(np.arange(rate) * 0.1).astype(np.float32)
    samples = np.concatenate([np.zeros(rate, np.float32), tone, 0.1 * tone])
    loudness = relative_loudness(samples, rate, np.array([0.5, 1.5, 2.5], np.float32))
    assert loudness == pytest.approx([0.0, 1.0, 0.5], abs=0.03)
    assert not relative_loudness(np.zeros(100, np.float32), rate, np.array([0.0], np.float32)).any()
