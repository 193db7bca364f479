"""An agent's speech: byte streams that bring it, its clearing, and what the agent is told of it.

The protocol is that of livekit-agents' ``DataStreamAudioOutput``: one byte stream for each piece of speech (a segment),
closed at its end; for each segment exactly one notice that it is finished, in their order. Knows no room: what it asks
of a byte stream is a protocol, and notices go to a callback.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from echo_rtc.codec.resampling import mono_mix
from echo_rtc.errors import InputError
from echo_rtc.stream.log import StreamLog
from echo_rtc.stream.paced_speech import RATES, PacedSpeech
from echo_rtc.stream.speech import Speaker, SpeechReport, SpeechStep

MAX_WAITING = 16
"""Segments that may wait to be read; an agent sends one after the other."""
IDLE_S = 10.0
"""A segment of which nothing has come for this long is over: its end was lost."""
CHANNELS = (1, 2)


class Info(Protocol):
    """What a byte stream says of itself."""

    @property
    def attributes(self) -> Mapping[str, str] | None: ...


class ByteStream(Protocol):
    """An incoming byte stream. Iterating raises ConnectionError where it breaks off."""

    @property
    def info(self) -> Info: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Started:
    """The first sound of a segment leaves."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A segment is over, of which ``position_s`` seconds were heard."""

    position_s: float
    interrupted: bool


Notice = Started | Finished


@dataclass(slots=True, eq=False)
class _Segment:
    """``over``: done when the segment was cleared, or another one has begun."""

    event: str
    stream: ByteStream
    rate: int
    channels: int
    over: asyncio.Future[None]
    cleared: bool = False


class AgentSpeech:
    """Has what an agent sends said by a speaker of its own.

    ``ended``: done when nothing can be said any more. ``notify`` is called with what becomes of each segment.
    """

    def __init__(
        self, speaker: Speaker, ended: asyncio.Future[str], log: StreamLog, notify: Callable[[Notice], None]
    ) -> None:
        self._speaker = speaker
        self._paced = PacedSpeech(speaker, ended)
        self._log = log
        self._notify = notify
        self._waiting: deque[_Segment] = deque()
        self._current: _Segment | None = None
        self._open: dict[str, _Segment] = {}
        """Segments whose end was not told yet, by event."""
        self._came = asyncio.Event()
        self._segments = 0
        self._forget = speaker.report_to(self._take_report)

    def take(self, stream: ByteStream) -> None:
        """A new segment begins, and ends the one before."""
        sound = _sound_of(stream.info.attributes or {})
        if sound is None or len(self._waiting) >= MAX_WAITING:
            why = "its rate or number of channels cannot be used" if sound is None else "too many wait"
            self._log.warning("a piece of an agent's speech was left out: %s", why)
            self._speaker.counters.unusable += 1
            stream.close()
            self._notify(Finished(0.0, interrupted=True))
            return
        self._segments += 1
        over = asyncio.get_running_loop().create_future()
        segment = _Segment(f"segment-{self._segments}", stream, *sound, over)
        previous = self._waiting[-1] if self._waiting else self._current
        if previous is not None and not previous.over.done():
            previous.over.set_result(None)
        self._waiting.append(segment)
        self._open[segment.event] = segment
        self._came.set()

    async def clear(self) -> None:
        """Silences the avatar at once and drops all that came so far, and what still comes of the present segment."""
        for segment in (*self._waiting, *filter(None, (self._current,))):
            segment.cleared = True
            if not segment.over.done():
                segment.over.set_result(None)
        for segment in self._waiting:
            segment.stream.close()
        self._waiting.clear()
        await self._paced.interrupt()
        # What nothing had come of yet is not known to the speaker.
        for event in [event for event, segment in self._open.items() if segment.cleared]:
            self._finish(event, 0.0, interrupted=True)

    async def run(self) -> None:
        """Reads segments, one after the other, until nothing can be said any more."""
        try:
            while True:
                self._came.clear()
                while self._waiting:
                    self._current = self._waiting.popleft()
                    await self._read(self._current)
                    self._current = None
                await self._came.wait()
        except InputError:
            return  # the avatar has ended
        finally:
            self.close()

    def close(self) -> None:
        """Nothing is taken or told any more."""
        self._forget()
        for segment in (*self._waiting, *filter(None, (self._current,))):
            segment.stream.close()
        self._waiting.clear()
        self._current = None

    async def _read(self, segment: _Segment) -> None:
        try:
            rest = b""
            width = 2 * segment.channels
            async for chunk in self._chunks(segment):
                data = rest + chunk
                whole = len(data) - len(data) % width
                rest = data[whole:]
                samples = np.frombuffer(data[:whole], "<i2").astype(np.int16)
                pcm = mono_mix(samples.reshape(-1, segment.channels))
                if not await self._paced.say(pcm, segment.rate, segment.event):
                    return
            if not segment.cleared:
                # Speech without sound is over as well.
                await self._paced.say(b"", segment.rate, segment.event)
                await self._paced.end_event(segment.event)
        finally:
            segment.stream.close()

    async def _chunks(self, segment: _Segment) -> AsyncIterator[bytes]:
        """What comes of a segment, until its end; where that is lost, until another one begins or nothing comes."""
        chunks = aiter(segment.stream)
        while not segment.cleared:
            coming = asyncio.ensure_future(anext(chunks, None))
            try:
                waited: set[asyncio.Future[bytes | None] | asyncio.Future[None]] = {coming, segment.over}
                await asyncio.wait(waited, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                try:
                    chunk = coming.result()
                except ConnectionError as error:
                    self._log.warning("an agent's speech broke off: %s", error)
                    return
                if chunk is None:
                    return
                yield chunk
            finally:
                coming.cancel()

    def _take_report(self, report: SpeechReport) -> None:
        if report.step is SpeechStep.STARTED:
            if report.event in self._open:
                self._notify(Started())
        else:
            self._finish(report.event, report.played_s, report.step is SpeechStep.INTERRUPTED)

    def _finish(self, event: str, position_s: float, interrupted: bool) -> None:
        if self._open.pop(event, None) is not None:
            self._notify(Finished(position_s, interrupted))


def _sound_of(attributes: Mapping[str, str]) -> tuple[int, int] | None:
    """Rate (Hz) and number of channels of a segment; None where they are missing or cannot be used."""
    try:
        rate, channels = int(attributes["sample_rate"]), int(attributes["num_channels"])
    except (KeyError, ValueError):
        return None
    return (rate, channels) if rate in RATES and channels in CHANNELS else None
