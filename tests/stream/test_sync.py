"""The offset of sound and picture as they leave, and the record of a call, both in made-up time."""

from __future__ import annotations

import pytest

from echo_rtc.stream.sync import CallRecord, SyncMeter


def second_of(meter: SyncMeter, start_s: float, late_s: float, begun_at: float = 1e6) -> None:
    """Sound every 20 ms and frames at 24 a second, on time but for the picture's ``late_s``, by an old clock."""
    for i in range(50):
        meter.sound(start_s + i / 50, begun_at + start_s + i / 50)
    for i in range(24):
        meter.picture(start_s + i / 24, begun_at + start_s + i / 24 + late_s)


@pytest.mark.parametrize("late_s", [0.0, 0.045, -0.02])
def test_the_offset_is_how_late_the_picture_is(late_s: float) -> None:
    meter = SyncMeter()
    second_of(meter, 0.0, late_s)
    assert meter.take() == pytest.approx(late_s, abs=1e-6)
    second_of(meter, 1.0, 0.0)
    assert meter.take() == pytest.approx(0.0, abs=1e-6)


def test_what_is_late_together_is_in_sync() -> None:
    meter = SyncMeter()
    for i in range(50):
        meter.sound(i / 50, i / 50 + 0.3)
        meter.picture(i / 50, i / 50 + 0.3)
    assert meter.take() == pytest.approx(0.0, abs=1e-9)


def test_frames_left_out_after_a_stall_are_no_offset() -> None:
    """0.3 s in which the sound leaves late, and the frames that would have are left out."""
    meter = SyncMeter()
    for i in range(50):
        meter.sound(i / 50, i / 50 + max(0.0, 0.3 - i / 50))
    for i in range(8, 24):
        meter.picture(i / 24, i / 24)
    assert meter.take() == pytest.approx(0.0, abs=1e-6)


def test_stamps_that_stand_still_show() -> None:
    """A stall of 0.3 s after which the picture's stamps went on as a plain counter."""
    meter = SyncMeter()
    for i in range(50):
        meter.sound(i / 50, i / 50)
        meter.picture(i / 50 - 0.3, i / 50)
    assert meter.take() == pytest.approx(0.3)


def test_one_of_the_two_alone_has_no_offset() -> None:
    meter = SyncMeter()
    assert meter.take() is None
    meter.sound(0.0, 0.0)
    assert meter.take() is None
    meter.picture(1.0, 1.0)
    assert meter.take() is None


def test_a_record_keeps_the_worst_offset_and_the_latest_rates() -> None:
    record = CallRecord(now=100.0)
    record.sample(101.0, 0.65, 0.002, {"Opus": 8_000})
    assert record.bitrates == {"Opus": 64_000}
    record.sample(103.0, 0.65, -0.012, {"Opus": 24_000, "H264": 250_000})
    assert record.bitrates == {"Opus": 64_000, "H264": 1_000_000}
    assert (record.offset_ms, record.worst_offset_ms) == (-12.0, -12.0)
    record.sample(104.0, 0.8, None, {"Opus": 24_000, "H264": 250_000})
    assert record.bitrates == {"Opus": 0, "H264": 0}
    assert (record.offset_ms, record.worst_offset_ms) == (None, -12.0)
    assert record.histograms.offset_size_ms.count == 2
    assert record.histograms.delay_s.count == 3
    assert record.delays_s.quantile(0.5) == pytest.approx(0.65)
    assert record.delays_s.quantile(0.95) == pytest.approx(0.8)
