"""Microphone blocks in virtual time: lost, late, repeated, muted, jumping, drifting. No test sleeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echo_rtc.clips import MEDIA_RATE, S16Array
from echo_rtc.media.timeline import AHEAD_S, HOLD_OFF_S, Piece, Timeline

BLOCK = 960
BLOCK_S = BLOCK / MEDIA_RATE
TICK_S = 0.02


def voice(start: int, count: int) -> S16Array:
    """Samples that tell their own number, and are never 0."""
    return (np.arange(start, start + count) % 30_011 + 1).astype(np.int16)


class Recorder:
    """Joins the pieces and checks that they are contiguous."""

    def __init__(self) -> None:
        self.pieces: list[S16Array] = []
        self.head = 0

    def take(self, pieces: list[Piece]) -> None:
        for start, pcm in pieces:
            assert start == self.head
            assert pcm.dtype == np.int16
            assert len(pcm)
            self.pieces.append(pcm)
            self.head += len(pcm)

    @property
    def media(self) -> S16Array:
        return np.concatenate(self.pieces) if self.pieces else np.zeros(0, np.int16)


class Call:
    """A microphone of ``voice`` blocks, a network and a ticking timeline, in virtual time.

    Block i holds mic samples 960 i ..., is stamped ``pts_of(i)`` and arrives when it ends, plus its delay.
    """

    def __init__(self, rate_ppm: float = 0.0) -> None:
        self.timeline = Timeline()
        self.recorder = Recorder()
        self.rate = 1.0 + rate_ppm * 1e-6
        self.arrivals: list[tuple[float, int, int]] = []

    def send(self, blocks: range, delays: list[float] | float = 0.0, pts_shift: int = 0, later_s: float = 0.0) -> None:
        for place, index in enumerate(blocks):
            delay = delays[place] if isinstance(delays, list) else delays
            ends = (index + 1) * BLOCK_S / self.rate + later_s
            self.arrivals.append((ends + delay, index * BLOCK + pts_shift, index * BLOCK))

    def run(self, until_s: float) -> S16Array:
        """Delivers everything, ticking every 20 ms (in between the blocks) until ``until_s``."""
        ticks = np.arange(0.01, until_s, TICK_S)
        events: list[tuple[float, int, int]] = [*self.arrivals, *((float(t), -1, -1) for t in ticks)]
        self.arrivals = []
        for when, pts, number in sorted(events, key=lambda event: event[0]):
            if number < 0:
                self.recorder.take(self.timeline.advance(when))
            else:
                self.recorder.take(self.timeline.block(pts, voice(number, BLOCK), when))
            assert self.recorder.head <= self.timeline.arrived(when) + BLOCK
        return self.recorder.media


def test_steady_microphone_is_passed_on_as_it_is() -> None:
    call = Call()
    call.send(range(500), pts_shift=123_456)
    media = call.run(10.0)
    assert np.array_equal(media, voice(0, 500 * BLOCK))
    statistics = call.timeline.statistics()
    assert (statistics.lost_samples, statistics.late_dropped, statistics.re_anchored) == (0, 0, 0)
    assert statistics.samples == len(media)


def test_first_block_begins_media_time() -> None:
    timeline = Timeline()
    pieces = timeline.block(987_654, voice(0, BLOCK), 1000.0)
    assert [start for start, _ in pieces] == [0]
    assert timeline.arrived(1000.0) == BLOCK
    assert timeline.arrived(1000.5) == pytest.approx(BLOCK + MEDIA_RATE / 2)


def test_lost_packets_are_silence_of_their_length() -> None:
    rng = np.random.default_rng(5)
    kept = [index for index in range(1000) if index == 0 or rng.random() > 0.1]
    timeline, recorder = Timeline(), Recorder()
    for index in kept:
        recorder.take(timeline.block(index * BLOCK, voice(index * BLOCK, BLOCK), (index + 1) * BLOCK_S))
    expected = np.zeros((kept[-1] + 1) * BLOCK, np.int16)
    for index in kept:
        expected[index * BLOCK : (index + 1) * BLOCK] = voice(index * BLOCK, BLOCK)
    assert np.array_equal(recorder.media, expected)
    statistics = timeline.statistics()
    assert statistics.lost_samples == (kept[-1] + 1 - len(kept)) * BLOCK
    assert statistics.re_anchored == statistics.late_dropped == statistics.silence_samples == 0


def test_outage_of_three_seconds_keeps_the_place_of_what_follows() -> None:
    call = Call()
    call.send(range(100))
    call.send(range(250, 400))
    media = call.run(8.0)
    assert np.array_equal(media[-150 * BLOCK :], voice(250 * BLOCK, 150 * BLOCK))
    statistics = call.timeline.statistics()
    assert statistics.re_anchored == 0
    assert statistics.lost_samples + statistics.silence_samples == pytest.approx(150 * BLOCK, abs=BLOCK)
    assert statistics.lost_samples == pytest.approx(HOLD_OFF_S * MEDIA_RATE, abs=2 * BLOCK)


def test_duplicates_and_overlaps_are_trimmed_and_counted() -> None:
    timeline, recorder = Timeline(), Recorder()
    now = 1.0
    for start, count in [(0, 960), (0, 960), (480, 960), (1440, 960), (960, 480), (2400, 960)]:
        now += BLOCK_S
        recorder.take(timeline.block(start, voice(start, count), now))
    assert np.array_equal(recorder.media, voice(0, 3360))
    assert timeline.statistics().late_dropped == 960 + 480 + 480


def test_jitter_within_the_hold_off_never_becomes_silence() -> None:
    rng = np.random.default_rng(6)
    # The network keeps the order: a block is never overtaken.
    arrives = np.maximum.accumulate(np.arange(3000) * BLOCK_S + rng.uniform(0.0, HOLD_OFF_S - 0.05, 3000))
    timeline, recorder = Timeline(), Recorder()
    tick = 0.0
    for index, when in enumerate(arrives):
        while tick < when:
            recorder.take(timeline.advance(tick) if index else [])
            tick += TICK_S
        recorder.take(timeline.block(index * BLOCK, voice(index * BLOCK, BLOCK), float(when)))
    assert np.array_equal(recorder.media, voice(0, 3000 * BLOCK))
    assert timeline.statistics().silence_samples == 0


def test_microphone_off_at_the_start_is_silence_by_our_clock() -> None:
    call = Call()
    media = call.run(5.0)
    last_tick = 5.0 - 0.01
    assert len(media) == pytest.approx((last_tick - 0.01 - HOLD_OFF_S) * MEDIA_RATE, abs=2)
    assert not media.any()
    for when in np.arange(5.0, 7.0, BLOCK_S):
        number = round((when - 5.0) / BLOCK_S) * BLOCK
        call.recorder.take(call.timeline.block(number + 77, voice(number, BLOCK), float(when)))
    media = call.recorder.media
    heard = np.flatnonzero(media)
    assert np.array_equal(media[heard[0] :], voice(0, len(media) - heard[0]))
    # The first block, without delay, ends where our clock stands.
    assert heard[0] + BLOCK == pytest.approx((5.0 - 0.01) * MEDIA_RATE, abs=2)
    assert call.timeline.statistics().re_anchored == 0


def test_muted_microphone_whose_stamps_run_on() -> None:
    call = Call(rate_ppm=150)
    call.send(range(10_000))
    call.send(range(16_000, 16_500))
    media = call.run(330.0)
    assert np.array_equal(media[-500 * BLOCK :], voice(16_000 * BLOCK, 500 * BLOCK))
    assert call.timeline.statistics().re_anchored == 0
    # After two minutes by our clock, corrected by the drift measured before, the block fits to a millisecond or two.
    silent = np.flatnonzero(media[len(media) // 2 :] == 0)
    assert len(silent) == pytest.approx(6000 * BLOCK, abs=0.003 * MEDIA_RATE)


def test_muted_microphone_whose_stamps_stood_still_loses_no_word() -> None:
    call = Call()
    call.send(range(100))
    call.send(range(100, 300), later_s=7.0)
    media = call.run(13.0)
    sound = media[media != 0]
    assert np.array_equal(sound[-299 * BLOCK :], voice(BLOCK, 299 * BLOCK))
    statistics = call.timeline.statistics()
    assert statistics.re_anchored == 1
    assert statistics.late_dropped == 0
    assert statistics.silence_samples + statistics.lost_samples == pytest.approx(7.0 * MEDIA_RATE, abs=2 * BLOCK)
    # Media time is where our clock is: the pause is as long as it was.
    assert len(media) == pytest.approx(call.timeline.arrived(13.0), abs=2 * BLOCK)


def test_a_stall_and_a_burst_drop_late_sound_and_keep_the_place() -> None:
    call = Call()
    call.send(range(100))
    # One second of blocks is held up and comes at once.
    call.send(range(100, 150), delays=[(149 - index) * BLOCK_S for index in range(100, 150)])
    call.send(range(150, 300))
    media = call.run(6.0)
    statistics = call.timeline.statistics()
    assert statistics.re_anchored == 0
    assert statistics.late_dropped == pytest.approx((1.0 - HOLD_OFF_S) * MEDIA_RATE, abs=2 * BLOCK)
    assert np.array_equal(media[-150 * BLOCK :], voice(150 * BLOCK, 150 * BLOCK))
    expected = len(media) - 300 * BLOCK
    assert np.array_equal(np.flatnonzero(media == 0)[:1], [expected + 100 * BLOCK])


def test_burst_that_takes_its_time_is_still_a_burst() -> None:
    call = Call()
    call.send(range(100))
    # The network stands still for a second and then delivers three times faster than time goes by.
    call.send(range(100, 175), delays=[1.0 - (index - 100) * BLOCK_S * 2 / 3 for index in range(100, 175)])
    call.send(range(175, 300))
    media = call.run(6.0)
    assert call.timeline.statistics().re_anchored == 0
    assert np.array_equal(media[-125 * BLOCK :], voice(175 * BLOCK, 125 * BLOCK))
    assert len(media) == 300 * BLOCK


def test_way_that_becomes_longer_for_good_is_followed() -> None:
    call = Call()
    call.send(range(100))
    call.send(range(100, 1100), delays=0.4)
    media = call.run(22.4)
    statistics = call.timeline.statistics()
    assert statistics.re_anchored == 1
    assert statistics.late_dropped <= 0.1 * MEDIA_RATE
    sound = media[media != 0]
    assert np.array_equal(sound[-1000 * BLOCK :], voice(100 * BLOCK, 1000 * BLOCK))


def test_slightly_late_way_is_not_cut_to_pieces() -> None:
    call = Call()
    call.send(range(100))
    call.send(range(100, 300), delays=HOLD_OFF_S + 0.015)
    media = call.run(6.2)
    statistics = call.timeline.statistics()
    assert statistics.re_anchored == 1
    assert statistics.late_dropped <= 0.15 * MEDIA_RATE
    assert np.array_equal(media[-180 * BLOCK :], voice(120 * BLOCK, 180 * BLOCK))


def test_kept_blocks_never_come_after_later_ones() -> None:
    call = Call()
    call.send(range(100))
    # The first late block has no room at all, the second a little, those after it none again.
    call.send(range(100, 140), delays=[0.225, 0.205, *[0.225] * 38])
    media = call.run(2.9)
    numbers = media[media != 0].astype(np.int64)
    steps = np.diff(numbers) % 30_011
    assert np.all((steps > 0) & (steps < 10 * BLOCK))
    assert call.timeline.statistics().re_anchored == 1


@pytest.mark.parametrize("jump", [2**32, -(2**32), 60 * MEDIA_RATE, -60 * MEDIA_RATE, MEDIA_RATE, -2 * MEDIA_RATE])
def test_jump_of_the_stamps_is_heard_as_if_nothing_was(jump: int) -> None:
    call = Call()
    call.send(range(200))
    call.send(range(200, 400), pts_shift=jump)
    media = call.run(8.0)
    assert np.array_equal(media[-399 * BLOCK :], voice(BLOCK, 399 * BLOCK))
    statistics = call.timeline.statistics()
    assert statistics.re_anchored == 1
    assert statistics.late_dropped == statistics.early_dropped == 0


def test_small_jump_back_loses_nothing_that_is_not_late() -> None:
    call = Call()
    call.send(range(200))
    call.send(range(200, 400), pts_shift=-MEDIA_RATE // 2)
    media = call.run(8.0)
    assert np.array_equal(media[-190 * BLOCK :], voice(210 * BLOCK, 190 * BLOCK))
    assert call.timeline.statistics().re_anchored == 1


def test_sender_faster_than_time_cannot_run_ahead() -> None:
    timeline, recorder = Timeline(), Recorder()
    for index in range(20_000):
        now = index * BLOCK_S / 100
        recorder.take(timeline.block(index * BLOCK, voice(index * BLOCK, BLOCK), now))
        assert recorder.head <= (now + AHEAD_S + 0.01) * MEDIA_RATE + BLOCK
    assert timeline.statistics().early_dropped > 0.5 * 20_000 * BLOCK
    # When it becomes honest its sound is heard again at once.
    for index in range(20_000, 20_100):
        now += BLOCK_S
        recorder.take(timeline.block(index * BLOCK, voice(index * BLOCK, BLOCK), now))
    assert np.array_equal(recorder.media[-90 * BLOCK :], voice(20_010 * BLOCK, 90 * BLOCK))


@pytest.mark.parametrize("ppm", [-200.0, 0.0, 200.0])
def test_drift_is_measured_through_jitter(ppm: float) -> None:
    rng = np.random.default_rng(7)
    timeline = Timeline()
    rate = 1.0 + ppm * 1e-6
    when = np.maximum.accumulate(np.arange(30_000) * BLOCK_S / rate + rng.exponential(0.03, 30_000).clip(0, 0.18))
    readings = []
    for index, now in enumerate(when):
        timeline.block(index * BLOCK, voice(0, BLOCK), float(now))
        if index > 2000:
            true = BLOCK + float(now) * MEDIA_RATE * rate
            readings.append(timeline.arrived(float(now)) - true)
    assert timeline.drift_ppm == pytest.approx(ppm, abs=15.0)
    assert max(readings) - min(readings) < 0.005 * MEDIA_RATE


def test_drift_survives_a_way_that_becomes_longer() -> None:
    timeline = Timeline()
    for index in range(30_000):
        delay = 0.12 if index > 15_000 else 0.0
        timeline.block(index * BLOCK, voice(0, BLOCK), index * BLOCK_S / 1.0001 + delay)
    assert timeline.drift_ppm == pytest.approx(100.0, abs=30.0)
    # The reading has followed the longer way.
    assert timeline.arrived(600.0) == pytest.approx(
        (600.0 - 0.12) * 1.0001 * MEDIA_RATE + BLOCK, abs=0.004 * MEDIA_RATE
    )


def test_silence_of_an_hour_takes_no_memory() -> None:
    timeline = Timeline()
    timeline.advance(0.0)
    pieces = timeline.advance(3600.0)
    assert sum(len(pcm) for _, pcm in pieces) == round((3600 - HOLD_OFF_S) * MEDIA_RATE)
    assert len({id(pcm.base) for _, pcm in pieces}) == 1
    assert not pieces[0][1].flags.writeable


def test_clock_that_stands_still_harms_nothing() -> None:
    timeline, recorder = Timeline(), Recorder()
    for index, now in enumerate([5.0, 5.0, 5.0, 5.0, 5.02]):
        recorder.take(timeline.block(index * BLOCK, voice(index * BLOCK, BLOCK), now))
        recorder.take(timeline.advance(now))
    assert np.array_equal(recorder.media, voice(0, 5 * BLOCK))


@pytest.mark.parametrize("pcm", [np.zeros((960, 2), np.int16), np.zeros(960, np.float32)])
def test_wrong_blocks_are_refused(pcm: S16Array) -> None:
    with pytest.raises(ValueError, match="mono int16 is expected"):
        Timeline().block(0, pcm, 0.0)


def test_empty_block_is_nothing() -> None:
    assert Timeline().block(0, np.zeros(0, np.int16), 0.0) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.6)), min_size=1, max_size=80))
def test_sound_comes_out_once_and_in_order_however_late(delays: list[float]) -> None:
    timeline, recorder = Timeline(), Recorder()
    # Every fourth delay lasts for a while, so that blocks come late by the dozen too.
    arrives = np.maximum.accumulate([index * BLOCK_S + delays[index - index % 4] for index in range(len(delays))])
    recorder.take(timeline.advance(0.0))
    tick = 0.0
    for index, now in enumerate(arrives):
        while tick < now:
            recorder.take(timeline.advance(tick))
            tick += TICK_S
        recorder.take(timeline.block(index * BLOCK, np.full(BLOCK, index + 1, np.int16), float(now)))
    heard = recorder.media[recorder.media > 0]
    assert np.all(np.diff(heard) >= 0)
    assert len(heard) == len(delays) * BLOCK - timeline.statistics().late_dropped
    assert np.bincount(heard).max() <= BLOCK


Event = tuple[str, int, int, float]

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["block", "block", "block", "tick"]),
        st.one_of(st.just(0), st.integers(-5000, 5000), st.integers(-(2**33), 2**33)),
        st.integers(0, 5760),
        st.one_of(st.just(0.02), st.floats(0.0, 0.3), st.floats(0.0, 20.0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@example(
    [
        ("block", 0, 3366, 0.02),
        ("block", 0, 5176, 0.02),
        ("tick", 0, 0, 0.25),
        ("block", 0, 1, 0.02),
        ("block", -22194, 1, 0.25),
    ]
)
@example(
    [
        ("block", 0, 1, 0.02),
        *[("block", 0, 1, 10.0)] * 2,
        ("block", 0, 0, 10.0),
        ("block", 0, 1, 0.02),
        ("block", 0, 1, 0.0),
        *[("block", 0, 1, 10.0)] * 3,
    ]
)
@given(EVENTS)
def test_pieces_are_contiguous_whatever_comes(events: list[Event]) -> None:
    timeline, recorder = Timeline(), Recorder()
    now, pts, given = 100.0, 0, 0
    began = None
    for kind, jump, count, wait in events:
        now += wait
        if kind == "tick":
            recorder.take(timeline.advance(now))
            began = now if began is None else began
        else:
            pts += jump
            recorder.take(timeline.block(pts, voice(given, count), now))
            pts += count
            given += count
            began = now if began is None and count else began
        if began is not None:
            elapsed = (now - began) * (1 + 500e-6) + AHEAD_S
            assert recorder.head <= elapsed * MEDIA_RATE + 5760 + 1
    statistics = timeline.statistics()
    assert statistics.samples == recorder.head
    sound = int(np.count_nonzero(recorder.media))
    assert sound == given - statistics.late_dropped - statistics.early_dropped
    assert statistics.samples == sound + statistics.lost_samples + statistics.silence_samples
