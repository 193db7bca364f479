"""The playout of a stream: its sound and its frames leave by one clock, with one delay.

Two axes of 48 kHz samples meet here. *Media time* is that of the microphone (``timeline.py``): sound, clips and frames
are keyed by it. The *position* counts what has left; ``delay_line.py`` keeps the relation of both, which is the same
for sound and picture: they cannot move against each other. ``clip_store.py`` keeps the frames.

Knows no tracks, codecs or engines. Time is an argument: seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, S16Array, YuvFrames
from echo_rtc.counting import CounterMetric, counter
from echo_rtc.media.blend import mixed
from echo_rtc.media.clip_store import ClipStore
from echo_rtc.media.delay_line import DelayLine, DelayPolicy
from echo_rtc.media.idle_walk import IdleWalk

HOLD_LIMIT_S = 3.0
"""A frame is held for no longer than this; then the idle loop takes over, so that no mouth stays open."""

LEAD_OVER_S = 0.12
"""After a jump the picture is cross-faded for this long, in whole frames."""


class FrameKind(StrEnum):
    """What a shown frame is: rendered for this moment, of the idle loop, or the one before once more."""

    RENDERED = "rendered"
    IDLE = "idle"
    HELD = "held"


FRAMES = CounterMetric(
    "frames",
    "Frames by what became of them. Shown: rendered, idle, held (the one before once more). Not shown: dropped "
    "(rendered, but too late), skipped (not read in time), unencoded (late before they were encoded).",
    "kind",
)
DELAY_CHANGES = CounterMetric("delay_changes", "Frames by which the delay grew or shrank, in pauses.", "direction")
UNDERRUNS = CounterMetric("sound_underruns", "How often no sound was there when it had to leave.")
UNDERRUN_SECONDS = CounterMetric(
    "sound_underrun_seconds", "Silence that left because no sound was there.", scale=1 / MEDIA_RATE
)


@dataclass(frozen=True, slots=True)
class PlayoutStatistics:
    """What a playout has done so far.

    Shown frames: ``rendered``, ``idle``, ``held``; ``skipped``: frames that were not read. ``dropped``: rendered frames
    never shown, because they came late, were skipped or fell to a cut. ``lost_clips``: clips reported lost.
    ``stretched``, ``cut``: frames by which the delay grew and shrank. ``underruns``, ``underrun_samples``: how often,
    and for how many samples, silence left because no sound was there. ``delay_s``: media time minus playout time;
    ``target_delay_s``: where it goes in the next silence; ``render_p95_s``: what rendering takes, as the delay sees it.
    ``rate_ppm``: the playout clock against ours.
    """

    rendered: int = counter(FRAMES, "rendered")
    idle: int = counter(FRAMES, "idle")
    held: int = counter(FRAMES, "held")
    skipped: int = counter(FRAMES, "skipped")
    dropped: int = counter(FRAMES, "dropped")
    lost_clips: int = 0
    stretched: int = counter(DELAY_CHANGES, "grew")
    cut: int = counter(DELAY_CHANGES, "shrank")
    underruns: int = counter(UNDERRUNS)
    underrun_samples: int = counter(UNDERRUN_SECONDS)
    delay_s: float = 0.0
    target_delay_s: float = 0.0
    render_p95_s: float = 0.0
    rate_ppm: float = 0.0


class Playout:
    """Holds sound and frames back by one delay and hands them out by one clock.

    Sound leaves ``delay_s`` after it came in, without gaps or drops. A frame that is not there yet is replaced by the
    one shown before, and dropped when it comes after its time. Nothing here waits, and what is kept is bounded by
    ``max_latency_s`` + SLACK_S whether anything is asked for or not.
    """

    def __init__(
        self, clip_format: ClipFormat, idle: YuvFrames, policy: DelayPolicy, walk: IdleWalk | None = None
    ) -> None:
        """``idle`` is the avatar's loop, of the format's size; ``walk`` the way through it (None: in its order).

        Raises ValueError if it is empty or of another size, or if the policy's ``max_latency_s`` is not longer than a
        clip.
        """
        if not len(idle):
            raise ValueError("the idle loop is empty; at least one frame is needed")
        self._format = clip_format
        self._line = DelayLine(clip_format, policy)
        self._store = ClipStore(clip_format)
        self._check_size(idle, "the idle loop")
        self._idle = idle
        self._walk = walk or IdleWalk(len(idle), clip_format.clip_frames)
        self._hold_limit = round(HOLD_LIMIT_S * clip_format.fps)
        self._next_frame = 0
        self._shown_source = -1
        self._shown: tuple[YuvFrames, FrameKind] | None = None
        self._held_run = 0
        self._leading_over: tuple[int, YuvFrames] | None = None
        """The first frame after a jump, and the picture that is cross-faded into those that follow."""
        self._known_ahead = bool(policy.ahead_s)
        self._counts = dict.fromkeys(FrameKind, 0)
        self._skipped = 0

    # Input

    def discipline(self, arrived: float, now: float) -> None:
        """Sets the clock by the media sample that an undelayed microphone has reached at ``now``
        (``Timeline.arrived(now)``); called with each block and tick.

        The first call sets the clock: media sample 0 leaves ``delay_s`` after it came in. Later calls slew the clock,
        and change the delay where it is to change and the line is silent. As long as nothing was asked for and nothing
        is due, the start itself still moves.
        """
        self._line.discipline(arrived, now, self._next_frame, self._store.idle)

    def push_sound(self, start_sample: int, pcm: S16Array, now: float) -> None:
        """Takes the next piece of the timeline: mono int16 (n,) at 48 kHz from media sample ``start_sample``.

        Raises ValueError if it does not follow on the piece before.
        """
        self._line.push(start_sample, pcm, now)
        self._store.forget(self._line.ring.base)

    def expect(self, clip: AudioClip, rendered: bool) -> None:
        """Announces the next clip as the gate judged it: its frames will come (``rendered``), or the idle loop shows.

        Raises ValueError if the clip is not the next one or not of the format.
        """
        frames = self._format.clip_frames
        begin, end = (self._format.sample_of_frame((clip.index + n) * frames, MEDIA_RATE) for n in (0, 1))
        self._store.expect(clip, rendered, None if self._line.is_ahead(begin) else self._line.lateness_s(end))

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None:
        """Takes the next frames of an admitted clip, which has ``clip_frames`` in all; clips may come in any order.

        ``render_s`` is how long these took from the clip's hand-over to the engine: the delay follows, so that the
        first frames of a clip can be shown while the last are being rendered. Frames whose time has passed at ``now``,
        or for which another was shown, are dropped and counted. Raises ValueError for a clip that was not admitted,
        came already, or has more frames.
        """
        lateness_s = self._store.lateness_s(clip_index)
        self._check_size(frames, f"clip {clip_index}")
        if not (math.isfinite(render_s) and render_s >= 0):
            raise ValueError(f"clip {clip_index} took {render_s} s to render; it must be a number of at least 0")
        leaving = self._format.frame_of_sample(self._line.media_sample_now(now), MEDIA_RATE)
        need_s = self._store.put(clip_index, frames, max(self._shown_source + 1, leaving), render_s)
        if need_s is not None and lateness_s is not None:
            self._line.rendered(need_s + lateness_s)

    def blend(self, clip_index: int, frames: YuvFrames) -> None:
        """Replaces the last frames of a clip that came before, as far as they have not been shown, by ``frames``, which
        lead over to the next clip. Raises ValueError as :meth:`put`, and if there are more than the clip has."""
        if len(frames) > self._format.clip_frames:
            raise ValueError(f"{len(frames)} frames cannot be blended into a clip of {self._format.clip_frames}")
        self._check_size(frames, f"the end of clip {clip_index}")
        self._store.blend(clip_index, frames)

    def lose(self, clip_index: int) -> None:
        """The frames of an admitted clip will not come. If they do after all, :meth:`put` still takes them.

        Raises ValueError for a clip that was not admitted.
        """
        self._store.lose(clip_index)

    # Interruption

    def next_sample(self, now: float) -> int:
        """The first sample of media time that has not left, and has not been taken to be encoded, at ``now``."""
        return self._line.next_sample(now)

    def next_frame(self, now: float) -> int:
        """The frame of media time that :meth:`jump` would leave out first at ``now``."""
        return self._line.next_media_frame(now, self._next_frame)

    def jump(self, media_frame: int, now: float) -> int:
        """Goes on with ``media_frame``, at the next frame, and leaves out all media time before it that has not left.

        Sound that is heard fades out over JUMP_FADE_S at :meth:`next_sample`; the frame of sound before ``media_frame``
        must be silence. The picture is cross-faded over LEAD_OVER_S. The delay stays: the caller must set the clock of
        media time forward by the samples that it returns. Raises ValueError for a frame that has been shown.
        """
        frame, jumped = self._line.jump(media_frame, now, self._next_frame)
        if self._shown is not None:
            self._leading_over = (frame, self._shown[0])
            self._shown = (self._shown[0], FrameKind.IDLE)
        self._held_run = 0
        return jumped

    # The clock

    @property
    def delay_s(self) -> float:
        """Media time minus playout time in seconds, for sound and picture alike."""
        return self._line.delay_s

    def media_now(self, now: float) -> int:
        """The position that leaves at ``now``; negative as long as nothing does."""
        return self._line.media_now(now)

    def due(self, position: int) -> float:
        """When ``position`` leaves, in seconds of the clock of ``now``; infinity before the first sound."""
        return self._line.due(position)

    def media_sample(self, position: int) -> int:
        """The sample of media time that leaves at ``position``; negative before the first sound does."""
        return self._line.media_sample(position)

    def playout_time(self, media_sample: int) -> float:
        """When a sample of media time leaves, at the present delay: the deadline for what belongs to it."""
        return self._line.playout_time(media_sample)

    def position(self, media_sample: int) -> int:
        """The position at which a sample of media time leaves, at the present delay."""
        return self._line.position(media_sample)

    # Output

    def sound(self, start: int, count: int) -> S16Array:
        """The echo for positions ``start`` .. ``start + count``: an array of its own, int16 (count,).

        Silence where nothing is known (counted, once, if it should have been). Any piece may be asked for again as long
        as it is kept.
        """
        return self._line.sound(start, count)

    def frame(self, number: int) -> tuple[YuvFrames, FrameKind]:
        """The picture for output frame ``number``, which leaves at the position ``sample_of_frame(number, 48000)``.

        A view of one frame. Numbers go forward; those left out are counted as skipped, and the number asked last may be
        asked again with the same answer. Raises ValueError for a lower one.
        """
        if number < self._next_frame:
            if self._shown is not None and number == self._next_frame - 1:
                return self._shown
            raise ValueError(f"frame {number} was asked for after frame {self._next_frame - 1}; numbers go forward")
        self._line.started = True
        self._skipped += number - self._next_frame
        source = self._line.media_frame(number)
        if self._shown is None or source > self._shown_source:
            picture, kind = self._picture(source)
            self._shown = (self._led_over(number, picture), kind)
            self._shown_source = source
        self._counts[self._shown[1]] += 1
        self._next_frame = number + 1
        self._store.release(source)
        return self._shown

    def idle_frame(self, number: int) -> YuvFrames:
        """What is shown for media frame ``number`` in silence; numbers below 0 are before the first sound."""
        return self._walk.picture(self._idle, number)

    def statistics(self) -> PlayoutStatistics:
        return PlayoutStatistics(
            rendered=self._counts[FrameKind.RENDERED],
            idle=self._counts[FrameKind.IDLE],
            held=self._counts[FrameKind.HELD],
            skipped=self._skipped,
            dropped=self._store.dropped,
            lost_clips=self._store.lost,
            stretched=self._line.stretched,
            cut=self._line.cut,
            underruns=self._line.underruns,
            underrun_samples=self._line.underrun_samples,
            delay_s=self.delay_s,
            target_delay_s=self._line.target_delay_s,
            render_p95_s=self._line.render_p95_s,
            rate_ppm=self._line.rate_ppm,
        )

    def _picture(self, source: int) -> tuple[YuvFrames, FrameKind]:
        """What is shown for media frame ``source``, which comes after all shown so far."""
        rendered = self._store.take(source)
        if rendered is not None:
            self._held_run = 0
            return rendered, FrameKind.RENDERED
        admitted = self._store.admitted(source)
        if self._shown is not None and self._held_run < self._hold_limit and self._holds(self._shown[1], admitted):
            self._held_run += 1
            return self._shown[0], FrameKind.HELD
        if admitted is False:
            self._held_run = 0
        return self.idle_frame(source), FrameKind.IDLE

    def _holds(self, shown: FrameKind, admitted: bool | None) -> bool:
        """Whether the frame shown before is held until the next one of its clip is there."""
        if self._known_ahead:
            # Speech that is known ahead was announced, and a clip in whose middle it begins is idle before.
            return bool(admitted) and shown is not FrameKind.IDLE
        # Until the gate has judged the clip, the kind of picture shown before goes on.
        return admitted if admitted is not None else shown is not FrameKind.IDLE

    def _led_over(self, number: int, picture: YuvFrames) -> YuvFrames:
        """The picture for output frame ``number``, cross-faded with the one before a jump shortly after it."""
        if self._leading_over is None:
            return picture
        first, old = self._leading_over
        count = max(1, int(LEAD_OVER_S * self._format.fps))
        if number >= first + count:
            self._leading_over = None
            return picture
        return mixed(old, picture, number - first + 1, count + 1)

    def _check_size(self, frames: YuvFrames, what: str) -> None:
        width, height = self._format.width, self._format.height
        if (frames.width, frames.height) != (width, height):
            raise ValueError(f"{what} has {frames.width}x{frames.height} pixels; {width}x{height} are expected")
