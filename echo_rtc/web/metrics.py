"""GET /metrics: what the server's parts have counted, in Prometheus' form.

Nothing is counted here but refusals: at each scrape a collector reads the counters of the parts as they stand. No label
is a stream's id or anything else that a client could make many of, and no counter goes back when a stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder

from echo_rtc.counting import CounterMetric, Metric, Names
from echo_rtc.operations.usage import Usage, Use
from echo_rtc.operations.view import StreamsView
from echo_rtc.rendering import WorkerStatus
from echo_rtc.rtc.session import Role
from echo_rtc.stream.stream import StreamState, Vitals, VoiceSource
from echo_rtc.stream.tally import METRICS, Tally
from echo_rtc.web.problems import ProblemType
from echo_rtc.web.protocol_log import NOT_HTTP

PREFIX = "echo_rtc_"


class EngineView(Protocol):
    """What is seen of the engine."""

    @property
    def ready(self) -> bool: ...


class LogView(Protocol):
    """What is seen of the log file."""

    @property
    def lost(self) -> int: ...

    @property
    def writable(self) -> bool: ...


class AvatarsView(Protocol):
    """What is seen of the avatars that come and go."""

    @property
    def added(self) -> int: ...

    @property
    def deleted(self) -> int: ...


class ConnectionsView(Protocol):
    """What is seen of HTTP connections."""

    @property
    def open(self) -> int: ...

    @property
    def closed(self) -> Names: ...


WorkerFigure = tuple[str, str, Callable[[WorkerStatus, Use], float | None]]
"""A metric of each worker: its name without prefix, what it means, and how it is read; None: not known."""

_WORKER_GAUGES: tuple[WorkerFigure, ...] = (
    ("worker_up", "1 if the worker can take a clip, else 0.", lambda worker, _: float(worker.up)),
    ("worker_waiting_clips", "Clips that wait for the worker.", lambda worker, _: worker.waiting),
    ("worker_memory_bytes", "Resident memory of the worker's process.", lambda _, use: use.memory_bytes),
    (
        "worker_gpu_memory_bytes",
        "Memory in use on the worker's GPU, by whatever process (NVML).",
        lambda _, use: use.gpu.memory_bytes if use.gpu else None,
    ),
    (
        "worker_gpu_memory_total_bytes",
        "Memory of the worker's GPU (NVML).",
        lambda _, use: use.gpu.memory_total_bytes if use.gpu else None,
    ),
    (
        "worker_gpu_utilisation",
        "Share of the last sampling period in which the worker's GPU was at work, 0 to 1 (NVML).",
        lambda _, use: use.gpu.utilisation if use.gpu else None,
    ),
)
_WORKER_COUNTERS: tuple[WorkerFigure, ...] = (
    ("worker_clips", "Clips the worker has rendered.", lambda worker, _: worker.clips),
    ("worker_lost_clips", "Clips the worker has lost.", lambda worker, _: worker.lost),
    ("worker_busy_seconds", "Time the worker was given to render.", lambda worker, _: worker.busy_s),
    (
        "worker_rendering_seconds",
        "Of that, the time for which it rendered, without hand-over and preparation.",
        lambda worker, _: worker.rendering_s,
    ),
    ("worker_restarts", "How often the worker was replaced.", lambda worker, _: worker.restarts),
    (
        "worker_cpu_seconds",
        "Processor time of the worker's process; starts at 0 again with each process.",
        lambda _, use: use.cpu_s,
    ),
)


class RecordingsView(Protocol):
    """What is seen of the recordings."""

    @property
    def active(self) -> int: ...

    @property
    def counters(self) -> RecordingCounts: ...

    @property
    def ended(self) -> Names: ...

    def overview(self) -> Sequence[Mapping[str, object]]: ...


class RecordingCounts(Protocol):
    """What recordings count."""

    begun: int
    bytes: int
    dropped_packets: int


class OutputsView(Protocol):
    """What is seen of the outputs."""

    @property
    def states(self) -> Mapping[str, int]: ...

    @property
    def counters(self) -> OutputCounts: ...

    def overview(self) -> Sequence[Mapping[str, object]]: ...


class OutputCounts(Protocol):
    """What outputs count."""

    connected: int
    failed: int


class NoLogFile:
    """Where there is no log file."""

    lost = 0
    writable = False


class NoAvatars:
    """Where none are uploaded."""

    added = 0
    deleted = 0


class NoConnections:
    """Where they are not counted."""

    open = 0
    closed = Names()


@dataclass(slots=True)
class NoRecordings:
    """Where nothing is recorded."""

    begun: int = 0
    bytes: int = 0
    dropped_packets: int = 0
    active: int = 0
    ended: Names = field(default_factory=Names)

    @property
    def counters(self) -> RecordingCounts:
        return self

    def overview(self) -> Sequence[Mapping[str, object]]:
        return ()


@dataclass(slots=True)
class NoOutputs:
    """Where nothing is pushed."""

    connected: int = 0
    failed: int = 0
    states: Mapping[str, int] = field(default_factory=dict)

    @property
    def counters(self) -> OutputCounts:
        return self

    def overview(self) -> Sequence[Mapping[str, object]]:
        return ()


@dataclass(frozen=True, slots=True)
class Watch:
    """What operators see beside streams and readiness: the version that runs, the workers as they stand, the log file,
    what the workers use, how many HTTP requests were refused, by the kind of problem, the avatars that come and go, the
    HTTP connections, the recordings and the outputs."""

    version: str = ""
    workers: Callable[[], Sequence[WorkerStatus]] = tuple
    log: LogView = field(default_factory=NoLogFile)
    usage: Usage = field(default_factory=Usage)
    refusals: Names = field(default_factory=Names)
    avatars: AvatarsView = field(default_factory=NoAvatars)
    connections: ConnectionsView = field(default_factory=NoConnections)
    recordings: RecordingsView = field(default_factory=NoRecordings)
    outputs: OutputsView = field(default_factory=NoOutputs)


@dataclass(frozen=True, slots=True)
class Watched:
    """All that the metrics are read from."""

    streams: StreamsView
    engine: EngineView
    engine_name: str
    watch: Watch


class ServerCollector:
    """Reads everything at a scrape."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Family]:
        watched = self._watched
        tally = watched.streams.tally()
        yield from self._server()
        peers = GaugeMetricFamily(
            f"{PREFIX}peers", "Connections, by what they do: call (publish and view), publish or view.", labels=["role"]
        )
        for role in Role:
            peers.add_metric([role.value], watched.streams.peers.get(role, 0))
        yield peers
        yield from self._streams([stream.vitals for stream in watched.streams.streams.values()])
        for metric in METRICS.values():
            yield _family(metric, tally)
        yield from self._workers(watched.watch.workers())

    def _server(self) -> Iterator[Family]:
        watched = self._watched
        info = GaugeMetricFamily(f"{PREFIX}info", "Always 1; says what runs.", labels=["version", "engine"])
        info.add_metric([watched.watch.version, watched.engine_name], 1)
        yield info
        yield _gauge("engine_ready", "1 if at least one worker can take a clip, else 0.", float(watched.engine.ready))
        yield _gauge("streams_capacity", "Streams that there may be at once.", watched.streams.capacity)
        ledger = watched.streams.ledger
        yield _counter("streams_opened", "Streams opened.", ledger.opened)
        resumed = watched.streams.counters.resumed
        yield _counter("streams_resumed", "Times that a lost publisher came back to its stream.", resumed)
        yield _named("streams_ended", "Streams ended, by why.", "reason", ledger.ended.items())
        # Every label is published with 0 from the start, so that rate() sees the first increment.
        refusals = {kind.reason: 0 for kind in ProblemType if kind is not ProblemType.GENERIC}
        refusals |= dict(watched.watch.refusals.items())
        yield _named("refusals", "HTTP requests refused, by the kind of problem.", "reason", refusals.items())
        yield _counter("requests_unreadable", "Requests that are no HTTP.", NOT_HTTP.count)
        yield _gauge("connections", "HTTP connections that are open.", watched.watch.connections.open)
        closed = {"address": 0, "total": 0} | dict(watched.watch.connections.closed.items())
        yield _named(
            "connections_closed",
            "Connections closed or refused because there were too many: of one address, or in total.",
            "limit",
            closed.items(),
        )
        changes = (("added", watched.watch.avatars.added), ("deleted", watched.watch.avatars.deleted))
        yield _named("avatars_changed", "Avatars uploaded, and uploaded ones deleted.", "change", changes)
        recordings = watched.watch.recordings
        yield _gauge("recordings", "Streams that are being recorded.", recordings.active)
        yield _counter("recordings_begun", "Recordings begun.", recordings.counters.begun)
        yield _named("recordings_ended", "Recordings ended, by why.", "reason", recordings.ended.items())
        yield _counter("recorded_bytes", "Bytes of the recordings that have ended.", recordings.counters.bytes)
        yield _counter(
            "recording_dropped_packets",
            "Packets that a disk did not take in time, which ends their recording.",
            recordings.counters.dropped_packets,
        )
        outputs = watched.watch.outputs
        states = {"connecting": 0, "live": 0, "waiting": 0, "failed": 0} | dict(outputs.states)
        gauge = GaugeMetricFamily(
            f"{PREFIX}outputs", "Streams that are pushed to other servers, by state.", labels=["state"]
        )
        for state, count in states.items():
            gauge.add_metric([str(state)], count)
        yield gauge
        attempts = (("connected", outputs.counters.connected), ("failed", outputs.counters.failed))
        yield _named("output_attempts", "Connections of outputs made, and failed or lost.", "outcome", attempts)
        yield _counter("log_lines_lost", "Lines that could not be written to the log file.", watched.watch.log.lost)
        yield _gauge(
            "log_file_writable", "1 if the latest line went to the log file, else 0.", float(watched.watch.log.writable)
        )

    def _streams(self, vitals: list[Vitals]) -> Iterator[Family]:
        streams = GaugeMetricFamily(f"{PREFIX}streams", "Streams that are open, by state.", labels=["state"])
        for state in StreamState:
            streams.add_metric([state.value], sum(vital.state is state for vital in vitals))
        yield streams
        sources = GaugeMetricFamily(
            f"{PREFIX}streams_by_source", "Streams that are open, by where their voice comes from.", labels=["source"]
        )
        for source in VoiceSource:
            sources.add_metric([source.value], sum(vital.source is source for vital in vitals))
        yield sources
        yield _gauge("viewers", "Peers that get picture or sound.", sum(vital.viewers for vital in vitals))
        yield _gauge(
            "clips_waiting", "Clips of streams that wait for the engine.", sum(v.waiting_clips for v in vitals)
        )
        yield _extremes(
            "delay_now_seconds",
            "Media time minus playout time at this moment, over the streams.",
            [vital.delay_s for vital in vitals if vital.state is not StreamState.CONNECTING],
        )
        yield _extremes(
            "av_offset_ms",
            "Picture against sound as they left in the last second, over the streams; positive: the picture is late.",
            [vital.offset_ms for vital in vitals],
        )
        yield _extremes(
            "viewer_round_trip_seconds",
            "Time to a viewer and back (RTCP), over the streams: each stream's longest.",
            [vital.round_trip_s for vital in vitals],
        )
        yield _extremes(
            "microphone_jitter_seconds",
            "Jitter of the microphones' packets (RFC 3550), over the streams.",
            [vital.jitter_s for vital in vitals],
        )
        bitrate = GaugeMetricFamily(
            f"{PREFIX}bitrate_bits_per_second", "Bit/s encoded in the last second, over the streams.", labels=["codec"]
        )
        for codec in ("Opus", "H264", "VP8"):
            bitrate.add_metric([codec], sum(vital.bitrates.get(codec, 0) for vital in vitals))
        yield bitrate

    def _workers(self, workers: Sequence[WorkerStatus]) -> Iterator[Family]:
        usage = self._watched.watch.usage
        for figures, family_of in ((_WORKER_GAUGES, GaugeMetricFamily), (_WORKER_COUNTERS, CounterMetricFamily)):
            for name, meaning, read in figures:
                family = family_of(PREFIX + name, meaning, labels=["worker"])
                for worker in workers:
                    value = read(worker, usage.of(worker.name))
                    if value is not None:
                        family.add_metric([worker.name], value)
                yield family
        times = GaugeMetricFamily(
            f"{PREFIX}worker_clip_seconds", "Seconds of the worker's latest clips.", labels=["worker", "percentile"]
        )
        for worker in workers:
            for percentile, seconds in (("50", worker.p50_s), ("95", worker.p95_s)):
                if seconds is not None:
                    times.add_metric([worker.name, percentile], seconds)
        yield times


class Metrics:
    """The handler of /metrics."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(ServerCollector(watched))
        ProcessCollector(registry=self.registry)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """200 with all metrics, in the text format or in OpenMetrics, as the client accepts."""
        workers = [(worker.name, worker.pid) for worker in self._watched.watch.workers()]
        await asyncio.to_thread(self._watched.watch.usage.look, workers)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        headers = {"Content-Type": content_type, "Cache-Control": "no-store"}
        return web.Response(body=encode(self.registry), headers=headers)


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, meaning, value=value)


def _named(name: str, meaning: str, label: str, counts: Iterable[tuple[str, int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, meaning, labels=[label])
    for value, count in counts:
        family.add_metric([value], count)
    return family


def _extremes(name: str, meaning: str, values: Iterable[float | None]) -> GaugeMetricFamily:
    """The mean over the streams, and the value farthest from 0, with its sign; nothing where no stream has one."""
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=["statistic"])
    known = [value for value in values if value is not None]
    if known:
        family.add_metric(["mean"], sum(known) / len(known))
        family.add_metric(["worst"], max(known, key=abs))
    return family


def _family(metric: Metric, tally: Tally) -> Family:
    """A metric of streams with all that they have counted."""
    labels = [metric.label] if metric.label else []
    if isinstance(metric, CounterMetric):
        counters = CounterMetricFamily(PREFIX + metric.name, metric.meaning, labels=labels)
        for (name, value), count in tally.counts.items():
            if name == metric.name:
                counters.add_metric([value] if labels else [], count * metric.scale)
        return counters
    family = HistogramMetricFamily(PREFIX + metric.name, metric.meaning, labels=labels)
    for (name, value), histogram in sorted(tally.histograms.items(), key=lambda item: item[0]):
        if name == metric.name:
            family.add_metric([value] if labels else [], buckets=histogram.cumulative(), sum_value=histogram.sum)
    return family
