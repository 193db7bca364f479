"""A talking face for Pipecat pipelines: what the text-to-speech service says becomes pictures and sound in step.

    avatars = await stack.enter_async_context(AvatarService.open())
    pipeline = Pipeline([transport.input(), stt, llm, tts, EchoRtcVideoService(avatars=avatars), transport.output()])

The service stands between the text-to-speech service and the output transport. It takes the speech, which may come
faster than it is spoken, and gives sound and pictures when they are due. What follows speech in the pipeline (text that
was said, the end of the answer) is held until that speech has been heard, so that nothing downstream is ahead of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError

from echo_rtc.avatar import AvatarService, SpeechReport, SpeechStep
from echo_rtc.clips import S16Array
from echo_rtc.codec.resampling import mono_mix
from echo_rtc.errors import EchoRtcError, InputError
from echo_rtc.remote.face import RemoteFace

try:
    from pipecat.frames.frames import (
        CancelFrame,
        EndFrame,
        Frame,
        InterruptionFrame,
        OutputImageRawFrame,
        OutputTransportReadyFrame,
        SpeechOutputAudioRawFrame,
        StartFrame,
        SystemFrame,
        TTSAudioRawFrame,
        TTSStartedFrame,
        TTSStoppedFrame,
    )
    from pipecat.processors.frame_processor import FrameDirection
    from pipecat.services.ai_service import AIService
    from pipecat.services.settings import ServiceSettings
except ModuleNotFoundError as error:
    raise ImportError(f'{error}; install it with: pip install "echo-rtc[pipecat]"') from error

__all__ = ["EchoRtcVideoService"]

logger = logging.getLogger(__name__)

MAX_HELD_FRAMES = 1024
"""Frames that may wait for the speech before them; a caller with more waits."""
QUIET = 20
"""Samples of 16 bit that are no louder are silence; Pipecat's transports have the same threshold."""
PAUSE_S = 0.4
"""So much silence is given after speech. More is not: transports that fall behind catch up in pauses, or never."""
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits between the tries to open a face of a server again; the last one repeats."""


class Track(Protocol):
    """Sound or pictures, when they are due."""

    async def recv(self) -> Any:
        """The next frame. Raises MediaStreamError at the end."""
        ...


class Face(Protocol):
    """What a service asks of the face that it shows."""

    @property
    def audio(self) -> Track: ...

    @property
    def video(self) -> Track: ...

    @property
    def tail_s(self) -> float: ...

    async def say(self, pcm: S16Array, rate: int, event: str) -> bool: ...

    async def end_event(self, event: str) -> None: ...

    async def interrupt(self) -> object: ...

    async def said(self) -> None: ...

    def report_to(self, reporter: Callable[[SpeechReport], None]) -> Callable[[], None]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Held:
    """A frame that comes after ``position_s`` seconds of the event number ``event``."""

    event: int
    position_s: float
    frame: Frame


class HeldFrames:
    """Frames that wait until the speech before them has been heard, in the order in which they came.

    Time is an argument: seconds of any monotonic clock.
    """

    def __init__(self) -> None:
        self._frames: deque[_Held] = deque()
        self._began_s: dict[int, float] = {}
        self._over = 0

    def __len__(self) -> int:
        return len(self._frames)

    def hold(self, event: int, position_s: float, frame: Frame) -> None:
        """``frame`` comes after ``position_s`` seconds of the event number ``event``, which counts from 1."""
        self._frames.append(_Held(event, position_s, frame))

    def began(self, event: int, now: float) -> None:
        """The event's first sound leaves."""
        self._began_s[event] = now

    def ended(self, event: int) -> None:
        """The event, and all before it, are over."""
        self._over = max(self._over, event)
        for earlier in [number for number in self._began_s if number <= self._over]:
            del self._began_s[earlier]

    def due_s(self) -> float | None:
        """When the first frame is due, -inf for at once; None where none waits or its event has not begun."""
        if not self._frames:
            return None
        first = self._frames[0]
        if first.event <= self._over:
            return float("-inf")
        began_s = self._began_s.get(first.event)
        return None if began_s is None else began_s + first.position_s

    def take(self) -> Frame:
        """The first frame, which waits no longer."""
        return self._frames.popleft().frame

    def take_all(self) -> list[Frame]:
        """All frames, none of which waits any longer."""
        frames = [held.frame for held in self._frames]
        self._frames.clear()
        return frames

    def interrupt(self) -> None:
        """Forgets all frames but those that an interruption must not drop."""
        self._frames = deque(held for held in self._frames if not held.frame.interruptible)


class EchoRtcVideoService(AIService):  # type: ignore[misc]  # Pipecat is not seen by the type checker
    """Shows a face that says what the pipeline's text-to-speech service says.

    Takes ``TTSAudioRawFrame``; gives ``OutputImageRawFrame`` and ``SpeechOutputAudioRawFrame`` (mono, 48 kHz) as they
    are due, both with pts (nanoseconds) that count from the same instant; in between the idle face and no sound. An
    ``InterruptionFrame`` silences the face at once. Set ``video_out_is_live`` and the avatar's picture size and frame
    rate in the transport's parameters.
    """

    def __init__(
        self,
        *,
        avatars: AvatarService | None = None,
        url: str | None = None,
        token: str | None = None,
        avatar: str | None = None,
        wait_for_transport: bool = True,
        **options: Any,
    ) -> None:
        """``avatars``: a started engine in this process, which stays its owner's; or ``url``: an echo_rtc server, with
        a ``token`` of the scope "call" where it asks for one. ``avatar``: a name; without it the first one.
        ``wait_for_transport``: nothing is given before an output transport says that it is ready; False for pipelines
        that end without one. ``options`` are those of every processor. Raises InputError unless either ``avatars`` or
        ``url`` is given.
        """
        super().__init__(settings=ServiceSettings(model=None), **options)
        self._make_face = _maker(avatars, url, token, avatar)
        self._opens_again = url is not None
        self._open = not wait_for_transport
        self._face: Face | None = None
        self._forget: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._held = HeldFrames()
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        self._event = 0
        self._interrupted = 0
        """The number of the latest event that was interrupted, with all before it."""
        self._running = False
        self._pushed_s = 0.0
        self._first_sound = False
        self._silent_until_s = 0.0

    def can_generate_metrics(self) -> bool:
        return True

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        self._tasks.append(self.create_task(self._release_held()))
        try:
            self._show(await self._make_face())
        except EchoRtcError as error:
            await self.push_error(f"there is no face, and the voice goes on without one: {error}", exception=error)
            if self._opens_again:
                self._tasks.append(self.create_task(self._open_again()))

    async def stop(self, frame: EndFrame) -> None:
        """The end of the pipeline: what was said is heard first."""
        await super().stop(frame)
        if self._face is not None:
            await self._end_event(self._face)
            await self._face.said()
        await self._close()
        for held in self._held.take_all():
            await self.push_frame(held)

    async def cancel(self, frame: CancelFrame) -> None:
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._close()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is not FrameDirection.DOWNSTREAM:
            self._open = self._open or isinstance(frame, OutputTransportReadyFrame)
            await self.push_frame(frame, direction)
        elif isinstance(frame, InterruptionFrame):
            await self._interrupt()
            await self.push_frame(frame)
        elif self._face is None or isinstance(frame, SystemFrame | EndFrame):
            await self.push_frame(frame)
        elif isinstance(frame, TTSAudioRawFrame):
            await self._say(frame, self._face)
        else:
            if isinstance(frame, TTSStartedFrame | TTSStoppedFrame):
                await self._end_event(self._face)
            if isinstance(frame, TTSStartedFrame):
                await self.start_ttfb_metrics()
            await self._hold(frame)

    async def _say(self, frame: TTSAudioRawFrame, face: Face) -> None:
        """Waits while more is queued than the face takes: frames that come meanwhile wait in the processor's queue, and
        an interruption empties that."""
        if not self._running:
            self._event += 1
            self._pushed_s = 0.0
            self._running = True
        try:
            pcm = _mono(frame.audio, frame.num_channels)
            self._pushed_s += len(pcm) / frame.sample_rate
            await face.say(pcm, frame.sample_rate, str(self._event))
        except InputError as error:
            self._held.ended(self._event)
            self._running = False
            self._changed.set()
            await self.push_error(f"speech was left out: {error}", exception=error)

    async def _end_event(self, face: Face) -> None:
        if self._running:
            self._running = False
            await face.end_event(str(self._event))

    async def _hold(self, frame: Frame) -> None:
        """``frame`` is passed on when the speech before it has been heard."""
        while len(self._held) >= MAX_HELD_FRAMES:
            self._released.clear()
            await self._released.wait()
        self._held.hold(self._event, self._pushed_s, frame)
        self._changed.set()

    async def _interrupt(self) -> None:
        if self._face is None:
            return
        self._held.ended(self._event)
        self._held.interrupt()
        self._released.set()
        self._changed.set()
        self._running = False
        self._interrupted = self._event
        self._silent_until_s = asyncio.get_running_loop().time() + self._face.tail_s
        await self._face.interrupt()

    def _take_report(self, report: SpeechReport) -> None:
        if not report.event.isdecimal():
            return  # of another client of the stream
        event = int(report.event)
        if report.step is not SpeechStep.STARTED:
            self._held.ended(event)
        elif event > self._interrupted:
            self._silent_until_s = 0.0
            self._first_sound = True
            self._held.began(event, asyncio.get_running_loop().time())
        self._changed.set()

    async def _release_held(self) -> None:
        """The only one that passes held frames on, so that they stay in order."""
        loop = asyncio.get_running_loop()
        while True:
            if self._first_sound:
                self._first_sound = False
                await self.stop_ttfb_metrics()
            due_s = self._held.due_s()
            if due_s is not None and due_s <= loop.time():
                await self.push_frame(self._held.take())
                self._released.set()
                continue
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._changed.wait()

    async def _pass_sound(self, face: Face) -> None:
        loop = asyncio.get_running_loop()
        heard_until_s = 0.0
        with suppress(MediaStreamError):
            while True:
                frame: av.AudioFrame = await face.audio.recv()
                pcm, now = frame.to_ndarray(), loop.time()
                if now < self._silent_until_s:
                    pcm[:] = 0
                elif pcm.max() > QUIET or pcm.min() < -QUIET:
                    heard_until_s = now + PAUSE_S
                if now < heard_until_s:
                    await self._give(SpeechOutputAudioRawFrame(pcm.tobytes(), frame.sample_rate, 1), frame)
        await self._lose(face)

    async def _pass_pictures(self, face: Face) -> None:
        with suppress(MediaStreamError):
            while True:
                frame: av.VideoFrame = await face.video.recv()
                rgb = frame.to_ndarray(format="rgb24").tobytes()
                await self._give(OutputImageRawFrame(rgb, (frame.width, frame.height), "RGB"), frame)

    async def _give(self, output: Frame, source: av.AudioFrame | av.VideoFrame) -> None:
        if self._open and source.pts is not None and source.time_base is not None:
            output.pts = round(source.pts * source.time_base * 1_000_000_000)
            await self.push_frame(output)

    async def _lose(self, face: Face) -> None:
        """The face has ended, and not by us."""
        if face is not self._face:
            return
        self._face = None
        self._held.ended(self._event)
        self._changed.set()
        self._forget()
        await self.push_error("the face has ended; the voice goes on without it")
        await face.close()
        if self._opens_again:
            await self._open_again()

    def _show(self, face: Face) -> None:
        self._face = face
        self._running = False
        self._forget = face.report_to(self._take_report)
        works = self._pass_sound(face), self._pass_pictures(face)
        # Those of a face that was lost have finished; each face that is opened again would leave two.
        self._tasks = [task for task in self._tasks if not task.done()] + [self.create_task(work) for work in works]

    async def _open_again(self) -> None:
        """Tries until the server has a face again."""
        for attempt in count():
            await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            try:
                self._show(await self._make_face())
            except EchoRtcError as error:
                logger.warning("there is still no face: %s", error)
            else:
                return

    async def _close(self) -> None:
        face, self._face = self._face, None
        tasks, self._tasks = self._tasks, []
        self._forget()
        if face is not None:
            await face.close()
        for task in tasks:
            await self.cancel_task(task)


def _maker(
    avatars: AvatarService | None, url: str | None, token: str | None, avatar: str | None
) -> Callable[[], Awaitable[Face]]:
    """What makes faces, of this process or of a server. Raises InputError."""
    if (avatars is None) == (url is None):
        raise InputError("a face is made by a service of this process or by a server; give either avatars or url")

    async def make() -> Face:
        if avatars is not None:
            return avatars.speak(avatar)
        assert url is not None
        return await RemoteFace.open(url, token, avatar)

    return make


def _mono(audio: bytes, channels: int) -> S16Array:
    """16-bit PCM of several channels as the mean of them, (n,) int16. Raises InputError for a part of a sample."""
    if channels < 1 or len(audio) % (2 * channels):
        raise InputError(f"the speech has {len(audio)} bytes, which are no whole samples of {channels} channels")
    return mono_mix(np.frombuffer(audio, "<i2").astype(np.int16).reshape(-1, channels))
