"""Sound of any format is mixed down and resampled: no seam, no overflow, gaps where there were gaps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from echo_rtc.clips import F32Array, S16Array
from echo_rtc.codec.resampling import PcmConverter, SpeechResampler, VoiceConverter, mono, mono_mix

LAYOUTS = {1: "mono", 2: "stereo"}


def block(
    pts: int | None, samples: np.ndarray[tuple[int, int], np.dtype[np.int16]], rate: int = 48_000
) -> av.AudioFrame:
    """``samples`` (channels, n)."""
    layout = "mono" if len(samples) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="s16", layout=layout)
    frame.sample_rate = rate
    frame.pts = pts
    frame.time_base = Fraction(1, rate)
    return frame


def test_loud_stereo_does_not_overflow() -> None:
    for value in (32_767, -32_768):
        loud = np.full((2, 960), value, np.int16)
        made = mono(block(0, loud))
        assert made is not None
        assert set(made.tolist()) == {value}


def test_blocks_are_copies() -> None:
    frame = block(0, np.full((1, 960), 7, np.int16))
    made = mono(frame)
    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
    assert made is not None
    assert set(made.tolist()) == {7}


def pushed(resampler: SpeechResampler, pcm: S16Array, sizes: list[int]) -> F32Array:
    """All that comes out for ``pcm`` pushed in pieces of ``sizes``, over and over; its count is checked at each."""
    out: list[F32Array] = []
    done = 0
    while done < len(pcm):
        for size in sizes:
            out.append(resampler.push(pcm[done : done + size]))
            done = min(len(pcm), done + size)
            assert sum(map(len, out)) == done * resampler.rate // 48_000
    return np.concatenate(out)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 48_000])
def test_sample_counts_are_exact_and_pieces_join_smoothly(rate: int) -> None:
    t = np.arange(48_000 * 3) / 48_000
    pcm = (np.sin(2 * np.pi * 440 * t) * 20_000).astype(np.int16)
    whole = pushed(SpeechResampler(rate), pcm, [len(pcm)])
    pieces = pushed(SpeechResampler(rate), pcm, [960, 120, 1, 2_880, 47, 48_000])
    assert np.abs(whole - pieces).max() < 1e-4
    resampler = SpeechResampler(rate)
    pushed(resampler, pcm, [960])
    late = resampler.latency_samples / rate
    assert late <= 0.0025
    wanted = np.sin(2 * np.pi * 440 * (np.arange(len(whole)) / rate - late)) * 20_000 / 32_768
    assert np.abs(whole - wanted)[rate // 10 :].max() < 0.01


def test_full_scale_stays_finite_and_near_one() -> None:
    square = np.where(np.arange(48_000) // 100 % 2, 32_767, -32_768).astype(np.int16)
    out = pushed(SpeechResampler(16_000), square, [960])
    assert np.isfinite(out).all()
    assert out.dtype == np.float32
    assert np.abs(out).max() < 1.3


def test_nothing_in_nothing_out() -> None:
    assert len(SpeechResampler(16_000).push(np.zeros(0, np.int16))) == 0


def test_many_channels_are_their_mean() -> None:
    six = np.array([[1, 2, 3, 4, 5, 6], [-1, -2, -3, -4, -5, -6]], np.int16)
    assert mono_mix(six).tolist() == [3, -4]
    assert mono_mix(six[:, :2]).tolist() == [1, -2]


def frame(pts: int | None, samples: int, rate: int, sample_format: str = "s16", channels: int = 1) -> av.AudioFrame:
    """A piece of a 300 Hz tone of half scale that begins at time 0, from sample ``pts`` on."""
    when = (np.arange(samples) + (pts or 0)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 300 * when)
    packed = not sample_format.endswith("p")
    scaled = (tone * 32_767).astype(np.int16) if sample_format.startswith("s16") else tone.astype(np.float32)
    data: Any = np.repeat(scaled, channels).reshape(1, -1) if packed else np.tile(scaled, (channels, 1))
    made = av.AudioFrame.from_ndarray(data, format=sample_format, layout=LAYOUTS[channels])
    made.sample_rate = rate
    made.pts, made.time_base = pts, Fraction(1, rate)
    return made


def placed(frames: list[av.AudioFrame]) -> np.ndarray[Any, np.dtype[np.int16]]:
    """The frames' left channel at their places in time."""
    assert frames
    end = max((made.pts or 0) + made.samples for made in frames)
    line = np.zeros(end, np.int16)
    for made in frames:
        assert made.time_base == Fraction(1, 48_000)
        assert (made.sample_rate, made.format.name) == (48_000, "s16")
        pcm = made.to_ndarray().reshape(-1, made.layout.nb_channels)[:, 0]
        line[made.pts : (made.pts or 0) + made.samples] = pcm
    return line


@pytest.mark.parametrize(
    ("rate", "sample_format", "channels"),
    [(48_000, "s16", 2), (24_000, "s16", 1), (44_100, "fltp", 2), (16_000, "flt", 1), (8_000, "s16p", 1)],
)
def test_the_sound_stays_where_it_was(rate: int, sample_format: str, channels: int) -> None:
    converter, block = VoiceConverter(), rate // 50
    made = [
        part for n in range(100) for part in converter.convert(frame(n * block, block, rate, sample_format, channels))
    ]
    line = placed(made)
    assert len(line) == pytest.approx(96_000, abs=200)
    expected = 0.5 * 32_767 * np.sin(2 * np.pi * 300 * np.arange(len(line)) / 48_000)
    # Filters of resampling lag less than a millisecond.
    lag = min(range(48), key=lambda n: float(np.abs(line[4_000:90_000] - expected[4_000 - n : 90_000 - n]).mean()))
    error = np.abs(line[4_000:90_000] - expected[4_000 - lag : 90_000 - lag]).mean()
    assert error < 0.03 * 32_767


@pytest.mark.parametrize("rate", [48_000, 24_000])
def test_a_gap_stays_a_gap(rate: int) -> None:
    converter, block = VoiceConverter(), rate // 50
    numbers = [*range(10), *range(40, 50)]
    made = [part for n in numbers for part in converter.convert(frame(n * block, block, rate))]
    line = placed(made)
    quiet = line[10 * 960 + 50 : 40 * 960]
    assert not quiet.any()
    assert np.abs(line[40 * 960 + 50 :]).max() > 10_000


def test_frames_without_stamps_follow_on_each_other() -> None:
    converter = VoiceConverter()
    for rate in (48_000, 16_000):
        pts = [part.pts or 0 for _ in range(10) for part in converter.convert(frame(None, rate // 50, rate))]
        assert len(pts) >= 9
        assert np.all(np.diff(pts) > 0)
    assert pts[-1] == pytest.approx(19 * 960, abs=100)


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_pushed_pieces_are_what_the_whole_is(rate: int) -> None:
    pcm = (np.sin(np.arange(rate // 10) * 2 * np.pi * 440 / rate) * 20_000).astype("<i2")
    whole, pieces = PcmConverter(rate), PcmConverter(rate)
    expected = np.concatenate([whole.push(pcm.tobytes()), whole.flush()])
    made = [pieces.push(pcm[start : start + 7].tobytes()) for start in range(0, len(pcm), 7)]
    assert np.array_equal(np.concatenate([*made, pieces.flush()]), expected)
    assert abs(len(expected) - 4800) <= 96


def test_sound_too_short_for_a_filter_is_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "AudioResampler", None)  # which takes a millisecond to make
    converter = PcmConverter(24_000)
    assert [len(converter.push(np.array([level], "<i2").tobytes())) for level in (100, 200, 300)] == [0, 0, 0]
    assert converter.flush().tolist() == [100, 150, 200, 250, 300, 300]
    assert PcmConverter(24_000).flush().tolist() == []
