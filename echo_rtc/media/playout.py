"""The delay line for a stream's sound and the store of its frames, played out by one clock with one delay.

Two axes of 48 kHz samples meet here. *Media time* is that of the microphone (``timeline.py``): sound, clips and frames
are keyed by it. The *position* counts what has left, from 0; it never jumps and never rests, so the time stamps of
packets are made of it. Position and media time differ by a whole number of frames, which changes only in silence: that
is how the delay grows (a frame's length of silence is played again) and shrinks (one is left out) without a sample of
speech repeated or lost, and without sound and picture ever moving against each other.

Knows no tracks, codecs or engines. Time is an argument: seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, S16Array, YuvFrames
from echo_rtc.counting import CounterMetric, counter
from echo_rtc.media.blend import mixed
from echo_rtc.media.timeline import HOLD_OFF_S

SLACK_S = 2.0
"""Sound and frames are kept for this much longer than ``max_latency_s``, whether anybody asks for them or not."""

MAX_SLEW = 500e-6
"""The playout clock's rate stays within this of nominal; a change of pitch that nobody hears."""

SLEW_TIME_S = 20.0
"""The clock makes up for an error of the delay with this time constant: slow against the network's jitter."""

RECENT_CLIPS = 60
"""The delay follows this many clips. At 0.5 s a clip a stall must hit four of them before it makes the call slower."""

RENDER_PERCENTILE = 95
"""This many of a hundred clips are to be there on time."""

SHRINK_BY_S = 0.15
"""The delay shrinks only if at least this much can be won; else it would follow every breath of the renderer."""

FRAMES_PER_STEP = 2
"""The delay changes by one frame in this many: the idle loop then runs at half, or one and a half times, its speed for
a while, which looks better than a jump."""

GUARD_S = 0.05
"""Silence needed on both sides of a change of the delay."""

FADE_S = 0.005
"""Room noise is cross-faded for this long where the delay changes, so that it does not click."""

LEVEL_S = 0.01
"""Silence is judged by the RMS of stretches of this length."""

PAUSE_RMS = 1 / 2000
"""Sound below this level (-66 dB of full scale) is silence even in a clip that the gate admitted."""

HOLD_LIMIT_S = 3.0
"""A frame is held for no longer than this; then the idle loop takes over, so that no face stays frozen in a word."""

LEAD_OVER_S = 0.12
"""After a jump the picture is cross-faded for this long, in whole frames."""

JUMP_FADE_S = 0.01
"""Sound that a jump breaks off fades out for this long."""

FULL_SCALE = 32768.0

_GUARD = round(GUARD_S * MEDIA_RATE)
_FADE = round(FADE_S * MEDIA_RATE)
_LEVEL = round(LEVEL_S * MEDIA_RATE)
_JUMP_FADE = round(JUMP_FADE_S * MEDIA_RATE)


class FrameKind(StrEnum):
    """What a shown frame is: rendered for this moment, of the idle loop, or the one before once more."""

    RENDERED = "rendered"
    IDLE = "idle"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class DelayPolicy:
    """What the delay is made of: the clip's length, rendering, a margin; never more than ``max_latency_s``.

    ``render_s``: seconds the engine takes for a clip as measured at its start, used until clips have been rendered.
    ``margin_s``: seconds for the encoder's lead, the hand-over and the unevenness of rendering.
    ``silence_rms``: RMS (0..1) below which sound is silence where the gate says so too; usually the gate's threshold.
    ``ahead_s``: how far ahead of the clock sound may be pushed; above 0, clips of speech are complete before they
    begin, so that the delay need not have room for a clip.
    """

    render_s: float
    margin_s: float = 0.2
    max_latency_s: float = 3.0
    silence_rms: float = 0.015
    ahead_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("render_s", "margin_s", "max_latency_s", "silence_rms", "ahead_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a number of at least 0")

    def delay_s(self, clip_s: float, render_s: float) -> float:
        """The delay for clips of ``clip_s`` seconds that take ``render_s``."""
        return min((0.0 if self.ahead_s else clip_s) + render_s + self.margin_s, self.max_latency_s)


FRAMES = CounterMetric(
    "frames",
    "Frames by what became of them. Shown: rendered, idle, held (the one before once more). Not shown: dropped "
    "(rendered, but too late), skipped (nobody asked for them), unencoded (late before they were encoded).",
    "kind",
)
DELAY_CHANGES = CounterMetric("delay_changes", "Frames by which the delay grew or shrank, in silence.", "direction")
UNDERRUNS = CounterMetric("sound_underruns", "How often no sound was there when it had to leave.")
UNDERRUN_SECONDS = CounterMetric(
    "sound_underrun_seconds", "Silence that left because no sound was there.", scale=1 / MEDIA_RATE
)


@dataclass(frozen=True, slots=True)
class PlayoutStatistics:
    """What a playout has done so far.

    Shown frames: ``rendered``, ``idle``, ``held``; ``skipped``: frames nobody asked for. ``dropped``: rendered frames
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


class SlewedClock:
    """A piecewise linear map of our seconds to positions; continuous, strictly rising, within MAX_SLEW of nominal."""

    def __init__(self, position: float, now: float) -> None:
        self._position = position
        self._since = now
        self.rate = 1.0

    def position(self, now: float) -> float:
        """The position (fractional samples) at ``now``."""
        return self._position + (now - self._since) * MEDIA_RATE * self.rate

    def time_of(self, position: float) -> float:
        """When ``position`` is reached, at the present rate."""
        return self._since + (position - self._position) / (MEDIA_RATE * self.rate)

    def steer(self, behind_samples: float, now: float) -> None:
        """Makes up for being ``behind_samples`` behind (negative: ahead) from ``now`` on, slowly."""
        if now <= self._since:
            return
        self._position = self.position(now)
        self._since = now
        wanted = behind_samples / (MEDIA_RATE * SLEW_TIME_S)
        self.rate = 1.0 + min(MAX_SLEW, max(-MAX_SLEW, wanted))


class SoundLine:
    """The newest ``capacity`` samples of a contiguous signal, in a ring that is allocated once."""

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, np.int16)
        self.capacity = capacity
        self.head = 0

    @property
    def base(self) -> int:
        """The oldest sample that is still known."""
        return max(0, self.head - self.capacity)

    def push(self, pcm: S16Array) -> None:
        """Appends ``pcm`` (n,) int16."""
        newest = pcm[-self.capacity :]
        at = (self.head + len(pcm) - len(newest)) % self.capacity
        first = min(len(newest), self.capacity - at)
        self._ring[at : at + first] = newest[:first]
        self._ring[: len(newest) - first] = newest[first:]
        self.head += len(pcm)

    def read(self, start: int, count: int) -> S16Array:
        """Samples ``start`` .. ``start + count`` as an array of its own; zero where nothing is known."""
        out = np.zeros(count, np.int16)
        begin, end = max(start, self.base), min(start + count, self.head)
        if begin < end:
            at = begin % self.capacity
            first = min(end - begin, self.capacity - at)
            out[begin - start : begin - start + first] = self._ring[at : at + first]
            out[begin - start + first : end - start] = self._ring[: end - begin - first]
        return out

    def known(self, start: int, end: int) -> bool:
        """Whether all samples ``start`` .. ``end`` are there."""
        return self.base <= start and end <= self.head

    def loudest(self, start: int, end: int) -> float:
        """The greatest RMS (0..1) of the stretches of LEVEL_S from ``start`` to ``end``."""
        samples = self.read(start, end - start).astype(np.float32) / np.float32(FULL_SCALE)
        starts = np.arange(0, len(samples), _LEVEL)
        lengths = np.diff(np.append(starts, len(samples)))
        return float(np.sqrt(np.max(np.add.reduceat(np.square(samples), starts) / lengths)))


@dataclass(frozen=True, slots=True)
class _Shift:
    """From output frame ``frame`` on, output frame k shows media frame ``k - frames`` and position p is media sample
    ``p - samples``. Sound is cross-faded for ``fade`` samples."""

    frame: int
    position: int
    frames: int
    samples: int
    fade: int = _FADE


@dataclass(slots=True)
class _Clip:
    """What is known of an expected clip. ``admitted``: to be rendered; ``lateness_s``: how late its last sound came;
    ``ahead``: whether it was announced before its time had come, so that its rendering says nothing of the delay;
    ``blended``: what takes the place of its last frames; ``late``: how many of its frames came after their time;
    ``unshown``: how many others have not been shown."""

    admitted: bool
    lateness_s: float
    ahead: bool
    frames: YuvFrames | None = None
    blended: YuvFrames | None = None
    late: int = 0
    unshown: int = 0


class Playout:
    """Holds sound and frames back by one delay and hands them out by one clock.

    Sound leaves ``delay_s`` after it came in, without gaps or drops. A frame that is not there yet is replaced by the
    one shown before, and dropped when it comes after its time. Nothing here waits, and what is kept is bounded by
    ``max_latency_s`` + SLACK_S whether anybody asks for it or not.
    """

    def __init__(self, format: ClipFormat, idle: YuvFrames, policy: DelayPolicy) -> None:
        """``idle`` is the avatar's loop, of the format's size.

        Raises ValueError if it is empty or of another size, or if the policy's ``max_latency_s`` is not longer than a
        clip.
        """
        if not len(idle):
            raise ValueError("the idle loop is empty; at least one frame is needed")
        clip_s = float(format.clip_duration)
        if policy.max_latency_s <= clip_s:
            raise ValueError(f"max_latency_s is {policy.max_latency_s}; it must be longer than a clip ({clip_s:.3f} s)")
        self._format = format
        self._check_size(idle, "the idle loop")
        self._idle = idle
        self._policy = policy
        self._clip_s = clip_s
        self._frame_samples = MEDIA_RATE / format.fps
        self._hold_limit = round(HOLD_LIMIT_S * format.fps)

        ahead_s = policy.ahead_s + 2 * clip_s if policy.ahead_s else 0.0
        self._line = SoundLine(math.ceil((policy.max_latency_s + SLACK_S + ahead_s) * MEDIA_RATE))
        self._clips: dict[int, _Clip] = {}
        self._oldest_clip = 0
        self._oldest_frames = 0
        self._next_clip = 0

        self._clock: SlewedClock | None = None
        self._arrived = (0.0, 0.0)
        self._pushed_s = 0.0
        self._needs: deque[float] = deque([policy.render_s], maxlen=RECENT_CLIPS)
        self._target = self._samples_of(policy.render_s)
        self._delay = self._target
        self._set_point = self._target
        self._direction = 0
        self._shifts: deque[_Shift] = deque([_Shift(0, 0, 0, 0)])

        self._asked = False
        self._next_frame = 0
        self._shown_source = -1
        self._shown: tuple[YuvFrames, FrameKind] | None = None
        self._held_run = 0
        self._leading_over: tuple[int, YuvFrames] | None = None
        """The first frame after a jump, and the picture that is cross-faded into those that follow."""
        self._next_position = 0
        self._starving = False

        self._counts = dict.fromkeys(FrameKind, 0)
        self._skipped = 0
        self._dropped = 0
        self._lost_clips = 0
        self._stretched = 0
        self._cut = 0
        self._underruns = 0
        self._underrun_samples = 0

    # What comes in

    def discipline(self, arrived: float, now: float) -> None:
        """Tells where an undelayed microphone is at ``now`` (``Timeline.arrived(now)``), with each block and tick.

        The first call sets the clock: media sample 0 leaves ``delay_s`` after it came in. Later calls slew the clock,
        and change the delay where it is to change and the line is silent. As long as nothing was asked for and nothing
        is due, the start itself still moves.
        """
        self._arrived = (arrived, now)
        clock = self._clock
        if clock is None or (not self._asked and clock.position(now) < 0):
            self._delay = self._set_point = self._target
            self._clock = SlewedClock(arrived + self._shifts[-1].samples - self._target, now)
            return
        position = clock.position(now)
        self._delay = arrived - (position - self._shifts[-1].samples)
        self._move_delay(position)
        clock.steer(self._delay - self._set_point, now)

    def push_sound(self, start_sample: int, pcm: S16Array, now: float) -> None:
        """Takes the next piece of the timeline: mono int16 (n,) at 48 kHz from media sample ``start_sample``.

        Raises ValueError if it does not follow on the piece before.
        """
        if start_sample != self._line.head:
            raise ValueError(f"sound from sample {start_sample} does not follow on sample {self._line.head}")
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"sound of shape {pcm.shape} and type {pcm.dtype}; mono int16 is expected")
        self._line.push(pcm)
        self._pushed_s = now
        if self._clock is None:
            self.discipline(self._line.head, now)
        self._forget_clips()

    def expect(self, clip: AudioClip, rendered: bool) -> None:
        """The gate's word on the next clip: frames will come (``rendered``), or the idle loop is shown.

        Raises ValueError if the clip is not the next one or not of the format.
        """
        frames = self._format.clip_frames
        if clip.index != self._next_clip:
            raise ValueError(f"clip {clip.index} was announced; clip {self._next_clip} is next")
        if clip.first_frame + clip.frames != (clip.index + 1) * frames:
            raise ValueError(f"clip {clip.index} ends at frame {clip.first_frame + clip.frames}; clips have {frames}")
        arrived, when = self._arrived
        lateness_s = self._pushed_s - when - (self._sample((clip.index + 1) * frames) - arrived) / MEDIA_RATE
        if not 0.0 < lateness_s < HOLD_OFF_S - 1e-3:
            # Sound that late is the timeline's own silence; no mouth moves to it, so the delay need not allow for it.
            lateness_s = 0.0
        ahead = bool(self._policy.ahead_s) and self._sample(clip.index * frames) > arrived
        self._clips[clip.index] = _Clip(rendered, lateness_s, ahead)
        self._next_clip += 1

    def put(self, clip_index: int, frames: YuvFrames, render_s: float, now: float) -> None:
        """Takes the ``clip_frames`` frames of an admitted clip, in any order of clips.

        ``render_s`` is how long they took from the clip's hand-over to the engine. Frames whose time has passed at
        ``now``, or for which another was shown, are dropped and counted. Raises ValueError for a clip that was not
        admitted, came already, or has other frames.
        """
        clip = self._admitted(clip_index)
        if len(frames) != self._format.clip_frames:
            raise ValueError(f"clip {clip_index} has {len(frames)} frames; {self._format.clip_frames} are expected")
        self._check_size(frames, f"clip {clip_index}")
        if not (math.isfinite(render_s) and render_s >= 0):
            raise ValueError(f"clip {clip_index} took {render_s} s to render; it must be a number of at least 0")
        if clip is None or not clip.ahead:
            self._needs.append(render_s + (clip.lateness_s if clip else 0.0))
            self._target = self._samples_of(self._render_p95_s)
        if clip is None:
            self._dropped += len(frames)
            return
        if clip.frames is not None:
            raise ValueError(f"the frames of clip {clip_index} came twice")
        first = clip_index * self._format.clip_frames
        leaving = max(0, self.media_now(now) - self._shifts[-1].samples)
        showable = max(self._shown_source + 1, self._format.frame_of_sample(leaving, MEDIA_RATE))
        clip.late = min(len(frames), max(0, showable - first))
        self._dropped += clip.late
        if clip.late < len(frames):
            clip.frames = frames
            clip.unshown = len(frames) - clip.late

    def blend(self, clip_index: int, frames: YuvFrames) -> None:
        """``frames`` take the place of the last frames of a clip that came before, as far as it has not been shown:
        what leads over to the next clip. Raises ValueError as :meth:`put`, and if there are more than the clip has."""
        clip = self._admitted(clip_index)
        if len(frames) > self._format.clip_frames:
            raise ValueError(f"{len(frames)} frames cannot be blended into a clip of {self._format.clip_frames}")
        self._check_size(frames, f"the end of clip {clip_index}")
        if clip is not None and clip.frames is not None:
            clip.blended = frames

    def lose(self, clip_index: int) -> None:
        """The frames of an admitted clip will not come. If they do after all, :meth:`put` still takes them.

        Raises ValueError for a clip that was not admitted.
        """
        self._admitted(clip_index)
        self._lost_clips += 1

    # Interruption

    def next_sample(self, now: float) -> int:
        """The first sample of media time that has not left, and has not been taken to be encoded, at ``now``."""
        return self.media_sample(self._next_free(now))

    def next_frame(self, now: float) -> int:
        """The frame of media time that :meth:`jump` would leave out first at ``now``."""
        return self._frame_to_change(now) - self._shifts[-1].frames

    def jump(self, media_frame: int, now: float) -> int:
        """Goes on with ``media_frame``, at the next frame, and leaves out all media time before it that has not left.

        The sound fades out over JUMP_FADE_S at :meth:`next_sample`; the frame of sound before ``media_frame`` must be
        silence. The picture is cross-faded over LEAD_OVER_S. The delay stays: whoever calls this sets the clock of
        media time forward by the samples that it returns. Raises ValueError for a frame that has been shown.
        """
        last = self._shifts[-1]
        asked = self._next_free(now)
        frame = self._frame_to_change(now)
        if media_frame < frame - last.frames:
            raise ValueError(f"media frame {media_frame} is over; frame {frame - last.frames} is next")
        samples = self._sample(frame) - self._sample(media_frame)
        self._add_shift(_Shift(frame, asked, frame - media_frame, samples, _JUMP_FADE), asked)
        jumped = last.samples - samples
        arrived, when = self._arrived
        self._arrived = (arrived + jumped, when)
        if self._shown is not None:
            self._leading_over = (frame, self._shown[0])
            self._shown = (self._shown[0], FrameKind.IDLE)
        self._held_run = 0
        return jumped

    # The clock

    @property
    def delay_s(self) -> float:
        """Media time minus playout time in seconds, for sound and picture alike."""
        return self._delay / MEDIA_RATE

    def media_now(self, now: float) -> int:
        """The position that leaves at ``now``; negative as long as nothing does."""
        if self._clock is None:
            return -round(self._target)
        # A thousandth of a sample is far above the rounding of `due` and far below anything that matters.
        return math.floor(self._clock.position(now) + 1e-3)

    def due(self, position: int) -> float:
        """When ``position`` leaves, in seconds of the clock of ``now``; infinity before the first sound."""
        return self._clock.time_of(position) if self._clock else math.inf

    def media_sample(self, position: int) -> int:
        """The sample of media time that leaves at ``position``; negative before the first sound does."""
        shift = next((shift for shift in reversed(self._shifts) if shift.position <= position), self._shifts[0])
        return position - shift.samples

    def leaves(self, media_sample: int) -> float:
        """When a sample of media time leaves as the delay stands now: the deadline for what belongs to it."""
        return self.due(media_sample + self._shifts[-1].samples)

    # What goes out

    def sound(self, start: int, count: int) -> S16Array:
        """The echo for positions ``start`` .. ``start + count``: an array of its own, int16 (count,).

        Silence where nothing is known (counted, once, if it should have been). Any piece may be asked for again as long
        as it is kept.
        """
        self._asked = True
        out = np.zeros(count, np.int16)
        end = start + count
        missing = 0
        for index, shift in enumerate(self._shifts):
            begin = start if index == 0 else max(start, shift.position)
            stop = end if index + 1 == len(self._shifts) else min(end, self._shifts[index + 1].position)
            if begin >= stop:
                continue
            out[begin - start : stop - start] = self._line.read(begin - shift.samples, stop - begin)
            missing += self._missing(max(begin, self._next_position) - shift.samples, stop - shift.samples)
            if index and begin < shift.position + shift.fade:
                self._fade(out[begin - start : stop - start], begin, shift, self._shifts[index - 1])
        if end > self._next_position:
            self._underruns += bool(missing) and not self._starving
            self._underrun_samples += missing
            self._starving = bool(missing)
            self._next_position = end
        return out

    def frame(self, number: int) -> tuple[YuvFrames, FrameKind]:
        """The picture for output frame ``number``, which leaves at the position ``sample_of_frame(number, 48000)``.

        A view of one frame. Numbers go forward; those left out are counted as skipped, and the number asked last may be
        asked again with the same answer. Raises ValueError for a lower one.
        """
        if number < self._next_frame:
            if self._shown is not None and number == self._next_frame - 1:
                return self._shown
            raise ValueError(f"frame {number} was asked for after frame {self._next_frame - 1}; numbers go forward")
        self._asked = True
        self._skipped += number - self._next_frame
        source = number - self._shift_of_frame(number).frames
        if self._shown is None or source > self._shown_source:
            picture, kind = self._picture(source)
            self._shown = (self._led_over(number, picture), kind)
            self._shown_source = source
        self._counts[self._shown[1]] += 1
        self._next_frame = number + 1
        self._release_frames(source)
        return self._shown

    def statistics(self) -> PlayoutStatistics:
        return PlayoutStatistics(
            rendered=self._counts[FrameKind.RENDERED],
            idle=self._counts[FrameKind.IDLE],
            held=self._counts[FrameKind.HELD],
            skipped=self._skipped,
            dropped=self._dropped,
            lost_clips=self._lost_clips,
            stretched=self._stretched,
            cut=self._cut,
            underruns=self._underruns,
            underrun_samples=self._underrun_samples,
            delay_s=self.delay_s,
            target_delay_s=self._target / MEDIA_RATE,
            render_p95_s=self._render_p95_s,
            rate_ppm=(self._clock.rate - 1.0) * 1e6 if self._clock else 0.0,
        )

    # Inside: the delay

    @property
    def _render_p95_s(self) -> float:
        """The nearest-rank percentile of what rendering took, the engine's own measure counting as one clip."""
        needs = sorted(self._needs)
        return needs[math.ceil(len(needs) * RENDER_PERCENTILE / 100) - 1]

    def _samples_of(self, render_s: float) -> float:
        return self._policy.delay_s(self._clip_s, render_s) * MEDIA_RATE

    def _move_delay(self, position: float) -> None:
        """Changes the delay by a frame if it is to change and the line is silent where that would be."""
        self._choose_direction()
        if not self._direction:
            return
        last = self._shifts[-1]
        asked = max(self._next_position, math.ceil(position))
        frame = max(self._next_frame, self._format.frame_of_sample(asked - 1, MEDIA_RATE) + 1)
        source = frame - last.frames
        other = source - self._direction
        if frame < last.frame + FRAMES_PER_STEP or other < 0:
            return
        old, new = self._sample(source), self._sample(other)
        if not self._silent(max(0, min(old, new) - _GUARD), max(old, new) + _FADE + _GUARD):
            return
        at = self._sample(frame)
        self._add_shift(_Shift(frame, at, last.frames + self._direction, at - new), asked)
        self._delay += old - new
        self._set_point = self._delay
        if self._direction > 0:
            self._stretched += 1
        else:
            self._cut += 1

    def _choose_direction(self) -> None:
        """1: grow, -1: shrink, 0: stay; with hysteresis, so that the delay does not swing."""
        short = self._target - self._delay
        frame = self._frame_samples
        if self._direction > 0:
            longest = self._policy.max_latency_s * MEDIA_RATE - frame
            self._direction = int(short > 0 and self._delay <= longest)
        elif self._direction < 0:
            self._direction = -int(short <= -frame)
        elif short > frame:
            self._direction = 1
        elif short < -max(frame, SHRINK_BY_S * MEDIA_RATE):
            self._direction = -1

    def _silent(self, start: int, end: int) -> bool:
        """Whether media samples ``start`` .. ``end`` are known to be silence.

        That is nearly no sound at all, or the gate's word on every clip that they touch and a level that bears it out.
        """
        if not self._line.known(start, end):
            return False
        level = self._line.loudest(start, end)
        if level < PAUSE_RMS:
            return True
        first, last = (self._format.frame_of_sample(sample, MEDIA_RATE) for sample in (start, end - 1))
        frames = self._format.clip_frames
        clips = [self._clips.get(index) for index in range(first // frames, last // frames + 1)]
        return level < self._policy.silence_rms and all(clip is not None and not clip.admitted for clip in clips)

    # Inside: sound and frames

    def _missing(self, start: int, end: int) -> int:
        """How many media samples from ``start`` to ``end`` are not there and should be."""
        start = max(start, 0)
        there = max(0, min(end, self._line.head) - max(start, self._line.base))
        return max(0, end - start) - there

    def _fade(self, out: S16Array, begin: int, shift: _Shift, before: _Shift) -> None:
        """Leads from the sound as it went on before ``shift`` to ``out``, which leaves from position ``begin`` on."""
        count = min(len(out), shift.position + shift.fade - begin)
        old = self._line.read(begin - before.samples, count)
        ramp = np.arange(begin - shift.position + 1, begin - shift.position + 1 + count) / (shift.fade + 1)
        out[:count] = np.rint(old * (1.0 - ramp) + out[:count] * ramp)

    def _shift_of_frame(self, number: int) -> _Shift:
        return next((shift for shift in reversed(self._shifts) if shift.frame <= number), self._shifts[0])

    def _picture(self, source: int) -> tuple[YuvFrames, FrameKind]:
        """What is shown for media frame ``source``, which comes after all shown so far."""
        index, within = divmod(source, self._format.clip_frames)
        clip = self._clips.get(index)
        if clip is not None and clip.frames is not None and within >= clip.late:
            self._held_run = 0
            clip.unshown -= 1
            if clip.blended is not None and (at := within - len(clip.frames) + len(clip.blended)) >= 0:
                return clip.blended[at], FrameKind.RENDERED
            return clip.frames[within], FrameKind.RENDERED
        if self._shown is not None and self._held_run < self._hold_limit:
            idle = self._shown[1] is FrameKind.IDLE
            if self._policy.ahead_s:
                # Speech that is known ahead was announced, and a clip in whose middle it begins is idle before.
                hold = clip is not None and clip.admitted and not idle
            else:
                # Without the gate's word yet, what was going on goes on.
                hold = clip.admitted if clip is not None else not idle
            if hold:
                self._held_run += 1
                return self._shown[0], FrameKind.HELD
        if clip is not None and not clip.admitted:
            self._held_run = 0
        return self._idle[source % len(self._idle)], FrameKind.IDLE

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

    def _next_free(self, now: float) -> int:
        """The first position that neither has left at ``now`` nor was taken."""
        position = self._clock.position(now) if self._clock else 0.0
        return max(self._next_position, math.ceil(position))

    def _frame_to_change(self, now: float) -> int:
        """The first output frame that begins no earlier than :meth:`_next_free`."""
        return max(self._next_frame, self._format.frame_of_sample(self._next_free(now) - 1, MEDIA_RATE) + 1)

    def _add_shift(self, shift: _Shift, asked: int) -> None:
        """``asked``: the first position that is still to leave."""
        self._shifts.append(shift)
        while self._shifts[1].position <= asked - self._line.capacity:
            self._shifts.popleft()

    def _admitted(self, index: int) -> _Clip | None:
        """The admitted clip ``index``; None if its time is so long over that it was forgotten."""
        if not 0 <= index < self._next_clip:
            raise ValueError(f"clip {index} was never announced; clip {self._next_clip} is next")
        clip = self._clips.get(index)
        if clip is not None and not clip.admitted:
            raise ValueError(f"clip {index} was announced as silence; no frames are expected")
        return clip

    def _release_frames(self, shown: int) -> None:
        """Lets go of the frames of clips that ended with media frame ``shown`` or before."""
        while self._oldest_frames < self._next_clip:
            if (self._oldest_frames + 1) * self._format.clip_frames > shown + 1:
                return
            self._let_go(self._clips.get(self._oldest_frames))
            self._oldest_frames += 1

    def _forget_clips(self) -> None:
        """Forgets clips whose sound is no longer kept."""
        while self._oldest_clip < self._next_clip:
            if self._sample((self._oldest_clip + 1) * self._format.clip_frames) > self._line.base:
                return
            self._let_go(self._clips.pop(self._oldest_clip))
            self._oldest_clip += 1

    def _let_go(self, clip: _Clip | None) -> None:
        if clip is not None and clip.frames is not None:
            self._dropped += clip.unshown
            clip.frames = clip.blended = None

    def _sample(self, frame: int) -> int:
        return self._format.sample_of_frame(frame, MEDIA_RATE)

    def _check_size(self, frames: YuvFrames, what: str) -> None:
        width, height = self._format.width, self._format.height
        if (frames.width, frames.height) != (width, height):
            raise ValueError(f"{what} has {frames.width}x{frames.height} pixels; {width}x{height} are expected")
