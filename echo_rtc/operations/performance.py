"""The performance log: once a minute, while anything happens, how the streams and each worker have done in it.

Reads the same counters as the metrics, for operators who have nothing but the log. Counts nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from echo_rtc.operations.usage import Usage, Use
from echo_rtc.operations.view import StreamsView
from echo_rtc.rendering import WorkerStatus
from echo_rtc.stream.tally import Sample

INTERVAL_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log, and its figures as fields for logs that are JSON."""

    text: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Look:
    """What had been counted at ``now`` (s)."""

    now: float
    counts: Mapping[Sample, float] = field(default_factory=dict)
    workers: Mapping[str, WorkerStatus] = field(default_factory=dict)
    uses: Mapping[str, Use] = field(default_factory=dict)
    server: Use = field(default_factory=Use)


class PerformanceLog:
    """Compares what is counted now with what was counted a minute ago."""

    def __init__(self, streams: StreamsView, workers: Callable[[], Sequence[WorkerStatus]], usage: Usage) -> None:
        self._streams = streams
        self._workers = workers
        self._usage = usage

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Logs until it is cancelled."""
        before = await self._look()
        while True:
            await asyncio.sleep(interval_s)
            now = await self._look()
            for line in self.lines(before, now):
                logger.info("%s", line.text, extra=dict(line.fields))
            before = now

    async def _look(self) -> Look:
        workers = self._workers()
        await asyncio.to_thread(self._usage.look, [(worker.name, worker.pid) for worker in workers])
        return Look(
            now=asyncio.get_running_loop().time(),
            counts=self._streams.tally().counts,
            workers={worker.name: worker for worker in workers},
            uses=self._usage.latest,
            server=self._usage.server,
        )

    def lines(self, before: Look, now: Look) -> Iterator[Line]:
        """What there is to say of the time in between; nothing where no stream was open and no worker did anything."""
        elapsed_s = max(1e-3, now.now - before.now)
        more = {key: count - before.counts.get(key, 0) for key, count in now.counts.items()}
        if more.get(("media_seconds", ""), 0) or self._streams.streams:
            yield self._of_streams(more, _cores(before.server, now.server, elapsed_s), now.server)
        for name, worker in now.workers.items():
            earlier = before.workers.get(name)
            if earlier is not None and _moved(earlier, worker):
                yield _of_worker(earlier, worker, before.uses.get(name, Use()), now.uses.get(name, Use()), elapsed_s)

    def _of_streams(self, more: Mapping[Sample, float], cores: float | None, use: Use) -> Line:
        vitals = [stream.vitals for stream in self._streams.streams.values()]
        delays_ms = [round(1000 * vital.delay_s) for vital in vitals]
        offsets_ms = [round(vital.offset_ms, 1) for vital in vitals if vital.offset_ms is not None]
        fields: dict[str, object] = {
            "event": "performance",
            "streams": len(vitals),
            "capacity": self._streams.capacity,
            "viewers": sum(vital.viewers for vital in vitals),
            "waiting_clips": sum(vital.waiting_clips for vital in vitals),
            **{name: round(more.get(("frames", name), 0)) for name in ("rendered", "held", "dropped")},
            "lost_clips": round(sum(more.get(("clips", name), 0) for name in ("failed", "late", "overflowed"))),
            "longest_delay_ms": max(delays_ms, default=None),
            "worst_av_offset_ms": max(offsets_ms, key=abs, default=None),
            "cores": cores,
            "memory_mb": _megabytes(use.memory_bytes),
        }
        text = (
            "{streams} of {capacity} streams, {viewers} viewers, {waiting_clips} clips wait; "
            "{rendered} frames rendered, {held} held, {dropped} dropped, {lost_clips} clips lost; "
            "delay at most {longest_delay_ms} ms, sync at worst {worst_av_offset_ms} ms; "
            "server {cores} cores, {memory_mb} MB"
        )
        return Line(text.format_map(_said(fields)), fields)


def _of_worker(earlier: WorkerStatus, worker: WorkerStatus, past: Use, use: Use, elapsed_s: float) -> Line:
    fields: dict[str, object] = {
        "event": "worker_performance",
        "worker": worker.name,
        "up": worker.up,
        "clips": worker.clips - earlier.clips,
        "lost_clips": worker.lost - earlier.lost,
        "restarts": worker.restarts - earlier.restarts,
        "waiting_clips": worker.waiting,
        "clip_p50_ms": None if worker.p50_s is None else round(1000 * worker.p50_s),
        "clip_p95_ms": None if worker.p95_s is None else round(1000 * worker.p95_s),
        "busy_percent": round(100 * (worker.busy_s - earlier.busy_s) / elapsed_s),
        "cores": _cores(past, use, elapsed_s),
        "memory_mb": _megabytes(use.memory_bytes),
    }
    text = (
        "worker {worker}: {clips} clips, {lost_clips} lost, {restarts} restarts, {waiting_clips} wait; "
        "a clip {clip_p50_ms} ms, 95 % within {clip_p95_ms} ms; busy {busy_percent} %; {cores} cores, {memory_mb} MB"
    )
    if use.gpu is not None:
        fields |= {
            "gpu_percent": None if use.gpu.utilisation is None else round(100 * use.gpu.utilisation),
            "gpu_memory_mb": _megabytes(use.gpu.memory_bytes),
            "gpu_memory_total_mb": _megabytes(use.gpu.memory_total_bytes),
        }
        text += "; GPU {gpu_percent} %, {gpu_memory_mb} of {gpu_memory_total_mb} MB"
    return Line(text.format_map(_said(fields)), fields)


def _moved(earlier: WorkerStatus, worker: WorkerStatus) -> bool:
    return (earlier.clips, earlier.lost, earlier.restarts) != (worker.clips, worker.lost, worker.restarts)


def _cores(past: Use, use: Use, elapsed_s: float) -> float | None:
    """None where it is not known: there is no process, or it is another one than before."""
    if past.cpu_s is None or use.cpu_s is None or use.cpu_s < past.cpu_s:
        return None
    return round((use.cpu_s - past.cpu_s) / elapsed_s, 2)


def _megabytes(count: int | None) -> int | None:
    return None if count is None else round(count / 1e6)


def _said(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: "?" if value is None else value for name, value in fields.items()}
