"""The service for Pipecat in a real pipeline, between a scripted text-to-speech service and a sink, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import av
import numpy as np
import pytest
from aiohttp.test_utils import TestServer
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
from echo_rtc.errors import InputError, RemoteError
from echo_rtc.pipecat import PAUSE_S, EchoRtcVideoService, Face
from echo_rtc.remote.face import RemoteFace
from echo_rtc.resources import STATIC
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.stream.stream import StreamOptions
from echo_rtc.web.app import create_app
from echo_rtc.web.health import Health, Lifecycle, Phase
from tests.remote.test_face import FakeServer
from tests.rtc.test_calls import until
from tests.support.virtual import run
from tests.web.conftest import FakeLibrary, gallery_of

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

    def __init__(self, script: dict[str, S16Array], **face: Any) -> None:
        self.source, self.service, self.sink = Source(), EchoRtcVideoService(**face), Sink()
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

    async def stop(self) -> None:
        """The pipeline ends at once, if it has not."""
        if self.running is not None and not self.running.done():
            await self.worker.cancel()
            await self.running

    async def end(self) -> None:
        """The pipeline ends by itself, after what was said."""
        await self.push([EndFrame()])
        assert self.running is not None
        await self.running


@asynccontextmanager
async def playing(script: dict[str, S16Array]) -> AsyncIterator[tuple[Played, AvatarService]]:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.2))
    await engine.start(lambda _: None)
    avatars = AvatarService(engine, StreamOptions(), max_streams=1)
    played = Played(script, avatars=avatars)
    await played.start()
    try:
        yield played, avatars
    finally:
        await played.stop()
        await avatars.close()
        await engine.close()


def beeping(seconds: float) -> S16Array:
    voice = Beeps.lasting(seconds, gap_s=(0.35, 0.6)).voice(0, round(seconds * 48_000))
    return voice[::2].copy()


def assert_in_step(sink: Sink, least: int) -> None:
    """Beeps are heard and seen within STEP_S, at least so many, by pts and by when frames come."""
    recording = Recording(FORMAT.fps)
    waits: dict[type[Frame], list[float]] = {SpeechOutputAudioRawFrame: [], OutputImageRawFrame: []}
    for when, frame in sink.of(SpeechOutputAudioRawFrame, OutputImageRawFrame):
        at_s = frame.pts / 1e9
        waits[type(frame)].append(when - at_s)
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
    assert least <= len(seen) <= len(heard)
    assert max(min(abs(sound - picture) for sound in heard) for picture in seen) <= STEP_S
    sound_s, picture_s = (float(np.median(each)) for each in waits.values())
    assert abs(sound_s - picture_s) <= STEP_S


def test_beeps_come_out_in_step() -> None:
    async def live() -> None:
        async with playing({"beeps": beeping(5.0)}) as (played, _):
            await played.push([TTSSpeakFrame("beeps")])
            await played.end()
            # The first beep follows the idle loop, whose pictures do not say when it began.
            assert_in_step(played.sink, least=4)

    run(live())


def test_pauses_are_no_sound_but_what_ends_speech_is() -> None:
    async def live() -> None:
        async with playing({"one": loud(1.0)}) as (played, _):
            await asyncio.sleep(2.0)
            assert not played.sink.of(SpeechOutputAudioRawFrame)
            assert played.sink.of(OutputImageRawFrame)
            await played.push([TTSSpeakFrame("one")])
            await asyncio.sleep(3.0)
            blocks = len(played.sink.of(SpeechOutputAudioRawFrame))
            assert blocks * 0.02 == pytest.approx(1.0 + PAUSE_S, abs=0.06)

    run(live())


def test_text_and_stops_wait_for_the_sound_before_them() -> None:
    async def live() -> None:
        async with playing({"one": loud(2.0), "two": loud(1.0)}) as (played, _):
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
        async with playing({"long": loud(20.0), "short": loud(0.5)}) as (played, _):
            await played.push([TTSSpeakFrame("long")])
            await asyncio.sleep(2.0)
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
        async with playing({"one": loud(0.5)}) as (_, avatars):
            second = Played({"one": loud(0.5)}, avatars=avatars)
            await second.start()
            await second.push([TTSSpeakFrame("one")])
            await second.end()
            assert "all 1 faces" in " ".join(second.source.errors)
            heard = sum(len(frame.audio) for _, frame in second.sink.of(TTSAudioRawFrame))
            assert heard == pytest.approx(RATE, rel=0.01)

    run(live())


def test_a_face_that_ends_is_told_and_the_voice_goes_on() -> None:
    async def live() -> None:
        async with playing({"one": loud(3.0), "two": loud(0.5)}) as (played, avatars):
            await played.push([TTSSpeakFrame("one")])
            await asyncio.sleep(2.0)
            await avatars.close()
            await asyncio.sleep(0.5)
            assert "the face has ended" in " ".join(played.source.errors)
            await played.push([TTSSpeakFrame("two")])
            await played.end()
            assert played.sink.of(TTSAudioRawFrame)

    run(live())


def test_a_face_of_a_server_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        async with playing({"one": loud(0.5)}) as (first, avatars):
            await first.end()
            asked: list[tuple[object, ...]] = []

            async def open_one(*wishes: object) -> Face:
                asked.append(wishes)
                if len(asked) in (1, 3):
                    raise RemoteError("the server cannot be used: it is away")
                return avatars.speak()

            monkeypatch.setattr(RemoteFace, "open", open_one)
            played = Played({"one": loud(0.5)}, url="https://avatar.example", token="t", avatar="nia")
            await played.start()
            assert "it is away" in played.source.errors[0]
            await asyncio.sleep(1.0)
            await avatars.close()
            await asyncio.sleep(4.0)
            assert asked == [("https://avatar.example", "t", "nia")] * 4
            await played.push([TTSSpeakFrame("one")])
            await played.end()
            assert len(played.sink.loud_s) * 0.02 == pytest.approx(0.5, abs=0.05)
            assert len(played.source.errors) == 2

    run(live())


def test_lost_faces_leave_no_tasks_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        async with playing({}) as (first, avatars):
            await first.end()

            async def open_one(*_: object) -> Face:
                return avatars.speak()

            monkeypatch.setattr(RemoteFace, "open", open_one)
            played = Played({}, url="https://avatar.example")
            await played.start()
            kept: list[int] = []
            for _ in range(3):
                await avatars.close()
                await asyncio.sleep(2.0)
                kept.append(len(played.service._tasks))
            assert kept[1:] == kept[:1] * 2
            await played.end()

    run(live())


def test_a_face_that_ends_with_the_speech_lets_the_end_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        server = FakeServer()
        face = server.face

        async def open_it(*_: object) -> Face:
            return face

        monkeypatch.setattr(RemoteFace, "open", open_it)
        played = Played({}, url="https://avatar.example")
        await played.start()
        await played.push([TTSStartedFrame(), TTSAudioRawFrame(loud(0.5).tobytes(), RATE, 1)])
        await asyncio.sleep(0.1)
        assert server.seconds("1") > 0.4
        # The channel is gone, and sound still waits to be due.
        block = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), format="s16", layout="mono")
        face.audio.put(block, asyncio.get_running_loop().time() + 5.0)
        face._ended.set()
        await played.push([TTSStoppedFrame()])
        await played.end()
        assert played.sink.of(TTSStoppedFrame)
        assert played.sink.of(EndFrame)

    run(live())


def test_a_face_is_of_this_process_or_of_a_server() -> None:
    with pytest.raises(InputError, match="either avatars or url"):
        EchoRtcVideoService()


async def test_a_face_of_a_server_is_in_step_and_leaves_nothing() -> None:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.05))
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions(max_streams=1))
    health = Health(engine, Lifecycle(Phase.READY), "testcard", lambda: (), free_places=lambda: manager.free)
    try:
        async with TestServer(create_app(manager, health, STATIC, gallery_of(FakeLibrary()))) as server:
            played = Played({"beeps": beeping(3.2), "long": loud(9.0)}, url=str(server.make_url("/")))
            try:
                async with asyncio.timeout(40):
                    await played.start()
                    await played.push([TTSSpeakFrame("beeps")])
                    await until(lambda: bool(played.sink.of(TTSStoppedFrame)))
                    assert_in_step(played.sink, least=1)
                    began = len(played.sink.loud_s)
                    await played.push([TTSSpeakFrame("long")])
                    await until(lambda: len(played.sink.loud_s) >= began + 20)
                    await played.push([InterruptionFrame()])
                    await asyncio.sleep(0.1)
                    cut = asyncio.get_running_loop().time()
                    await played.end()
                    assert [round(when - cut, 2) for when in played.sink.loud_s if when > cut] == []
            finally:
                await played.stop()
            assert played.source.errors == []
            await until(lambda: not manager.streams)
    finally:
        await manager.close()
        await engine.close()
