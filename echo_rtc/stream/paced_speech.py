"""Pushed speech for programs, with backpressure: sound is taken as fast as it can be said; a caller with more waits.

Knows no tracks and no connections.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import Any

from echo_rtc.clips import S16Array
from echo_rtc.errors import InputError
from echo_rtc.media.speech import MAX_EVENTS
from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.speech_input import SpeechInput, SpeechRefusedError

QUEUE_S = 5.0
"""While more than this waits to be said, nothing further is taken."""
PIECE_S = 30
"""Sound is taken in pieces of this length at most."""
CROWDED_S = 0.05
"""How often it is looked whether an event has left a queue that is full of them."""
RATES = range(8_000, 48_001)
"""Sample rates in Hz."""


class PacedSpeech:
    """Says events by a speaker of its own. ``ended``: done when nothing can be said any more."""

    def __init__(self, speaker: Speaker, ended: asyncio.Future[str]) -> None:
        self._speaker = speaker
        self._ended = ended
        self._input = SpeechInput(speaker)
        self._turn = asyncio.Lock()
        self._interruption: asyncio.Future[None] = ended.get_loop().create_future()
        self._interrupted: deque[str] = deque(maxlen=MAX_EVENTS)
        """Events that were interrupted, as far as they are remembered."""

    async def say(self, pcm: bytes | S16Array, rate: int, event: str | None = None, text: str = "") -> bool:
        """Appends mono PCM at ``rate`` Hz, 16-bit little-endian bytes or (n,) int16, to ``event``; without one to the
        event that runs, or to a new one. A new event queues behind the one before, and ends it. ``text``: the words,
        which events of the type "caption" tell as they are said.

        Waits while more than QUEUE_S, or MAX_EVENTS, are queued. False if the event was interrupted, before or while
        this waited: what was not taken by then is dropped. Raises InputError for sound or a rate that cannot be used,
        an event that is complete, and where the face has ended.
        """
        if rate not in RATES:
            raise InputError(f"rate is {rate!r}; it must be a whole number of Hz from {RATES[0]} to {RATES[-1]}")
        sound = _pcm_bytes(pcm)
        interruption = self._interruption
        async with self._turn:
            for begin in range(0, max(1, len(sound)), 2 * PIECE_S * rate):
                await self._room(interruption)
                if interruption.done() or event in self._interrupted:
                    return False
                event = event or self._input.running or secrets.token_hex(8)
                self._end_others(event)
                self._push(event, sound[begin : begin + 2 * PIECE_S * rate], rate, "" if begin else text)
        return True

    async def end_event(self, event: str | None = None) -> None:
        """Nothing further is said in ``event``, without one in that which runs: its last sound need not wait for more.
        Harmless for an event that is over."""
        interruption = self._interruption
        async with self._turn:
            ending = event or self._input.running
            if ending is not None and not interruption.done() and not self._ended.done():
                self._input.complete(ending)

    async def interrupt(self) -> float:
        """Silences the face at once and drops all that is queued, and all that waits in :meth:`say`; the seconds that
        have been heard of the event that was being said, 0.0 if none was."""
        if self._ended.done():
            return 0.0
        self._interrupted.extend(self._input.open_events)
        self._input.forget_all()
        reports = self._speaker.interrupt()
        self._interrupted.extend(report.event for report in reports)
        self._interruption.set_result(None)
        self._interruption = self._ended.get_loop().create_future()
        return reports[0].played_s if reports else 0.0

    async def said(self) -> None:
        """Waits until all that is queued has been heard, was interrupted, or the face has ended."""
        while self._speaker.speaking and not self._ended.done():
            await self._wait(self._interruption, max(0.02, self._speaker.queued_s))

    async def _room(self, interruption: asyncio.Future[None]) -> None:
        """Waits until no more than QUEUE_S is queued and there is a place for an event, or for an interruption. Raises
        InputError at the end of all."""
        while not interruption.done() and not self._ended.done():
            is_crowded = self._speaker.waiting_events >= MAX_EVENTS
            wait_s = max(self._speaker.queued_s - QUEUE_S, CROWDED_S if is_crowded else 0.0)
            if wait_s <= 0:
                break
            await self._wait(interruption, wait_s)
        if self._ended.done():
            raise InputError("the face has ended; it says nothing more")

    async def _wait(self, interruption: asyncio.Future[None], timeout_s: float) -> None:
        either: set[asyncio.Future[Any]] = {interruption, self._ended}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    def _end_others(self, event: str) -> None:
        for other in self._input.open_events:
            if other != event:
                self._input.complete(other)

    def _push(self, event: str, pcm: bytes, rate: int, text: str) -> None:
        try:
            self._input.push(event, pcm, rate, text)
        except (SpeechRefusedError, ValueError) as error:
            raise InputError(str(error)) from None


def _pcm_bytes(pcm: bytes | S16Array) -> bytes:
    """16-bit little-endian bytes. Raises InputError for anything but whole mono samples of 16 bit."""
    if isinstance(pcm, bytes | bytearray | memoryview):
        data = bytes(pcm)
        if len(data) % 2:
            raise InputError(f"the PCM has {len(data)} bytes; 16-bit samples have an even number")
        return data
    shape, kind = getattr(pcm, "shape", None), getattr(pcm, "dtype", type(pcm).__name__)
    if shape is None or len(shape) != 1 or kind != "int16":
        raise InputError(f"the PCM has the shape {shape} and the type {kind}; give bytes or mono int16")
    return pcm.astype("<i2").tobytes()
