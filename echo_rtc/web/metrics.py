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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from echo_rtc.clips import MEDIA_RATE
from echo_rtc.counting import Histogram, Names
from echo_rtc.operations.usage import Usage, Use
from echo_rtc.rendering import WorkerStatus
from echo_rtc.rtc.aiortc_seams import IceDatagrams
from echo_rtc.rtc.session import Role
from echo_rtc.stream.stream import StreamState, Vitals
from echo_rtc.stream.tally import Ledger, Tally
from echo_rtc.web.problems import ProblemType
from echo_rtc.web.protocol_log import NOT_HTTP

PREFIX = "echo_rtc_"


class StreamView(Protocol):
    """What is seen of a stream."""

    @property
    def vitals(self) -> Vitals: ...


class ResumedView(Protocol):
    """What is seen of lost publishers."""

    @property
    def resumed(self) -> int: ...


class StreamsView(Protocol):
    """What is seen of all streams."""

    @property
    def streams(self) -> Mapping[str, StreamView]: ...

    @property
    def capacity(self) -> int: ...

    @property
    def peers(self) -> Mapping[Role, int]: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def counters(self) -> ResumedView: ...

    def tally(self) -> Tally: ...


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


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter of streams: its name without prefix and "_total", what it means, and the tally's keys that it adds up,
    by the value of its ``label``; without a label there is one key, under "". ``scale`` turns the tally's unit into the
    metric's."""

    name: str
    meaning: str
    keys: Mapping[str, str]
    label: str = ""
    scale: float = 1.0

    def family(self, counts: Mapping[str, float]) -> CounterMetricFamily:
        family = CounterMetricFamily(PREFIX + self.name, self.meaning, labels=[self.label] if self.label else [])
        for value, key in self.keys.items():
            family.add_metric([value] if self.label else [], counts.get(key, 0) * self.scale)
        return family


def _keys(group: str, *names: str) -> dict[str, str]:
    return {name: f"{group}.{name}" for name in names}


COUNTERS = (
    Counted(
        "frames",
        "Frames by what became of them. Shown: rendered, idle, held (the one before once more). Not shown: dropped "
        "(rendered, but too late), skipped (nobody asked for them), unencoded (late before they were encoded).",
        _keys("frames", "rendered", "idle", "held", "dropped", "skipped", "unencoded"),
        "kind",
    ),
    Counted(
        "clips",
        "Clips with speech: rendered; failed in the engine; late or overflowed: given up before they began.",
        _keys("clips", "rendered", "failed", "late", "overflowed"),
        "outcome",
    ),
    Counted(
        "steps_changes",
        "How often the denoising steps of a stream's clips were lowered because it was late, and raised again.",
        {"lowered": "clips.steps_lowered", "raised": "clips.steps_raised"},
        "direction",
    ),
    Counted(
        "media_seconds", "Seconds of microphone that streams have heard.", {"": "heard.samples"}, "", 1 / MEDIA_RATE
    ),
    Counted(
        "microphone_packets",
        "RTP packets of microphones, as in RTCP receiver reports.",
        {"received": "microphone.packets", "lost": "microphone.lost"},
        "outcome",
    ),
    Counted(
        "microphone_blocks",
        "Decoded blocks of microphones.",
        {"used": "microphone.blocks", "unusable": "microphone.unusable"},
        "outcome",
    ),
    Counted(
        "microphone_filled_seconds",
        "Silence put in for the microphone: lost = for gaps between its stamps, silent = while nothing came.",
        {"lost": "heard.lost_samples", "silent": "heard.silence_samples"},
        "cause",
        1 / MEDIA_RATE,
    ),
    Counted(
        "microphone_dropped_seconds",
        "Sound of the microphone left out because it came too late, or ran ahead of our clock.",
        {"late": "heard.late_dropped", "early": "heard.early_dropped"},
        "cause",
        1 / MEDIA_RATE,
    ),
    Counted(
        "microphone_jumps",
        "How often a microphone's time stamps jumped and were tied anew to our clock.",
        {"": "heard.re_anchored"},
    ),
    Counted(
        "delay_changes",
        "Frames by which the delay grew or shrank, in silence.",
        {"grew": "playout.stretched", "shrank": "playout.cut"},
        "direction",
    ),
    Counted("sound_underruns", "How often no sound was there when it had to leave.", {"": "playout.underruns"}),
    Counted(
        "sound_underrun_seconds",
        "Silence that left because no sound was there.",
        {"": "playout.underrun_samples"},
        "",
        1 / MEDIA_RATE,
    ),
    Counted("sound_blocks", "Blocks of 20 ms of sound that left.", {"": "output.blocks"}),
    Counted(
        "sound_skipped_blocks",
        "Blocks of 20 ms left out because the server was more than half a second late.",
        {"": "output.skipped_blocks"},
    ),
    Counted("late_packets", "Packets that left more than 20 ms after they were due.", {"": "output.late_packets"}),
    Counted("encoder_seconds", "Time that encoding took, sound and picture.", {"": "encoder.busy_s"}),
    Counted("encoded_frames", "Frames encoded.", {"": "encoder.frames"}),
    Counted("encoded_key_frames", "Key frames among the encoded frames.", {"": "encoder.key_frames"}),
    Counted("encoder_failures", "Encodings that failed.", {"": "encoder.failures"}),
    Counted(
        "encoder_builds", "Encoders of pictures built: for a codec, or for another bitrate.", {"": "encoder.builds"}
    ),
    Counted(
        "encoded_bytes",
        "Bytes of encoded packets that left, once each however many viewers there are.",
        _keys("bytes", "Opus", "H264", "VP8"),
        "codec",
    ),
    Counted(
        "viewer_packets",
        "Encoded packets handed to viewers.",
        {"sound": "viewers.sound_packets", "picture": "viewers.picture_packets"},
        "kind",
    ),
    Counted(
        "viewer_lost_packets",
        "RTP packets that did not reach viewers at first, as their RTCP receiver reports say.",
        {"": "viewers.lost"},
    ),
    Counted(
        "viewer_dropped_packets",
        "Encoded packets that viewers did not take in time.",
        {"sound": "viewers.sound_dropped", "picture": "viewers.picture_dropped"},
        "kind",
    ),
    Counted(
        "peer_packets_refused",
        "Packets of peers that were too many: media, feedback, data, and those they wanted sent again.",
        {
            "media": "guard.packets_refused",
            "feedback": "guard.reports_refused",
            "data": "guard.data_refused",
            "resent": "guard.resends_refused",
        },
        "kind",
    ),
    Counted("peer_faults", "Packets of peers that could not be handled.", {"": "guard.faults"}),
    Counted("peers_sent_away", "Peers sent away for what they sent.", {"": "guard.sent_away"}),
    Counted("events_dropped", "Events for pages that could not be sent.", {"": "events.dropped"}),
)

HISTOGRAMS = {
    "clip_s": ("clip_seconds", "Seconds from a clip's hand-over to the engine until its frames were there."),
    "delay_s": ("delay_seconds", "Media time minus playout time, looked at once a second in every stream."),
    "offset_size_ms": (
        "av_offset_size_ms",
        "How far sound and picture left apart, without the sign, looked at once a second in every stream.",
    ),
}


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
        "Processor time of the worker's process; begins anew with each process.",
        lambda _, use: use.cpu_s,
    ),
)


class NoLogFile:
    """Where there is no log file."""

    lost = 0
    writable = False


class NoAvatars:
    """Where none are uploaded."""

    added = 0
    deleted = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """What operators see beside streams and readiness: the version that runs, the workers as they stand, the log file,
    what the workers use, how many HTTP requests were refused, by the kind of problem, and the avatars that come and
    go."""

    version: str = ""
    workers: Callable[[], Sequence[WorkerStatus]] = tuple
    log: LogView = field(default_factory=NoLogFile)
    usage: Usage = field(default_factory=Usage)
    refusals: Names = field(default_factory=Names)
    avatars: AvatarsView = field(default_factory=NoAvatars)


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

    def collect(self) -> Iterator[Metric]:
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
        for counted in COUNTERS:
            yield counted.family(tally.counts)
        for key, (name, meaning) in HISTOGRAMS.items():
            yield _histogram(name, meaning, tally.histograms.get(key))
        yield _stages(tally.stages_s)
        yield from self._workers(watched.watch.workers())

    def _server(self) -> Iterator[Metric]:
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
        # Those that have not come yet are there with 0, so that the first one shows as a rise.
        refusals = {kind.reason: 0 for kind in ProblemType if kind is not ProblemType.GENERIC}
        refusals |= dict(watched.watch.refusals.items())
        yield _named("refusals", "HTTP requests refused, by the kind of problem.", "reason", refusals.items())
        yield _counter("requests_unreadable", "Requests that are no HTTP.", NOT_HTTP.count)
        yield _counter(
            "datagrams_refused",
            "Datagrams thrown away before anybody was known to have sent them: empty, malformed, or too many before a "
            "connection reads.",
            IceDatagrams.refused,
        )
        changes = (("added", watched.watch.avatars.added), ("deleted", watched.watch.avatars.deleted))
        yield _named("avatars_changed", "Avatars uploaded, and uploaded ones deleted.", "change", changes)
        yield _counter("log_lines_lost", "Lines that could not be written to the log file.", watched.watch.log.lost)
        yield _gauge(
            "log_file_writable", "1 if the latest line went to the log file, else 0.", float(watched.watch.log.writable)
        )

    def _streams(self, vitals: list[Vitals]) -> Iterator[Metric]:
        streams = GaugeMetricFamily(f"{PREFIX}streams", "Streams that are open, by state.", labels=["state"])
        for state in StreamState:
            streams.add_metric([state.value], sum(vital.state is state for vital in vitals))
        yield streams
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

    def _workers(self, workers: Sequence[WorkerStatus]) -> Iterator[Metric]:
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


def _histogram(name: str, meaning: str, histogram: Histogram | None) -> HistogramMetricFamily:
    """A histogram that nobody has begun yet is there without samples."""
    if histogram is None:
        return HistogramMetricFamily(PREFIX + name, meaning)
    return HistogramMetricFamily(PREFIX + name, meaning, buckets=histogram.cumulative(), sum_value=histogram.sum)


def _stages(stages_s: Mapping[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        f"{PREFIX}clip_stage_seconds", "Seconds of each stage of rendering a clip.", labels=["stage"]
    )
    for stage, histogram in sorted(stages_s.items()):
        family.add_metric([stage], buckets=histogram.cumulative(), sum_value=histogram.sum)
    return family
