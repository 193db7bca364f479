"""The voice of a stream of pushed speech: events in, their sound and picture out, interruptions at once.

Takes the listener's place in a stream. Sound comes converted (mono int16 at 48 kHz). Knows no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, S16Array
from echo_rtc.media.playout import Playout
from echo_rtc.media.speech import Cut, EventOverError, Mark, MarkKind, SpeechQueue, Words
from echo_rtc.stream.dispatch import Dispatcher
from echo_rtc.stream.events import EventFeed, EventType
from echo_rtc.stream.links import Reception
from echo_rtc.stream.listening import ClipFeed
from echo_rtc.stream.tally import Tally
from echo_rtc.stream.voice import VoiceCounters

GUARD_FRAMES = 2
"""Frames of silence before media time goes on after an interruption; at least one is needed."""
CHARACTER_S = 1 / 14
"""How long a character is said for, about; tells when words end whose sound has not come whole yet."""


class SpeechStep(StrEnum):
    """What becomes of an event."""

    STARTED = "started"
    ENDED = "ended"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    """Something of it could not be made; its end is reported as of every event."""


@dataclass(frozen=True, slots=True)
class SpeechReport:
    """``step`` of ``event``, of which ``played_s`` seconds have left by then. Of a failure ``code``, for programs, and
    ``detail``, one sentence."""

    step: SpeechStep
    event: str
    played_s: float = 0.0
    code: str = ""
    detail: str = ""

    def as_message(self) -> dict[str, object]:
        """The JSON message for the client that speaks to the stream."""
        if self.step is SpeechStep.FAILED:
            return {"type": "error", "code": self.code, "detail": self.detail, "event_id": self.event}
        message: dict[str, object] = {"type": f"agent.speak_{self.step}", "event_id": self.event}
        if self.step is not SpeechStep.STARTED:
            message["played_ms"] = round(1000 * self.played_s)
        return message


@dataclass(slots=True)
class _Caption:
    """Words that viewers are shown, since ``mark``. ``is_final``: they know the end."""

    mark: Mark
    words: Words
    is_final: bool = False

    @property
    def end(self) -> int:
        """The media sample behind their sound, estimated as long as that has not come whole."""
        length = self.words.samples
        if not self.words.complete:
            length = max(length, round(len(self.words.text) * CHARACTER_S * MEDIA_RATE))
        return self.mark.sample + length


class Speaker:
    """Says pushed events, one after the other."""

    def __init__(
        self, clip_format: ClipFormat, feed: ClipFeed, playout: Playout, clips: Dispatcher, events: EventFeed
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._format = clip_format
        self._feed = feed
        self._playout = playout
        self._clips = clips
        self._events = events
        self.timeline = SpeechQueue(clip_format)
        self._begun = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._reporters: list[Callable[[SpeechReport], object]] = []
        self.drop_prepared: Callable[[], None] = lambda: None
        """Drops what is being prepared for events that wait; called at an interruption."""
        self._caption: _Caption | None = None
        """What viewers were shown last."""
        self.heard_at = self._loop.time()
        """When a client last pushed, interrupted, started listening or sent keep_alive; loop time, seconds."""
        self.claimed = False
        """Whether a client has the right to speak."""
        self.listening = False
        """Whether viewers are to see that the avatar listens; ends with the next speech."""
        self.counters = VoiceCounters()
        self.past = Tally()

    @property
    def receptions(self) -> tuple[Reception, ...]:
        """Nothing arrives by RTP."""
        return ()

    @property
    def running(self) -> str | None:
        """The event that further sound without an id appends to."""
        return self.timeline.running

    @property
    def queued_s(self) -> float:
        """Seconds of sound that have not left yet."""
        return self.timeline.queued_s(self._left())

    def queued_until_s(self, event: str) -> float:
        """Seconds of sound up to the end of ``event`` that have not left yet."""
        return self.timeline.queued_s(self._left(), event)

    @property
    def speaking(self) -> bool:
        """Whether an event is being said or waits; not while one that is not complete has run dry."""
        return self.timeline.next_mark is not None or self.queued_s > 0

    def begin(self) -> None:
        """Starts media time."""
        self._begun = True
        self.tick()

    def close(self) -> None:
        """Ends it; what is pushed from now on is refused."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._feed.close()

    async def ask_links(self) -> None:
        """No connection brings this voice."""

    def keep_alive(self) -> None:
        """Restarts the stream's time-out."""
        self.heard_at = self._loop.time()

    def report_to(self, reporter: Callable[[SpeechReport], object]) -> Callable[[], None]:
        """Calls ``reporter`` with what becomes of each event, as it leaves; returns what ends that."""
        self._reporters.append(reporter)

        def forget() -> None:
            if reporter in self._reporters:
                self._reporters.remove(reporter)

        return forget

    @property
    def waiting_events(self) -> int:
        """Events of which something may still leave."""
        return self.timeline.waiting_events

    def require_place(self, event: str, samples: int) -> None:
        """Raises as :meth:`say` would for so many samples of ``event``: QueueFullError or EventOverError."""
        self._require_open()
        self.timeline.require_place(event, samples)

    def hold(self, event: str) -> None:
        """Queues ``event`` up, if it is new, and keeps it open until :meth:`complete`. Raises QueueFullError and
        EventOverError."""
        self._require_open()
        self.timeline.hold(event, self._loop.time())
        self.keep_alive()

    def say(self, event: str, pcm: S16Array, words: Words | None = None) -> None:
        """Appends ``pcm`` (n,) int16 mono at 48 kHz to ``event``, which queues up if it is new; ``words`` are shown
        with it. Raises QueueFullError, and EventOverError also where the stream is over."""
        self._require_open()
        self.timeline.push(event, pcm, self._loop.time(), words)
        self.counters.blocks += 1
        self.listening = False
        self.keep_alive()
        self.tick()

    def complete(self, event: str) -> bool:
        """No further sound of ``event`` comes; False if it is not waiting."""
        self.keep_alive()
        known = self.timeline.complete(event)
        self.tick()
        return known

    def interrupt(self) -> list[SpeechReport]:
        """Silences the avatar and forgets all that has not left; the events that this cuts short, as far as they were
        heard."""
        self.keep_alive()
        self.drop_prepared()
        cuts = self._silence() if self._begun and not self._closed else []
        reports = [SpeechReport(SpeechStep.INTERRUPTED, cut.event, cut.played / MEDIA_RATE) for cut in cuts]
        for report in reports:
            self._report(report)
        return reports

    def fail(self, event: str, code: str, detail: str) -> None:
        """Reports that something of ``event`` could not be made."""
        self._report(SpeechReport(SpeechStep.FAILED, event, code=code, detail=detail))

    def _silence(self) -> list[Cut]:
        """Forgets all that is pushed and has not left; the events that this cuts short."""
        now = self._loop.time()
        self._pass_marks()
        if not self.timeline.pending:
            return []
        guard = self._format.sample_of_frame(GUARD_FRAMES, MEDIA_RATE)
        left = self._playout.next_sample(now)
        for mark in self.timeline.marks_until(left):
            # What has been handed over is still heard. Words are not shown for so short a time.
            if mark.words is None:
                self._pass(mark)
        cuts, silence, target = self.timeline.interrupt(left, guard)
        self._feed.take(silence, now, self._wanted)
        self._take_caption_away(self._playout.next_sample(now))
        self.timeline.jump(self._playout.jump(self._format.frame_of_sample(target, MEDIA_RATE), now))
        self._feed.forget()
        self._clips.forget()
        self.tick()
        return cuts

    def tick(self) -> None:
        """Media time goes on by our clock and by what was pushed."""
        if not self._begun or self._closed:
            return
        now = self._loop.time()
        left = self._playout.next_sample(now)
        if frames := self.timeline.frames_to_border(left, now):
            self.timeline.jump(self._playout.jump(self._playout.next_frame(now) + frames, now))
        pieces = self.timeline.advance(now)
        self._playout.discipline(self.timeline.arrived(now), now)
        self._feed.take(pieces, now, self._wanted)
        self._pass_marks()
        if self._caption is not None and self._caption.words.complete:
            self._show_caption()

    def _require_open(self) -> None:
        if self._closed:
            raise EventOverError("the stream is over; open another one")

    def _wanted(self, clip: AudioClip) -> bool:
        return self.timeline.wanted(clip.first_frame, clip.frames)

    def _left(self) -> int:
        """Media time up to this sample has left."""
        return self._playout.media_sample(self._playout.media_now(self._loop.time()))

    def _pass_marks(self) -> None:
        """Reports the marks that have left, and wakes up for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for mark in self.timeline.marks_until(self._left()):
            self._pass(mark)
        if (upcoming := self.timeline.next_mark) is not None:
            # A sample later, so that rounding does not wake up just before.
            self._timer = self._loop.call_at(self._playout.playout_time(upcoming + 1), self._pass_marks)

    def _pass(self, mark: Mark) -> None:
        if mark.words is not None:
            self._caption = _Caption(mark, mark.words)
            self._show_caption()
        else:
            step = SpeechStep.STARTED if mark.kind is MarkKind.STARTED else SpeechStep.ENDED
            self._report(SpeechReport(step, mark.event, mark.played / MEDIA_RATE))

    def _show_caption(self) -> None:
        """Shows the words that are being said, again if their end has become known."""
        caption = self._caption
        if caption is None or caption.is_final:
            return
        caption.is_final = caption.words.complete
        self._tell_caption(caption.mark, caption.words.text, caption.end)

    def _take_caption_away(self, left: int) -> None:
        """Viewers are shown no further the words whose sound goes on behind the media sample ``left``."""
        caption, self._caption = self._caption, None
        if caption is not None and caption.end > left:
            self._tell_caption(caption.mark, "", max(caption.mark.sample, left))

    def _tell_caption(self, mark: Mark, text: str, end: int) -> None:
        start = self._playout.position(mark.sample)
        self._events.emit(
            {
                "type": EventType.CAPTION,
                "event_id": mark.event,
                "text": text,
                "start_ms": round(1000 * start / MEDIA_RATE),
                "end_ms": round(1000 * (start + end - mark.sample) / MEDIA_RATE),
            }
        )

    def _report(self, report: SpeechReport) -> None:
        for reporter in tuple(self._reporters):
            reporter(report)
