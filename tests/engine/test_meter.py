"""A worker's meter: what is counted, and the quantiles of its latest clips."""

from __future__ import annotations

from echo_rtc.engine.meter import RECENT_CLIPS, WorkerMeter


def test_what_happened_is_counted() -> None:
    meter = WorkerMeter()
    fresh = meter.status("cuda:0", up=False)
    assert (fresh.clips, fresh.p50_s, fresh.p95_s, fresh.pid) == (0, None, None, None)
    for seconds in (0.1, 0.2, 0.3, 0.4):
        meter.rendered(seconds, seconds / 2)
    meter.failed(2.0)
    meter.restarts += 1
    status = meter.status("cuda:0", up=True, pid=7, waiting=3)
    assert (status.name, status.up, status.pid, status.waiting) == ("cuda:0", True, 7, 3)
    assert (status.clips, status.lost, status.restarts, status.busy_s) == (4, 1, 1, 3.0)
    assert (status.p50_s, status.p95_s) == (0.2, 0.4)
    assert status.rendering_s == 0.5


def test_the_quantiles_are_of_the_latest_clips() -> None:
    meter = WorkerMeter()
    for _ in range(RECENT_CLIPS):
        meter.rendered(9.0)
    for i in range(RECENT_CLIPS):
        meter.rendered((i + 1) / 1000)
    status = meter.status("cpu", up=True)
    assert (status.p50_s, status.p95_s) == (0.060, 0.114)
