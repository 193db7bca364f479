"""A talking face for any aiortc application: an audio track goes in, sound and picture come out as two tracks.

This is the package's interface for Python programs. It knows no HTTP and no signalling; connections are the
application's own.

    async with AvatarService.open() as avatars:
        face = avatars.animate(microphone_track)
        connection.addTrack(face.audio)
        connection.addTrack(face.video)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import av
from aiortc.mediastreams import MediaStreamTrack

from echo_rtc.avatars.library import AvatarLibrary, Shelf
from echo_rtc.clips import ClipFormat
from echo_rtc.engine.factory import create_engine
from echo_rtc.errors import CapacityError, InputError
from echo_rtc.model.description import ModelDescription
from echo_rtc.rendering import Engine
from echo_rtc.rtc.tracks import FrameTrack, packetizer
from echo_rtc.rtc.voice import any_track
from echo_rtc.settings import Settings, named_settings
from echo_rtc.stream.stream import Stream, StreamOptions
from echo_rtc.stream.voice import Voice

__all__ = ["AvatarService", "TalkingFace", "stream_options"]

logger = logging.getLogger(__name__)

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
        self._faces: set[TalkingFace] = set()

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
            ModelDescription.from_mapping(chosen.model, chosen.model_base)
        engine = create_engine(chosen)
        try:
            await engine.start(_log)
            await AvatarLibrary(engine, Shelf.of(chosen)).prepare(_log)
            service = cls(engine, stream_options(chosen), chosen.max_streams)
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
        name = self.avatars[0] if avatar is None else avatar
        if name not in self._engine.avatars:
            raise InputError(f"there is no avatar {name!r}; choose one of {', '.join(self.avatars)}")
        if len(self._faces) >= self.capacity:
            raise CapacityError(
                f"all {self.capacity} faces that the engine animates in real time are taken; close one first",
                RETRY_AFTER_S,
            )
        stream = Stream(self._engine, self._engine.avatars[name], self._options, packetizer)
        face = TalkingFace(stream, any_track(voice))
        self._faces.add(face)
        stream.ended.add_done_callback(lambda _: self._faces.discard(face))
        return face

    async def close(self) -> None:
        """Closes all faces."""
        await asyncio.gather(*(face.close() for face in tuple(self._faces)))


class TalkingFace:
    """One voice and its face, as two tracks that are in sync. Made by :meth:`AvatarService.animate`.

    It ends by :meth:`close`, when the service closes, when both tracks have been stopped, or once the voice has ended
    and its last sound has left. A voice that is only muted, or sends nothing, is silence: the idle loop is shown.
    """

    def __init__(self, stream: Stream, voice: Voice) -> None:
        self._stream = stream
        self._tap = stream.add_tap()
        self._audio = FrameTrack("audio", self._tap.sound)
        self._video = FrameTrack("video", self._tap.picture)
        stream.begin()
        self._listening = stream.listen(voice)
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

    def media_sample(self, pts: int) -> int | None:
        """Where the voice's sample stamped ``pts`` (48 kHz) lies in the media time that ``audio.media_sample`` counts;
        None before the first frame of the voice."""
        return self._stream.media_sample(pts)

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
        over = asyncio.create_task(self._over(), name="end of a voice")
        try:
            either: set[asyncio.Future[Any]] = {over, self._stream.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
            await asyncio.wait({over})
        await self._stream.close("the voice has ended" if self._listening.done() else "its tracks were stopped")

    async def _over(self) -> None:
        """Returns when the tracks were stopped, or the voice has ended and its last sound has left."""
        tracks = asyncio.create_task(self._tap.ended.wait())
        try:
            await asyncio.wait({self._listening, tracks}, return_when=asyncio.FIRST_COMPLETED)
            if self._listening.done():
                await asyncio.wait({tracks}, timeout=self._stream.delay_s)
        finally:
            tracks.cancel()
            await asyncio.wait({tracks})


def _log(line: str) -> None:
    logger.info("%s", line)


def stream_options(settings: Settings) -> StreamOptions:
    """The streams' part of the settings."""
    return StreamOptions(
        vad_threshold=settings.vad_threshold,
        max_latency_s=settings.max_latency,
    )
