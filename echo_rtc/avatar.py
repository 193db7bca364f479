"""A talking face for any aiortc application: a voice goes in, sound and picture come out as two tracks.

This is the package's interface for Python programs. It knows no HTTP and no signalling; connections are the
application's own.

    async with AvatarService.open() as avatars:
        face = avatars.animate(microphone_track)
        connection.addTrack(face.audio)
        connection.addTrack(face.video)

:meth:`AvatarService.speak` makes a face without a microphone, which says what the program pushes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import av
from aiortc.mediastreams import MediaStreamTrack

from echo_rtc.avatars.library import AvatarLibrary, Shelf
from echo_rtc.clips import ClipFormat, S16Array
from echo_rtc.codec.burned_mark import BurnedMark
from echo_rtc.engine.factory import create_engine
from echo_rtc.engine.ladder import settled
from echo_rtc.errors import CapacityError, InputError
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.quality import Able
from echo_rtc.rendering import Engine, notices_of
from echo_rtc.rtc.tracks import FrameTrack, packetizer
from echo_rtc.rtc.voice import any_track
from echo_rtc.settings import Settings, named_settings
from echo_rtc.stream.events import EventSink
from echo_rtc.stream.paced_speech import PacedSpeech
from echo_rtc.stream.speech import SpeechReport, SpeechStep
from echo_rtc.stream.stream import Stream, StreamOptions, VoiceSource
from echo_rtc.stream.voice import Voice

__all__ = [
    "AvatarService",
    "Face",
    "SpeechReport",
    "SpeechStep",
    "SpokenFace",
    "TalkingFace",
    "stream_options",
]

logger = logging.getLogger(__name__)

TAIL_S = 0.1
RETRY_AFTER_S = 10
"""When to try again where no place is free; places become free as faces are closed."""


class AvatarService:
    """A started engine and the faces that it animates. Made by :meth:`open`."""

    def __init__(self, engine: Engine, options: StreamOptions, max_streams: int = 0) -> None:
        """``engine`` must have been started, and stays its owner's. ``max_streams``: how many faces there may be at
        once; 0 for as many as the engine holds in real time."""
        self._engine = engine
        self._options = options
        self._max_streams = max_streams
        self._faces: set[Face] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, **settings: object) -> AsyncIterator[AvatarService]:
        """Starts the workers (seconds for the embedded model, minutes for large ones), and ends them and all faces.

        ``settings`` are those of the server by their names in a YAML file: ``config="avatar.yaml"``,
        ``engine="testcard"``, ``width=512``. Without any, the embedded model is used. The environment is not looked
        at. Raises SettingsError or InputError with one sentence.
        """
        chosen = named_settings(settings)
        if chosen.engine != "testcard":
            # A missing folder need not wait for the minute that a worker takes to find it.
            description = ModelDescription.from_mapping(chosen.model, chosen.model_base)
            chosen, _ = await settled(chosen, _log, partial(Able.of, description))
        options = stream_options(chosen)
        engine = create_engine(chosen)
        try:
            await engine.start(_log)
            for notice in notices_of(engine.workers):
                _log(notice)
            await AvatarLibrary(engine, Shelf.of(chosen)).prepare(_log)
            service = cls(engine, options, chosen.max_streams)
            try:
                yield service
            finally:
                await service.close()
        finally:
            await engine.close()

    @property
    def avatars(self) -> tuple[str, ...]:
        """The names of the avatars that can be animated, the default one first."""
        return tuple(self._engine.avatars)

    @property
    def format(self) -> ClipFormat:
        """Picture size and frame rate."""
        return self._engine.format

    @property
    def capacity(self) -> int:
        """How many faces there may be at once."""
        return self._max_streams or self._engine.capacity

    def animate(self, voice: MediaStreamTrack, avatar: str | None = None) -> TalkingFace:
        """A face that says what ``voice`` says, from now on: any audio track, at any rate and in any format, that gives
        its frames in real time. To be called in the event loop of the service.

        Raises InputError for a track without sound or an unknown avatar, CapacityError where no place is free.
        """
        if voice.kind != "audio":
            raise InputError(f"the voice is a track of kind {voice.kind!r}; give an audio track")
        stream = self._stream(avatar, self._options)
        return self._kept(TalkingFace(stream, any_track(voice)))

    def speak(self, avatar: str | None = None) -> SpokenFace:
        """A face that says what is pushed to it, faster than real time, and idles in between. To be called in the event
        loop of the service.

        Raises InputError for an unknown avatar, CapacityError where no place is free.
        """
        return self._kept(SpokenFace(self._stream(avatar, replace(self._options, source=VoiceSource.PUSHED))))

    async def close(self) -> None:
        """Closes all faces."""
        await asyncio.gather(*(face.close() for face in tuple(self._faces)))

    def _stream(self, avatar: str | None, options: StreamOptions) -> Stream:
        """Raises InputError for an unknown avatar, CapacityError where no place is free."""
        name = self.avatars[0] if avatar is None else avatar
        if name not in self._engine.avatars:
            raise InputError(f"there is no avatar {name!r}; choose one of {', '.join(self.avatars)}")
        if len(self._faces) >= self.capacity:
            raise CapacityError(
                f"all {self.capacity} faces that the engine animates in real time are taken; close one first",
                RETRY_AFTER_S,
            )
        return Stream(self._engine, self._engine.avatars[name], options, packetizer)

    def _kept(self, face: AnyFace) -> AnyFace:
        """Takes a face into account until it ends."""
        self._faces.add(face)
        face.on_end(lambda: self._faces.discard(face))
        return face


class Face:
    """A face as two tracks that are in sync. It ends by :meth:`close`, when the service closes, or when both tracks
    have been stopped."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._tap = stream.add_tap()
        self._audio = FrameTrack("audio", self._tap.sound)
        self._video = FrameTrack("video", self._tap.picture)
        stream.begin()
        self._life = asyncio.create_task(self._live(), name="life of a face")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.close()

    @property
    def audio(self) -> FrameTrack[av.AudioFrame]:
        """The voice, late by the delay: mono s16 frames of 20 ms at 48 kHz."""
        return self._audio

    @property
    def video(self) -> FrameTrack[av.VideoFrame]:
        """The face: yuv420p frames, pts at 90 kHz that count from the same instant as the sound's."""
        return self._video

    @property
    def avatar(self) -> str:
        return self._stream.avatar

    @property
    def delay_s(self) -> float:
        """How far sound and picture lag behind the voice at present, in seconds."""
        return self._stream.delay_s

    @property
    def ended(self) -> bool:
        return self._stream.ended.done()

    def on_end(self, call: Callable[[], None]) -> None:
        """Calls ``call`` once the face has ended."""
        self._stream.ended.add_done_callback(lambda _: call())

    def subscribe(self, sink: EventSink) -> Callable[[], None]:
        """Calls ``sink`` with the events that the data channel of a server's call carries: states, figures once a
        second, captions. It returns False for an event that it dropped. Returns what ends that."""
        return self._stream.subscribe(sink)

    def statistics(self) -> dict[str, object]:
        """All counters, as ``GET /streams/{id}`` gives them."""
        return self._stream.statistics()

    async def close(self) -> None:
        """Ends both tracks and waits until nothing is left. The voice's own track goes on. Closing twice is
        harmless."""
        await self._stream.close("closed by the application")
        await asyncio.shield(self._life)

    async def _live(self) -> None:
        """Closes the stream when it is over, for any reason."""
        over = asyncio.create_task(self._over(), name="end of a face")
        try:
            either: set[asyncio.Future[Any]] = {over, self._stream.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            await asyncio.wait({over})
        await self._stream.close("its tracks were stopped" if over.cancelled() else over.result())

    async def _over(self) -> str:
        """Returns why, when the face is over without having been closed."""
        await self._tap.ended.wait()
        return "its tracks were stopped"


AnyFace = TypeVar("AnyFace", bound=Face)


class TalkingFace(Face):
    """One voice and its face. Made by :meth:`AvatarService.animate`.

    It also ends once the voice has ended and its last sound has left. A voice that is only muted, or sends nothing, is
    silence: the idle loop is shown.
    """

    def __init__(self, stream: Stream, voice: Voice) -> None:
        stream.begin()
        self._listening = stream.listen(voice)
        super().__init__(stream)

    def media_sample(self, pts: int) -> int | None:
        """Where the voice's sample stamped ``pts`` (48 kHz) lies in the media time that ``audio.media_sample`` counts;
        None before the first frame of the voice."""
        return self._stream.media_sample(pts)

    async def _over(self) -> str:
        tracks = asyncio.create_task(super()._over())
        try:
            await asyncio.wait({self._listening, tracks}, return_when=asyncio.FIRST_COMPLETED)
            if self._listening.done():
                await asyncio.wait({tracks}, timeout=self._stream.delay_s)
                return "the voice has ended"
            return "its tracks were stopped"
        finally:
            tracks.cancel()
            await asyncio.wait({tracks})


class SpokenFace(Face):
    """A face that says what is pushed to it. Made by :meth:`AvatarService.speak`.

    Speech comes in events: sound that belongs together. Each begins when the one before has been said.
    """

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        assert stream.speaker is not None, "the stream hears a microphone"
        self._speaker = stream.speaker
        self._speech = PacedSpeech(stream.speaker, stream.ended)

    @property
    def speaking(self) -> bool:
        """Whether anything is being said or waits to be."""
        return self._speaker.speaking

    @property
    def queued_s(self) -> float:
        """Seconds of sound that have not left yet."""
        return self._speaker.queued_s

    async def say(self, pcm: bytes | S16Array, rate: int, event: str | None = None, text: str = "") -> bool:
        """Appends mono PCM at ``rate`` Hz (8000 to 48000), 16-bit little-endian bytes or (n,) int16, to ``event``;
        without one to the event that runs, or to a new one. A new event queues behind the one before, and ends it.
        ``text``: the words, which events of the type "caption" tell as they are said.

        Waits while more than five seconds are queued. False if the event was interrupted, before or while this waited:
        what was not taken by then is dropped. Raises InputError for sound or a rate that cannot be used, an event that
        is complete, and once the face has ended.
        """
        return await self._speech.say(pcm, rate, event, text)

    async def end_event(self, event: str | None = None) -> None:
        """Nothing further is said in ``event``, without one in that which runs: its last sound need not wait for more.
        Harmless for an event that is over."""
        await self._speech.end_event(event)

    async def interrupt(self) -> float:
        """Silences the face at once, and drops all that is queued or waits in :meth:`say`; the seconds that have been
        heard of the event that was being said, 0.0 if none was."""
        return await self._speech.interrupt()

    @property
    def tail_s(self) -> float:
        """For how long after an interruption sound may still come that was on its way, in seconds."""
        return TAIL_S

    def report_to(self, reporter: Callable[[SpeechReport], None]) -> Callable[[], None]:
        """Calls ``reporter`` as each event's first sound leaves, as its last has left, and where it is interrupted,
        with the seconds that have been heard of it. Returns what ends that."""
        return self._speaker.report_to(reporter)

    async def said(self) -> None:
        """Waits until all that is queued has been heard, was interrupted, or the face has ended."""
        await self._speech.said()


def _log(line: str) -> None:
    logger.info("%s", line)


def stream_options(settings: Settings) -> StreamOptions:
    """The streams' part of the settings. Raises SettingsError for what does not go together."""
    return StreamOptions(
        vad_threshold=settings.vad_threshold,
        max_latency_s=settings.max_latency,
        burn=BurnedMark(settings.clip_format) if settings.burn_mark else None,
    )
