"""From phonemes with times to the five numbers that draw a mouth, as smooth curves.

The five numbers (:data:`PARAMETERS`): ``open`` 0 shut .. 1 jaw wide open; ``width`` -1 rounded .. 0 at rest .. 1
spread; ``press`` 0 .. 1 lips pressed together (p, b, m); ``teeth`` 0 .. 1 teeth seen (f, v, s, z, sh ...); ``tongue``
0 .. 1 tongue seen (l, th, n, d, t). All zero is the shut mouth at rest.

Coarticulation is the dominance model of M. M. Cohen and D. W. Massaro, "Modeling coarticulation in synthetic visual
speech" (1993): every segment has a target and, for each parameter, a dominance that decays with the distance in time;
the curve is the mean of the targets weighted by the dominances. A consonant that leaves a parameter free has little
dominance there and takes the shape of its neighbours. What must be reached at any speaking rate (closed lips of p, b,
m, lip on teeth of f, v) is laid over the mean as a gate with ramps.

Phonemes are written in IPA, as :mod:`echo_rtc.train.speech` gives them. Knows nothing of synthesisers or drawing.
"""

# ruff: noqa: RUF001 (phonetic letters are meant here)

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from echo_rtc.clips import F32Array

F64Array = NDArray[np.float64]

PARAMETERS = ("open", "width", "press", "teeth", "tongue")
"""Names of the columns of a mouth track, in order."""

SILENCE = "_"
"""The symbol of a stretch without speech; stretches between phonemes count as such too."""

ASPIRATION = "ʰ"
"""The symbol of the breath after a stop's burst: the mouth is already on its way to what follows."""

LOUDNESS_FLOOR_DB = -40.0
"""Level under the speech's own level at which :func:`relative_loudness` is 0."""


class TimedPhoneme(Protocol):
    """What a track is made from: an IPA symbol (possibly several letters) and when it sounds, in seconds."""

    @property
    def symbol(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Viseme:
    """Target and dominance of one sound: ``target`` and ``weight`` (5,) in the order of :data:`PARAMETERS`.

    ``gate`` is how far the sound must close the lips at any rate: 0 not at all, 1 shut.
    """

    target: tuple[float, float, float, float, float]
    weight: tuple[float, float, float, float, float]
    gate: float = 0.0


def _vowel(opening: float, width: float) -> Viseme:
    return Viseme((opening, width, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0, 1.0))


def _lips(opening: float, width: float) -> Viseme:
    """Consonants made by rounding the lips."""
    return Viseme((opening, width, 0.0, 0.0, 0.0), (0.8, 1.2, 0.6, 0.5, 0.4))


def _tip(opening: float, teeth: float, tongue: float) -> Viseme:
    """Consonants made by the tip of the tongue; the lips are free."""
    return Viseme((opening, 0.1, 0.0, teeth, tongue), (0.55, 0.15, 0.6, 1.0, 2.0))


def _hiss(opening: float, width: float, teeth: float) -> Viseme:
    """Sibilants: the teeth nearly meet."""
    return Viseme((opening, width, 0.0, teeth, 0.0), (0.8, 0.6, 0.6, 2.5, 0.6))


def _back(opening: float, width: float = 0.0) -> Viseme:
    """Consonants made at the back of the mouth; nearly nothing is seen."""
    return Viseme((opening, width, 0.0, 0.0, 0.0), (0.3, 0.1, 0.6, 0.4, 0.5))


# The gate closes the lips of these; small weights for opening and pressing leave the vowels beside them their shape.
_BILABIAL = Viseme((0.0, 0.0, 1.0, 0.0, 0.0), (0.3, 0.1, 0.15, 0.6, 0.6), gate=1.0)
_LABIODENTAL = Viseme((0.1, 0.1, 0.4, 1.0, 0.0), (0.4, 0.3, 0.4, 0.3, 0.6), gate=0.95)
_REST = Viseme((0.0, 0.0, 0.0, 0.0, 0.0), (1.2, 0.8, 0.8, 1.0, 1.0))
_FREE = Viseme((0.2, 0.0, 0.0, 0.0, 0.0), (0.12, 0.05, 0.4, 0.2, 0.2))

_VISEMES: dict[str, Viseme] = {SILENCE: _REST, ASPIRATION: _FREE}


def _enter(symbols: str, viseme: Viseme) -> None:
    _VISEMES.update(dict.fromkeys(symbols, viseme))


_enter("aä", _vowel(0.88, 0.12))
_enter("ɑ", _vowel(0.92, -0.05))
_enter("ɐ", _vowel(0.68, 0.05))
_enter("æ", _vowel(0.80, 0.45))
_enter("ɛ", _vowel(0.58, 0.42))
_enter("e", _vowel(0.44, 0.58))
_enter("ɪ", _vowel(0.32, 0.50))
_enter("i", _vowel(0.24, 0.85))
_enter("ɨɯ", _vowel(0.24, 0.40))
_enter("y", _vowel(0.22, -0.75))
_enter("ʏ", _vowel(0.26, -0.60))
_enter("ø", _vowel(0.36, -0.62))
_enter("œɶ", _vowel(0.52, -0.45))
_enter("əɘɤ", _vowel(0.38, 0.05))
_enter("ɜ", _vowel(0.44, -0.05))
_enter("ɚɝɵ", _vowel(0.36, -0.28))
_enter("ʌ", _vowel(0.64, 0.08))
_enter("ɔ", _vowel(0.62, -0.50))
_enter("ɒ", _vowel(0.74, -0.32))
_enter("o", _vowel(0.44, -0.72))
_enter("ʊ", _vowel(0.30, -0.58))
_enter("uʉ", _vowel(0.20, -0.92))
_enter("pbmɓ", _BILABIAL)
_enter("fvɱⱱ", _LABIODENTAL)
_enter("wʍɥ", _lips(0.14, -0.95))
_enter("ɸβʋ", _lips(0.14, 0.0))
_enter("ɹɻ", _lips(0.22, -0.45))
_enter("td", _tip(0.18, 0.35, 0.7))
_enter("ʈɖɗ", _tip(0.22, 0.25, 0.5))
_enter("nɳ", _tip(0.22, 0.25, 0.75))
_enter("lɭɫɬɮɺ", _tip(0.34, 0.15, 1.0))
_enter("rɾɽ", _tip(0.28, 0.2, 0.6))
_enter("θð", Viseme((0.22, 0.15, 0.0, 0.55, 1.0), (0.8, 0.2, 0.6, 1.5, 2.5)))
_enter("sz", _hiss(0.14, 0.35, 0.95))
_enter("ʃʒʂʐ", _hiss(0.20, -0.60, 0.95))
_enter("ɕʑ", _hiss(0.18, 0.15, 0.95))
_enter("çʝ", _hiss(0.22, 0.45, 0.4))
_enter("jʲ", Viseme((0.22, 0.60, 0.0, 0.1, 0.0), (0.5, 0.5, 0.6, 0.4, 0.4)))
_enter("cɟɲʎ", Viseme((0.24, 0.30, 0.0, 0.1, 0.3), (0.5, 0.3, 0.6, 0.4, 0.5)))
_enter("kgɡŋxɣɠʟ", _back(0.28))
_enter("qɢχʁʀħʕɴ", _back(0.36))
_enter("hɦʔ", _FREE)

_CLOSURE_SHARE = 0.45
"""Share of an affricate's time that its stop takes."""

_SPREAD_S = 0.055
"""Time constant of dominance around a long segment; short segments have shorter ones."""

_GATE_RAMP_S = 0.045
"""How long the lips take to close before p, b, m and to open after."""

_GAP_S = 0.06
"""A hole between phonemes that is longer than this is silence; a shorter one belongs to its neighbours."""

_REST_SPREAD_S = 0.035
_REST_AFTER_S = 0.07
_REST_BEFORE_S = 0.06
"""Silence is in full force from 70 ms after the last sound to 60 ms before the next, with this time constant around it:
the mouth is shut about 120 ms after speech and begins to open as long before it."""

_OPEN, _PRESS, _TEETH = (PARAMETERS.index(name) for name in ("open", "press", "teeth"))


@dataclass(frozen=True, slots=True)
class _Segment:
    viseme: Viseme
    start_s: float
    end_s: float


def visemes_of(symbol: str) -> list[tuple[Viseme, float]]:
    """The visemes of an IPA symbol of one or more letters, in order, each with its share of the time.

    Stress, length, tone and other marks are ignored; diphthongs and affricates give one viseme a letter. A symbol
    without a known letter gives the free viseme, which leaves the mouth to its neighbours.
    """
    letters = [c for c in unicodedata.normalize("NFD", symbol) if c in _VISEMES]
    if len(letters) > 1:
        letters = [c for c in letters if c not in (SILENCE, ASPIRATION, "h", "ʲ")] or letters[:1]
    if not letters:
        return [(_FREE, 1.0)]
    if len(letters) == 2 and letters[0] in "tdpɖʈ":
        return [(_VISEMES[letters[0]], _CLOSURE_SHARE), (_VISEMES[letters[1]], 1.0 - _CLOSURE_SHARE)]
    if len(letters) == 2:
        # A diphthong stays longer at its first vowel.
        return [(_VISEMES[letters[0]], 0.6), (_VISEMES[letters[1]], 0.4)]
    return [(_VISEMES[c], 1.0 / len(letters)) for c in letters]


def mouth_track(
    phonemes: Sequence[TimedPhoneme], times_s: F32Array | Sequence[float], loudness: F32Array | None = None
) -> F32Array:
    """Mouth parameters at any times: (F, 5) float32, columns as :data:`PARAMETERS`.

    ``times_s`` (F,) are seconds on the phonemes' clock, in any order; before the first and after the last phoneme there
    is silence. ``loudness`` (F,) in 0..1 (see :func:`relative_loudness`) makes quiet speech open a little less:
    the opening is scaled by 0.75 at 0 to 1 at 1.

    Raises ValueError if the phonemes overlap or run backwards, or the lengths differ.
    """
    times = np.asarray(times_s, dtype=np.float64)
    segments = _segments(phonemes)
    if not segments:
        return np.zeros((len(times), len(PARAMETERS)), np.float32)
    target = np.array([s.viseme.target for s in segments])
    weight = np.array([s.viseme.weight for s in segments])
    low, high = _cores(segments)
    duration = high - low
    # Time constants shrink with the duration, so that fast vowels still stand out between their consonants.
    spread = np.minimum(_SPREAD_S, 0.018 + 0.7 * duration)
    spread[[s.viseme is _REST for s in segments]] = _REST_SPREAD_S
    distance = np.maximum(low - times[:, None], times[:, None] - high).clip(min=0.0)  # (F, P)
    dominance = np.exp(-0.5 * (distance / spread) ** 2) + 1e-12
    force = dominance @ weight
    track = (dominance @ (weight * target)) / force
    _shut_lips(track, times, segments)
    if loudness is not None:
        if len(loudness) != len(times):
            raise ValueError(f"loudness has {len(loudness)} values for {len(times)} times")
        track[:, 0] *= 0.75 + 0.25 * np.clip(loudness, 0.0, 1.0)
    mouths: F32Array = np.clip(track, (0.0, -1.0, 0.0, 0.0, 0.0), 1.0).astype(np.float32)
    return mouths


def relative_loudness(samples: F32Array, sample_rate: int, times_s: F32Array) -> F32Array:
    """How loud speech is at each time, (F,) in 0..1: 1 at its own loud level, 0 at 40 dB below and in silence.

    ``samples`` (N,) float32. The level is the RMS in a 60 ms window, against the 90th percentile of the windows'.
    """
    window = round(0.06 * sample_rate)
    power = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    centre = np.round(np.asarray(times_s) * sample_rate).astype(int)
    low = np.clip(centre - window // 2, 0, len(samples))
    high = np.clip(centre + window // 2, 0, len(samples))
    level = np.sqrt((power[high] - power[low]) / np.maximum(high - low, 1))
    every = power[window::window] - power[:-window:window]
    reference = math.sqrt(float(np.percentile(every, 90)) / window) if len(every) else 0.0
    if reference <= 0.0:
        return np.zeros(len(centre), np.float32)
    decibel = 20.0 * np.log10(np.maximum(level / reference, 1e-6))
    loudness: F32Array = np.clip(1.0 - decibel / LOUDNESS_FLOOR_DB, 0.0, 1.0).astype(np.float32)
    return loudness


def _segments(phonemes: Sequence[TimedPhoneme]) -> list[_Segment]:
    """The visemes in order, holes filled with silence, silence without end before and after."""
    segments: list[_Segment] = []
    clock = -math.inf
    for phoneme in phonemes:
        if phoneme.end_s < phoneme.start_s or phoneme.start_s < clock - 1e-4:
            raise ValueError(f"phoneme {phoneme.symbol!r} at {phoneme.start_s:.3f} s overlaps what precedes it")
        if phoneme.start_s - clock > _GAP_S:
            segments.append(_Segment(_REST, clock, phoneme.start_s))
        clock = phoneme.end_s
        duration, start = phoneme.end_s - phoneme.start_s, phoneme.start_s
        for viseme, share in visemes_of(phoneme.symbol):
            segments.append(_Segment(viseme, start, start + share * duration))
            start += share * duration
    if segments:
        segments.append(_Segment(_REST, clock, math.inf))
    return segments


def _cores(segments: Sequence[_Segment]) -> tuple[F64Array, F64Array]:
    """Where each segment is in full force, (P,) and (P,): a sound over its middle half, silence but for its edges."""
    starts, ends = [], []
    for segment in segments:
        if segment.viseme is _REST:
            low, high = segment.start_s + _REST_AFTER_S, segment.end_s - _REST_BEFORE_S
        else:
            quarter = 0.25 * (segment.end_s - segment.start_s)
            low, high = segment.start_s + quarter, segment.end_s - quarter
        if low > high:
            low = high = 0.5 * (low + high)
        starts.append(low)
        ends.append(high)
    return np.array(starts), np.array(ends)


def _shut_lips(track: F64Array, times: F64Array, segments: Sequence[_Segment]) -> None:
    """Lay the closures over ``track`` (F, 5) in place: shut inside the sound, cosine ramps before and after it.

    A ramp takes at most half of the free time to the next closure, so that a short vowel between two of them opens.
    """
    gates = [segment for segment in segments if segment.viseme.gate]
    for index, segment in enumerate(gates):
        free_before = segment.start_s - gates[index - 1].end_s if index else math.inf
        free_after = gates[index + 1].start_s - segment.end_s if index + 1 < len(gates) else math.inf
        before, after = (min(_GATE_RAMP_S, max(0.5 * free, 0.02)) for free in (free_before, free_after))
        outside = np.maximum((segment.start_s - times) / before, (times - segment.end_s) / after).clip(min=0.0)
        near = np.flatnonzero(outside < 1.0)
        force = segment.viseme.gate * 0.5 * (1.0 + np.cos(np.pi * outside[near]))
        target = np.array(segment.viseme.target)
        for column in (_OPEN, _PRESS, _TEETH):
            track[near, column] += force * (target[column] - track[near, column])
