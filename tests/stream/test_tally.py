"""Totals over streams: what ended ones have counted stays, and nothing ever goes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from echo_rtc.clips import YuvFrames
from echo_rtc.counting import Histogram
from echo_rtc.errors import RenderError
from echo_rtc.rendering import RenderRequest, RenderResult
from echo_rtc.stream.tally import MAX_STAGES, Ledger, Tally, TimedRenderer

REQUEST = RenderRequest("default", np.zeros(10, np.float32), 1, 0, 0)
FRAMES = YuvFrames(*(np.zeros((1, side, side), np.uint8) for side in (4, 2, 2)))


@dataclass
class FakeStream:
    held: int

    def tally(self) -> Tally:
        tally = Tally(histograms={"delay_s": Histogram((1,))})
        tally.count("frames", {"held": self.held})
        tally.histograms["delay_s"].observe(self.held)
        return tally


def test_totals_are_of_all_streams_there_were() -> None:
    ledger = Ledger()
    one, two = FakeStream(1), FakeStream(5)
    assert ledger.total([one, two]).counts == {"frames.held": 6}
    ledger.close(two, "closed by the client")
    assert ledger.total([one]).counts == {"frames.held": 6}
    one.held = 3
    total = ledger.total([one])
    assert total.counts == {"frames.held": 8}
    assert total.histograms["delay_s"].counts == [0, 2]
    assert ledger.total([one]).counts == total.counts, "a look changes nothing"
    assert list(ledger.ended.items()) == [("closed by the client", 1)]


def test_a_stream_that_is_looked_at_keeps_its_own() -> None:
    ledger = Ledger()
    histogram = Histogram((1,))
    histogram.observe(0.5)

    class Live:
        def tally(self) -> Tally:
            return Tally(stages_s={"draw": histogram})

    for _ in range(3):
        assert ledger.total([Live()]).stages_s["draw"].count == 1
    assert histogram.count == 1


@dataclass
class FakeRenderer:
    stages_ms: dict[str, float]
    failure: RenderError | None = None

    async def render(self, request: RenderRequest) -> RenderResult:
        if self.failure:
            raise self.failure
        return RenderResult(FRAMES, stages_ms=self.stages_ms)


async def test_each_stage_is_timed() -> None:
    times = iter([0.0, 0.25])
    renderer = TimedRenderer(FakeRenderer({"denoise": 200.0, "decode": 40.0}), lambda: next(times))
    await renderer.render(REQUEST)
    assert renderer.clip_s.sum == 0.25
    assert {stage: times.sum for stage, times in renderer.stages_s.items()} == {"denoise": 0.2, "decode": 0.04}


async def test_a_clip_that_is_lost_is_not_timed() -> None:
    renderer = TimedRenderer(FakeRenderer({}, RenderError("the worker is gone")), lambda: 0.0)
    with pytest.raises(RenderError):
        await renderer.render(REQUEST)
    assert renderer.clip_s.count == 0


async def test_stages_are_limited_in_number() -> None:
    renderer = TimedRenderer(FakeRenderer({f"stage {i}": 1.0 for i in range(100)}), lambda: 0.0)
    await renderer.render(REQUEST)
    assert len(renderer.stages_s) == MAX_STAGES
