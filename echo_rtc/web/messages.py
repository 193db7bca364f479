"""The messages of a speech channel: JSON and PCM in, what becomes of each event out.

Knows no sockets: text and bytes come in, dictionaries go out by a function.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeAlias

from echo_rtc.stream.speech import Speaker, SpeechReport, SpeechStep
from echo_rtc.stream.speech_input import SpeechInput, SpeechRefusedError
from echo_rtc.web.bodies import MAX_JSON_VALUES, read_json
from echo_rtc.web.text_speech import MAX_TEXT_CHARACTERS, NOT_CONFIGURED, checked_text

SPEECH_RATE = 24_000
"""Sample rate of pushed PCM in Hz where the address names none."""
MAX_PCM_BYTES = 1 << 20
"""PCM of one message."""
MAX_ID_CHARACTERS = 128
MAX_REFUSED_EVENTS = 256
"""Number of refused events that are remembered, so that their later sound is refused too."""

Message: TypeAlias = dict[str, object]


class MessageError(Exception):
    """A message that cannot be followed: ``code`` for programs, the text for people. ``fatal``: it broke a bound.
    ``event``: the one that was refused."""

    def __init__(self, code: str, detail: str, fatal: bool = False, event: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.fatal = fatal
        self.event = event

    def as_message(self) -> Message:
        """The JSON message for the client."""
        message: Message = {"type": "error", "code": self.code, "detail": str(self)}
        return message if self.event is None else {**message, "event_id": self.event}


class Texts(Protocol):
    """What says a client's texts, each method as that of TextSpeech. Raises SpeechRefusedError."""

    def say(self, text: str, event: str | None = None) -> str: ...

    def holds(self, event: str) -> bool: ...

    def push(self, event: str, pcm: bytes, rate: int, text: str = "") -> None: ...


class SpeechMessages:
    """Follows a client's messages and tells it what becomes of them."""

    def __init__(
        self, speaker: Speaker, rate: int, send: Callable[[Message], None], texts: Texts | None = None
    ) -> None:
        """``rate``: of the client's PCM in Hz. ``texts`` says texts, where the server can."""
        self._speaker = speaker
        self._rate = rate
        self._send = send
        self._input = SpeechInput(speaker)
        self._texts = texts
        self._refused: deque[str] = deque(maxlen=MAX_REFUSED_EVENTS)
        self._made_ids = 0
        self._handlers: dict[str, Callable[[Message], None]] = {
            "agent.speak": self._speak,
            "agent.speak_text": self._speak_text,
            "agent.speak_end": self._speak_end,
            "agent.interrupt": lambda _: self._interrupt(),
            "agent.start_listening": lambda _: self._listen(True),
            "agent.stop_listening": lambda _: self._listen(False),
            "session.keep_alive": lambda _: self._speaker.keep_alive(),
        }

    def text(self, data: str) -> bool:
        """Follows a message of JSON; False if it broke a bound, which ends the session."""
        return self._followed(lambda: self._follow(data))

    def binary(self, data: bytes) -> bool:
        """Follows a message of PCM; False if it broke a bound, which ends the session."""
        return self._followed(lambda: self._push(None, data, ""))

    def report(self, report: SpeechReport) -> None:
        """Tells what became of an event."""
        if report.step is SpeechStep.INTERRUPTED:
            self._input.forget(report.event)
        self._send(report.as_message())

    def close(self) -> None:
        """The client is gone: what it has pushed is said to its end."""
        self._input.complete_all()

    def _followed(self, follow: Callable[[], None]) -> bool:
        try:
            follow()
        except MessageError as error:
            self._send(error.as_message())
            return not error.fatal
        return True

    def _follow(self, data: str) -> None:
        try:
            message = read_json(data)
        except ValueError:
            raise MessageError("bad_message", f"the message is no JSON of at most {MAX_JSON_VALUES} values") from None
        if not isinstance(message, dict):
            raise MessageError("bad_message", "the message is not a JSON object")
        kind = message.get("type")
        handler = self._handlers.get(kind) if isinstance(kind, str) else None
        if handler is None:
            known = ", ".join(self._handlers)
            raise MessageError("unknown_type", f"type is {str(kind)[:80]!r}; it must be one of {known}")
        handler(message)

    def _speak(self, message: Message) -> None:
        audio, text = message.get("audio", ""), message.get("text", "")
        if not isinstance(audio, str):
            raise MessageError("bad_audio", "audio must be base64 of 16-bit little-endian mono PCM")
        if not isinstance(text, str) or len(text) > MAX_TEXT_CHARACTERS:
            raise MessageError("bad_message", f"text must be at most {MAX_TEXT_CHARACTERS} characters")
        if len(audio) > MAX_PCM_BYTES * 4 // 3 + 4:
            raise MessageError("too_large", f"a message may have {MAX_PCM_BYTES} bytes of PCM", fatal=True)
        try:
            pcm = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError):
            raise MessageError("bad_audio", "audio is not base64") from None
        self._push(event_id_of(message), pcm, text)

    def _push(self, event: str | None, pcm: bytes, text: str) -> None:
        if len(pcm) > MAX_PCM_BYTES:
            raise MessageError("too_large", f"a message may have {MAX_PCM_BYTES} bytes of PCM", fatal=True)
        if len(pcm) % 2:
            raise MessageError("bad_audio", f"the PCM has {len(pcm)} bytes; 16-bit samples have an even number")
        if event is None:
            event = self._speaker.running or self._new_id()
        if event in self._refused:
            raise MessageError("queue_full", f"the event {event!r} was refused; take another event_id", event=event)
        try:
            if self._texts is not None and self._texts.holds(event):
                self._texts.push(event, pcm, self._rate, text)
            else:
                self._input.push(event, pcm, self._rate, text)
        except SpeechRefusedError as error:
            if error.code == "queue_full":
                self._refused.append(event)
            raise MessageError(error.code, str(error), event=event) from None

    def _speak_text(self, message: Message) -> None:
        event = event_id_of(message)
        if self._texts is None:
            raise MessageError("not_configured", NOT_CONFIGURED)
        if event is not None:
            # The text ends the event, and sound that follows waits behind it.
            self._input.flush(event)
        try:
            self._texts.say(checked_text(message.get("text")), event)
        except ValueError as error:
            raise MessageError("bad_message", str(error)) from None
        except SpeechRefusedError as error:
            raise MessageError(error.code, str(error), event=event) from None

    def _speak_end(self, message: Message) -> None:
        event = event_id_of(message) or self._speaker.running
        ends_itself = event is not None and self._texts is not None and self._texts.holds(event)
        if event is None or not (ends_itself or self._input.complete(event)):
            raise MessageError("unknown_event", "there is no such event to end")

    def _interrupt(self) -> None:
        self._input.forget_all()
        self._speaker.interrupt()

    def _listen(self, listening: bool) -> None:
        self._speaker.keep_alive()
        self._speaker.listening = listening

    def _new_id(self) -> str:
        self._made_ids += 1
        return f"event-{self._made_ids}"


def event_id_of(message: Message) -> str | None:
    """The event that a message names. Raises MessageError for what cannot be one."""
    event = message.get("event_id")
    if event is None:
        return None
    if not isinstance(event, str) or not 0 < len(event) <= MAX_ID_CHARACTERS:
        raise MessageError("bad_message", f"event_id must be text of 1 to {MAX_ID_CHARACTERS} characters")
    return event
