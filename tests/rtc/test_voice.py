"""aiortc's tracks as voices: every block in mono, what cannot be used is said, and the end is the track's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.rtc.voice import any_track, microphone
from echo_rtc.stream.voice import UnusableBlock, VoiceBlock
from tests.codec.test_resampling import block


class Script(MediaStreamTrack):
    kind = "audio"

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self._given = list(given)

    async def recv(self) -> Any:
        await asyncio.sleep(0)
        if not self._given:
            raise MediaStreamError
        return self._given.pop(0)


async def heard(
    voice: AsyncIterator[VoiceBlock | UnusableBlock],
) -> tuple[list[VoiceBlock], list[UnusableBlock]]:
    blocks: list[VoiceBlock] = []
    unusable: list[UnusableBlock] = []
    async for one in voice:
        if isinstance(one, VoiceBlock):
            blocks.append(one)
        else:
            unusable.append(one)
    return blocks, unusable


async def test_all_blocks_go_on_until_the_track_ends() -> None:
    left, right = np.full(960, 1_000, np.int16), np.full(960, 3_000, np.int16)
    track = Script(
        block(0, np.stack([left, right])),
        block(960, left[None]),
        block(None, left[None]),
        block(0, left[None, :160], rate=8_000),
        block(5_760, np.stack([left, left])),
    )
    blocks, unusable = await heard(microphone(track))
    assert [one.pts for one in blocks] == [0, 960, 5_760]
    assert [int(one.pcm[0]) for one in blocks] == [2_000, 1_000, 1_000]
    assert all(one.pcm.shape == (960,) and one.pcm.dtype == np.int16 for one in blocks)
    assert len(unusable) == 2
    assert "AudioFrame" in unusable[0].what


async def test_what_cannot_be_used_is_left_out_and_the_end_is_told() -> None:
    tone = np.full((1, 960), 5, np.int16)
    blocks, unusable = await heard(any_track(Script(av.Packet(b"opus"), block(0, tone), block(960, tone))))
    assert [one.pts for one in blocks] == [0, 960]
    assert len(unusable) == 1


async def test_a_track_of_another_rate_is_converted_in_its_place() -> None:
    def slow(number: int) -> av.AudioFrame:
        frame = block(number * 160, np.full((1, 160), 1_000, np.int16), rate=8_000)
        frame.time_base = Fraction(1, 8_000)
        return frame

    blocks, unusable = await heard(any_track(Script(*map(slow, range(20)))))
    assert not unusable
    ends = [one.pts + len(one.pcm) for one in blocks]
    assert [one.pts for one in blocks[1:]] == ends[:-1]
    assert blocks[0].pts == 0
    assert ends[-1] <= 20 * 960
    assert ends[-1] > 19 * 960
