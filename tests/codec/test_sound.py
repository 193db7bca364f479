"""Sound decodes to what went in, where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterFrame

from echo_rtc.clips import S16Array
from echo_rtc.codec.sound import SoundEncoder


def test_sound_comes_back_in_place() -> None:
    encoder, decoder = SoundEncoder(), OpusDecoder()
    assert 0 < encoder.lookahead_samples < 960
    tone = (np.sin(np.arange(48_000) * 2 * np.pi * 300 / 48_000) * 12_000).astype(np.int16)
    tone[:20_000] = 0
    played: list[S16Array] = []
    for start in range(0, 40_000 - 960, 960):
        ahead = start + encoder.lookahead_samples
        packet = encoder.encode(tone[ahead : ahead + 960], start)
        assert packet.pts == start
        played += [mono(frame) for frame in decoder.decode(JitterFrame(bytes(packet), start))]
    heard = np.concatenate(played).astype(float)
    lag = max(range(-75, 76), key=lambda n: float(np.dot(heard[22_000 + n : 34_000 + n], tone[22_000:34_000])))
    assert abs(lag) <= 2
    onset = int(np.argmax(np.abs(heard) > 1_000))
    assert abs(onset - 20_000) < 100


def mono(frame: Any) -> S16Array:
    return np.asarray(frame.to_ndarray().reshape(-1, 2)[:, 0], np.int16)
