"""The performance log: what it says of a minute, that it says nothing of a quiet one, and a run in virtual time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from echo_rtc.engine.meter import WorkerMeter
from echo_rtc.operations.performance import Look, PerformanceLog
from echo_rtc.operations.usage import GpuUse, Usage, Use
from echo_rtc.rendering import WorkerStatus
from echo_rtc.rtc.manager import ManagerCounters
from echo_rtc.rtc.session import Role
from echo_rtc.stream.stream import StreamState, Vitals
from echo_rtc.stream.tally import Ledger, Sample, Tally


@dataclass
class FakeStream:
    vitals: Vitals


@dataclass
class FakeStreams:
    streams: dict[str, FakeStream] = field(default_factory=dict)
    capacity: int = 6
    counters: ManagerCounters = field(default_factory=ManagerCounters)
    peers: dict[Role, int] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    counts: dict[Sample, float] = field(default_factory=dict)

    def tally(self) -> Tally:
        tally = Tally()
        tally.counts |= self.counts
        return tally


def vitals(delay_s: float, offset_ms: float | None) -> Vitals:
    return Vitals(StreamState.SPEAKING, delay_s, offset_ms, 1, 2, {}, None, None)


def test_a_minute_with_streams_and_a_gpu() -> None:
    streams = FakeStreams({"a": FakeStream(vitals(0.65, 1.04)), "b": FakeStream(vitals(0.9, -3.06))})
    meter = WorkerMeter()
    earlier = meter.status("cuda:0", up=True)
    for _ in range(100):
        meter.rendered(0.25)
    meter.failed(5.0)
    later = meter.status("cuda:0", up=True, waiting=1)
    before = Look(
        100.0,
        {("frames", "rendered"): 10, ("frames", "held"): 2},
        {"cuda:0": earlier},
        {"cuda:0": Use(1.0)},
        Use(5.0, 10**8),
    )
    now = Look(
        160.0,
        {
            ("frames", "rendered"): 1210,
            ("frames", "held"): 5,
            ("clips", "failed"): 1,
            ("clips", "late"): 2,
            ("media_seconds", ""): 1,
        },
        {"cuda:0": later},
        {"cuda:0": Use(61.0, 2 * 10**9, GpuUse(5 * 10**9, 80 * 10**9, 0.62))},
        Use(23.0, 182_000_000),
    )
    first, second = PerformanceLog(streams, tuple, Usage()).lines(before, now)
    assert first.text == (
        "2 of 6 streams, 4 viewers, 2 clips wait; 1200 frames rendered, 3 held, 0 dropped, 3 clips lost; "
        "delay at most 900 ms, sync at worst -3.1 ms; server 0.3 cores, 182 MB"
    )
    assert first.fields["event"] == "performance"
    assert first.fields["worst_av_offset_ms"] == -3.1
    assert second.text == (
        "worker cuda:0: 100 clips, 1 lost, 0 restarts, 1 wait; a clip 250 ms, 95 % within 250 ms; busy 50 %; "
        "1.0 cores, 2000 MB; GPU 62 %, 5000 of 80000 MB"
    )
    assert second.fields["worker"] == "cuda:0"


def test_a_quiet_minute_is_not_mentioned() -> None:
    status = WorkerMeter().status("cpu", up=True)
    look = Look(0.0, {("frames", "rendered"): 100, ("media_seconds", ""): 9}, {"cpu": status})
    assert list(PerformanceLog(FakeStreams(), tuple, Usage()).lines(look, look)) == []


def test_what_is_not_known_is_not_made_up() -> None:
    meter = WorkerMeter()
    before = meter.status("cpu", up=True, pid=1)
    meter.failed(0.1)
    meter.restarts += 1
    after = meter.status("cpu", up=False, pid=2)
    looks = [
        Look(0.0, {}, {"cpu": before}, {"cpu": Use(100.0, 1)}),
        Look(60.0, {}, {"cpu": after}, {"cpu": Use(2.0, None)}),
    ]
    [line] = PerformanceLog(FakeStreams(), tuple, Usage()).lines(*looks)
    assert "1 restarts" in line.text
    assert line.text.endswith("a clip ? ms, 95 % within ? ms; busy 0 %; ? cores, ? MB")
    assert line.fields["cores"] is None


async def test_it_runs_until_it_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "echo_rtc.operations.performance")
    meter = WorkerMeter()
    said = asyncio.Event()

    def workers() -> list[WorkerStatus]:
        meter.rendered(0.1)
        if len(caplog.records) >= 2:
            said.set()
        return [meter.status("cpu", up=True)]

    task = asyncio.create_task(PerformanceLog(FakeStreams(), workers, Usage()).run(interval_s=0.0))
    await asyncio.wait_for(said.wait(), 10)
    task.cancel()
    await asyncio.wait({task})
    assert "worker cpu: 1 clips, 0 lost" in caplog.messages[0]
    assert vars(caplog.records[0])["event"] == "worker_performance"
