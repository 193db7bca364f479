"""Totals over streams: what ended ones have counted stays, and nothing ever goes back."""

from __future__ import annotations

from dataclasses import dataclass

from echo_rtc.counting import Histogram, HistogramMetric, counter, histogram
from echo_rtc.media.playout import FRAMES
from echo_rtc.stream.dispatch import MAX_STAGES, RenderTimes
from echo_rtc.stream.tally import METRICS, Ledger, Tally

DELAY_SECONDS = HistogramMetric("delay_seconds", "A delay.")


@dataclass
class FakeCounters:
    held: int = counter(FRAMES, "held")
    delay_s: Histogram = histogram(DELAY_SECONDS, (1,))


@dataclass
class FakeStream:
    held: int

    def tally(self) -> Tally:
        counters = FakeCounters(self.held)
        counters.delay_s.observe(self.held)
        return Tally(counters)


class EmptyLedger(Ledger):
    """Without the zeros of all metrics, one of which has other bounds here."""

    def __init__(self) -> None:
        super().__init__()
        self._past = Tally()


def test_totals_are_of_all_streams_there_were() -> None:
    ledger = EmptyLedger()
    one, two = FakeStream(1), FakeStream(5)
    assert ledger.total([one, two]).counts == {("frames", "held"): 6}
    ledger.close(two, "closed by the client")
    assert ledger.total([one]).counts == {("frames", "held"): 6}
    one.held = 3
    total = ledger.total([one])
    assert total.counts == {("frames", "held"): 8}
    assert total.histograms["delay_seconds", ""].counts == [0, 2]
    assert ledger.total([one]).counts == total.counts, "a look changes nothing"
    assert list(ledger.ended.items()) == [("closed by the client", 1)]


def test_all_metrics_are_there_from_the_start() -> None:
    total = Ledger().total([])
    assert set(total.counts.values()) == {0}
    assert {"frames", "clips", "viewer_packets", "microphone_packets"} < {name for name, _ in total.counts}
    assert {label for name, label in total.counts if name == "encoded_bytes"} == {"Opus", "H264", "VP8"}
    assert all(metric.meaning.endswith(".") for metric in METRICS.values())


def test_a_stream_that_is_looked_at_keeps_its_own() -> None:
    ledger = Ledger()
    kept = Histogram((1,))
    kept.observe(0.5)

    class Live:
        def tally(self) -> Tally:
            return Tally(RenderTimes(stages_s={"draw": kept}))

    for _ in range(3):
        assert ledger.total([Live()]).histograms["clip_stage_seconds", "draw"].count == 1
    assert kept.count == 1


def test_each_stage_is_timed() -> None:
    times = RenderTimes()
    times.observe(0.25, {"denoise": 200.0, "decode": 40.0})
    assert times.clip_s.sum == 0.25
    assert {stage: taken.sum for stage, taken in times.stages_s.items()} == {"denoise": 0.2, "decode": 0.04}
    assert times.means_ms() == {"denoise": 200.0, "decode": 40.0}


def test_stages_are_limited_in_number() -> None:
    times = RenderTimes()
    times.observe(1.0, {f"stage {i}": 1.0 for i in range(100)})
    assert len(times.stages_s) == MAX_STAGES
