"""PCM of any rate into the events of a speaker: what a client or a program pushes.

Knows no messages and no sockets.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.codec.resampling import PcmConverter
from echo_rtc.media.speech import EventOverError, QueueFullError, Words


def begun_words(text: str) -> Words:
    """Words whose sound comes bit by bit; ``complete`` is set when it has come."""
    return Words(text, complete=False)


class EventSink(Protocol):
    """The part of a speaker that takes sound."""

    def say(self, event: str, pcm: S16Array, words: Words | None = None) -> None: ...

    def require_place(self, event: str, samples: int) -> None: ...

    def hold(self, event: str) -> None: ...

    def complete(self, event: str) -> bool: ...


MAX_OPEN = 32
"""Events that may get further sound at once. Each has a filter, which takes a millisecond to make and to end."""


class SpeechRefusedError(Exception):
    """Sound was not taken: ``code`` is "queue_full" or "event_over"."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class SpeechInput:
    """Converts what is pushed to each event, and ends events so that nothing of them is missing."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self._open: dict[str, PcmConverter] = {}
        self.running: str | None = None
        """The event that sound without a name belongs to; None where it begins one."""

    def rate_of(self, event: str) -> int | None:
        """The rate that further sound of ``event`` must have; None where it may have any."""
        converter = self._open.get(event)
        return None if converter is None else converter.rate

    @property
    def open_events(self) -> tuple[str, ...]:
        """Events that may get further sound."""
        return tuple(self._open)

    def hold(self, event: str) -> None:
        """Queues ``event`` up and keeps it open, with sound or without, until it is completed. Raises
        SpeechRefusedError."""
        try:
            self._sink.hold(event)
        except QueueFullError as error:
            raise SpeechRefusedError("queue_full", str(error)) from None
        except EventOverError as error:
            raise SpeechRefusedError("event_over", str(error)) from None

    def push(self, event: str, pcm: bytes, rate: int, words: Words | str = "") -> None:
        """Appends 16-bit little-endian mono PCM at ``rate`` Hz, an even number of bytes, which says ``words``, to
        ``event``.

        Raises SpeechRefusedError; nothing that was queued before is lost. Raises ValueError for another rate than that
        of the event's sound before.
        """
        said = (Words(words) if words else None) if isinstance(words, str) else words
        try:
            # Converting costs more than refusing, so what has no place is not converted.
            self._sink.require_place(event, len(pcm) // 2 * MEDIA_RATE // rate)
            self._sink.say(event, self._converter(event, rate).push(pcm), said)
        except QueueFullError as error:
            self.forget(event)
            self._sink.complete(event)
            raise SpeechRefusedError("queue_full", f"{error}; the event {event!r} takes no more") from None
        except EventOverError as error:
            self.forget(event)
            raise SpeechRefusedError("event_over", str(error)) from None
        self.running = event

    def _converter(self, event: str, rate: int) -> PcmConverter:
        """The open converter of an event, or a new one. Raises ValueError for another rate."""
        converter = self._open.get(event)
        if converter is None:
            if len(self._open) >= MAX_OPEN:
                # A client that never ends its events has long gone on to others.
                self.complete(next(iter(self._open)))
            converter = self._open[event] = PcmConverter(rate)
        if converter.rate != rate:
            raise ValueError(f"rate is {rate}; the event {event!r} has {converter.rate} Hz, and keeps it")
        return converter

    def complete(self, event: str) -> bool:
        """No further sound of ``event`` comes; False if it is not open."""
        if event not in self._open:
            return False
        self.flush(event)
        self._sink.complete(event)
        return True

    def flush(self, event: str, words: Words | None = None) -> None:
        """Says what the filter still holds of ``event``, whose next sound, of any rate, begins another one."""
        converter = self._open.get(event)
        if converter is None:
            return
        self.forget(event)
        if len(rest := converter.flush()):
            # Where there is no place for the filter's last millisecond, nothing is missed.
            with suppress(QueueFullError, EventOverError):
                self._sink.say(event, rest, words)

    def complete_all(self) -> None:
        """Completes all open events at the end of the input: what is queued is said to its end."""
        for event in self.open_events:
            self.complete(event)

    def forget_all(self) -> None:
        """The events were interrupted."""
        self._open.clear()
        self.running = None

    def forget(self, event: str) -> None:
        """The event was interrupted, or takes no more."""
        self._open.pop(event, None)
        if self.running == event:
            self.running = None
