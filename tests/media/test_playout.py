"""The playout alone: what each method promises, its clock, its line and its bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.clips import MEDIA_RATE, AudioClip, ClipFormat, S16Array, YuvFrames
from echo_rtc.media.delay_line import SLACK_S, DelayPolicy
from echo_rtc.media.playout import HOLD_LIMIT_S, FrameKind, Playout
from echo_rtc.media.slewed_clock import MAX_SLEW, SlewedClock
from echo_rtc.media.sound_ring import SoundRing
from tests.media.rig import FORMAT, IDLE, IDLE_FRAMES, is_idle, number_of, numbered_frames

POLICY = DelayPolicy(render_s=0.1, margin_s=0.2)
DELAY_S = 0.5 + 0.1 + 0.2
CLIP = MEDIA_RATE // 2


def clip(index: int, clip_format: ClipFormat = FORMAT) -> AudioClip:
    frames = clip_format.clip_frames
    own = clip_format.sample_of_frame(frames, clip_format.sample_rate)
    return AudioClip(index, index * frames, frames, np.zeros(own, np.float32), own)


def sound(start: int, count: int) -> S16Array:
    return (np.arange(start, start + count) % 30_011 + 1).astype(np.int16)


class Driver:
    """Feeds a playout clip by clip, at the pace of its own sound, beginning at second 100."""

    def __init__(self, policy: DelayPolicy = POLICY) -> None:
        self.playout = Playout(FORMAT, IDLE, policy)
        self.playout.discipline(0.0, 100.0)
        self.clips = 0

    def hear(self, rendered: bool) -> int:
        """Half a second more of sound, and the gate's word on it."""
        index = self.clips
        self.clips += 1
        now = 100.0 + self.clips / 2
        self.playout.discipline(self.clips * CLIP, now)
        self.playout.push_sound(index * CLIP, sound(index * CLIP, CLIP), now)
        self.playout.expect(clip(index), rendered)
        return index

    def put(self, index: int, render_s: float = 0.1) -> None:
        self.playout.put(index, numbered_frames(12 * index, 12), render_s, 100.5)

    def show(self, numbers: range) -> list[tuple[FrameKind, int]]:
        return [(kind, number_of(frame)) for frame, kind in map(self.playout.frame, numbers)]


R, I, H = FrameKind.RENDERED, FrameKind.IDLE, FrameKind.HELD  # noqa: E741


def test_before_the_first_sound_nothing_is_due() -> None:
    playout = Playout(FORMAT, IDLE, POLICY)
    assert playout.media_now(5.0) == -round(DELAY_S * MEDIA_RATE)
    assert playout.due(0) == math.inf
    assert playout.delay_s == pytest.approx(DELAY_S)


def test_sound_and_picture_start_a_delay_after_the_first_sample() -> None:
    playout = Playout(FORMAT, IDLE, POLICY)
    playout.discipline(960.0, 100.02)
    assert playout.due(0) == pytest.approx(100.0 + DELAY_S)
    assert playout.media_now(100.02) < 0
    assert playout.media_now(playout.due(0)) == 0
    assert playout.playout_time(4800) == pytest.approx(100.1 + DELAY_S)


def test_start_moves_with_the_clock_until_something_is_asked_for() -> None:
    playout = Playout(FORMAT, IDLE, POLICY)
    playout.discipline(0.0, 100.0)
    playout.discipline(4800.0, 100.05)
    assert playout.due(0) == pytest.approx(99.95 + DELAY_S)
    playout.frame(0)
    playout.discipline(9600.0, 100.1)
    assert playout.due(0) == pytest.approx(99.95 + DELAY_S, abs=1e-3)


def test_sound_alone_starts_the_clock() -> None:
    playout = Playout(FORMAT, IDLE, POLICY)
    playout.push_sound(0, sound(0, 960), 100.02)
    assert playout.due(0) == pytest.approx(100.0 + DELAY_S)


def test_frames_by_kind() -> None:
    driver = Driver()
    for rendered in (False, True, True, False):
        index = driver.hear(rendered)
        if rendered:
            driver.put(index)
    expected = (
        [(I, n) for n in range(12)] + [(R, n) for n in range(12, 36)] + [(I, n % IDLE_FRAMES) for n in range(36, 48)]
    )
    assert driver.show(range(48)) == expected
    statistics = driver.playout.statistics()
    assert (statistics.rendered, statistics.idle, statistics.held, statistics.dropped) == (24, 24, 0, 0)


def test_pictures_are_views_of_the_idle_loop_or_the_clip() -> None:
    driver = Driver()
    driver.hear(False)
    driver.hear(True)
    frames = numbered_frames(12, 12)
    driver.playout.put(1, frames, 0.1, 101.0)
    assert np.shares_memory(driver.playout.frame(3)[0].y, IDLE.y)
    assert np.shares_memory(driver.playout.frame(15)[0].y, frames.y)


def test_late_clip_holds_then_goes_on_in_its_place() -> None:
    driver = Driver()
    driver.put(driver.hear(True))
    driver.hear(True)
    assert driver.show(range(17))[12:] == [(H, 11)] * 5
    assert driver.playout.statistics().dropped == 0
    driver.put(1)
    assert driver.playout.statistics().dropped == 5
    assert driver.show(range(17, 24)) == [(R, n) for n in range(17, 24)]
    statistics = driver.playout.statistics()
    assert (statistics.rendered, statistics.held, statistics.dropped) == (19, 5, 5)


def test_clip_that_comes_after_its_time_is_dropped_whole() -> None:
    driver = Driver()
    for _ in range(3):
        driver.hear(True)
    driver.put(0)
    driver.put(2)
    assert [kind for kind, _ in driver.show(range(30))] == [R] * 12 + [H] * 12 + [R] * 6
    driver.put(1)
    assert driver.playout.statistics().dropped == 12
    assert driver.show(range(30, 36)) == [(R, n) for n in range(30, 36)]


def test_frames_not_read_in_time_are_late_by_the_clock() -> None:
    driver = Driver()
    driver.hear(True)
    # Position 0 left 0.8 s after second 100; frame 6 is leaving.
    driver.playout.put(0, numbered_frames(0, 12), 0.1, 100.0 + DELAY_S + 6.5 / 24)
    assert driver.playout.statistics().dropped == 6
    assert driver.show(range(4, 8)) == [(I, 4), (H, 4), (R, 6), (R, 7)]


def test_clips_may_come_in_any_order() -> None:
    driver = Driver()
    for _ in range(3):
        driver.hear(True)
    for index in (2, 0, 1):
        driver.put(index)
    assert driver.show(range(36)) == [(R, n) for n in range(36)]


def test_the_end_of_a_clip_can_be_blended_until_it_is_shown() -> None:
    driver = Driver()
    for _ in range(2):
        driver.put(driver.hear(True))
    driver.playout.blend(0, numbered_frames(106, 6))
    shown = [number_of(driver.playout.frame(number)[0]) for number in range(20)]
    driver.playout.blend(1, numbered_frames(118, 6))
    shown += [number_of(driver.playout.frame(number)[0]) for number in range(20, 24)]
    assert shown == [*range(6), *range(106, 112), *range(12, 20), *range(120, 124)]
    driver.playout.blend(0, numbered_frames(6, 6))  # long shown: nothing happens
    statistics = driver.playout.statistics()
    assert (statistics.rendered, statistics.dropped) == (24, 0)
    with pytest.raises(ValueError, match="13 frames cannot be blended into a clip of 12"):
        driver.playout.blend(1, numbered_frames(0, 13))


def test_a_lost_clip_holds_a_frame_until_the_next_silence() -> None:
    driver = Driver()
    driver.put(driver.hear(True))
    driver.playout.lose(driver.hear(True))
    driver.hear(False)
    assert driver.show(range(36))[12:] == [(H, 11)] * 12 + [(I, n) for n in range(24, 31)] + [(I, n) for n in range(5)]
    assert driver.playout.statistics().lost_clips == 1


def test_no_face_is_frozen_for_longer_than_the_limit() -> None:
    driver = Driver(DelayPolicy(render_s=0.1, max_latency_s=10.0))
    driver.put(driver.hear(True))
    for _ in range(8):
        driver.playout.lose(driver.hear(True))
    driver.put(driver.hear(True))
    kinds = [kind for kind, _ in driver.show(range(120))]
    limit = round(HOLD_LIMIT_S * 24)
    assert kinds == [R] * 12 + [H] * limit + [I] * (96 - limit) + [R] * 12


def test_a_lost_clip_that_comes_after_all_is_shown() -> None:
    driver = Driver()
    driver.playout.lose(driver.hear(True))
    driver.put(0)
    assert driver.show(range(12)) == [(R, n) for n in range(12)]


def test_speech_that_is_late_at_its_onset_holds_the_idle_picture() -> None:
    driver = Driver()
    driver.hear(False)
    driver.hear(True)
    assert driver.show(range(14))[11:] == [(I, 11), (H, 11), (H, 11)]
    frame, _ = driver.playout.frame(13)
    assert is_idle(frame)


def test_without_the_gates_word_what_went_on_goes_on() -> None:
    driver = Driver()
    driver.hear(False)
    assert [kind for kind, _ in driver.show(range(20))] == [I] * 20
    speaking = Driver()
    speaking.put(speaking.hear(True))
    assert [kind for kind, _ in speaking.show(range(20))] == [R] * 12 + [H] * 8


def test_frames_go_forward_and_the_last_may_be_asked_again() -> None:
    driver = Driver()
    driver.put(driver.hear(True))
    first = driver.playout.frame(3)
    assert driver.playout.frame(3) is first
    with pytest.raises(ValueError, match="numbers go forward"):
        driver.playout.frame(2)
    driver.playout.frame(12)
    statistics = driver.playout.statistics()
    assert (statistics.rendered, statistics.held, statistics.skipped, statistics.dropped) == (1, 1, 11, 11)


def test_echo_is_exact_and_silent_where_nothing_is_known() -> None:
    driver = Driver()
    driver.hear(True)
    playout = driver.playout
    assert np.array_equal(playout.sound(0, 960), sound(0, 960))
    assert np.array_equal(playout.sound(-480, 960), np.concatenate([np.zeros(480, np.int16), sound(0, 480)]))
    assert playout.statistics().underrun_samples == 0
    assert np.array_equal(
        playout.sound(CLIP - 480, 960), np.concatenate([sound(CLIP - 480, 480), np.zeros(480, np.int16)])
    )
    playout.sound(CLIP + 480, 960)
    playout.sound(CLIP + 480, 960)
    statistics = playout.statistics()
    assert (statistics.underruns, statistics.underrun_samples) == (1, 480 + 960)


def test_the_delay_follows_the_slowest_of_twenty_clips() -> None:
    driver = Driver(DelayPolicy(render_s=0.0, margin_s=0.2, max_latency_s=2.0))
    assert driver.playout.statistics().target_delay_s == pytest.approx(0.7)
    for place in range(60):
        driver.put(driver.hear(True), render_s=1.0 if place % 20 == 7 else 0.3)
        driver.playout.frame(12 * place + 11)
    assert driver.playout.statistics().render_p95_s == pytest.approx(0.3)
    driver.put(driver.hear(True), render_s=0.9)
    assert driver.playout.statistics().target_delay_s == pytest.approx(0.5 + 0.9 + 0.2)
    for _ in range(6):
        driver.put(driver.hear(True), render_s=30.0)
    assert driver.playout.statistics().target_delay_s == pytest.approx(2.0)


def test_sound_that_comes_late_counts_as_rendering() -> None:
    playout = Playout(FORMAT, IDLE, DelayPolicy(render_s=0.0))
    for index in range(2):
        now = 100.0 + index / 2
        playout.discipline(index * CLIP, now)
        playout.push_sound(index * CLIP, sound(index * CLIP, CLIP), now + 0.65)
        playout.expect(clip(index), True)
        playout.put(index, numbered_frames(12 * index, 12), 0.1, now + 0.75)
    assert playout.statistics().render_p95_s == pytest.approx(0.25)


def test_memory_is_bounded_without_requests() -> None:
    driver = Driver()
    for _ in range(400):
        driver.put(driver.hear(True))
    kept = POLICY.max_latency_s + SLACK_S
    assert len(driver.playout._store) <= kept / 0.5 + 1
    assert driver.playout._line.ring.capacity == math.ceil(kept * MEDIA_RATE)
    assert driver.playout.statistics().dropped == 12 * (400 - len(driver.playout._store))
    driver.put(0)
    assert driver.playout.statistics().dropped == 12 * (401 - len(driver.playout._store))


def test_frames_are_let_go_as_soon_as_they_have_left() -> None:
    driver = Driver()
    for _ in range(3):
        driver.put(driver.hear(True))
    driver.show(range(25))
    assert driver.playout._store.rendered_clips == [False, False, True]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.push_sound(5, sound(0, 10), 1.0), "does not follow on sample 0"),
        (lambda p: p.push_sound(0, np.zeros(10, np.float32), 1.0), "mono int16 is expected"),
        (lambda p: p.push_sound(0, np.zeros((10, 2), np.int16), 1.0), "mono int16 is expected"),
        (lambda p: p.expect(clip(3), True), "clip 2 is next"),
        (lambda p: p.expect(AudioClip(2, 24, 11, np.zeros(9, np.float32), 9), True), "clips have 12"),
        (lambda p: p.put(2, numbered_frames(0, 12), 0.1, 1.0), "never announced"),
        (lambda p: p.put(-1, numbered_frames(0, 12), 0.1, 1.0), "never announced"),
        (lambda p: p.put(1, numbered_frames(0, 12), 0.1, 1.0), "announced as silence"),
        (lambda p: p.lose(1), "announced as silence"),
        (lambda p: p.put(0, numbered_frames(0, 13), 0.1, 1.0), "12 are expected"),
        (lambda p: p.put(0, numbered_frames(0, 12), math.nan, 1.0), "took nan s"),
        (lambda p: p.put(0, numbered_frames(0, 12), -1.0, 1.0), r"took -1\.0 s"),
    ],
)  # fmt: skip
def test_wrong_calls_are_refused(act: object, message: str) -> None:
    playout = Playout(FORMAT, IDLE, POLICY)
    playout.expect(clip(0), True)
    playout.expect(clip(1), False)
    assert callable(act)
    with pytest.raises(ValueError, match=message):
        act(playout)


def test_frames_come_in_runs_and_each_is_late_by_itself() -> None:
    """The second run came when two of its frames had passed: the frame before them is held, the rest is shown."""
    driver = Driver()
    driver.hear(True)
    driver.playout.put(0, numbered_frames(0, 4), 0.1, 100.7)
    assert driver.show(range(6)) == [(R, 0), (R, 1), (R, 2), (R, 3), (H, 3), (H, 3)]
    driver.playout.put(0, numbered_frames(4, 8), 0.5, 101.0)
    assert driver.show(range(6, 8)) == [(R, 6), (R, 7)]
    assert driver.playout.statistics().dropped == 2
    with pytest.raises(ValueError, match="came twice"):
        driver.put(0)
    driver.hear(True)
    driver.playout.put(1, numbered_frames(12, 4), 0.1, 101.2)
    assert driver.playout.statistics().render_p95_s == pytest.approx(0.1)
    driver.playout.put(1, numbered_frames(16, 8), 0.5, 101.5)
    assert driver.playout.statistics().render_p95_s == pytest.approx(0.5 - 4 / 24)
    driver.hear(True)
    driver.playout.put(2, numbered_frames(24, 7), 0.1, 101.7)
    with pytest.raises(ValueError, match="clip 2 has 13 frames; 12 are expected"):
        driver.playout.put(2, numbered_frames(31, 6), 0.2, 101.8)


def test_frames_twice_or_of_another_size_are_refused() -> None:
    driver = Driver()
    driver.put(driver.hear(True))
    with pytest.raises(ValueError, match="came twice"):
        driver.put(0)
    driver.hear(True)
    small = YuvFrames(*(np.zeros((12, side, side), np.uint8) for side in (8, 4, 4)))
    with pytest.raises(ValueError, match="16x16 are expected"):
        driver.playout.put(1, small, 0.1, 1.0)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="idle loop is empty"):
        Playout(FORMAT, IDLE[:0], POLICY)
    with pytest.raises(ValueError, match="the idle loop has 16x16"):
        Playout(ClipFormat(), IDLE, POLICY)
    with pytest.raises(ValueError, match="longer than a clip"):
        Playout(FORMAT, IDLE, DelayPolicy(render_s=0.1, max_latency_s=0.5))
    with pytest.raises(ValueError, match=r"margin_s is -0\.1"):
        DelayPolicy(render_s=0.1, margin_s=-0.1)
    with pytest.raises(ValueError, match="render_s is inf"):
        DelayPolicy(render_s=math.inf)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-4, 100.0), st.floats(-1e6, 1e6)), max_size=20), st.integers(-(10**9), 10**9))
def test_clock_is_continuous_rising_and_close_to_nominal(steers: list[tuple[float, float]], position: int) -> None:
    clock, now = SlewedClock(-40_000.0, 1e5), 1e5
    last = clock.position(now)
    for wait, behind in steers:
        now += wait
        before = clock.position(now)
        clock.steer(behind, now)
        assert clock.position(now) == pytest.approx(before, abs=1e-3)
        assert before > last
        assert abs(clock.rate - 1.0) <= MAX_SLEW
        last = before
    assert clock.position(clock.time_of(position)) == pytest.approx(position, abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.floats(0.0, 1e6))
def test_media_now_is_the_inverse_of_due(position: int, began: float) -> None:
    playout = Playout(FORMAT, IDLE, POLICY)
    playout.discipline(0.0, began)
    playout.frame(0)
    playout.discipline(70_000.0, began + 1.0)
    assert playout.media_now(playout.due(position)) == position
    assert playout.media_now(playout.due(position) - 1e-6) == position - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=20), st.integers(1, 500), st.integers(-100, 4000), st.integers(0, 900))
def test_line_reads_what_was_pushed_and_silence_elsewhere(
    sizes: list[int], capacity: int, start: int, count: int
) -> None:
    line = SoundRing(capacity)
    for size in sizes:
        line.push(sound(line.head, size))
    everything = np.zeros(20_000, np.int16)
    everything[100 + line.base : 100 + line.head] = sound(line.base, line.head - line.base)
    assert line.head == sum(sizes)
    assert line.base == max(0, line.head - capacity)
    assert np.array_equal(line.read(start, count), everything[100 + start : 100 + start + count])


def test_loudest_finds_the_loudest_hundredth() -> None:
    line = SoundRing(48_000)
    pcm = np.zeros(9600, np.int16)
    pcm[4800:5280] = 3277
    line.push(pcm)
    assert line.loudest(0, 9600) == pytest.approx(0.1, rel=1e-3)
    assert line.loudest(5280, 9600) == 0.0


@pytest.mark.parametrize("heard_ms", [0, 20])
def test_a_jump_lets_nothing_begin_that_was_not_heard(heard_ms: int) -> None:
    """Speech that begins just behind what has left is not heard at all; speech that is heard fades out."""
    playout = Playout(FORMAT, IDLE, POLICY)
    playout.discipline(0.0, 100.0)
    begin, heard = 4_800, heard_ms * 48
    pcm = np.zeros(MEDIA_RATE, np.int16)
    pcm[begin : MEDIA_RATE // 2] = 8000
    playout.push_sound(0, pcm, 101.0)
    left = begin - 48 + heard
    before = playout.sound(0, left)
    playout.jump(FORMAT.frame_of_sample(MEDIA_RATE // 2, MEDIA_RATE) + 2, 100.0 + DELAY_S + left / MEDIA_RATE)
    whole = np.concatenate((before, playout.sound(left, 4_800))).astype(np.int32)
    assert np.abs(np.diff(whole)[left - 1 :]).max() < 100, "no click"
    assert np.count_nonzero(whole) <= (max(0, heard - 48) + 480 if heard else 0)
