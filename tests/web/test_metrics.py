"""GET /metrics: a real stream's counters as Prometheus gets them, their names, and the dashboard made of them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.counting import CounterMetric, Names
from echo_rtc.engine.meter import WorkerMeter
from echo_rtc.operations.usage import GpuUse, Usage
from echo_rtc.stream.pump import LATE_S
from echo_rtc.stream.tally import METRICS
from echo_rtc.web.metrics import PREFIX, Metrics, ServerCollector, Watch, Watched
from echo_rtc.web.protocol_log import NOT_HTTP
from tests.rtc.test_calls import house, until
from tests.web.conftest import Edge, FakeEngine, FakeStreams

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana.json"


class OneGpu:
    def use(self, device: str) -> GpuUse | None:
        return GpuUse(5 * 2**30, 80 * 2**30, 0.62) if device.startswith("cuda") else None


def samples(families: list[Metric]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(families: list[Metric], name: str, **labels: str) -> float:
    return samples(families)[PREFIX + name, frozenset(labels.items())]


async def test_a_scrape_is_in_prometheus_form(edge: Edge) -> None:
    async with edge.client.post("/offer", data=b"nonsense", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415
    async with edge.client.get("/nothing"), edge.client.get("/nothing"):
        pass
    async with edge.client.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        assert response.headers["Cache-Control"] == "no-store"
        families = list(text_string_to_metric_families(await response.text()))
    assert len({family.name for family in families}) == len(families), "a name is there twice"
    assert value(families, "engine_ready") == 1
    assert value(families, "streams_capacity") == 2
    assert value(families, "refusals_total", reason="unsupported-media-type") == 1
    assert value(families, "refusals_total", reason="not-found") == 2
    assert value(families, "refusals_total", reason="full") == 0
    assert all(family.documentation.endswith(".") for family in families if family.name.startswith(PREFIX))
    async with edge.client.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
        assert response.content_type == "application/openmetrics-text"
        assert (await response.text()).endswith("# EOF\n")


def test_refusals_by_name_cannot_be_made_many() -> None:
    refusals = Names()
    for number in range(1000):
        refusals.count(f"kind {number}")
    watched = Watched(FakeStreams(), FakeEngine(), "local", Watch(refusals=refusals))
    families = list(ServerCollector(watched).collect())
    [family] = [family for family in families if family.name == f"{PREFIX}refusals"]
    assert len(family.samples) < 60
    assert sum(sample.value for sample in family.samples) == 1000


def test_refused_datagrams_and_avatar_changes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Avatars:
        added: int = 5
        deleted: int = 2

    monkeypatch.setattr(NOT_HTTP, "count", 3)
    watched = Watched(FakeStreams(), FakeEngine(), "local", Watch(avatars=Avatars()))
    families = list(ServerCollector(watched).collect())
    assert value(families, "requests_unreadable_total") == 3
    assert value(families, "avatars_changed_total", change="added") == 5
    assert value(families, "avatars_changed_total", change="deleted") == 2


def test_workers_are_told_apart_by_their_names() -> None:
    meter = WorkerMeter()
    meter.rendered(0.25)
    meter.restarts = 2
    workers = [meter.status("cuda:0", up=True, waiting=1), WorkerMeter().status("cpu", up=False)]
    usage = Usage(OneGpu())
    usage.look([("cuda:0", None), ("cpu", 1)])
    watch = Watch("1.2.3", lambda: workers, usage=usage)
    families = list(ServerCollector(Watched(FakeStreams(), FakeEngine(), "local", watch)).collect())
    assert value(families, "info", version="1.2.3", engine="local") == 1
    assert value(families, "worker_up", worker="cuda:0") == 1
    assert value(families, "worker_up", worker="cpu") == 0
    assert value(families, "worker_restarts_total", worker="cuda:0") == 2
    assert value(families, "worker_clip_seconds", worker="cuda:0", percentile="95") == 0.25
    assert value(families, "worker_gpu_utilisation", worker="cuda:0") == 0.62
    assert value(families, "worker_gpu_memory_bytes", worker="cuda:0") == 5 * 2**30
    assert value(families, "worker_memory_bytes", worker="cpu") > 0
    assert (f"{PREFIX}worker_gpu_utilisation", frozenset({("worker", "cpu")})) not in samples(families)


def growing(families: list[Metric]) -> Mapping[tuple[str, frozenset[tuple[str, str]]], float]:
    """All that must never go back: counters, and histograms' buckets, counts and sums."""
    return samples([family for family in families if family.type in {"counter", "histogram"}])


async def test_a_calls_counters_are_there_and_stay_when_it_ends() -> None:
    async with house() as home:
        watched = Watched(home.manager, home.engine, "testcard", Watch(workers=lambda: home.engine.workers))
        collector = ServerCollector(watched)
        before = list(collector.collect())
        stream_id = await home.call(Caller(babble, codec="VP8"))
        [stream] = home.manager.streams.values()
        async with asyncio.timeout(15):
            while stream.vitals.offset_ms is None or stream.tally().counts["frames", "rendered"] < 10:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        during = list(collector.collect())
        # Whatever a stream counts is published, and nothing is published that it does not count.
        counted = stream.tally()
        told = {name for name, metric in METRICS.items() if isinstance(metric, CounterMetric)}
        assert {name for name, _ in counted.counts} == told
        assert {name for name, _ in counted.histograms} == METRICS.keys() - told
        vitals, output = stream.vitals, home.statistics(stream_id)["output"]
        assert vitals.viewers == 1
        assert vitals.bitrates["VP8"] > 0
        assert vitals.jitter_s is not None
        # The first receiver report of a viewer comes within seconds; here it goes the shortest way there is.
        await until(lambda: stream.vitals.round_trip_s is not None)
        assert 0 < (stream.vitals.round_trip_s or 0) < 15
        assert home.statistics(stream_id)["viewers"][0]["lost"] == 0
        if output["worst_late_s"] < LATE_S:  # else other programs took the processor
            assert abs(vitals.offset_ms or 0.0) < 1000 * LATE_S
        await home.manager.close_stream(stream_id, "the test has seen enough")
        await until(lambda: not home.manager.streams)
        after = list(collector.collect())
    open_states = {state: value(during, "streams", state=state) for state in ("idle", "speaking", "behind")}
    assert sum(open_states.values()) == 1
    assert [value(during, "peers", role=role) for role in ("call", "publish", "view")] == [1, 0, 0]
    assert value(during, "frames_total", kind="rendered") >= 10
    assert value(during, "clip_stage_seconds_count", stage="draw") >= 1
    assert value(during, "clip_seconds_bucket", le="+Inf") >= 1
    assert value(during, "delay_seconds_count") >= 1
    assert value(during, "av_offset_size_ms_count") >= 1
    assert value(during, "microphone_packets_total", outcome="received") > 10
    assert value(during, "encoded_bytes_total", codec="VP8") > 1000
    assert value(during, "viewer_packets_total", kind="picture") > 10
    assert value(during, "worker_clips_total", worker="testcard") >= 1
    assert value(after, "streams_opened_total") == 1
    assert value(after, "streams_ended_total", reason="the test has seen enough") == 1
    assert value(after, "streams", state="speaking") == 0
    for earlier, later in ((before, during), (during, after)):
        now = growing(later)
        for key, count in growing(earlier).items():
            assert now[key] >= count, key
    assert stream_id not in str(samples(after))


async def test_the_dashboard_shows_metrics_that_are_there() -> None:
    """Of a server that has everything: a stream that has ended, a worker with a GPU, refusals."""
    meter = WorkerMeter()
    meter.rendered(0.2)
    refusals = Names()
    refusals.count("full")
    async with house() as home:
        await home.call(Caller(babble))
        [stream] = home.manager.streams.values()
        await until(lambda: None not in (stream.vitals.offset_ms, stream.vitals.round_trip_s))
        await until(lambda: bool(stream.tally().histograms.get(("clip_stage_seconds", "draw"))))
        usage = Usage(OneGpu())
        usage.look([("cuda:0", 1)])
        watch = Watch("1", lambda: [meter.status("cuda:0", up=True)], usage=usage, refusals=refusals)
        home.manager.ledger.ended.count("closed by the client")
        metrics = Metrics(Watched(home.manager, home.engine, "local", watch))
        families = list(metrics.registry.collect())
    known: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    expressions += [variable["definition"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    assert len(expressions) > 30
    for expression in expressions:
        names = re.findall(rf"\b(?:{PREFIX}|process_)\w+", expression)
        assert names, expression
        for name in names:
            assert name in known, f"the dashboard asks for {name}, which is not a metric"
        labels = {*re.findall(r"by \((\w+)\)", expression), *re.findall(r'(\w+)(?:=~|=)"', expression)}
        labels -= {"instance", "job"}
        assert labels <= set().union(*(known[name] for name in names)), expression
    shown = {name for expression in expressions for name in re.findall(r"\w+", expression)}
    for important in ("refusals_total", "frames_total", "av_offset_ms", "worker_restarts_total", "streams_capacity"):
        assert PREFIX + important in shown
