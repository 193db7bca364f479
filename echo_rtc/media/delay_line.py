"""The delay of a stream's sound: a clock, the sound kept, and where in media time each position lies.

The *position* counts the samples that have left, from 0; it advances without jumps or pauses, so that the time stamps
of packets are made of it. It differs from media time by a whole number of frames, which changes only in pauses: that
is how the delay grows (a frame's length of silence is played again) and shrinks (one is left out) without a sample of
speech repeated or lost. Knows no pictures; time is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array
from echo_rtc.media.need import RecentNeed
from echo_rtc.media.pauses import PauseLevel
from echo_rtc.media.slewed_clock import SlewedClock
from echo_rtc.media.sound_ring import SoundRing
from echo_rtc.media.timeline import HOLD_OFF_S

SLACK_S = 2.0
"""Sound and frames are kept for this much longer than ``max_latency_s``, whether they are read or not."""

SHRINK_BY_S = 0.1
"""Hysteresis: the delay shrinks only by at least this much, so that it does not follow every variation of rendering."""

SLEW_BY_S = 0.025
"""An error of more than this that is too small for frames is made up for by the clock, inaudibly; jitter is less."""

GROW_BY_S = 0.03
"""The delay grows when it is short by more than this: the margin has room for as much."""

FRAMES_PER_STEP = 2
"""The delay changes by one frame in this many: the idle loop then runs at half, or one and a half times, its speed for
a while, which looks better than a jump. Between the phrases of speech, where pauses are short, it shrinks with every
frame: a pause then takes half its time."""

GUARD_S = 0.05
"""Silence needed on both sides of a change of the delay."""

FADE_S = 0.005
"""Room noise is cross-faded for this long where the delay changes, so that it does not click."""

JUMP_FADE_S = 0.01
"""Sound that a jump breaks off fades out for this long."""

_GUARD = round(GUARD_S * MEDIA_RATE)
_FADE = round(FADE_S * MEDIA_RATE)
_JUMP_FADE = round(JUMP_FADE_S * MEDIA_RATE)


@dataclass(frozen=True, slots=True)
class DelayPolicy:
    """What the delay is made of: the clip's length, rendering, a margin; never more than ``max_latency_s``.

    ``render_s``: seconds the engine takes for a clip as measured at its start, used until clips have been rendered.
    ``margin_s``: seconds for the encoder's lead, the hand-over and the unevenness of rendering.
    ``silence_rms``: RMS (0..1) below which a clip that the gate rejected is silence; usually the gate's threshold.
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


@dataclass(frozen=True, slots=True)
class _Shift:
    """From output frame ``frame`` on, output frame k shows media frame ``k - frames`` and position p is media sample
    ``p - samples``. Sound is cross-faded for ``fade`` samples."""

    frame: int
    position: int
    frames: int
    samples: int
    fade: int = _FADE


class DelayLine:
    """Holds sound back by one delay and hands it out by one clock, without gaps or drops.

    ``stretched``, ``cut``: frames by which the delay grew and shrank. ``underruns``, ``underrun_samples``: how often,
    and for how many samples, silence left because no sound was there.
    """

    def __init__(self, clip_format: ClipFormat, policy: DelayPolicy) -> None:
        """Raises ValueError if the policy's ``max_latency_s`` is not longer than a clip."""
        clip_s = float(clip_format.clip_duration)
        if policy.max_latency_s <= clip_s:
            raise ValueError(f"max_latency_s is {policy.max_latency_s}; it must be longer than a clip ({clip_s:.3f} s)")
        self._format = clip_format
        self._policy = policy
        self._clip_s = clip_s
        self._frame_samples = MEDIA_RATE / clip_format.fps
        ahead_s = policy.ahead_s + 2 * clip_s if policy.ahead_s else 0.0
        self.ring = SoundRing(math.ceil((policy.max_latency_s + SLACK_S + ahead_s) * MEDIA_RATE))
        self._clock: SlewedClock | None = None
        self._arrived = (0.0, 0.0)
        self._pushed_s = 0.0
        self._need = RecentNeed(clip_s, policy.render_s)
        self._pause = PauseLevel(policy.silence_rms)
        self._target = self._samples_of(policy.render_s)
        self._delay = self._target
        self._set_point = self._target
        self._direction = 0
        self._shifts: deque[_Shift] = deque([_Shift(0, 0, 0, 0)])
        self.started = False
        """Whether anything was asked for, sound or picture."""
        self._next_position = 0
        self._starving = False
        self.stretched = 0
        self.cut = 0
        self.underruns = 0
        self.underrun_samples = 0

    @property
    def delay_s(self) -> float:
        """Media time minus playout time in seconds."""
        return self._delay / MEDIA_RATE

    @property
    def target_delay_s(self) -> float:
        """Where the delay goes in the next silence, in seconds."""
        return self._target / MEDIA_RATE

    @property
    def render_p95_s(self) -> float:
        """How long nearly every clip takes until it can be shown."""
        return self._need.seconds

    @property
    def rate_ppm(self) -> float:
        """The playout clock against ours."""
        return (self._clock.rate - 1.0) * 1e6 if self._clock else 0.0

    def discipline(self, arrived: float, now: float, next_frame: int, idle: Callable[[int, int], bool]) -> None:
        """Sets the clock by the media sample that an undelayed microphone has reached at ``now``; see
        :meth:`Playout.discipline`.

        ``next_frame``: the first output frame whose picture has not been handed out. ``idle(first, last)``: whether the
        gate took all clips of these media frames for silence.
        """
        self._arrived = (arrived, now)
        clock = self._clock
        if clock is None or (not self.started and clock.position(now) < 0):
            self._delay = self._set_point = self._target
            self._clock = SlewedClock(arrived + self._shifts[-1].samples - self._target, now)
            return
        position = clock.position(now)
        self._delay = arrived - (position - self._shifts[-1].samples)
        self._choose_direction()
        if self._direction:
            self._move_delay(self._next_free(now), next_frame, idle)
        elif abs(self._target - self._set_point) > SLEW_BY_S * MEDIA_RATE:
            self._set_point = self._target
        clock.steer(self._delay - self._set_point, now)

    def push(self, start_sample: int, pcm: S16Array, now: float) -> None:
        """Takes the next piece of the timeline. Raises ValueError if it does not follow on the piece before."""
        if start_sample != self.ring.head:
            raise ValueError(f"sound from sample {start_sample} does not follow on sample {self.ring.head}")
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"sound of shape {pcm.shape} and type {pcm.dtype}; mono int16 is expected")
        self.ring.push(pcm)
        self._pause.push(pcm)
        self._pushed_s = now
        if self._clock is None:
            self.discipline(self.ring.head, now, 0, lambda first, last: False)

    def lateness_s(self, media_sample: int) -> float:
        """How much later than an undelayed microphone the sound up to ``media_sample`` came, in seconds."""
        arrived, when = self._arrived
        lateness_s = self._pushed_s - when - (media_sample - arrived) / MEDIA_RATE
        # Sound that late is the timeline's own silence; no mouth moves to it, so the delay need not allow for it.
        return lateness_s if 0.0 < lateness_s < HOLD_OFF_S - 1e-3 else 0.0

    def is_ahead(self, media_sample: int) -> bool:
        """Whether the time of ``media_sample`` has not come yet, where sound may be pushed ahead of the clock."""
        return bool(self._policy.ahead_s) and media_sample > self._arrived[0]

    def rendered(self, took_s: float) -> None:
        """A clip took ``took_s`` to render, its late sound included: the delay follows."""
        self._need.add(took_s)
        self._target = self._samples_of(self.render_p95_s)

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

    def next_sample(self, now: float) -> int:
        """The first sample of media time that has not left, and has not been taken to be encoded, at ``now``."""
        return self.media_sample(self._next_free(now))

    def next_media_frame(self, now: float, next_frame: int) -> int:
        """The media frame of the first output frame that can still change at ``now``; ``next_frame`` is the first whose
        picture has not been handed out."""
        return self._frame_to_change(self._next_free(now), next_frame) - self._shifts[-1].frames

    def jump(self, media_frame: int, now: float, next_frame: int) -> tuple[int, int]:
        """Goes on with ``media_frame`` and leaves out all media time before it that has not left; see
        :meth:`Playout.jump`. Returns the output frame at which it does, and the samples left out."""
        last = self._shifts[-1]
        asked = self._next_free(now)
        frame = self._frame_to_change(asked, next_frame)
        if media_frame < frame - last.frames:
            raise ValueError(f"media frame {media_frame} is over; frame {frame - last.frames} is next")
        samples = self._sample(frame) - self._sample(media_frame)
        # After silence there is nothing to fade out, and what begins next would be heard although it is left out.
        before = self.ring.read(asked - last.samples - _JUMP_FADE, _JUMP_FADE)
        self._add_shift(_Shift(frame, asked, frame - media_frame, samples, _JUMP_FADE if before.any() else 0), asked)
        jumped = last.samples - samples
        arrived, when = self._arrived
        self._arrived = (arrived + jumped, when)
        return frame, jumped

    def media_sample_now(self, now: float) -> int:
        """The sample of media time that leaves at ``now``, at the present delay; 0 before the first."""
        return max(0, self.media_now(now) - self._shifts[-1].samples)

    def media_frame(self, number: int) -> int:
        """The media frame that output frame ``number`` shows."""
        shift = next((shift for shift in reversed(self._shifts) if shift.frame <= number), self._shifts[0])
        return number - shift.frames

    def position(self, media_sample: int) -> int:
        """The position at which a sample of media time leaves, at the present delay."""
        return media_sample + self._shifts[-1].samples

    def playout_time(self, media_sample: int) -> float:
        """When a sample of media time leaves, at the present delay: the deadline for what belongs to it."""
        return self.due(self.position(media_sample))

    def sound(self, start: int, count: int) -> S16Array:
        """The echo for positions ``start`` .. ``start + count``: an array of its own, int16 (count,).

        Silence where nothing is known (counted, once, if it should have been). Any piece may be asked for again as long
        as it is kept.
        """
        self.started = True
        out = np.zeros(count, np.int16)
        end = start + count
        missing = 0
        for index, shift in enumerate(self._shifts):
            begin = start if index == 0 else max(start, shift.position)
            stop = end if index + 1 == len(self._shifts) else min(end, self._shifts[index + 1].position)
            if begin >= stop:
                continue
            out[begin - start : stop - start] = self.ring.read(begin - shift.samples, stop - begin)
            missing += self._missing(max(begin, self._next_position) - shift.samples, stop - shift.samples)
            if index and begin < shift.position + shift.fade:
                self._fade(out[begin - start : stop - start], begin, shift, self._shifts[index - 1])
        if end > self._next_position:
            self.underruns += bool(missing) and not self._starving
            self.underrun_samples += missing
            self._starving = bool(missing)
            self._next_position = end
        return out

    def _samples_of(self, render_s: float) -> float:
        return self._policy.delay_s(self._clip_s, render_s) * MEDIA_RATE

    def _move_delay(self, asked: int, next_frame: int, idle: Callable[[int, int], bool]) -> None:
        """Changes the delay by a frame if the line is silent where that would be; positions below ``asked`` have left
        or have been handed out."""
        last = self._shifts[-1]
        frame = self._frame_to_change(asked, next_frame)
        source = frame - last.frames
        other = source - self._direction
        if frame <= last.frame or other < 0:
            return
        if frame < last.frame + FRAMES_PER_STEP and (self._direction > 0 or idle(source, source)):
            return
        old, new = self._sample(source), self._sample(other)
        if not self._silent(max(0, min(old, new) - _GUARD), max(old, new) + _FADE + _GUARD, idle):
            return
        at = self._sample(frame)
        self._add_shift(_Shift(frame, at, last.frames + self._direction, at - new), asked)
        self._delay += old - new
        self._set_point = self._delay
        if self._direction > 0:
            self.stretched += 1
        else:
            self.cut += 1

    def _choose_direction(self) -> None:
        """1: grow, -1: shrink, 0: stay; with hysteresis, so that the delay does not swing."""
        short = self._target - self._delay
        frame = self._frame_samples
        room = self._delay <= self._policy.max_latency_s * MEDIA_RATE - frame
        if self._direction > 0:
            self._direction = int(short > 0 and room)
        elif self._direction < 0:
            self._direction = -int(short <= -frame)
        elif short > GROW_BY_S * MEDIA_RATE and room:
            self._direction = 1
        elif short < -max(frame, SHRINK_BY_S * MEDIA_RATE):
            self._direction = -1

    def _silent(self, start: int, end: int, idle: Callable[[int, int], bool]) -> bool:
        """Whether media samples ``start`` .. ``end`` are known to be silence: the level of a pause, or clips that the
        gate took for silence and a level that confirms it."""
        if not self.ring.known(start, end):
            return False
        level = self.ring.loudest(start, end)
        if level < self._pause.rms:
            return True
        first, last = (self._format.frame_of_sample(sample, MEDIA_RATE) for sample in (start, end - 1))
        return level < self._policy.silence_rms and idle(first, last)

    def _missing(self, start: int, end: int) -> int:
        """How many media samples from ``start`` to ``end`` are not there and should be."""
        start = max(start, 0)
        there = max(0, min(end, self.ring.head) - max(start, self.ring.base))
        return max(0, end - start) - there

    def _fade(self, out: S16Array, begin: int, shift: _Shift, before: _Shift) -> None:
        """Leads from the sound as it went on before ``shift`` to ``out``, which leaves from position ``begin`` on."""
        count = min(len(out), shift.position + shift.fade - begin)
        old = self.ring.read(begin - before.samples, count)
        ramp = np.arange(begin - shift.position + 1, begin - shift.position + 1 + count) / (shift.fade + 1)
        out[:count] = np.rint(old * (1.0 - ramp) + out[:count] * ramp)

    def _next_free(self, now: float) -> int:
        """The first position that neither has left at ``now`` nor was taken."""
        position = self._clock.position(now) if self._clock else 0.0
        return max(self._next_position, math.ceil(position))

    def _frame_to_change(self, asked: int, next_frame: int) -> int:
        """The first output frame that has not been handed out and begins at position ``asked`` or after it."""
        return max(next_frame, self._format.frame_of_sample(asked - 1, MEDIA_RATE) + 1)

    def _add_shift(self, shift: _Shift, asked: int) -> None:
        """Adds a shift; ``asked`` is the first position that has not left."""
        self._shifts.append(shift)
        while self._shifts[1].position <= asked - self.ring.capacity:
            self._shifts.popleft()

    def _sample(self, frame: int) -> int:
        return self._format.sample_of_frame(frame, MEDIA_RATE)
