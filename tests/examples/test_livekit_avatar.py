"""The example for LiveKit agents, driven by the library's own runner and audio output. Only the room is a stand-in: no
server is there to join."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput
from livekit.agents.voice.io import PlaybackFinishedEvent

from echo_rtc.avatar import AvatarService
from echo_rtc.clips import S16Array
from echo_rtc.engine.card import read_card
from examples.livekit_avatar import AHEAD_S, BLOCK, RATE, FaceGenerator, runner_for
from tests.examples.test_avatar_app import CARD

PATIENCE_S = 20.0
TTS_RATE = 24_000


def speech(seconds: float, amplitude: int = 12_000) -> list[rtc.AudioFrame]:
    """A tone as a synthesiser gives it: 24 kHz, mono, in pieces of 50 ms."""
    when = np.arange(round(seconds * TTS_RATE)) / TTS_RATE
    pcm = (np.sin(2 * np.pi * 400 * when) * amplitude).astype(np.int16)
    pieces = [pcm[start : start + TTS_RATE // 20] for start in range(0, len(pcm), TTS_RATE // 20)]
    return [rtc.AudioFrame(piece.tobytes(), TTS_RATE, 1, len(piece)) for piece in pieces]


def samples(frame: rtc.AudioFrame) -> S16Array:
    return np.frombuffer(frame.data, np.int16)


@asynccontextmanager
async def generator() -> AsyncIterator[FaceGenerator]:
    async with AvatarService.open(**CARD) as avatars:
        made = FaceGenerator(avatars)
        try:
            yield made
        finally:
            await made.aclose()


async def until_end(outputs: AsyncIterator[Any]) -> list[Any]:
    """What comes up to the end of a segment, which is left out."""
    came: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        async for output in outputs:
            if isinstance(output, AudioSegmentEnd):
                return came
            came.append(output)
    raise AssertionError("the generator ended")


async def test_a_speech_comes_back_whole_with_moving_pictures_and_ends() -> None:
    async with generator() as face:
        assert (face.options.video_width, face.options.video_fps, face.options.audio_sample_rate) == (160, 24, RATE)
        outputs = aiter(face)
        for length_s in (1.2, 0.7):
            for frame in speech(length_s):
                await face.push_audio(frame)
            await face.push_audio(AudioSegmentEnd())
            came = await until_end(outputs)
            sound = np.concatenate([samples(output) for output in came if isinstance(output, rtc.AudioFrame)])
            # The delay may change by a frame's length within silence, and there is none here.
            assert len(sound) == pytest.approx(length_s * RATE, abs=100)
            assert np.abs(sound).max() == pytest.approx(12_000, rel=0.05)
            assert np.abs(sound[: RATE // 10]).max() > 10_000
            pictures = [output for output in came if isinstance(output, rtc.VideoFrame)]
            assert {(picture.width, picture.height) for picture in pictures} == {(160, 160)}
            cards = [
                read_card(np.frombuffer(picture.data, np.uint8)[: 160 * 160].reshape(160, 160)) for picture in pictures
            ]
            loud = [card for card in cards if not card.idle and card.level > 0.5]
            assert len(loud) == pytest.approx(length_s * 24, abs=4)
        await outputs.aclose()  # type: ignore[attr-defined]


async def test_an_interruption_is_immediate_and_the_next_speech_whole() -> None:
    async with generator() as face:
        outputs = aiter(face)
        for frame in speech(3.0):
            await face.push_audio(frame)
        heard = 0
        async with asyncio.timeout(PATIENCE_S):
            async for output in outputs:
                heard += isinstance(output, rtc.AudioFrame)
                if heard == 10:
                    break
        waiting = asyncio.create_task(_push(face, speech(AHEAD_S + 1.0)))
        await asyncio.sleep(0)
        face.clear_buffer()
        await waiting
        face.clear_buffer()
        for frame in speech(0.5, amplitude=6_000):
            await face.push_audio(frame)
        await face.push_audio(AudioSegmentEnd())
        came = [output for output in await until_end(outputs) if isinstance(output, rtc.AudioFrame)]
        sound = np.concatenate([samples(output) for output in came])
        # A block on its way to the runner in that moment may still come; nothing else of the first speech does.
        loud = np.flatnonzero(np.abs(sound) > 7_000)
        assert not len(loud) or loud[-1] < BLOCK
        assert len(sound) == pytest.approx(0.5 * RATE, abs=BLOCK + 100)
        assert np.abs(sound[-round(0.4 * RATE) :]).max() == pytest.approx(6_000, rel=0.1)
        await outputs.aclose()  # type: ignore[attr-defined]


async def _push(face: FaceGenerator, frames: list[rtc.AudioFrame]) -> None:
    for frame in frames:
        await face.push_audio(frame)


class Publication:
    async def wait_for_subscription(self) -> None:
        """Somebody watches already."""


class Room:
    """As much of a connected room as a runner sees."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.local_participant = self

    def isconnected(self) -> bool:
        return True

    def on(self, event: str, callback: Any) -> None:
        """Nothing ever happens in this room."""

    off = on

    async def publish_track(self, track: Any, _: Any) -> Publication:
        self.published.append(track)
        return Publication()


async def test_the_librarys_runner_plays_it_and_knows_its_end() -> None:
    room: Any = Room()
    audio = QueueAudioOutput(sample_rate=TTS_RATE)
    finished: asyncio.Queue[PlaybackFinishedEvent] = asyncio.Queue()
    audio.on("playback_finished", finished.put_nowait)
    async with generator() as face:
        runner: AvatarRunner = runner_for(room, audio, face)
        await runner.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                for frame in speech(1.0):
                    await audio.capture_frame(frame)
                audio.flush()
                ended = await finished.get()
                assert ended.playback_position == pytest.approx(1.0, abs=0.02)
                assert not ended.interrupted
                assert len(room.published) == 2
                for frame in speech(2.0):
                    await audio.capture_frame(frame)
                while runner._playback_position < 0.2:  # noqa: ASYNC110  (the runner has no event for it)
                    await asyncio.sleep(0.01)
                audio.clear_buffer()
                ended = await finished.get()
                assert ended.interrupted
                assert 0.2 <= ended.playback_position < 1.0
                assert math.isclose(runner.av_sync.actual_fps, 24, rel_tol=0.2)
        finally:
            await runner.aclose()
