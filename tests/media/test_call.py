"""Whole calls in virtual time: what is heard and seen when packets, microphone, clocks and renderer misbehave."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from echo_rtc.clips import MEDIA_RATE, AudioClip
from echo_rtc.media.clipper import Clipper
from echo_rtc.media.delay_line import GUARD_S, SLACK_S, DelayPolicy
from echo_rtc.media.gate import SpeechGate
from echo_rtc.media.playout import HOLD_LIMIT_S, FrameKind, Playout
from echo_rtc.media.slewed_clock import MAX_SLEW
from echo_rtc.media.timeline import Timeline
from tests.media.rig import FORMAT, IDLE, LEAD_S, Rig, loud, numbered_frames, voice

POLICY = DelayPolicy(render_s=0.1, margin_s=0.2)
DELAY_S = 0.8
FRAME_S = 1 / 24


def delays_between(rig: Rig, begin_s: float, end_s: float) -> NDArray[np.float64]:
    return np.array([delay for when, delay in rig.delays if begin_s <= when < end_s])


def test_what_is_heard_is_what_was_said_one_delay_later() -> None:
    rig = Rig(POLICY)
    said = voice(10.0, [(3.0, 5.0)])
    rig.speak(said)
    rig.run(10.0)
    heard = rig.heard
    assert np.array_equal(heard, said[: len(heard)])
    assert len(heard) == pytest.approx((10.0 - DELAY_S + LEAD_S) * MEDIA_RATE, abs=2 * 960)
    rig.assert_in_step()
    # 3.0 s is clip 6: one more clip closes the mouth, then the idle loop shows until clip 10.
    assert (
        rig.kinds()[: 11 * 12] == [FrameKind.RENDERED] * 7 * 12 + [FrameKind.IDLE] * 3 * 12 + [FrameKind.RENDERED] * 12
    )
    idle = [shown for shown in rig.shown if shown.kind is FrameKind.IDLE]
    assert all(shown.source == shown.number % 31 for shown in idle)
    statistics = rig.playout.statistics()
    assert statistics.held == statistics.dropped == statistics.underruns == statistics.skipped == 0


@pytest.mark.parametrize("run_frames", [2, 4, 5])
def test_a_clip_is_shown_while_its_last_frames_are_decoded(run_frames: int) -> None:
    """The delay has room for the first frames of a clip only, and no frame is late."""
    decode_s = 0.3
    first_s = 0.4 - decode_s * (1 - run_frames / 12)
    rig = Rig(DelayPolicy(0.4, margin_s=0.1), lambda _: 0.4, chained=True, run_frames=run_frames, decode_s=decode_s)
    rig.speak(voice(30.0, [(15.0, 20.0)]))
    rig.run(30.0)
    statistics = rig.playout.statistics()
    assert statistics.render_p95_s == pytest.approx(first_s)
    assert statistics.target_delay_s == pytest.approx(0.6 + first_s)
    assert statistics.delay_s == pytest.approx(0.6 + first_s, abs=0.16)
    assert statistics.held == 0
    assert statistics.dropped <= statistics.cut
    rig.assert_in_step()


def test_lost_packets_are_silence_and_all_else_is_exact() -> None:
    rng = np.random.default_rng(11)
    lost = set(np.flatnonzero(rng.random(1500) < 0.1).tolist()) - {0}
    delays = [0.0, *rng.exponential(0.01, 1499).tolist()]
    said = voice(30.0)
    rig = Rig(POLICY)
    rig.speak(said, delay_s=lambda index: None if index in lost else delays[index])
    rig.run(30.0)
    expected = said.copy()
    for index in lost:
        expected[index * 960 : (index + 1) * 960] = 0
    heard = rig.heard
    assert np.array_equal(heard, expected[: len(heard)])
    assert rig.timeline.statistics().lost_samples == pytest.approx(len(lost) * 960, abs=3 * 960)
    rig.assert_in_step()
    assert rig.playout.statistics().held == 0


def test_microphone_off_at_the_start_shows_the_idle_loop() -> None:
    rig = Rig(POLICY)
    rig.speak(voice(6.0), begin_s=4.0)
    rig.run(10.0)
    kinds = rig.kinds()
    assert set(kinds[: 7 * 12]) == {FrameKind.IDLE}
    assert set(kinds[9 * 12 :]) == {FrameKind.RENDERED}
    heard = rig.heard
    assert not heard[: 4 * MEDIA_RATE - 960].any()
    said = loud(heard)
    assert np.array_equal(said, voice(6.0)[: len(said)])
    rig.assert_in_step()
    assert rig.playout.statistics().underruns == 0


@pytest.mark.parametrize("frozen", [False, True], ids=["stamps run on", "stamps stand still"])
def test_muted_and_resumed_microphone(frozen: bool) -> None:
    rig = Rig(POLICY)
    first, second = voice(5.0, seed=1), voice(5.0, seed=2)
    rig.speak(first)
    rig.speak(second, begin_s=12.0, pts=len(first) if frozen else 12 * MEDIA_RATE)
    rig.run(17.0)
    heard = rig.heard
    assert np.array_equal(loud(heard), np.concatenate([first, second])[: len(loud(heard))])
    # The pause is as long as it was.
    silent = np.flatnonzero(np.abs(heard.astype(np.int32)) <= 2000)
    assert len(silent) == pytest.approx(7.0 * MEDIA_RATE, abs=2 * 960)
    rig.assert_in_step()
    statistics = rig.playout.statistics()
    assert statistics.underruns == 0
    # The silence in which the mouth closes comes HOLD_OFF_S late, by our clock: a frame or two of it may be.
    assert statistics.held == statistics.dropped <= 3
    assert statistics.delay_s == pytest.approx(DELAY_S, abs=0.03)


@pytest.mark.parametrize("jump", [2**32, -(2**31), 48_000 * 100])
def test_replaced_track_goes_on_where_the_other_ended(jump: int) -> None:
    rig = Rig(POLICY)
    said = voice(8.0)
    rig.speak(said[: 4 * MEDIA_RATE])
    rig.speak(said[4 * MEDIA_RATE :], begin_s=4.0, pts=4 * MEDIA_RATE + jump)
    rig.run(8.0)
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    rig.assert_in_step()
    assert rig.timeline.statistics().re_anchored == 1


def test_late_clips_hold_and_drop_frames_but_never_sound() -> None:
    said = voice(12.0)
    rig = Rig(POLICY, render=lambda index: 0.5 if index == 10 else 0.1)
    rig.speak(said)
    rig.run(12.0)
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    rig.assert_in_step()
    statistics = rig.playout.statistics()
    # 0.5 s instead of at most 0.3 s, taken 0.06 s ahead: a quarter of a second of twelve frames.
    assert 4 <= statistics.held == statistics.dropped <= 7
    assert statistics.delay_s == pytest.approx(DELAY_S, abs=0.01)
    held = [shown.number for shown in rig.shown if shown.kind is FrameKind.HELD]
    assert held == list(range(120, 120 + len(held)))


def test_dead_clips_hold_then_rest_and_speech_comes_back() -> None:
    said = voice(20.0, [(12.0, 16.0)])
    rig = Rig(POLICY, render=lambda index: None if 10 <= index < 26 else 0.1)
    rig.speak(said)
    rig.run(20.0)
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    limit = round(HOLD_LIMIT_S * 24)
    kinds = rig.kinds()
    assert kinds[120 : 120 + limit] == [FrameKind.HELD] * limit
    assert set(kinds[120 + limit : 32 * 12]) == {FrameKind.IDLE}
    assert set(kinds[32 * 12 :]) == {FrameKind.RENDERED}
    rig.assert_in_step()


def test_stalled_renderer_leaves_sound_whole_and_sync_exact() -> None:
    said = voice(20.0)
    # One worker, clips one after the other: the stall of 2 s delays those behind it too.
    rig = Rig(DelayPolicy(0.15), render=lambda index: 2.0 if index == 12 else 0.15, chained=True)
    rig.speak(said)
    rig.run(20.0)
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    rig.assert_in_step()
    kinds = rig.kinds()
    assert FrameKind.HELD in kinds[144:216]
    assert set(kinds[240:]) == {FrameKind.RENDERED}
    statistics = rig.playout.statistics()
    assert statistics.held == statistics.dropped
    assert statistics.rendered + statistics.held == len(rig.shown)
    # One stall makes no slow call.
    assert statistics.delay_s == pytest.approx(0.5 + 0.15 + 0.2, abs=0.01)
    assert statistics.underruns == 0


SPEECH_WITH_PAUSES = [(6.0, 8.0), (14.0, 18.0), (24.0, 30.0)]


def assert_delay_changed_only_in_silence(rig: Rig) -> None:
    """The same voice comes out, whole and in order, and each stretch of it without a seam."""
    heard, media = rig.heard, rig.media_time
    said = loud(media)
    came = loud(heard)
    assert np.array_equal(came, said[: len(came)])
    inner = round(GUARD_S * MEDIA_RATE)
    for sound in (heard, media):
        silent = np.abs(sound.astype(np.int32)) <= 2000
        edges = np.flatnonzero(np.diff(silent.astype(np.int8)))
        assert np.diff(edges).min() > inner
    rig.assert_in_step()


@pytest.mark.parametrize("floor", [0, 150], ids=["digital silence", "room noise"])
def test_delay_grows_in_silence_only(floor: int) -> None:
    rig = Rig(DelayPolicy(render_s=0.05), render=lambda _: 0.9)
    rig.speak(voice(40.0, SPEECH_WITH_PAUSES, floor))
    rig.run(40.0)
    assert_delay_changed_only_in_silence(rig)
    statistics = rig.playout.statistics()
    assert statistics.stretched >= 20
    assert statistics.cut == 0
    assert statistics.delay_s == pytest.approx(0.5 + 0.9 + 0.2, abs=2 * FRAME_S)
    assert np.ptp(delays_between(rig, 1.0, 6.0 + 0.7)) < 0.003
    assert np.ptp(delays_between(rig, 9.5, 14.5)) < 0.003
    # Grown is grown: the clock makes up for less than a frame only. And the idle loop slows down rather than stopping.
    assert delays_between(rig, 32.0, 40.0).min() >= 1.6 - 0.001
    steps = np.diff([shown.source for shown in rig.shown if shown.kind is FrameKind.IDLE])
    assert not np.any((steps[1:] == 0) & (steps[:-1] == 0))
    # In the first stretch of speech all frames are late; when the delay has grown none is.
    kinds = rig.kinds()
    assert FrameKind.HELD in kinds[:100]
    assert set(kinds[-100:]) == {FrameKind.RENDERED}


def test_delay_never_passes_its_limit() -> None:
    rig = Rig(DelayPolicy(render_s=0.05, max_latency_s=1.3), render=lambda _: 0.9)
    rig.speak(voice(20.0, [(4.0, 12.0)]))
    rig.run(20.0)
    assert 1.3 - FRAME_S <= delays_between(rig, 0.0, 20.0).max() <= 1.3 + 0.001


@pytest.mark.parametrize("floor", [0, 150], ids=["digital silence", "room noise"])
def test_delay_shrinks_in_silence_only(floor: int) -> None:
    rig = Rig(DelayPolicy(render_s=1.2), render=lambda _: 0.1)
    rig.speak(voice(40.0, SPEECH_WITH_PAUSES, floor))
    rig.run(40.0)
    assert_delay_changed_only_in_silence(rig)
    statistics = rig.playout.statistics()
    assert statistics.cut >= 20
    assert statistics.stretched == 0
    # The engine's own measure stands for the clips before the first; after 20 of them it is forgotten.
    assert 0.8 <= statistics.delay_s <= 0.8 + 2 * FRAME_S
    assert np.ptp(delays_between(rig, 1.0, 6.0 + 1.7)) < 0.003
    assert statistics.held == 0
    sources = np.array([shown.source if shown.kind is FrameKind.IDLE else -100 for shown in rig.shown])
    steps = np.diff(sources) % 31
    steps[(sources[1:] < 0) | (sources[:-1] < 0)] = 0
    assert not np.any((steps[1:] == 2) & (steps[:-1] == 2))
    assert np.count_nonzero(steps == 2) > 12


@pytest.mark.parametrize("lead", [-4800, 4800], ids=["sound is asked for first", "frames are asked for first"])
@pytest.mark.parametrize(("expected_s", "takes_s"), [(0.05, 0.8), (1.2, 0.1)], ids=["growing", "shrinking"])
def test_what_was_handed_out_is_not_changed_any_more(lead: int, expected_s: float, takes_s: float) -> None:
    rig = Rig(DelayPolicy(expected_s), render=lambda _: takes_s, picture_lead_samples=lead)
    rig.speak(voice(30.0, SPEECH_WITH_PAUSES[:2], 150))
    rig.run(30.0)
    assert_delay_changed_only_in_silence(rig)
    assert rig.playout.statistics().stretched + rig.playout.statistics().cut > 10


def test_delay_never_changes_in_speech() -> None:
    rig = Rig(DelayPolicy(render_s=0.05), render=lambda _: 0.9)
    said = voice(60.0)
    rig.speak(said)
    rig.run(60.0)
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    statistics = rig.playout.statistics()
    assert statistics.stretched == statistics.cut == 0
    assert statistics.target_delay_s == pytest.approx(1.6)


def test_without_a_gate_only_near_silence_moves_the_delay() -> None:
    for floor, moved in ((10, True), (150, False)):
        rig = Rig(DelayPolicy(render_s=0.05, silence_rms=0.0), render=lambda _: 0.5, threshold=0.0)
        rig.speak(voice(20.0, [(6.0, 8.0), (11.0, 13.0)], floor))
        rig.run(20.0)
        assert (rig.playout.statistics().stretched > 0) is moved
        assert_delay_changed_only_in_silence(rig)


def test_quiet_clip_with_a_noise_in_it_moves_nothing_there() -> None:
    rig = Rig(DelayPolicy(render_s=0.05), render=lambda _: 0.9)
    said = voice(12.0, [(4.0, 12.0)])
    # Clicks every 80 ms: by the gate's measure silence, by the level of a hundredth of a second not.
    for click in range(round(4.0 * MEDIA_RATE), len(said), 3840):
        said[click : click + 40] = 2500
    rig.speak(said)
    rig.run(12.0)
    assert not any(rig.admitted[index] for index in range(9, 24))
    assert np.array_equal(rig.heard, said[: len(rig.heard)])
    assert rig.playout.statistics().stretched == 0


def test_room_noise_is_faded_where_the_delay_changes() -> None:
    rig = Rig(DelayPolicy(render_s=0.05), render=lambda _: 0.9)
    tone = (300 * np.sin(2 * np.pi * 97.3 * np.arange(12 * MEDIA_RATE) / MEDIA_RATE)).astype(np.int16)
    said = voice(16.0)
    said[4 * MEDIA_RATE :] = tone
    rig.speak(said)
    rig.run(16.0)
    assert rig.playout.statistics().stretched > 10
    heard = rig.heard[5 * MEDIA_RATE :].astype(np.int32)
    # A tone of 97.3 Hz moves by 3.8 a sample; a fade of 240 samples between two phases of it adds at most 2.5.
    assert np.abs(np.diff(heard)).max() <= 8


def test_pieces_of_any_size_give_the_same_sound() -> None:
    rig = Rig(DelayPolicy(render_s=0.05), render=lambda _: 0.9)
    rig.speak(voice(16.0, [(4.0, 14.0)], 150))
    rig.run(16.0)
    heard = rig.heard
    rng = np.random.default_rng(4)
    start = len(heard) - 3 * MEDIA_RATE
    again = []
    while start < len(heard):
        count = min(int(rng.integers(1, 3000)), len(heard) - start)
        again.append(rig.playout.sound(start, count))
        start += count
    assert rig.playout.statistics().stretched > 10
    assert np.array_equal(np.concatenate(again), heard[-3 * MEDIA_RATE :])


@pytest.mark.parametrize(("fps", "clip_frames"), [(25, 10), (30, 12), (29, 13)])
def test_other_frame_rates_stay_in_sync_as_the_delay_changes(fps: int, clip_frames: int) -> None:
    rig = Rig(
        DelayPolicy(render_s=0.05), render=lambda _: 0.7, format=replace(FORMAT, fps=fps, clip_frames=clip_frames)
    )
    rig.speak(voice(20.0, [(4.0, 8.0)]))
    rig.run(20.0)
    assert rig.playout.statistics().stretched > 8
    came = loud(rig.heard)
    assert np.array_equal(came, loud(rig.media_time)[: len(came)])
    if fps != 29:
        rig.assert_in_step()


@pytest.mark.parametrize("ppm", [-200.0, 200.0])
def test_an_hour_with_a_microphone_clock_that_is_off(ppm: float) -> None:
    block, rate = 4800, 1.0 + ppm * 1e-6
    rng = np.random.default_rng(12)
    said = voice(10.0)
    heard_by_model = said[::3].astype(np.float32) / np.float32(32768.0)
    timeline, clipper, gate = Timeline(), Clipper(FORMAT), SpeechGate(0.015)
    playout = Playout(FORMAT, IDLE, POLICY)
    frames = numbered_frames(0, 12)
    rendering: deque[tuple[float, int]] = deque()
    position = number = 0
    rates, delays, left_at = [], [], []
    for index in range(36_000):
        now = 1000.0 + (index + 1) * block / MEDIA_RATE / rate + float(rng.exponential(0.01))
        while rendering and rendering[0][0] <= now:
            ready, done = rendering.popleft()
            playout.put(done, frames, 0.1, ready)
        begin = index % 100 * block
        pieces = timeline.block(index * block, said[begin : begin + block], now)
        assert [len(pcm) for _, pcm in pieces] == [block]
        playout.discipline(timeline.arrived(now), now)
        playout.push_sound(index * block, said[begin : begin + block], now)
        for clip in clipper.push(heard_by_model[begin // 3 : (begin + block) // 3]):
            assert gate.admit(clip)
            playout.expect(clip, True)
            rendering.append((now + 0.1, clip.index))
        rates.append(playout.statistics().rate_ppm)
        delays.append(playout.delay_s)
        while playout.due(position) - LEAD_S <= now:
            begin = position % len(said)
            assert np.array_equal(playout.sound(position, block), said[begin : begin + block])
            while number * 2000 < position + block:
                assert playout.frame(number)[1] is FrameKind.RENDERED
                number += 1
            left_at.append(playout.due(position))
            position += block
    statistics = playout.statistics()
    assert statistics.underruns == statistics.dropped == statistics.held == statistics.skipped == 0
    assert statistics.stretched == statistics.cut == 0
    assert np.abs(rates).max() <= MAX_SLEW * 1e6
    # Once settled, the pitch is the microphone's and the delay is what it was: 0.72 s of drift are gone.
    assert np.mean(rates[-6000:]) == pytest.approx(ppm, abs=5.0)
    assert np.std(rates[-6000:]) < 50.0
    assert np.ptp(delays[600:]) < 0.03
    assert timeline.drift_ppm == pytest.approx(ppm, abs=10.0)
    assert np.diff(left_at) == pytest.approx(0.1, rel=MAX_SLEW * 1.1)
    assert timeline.statistics().silence_samples == timeline.statistics().late_dropped == 0


def test_three_hours_grow_nothing() -> None:
    rng = np.random.default_rng(13)
    timeline, playout = Timeline(), Playout(FORMAT, IDLE, DelayPolicy(render_s=0.3))
    frames = numbered_frames(0, 12)
    said = voice(0.5)
    timeline.advance(0.0)
    number = index = 0
    for second_half in range(3 * 7200):
        now = (second_half + 1) / 2
        # Speech and silence by turns, a renderer whose speed changes, packets and clips lost, a mute every ten minutes.
        speaks = second_half % 20 < 12
        muted = second_half % 1200 > 1100
        pieces = timeline.advance(now)
        if not muted and rng.random() > 0.05:
            pcm = said if speaks else np.zeros(len(said), np.int16)
            pieces += timeline.block(second_half * 24_000, pcm, now)
        playout.discipline(timeline.arrived(now), now)
        for start, pcm in pieces:
            playout.push_sound(start, pcm, now)
        while (index + 1) * 24_000 <= timeline.statistics().samples:
            own = np.zeros(8000, np.float32)
            playout.expect(AudioClip(index, index * 12, 12, own, 8000), speaks and not muted)
            if speaks and not muted:
                if rng.random() > 0.05:
                    playout.put(index, frames, 0.1 + 0.8 * (second_half % 900 > 450), now)
                else:
                    playout.lose(index)
            index += 1
        while playout.due(number * 2000) <= now:
            playout.frame(number)
            playout.sound(number * 2000, 2000)
            number += 1
    statistics = playout.statistics()
    assert statistics.stretched > 100
    assert statistics.cut > 100
    assert statistics.underruns == statistics.skipped == 0
    assert statistics.rendered + statistics.idle + statistics.held == number
    kept = POLICY.max_latency_s + SLACK_S
    assert len(playout._store) <= kept / 0.5 + 2
    assert sum(playout._store.rendered_clips) <= kept / 0.5
    assert len(playout._line._shifts) <= kept * 24 / 2 + 2
    assert playout._line.ring.capacity == kept * MEDIA_RATE
    assert len(timeline._late) == 0
