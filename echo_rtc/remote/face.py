"""A face of a server elsewhere: opened over HTTP, spoken to over its speech channel, seen and heard by WHEP."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import aiohttp
import av

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.codec.resampling import PcmConverter
from echo_rtc.errors import InputError, RemoteError
from echo_rtc.remote.viewing import DueTrack, Viewing
from echo_rtc.stream.speech import SpeechReport, SpeechStep

CONNECT_TIMEOUT_S = 15.0
QUEUE_S = 5.0
"""While more than this waits to be said, nothing further is sent."""
MAX_PLAYED_MS = 1e9
"""No event is longer: 11 days."""
PIECE_SAMPLES = 2 * MEDIA_RATE
"""Sound is sent in messages of this length at most."""

_STEPS = {
    "agent.speak_started": SpeechStep.STARTED,
    "agent.speak_ended": SpeechStep.ENDED,
    "agent.speak_interrupted": SpeechStep.INTERRUPTED,
}
_REFUSALS = ("queue_full", "event_over")
"""Codes of errors after which the server reports nothing further of the event that they name."""

logger = logging.getLogger(__name__)


class RemoteFace:
    """Has the interface of :class:`echo_rtc.avatar.SpokenFace` as far as speech goes. Made by :meth:`open`."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http
        self._ended = asyncio.Event()
        self._viewing = Viewing(self._ended.set)
        self._channel: aiohttp.ClientWebSocketResponse | None = None
        self._stream: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._reporters: list[Callable[[SpeechReport], None]] = []
        self._converters: dict[str, PcmConverter] = {}
        self._open: dict[str, None] = {}
        """Events of which something was sent and whose end is not known yet, in order."""
        self._changed = asyncio.Event()
        self._interruptions = 0
        self._said_s = 0.0
        """When all that was sent has been said, if it was said at once."""

    @classmethod
    async def open(cls, url: str, token: str | None = None, avatar: str | None = None) -> Self:
        """Opens a stream of the server at ``url`` and connects to it; ``token`` of the scope "call" where it asks for
        one. Raises RemoteError with one sentence; nothing is left then."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        http = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=CONNECT_TIMEOUT_S))
        face = cls(url.rstrip("/"), http)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await face._connect(avatar)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError) as error:
            await face.close()
            why = str(error) or type(error).__name__
            raise RemoteError(f"the server {url[:120]} cannot be used: {why}") from None
        except BaseException:
            await face.close()
            raise
        return face

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.close()

    @property
    def audio(self) -> DueTrack[av.AudioFrame]:
        """Mono s16 frames at 48 kHz; pts count from the same instant as the picture's."""
        return self._viewing.sound

    @property
    def video(self) -> DueTrack[av.VideoFrame]:
        """yuv420p frames, pts at 90 kHz."""
        return self._viewing.picture

    @property
    def tail_s(self) -> float:
        """For how long after an interruption sound may come that was on its way."""
        return 0.3 + self._viewing.arrivals.depth_s

    def report_to(self, reporter: Callable[[SpeechReport], None]) -> Callable[[], None]:
        """As :meth:`echo_rtc.avatar.SpokenFace.report_to`, when it is heard here."""
        self._reporters.append(reporter)

        def forget() -> None:
            if reporter in self._reporters:
                self._reporters.remove(reporter)

        return forget

    async def say(self, pcm: S16Array, rate: int, event: str) -> bool:
        """Appends mono PCM (n,) int16 at ``rate`` Hz to ``event``; a new one queues behind the event before, and ends
        it. Waits while more than QUEUE_S is queued. False if it was interrupted meanwhile. Raises InputError for
        another rate than that of the event's sound before, and where the face has ended."""
        interruptions = self._interruptions
        for other in [other for other in self._converters if other != event]:
            await self.end_event(other)
        if interruptions != self._interruptions:
            return False
        converter = self._converters.setdefault(event, PcmConverter(rate))
        if converter.rate != rate:
            raise InputError(f"rate is {rate}; the event {event!r} has {converter.rate} Hz, and keeps it")
        await self._send(event, converter.push(pcm.astype("<i2").tobytes()))
        if self._ended.is_set():
            raise InputError("the face has ended; it says nothing more")
        return interruptions == self._interruptions

    async def end_event(self, event: str) -> None:
        """Nothing further is said in ``event``. Harmless for an event that is over, and where the face has ended."""
        converter = self._converters.pop(event, None)
        if converter is not None and await self._send(event, converter.flush()):
            await self._tell({"type": "agent.speak_end", "event_id": event})

    async def interrupt(self) -> None:
        """Silences the face at once, and drops all that is queued."""
        self._interruptions += 1
        self._converters.clear()
        # All that was sent is silenced with this, whether or not its report comes.
        self._open.clear()
        self._said_s = 0.0
        self._changed.set()
        await self._tell({"type": "agent.interrupt"})

    async def said(self) -> None:
        """Waits until all that was sent has been heard, was interrupted, or the face has ended."""
        while self._open and not self._ended.is_set():
            await self._wait(None)

    async def close(self) -> None:
        """Ends the stream. Closing twice is harmless."""
        self._ended.set()
        self._changed.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._viewing.close()
        stream, self._stream = self._stream, None
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            if self._channel is not None:
                await self._channel.close()
            if stream is not None:
                async with self._http.delete(stream):
                    pass
        await self._http.close()

    async def _connect(self, avatar: str | None) -> None:
        opened = await self._post("/streams", json={} if avatar is None else {"avatar": avatar})
        addresses = json.loads(opened)
        # Where a proxy puts the server below a path, the address that was given knows of it.
        key, name = (str(addresses[which]).rpartition("/")[2] for which in ("stream", "whep"))
        self._stream = f"{self._url}/streams/{key}"
        self._channel = await self._http.ws_connect(f"{self._stream}/speech?rate={MEDIA_RATE}", heartbeat=20.0)
        self._tasks.append(asyncio.create_task(self._read(self._channel), name="speech channel of a remote face"))
        offer = await self._viewing.offer()
        headers = {"Content-Type": "application/sdp"}
        await self._viewing.accept(await self._post(f"/whep/{name}", data=offer, headers=headers))
        self._tasks.append(asyncio.create_task(self._watch(), name="end of a remote face"))

    async def _post(self, path: str, **content: Any) -> str:
        """The body of a 201. Raises RemoteError with what the server says."""
        async with self._http.post(f"{self._url}{path}", allow_redirects=False, **content) as response:
            text = await response.text()
            if response.status == 201:
                return text
        raise RemoteError(f"the server refuses ({response.status}): {_detail(text)}")

    async def _watch(self) -> None:
        """Ends both tracks with the face."""
        await self._ended.wait()
        self.audio.close()
        self.video.close()
        self._changed.set()

    async def _send(self, event: str, pcm: S16Array) -> bool:
        """Paces itself; False where it is interrupted, or the face ends, before all is sent."""
        loop = asyncio.get_running_loop()
        interruptions = self._interruptions
        for start in range(0, len(pcm), PIECE_SAMPLES):
            while (excess_s := self._said_s - loop.time() - QUEUE_S) > 0 and interruptions == self._interruptions:
                if self._ended.is_set():
                    break
                await self._wait(excess_s)
            if self._ended.is_set() or interruptions != self._interruptions:
                return False
            piece = pcm[start : start + PIECE_SAMPLES]
            self._said_s = max(self._said_s, loop.time()) + len(piece) / MEDIA_RATE
            audio = base64.b64encode(piece.astype("<i2").tobytes()).decode()
            self._open[event] = None
            await self._tell({"type": "agent.speak", "event_id": event, "audio": audio})
        return not self._ended.is_set() and interruptions == self._interruptions

    async def _wait(self, timeout_s: float | None) -> None:
        """Until something changes."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _tell(self, message: Mapping[str, str]) -> None:
        if self._channel is None or self._ended.is_set():
            return
        try:
            await self._channel.send_str(json.dumps(message))
        except (aiohttp.ClientError, ConnectionError):
            self._ended.set()

    async def _read(self, channel: aiohttp.ClientWebSocketResponse) -> None:
        """Follows what the server tells. The face ends with the channel, for whatever reason that ends."""
        try:
            async for received in channel:
                if received.type is not aiohttp.WSMsgType.TEXT:
                    break
                self._follow(received.data)
        finally:
            self._ended.set()

    def _follow(self, data: str) -> None:
        """Reports what a message tells, as late as its sound is heard here. A malformed one is ignored."""
        message = _object(data)
        kind, event = message.get("type"), message.get("event_id")
        step = _STEPS.get(kind) if isinstance(kind, str) else None
        if step is not None and isinstance(event, str):
            self._report_when_heard(SpeechReport(step, event, _played_s(message.get("played_ms"))))
        elif kind == "error":
            logger.warning("the server says: %s", message.get("detail"))
            if message.get("code") in _REFUSALS and isinstance(event, str) and event in self._open:
                self._report_when_heard(SpeechReport(SpeechStep.INTERRUPTED, event))
        elif not isinstance(kind, str) or step is not None:
            logger.warning("the server sends a message that is malformed; it is ignored")

    def _report_when_heard(self, report: SpeechReport) -> None:
        asyncio.get_running_loop().call_later(self._viewing.arrivals.depth_s, self._report, report)

    def _report(self, report: SpeechReport) -> None:
        if report.step is not SpeechStep.STARTED:
            self._open.pop(report.event, None)
            self._changed.set()
        for reporter in tuple(self._reporters):
            reporter(report)


def _played_s(played_ms: object) -> float:
    """Seconds of what a server says to be milliseconds; 0.0 where that is no length of speech."""
    if isinstance(played_ms, int | float) and 0 <= played_ms <= MAX_PLAYED_MS:
        return played_ms / 1000
    return 0.0


def _detail(text: str) -> str:
    return str(_object(text).get("detail", "it says no more"))


def _object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` is; an empty one where it is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
