"""Blocks are drained, made mono, and resampled without a seam."""

from __future__ import annotations

import asyncio
import logging
from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.clips import F32Array, S16Array
from echo_rtc.stream.log import StreamLog
from echo_rtc.stream.microphone import Microphone, SpeechResampler, mono

LOG = StreamLog(logging.getLogger("test"), "0123456789")


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


class Scripted(MediaStreamTrack):
    kind = "audio"

    def __init__(self, frames: list[av.AudioFrame]) -> None:
        super().__init__()
        self._frames = frames

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(0)
        if not self._frames:
            raise MediaStreamError
        return self._frames.pop(0)


async def test_all_blocks_go_on_until_the_track_ends(caplog: pytest.LogCaptureFixture) -> None:
    got: list[tuple[int, S16Array]] = []
    microphone = Microphone(lambda pts, pcm: got.append((pts, pcm)), LOG)
    left, right = np.full(960, 1_000, np.int16), np.full(960, 3_000, np.int16)
    track = Scripted(
        [
            block(0, np.stack([left, right])),
            block(960, left[None]),
            block(None, left[None]),
            block(0, left[None, :160], rate=8_000),
            block(5_760, np.stack([left, left])),
        ]
    )
    await microphone.run(track)
    assert [pts for pts, _ in got] == [0, 960, 5_760]
    assert [int(pcm[0]) for _, pcm in got] == [2_000, 1_000, 1_000]
    assert all(pcm.shape == (960,) and pcm.dtype == np.int16 for _, pcm in got)
    assert (microphone.blocks, microphone.unusable) == (3, 2)
    assert len([record for record in caplog.records if "cannot be used" in record.message]) == 1


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
def test_the_count_is_exact_at_every_moment_and_the_seams_are_silent(rate: int) -> None:
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
