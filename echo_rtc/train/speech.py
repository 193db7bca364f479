"""Speech with the times of its phonemes, from synthesisers that report them, and the training corpus made of it.

Two engines are bound through ctypes: espeak-ng (formant and Klatt synthesis, over a hundred languages and many voice
variants; phoneme events) and flite (diphone and statistical voices made from recordings of real speakers; segment
ends). A third, festival, runs as a program: more recorded speakers. All give IPA symbols. None is a dependency of the
package: where one is missing its voices are not offered. Paths come from arguments or from the environment:

``ECHO_TRAIN_ESPEAK_LIBRARY`` (libespeak-ng.so.1), ``ECHO_TRAIN_ESPEAK_DATA`` (the folder espeak-ng-data),
``ECHO_TRAIN_FLITE_FOLDER`` (a folder with libflite.so.1 and its voices) and ``ECHO_TRAIN_FESTIVAL`` (the program).

Knows nothing of drawing, augmentation or training.
"""

# ruff: noqa: RUF001 (phonetic letters are meant here)

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import fnmatch
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tqdm import tqdm

from echo_rtc.clips import F32Array, S16Array
from echo_rtc.errors import EchoRtcError, InputError
from echo_rtc.train.sentences import sentence
from echo_rtc.train.visemes import ASPIRATION, PARAMETERS, SILENCE, mouth_track, relative_loudness

SPEECH_RATE = 16_000
"""Samples per second of every utterance and of the corpus."""

TRACK_RATE = 100
"""Mouth parameters per second in a corpus; value k is for the time (k + 0.5) / TRACK_RATE."""

TAKE_S = 10
"""Seconds of one take, the corpus's unit: one voice speaking, with pauses."""

SILENT_SHARE = 0.04
"""Share of takes without speech."""

TAKES_PER_JOB = 12
"""Takes that one fresh process makes. Fixed, because espeak-ng carries its noise on from one text to the next:
what a take sounds like must not depend on the number of processes."""


@dataclass(frozen=True, slots=True)
class Phoneme:
    """A sound, an IPA symbol of one or more letters, from ``start_s`` to ``end_s`` seconds of its utterance."""

    symbol: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """Speech with its phonemes in order: ``samples`` (N,) float32 in -1..1, mono at :data:`SPEECH_RATE`."""

    samples: F32Array
    phonemes: tuple[Phoneme, ...]
    voice: str
    language: str

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SPEECH_RATE


@dataclass(frozen=True, slots=True)
class Style:
    """How a voice speaks, as factors of its normal way.

    ``rate`` words per second, ``pitch`` fundamental frequency, ``liveliness`` range of intonation, ``tract`` frequency
    of the formants (above 1 a smaller head). Rate and pitch are what is heard in the end, whatever the tract is.
    """

    rate: float = 1.0
    pitch: float = 1.0
    liveliness: float = 1.0
    tract: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate", "pitch", "tract"):
            if not 0.4 <= getattr(self, name) <= 2.5:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in 0.4 to 2.5")


class Synthesiser(Protocol):
    """A speaking engine; ``voices`` are the names it knows, without the engine's own name before them."""

    def voices(self) -> tuple[str, ...]: ...
    def say(self, text: str, voice: str, style: Style) -> Utterance: ...


def resample(samples: F32Array, factor: float) -> F32Array:
    """Band-limited change of the sampling rate by ``factor`` (output samples per input sample): (N,) -> (N * factor,).

    Exact in the frequency domain; the ends are padded with silence so that nothing wraps around, and the last tenth
    of the smaller band is faded out so that edges do not ring.
    """
    if factor == 1.0 or not len(samples):
        return samples.astype(np.float32)
    pad = 512
    count = len(samples) + 2 * pad
    out_count = max(1, round(count * factor))
    spectrum = np.fft.rfft(np.pad(samples.astype(np.float64), pad))
    bins = min(len(spectrum), out_count // 2 + 1)
    fade = max(1, bins // 10)
    # The padding in front is taken off by a shift of phase, since it is no whole number of output samples.
    kept = spectrum[:bins] * np.exp(2j * np.pi * np.arange(bins) * (pad / count))
    kept[bins - fade :] *= 0.5 * (1.0 + np.cos(np.linspace(0.0, np.pi, fade)))
    out: F32Array = np.fft.irfft(kept, out_count)[: round(len(samples) * factor)].astype(np.float32)
    return out * np.float32(out_count / count)


# ---------------------------------------------------------------------------------------------------------- espeak-ng

_ESPEAK_SYNCHRONOUS = 2
_ESPEAK_PHONEME_EVENTS, _ESPEAK_PHONEME_IPA, _ESPEAK_DONT_EXIT = 0x0001, 0x0002, 0x8000
_ESPEAK_CHARS_UTF8 = 1
_ESPEAK_RATE, _ESPEAK_VOLUME, _ESPEAK_PITCH, _ESPEAK_RANGE = 1, 2, 3, 4
_ESPEAK_EVENT_END, _ESPEAK_EVENT_PHONEME = 0, 7
_ESPEAK_WORDS_PER_MINUTE = 165.0

_VOICELESS_STOPS = ("p", "t", "k", "c", "q", "ʈ")
_MAX_CLOSURE_S = 0.09
_BURST_S = 0.012

ESPEAK_LANGUAGES = (
    ("en", 3.0),
    ("en-us", 5.0),
    ("en-gb-scotland", 2.0),
    ("en-gb-x-rp", 2.0),
    ("en-029", 1.0),
    ("en-gb-x-gbclan", 1.0),
    ("de", 2.0),
    ("fr", 2.0),
    ("es", 2.0),
    ("it", 1.5),
    ("pt", 1.0),
    ("ru", 1.0),
    ("pl", 1.0),
    ("nl", 1.0),
    ("sv", 1.0),
    ("tr", 0.7),
    ("hi", 0.7),
    ("cmn-latn-pinyin", 1.0),
    ("cs", 0.5),
    ("fi", 0.5),
    ("ja", 0.5),
)
"""Languages of the espeak-ng voices, each with its weight in the corpus."""

ESPEAK_VARIANTS = (
    *(
        "m1",
        "m2",
        "m3",
        "m4",
        "m5",
        "m6",
        "m7",
        "m8",
        "f1",
        "f2",
        "f3",
        "f4",
        "f5",
        "klatt",
        "klatt2",
        "klatt3",
        "klatt4",
    ),
    *("klatt6", "adam", "belinda", "steph", "steph2", "linda", "Alicia", "Andrea", "Annie", "Denis", "Diogo"),
    *("Hugo", "Marco", "Mario", "Michael", "Mike", "anika", "antonio", "aunty", "benjamin", "boris", "caleb", "david"),
    *(
        "ed",
        "edward",
        "grandma",
        "grandpa",
        "jacky",
        "john",
        "max",
        "michel",
        "miguel",
        "norbert",
        "pablo",
        "paul",
        "quincy",
    ),
    *("rob", "robert", "sandro", "shelby", "travis", "victor", "zac", "whisper", "whisperf"),
)
"""Speaker variants of the espeak-ng voices; those a machine does not have are passed over."""


class _EspeakEvent(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; the union ``id`` is kept as its eight bytes."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_ubyte * 8),
    )


_ESPEAK_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


class EspeakSynthesiser:
    """espeak-ng in this process. Voices are ``LANGUAGE`` or ``LANGUAGE+VARIANT``, as in ``en-us+f3``.

    The library has one global state: use it from one thread.
    Raises InputError if the library or its data cannot be loaded.
    """

    def __init__(self, library: str | None = None, data: str | None = None) -> None:
        name = library or os.environ.get("ECHO_TRAIN_ESPEAK_LIBRARY") or ctypes.util.find_library("espeak-ng")
        name = name or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise InputError(
                f"ECHO_TRAIN_ESPEAK_LIBRARY: {name!r} cannot be loaded ({error}); install espeak-ng or name its library"
            ) from error
        data = data or os.environ.get("ECHO_TRAIN_ESPEAK_DATA")
        options = _ESPEAK_PHONEME_EVENTS | _ESPEAK_PHONEME_IPA | _ESPEAK_DONT_EXIT
        self._rate = int(
            self._library.espeak_Initialize(_ESPEAK_SYNCHRONOUS, 0, data.encode() if data else None, options)
        )
        if self._rate <= 0:
            raise InputError(
                f"ECHO_TRAIN_ESPEAK_DATA: {data!r} is not espeak-ng's data folder; "
                "name the folder espeak-ng-data itself"
            )
        self._blocks: list[S16Array] = []
        self._events: list[tuple[int, str]] = []
        # ctypes keeps no reference to a callback; without this one it would be collected while in use.
        self._callback = _ESPEAK_CALLBACK(self._receive)

    def voices(self) -> tuple[str, ...]:
        variants = [v for v in ESPEAK_VARIANTS if self._select(f"en+{v}")]
        plain = [name for name, _ in ESPEAK_LANGUAGES if self._select(name)]
        # Each choice of a voice queues an event; so many would push out the first phonemes of the next text.
        self._speak("a")
        return tuple(plain) + tuple(f"{name}+{variant}" for name in plain for variant in variants)

    def say(self, text: str, voice: str, style: Style) -> Utterance:
        """Speak ``text``; raises InputError for a voice that this espeak-ng does not have."""
        if not self._select(voice):
            raise InputError(f"voice: espeak-ng has no voice {voice!r}; `espeak-ng --voices` lists languages")
        language = voice.split("+")[0]
        rate = _ESPEAK_WORDS_PER_MINUTE * style.rate / style.tract
        # espeak's pitch runs 0..100 over about 1.5 octaves with the voice's own at 50.
        pitch = 50.0 + 66.0 * math.log2(style.pitch / style.tract)
        for parameter, value in (
            (_ESPEAK_RATE, min(max(rate, 80.0), 440.0)),
            (_ESPEAK_VOLUME, 80.0),
            (_ESPEAK_PITCH, min(max(pitch, 0.0), 100.0)),
            (_ESPEAK_RANGE, min(max(50.0 * style.liveliness, 0.0), 100.0)),
        ):
            self._library.espeak_SetParameter(parameter, round(value), 0)
        self._speak(text)
        pcm = np.concatenate([*self._blocks, np.zeros(1, np.int16)])
        samples = pcm.astype(np.float32) / 32768.0
        phonemes = _from_espeak(self._events, samples, self._rate, language)
        return _finish(samples, phonemes, self._rate, style.tract, (f"espeak:{voice}", language))

    def _select(self, voice: str) -> bool:
        return bool(self._library.espeak_SetVoiceByName(voice.encode()) == 0)

    def _speak(self, text: str) -> None:
        """Fill ``_blocks`` and ``_events``."""
        self._blocks, self._events = [], []
        # Set again each time: the library knows one callback, and another object may have set its own since.
        self._library.espeak_SetSynthCallback(self._callback)
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, _ESPEAK_CHARS_UTF8, None, None)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _ESPEAK_EVENT_END:
            event = events[index]
            if event.type == _ESPEAK_EVENT_PHONEME:
                symbol = bytes(event.id).split(b"\0")[0].decode("utf-8", "ignore")
                self._events.append((event.sample, symbol))
            index += 1
        return 0


def _from_espeak(events: Sequence[tuple[int, str]], samples: F32Array, rate: int, language: str) -> list[Phoneme]:
    """Phonemes from espeak's events, (sample, symbol) in order.

    An event without a symbol begins a pause. A voiceless stop is reported at its burst; the closure before it is
    found in the waveform and given to the stop, and the breath after it becomes a sound of its own.
    """
    phonemes: list[Phoneme] = []
    for (start, symbol), (end, _) in zip(events, [*events[1:], (len(samples), "")], strict=True):
        symbol = symbol.strip("ˈˌ ")
        if not symbol or symbol.startswith("(") or end <= start:
            continue
        if language in ("ru", "pl") and symbol.startswith("y"):
            symbol = "ɨ"  # espeak writes the unrounded vowel so
        start_s, end_s = start / rate, end / rate
        if not symbol.startswith(_VOICELESS_STOPS):
            phonemes.append(Phoneme(symbol, start_s, end_s))
            continue
        closure_s = _closure_start(samples, start, rate) / rate
        if phonemes and phonemes[-1].end_s > closure_s:
            before = phonemes.pop()
            closure_s = max(closure_s, before.start_s + 0.3 * (before.end_s - before.start_s))
            phonemes.append(Phoneme(before.symbol, before.start_s, closure_s))
        burst_s = min(start_s + _BURST_S, end_s)
        phonemes.extend(_stop(symbol, (closure_s, burst_s, end_s)))
    return phonemes


def _stop(symbol: str, times_s: tuple[float, float, float]) -> list[Phoneme]:
    """A stop or affricate as its closure and what follows the burst; ``times_s`` are closure, burst and end."""
    closure_s, burst_s, end_s = times_s
    after = symbol[1:].strip("ʰhːʲ") or ASPIRATION
    out = [Phoneme(symbol[0], closure_s, burst_s)]
    if end_s > burst_s:
        out.append(Phoneme(after, burst_s, end_s))
    return out


def _closure_start(samples: F32Array, burst: int, rate: int) -> int:
    """The sample where the silence before a burst begins, at most 90 ms before it."""
    step = rate // 250
    first = max(0, burst - int(_MAX_CLOSURE_S * rate))
    around = samples[max(0, burst - rate // 5) : burst + rate // 5]
    limit = 0.05 * float(np.max(np.abs(around), initial=0.0))
    position = burst
    while position - step >= first and np.max(np.abs(samples[position - step : position])) < limit:
        position -= step
    return position


def _finish(
    samples: F32Array, phonemes: Sequence[Phoneme], rate: int, tract: float, names: tuple[str, str]
) -> Utterance:
    """Bring an engine's output to :data:`SPEECH_RATE`, played ``tract`` times faster to move the formants."""
    out: F32Array = np.clip(resample(samples, SPEECH_RATE / (rate * tract)), -1.0, 1.0)
    scaled = tuple(Phoneme(p.symbol, p.start_s / tract, p.end_s / tract) for p in phonemes)
    return Utterance(out, scaled, voice=names[0], language=names[1])


# -------------------------------------------------------------------------------------------------------------- flite


@dataclass(frozen=True, slots=True)
class _FliteSpeaker:
    """A voice's usual fundamental frequency, and how far its sound lags behind the ends that it reports."""

    pitch_hz: float
    lag_s: float


_FLITE_VOICES = {
    "kal": _FliteSpeaker(95.0, 0.005),
    "kal16": _FliteSpeaker(95.0, 0.005),
    "awb": _FliteSpeaker(120.0, 0.003),
    "rms": _FliteSpeaker(100.0, 0.005),
    "slt": _FliteSpeaker(175.0, 0.017),
}
"""flite's voices. The lags were measured: where loudness fits vowels and stops best, in steps of 5 ms."""

_CLOSURE_SHARE = 0.6

_ARPABET = {
    **{"aa": "ɑ", "ae": "æ", "ah": "ʌ", "ao": "ɔ", "aw": "aʊ", "ax": "ə", "axr": "ɚ", "ay": "aɪ", "b": "b", "ch": "tʃ"},
    **{"d": "d", "dh": "ð", "dx": "ɾ", "eh": "ɛ", "el": "əl", "em": "m", "en": "n", "er": "ɝ", "ey": "eɪ", "f": "f"},
    **{"g": "g", "hh": "h", "hv": "h", "ih": "ɪ", "iy": "i", "jh": "dʒ", "k": "k", "l": "l", "m": "m", "n": "n"},
    **{"ng": "ŋ", "nx": "n", "ow": "oʊ", "oy": "ɔɪ", "p": "p", "r": "ɹ", "s": "s", "sh": "ʃ", "t": "t", "th": "θ"},
    **{"uh": "ʊ", "uw": "u", "v": "v", "w": "w", "y": "j", "z": "z", "zh": "ʒ", "pau": SILENCE, "ssil": SILENCE},
}
"""flite's American English phones in IPA."""


class _FliteWave(ctypes.Structure):
    """cst_wave of cst_wave.h."""

    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _FliteVoice(ctypes.Structure):
    """The head of cst_voice of cst_voice.h."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class FliteSynthesiser:
    """flite in this process: American and Scottish English voices made from recordings of people.

    ``kal`` and ``kal16`` are diphone voices (8 and 16 kHz), ``awb``, ``rms`` and ``slt`` statistical ones.
    Raises InputError if the library or every voice is missing.
    """

    def __init__(self, folder: str | None = None) -> None:
        folder = folder or os.environ.get("ECHO_TRAIN_FLITE_FOLDER")
        prefix = f"{folder}/" if folder else ""
        try:
            if folder and Path(folder, "libasound.so.2").exists():
                # flite is linked to it; a private folder may bring it along.
                ctypes.CDLL(f"{prefix}libasound.so.2", mode=ctypes.RTLD_GLOBAL)
            # The voices find flite's symbols among the global ones; the order is that of their needs.
            for name in ("libflite", "libflite_usenglish", "libflite_cmulex"):
                library = ctypes.CDLL(f"{prefix}{name}.so.1", mode=ctypes.RTLD_GLOBAL)
                if name == "libflite":
                    self._library = library
        except OSError as error:
            raise InputError(
                f"ECHO_TRAIN_FLITE_FOLDER: flite cannot be loaded ({error}); install flite or name its folder"
            ) from error
        pointer, string, real = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float
        self._library.flite_init()
        self._synthesise = self._function("flite_synth_text", pointer, string, pointer)
        self._wave = self._function("utt_wave", ctypes.POINTER(_FliteWave), pointer)
        self._relation = self._function("utt_relation", pointer, pointer, string)
        self._head = self._function("relation_head", pointer, pointer)
        self._next = self._function("item_next", pointer, pointer)
        self._item_string = self._function("item_feat_string", string, pointer, string)
        self._item_float = self._function("item_feat_float", real, pointer, string)
        self._delete = self._function("delete_utterance", None, pointer)
        self._set_float = self._function("feat_set_float", None, pointer, string, real)
        self._voices = {name: voice for name in _FLITE_VOICES if (voice := self._register(prefix, name)) is not None}
        if not self._voices:
            raise InputError("ECHO_TRAIN_FLITE_FOLDER: flite has no voices; add libflite_cmu_us_slt.so.1 and others")

    def voices(self) -> tuple[str, ...]:
        return tuple(self._voices)

    def say(self, text: str, voice: str, style: Style) -> Utterance:
        """Speak English ``text``; raises InputError for an unknown voice."""
        if voice not in self._voices:
            raise InputError(f"voice: flite has no voice {voice!r}; use one of {', '.join(self._voices)}")
        head, speaker = self._voices[voice], _FLITE_VOICES[voice]
        features = head.contents.features
        self._set_float(features, b"duration_stretch", style.tract / style.rate)
        self._set_float(features, b"int_f0_target_mean", speaker.pitch_hz * style.pitch / style.tract)
        if voice.startswith("kal"):
            self._set_float(features, b"int_f0_target_stddev", 11.0 * style.liveliness)
        spoken = self._synthesise(text.encode(), head)
        try:
            wave_head = self._wave(spoken).contents
            rate, count = wave_head.sample_rate, wave_head.num_samples
            samples = np.ctypeslib.as_array(wave_head.samples, (count,)).astype(np.float32) / 32768.0
            ends: list[tuple[str, float]] = []
            item = self._head(self._relation(spoken, b"Segment"))
            while item:
                phone = self._item_string(item, b"name").decode()
                ends.append((_ARPABET.get(phone, "ə"), float(self._item_float(item, b"end"))))
                item = self._next(item)
        finally:
            self._delete(spoken)
        return _finish(samples, _from_ends(ends, speaker.lag_s), rate, style.tract, (f"flite:{voice}", "en-us"))

    def _function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]

    def _register(self, prefix: str, name: str) -> Any:
        try:
            library = ctypes.CDLL(f"{prefix}libflite_cmu_us_{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError:
            return None
        register = getattr(library, f"register_cmu_us_{name}")
        register.restype, register.argtypes = ctypes.POINTER(_FliteVoice), (ctypes.c_void_p,)
        return register(None)


def _from_ends(ends: Sequence[tuple[str, float]], lag_s: float) -> list[Phoneme]:
    """Phonemes from segments, (IPA symbol, end in seconds) in order, ``lag_s`` later; silences are left out.

    A segment of a voiceless stop spans closure, burst and breath, which are told apart by share.
    """
    phonemes: list[Phoneme] = []
    start_s = lag_s
    for symbol, reported_s in ends:
        end_s = reported_s + lag_s
        if symbol != SILENCE and end_s > start_s:
            if symbol.startswith(_VOICELESS_STOPS):
                burst_s = start_s + _CLOSURE_SHARE * (end_s - start_s)
                phonemes.extend(_stop(symbol, (start_s, burst_s, end_s)))
            else:
                phonemes.append(Phoneme(symbol, start_s, end_s))
        start_s = max(start_s, end_s)
    return phonemes


# ----------------------------------------------------------------------------------------------------------- festival


@dataclass(frozen=True, slots=True)
class _FestivalSpeaker:
    """A voice's name for festival, its language and text encoding, its phones that are not IPA already, its lag."""

    command: str
    language: str
    encoding: str
    phones: dict[str, str]
    lag_s: float = 0.003


_SUOPUHE = {"a": "ɑ", "@": "æ", "7": "ø", "&": "ə", "T": "θ", "S": "ʃ", "N": "ŋ", "L": "l"}
_IFD = {"E": "ɛ", "O": "ɔ", "S": "ʃ", "Z": "ʒ", "tS": "tʃ", "dZ": "dʒ", "J": "ɲ", "ng": "ŋ", "nf": "ɱ", "L": "ʎ"}
_CZECH = {
    **{"c": "ts", "c~": "tʃ", "ch": "x", "d~": "ɟ", "dz~": "dʒ", "e": "ɛ", "n*": "ŋ", "n~": "ɲ", "r~": "rʒ"},
    **{"r~*": "rʃ", "s~": "ʃ", "t~": "c", "z~": "ʒ", "_": ASPIRATION},
}
_FESTIVAL_VOICES = {
    "suo_fi_lj": _FestivalSpeaker("suo_fi_lj_diphone", "fi", "latin-1", _SUOPUHE, 0.01),
    "hy_fi_mv": _FestivalSpeaker("hy_fi_mv_diphone", "fi", "latin-1", _SUOPUHE),
    "lp": _FestivalSpeaker("lp_diphone", "it", "latin-1", _IFD),
    "pc": _FestivalSpeaker("pc_diphone", "it", "latin-1", _IFD),
    "czech_dita": _FestivalSpeaker("czech_dita", "cs", "latin2", _CZECH),
    "czech_krb": _FestivalSpeaker("czech_krb", "cs", "latin2", _CZECH),
    "czech_machac": _FestivalSpeaker("czech_machac", "cs", "latin2", _CZECH),
    "czech_ph": _FestivalSpeaker("czech_ph", "cs", "latin2", _CZECH),
    "ked": _FestivalSpeaker("ked_diphone", "en-us", "ascii", _ARPABET),
    "slt_hts": _FestivalSpeaker("cmu_us_slt_arctic_hts", "en-us", "ascii", _ARPABET, 0.015),
}
"""Voices of Debian's festvox packages, recorded people all: women (lj, lp, dita, slt), men, and a boy (krb)."""

_FESTIVAL_SCRIPT = """
(voice_{voice})
(Parameter.set 'Duration_Stretch {stretch:.3f})
(set! spoken (utt.synth (Utterance Text "{text}")))
(utt.save.wave spoken "{wav}" 'riff)
(mapcar (lambda (s) (format t "@%s %f\\n" (item.name s) (item.feat s 'end))) (utt.relation.items spoken 'Segment))
"""


class FestivalSynthesiser:
    """festival in a process of its own for every text: recorded voices of several languages.

    Pitch follows the tract, and liveliness is the voice's own. Raises InputError if festival is not installed.
    """

    def __init__(self, program: str | None = None) -> None:
        named = program or os.environ.get("ECHO_TRAIN_FESTIVAL") or "festival"
        found = shutil.which(named)
        if found is None:
            raise InputError(f"ECHO_TRAIN_FESTIVAL: the program {named!r} is not there; install festival or name it")
        self._program = found

    def voices(self) -> tuple[str, ...]:
        listed = self._run('(format t "@%l" (voice.list))').partition("@")[2]
        names = set(listed.replace("(", " ").replace(")", " ").split())
        return tuple(voice for voice, speaker in _FESTIVAL_VOICES.items() if speaker.command in names)

    def say(self, text: str, voice: str, style: Style) -> Utterance:
        """Speak ``text``; raises InputError for an unknown voice or if festival fails."""
        if voice not in _FESTIVAL_VOICES:
            raise InputError(f"voice: {voice!r} is unknown for festival; use one of {', '.join(_FESTIVAL_VOICES)}")
        speaker = _FESTIVAL_VOICES[voice]
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder, "spoken.wav")
            plain = text.replace("\\", " ").replace('"', " ")
            stretch = style.tract / style.rate
            script = _FESTIVAL_SCRIPT.format(voice=speaker.command, stretch=stretch, text=plain, wav=wav)
            report = self._run(script, speaker.encoding)
            try:
                with wave.open(str(wav), "rb") as file:
                    rate = file.getframerate()
                    pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            except (OSError, EOFError, wave.Error) as error:
                last = report.strip().splitlines()[-1:] or ["no word from it"]
                raise InputError(
                    f"voice: festival could not speak as {voice!r} ({last[0]}); install its package"
                ) from error
        ends: list[tuple[str, float]] = []
        for line in report.splitlines():
            phone, _, end = line.removeprefix("@").partition(" ")
            if line.startswith("@") and end:
                symbol = _festival_symbol(phone, speaker.phones)
                ends.append((symbol, float(end)))
        samples = pcm.astype(np.float32) / 32768.0
        return _finish(
            samples, _from_ends(ends, speaker.lag_s), rate, style.tract, (f"festival:{voice}", speaker.language)
        )

    def _run(self, script: str, encoding: str = "ascii") -> str:
        """What festival prints and complains while it runs ``script``."""
        with tempfile.NamedTemporaryFile(suffix=".scm") as file:
            file.write(script.encode(encoding, "ignore"))
            file.flush()
            command = [self._program, "--batch", file.name]
            try:
                done = subprocess.run(command, capture_output=True, timeout=120, check=False, stdin=subprocess.DEVNULL)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise InputError(f"ECHO_TRAIN_FESTIVAL: {self._program!r} did not speak ({error})") from error
        return (done.stderr + done.stdout).decode("latin-1")


def _festival_symbol(phone: str, phones: dict[str, str]) -> str:
    """IPA for a phone of festival; stress digits and length marks are dropped."""
    if phone in ("pau", "ssil", "brth", "#", "##", "h#"):
        return SILENCE
    bare = phone.rstrip("1:") or phone
    return phones.get(phone) or phones.get(bare) or bare


# -------------------------------------------------------------------------------------------------------- any voice

_ENGINES: dict[str, Callable[[], Synthesiser]] = {
    "espeak": EspeakSynthesiser,
    "flite": FliteSynthesiser,
    "festival": FestivalSynthesiser,
}


@functools.cache
def _engine(name: str) -> Synthesiser:
    return _ENGINES[name]()


def say(text: str, voice: str, style: Style | None = None) -> Utterance:
    """Speak ``text`` with ``voice``, named ``ENGINE:NAME`` as in ``espeak:en-us+f3`` or ``flite:slt``.

    Raises InputError for an unknown voice or a missing engine.
    """
    engine, _, name = voice.partition(":")
    if engine not in _ENGINES or not name:
        raise InputError(f"voice: {voice!r} has no known engine; write it as espeak:en-us+f3, flite:slt or festival:lp")
    return _engine(engine).say(text, name, style or Style())


def language_of(voice: str) -> str:
    """The language of the texts for a voice, ``ENGINE:NAME``."""
    engine, _, name = voice.partition(":")
    if engine == "festival":
        return _FESTIVAL_VOICES[name].language
    return name.split("+")[0] if engine == "espeak" else "en-us"


def available_voices() -> tuple[str, ...]:
    """All voices of the engines that this machine has, named ``ENGINE:NAME``."""
    voices: list[str] = []
    for name in _ENGINES:
        try:
            voices.extend(f"{name}:{voice}" for voice in _engine(name).voices())
        except InputError:
            continue
    return tuple(voices)


# ------------------------------------------------------------------------------------------------------- the corpus


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """What a corpus is made of: ``hours`` of takes, ``seed``, patterns of voices taken in and left out.

    Patterns are as in a shell (``flite:*``, ``espeak:*+f3``).
    """

    hours: float
    seed: int
    voices: tuple[str, ...] = ("*",)
    held_out: tuple[str, ...] = ()
    engine_shares: dict[str, float] = field(default_factory=lambda: {"espeak": 0.4, "flite": 0.35, "festival": 0.25})

    def __post_init__(self) -> None:
        if not 0.0 < self.hours <= 1000.0:
            raise InputError(f"--hours is {self.hours}; give a number above 0 and at most 1000")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; give a whole number from 0 up")

    @property
    def takes(self) -> int:
        return max(1, round(self.hours * 3600 / TAKE_S))


def chosen_voices(plan: CorpusPlan) -> tuple[str, ...]:
    """The voices of this machine that the plan takes in; raises InputError if none is left or a pattern fits none."""
    everything = available_voices()
    for key, patterns in (("--voices", plan.voices), ("--held-out", plan.held_out)):
        for pattern in patterns:
            if not fnmatch.filter(everything, pattern):
                raise InputError(f"{key}: none of this machine's {len(everything)} voices fits {pattern!r}")
    kept = tuple(
        voice
        for voice in everything
        if any(fnmatch.fnmatchcase(voice, p) for p in plan.voices)
        and not any(fnmatch.fnmatchcase(voice, p) for p in plan.held_out)
    )
    if not kept:
        raise InputError(f"--held-out leaves no voice of {len(everything)}; hold fewer out")
    return kept


@dataclass(frozen=True, slots=True)
class _Job:
    """Takes ``first`` to ``first + count`` of a corpus with this seed, spoken by any of ``voices``."""

    seed: int
    first: int
    count: int
    voices: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Takes of one voice each: ``audio`` (T, samples) int16 at 16 kHz, ``mouth`` (T, values, 5) float16 at 100 Hz.

    ``voice`` (T,) int32 indexes ``voices``. Columns of ``mouth`` are visemes.PARAMETERS; value k of a take is the
    mouth at (k + 0.5) / 100 s of it.
    """

    audio: S16Array
    mouth: NDArray[np.float16]
    voice: NDArray[np.int32]
    voices: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write a safetensors file: the arrays, and voices, rates and parameter names in its metadata."""
        metadata = {
            "voices": json.dumps(self.voices),
            "sample_rate": str(SPEECH_RATE),
            "track_rate": str(TRACK_RATE),
            "parameters": json.dumps(PARAMETERS),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            save_file({"audio": self.audio, "mouth": self.mouth, "voice": self.voice}, partial, metadata)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"--output: {str(path)!r} cannot be written ({error}); choose another path") from error


def build_corpus(plan: CorpusPlan, processes: int = 1, progress: bool = False) -> Corpus:
    """Speak the whole corpus in ``processes`` processes. The result depends on the plan and the engines alone.

    Raises InputError for patterns that fit no voice or a machine without engines.
    """
    voices = chosen_voices(plan)
    weights = _voice_weights(voices, plan.engine_shares)
    jobs = [
        _Job(plan.seed, first, min(TAKES_PER_JOB, plan.takes - first), voices, weights)
        for first in range(0, plan.takes, TAKES_PER_JOB)
    ]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        parts = list(tqdm(pool.map(_make_takes, jobs), total=len(jobs), disable=not progress, unit="job"))
    return Corpus(
        audio=np.concatenate([part[0] for part in parts]),
        mouth=np.concatenate([part[1] for part in parts]),
        voice=np.concatenate([part[2] for part in parts]),
        voices=voices,
    )


def _voice_weights(voices: Sequence[str], shares: dict[str, float]) -> tuple[float, ...]:
    """How often each voice speaks, summing to 1: engines by ``shares``, within them by language, or evenly."""
    languages = dict(ESPEAK_LANGUAGES)
    raw = []
    for voice in voices:
        engine, _, name = voice.partition(":")
        raw.append(languages.get(name.split("+")[0], 1.0) if engine == "espeak" else 0.3 if name == "kal" else 1.0)
    engines = [voice.partition(":")[0] for voice in voices]
    totals = {engine: sum(w for w, e in zip(raw, engines, strict=True) if e == engine) for engine in set(engines)}
    weights = [shares.get(engine, 1.0) * w / totals[engine] for w, engine in zip(raw, engines, strict=True)]
    return tuple(w / sum(weights) for w in weights)


def _make_takes(job: _Job) -> tuple[S16Array, NDArray[np.float16], NDArray[np.int32]]:
    audio = np.zeros((job.count, TAKE_S * SPEECH_RATE), np.int16)
    mouth = np.zeros((job.count, TAKE_S * TRACK_RATE, len(PARAMETERS)), np.float16)
    voice = np.zeros(job.count, np.int32)
    for index in range(job.count):
        rng = np.random.default_rng([job.seed, job.first + index])
        voice[index] = rng.choice(len(job.voices), p=job.weights)
        samples, phonemes = _take(job.voices[voice[index]], rng)
        audio[index] = np.round(samples * 32767.0).astype(np.int16)
        times = ((np.arange(mouth.shape[1]) + 0.5) / TRACK_RATE).astype(np.float32)
        mouth[index] = mouth_track(phonemes, times, relative_loudness(samples, SPEECH_RATE, times))
    return audio, mouth, voice


def _take(voice: str, rng: np.random.Generator) -> tuple[F32Array, list[Phoneme]]:
    """One take: sentences of one voice in one style with pauses between them, cut anywhere at its ends.

    One in twenty-five is silence, so that augmentation has something to turn into noise without speech.
    """
    if rng.random() < SILENT_SHARE:
        return np.zeros(TAKE_S * SPEECH_RATE, np.float32), []
    style = Style(
        rate=float(np.clip(np.exp(rng.normal(0.0, 0.18)), 0.65, 1.7)),
        pitch=float(np.clip(np.exp(rng.normal(0.0, 0.15)), 0.7, 1.45)),
        liveliness=float(rng.uniform(0.3, 2.0)),
        tract=float(rng.uniform(0.84, 1.2)),
    )
    length = TAKE_S * SPEECH_RATE
    samples = np.zeros(length, np.float32)
    phonemes: list[Phoneme] = []
    # Starting before zero cuts into the first sentence, so that takes do not all begin with the start of speech.
    position = int(rng.uniform(-1.5, 0.8) * SPEECH_RATE)
    language = language_of(voice)
    while position < length:
        spoken = say(sentence(language, rng), voice, style)
        peak = float(np.max(np.abs(spoken.samples), initial=0.0))
        gain = float(np.exp(rng.normal(0.0, 0.2))) * 0.6 / max(peak, 1e-3)
        first, last = max(position, 0), min(position + len(spoken.samples), length)
        if last > first:
            samples[first:last] = gain * spoken.samples[first - position : last - position]
        start_s = position / SPEECH_RATE
        phonemes.extend(Phoneme(p.symbol, p.start_s + start_s, p.end_s + start_s) for p in spoken.phonemes)
        pause_s = rng.uniform(1.5, 3.0) if rng.random() < 0.1 else rng.uniform(0.2, 1.5)
        position += len(spoken.samples) + int(pause_s * SPEECH_RATE)
    return np.clip(samples, -0.98, 0.98), phonemes


# ----------------------------------------------------------------------------------------------------- command lines


def main(argv: Sequence[str]) -> int:
    """``speech``: write a corpus. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="echo-rtc train speech", description="Write a corpus of speech.")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--hours", type=float, default=1.0, help="hours of speech (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same corpus (default 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one for each core")
    parser.add_argument("--voices", nargs="+", default=["*"], metavar="PATTERN", help="voices to use, as flite:*")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="PATTERN", help="voices to leave out")
    arguments = parser.parse_args(argv)
    try:
        if arguments.processes < 1:
            raise InputError(f"--processes is {arguments.processes}; give at least 1")
        plan = CorpusPlan(arguments.hours, arguments.seed, tuple(arguments.voices), tuple(arguments.held_out))
        corpus = build_corpus(plan, arguments.processes, progress=True)
        corpus.save(arguments.output)
    except EchoRtcError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{arguments.output}: {len(corpus.audio)} takes of {TAKE_S} s, {len(corpus.voices)} voices\n")
    return 0


SAMPLE_TEXT = (
    "Hello, and welcome! It is lovely to meet you.",
    "I am a face that lives in your browser.",
    "Speak to me, and I will answer with my lips, and with your very own words.",
    "Shall we try?",
)
"""What the bundled sample voice says, sentence by sentence."""

WAV_RATE = 48_000


def spoken_wav(sentences: Sequence[str], voice: str, style: Style, pause_s: float) -> S16Array:
    """Sentences with ``pause_s`` of silence after each, (N,) int16 at :data:`WAV_RATE`."""
    quiet = np.zeros(round(pause_s * SPEECH_RATE), np.float32)
    parts = [np.zeros(SPEECH_RATE // 2, np.float32)]
    for text in sentences:
        spoken = say(text, voice, style)
        loud = np.flatnonzero(np.abs(spoken.samples) > 0.01)
        if len(loud):
            # The engine's own silence at both ends would add to the pause.
            margin = SPEECH_RATE // 20
            parts.append(spoken.samples[max(0, loud[0] - margin) : loud[-1] + margin])
        parts.append(quiet)
    samples = resample(np.concatenate(parts), WAV_RATE / SPEECH_RATE)
    return np.round(samples * (0.7 * 32767.0 / max(float(np.max(np.abs(samples))), 1e-3))).astype(np.int16)


def main_voice(argv: Sequence[str]) -> int:
    """``voice``: write one WAV file of speech, 48 kHz mono 16 bit. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="echo-rtc train voice", description="Speak into a WAV file.")
    parser.add_argument("--text", nargs="+", default=list(SAMPLE_TEXT), help="sentences (default: a welcome)")
    parser.add_argument("--output", type=Path, required=True, help="WAV file to write")
    parser.add_argument("--voice", default="flite:slt", help="ENGINE:NAME (default flite:slt)")
    parser.add_argument("--rate", type=float, default=1.0, help="speed of speech (default 1)")
    parser.add_argument("--pause", type=float, default=0.9, help="seconds after each sentence (default 0.9)")
    arguments = parser.parse_args(argv)
    try:
        try:
            style = Style(rate=arguments.rate)
        except ValueError as error:
            raise InputError(f"--rate: {error}") from error
        if not 0.0 <= arguments.pause <= 60.0:
            raise InputError(f"--pause is {arguments.pause}; give 0 to 60 seconds")
        pcm = spoken_wav(arguments.text, arguments.voice, style, arguments.pause)
        try:
            with arguments.output.open("wb") as raw, wave.open(raw, "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(WAV_RATE)
                file.writeframes(pcm.tobytes())
        except OSError as error:
            raise InputError(f"--output: {str(arguments.output)!r} cannot be written ({error})") from error
    except EchoRtcError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{arguments.output}: {len(pcm) / WAV_RATE:.1f} s\n")
    return 0
