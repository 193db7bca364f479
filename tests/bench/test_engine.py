"""The engine bench measures what is there, here at workers that draw test cards."""

from __future__ import annotations

import pytest

from echo_rtc.bench import engine as bench
from echo_rtc.clips import MEDIA_RATE, ClipFormat
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.local import LocalEngine
from echo_rtc.engine.testcard import CardLoader
from echo_rtc.engine.worker import ModelLoader, WorkerSpec
from echo_rtc.errors import SettingsError
from echo_rtc.settings import Settings

FORMAT = ClipFormat(fps=24, clip_frames=6, width=96, height=96)
CLIP_S = 0.1


def specs(count: int) -> list[WorkerSpec]:
    return [WorkerSpec(f"card {number}", CardLoader(FORMAT, CLIP_S)) for number in range(count)]


async def test_two_workers_do_twice_the_work_and_recover_from_a_loss() -> None:
    async with bench.running(LocalEngine(FORMAT, lambda: specs(2), FleetOptions(overlap_frames=0))) as engine:
        together = await bench.throughput(engine, 2, 12)
        assert together.frames_per_second == pytest.approx(2 * 6 / CLIP_S, rel=0.35)
        assert 0.0 <= together.idle_share < 0.5
        assert 0.0 < together.handover_ms < 1000 * CLIP_S
        assert await bench.recovery(engine) > CLIP_S
        assert [worker.restarts for worker in engine.workers] == [1, 0]


async def test_speech_moves_the_picture_within_clip_render_and_margin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "ONSETS", 1)
    monkeypatch.setattr(bench, "SILENCE_S", 1.5)
    (motion,) = await bench.speech_to_motion(FORMAT, CLIP_S)
    assert CLIP_S * 1000 < motion < 1500


def test_the_voice_speaks_where_it_says() -> None:
    voice, starts = bench.onsets_voice(FORMAT)
    assert len(starts) == bench.ONSETS
    for start in starts:
        assert not voice(start - 4800, 4800).any()
        assert voice(start, 480).any()
        assert not voice(start + round(bench.SPEECH_S * MEDIA_RATE), 4800).any()
    assert len({start % (MEDIA_RATE // 4) for start in starts}) > 2, "at different places of a clip"


def test_workers_share_the_cores_and_too_many_are_refused() -> None:
    settings = Settings(devices="cpu", model={"weights": "w"})
    first, second = bench.bench_specs(settings, 2, random_weights=True)
    assert (first.name, second.name) == ("cpu 1", "cpu 2")
    assert isinstance(first.loader, bench.SharingLoader)
    assert isinstance(first.loader.loader, bench.RandomLoader)
    assert isinstance(first.loader.loader, ModelLoader)
    (card,) = bench.bench_specs(settings, 1, cards_s=0.3)
    assert card.loader == CardLoader(settings.clip_format, 0.3, settings.steps)
    with pytest.raises(SettingsError, match="--workers is 0"):
        bench.main(["--workers", "0"])
    with pytest.raises(SettingsError, match="engine is testcard"):
        bench.main(["--engine", "testcard"])
