"""Places microphone blocks by their time stamps into contiguous media time, and measures the microphone's clock.

Media time is counted in samples at 48 kHz from 0. Two clocks meet here: the microphone's, which stamps the blocks
(``pts``), and ours, at which they arrive (``now``, seconds of any monotonic clock). While blocks come, media time goes
by their stamps; while none come, it goes on by our clock as silence. Knows nothing of clips, frames or playing out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.counting import CounterMetric, counter

Piece = tuple[int, S16Array]
"""A stretch of media time: its first sample's number and its samples (n,) int16."""

HOLD_OFF_S = 0.2
"""How far silence by our clock stays behind our clock, so that a block delayed by the network or held by the jitter
buffer still finds its place free. A block later than this is late: silence stands where it belonged."""

AHEAD_S = 0.5
"""A block that would be this far ahead of our clock is no block after a loss: the microphone's stamps jumped."""

BACKWARD_S = 1.0
"""Stamps that fall back by more than this are no late packets: the microphone's stamps jumped."""

DECIDE_S = 0.1
"""Blocks that stay late for this long, at the pace of real time, show that the stamps stood still or the network delay
has grown for good; a burst after a stall is faster than that."""

CATCHING_UP = 1.5
"""Late blocks whose stamps advance this many times faster than our clock are a burst that catches up."""

KEPT_LATE_S = 0.15
"""Late blocks kept until that is decided; they fit into the room that HOLD_OFF_S leaves."""

MAX_DRIFT = 300e-6
"""Greatest rate error of a microphone's clock that is followed; larger estimates are clamped."""

CEILING_DRIFT = 500e-6
"""Upper bound of the rate at which media time may run ahead of our clock, whatever the sender's stamps say."""

_SILENCE = np.zeros(MEDIA_RATE, np.int16)
_SILENCE.setflags(write=False)


MEDIA_SECONDS = CounterMetric("media_seconds", "Seconds of microphone that streams have heard.", scale=1 / MEDIA_RATE)
FILLED = CounterMetric(
    "microphone_filled_seconds",
    "Silence put in for the microphone: lost = for gaps between its stamps, silent = while nothing came.",
    "cause",
    1 / MEDIA_RATE,
)
DROPPED = CounterMetric(
    "microphone_dropped_seconds",
    "Sound of the microphone left out because it came too late, or ran ahead of our clock.",
    "cause",
    1 / MEDIA_RATE,
)
JUMPS = CounterMetric(
    "microphone_jumps", "How often a microphone's time stamps jumped and were tied to our clock again."
)


@dataclass(frozen=True, slots=True)
class TimelineStatistics:
    """What a timeline has seen so far; all but ``re_anchored`` and ``drift_ppm`` in samples at 48 kHz.

    ``samples``: length of media time. ``lost_samples``: silence for gaps between stamps. ``silence_samples``: silence
    by our clock. ``late_dropped``: samples that came after their place was taken (late, duplicate, overlapping).
    ``early_dropped``: samples that would have run ahead of our clock. ``re_anchored``: how often the stamps were tied
    to our clock again. ``drift_ppm``: the microphone's clock against ours, positive if it is fast.
    """

    samples: int = counter(MEDIA_SECONDS)
    lost_samples: int = counter(FILLED, "lost")
    silence_samples: int = counter(FILLED, "silent")
    late_dropped: int = counter(DROPPED, "late")
    early_dropped: int = counter(DROPPED, "early")
    re_anchored: int = counter(JUMPS)
    drift_ppm: float = 0.0


class ArrivalClock:
    """Estimates which media sample an undelayed microphone has reached, from arrivals with a delay that varies.

    An arrival is the true line plus a delay that is never negative, so the line is the upper envelope of (media time -
    our time): the greatest of the last ``ENVELOPE_S`` seconds, extended by the drift. The drift is the median of the
    slopes between all pairs of maxima of longer stretches (Theil 1950, Sen 1968); a few bad stretches do not move it.
    """

    BUCKET_S = 1.0
    ENVELOPE_S = 10.0
    POINT_S = 10.0
    POINTS = 30
    FEWEST_POINTS = 6

    def __init__(self, sample: int, now: float) -> None:
        self._origin_sample = sample
        self._origin_s = now
        self._best = (now, 0.0)
        self._buckets: deque[tuple[float, float]] = deque()
        self._bucket_from = now
        self._points: deque[tuple[float, float]] = deque(maxlen=self.POINTS)
        self._point: tuple[float, float] | None = None
        self._point_from = now
        self.drift = 0.0
        """Rate of the microphone's clock against ours, minus one."""

    def reading(self, now: float) -> float:
        """The media sample (fractional) that an undelayed microphone has reached at ``now``."""
        seconds = now - self._origin_s + self._lead(self._best, now)
        return self._origin_sample + seconds * MEDIA_RATE

    def ceiling(self, now: float) -> float:
        """The media sample that nothing may pass at ``now``."""
        elapsed = now - self._origin_s
        return self._origin_sample + (elapsed * (1.0 + CEILING_DRIFT) + AHEAD_S) * MEDIA_RATE

    def observe(self, end: int, now: float) -> None:
        """A block that ends before media sample ``end`` arrived at ``now``."""
        lead = (end - self._origin_sample) / MEDIA_RATE - (now - self._origin_s)
        arrival = (now, lead)
        if now - self._bucket_from >= self.BUCKET_S or not self._buckets:
            self._buckets.append(arrival)
            self._bucket_from = now
            while now - self._buckets[0][0] > self.ENVELOPE_S:
                self._buckets.popleft()
            self._best = max(self._buckets, key=lambda past: self._lead(past, now))
        elif lead > self._buckets[-1][1]:
            self._buckets[-1] = arrival
        if lead >= self._lead(self._best, now):
            self._best = arrival
        if self._point is None or lead > self._point[1]:
            self._point = arrival
        if now - self._point_from >= self.POINT_S:
            self._points.append(self._point)
            self._point = None
            self._point_from = now
            self._measure_drift()

    def _lead(self, arrival: tuple[float, float], now: float) -> float:
        return arrival[1] + self.drift * (now - arrival[0])

    def _measure_drift(self) -> None:
        if len(self._points) < self.FEWEST_POINTS:
            return
        when, lead = np.array(self._points).T
        first, second = np.triu_indices(len(when), k=1)
        apart = when[second] > when[first]  # blocks that arrive together say nothing of a drift
        first, second = first[apart], second[apart]
        slope = float(np.median((lead[second] - lead[first]) / (when[second] - when[first])))
        self.drift = min(MAX_DRIFT, max(-MAX_DRIFT, slope))


class Timeline:
    """Contiguous media time from a microphone that loses, delays, repeats, mutes and jumps.

    Call :meth:`block` for each decoded block and :meth:`advance` every few hundredths of a second. Both return pieces
    which, in the order given, cover media time from 0 without gap or overlap. Media sample 0 is the moment of the first
    call. Silence comes as views of one read-only array, a second at most each.
    """

    def __init__(self) -> None:
        self._clock: ArrivalClock | None = None
        self._head = 0
        self._offset: int | None = None
        self._next_pts = 0
        self._late: deque[tuple[int, S16Array]] = deque()
        self._late_since: tuple[float, int] | None = None
        self._lost = 0
        self._silence = 0
        self._late_dropped = 0
        self._early_dropped = 0
        self._re_anchored = 0

    @property
    def drift_ppm(self) -> float:
        """The microphone's clock against ours in parts per million, positive if it is fast."""
        return self._clock.drift * 1e6 if self._clock else 0.0

    def arrived(self, now: float) -> float:
        """The media sample (fractional) that an undelayed microphone has reached at ``now``; 0 before the first."""
        return self._clock.reading(now) if self._clock else 0.0

    def media_sample(self, pts: int) -> int | None:
        """Where the sample stamped ``pts`` belongs in media time as stamps are placed now; None before the first
        block."""
        return None if self._offset is None else pts - self._offset

    def statistics(self) -> TimelineStatistics:
        return TimelineStatistics(
            samples=self._head,
            lost_samples=self._lost,
            silence_samples=self._silence,
            late_dropped=self._late_dropped,
            early_dropped=self._early_dropped,
            re_anchored=self._re_anchored,
            drift_ppm=self.drift_ppm,
        )

    def new_microphone(self, now: float) -> None:
        """Another microphone goes on from here: its stamps and its clock have nothing to do with those before."""
        self._forget_late()
        self._offset = None
        if self._clock is not None:
            self._clock = ArrivalClock(round(self._clock.reading(now)), now)

    def advance(self, now: float) -> list[Piece]:
        """Silence by our clock, if the microphone has been silent for longer than HOLD_OFF_S."""
        if self._clock is None:
            self._clock = ArrivalClock(0, now)
        pieces: list[Piece] = []
        self._silence += self._fill(int(self._clock.reading(now) - HOLD_OFF_S * MEDIA_RATE), pieces)
        return pieces

    def block(self, pts: int, pcm: S16Array, now: float) -> list[Piece]:
        """Places a decoded block: ``pts`` of its first sample (48 kHz, any origin), ``pcm`` (n,) int16 mono.

        A gap in the stamps becomes silence of its length. What belongs before the end of media time is dropped. Stamps
        that jump, and stamps that stay behind, are tied to our clock again. The pieces are views of ``pcm``, which
        may be kept for KEPT_LATE_S. Raises ValueError for anything but mono int16.
        """
        if pcm.ndim != 1 or pcm.dtype != np.int16:
            raise ValueError(f"a block of shape {pcm.shape} and type {pcm.dtype}; mono int16 is expected")
        pieces: list[Piece] = []
        count = len(pcm)
        if not count:
            return pieces
        if self._clock is None:
            self._clock = ArrivalClock(count, now)
        clock, offset = self._clock, self._offset
        if offset is None:
            offset = self._anchor(clock, pts, count, now)
        elif self._jumped(clock, pts, pts - offset + count, now):
            self._forget_late()
            self._re_anchored += 1
            offset = self._anchor(clock, pts, count, now)
        elif pts - offset >= self._head:
            self._forget_late()
        elif self._stays_behind(pts + count, now):
            self._re_anchored += 1
            offset = self._anchor(clock, pts, count, now)
            earlier = [kept for kept in self._late if kept[0] < pts]
            begin = earlier[0][0] - offset if earlier else pts - offset
            self._silence += self._fill(begin, pieces)
            for late_pts, late_pcm in earlier:
                self._late_dropped -= len(late_pcm)
                self._lost += self._place(clock, late_pts - offset, late_pcm, now, pieces)
            self._forget_late()
        elif pts - offset + count <= self._head:
            self._keep_late(pts, pcm)
        else:
            # What is left of this block takes the place of anything earlier.
            self._late.clear()
        gap = self._place(clock, pts - offset, pcm, now, pieces)
        if offset == self._offset:
            self._lost += gap
        else:
            self._silence += gap
        self._offset = offset
        self._next_pts = pts + count
        return pieces

    def _jumped(self, clock: ArrivalClock, pts: int, end: int, now: float) -> bool:
        """Whether the stamps no longer fit our clock: ahead of it, or far behind those of the block before."""
        ahead = end > clock.reading(now) + AHEAD_S * MEDIA_RATE or end > clock.ceiling(now)
        return ahead or pts < self._next_pts - BACKWARD_S * MEDIA_RATE

    def _stays_behind(self, end_pts: int, now: float) -> bool:
        """Whether blocks have now come late for long enough, and no faster than real time."""
        if self._late_since is None:
            self._late_since = (now, end_pts)
            return False
        since, since_pts = self._late_since
        elapsed = now - since
        if elapsed < DECIDE_S:
            return False
        if end_pts - since_pts > CATCHING_UP * elapsed * MEDIA_RATE:
            self._forget_late()
            return False
        return True

    def _keep_late(self, pts: int, pcm: S16Array) -> None:
        self._late.append((pts, pcm))
        while pts + len(pcm) - self._late[0][0] > KEPT_LATE_S * MEDIA_RATE and len(self._late) > 1:
            self._late.popleft()

    def _forget_late(self) -> None:
        self._late.clear()
        self._late_since = None

    def _anchor(self, clock: ArrivalClock, pts: int, count: int, now: float) -> int:
        """What to subtract from stamps so that a block of ``count`` samples that arrives now is one without delay."""
        return pts - max(self._head, round(clock.reading(now)) - count)

    def _place(self, clock: ArrivalClock, start: int, pcm: S16Array, now: float, pieces: list[Piece]) -> int:
        """Appends what is not taken yet of ``pcm``, which begins at media sample ``start``, and the silence before it.

        Returns how long that silence is, in samples.
        """
        end = start + len(pcm)
        if end > clock.ceiling(now):
            self._early_dropped += len(pcm)
            return 0
        taken = min(len(pcm), max(0, self._head - start))
        self._late_dropped += taken
        if taken == len(pcm):
            return 0
        gap = self._fill(start, pieces)
        pieces.append((self._head, pcm[taken:]))
        self._head = end
        clock.observe(end, now)
        return gap

    def _fill(self, end: int, pieces: list[Piece]) -> int:
        """Appends silence up to media sample ``end``; returns how many samples that took."""
        begin = self._head
        while self._head < end:
            count = min(end - self._head, len(_SILENCE))
            pieces.append((self._head, _SILENCE[:count]))
            self._head += count
        return self._head - begin
