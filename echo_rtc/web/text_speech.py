"""Text that a stream says: its sentences fetched from a voice, the next one while the one before is spoken.

One :class:`TextSpeech` belongs to a stream's speaker, whichever request asks. Knows no sockets and no routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.speech_input import SpeechInput, SpeechRefusedError
from echo_rtc.tts.sentences import sentences
from echo_rtc.tts.voices import Spoken, TtsError, Voice

MAX_TEXTS = 16
"""Texts of a stream that wait or are being fetched."""
LEAD_S = 10.0
"""A sentence joins the queue when no more sound than this waits before it."""

MAX_TEXT_CHARACTERS = 4096
NOT_CONFIGURED = "This server says no text; start it with --tts-url."

Failure = Callable[[str, str, str], None]
"""Is told the event, the code and the words of an error."""

logger = logging.getLogger(__name__)


def checked_text(text: object) -> str:
    """A text that can be said. Raises ValueError, in words for clients."""
    if not isinstance(text, str) or len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"text must be text of at most {MAX_TEXT_CHARACTERS} characters")
    if not sentences(text):
        raise ValueError("text holds nothing that can be said")
    return text


@dataclass(frozen=True, slots=True)
class _Text:
    event: str
    sentences: tuple[str, ...]


class TextSpeech:
    """Says texts in the order in which they came. ``failed`` is who is told of errors at the moment, if anybody."""

    def __init__(self, speaker: Speaker, voice: Voice) -> None:
        self._speaker = speaker
        self._voice = voice
        self._input = SpeechInput(speaker)
        self._texts: deque[_Text] = deque()
        self._task: asyncio.Task[None] | None = None
        self._made_ids = 0
        self.failed: Failure | None = None
        speaker.unsaid = self.forget

    def say(self, text: str, event: str | None = None) -> str:
        """Queues a text up; the event that it is. Raises SpeechRefusedError where too many wait."""
        if len(self._texts) >= MAX_TEXTS:
            raise SpeechRefusedError("queue_full", f"{MAX_TEXTS} texts wait; wait for an agent.speak_ended")
        if event is None:
            self._made_ids += 1
            event = f"text-{self._made_ids}"
        self._texts.append(_Text(event, tuple(sentences(text))))
        self._speaker.keep_alive()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return event

    def forget(self) -> list[str]:
        """Cancels what is fetched and forgets what waits; the events that this ends."""
        events = [text.event for text in self._texts]
        self._texts.clear()
        self._input.forget_all()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        return events

    async def _run(self) -> None:
        while self._texts:
            text = self._texts[0]
            try:
                await self._say(text)
            except TtsError as error:
                logger.warning("text cannot be said: %s", error)
                self._tell(text.event, "tts_failed", str(error))
            except SpeechRefusedError as error:
                self._tell(text.event, error.code, str(error))
            self._input.complete(text.event)
            self._texts.popleft()
        self._task = None

    async def _say(self, text: _Text) -> None:
        for sentence in text.sentences:
            spoken: Spoken = await self._voice.say(sentence)
            await self._room()
            self._input.push(text.event, spoken.pcm, spoken.rate, sentence)

    async def _room(self) -> None:
        """Waits until no more than LEAD_S of sound is queued."""
        while True:
            excess_s = self._speaker.queued_s - LEAD_S
            if excess_s <= 0:
                return
            await asyncio.sleep(excess_s)

    def _tell(self, event: str, code: str, detail: str) -> None:
        if self.failed is not None:
            self.failed(event, code, detail)


class TextSpeeches:
    """The texts of all streams, and the voice that says them."""

    def __init__(self, voice: Voice | None = None) -> None:
        self._voice = voice
        self._speeches: dict[Speaker, TextSpeech] = {}

    @property
    def configured(self) -> bool:
        """Whether there is a voice."""
        return self._voice is not None

    def of(self, speaker: Speaker, ending: asyncio.Future[str] | None) -> TextSpeech | None:
        """What says texts to a stream until that ends; None without a voice, and for a stream that is gone."""
        if self._voice is None or ending is None:
            return None
        speech = self._speeches.get(speaker)
        if speech is None:
            speech = self._speeches[speaker] = TextSpeech(speaker, self._voice)
            ending.add_done_callback(lambda _: self._end(speaker))
        return speech

    def _end(self, speaker: Speaker) -> None:
        speech = self._speeches.pop(speaker, None)
        if speech is not None:
            speech.forget()

    async def close(self) -> None:
        """Ends everything that is fetched."""
        for speaker in tuple(self._speeches):
            self._end(speaker)
        if self._voice is not None:
            await self._voice.close()
