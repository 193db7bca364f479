"""Synthesis with phoneme timing against the waveform, and the corpus made of it.

These tests speak with the real engines and are skipped where their engine is not installed.
"""

# ruff: noqa: RUF001 (phonetic letters are meant here)
from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from echo_rtc.clips import F32Array
from echo_rtc.errors import InputError
from echo_rtc.train import speech
from echo_rtc.train.sentences import languages, sentence
from echo_rtc.train.speech import (
    SPEECH_RATE,
    WAV_RATE,
    CorpusPlan,
    EspeakSynthesiser,
    FestivalSynthesiser,
    FliteSynthesiser,
    Phoneme,
    Style,
    Utterance,
    available_voices,
    build_corpus,
    chosen_voices,
    resample,
    say,
)
from echo_rtc.train.visemes import ASPIRATION

VOICES = available_voices()

espeak = pytest.mark.skipif("espeak:en" not in VOICES, reason="espeak-ng is not installed")
ked = pytest.mark.skipif("festival:ked" not in VOICES, reason="festival and its voice ked are not installed")
flite = pytest.mark.skipif("flite:slt" not in VOICES, reason="flite is not installed")

ONE_OF_EACH = [
    pytest.param("espeak:en-us+f2", marks=espeak),
    pytest.param("espeak:en+m3", marks=espeak),
    pytest.param("espeak:en-us+klatt", marks=espeak),
    pytest.param("flite:slt", marks=flite),
    pytest.param("flite:rms", marks=flite),
    pytest.param("flite:kal16", marks=flite),
    pytest.param("festival:ked", marks=ked),
]


def rms(utterance: Utterance, start_s: float, end_s: float) -> float:
    part = utterance.samples[int(start_s * SPEECH_RATE) : int(end_s * SPEECH_RATE)]
    return float(np.sqrt(np.mean(part.astype(np.float64) ** 2))) if len(part) else 0.0


def assert_in_order(phonemes: Sequence[Phoneme]) -> None:
    clock_s = -1e-6
    for phoneme in phonemes:
        assert clock_s <= phoneme.start_s < phoneme.end_s, phoneme
        clock_s = phoneme.end_s - 1e-6


@pytest.mark.parametrize("voice", ONE_OF_EACH)
@pytest.mark.parametrize("style", [Style(), Style(rate=1.5, pitch=1.2, tract=0.85), Style(rate=0.8, tract=1.2)])
def test_phonemes_line_up_with_the_sound(voice: str, style: Style) -> None:
    spoken = say("My papa met a happy puppy. Do you see the beach, Bob?", voice, style)
    assert spoken.samples.dtype == np.float32
    assert np.abs(spoken.samples).max() <= 1.0
    assert_in_order(spoken.phonemes)
    assert spoken.phonemes[-1].end_s <= spoken.duration_s + 0.01
    # Most of the sound lies inside phonemes, and vowels are far louder than the silence outside of them.
    speaking = np.zeros(len(spoken.samples), bool)
    for phoneme in spoken.phonemes:
        speaking[int(phoneme.start_s * SPEECH_RATE) : int(phoneme.end_s * SPEECH_RATE) + 1] = True
    energy = spoken.samples.astype(np.float64) ** 2
    assert energy[speaking].sum() > 0.97 * energy.sum()
    vowels = [rms(spoken, p.start_s, p.end_s) for p in spoken.phonemes if p.symbol[0] in "aɑæiɐʌ"]
    closures = [rms(spoken, p.start_s, p.end_s - 0.02) for p in spoken.phonemes if p.symbol == "p"]
    assert len(closures) >= 4
    assert np.median(closures) < 0.35 * np.median(vowels)


@pytest.mark.parametrize("voice", ONE_OF_EACH)
def test_style_changes_rate_but_tract_does_not(voice: str) -> None:
    text = "The young doctor carried a wooden box across the road."

    def spoken_s(style: Style) -> float:
        phonemes = say(text, voice, style).phonemes
        return phonemes[-1].end_s - phonemes[0].start_s

    usual = spoken_s(Style())
    assert spoken_s(Style(rate=1.5)) < 0.8 * usual
    assert spoken_s(Style(tract=1.2)) == pytest.approx(usual, rel=0.12)


@pytest.mark.parametrize("voice", [v for v in VOICES if v.startswith("festival:")])
def test_festival_voices_speak_their_language(voice: str) -> None:
    languages_of = {"fi": "Kissa nukkuu pöydän alla.", "it": "Buongiorno a tutti.", "cs": "Žába sedí u řeky."}
    usual = say("Papa.", voice).language
    spoken = say(languages_of.get(usual, "The frog sat by the river."), voice)
    assert_in_order(spoken.phonemes)
    assert len(spoken.phonemes) >= 10
    assert rms(spoken, spoken.phonemes[0].start_s, spoken.phonemes[-1].end_s) > 0.02
    with_accents = {"fi": "ø", "cs": "ʒ"}
    if usual in with_accents:
        assert any(with_accents[usual] in p.symbol for p in spoken.phonemes)


@espeak
def test_stops_get_their_closure_and_their_breath() -> None:
    phonemes = say("a pear, a tap", "espeak:en-us", Style()).phonemes
    symbols = [p.symbol for p in phonemes]
    stop = symbols.index("p")
    assert symbols[stop + 1] == ASPIRATION
    assert phonemes[stop].end_s - phonemes[stop].start_s > 0.03


@espeak
def test_first_phonemes_survive_a_listing_of_voices() -> None:
    """Every choice of a voice queues an event; too many used to push out the first phonemes of the next text."""
    engine = EspeakSynthesiser()
    engine.voices()
    first = engine.say("Guten Tag, Peter.", "de", Style())
    second = engine.say("Guten Tag, Peter.", "de", Style())
    assert [p.symbol for p in first.phonemes] == [p.symbol for p in second.phonemes]


@espeak
@pytest.mark.parametrize("language", languages())
def test_every_language_is_spoken(language: str) -> None:
    text = sentence(language, np.random.default_rng(5))
    spoken = say(text, f"espeak:{language}")
    assert spoken.language == language
    assert len(spoken.phonemes) >= 5
    assert_in_order(spoken.phonemes)


def test_sentences_vary_and_unknown_languages_are_refused() -> None:
    rng = np.random.default_rng(0)
    assert len({sentence("en", rng) for _ in range(200)}) > 190
    with pytest.raises(ValueError, match="no text in the language 'xx'"):
        sentence("xx", rng)


def test_resample_keeps_a_tone_and_its_place() -> None:
    time = np.arange(22_050) / 22_050
    tone = (np.sin(2 * np.pi * 1000 * time) * np.hanning(22_050)).astype(np.float32)
    factor = 16_000 / 22_050
    out = resample(tone, factor)
    assert len(out) == 16_000
    wanted = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000) * np.interp(
        np.arange(16_000) / factor, np.arange(22_050), np.hanning(22_050)
    )
    assert np.abs(out - wanted).max() < 0.01


def test_resample_leaves_out_what_does_not_fit() -> None:
    time = np.arange(22_050) / 22_050
    high: F32Array = np.sin(2 * np.pi * 9500 * time).astype(np.float32)
    assert np.abs(resample(high, 16_000 / 22_050)[500:-500]).max() < 0.01


@flite
def test_corpus_is_the_same_for_any_number_of_processes() -> None:
    plan = CorpusPlan(hours=0.04, seed=7, voices=("flite:kal*", "espeak:en-us+f?", "espeak:de"), held_out=("*+f3",))
    one, two = build_corpus(plan, 1), build_corpus(plan, 2)
    assert np.array_equal(one.audio, two.audio)
    assert np.array_equal(one.mouth, two.mouth)
    assert not any("+f3" in voice for voice in one.voices)
    assert len({one.voices[index] for index in one.voice}) > 3
    assert one.audio.shape == (14, 160_000)
    assert one.mouth.shape == (14, 1000, 5)
    other = build_corpus(CorpusPlan(hours=0.003, seed=8, voices=("flite:kal*",)), 1)
    assert not np.array_equal(other.audio[0], one.audio[0])

    # Where nothing is heard for a while the mouth is shut; where it is heard the mouth moves.
    level = np.abs(one.audio.reshape(14, 1000, 160).astype(np.float32)).max(axis=2) / 32768
    window = np.lib.stride_tricks.sliding_window_view(np.pad(level, ((0, 0), (15, 15))), 31, axis=1).max(axis=2)
    shut = one.mouth[window < 0.002]
    assert len(shut) > 500
    assert np.abs(shut.astype(np.float32)).mean() < 0.02
    opening = one.mouth[..., 0].astype(np.float32)
    assert opening[level > 0.3].mean() > 0.35


@flite
def test_command_writes_a_corpus_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "corpus.safetensors"
    flags = ["--output", str(path), "--hours", "0.003", "--seed", "1", "--processes", "1", "--voices", "flite:*"]
    assert speech.main([*flags, "--held-out", "flite:awb"]) == 0
    with safe_open(path, "np") as file:
        assert file.get_tensor("audio").shape == (1, 160_000)
        assert file.get_tensor("mouth").shape == (1, 1000, 5)
        metadata = file.metadata()
    assert json.loads(metadata["voices"]) == ["flite:kal", "flite:kal16", "flite:rms", "flite:slt"]
    assert metadata["track_rate"] == "100"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--hours", "0"], "--hours is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--processes", "0"], "--processes is 0"),
        (["--held-out", "flite:nobody"], "--held-out"),
        (["--voices", "flite:awb", "--held-out", "flite:*"], "--held-out"),
    ],
)
def test_bad_flags_are_one_sentence(
    flags: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speech.main(["--output", str(tmp_path / "x.safetensors"), "--hours", "0.003", *flags]) == 2
    assert word in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@flite
def test_output_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no" / "such" / "folder.wav"
    assert speech.main_voice(["--output", str(missing), "--text", "Hi."]) == 2
    assert "--output" in capsys.readouterr().err


@flite
def test_voice_command_writes_a_wav_with_pauses(tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    flags = ["--text", "Hello there.", "How are you?", "--pause", "1.0", "--voice", "flite:slt"]
    assert speech.main_voice(["--output", str(path), *flags]) == 0
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (WAV_RATE, 1, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    assert 0.5 < np.abs(pcm).max() < 0.95
    frames = np.abs(pcm[: len(pcm) // 480 * 480].reshape(-1, 480)).max(axis=1) < 0.01
    runs = np.split(frames, np.flatnonzero(np.diff(frames)) + 1)
    assert sum(1 for run in runs if run[0] and len(run) >= 95) >= 2


def test_unknown_voices_and_missing_libraries_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'robot:x'"):
        say("Hi.", "robot:x")
    with pytest.raises(InputError, match="ECHO_TRAIN_ESPEAK_LIBRARY"):
        EspeakSynthesiser(library=str(tmp_path / "libespeak-ng.so.1"))
    with pytest.raises(InputError, match="ECHO_TRAIN_FLITE_FOLDER"):
        FliteSynthesiser(folder=str(tmp_path))
    with pytest.raises(InputError, match="ECHO_TRAIN_FESTIVAL"):
        FestivalSynthesiser(program=str(tmp_path / "festival"))


@espeak
def test_unknown_espeak_voice_is_named() -> None:
    with pytest.raises(InputError, match="no voice 'xx-nowhere'"):
        say("Hi.", "espeak:xx-nowhere")


def test_impossible_styles_are_refused() -> None:
    with pytest.raises(ValueError, match="rate is 9"):
        Style(rate=9.0)


@flite
@espeak
def test_held_out_voices_are_not_chosen() -> None:
    plan = CorpusPlan(1.0, 0, held_out=("flite:awb", "espeak:*+f3"))
    voices = chosen_voices(plan)
    assert "flite:slt" in voices
    assert "flite:awb" not in voices
    assert not [voice for voice in voices if voice.endswith("+f3")]
