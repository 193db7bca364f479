"""A stream and its voice: every block is counted, what cannot be used becomes silence, and the end is not the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import av
import numpy as np
import pytest

from echo_rtc.clips import ClipFormat
from echo_rtc.codec.picture import VideoCodec
from echo_rtc.engine.testcard import AVATAR, TestCardEngine
from echo_rtc.stream.encoder_bank import Packetizer
from echo_rtc.stream.stream import Stream, StreamOptions
from echo_rtc.stream.voice import UnusableBlock, VoiceBlock
from tests.support.virtual import run

FORMAT = ClipFormat(fps=12, clip_frames=6, width=32, height=32)


def whole(codec: VideoCodec) -> Packetizer:
    def packetize(packet: av.Packet[Any]) -> tuple[bytes, ...]:
        return (bytes(packet),)

    return packetize


async def blocks(*unusable: int) -> AsyncIterator[VoiceBlock | UnusableBlock]:
    """Ten blocks of a voice, those of these numbers unusable."""
    for number in range(10):
        await asyncio.sleep(0.02)
        if number in unusable:
            yield UnusableBlock("<noise>")
        else:
            yield VoiceBlock(number * 960, np.full(960, 500, np.int16))


def test_blocks_that_cannot_be_used_are_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def live() -> Stream:
        engine = TestCardEngine(FORMAT)
        await engine.start(lambda _: None)
        stream = Stream(engine, engine.avatars[AVATAR], StreamOptions(), whole)
        listening = stream.listen(blocks(3, 4))
        await listening
        assert not stream.ended.done()
        await stream.listen(blocks())
        await stream.close("enough")
        await engine.close()
        return stream

    counts = run(live()).tally().counts
    assert (counts["microphone_blocks", "used"], counts["microphone_blocks", "unusable"]) == (18, 2)
    assert len([record for record in caplog.records if "cannot be used" in record.message]) == 1
