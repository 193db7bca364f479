"""The service for Pipecat in a real pipeline, between a scripted text-to-speech service and a sink, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    OutputImageRawFrame,
    OutputTransportReadyFrame,
    SpeechOutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.workers.runner import WorkerRunner

from echo_rtc.avatar import AvatarService
from echo_rtc.bench.support.calls import Heard, Seen
from echo_rtc.bench.sync import Beeps, Recording
from echo_rtc.clips import ClipFormat, S16Array
from echo_rtc.codec.picture import PICTURE_RATE
from echo_rtc.engine.testcard import ScriptedFaults, TestCardEngine
from echo_rtc.pipecat import EchoRtcVideoService
from echo_rtc.stream.stream import StreamOptions
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=64, height=64)
RATE = 24_000
STEP_S = 0.02
"""How far sound and picture of a beep may be apart."""


def loud(seconds: float) -> S16Array:
    """A square wave of 200 Hz: no block of it is quiet."""
    return np.resize(np.repeat(np.array([9000, -9000], np.int16), 60), round(seconds * RATE))


class ScriptedSpeech(TTSService):  # type: ignore[misc]  # Pipecat is not seen by the type checker
    """Says a text as the sound that the script has for it, in pieces of 20 ms, at once."""

    def __init__(self, script: dict[str, S16Array]) -> None:
        settings = TTSSettings(model=None, voice=None, language=None)
        super().__init__(sample_rate=RATE, push_start_frame=True, push_stop_frames=True, settings=settings)
        self._script = script

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        pcm = self._script[text]
        for start in range(0, len(pcm), RATE // 50):
            yield TTSAudioRawFrame(pcm[start : start + RATE // 50].tobytes(), RATE, 1, context_id=context_id)


class Sink(FrameProcessor):  # type: ignore[misc]
    """Stands for an output transport: is ready at once, and keeps what comes and when."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[tuple[float, Frame]] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(OutputTransportReadyFrame(), FrameDirection.UPSTREAM)
        self.came.append((asyncio.get_running_loop().time(), frame))
        await self.push_frame(frame, direction)

    def of(self, *kinds: type[Frame]) -> list[tuple[float, Any]]:
        return [(when, frame) for when, frame in self.came if isinstance(frame, kinds)]

    @property
    def loud_s(self) -> list[float]:
        """When blocks of speech came."""
        sounds = self.of(SpeechOutputAudioRawFrame)
        return [when for when, frame in sounds if np.abs(np.frombuffer(frame.audio, "<i2").astype(int)).max() > 4000]


class Source(FrameProcessor):  # type: ignore[misc]
    """Keeps the errors that come up."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, ErrorFrame):
            self.errors.append(frame.error)
        await self.push_frame(frame, direction)


class Played:
    """A pipeline that runs."""

    def __init__(self, avatars: AvatarService, script: dict[str, S16Array]) -> None:
        self.avatars = avatars
        self.source, self.sink = Source(), Sink()
        self.service = EchoRtcVideoService(avatars=avatars)
        pipeline = Pipeline([self.source, ScriptedSpeech(script), self.service, self.sink])
        self.worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False)
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.worker)
        self.running = asyncio.create_task(runner.run())
        await asyncio.sleep(1.0)

    async def push(self, frames: Sequence[Frame]) -> None:
        await self.worker.queue_frames(frames)

    async def end(self) -> None:
        """The pipeline ends by itself, after what was said."""
        await self.push([EndFrame()])
        assert self.running is not None
        await self.running


@asynccontextmanager
async def playing(script: dict[str, S16Array], max_streams: int = 1) -> AsyncIterator[Played]:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.2))
    await engine.start(lambda _: None)
    avatars = AvatarService(engine, StreamOptions(), max_streams)
    played = Played(avatars, script)
    await played.start()
    try:
        yield played
    finally:
        if played.running is not None and not played.running.done():
            await played.worker.cancel()
            await played.running
        await avatars.close()
        await engine.close()


def beeping(seconds: float) -> S16Array:
    voice = Beeps.lasting(seconds, gap_s=(0.35, 0.6)).voice(0, round(seconds * 48_000))
    return voice[::2].copy()


def test_beeps_come_out_in_step() -> None:
    async def live() -> None:
        async with playing({"beeps": beeping(8.0)}) as played:
            await played.push([TTSSpeakFrame("beeps")])
            await played.end()
            recording, waits = Recording(FORMAT.fps), list[float]()
            for when, frame in played.sink.of(SpeechOutputAudioRawFrame, OutputImageRawFrame):
                at_s = frame.pts / 1e9
                waits.append(when - at_s)
                if isinstance(frame, OutputImageRawFrame):
                    rgb = np.frombuffer(frame.image, np.uint8).reshape(frame.size[1], frame.size[0], 3)
                    # Full-range grey, as the strip and the lamp are.
                    luma = (16 + rgb.mean(axis=2) * 219 / 255).round().astype(np.uint8)
                    recording.see(Seen(when, round(at_s * PICTURE_RATE), luma))
                else:
                    assert (frame.sample_rate, frame.num_channels) == (48_000, 1)
                    recording.hear(Heard(when, round(at_s * 48_000), np.frombuffer(frame.audio, np.int16)))
            heard = [pts / 48_000 for pts in recording.sound_onsets()]
            seen = [pts / PICTURE_RATE for pts in recording.picture_onsets()]
            # The first beep follows the idle loop, whose pictures do not say when it began.
            assert len(heard) - 1 <= len(seen) <= len(heard)
            assert len(seen) >= 5
            assert max(min(abs(sound - picture) for sound in heard) for picture in seen) <= STEP_S
            # Both come when they are due, by one clock.
            assert np.ptp(waits) <= STEP_S

    run(live())


def test_text_and_stops_wait_for_the_sound_before_them() -> None:
    async def live() -> None:
        async with playing({"one": loud(2.0), "two": loud(1.0)}) as played:
            await played.push([TTSSpeakFrame("one"), TTSSpeakFrame("two")])
            await played.end()
            sound = played.sink.loud_s
            assert len(sound) * 0.02 == pytest.approx(3.0, abs=0.1)
            first, second = (when for when, _ in played.sink.of(TTSStoppedFrame))
            assert first == pytest.approx(sound[0] + 2.0, abs=0.1)
            assert second == pytest.approx(sound[-1], abs=0.1)
            texts = [frame.text for _, frame in played.sink.of(TTSTextFrame)]
            assert texts == ["one", "two"]
            assert played.sink.of(TTSTextFrame)[0][0] >= sound[0] + 1.8
            kinds = [type(frame) for _, frame in played.sink.of(TTSStartedFrame, TTSStoppedFrame, EndFrame)]
            assert kinds == [TTSStartedFrame, TTSStoppedFrame, TTSStartedFrame, TTSStoppedFrame, EndFrame]
            assert played.source.errors == []

    run(live())


def test_an_interruption_silences_and_what_follows_is_whole() -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        async with playing({"long": loud(20.0), "short": loud(0.5)}) as played:
            await played.push([TTSSpeakFrame("long")])
            await asyncio.sleep(4.0)
            assert played.sink.loud_s
            cut = loop.time()
            await played.push([InterruptionFrame()])
            await asyncio.sleep(1.0)
            assert max(played.sink.loud_s) <= cut + 0.02
            assert not [text for _, text in played.sink.of(TTSTextFrame) if text.text == "long"]
            await played.push([TTSSpeakFrame("short")])
            await played.end()
            after = [when for when in played.sink.loud_s if when > cut + 0.02]
            assert len(after) * 0.02 == pytest.approx(0.5, abs=0.05)

    run(live())


def test_without_a_place_the_voice_goes_on() -> None:
    async def live() -> None:
        async with playing({"one": loud(0.5)}) as played:
            second = Played(played.avatars, {"one": loud(0.5)})
            await second.start()
            await second.push([TTSSpeakFrame("one")])
            await second.end()
            assert "all 1 faces" in " ".join(second.source.errors)
            heard = sum(len(frame.audio) for _, frame in second.sink.of(TTSAudioRawFrame))
            assert heard == pytest.approx(RATE, rel=0.01)

    run(live())


def test_a_face_that_ends_is_told_and_the_voice_goes_on() -> None:
    async def live() -> None:
        async with playing({"one": loud(3.0), "two": loud(0.5)}) as played:
            await played.push([TTSSpeakFrame("one")])
            await asyncio.sleep(2.0)
            await played.avatars.close()
            await asyncio.sleep(0.5)
            assert "the face has ended" in " ".join(played.source.errors)
            await played.push([TTSSpeakFrame("two")])
            await played.end()
            assert played.sink.of(TTSAudioRawFrame)

    run(live())
