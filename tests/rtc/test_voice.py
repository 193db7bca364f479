"""Voices of any format: the same sound at 48 kHz, at the same time, with gaps where there were gaps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.rtc.voice import VoiceConverter, VoiceTrack

LAYOUTS = {1: "mono", 2: "stereo"}


def frame(pts: int | None, samples: int, rate: int, format: str = "s16", channels: int = 1) -> av.AudioFrame:
    """A piece of a 300 Hz tone of half scale that begins at time 0, from sample ``pts`` on."""
    when = (np.arange(samples) + (pts or 0)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 300 * when)
    packed = not format.endswith("p")
    scaled = (tone * 32_767).astype(np.int16) if format.startswith("s16") else tone.astype(np.float32)
    data: Any = np.repeat(scaled, channels).reshape(1, -1) if packed else np.tile(scaled, (channels, 1))
    made = av.AudioFrame.from_ndarray(data, format=format, layout=LAYOUTS[channels])
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
    ("rate", "format", "channels"),
    [(48_000, "s16", 2), (24_000, "s16", 1), (44_100, "fltp", 2), (16_000, "flt", 1), (8_000, "s16p", 1)],
)
def test_the_sound_stays_where_it_was(rate: int, format: str, channels: int) -> None:
    converter, block = VoiceConverter(), rate // 50
    made = [part for n in range(100) for part in converter.convert(frame(n * block, block, rate, format, channels))]
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


class Script(MediaStreamTrack):
    kind = "audio"

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self._given = list(given)

    async def recv(self) -> Any:
        if not self._given:
            raise MediaStreamError
        return self._given.pop(0)


async def test_what_cannot_be_used_is_left_out_and_the_end_is_told() -> None:
    track = VoiceTrack(Script(av.Packet(b"opus"), frame(0, 960, 48_000), frame(960, 960, 48_000)))
    assert [(await track.recv()).pts for _ in range(2)] == [0, 960]
    assert track.unusable == 1
    assert not track.over.is_set()
    with pytest.raises(MediaStreamError):
        await track.recv()
    assert track.over.is_set()
