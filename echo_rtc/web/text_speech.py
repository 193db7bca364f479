"""Text that a stream says: its sentences fetched from a voice, each a little before it is due, said as they come.

One :class:`TextSpeech` belongs to a stream's speaker, whichever request asks. Knows no sockets and no routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.speech_input import SpeechInput, SpeechRefusedError, begun_words
from echo_rtc.tts.sentences import sentences
from echo_rtc.tts.voices import TtsError, Voice
from echo_rtc.web.problems import Problem

MAX_TEXTS = 16
"""Texts of a stream that wait or are being fetched."""
MAX_SOUNDS = 1024
"""Messages of sound that wait behind a text of their event."""
MAX_SOUND_S = 120.0
"""Sound that waits behind texts of its events."""
LEAD_S = 10.0
"""A sentence is fetched when no more sound than this waits before it."""

MAX_TEXT_CHARACTERS = 4096
NOT_CONFIGURED = "This server says no text; start it with --tts-url."

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
    """A text of ``event``."""

    event: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sound:
    """Sound that was pushed behind a text of ``event``: PCM of ``rate`` Hz, and its words."""

    event: str
    pcm: bytes
    rate: int
    text: str

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate


class TextSpeech:
    """Says texts in the order in which they came.

    A text has its place among the speaker's events from :meth:`say` on: what is pushed later, of another event, waits
    behind all of it. Sound and further texts of the same event are said behind its text.
    """

    def __init__(self, speaker: Speaker, voice: Voice) -> None:
        self._speaker = speaker
        self._voice = voice
        self._input = SpeechInput(speaker)
        self._waiting: deque[_Text | _Sound] = deque()
        self._task: asyncio.Task[None] | None = None
        self._made_ids = 0
        speaker.drop_prepared = self.drop

    def say(self, text: str, event: str | None = None) -> str:
        """Queues a text up; the event that it is. Raises SpeechRefusedError where too many wait, and for an event that
        is complete."""
        if sum(isinstance(each, _Text) for each in self._waiting) >= MAX_TEXTS:
            raise SpeechRefusedError("queue_full", f"{MAX_TEXTS} texts wait; wait for an agent.speak_ended")
        if event is None:
            self._made_ids += 1
            event = f"text-{self._made_ids}"
        self._input.hold(event)
        self._append(_Text(event, tuple(sentences(text))))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return event

    def holds(self, event: str) -> bool:
        """Whether a text of this event waits or is being fetched."""
        return any(each.event == event for each in self._waiting)

    def push(self, event: str, pcm: bytes, rate: int, text: str = "") -> None:
        """Says PCM behind the text of ``event``, which is held. Raises SpeechRefusedError where too much waits."""
        sounds = [each for each in self._waiting if isinstance(each, _Sound)]
        if len(sounds) >= MAX_SOUNDS or sum(each.seconds for each in sounds) > MAX_SOUND_S:
            raise SpeechRefusedError("queue_full", f"too much sound waits behind the text of the event {event!r}")
        self._append(_Sound(event, pcm, rate, text))
        self._speaker.keep_alive()

    def drop(self) -> None:
        """Cancels what is fetched and forgets what waits."""
        self._waiting.clear()
        self._input.forget_all()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _append(self, added: _Text | _Sound) -> None:
        """Puts it behind the last of its event, else behind all."""
        places = [place for place, each in enumerate(self._waiting) if each.event == added.event]
        self._waiting.insert(places[-1] + 1 if places else len(self._waiting), added)

    async def _run(self) -> None:
        while self._waiting:
            event = self._waiting[0].event
            try:
                await self._say(self._waiting[0])
                self._waiting.popleft()
            except TtsError as error:
                logger.warning("text cannot be said: %s", error)
                self._fail(event, "tts_failed", str(error))
            except SpeechRefusedError as error:
                self._fail(event, error.code, str(error))
            except Exception:  # a boundary: whatever a voice trips over, its event ends, and others follow
                logger.exception("a text failed")
                self._fail(event, "tts_failed", "the text could not be said")
            if not self.holds(event):
                self._input.flush(event)
                self._speaker.complete(event)
        self._task = None

    async def _say(self, said: _Text | _Sound) -> None:
        if isinstance(said, _Sound):
            await self._room(said.event)
            if self._input.rate_of(said.event) != said.rate:
                self._input.flush(said.event)
            self._input.push(said.event, said.pcm, said.rate, said.text)
            return
        for sentence in said.sentences:
            await self._room(said.event)
            self._input.flush(said.event)
            await self._fetch(said.event, sentence)

    async def _fetch(self, event: str, sentence: str) -> None:
        """Says a sentence, part by part as it comes."""
        words = begun_words(sentence)
        try:
            async with aclosing(self._voice.say(sentence)) as sound:
                async for spoken in sound:
                    self._input.push(event, spoken.pcm, spoken.rate, words)
        finally:
            words.complete = True
            self._input.flush(event, words)

    async def _room(self, event: str) -> None:
        """Waits until no more than LEAD_S of sound is queued up to the end of ``event``."""
        while True:
            excess_s = self._speaker.queued_until_s(event) - LEAD_S
            if excess_s <= 0:
                return
            await asyncio.sleep(excess_s)

    def _fail(self, event: str, code: str, detail: str) -> None:
        """Tells it, and ends the event with what has been said of it."""
        self._waiting = deque(each for each in self._waiting if each.event != event)
        self._speaker.fail(event, code, detail)


@dataclass(frozen=True, slots=True)
class LimitedTexts:
    """What a client may have said to a stream. ``count`` counts one of its texts, and raises Problem 429 where that is
    one too many."""

    speech: TextSpeech
    count: Callable[[], None]

    @classmethod
    def of(cls, speech: TextSpeech | None, count: Callable[[], None]) -> LimitedTexts | None:
        """None where the server says no text."""
        return None if speech is None else cls(speech, count)

    def say(self, text: str, event: str | None = None) -> str:
        """As :meth:`TextSpeech.say`. Raises SpeechRefusedError where the client has had too many said, too."""
        try:
            self.count()
        except Problem as problem:
            raise SpeechRefusedError("too_many", problem.detail.removesuffix(".")) from None
        return self.speech.say(text, event)

    def holds(self, event: str) -> bool:
        """As :meth:`TextSpeech.holds`."""
        return self.speech.holds(event)

    def push(self, event: str, pcm: bytes, rate: int, text: str = "") -> None:
        """As :meth:`TextSpeech.push`."""
        self.speech.push(event, pcm, rate, text)


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
            speech.drop()

    async def close(self) -> None:
        """Ends everything that is fetched."""
        for speaker in tuple(self._speeches):
            self._end(speaker)
        if self._voice is not None:
            await self._voice.close()
