"""Pushed speech as media time: a queue of events whose sound is known ahead of when it is due.

A microphone's sound comes as it is spoken. Pushed sound comes faster, in bursts, and in events that queue up behind one
another. This queue places it in media time as early as there is sound, up to AHEAD_S ahead of the clock, so that clips
are complete, and can be rendered, before they are due; silence follows the clock, as a microphone's does. A clip in
which speech stops is completed with silence at the last moment at which it can still be rendered in time.

An interruption does not take anything back: media time jumps over what has not left (:meth:`SpeechQueue.interrupt`).

Knows no sockets, codecs or engines. Time is an argument: seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array
from echo_rtc.media.timeline import Piece, TimelineStatistics

AHEAD_S = 3.0
"""Sound is placed, and so rendered, at most this far ahead of the clock."""

MAX_AHEAD_CLIPS = 6
"""And no more than this many clips ahead, so that short clips do not overflow what a stream may have in flight."""

MAX_QUEUED_S = 120.0
"""Most sound that waits in the queue."""

MAX_EVENTS = 256
"""Most events that wait in the queue, or have a place and have not left."""

BEGIN_WAIT_S = 0.5
"""An event with less than a clip of sound begins when nothing more has come for this long."""

REBUFFER_S = 0.25
"""An event whose sound has run out goes on with a clip and this much more: its source is no faster than speech."""

DRY_GRACE_S = 0.04
"""A clip in which sound has run out is completed this long after it began: the margin of the delay allows for it."""

CLOSING_S = 0.15
"""Silence rendered after the last speech, so that the mouth closes."""

CHUNK_S = 0.02
"""Sound that is pushed in smaller pieces is kept in pieces of up to this length: each costs time as it is placed."""

MIN_WORDS_S = 0.1
"""Words that follow others sooner than this are shown together with them."""

MAX_WORDS_CHARACTERS = 4096
"""Words that are shown together; what would follow is left out."""

FADE_S = 0.01
"""Sound that breaks off within an event fades out, and in again, for this long, so that it does not click."""

_AHEAD = round(AHEAD_S * MEDIA_RATE)
_MAX_QUEUED = round(MAX_QUEUED_S * MEDIA_RATE)
_CLOSING = round(CLOSING_S * MEDIA_RATE)
_CHUNK = round(CHUNK_S * MEDIA_RATE)
_MIN_WORDS = round(MIN_WORDS_S * MEDIA_RATE)
_FADE = round(FADE_S * MEDIA_RATE)
_REBUFFER = round(REBUFFER_S * MEDIA_RATE)
_DRY_GRACE = round(DRY_GRACE_S * MEDIA_RATE)


class QueueFullError(Exception):
    """The queue holds as much as it may; the sound was not taken."""


class EventOverError(Exception):
    """The event is complete; it takes no more sound."""


class MarkKind(StrEnum):
    """What a mark in media time says: the first sample of an event, or of a part with words, is here; the event's last
    sample was before."""

    STARTED = "started"
    TEXT = "text"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Words:
    """Words of an event. ``samples``: how many samples (48 kHz) say them so far; ``complete``: no more follow;
    ``begun``: their first sound has left."""

    text: str
    complete: bool = True
    samples: int = 0
    begun: bool = False

    def join(self, following: Words) -> bool:
        """Takes words that follow at once, as far as there is room; whether it can."""
        if self.begun or not (self.complete and following.complete):
            return False
        if len(self.text) + len(following.text) < MAX_WORDS_CHARACTERS:
            self.text += f" {following.text}"
        return True


@dataclass(frozen=True, slots=True)
class Mark:
    """``kind`` of the event ``event`` at the media sample ``sample``. ``played``: samples (48 kHz) of the event before
    it. ``words``: what is said from here on."""

    sample: int
    kind: MarkKind
    event: str
    played: int
    words: Words | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """An event that was interrupted, and how many of its samples (48 kHz) had left."""

    event: str
    played: int


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Sound that was pushed at once, and the words that begin with it, if any."""

    pcm: S16Array
    words: Words | None = None


@dataclass(slots=True)
class _Event:
    """An event: ``parts`` are its sound that waits, ``waiting`` samples in all, and ``next_words`` begin with the sound
    that comes next; ``words`` are the latest that began, with the sample ``words_at`` of the event. ``placed`` samples
    have their place in media time, in ``spans`` of (media sample, count). ``complete``: no further sound comes;
    ``latest_s``: when the latest came. ``held``: when it has run out it waits for its source, even if others wait
    behind it. ``broken_off``: it has run out, and has faded out."""

    id: str
    latest_s: float
    complete: bool = False
    held: bool = False
    parts: deque[_Part] = field(default_factory=deque)
    next_words: Words | None = None
    words: Words | None = None
    words_at: int = 0
    waiting: int = 0
    placed: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    broken_off: bool = False

    def expect(self, words: Words) -> None:
        """Has ``words`` begin with the next sound, with those before whose sound has not come, as a filter holds it."""
        before = self.next_words
        if before is words or (before is not None and before.join(words)):
            return
        self.next_words = words

    def append(self, pcm: S16Array) -> Words | None:
        """Appends sound, with which ``next_words`` begin; the words that these are shown with, if there are any."""
        words, self.next_words = self.next_words, None
        begins, at = words, self.placed + self.waiting
        if words is not None and self.words is not None and at - self.words_at < _MIN_WORDS and self.words.join(words):
            words, begins = self.words, None
        elif words is not None:
            self.words, self.words_at = words, at
        if begins is None and self.parts and len(self.parts[-1].pcm) + len(pcm) <= _CHUNK:
            last = self.parts.pop()
            self.parts.append(_Part(np.concatenate((last.pcm, pcm)), last.words))
        else:
            self.parts.append(_Part(pcm.copy(), begins))
        self.waiting += len(pcm)
        return words

    def place(self, start: int, count: int) -> None:
        """The next ``count`` samples have their place from the media sample ``start`` on."""
        if self.spans and sum(self.spans[-1]) == start:
            begin, before = self.spans.pop()
            self.spans.append((begin, before + count))
        else:
            self.spans.append((start, count))
        self.placed += count

    def take(self, count: int) -> _Part:
        """The next samples of those that wait: ``count``, or fewer if further words begin before."""
        words = self.parts[0].words
        taken: list[S16Array] = []
        while count and self.parts and (not taken or self.parts[0].words is None):
            part = self.parts.popleft()
            if len(part.pcm) > count:
                self.parts.appendleft(_Part(part.pcm[count:]))
                part = _Part(part.pcm[:count])
            taken.append(part.pcm)
            count -= len(part.pcm)
            self.waiting -= len(part.pcm)
        return _Part(np.concatenate(taken), words)

    def before(self, sample: int) -> int:
        """How many placed samples lie before the media sample ``sample``."""
        return sum(min(count, max(0, sample - start)) for start, count in self.spans)


class SpeechQueue:
    """Contiguous media time made of pushed events, in the order in which they came.

    Has the interface of :class:`echo_rtc.media.timeline.Timeline` as far as a stream ticks it: :meth:`advance`,
    :meth:`arrived`, :meth:`media_sample`, :meth:`statistics`.
    """

    def __init__(self, clip_format: ClipFormat) -> None:
        self._format = clip_format
        self._clip_samples = self._border(1)
        self._ahead = min(_AHEAD, MAX_AHEAD_CLIPS * self._clip_samples)
        self._origin_s: float | None = None
        self._jumped = 0
        self._head = 0
        self._spoken_to = 0
        self._last = 0
        self._wanted_from = 0
        self._wanted_to = 0
        self._open = False
        self._events: deque[_Event] = deque()
        self._leaving: deque[_Event] = deque()
        self._marks: deque[Mark] = deque()
        self._queued = 0
        self._silence = 0
        self._over: deque[str] = deque(maxlen=MAX_EVENTS)
        """Events that were complete or interrupted, as far as they are remembered."""

    # The clock

    def arrived(self, now: float) -> float:
        """Where media time stands at ``now``, in samples: what is placed up to here is not late."""
        if self._origin_s is None:
            return 0.0
        return (now - self._origin_s) * MEDIA_RATE + self._jumped

    def media_sample(self, pts: int) -> int | None:
        """Pushed sound has no stamps of its own."""
        return None

    def statistics(self) -> TimelineStatistics:
        return TimelineStatistics(
            samples=self._head,
            lost_samples=0,
            silence_samples=self._silence,
            late_dropped=0,
            early_dropped=0,
            re_anchored=0,
            drift_ppm=0.0,
        )

    # What comes in

    @property
    def queued_samples(self) -> int:
        """Samples (48 kHz) that have no place in media time yet."""
        return self._queued

    def queued_s(self, left: int, until: str | None = None) -> float:
        """Seconds of sound that have not left when media time up to the sample ``left`` has; with ``until``, not of
        events behind that one."""
        # Every event with a place leaves; those behind it only wait.
        placed = sum(event.placed - event.before(left) for event in self._leaving)
        return (self._waiting_until(until) + placed) / MEDIA_RATE

    @property
    def pending(self) -> bool:
        """Whether an event is there of which something may still leave or come."""
        return bool(self._events or self._leaving)

    @property
    def running(self) -> str | None:
        """The event that further sound without an id appends to: the newest that is not complete."""
        return self._events[-1].id if self._events and not self._events[-1].complete else None

    @property
    def waiting_events(self) -> int:
        """Events of which something may still leave, MAX_EVENTS at most."""
        # Of the first one that waits, something may have its place.
        is_in_both = bool(self._events and self._leaving) and self._leaving[-1] is self._events[0]
        return len(self._events) + len(self._leaving) - is_in_both

    def require_place(self, event: str, samples: int) -> None:
        """Raises as :meth:`push` would for so many samples (48 kHz) of ``event``."""
        if self._queued + samples > _MAX_QUEUED:
            raise QueueFullError(f"more than {MAX_QUEUED_S:g} s of sound would wait")
        own = self._find(event)
        if event in self._over or (own is not None and own.complete):
            raise EventOverError(f"the event {event[:80]!r} is complete; take another event_id")
        if own is None and self.waiting_events >= MAX_EVENTS:
            raise QueueFullError(f"more than {MAX_EVENTS} events would wait")

    def hold(self, event: str, now: float) -> None:
        """Queues ``event`` up, if it is not there, for a source that ends it: it is not complete before. Raises as
        :meth:`push`."""
        self.require_place(event, 0)
        self._queued_event(event, now).held = True

    def push(self, event: str, pcm: S16Array, now: float, words: Words | None = None) -> None:
        """Appends ``pcm`` (n,) int16 mono at 48 kHz, which says ``words``, to ``event``, which queues up if it is not
        there. An event behind which another one waits is complete as soon as its sound has run out, unless it is held.

        Raises QueueFullError, and takes nothing, if more than MAX_QUEUED_S or MAX_EVENTS would wait; EventOverError for
        an event that is complete; ValueError for anything but mono int16.
        """
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"sound of shape {pcm.shape} and type {pcm.dtype}; mono int16 is expected")
        self.require_place(event, len(pcm))
        own = self._queued_event(event, now)
        if words is not None and not words.samples:
            own.expect(words)
        if len(pcm):
            own.latest_s = now
            begun = own.append(pcm)
            self._queued += len(pcm)
            if (said := begun or words) is not None:
                said.samples += len(pcm)

    def complete(self, event: str) -> bool:
        """No further sound of ``event`` comes; False if it is not in the queue."""
        own = self._find(event)
        if own is None:
            return False
        own.complete = True
        return True

    # What goes out

    def advance(self, now: float) -> list[Piece]:
        """The next pieces of media time, (first sample, (n,) int16) each, contiguous from sample 0."""
        if self._origin_s is None:
            self._origin_s = now
        reached = int(self.arrived(now))
        pieces: list[Piece] = []
        while self._place_next(reached, now, pieces):
            pass
        self._close_clips(reached, pieces)
        if not self._open and self._head < reached:
            self._silence += self._fill(reached, pieces)
        return pieces

    def wanted(self, first_frame: int, frames: int) -> bool:
        """Whether a clip may be speech: silence that follows the clock is not."""
        begin, end = (self._format.sample_of_frame(frame, MEDIA_RATE) for frame in (first_frame, first_frame + frames))
        return begin < self._wanted_to and end > self._wanted_from

    def marks_until(self, media_sample: int) -> list[Mark]:
        """Takes the marks up to ``media_sample``, which has left."""
        passed: list[Mark] = []
        while self._marks and self._marks[0].sample <= media_sample:
            mark = self._marks.popleft()
            passed.append(mark)
            if mark.words is not None:
                mark.words.begun = True
            if mark.kind is MarkKind.ENDED and self._leaving and self._leaving[0].id == mark.event:
                self._leaving.popleft()
        return passed

    @property
    def next_mark(self) -> int | None:
        """The media sample of the next mark."""
        return self._marks[0].sample if self._marks else None

    # Interruption

    def interrupt(self, left: int, guard: int) -> tuple[list[Cut], list[Piece], int]:
        """Forgets all that has not left: media time up to the sample ``left`` has.

        Returns the events that this cuts short, the silence that completes the clip, and the first sample after the
        jump, which is a clip's first and has ``guard`` samples of silence before it. :meth:`jump` says how far the
        clock goes on with it.
        """
        cuts = [Cut(event.id, event.before(left)) for event in [*self._leaving, *self._events]]
        unique = list(dict.fromkeys(cuts))
        self._over.extend(event.id for event in self._events)
        self._events.clear()
        self._leaving.clear()
        self._marks.clear()
        self._queued = 0
        self._open = False
        pieces: list[Piece] = []
        target = self._next_border(self._head + guard)
        self._fill(target, pieces)
        self._wanted_to = 0
        return unique, pieces, target

    def jump(self, samples: int) -> None:
        """Media time goes on by ``samples`` at once: the playout has left them out."""
        self._jumped += samples

    # The beginning of speech

    def frames_to_border(self, left: int, now: float) -> int:
        """By how many frames media time is to jump so that speech that begins now begins with a clip.

        0 where nothing begins, or where media time after the sample ``left``, which has left, is not all silence. A
        first clip that holds little speech leaves its renderer little time for the second.
        """
        if self._open or not self._events or left < self._wanted_to or not self._may_begin(self._events[0], now):
            return 0
        reached = int(self.arrived(now))
        if self._head > reached:
            return 0
        border = self._next_border(reached)
        frame = self._format.frame_of_sample
        return max(0, frame(border, MEDIA_RATE) - frame(reached, MEDIA_RATE) - 1)

    # Inside

    def _find(self, event: str) -> _Event | None:
        return next((known for known in self._events if known.id == event), None)

    def _waiting_until(self, until: str | None) -> int:
        """Samples that wait, of events up to ``until``, or of all where that is not in the queue."""
        if until is None or self._find(until) is None:
            return self._queued
        total = 0
        for event in self._events:
            total += event.waiting
            if event.id == until:
                break
        return total

    def _queued_event(self, event: str, now: float) -> _Event:
        """The event of this id, new at the end of the queue if it is not there."""
        own = self._find(event)
        if own is None:
            own = _Event(event, now)
            self._events.append(own)
        return own

    def _gets_no_more(self, event: _Event) -> bool:
        """Whether the first event has all its sound: its source said so, or has gone on to another one."""
        return event.complete or (len(self._events) > 1 and not event.held)

    def _border(self, clip: int) -> int:
        return self._format.sample_of_frame(clip * self._format.clip_frames, MEDIA_RATE)

    def _clip_start(self, sample: int) -> int:
        """The first media sample of the clip to which ``sample`` belongs."""
        return self._border(self._format.frame_of_sample(sample, MEDIA_RATE) // self._format.clip_frames)

    def _next_border(self, sample: int) -> int:
        """The first border of clips at or after ``sample``."""
        start = self._clip_start(sample)
        frame = self._format.frame_of_sample(sample, MEDIA_RATE)
        return start if start == sample else self._border(frame // self._format.clip_frames + 1)

    def _may_begin(self, event: _Event, now: float) -> bool:
        """Whether sound may be placed after silence: enough is there that no gap follows at once."""
        wanted = self._clip_samples + (_REBUFFER if event.broken_off else 0)
        enough = event.waiting >= wanted or self._gets_no_more(event)
        return event.waiting > 0 and (enough or now - event.latest_s >= BEGIN_WAIT_S)

    def _place_next(self, reached: int, now: float, pieces: list[Piece]) -> bool:
        """Places sound of the first event; whether there may be more to place."""
        if not self._events or self._head >= reached + self._ahead:
            return False
        event = self._events[0]
        if not event.waiting and not self._gets_no_more(event):
            return False
        if not self._open:
            if event.waiting and not self._may_begin(event, now):
                return False
            if event.waiting and self._head < reached:
                border = self._next_border(reached)
                near = border - reached <= 2 * MEDIA_RATE // self._format.fps
                self._silence += self._fill(border if near else reached, pieces)
        count = min(event.waiting, reached + self._ahead - self._head)
        if count:
            self._speak(event, event.take(count), pieces)
            if event.waiting:
                return True
        if not event.waiting and self._gets_no_more(event):
            self._finish(event)
            return True
        return False

    def _speak(self, event: _Event, part: _Part, pieces: list[Piece]) -> None:
        """Gives the next part of ``event`` its place."""
        pcm = part.pcm
        if not event.placed:
            self._marks.append(Mark(self._head, MarkKind.STARTED, event.id, 0))
            self._leaving.append(event)
        if part.words is not None:
            self._marks.append(Mark(self._head, MarkKind.TEXT, event.id, event.placed, part.words))
        if event.broken_off:
            pcm = pcm.copy()
            ramp = min(_FADE, len(pcm))
            pcm[:ramp] = np.rint(pcm[:ramp] * (np.arange(1, ramp + 1) / (ramp + 1)))
            event.broken_off = False
        event.place(self._head, len(pcm))
        self._queued -= len(pcm)
        if not self._open:
            self._wanted_from = self._head
        self._last = int(pcm[-1])
        pieces.append((self._head, pcm))
        self._head += len(pcm)
        self._spoken_to = self._wanted_to = self._head
        self._open = True

    def _finish(self, event: _Event) -> None:
        """All sound of the first event has its place."""
        self._events.popleft()
        self._over.append(event.id)
        if not event.placed:
            self._marks.append(Mark(self._head, MarkKind.STARTED, event.id, 0))
            self._leaving.append(event)
        self._marks.append(Mark(self._head, MarkKind.ENDED, event.id, event.placed))

    def _close_clips(self, reached: int, pieces: list[Piece]) -> None:
        """Completes with silence the clips in which speech stops and that must be rendered now."""
        while self._open and self._clip_start(self._head) <= reached - _DRY_GRACE:
            self._fade_out(pieces)
            # A border belongs to the clip that begins there.
            self._silence += self._fill(self._next_border(self._head + 1), pieces)
            self._wanted_to = self._head
            self._open = self._head - self._spoken_to < _CLOSING

    def _fade_out(self, pieces: list[Piece]) -> None:
        """Leads the last sample of an event that goes on, but whose sound has run out, to silence."""
        event = self._events[0] if self._events else None
        if event is None or event.broken_off or not event.placed:
            return
        event.broken_off = True
        tail = np.rint(self._last * (np.arange(_FADE, 0, -1) / (_FADE + 1))).astype(np.int16)
        pieces.append((self._head, tail))
        self._head += len(tail)

    def _fill(self, end: int, pieces: list[Piece]) -> int:
        """Appends silence up to media sample ``end``; returns how many samples that took."""
        count = max(0, end - self._head)
        if count:
            pieces.append((self._head, np.zeros(count, np.int16)))
            self._head += count
        return count
