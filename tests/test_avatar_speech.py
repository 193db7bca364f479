"""Faces that are spoken to, for Python programs, in virtual time: backpressure, events, interruption, the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError

from echo_rtc.avatar import AvatarService, SpokenFace
from echo_rtc.clips import ClipFormat, S16Array
from echo_rtc.engine.testcard import ScriptedFaults, TestCardEngine
from echo_rtc.errors import CapacityError, InputError
from echo_rtc.stream.paced_speech import QUEUE_S
from echo_rtc.stream.stream import StreamOptions
from tests.support.virtual import run

FORMAT = ClipFormat(fps=24, clip_frames=12, width=32, height=32)
RATE = 24_000
BLOCK_S = 0.02


def loud(seconds: float) -> S16Array:
    """A square wave of 200 Hz at 24 kHz: no block of it is quiet."""
    return np.resize(np.repeat(np.array([9000, -9000], np.int16), 60), round(seconds * RATE))


class Heard:
    """What the face's sound track gives: when its loud blocks came."""

    def __init__(self, face: SpokenFace) -> None:
        self._face = face
        self.loud_s: list[float] = []
        self.task = asyncio.create_task(self._listen())

    @property
    def seconds(self) -> float:
        return BLOCK_S * len(self.loud_s)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(MediaStreamError):
            while True:
                frame = await self._face.audio.recv()
                if np.abs(frame.to_ndarray().astype(np.int32)).max() > 4000:
                    self.loud_s.append(loop.time())


@asynccontextmanager
async def spoken(max_streams: int = 1) -> AsyncIterator[tuple[AvatarService, SpokenFace, Heard]]:
    engine = TestCardEngine(FORMAT, ScriptedFaults(delay_s=0.2))
    await engine.start(lambda _: None)
    service = AvatarService(engine, StreamOptions(), max_streams)
    face = service.speak()
    heard = Heard(face)
    try:
        await asyncio.sleep(1.0)
        yield service, face, heard
    finally:
        await service.close()
        await heard.task
        await engine.close()


def test_more_sound_than_may_wait_waits_and_is_heard() -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        async with spoken() as (_, face, heard):
            began = loop.time()
            captions: list[object] = []

            def note(event: dict[str, object]) -> bool:
                captions.extend([event["text"]] if event["type"] == "caption" else [])
                return True

            forget = face.subscribe(note)
            for second in range(12):
                assert await face.say(loud(1.0), RATE, text=f"second {second}")
                assert face.queued_s <= QUEUE_S + 1.1
            assert loop.time() - began == pytest.approx(12.0 - QUEUE_S - 1.0 + face.delay_s, abs=0.3)
            assert face.speaking
            await face.end_event()
            await face.said()
            assert not face.speaking
            forget()
            await asyncio.sleep(0.1)
            assert heard.seconds == pytest.approx(12.0, abs=0.05)
            assert loop.time() - began == pytest.approx(12.0 + face.delay_s, abs=0.3)
            assert captions == [f"second {second}" for second in range(12)]

    run(live())


def test_more_events_than_may_wait_wait() -> None:
    async def live() -> None:
        async with spoken() as (_, face, heard):
            for number in range(600):
                assert await face.say(loud(0.005), RATE, f"event {number}")
            await face.end_event()
            await face.said()
            assert heard.seconds == pytest.approx(3.0, abs=0.05)

    run(live())


def test_any_length_may_be_said_at_once() -> None:
    async def live() -> None:
        async with spoken() as (_, face, heard):
            await face.say(loud(200.0).tobytes(), RATE)
            await face.end_event()
            await face.said()
            assert heard.seconds == pytest.approx(200.0, abs=0.1)

    run(live())


@pytest.mark.parametrize("after_s", [0.0, 0.9, 3.0])
def test_an_interruption_drops_what_waits(after_s: float) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        async with spoken() as (_, face, heard):
            assert await face.say(loud(8.0), RATE, "first")
            waiting = [asyncio.create_task(face.say(loud(8.0), RATE, name)) for name in ("first", "second")]
            await asyncio.sleep(after_s)
            cut = loop.time()
            played_s = await face.interrupt()
            assert await face.interrupt() == 0.0
            assert await asyncio.gather(*waiting) == [False, False]
            assert not await face.say(loud(1.0), RATE, "first")
            assert await face.say(loud(0.5), RATE)
            await face.end_event()
            await asyncio.sleep(0.1)
            assert all(when <= cut + 0.08 for when in heard.loud_s)
            assert played_s == pytest.approx(heard.seconds, abs=0.05)
            heard.loud_s.clear()
            await face.said()
            assert heard.seconds == pytest.approx(0.5, abs=0.05)

    run(live())


def test_a_new_event_ends_the_one_before() -> None:
    async def live() -> None:
        async with spoken() as (_, face, heard):
            for number in range(300):
                await face.say(loud(0.1), RATE, f"event {number}")
            with pytest.raises(InputError, match=r"event 298.* is complete"):
                await face.say(loud(0.1), RATE, "event 298")
            await face.end_event("event 299")
            await face.end_event("event 299")
            await face.end_event()
            await face.said()
            assert heard.seconds == pytest.approx(30.0, abs=0.1)

    run(live())


def test_what_cannot_be_said_is_told_in_one_sentence() -> None:
    async def live() -> None:
        async with spoken() as (service, face, heard):
            with pytest.raises(CapacityError, match="all 1 faces"):
                service.speak()
            for pcm in (b"odd", np.zeros((2, 2), np.int16), np.zeros(4, np.float32)):
                with pytest.raises(InputError, match="the PCM has"):
                    await face.say(pcm, RATE)  # type: ignore[arg-type]  # the point of it
            with pytest.raises(InputError, match="rate is 7; it must be"):
                await face.say(b"", 7)
            await face.say(loud(0.2), RATE, "a")
            with pytest.raises(InputError, match="rate is 48000; the event 'a' has 24000 Hz"):
                await face.say(loud(0.2), 48_000, "a")
            waiting = asyncio.create_task(face.say(loud(60.0), RATE, "a"))
            await asyncio.sleep(2.0)
            face.audio.stop()
            face.video.stop()
            await heard.task
            with pytest.raises(InputError, match="the face has ended"):
                await waiting
            with pytest.raises(InputError, match="the face has ended"):
                await face.say(loud(0.2), RATE)
            await face.said()
            await face.end_event()
            assert await face.interrupt() == 0.0
            assert face.ended
            with pytest.raises(InputError, match="no avatar 'nobody'"):
                service.speak("nobody")

    run(live())


def test_faces_spoken_to_at_once_stay_apart() -> None:
    async def live() -> None:
        async with spoken(max_streams=2) as (service, first, heard):
            second = service.speak()
            other = Heard(second)
            await asyncio.sleep(1.0)
            await asyncio.gather(first.say(loud(2.0), RATE, "same"), second.say(loud(3.0), RATE, "same"))
            await asyncio.sleep(1.5)
            assert 0.5 < await first.interrupt() < 1.5
            await second.end_event()
            await second.said()
            assert heard.seconds < 1.6
            assert other.seconds == pytest.approx(3.0, abs=0.05)
            await second.close()
            await other.task

    run(live())
