"""The call benchmarks find the onsets that are there, and their server can be started, asked, refused and killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from echo_rtc.bench import stream
from echo_rtc.bench.latency import latencies
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.call_server import CallServer
from echo_rtc.bench.support.calls import CALLER_BUFFER_MS, Caller, Heard, Seen
from echo_rtc.bench.support.speaking import conversation, ways_ms
from echo_rtc.bench.sync import BEEP_AMPLITUDE, Beeps, Recording, offsets, summary
from echo_rtc.clips import MEDIA_RATE, ClipFormat
from echo_rtc.engine.card import CardArtist, level_of
from echo_rtc.rtc.seams.receiving import SenderClock

SMALL = {"width": 160, "height": 160, "fps": 24}


def recording_of(beeps: Beeps, seconds: float, picture_late_s: float) -> Recording:
    """What a perfect server sends back of these beeps, its picture late by so much."""
    clip_format = ClipFormat(**SMALL)
    artist = CardArtist(clip_format)
    recording = Recording(clip_format.fps)
    for start in range(0, round(seconds * MEDIA_RATE), 960):
        recording.hear(Heard(start / MEDIA_RATE + 1.0, start, beeps.voice(start, 960)))
    for frame in range(round(seconds * clip_format.fps)):
        first = round((frame / clip_format.fps - picture_late_s) * MEDIA_RATE)
        samples = beeps.voice(first, MEDIA_RATE // clip_format.fps) / 32_768
        level = level_of(float(np.sqrt(np.mean(np.square(samples)))))
        card = artist.draw(frame, [level], mark=1, idle=False)
        recording.see(Seen(0.0, frame * 3_750, card.y[0]))
    return recording


def clocks() -> SimpleNamespace:
    """A caller whose sender's clocks begin together."""
    made = []
    for rate in (MEDIA_RATE, 90_000):
        clock = SenderClock(rate)
        clock.packet(SimpleNamespace(timestamp=2**32 - 5_000))  # type: ignore[arg-type]
        info = SimpleNamespace(ntp_timestamp=100 * 2**32, rtp_timestamp=2**32 - 5_000, packet_count=1)
        clock.report(SimpleNamespace(sender_info=info))  # type: ignore[arg-type]
        made.append(clock)
    return SimpleNamespace(sound_clock=made[0], picture_clock=made[1])


@pytest.mark.parametrize("late_s", [0.0, 0.02, -0.035])
def test_the_sync_offset_is_measured_to_a_fraction_of_a_frame(late_s: float) -> None:
    beeps = Beeps.lasting(12.0)
    recording = recording_of(beeps, 14.0, late_s)
    assert recording.unreadable == 0
    assert [round(onset) for onset in recording.sound_onsets()] == pytest.approx(beeps.starts, abs=20)
    found = offsets(clocks(), recording, settle_s=2.0)  # type: ignore[arg-type]
    figures = summary(found)
    assert figures["n"] == len([start for start in beeps.starts if start >= 2 * MEDIA_RATE])
    assert figures["mean_ms"] == pytest.approx(late_s * 1000, abs=3.0)
    assert np.std(found) < 6.0


def test_nothing_heard_or_seen_gives_no_figures() -> None:
    assert offsets(clocks(), Recording(24)) == []  # type: ignore[arg-type]
    assert summary([]) == {"n": 0, "mean_ms": None, "p95_ms": None}


def test_a_report_maps_time_stamps_across_their_wrap() -> None:
    clock = clocks().sound_clock
    assert clock.wall_time(0) == 100.0
    info = SimpleNamespace(ntp_timestamp=101 * 2**32, rtp_timestamp=43_000, packet_count=2)
    clock.report(SimpleNamespace(sender_info=info))
    assert clock.wall_time(48_000 + 4_800) == pytest.approx(101.1)
    assert clock.wall_time(4_800) == pytest.approx(100.1)
    with pytest.raises(ValueError, match="no sender report"):
        SenderClock(90_000).wall_time(0)


@pytest.mark.parametrize("lost", [0, 2])
def test_each_beep_is_matched_with_itself_at_any_delay(lost: int) -> None:
    beeps = Beeps.lasting(20.0)
    way_s = 2.345
    arrivals = []
    for start in range(0, 22 * MEDIA_RATE, 960):
        pcm = (
            beeps.voice(start, 960) if start >= (beeps.starts[lost] - 5_000 if lost else 0) else np.zeros(960, np.int16)
        )
        arrivals.append(Heard(50.0 + start / MEDIA_RATE + way_s, start, pcm))
    found = latencies(beeps, 50.0, arrivals)
    assert len(found) >= 5
    assert found == pytest.approx([way_s * 1000 - CALLER_BUFFER_MS] * len(found), abs=1.0)
    assert latencies(beeps, None, arrivals) == []
    assert latencies(beeps, 50.0, []) == []


def test_voices_are_as_loud_as_they_say() -> None:
    beeps = Beeps.lasting(5.0)
    assert np.abs(beeps.voice(0, 5 * MEDIA_RATE)).max() == BEEP_AMPLITUDE
    whole = babble(0, 2 * MEDIA_RATE)
    assert np.array_equal(np.concatenate([babble(0, 1_000), babble(1_000, 1_000)]), whole[:2_000])
    assert 5_000 < np.abs(whole.astype(int)).max() < 32_767


async def test_the_server_refuses_in_words_and_may_be_killed() -> None:
    async with CallServer(SMALL) as server:
        with pytest.raises(RuntimeError, match="media section"):
            await server.open_call("nonsense")
        assert await server.statistics("nobody") == {}
        await server.end("nobody")
        process = psutil.Process(server.pid)
        server.kill()
    assert not process.is_running()


@pytest.mark.parametrize(("way_s", "part", "found"), [(1.234, 1.0, True), (0.4, 1.0, True), (1.234, 0.0, False)])
def test_the_way_of_speech_is_found_by_its_loudness(way_s: float, part: float, found: bool) -> None:
    """Packets come up to 15 ms late by turns; what is no echo of the voice is not taken for one."""
    chance, heard = np.random.default_rng(0), list[Heard]()
    late = round(way_s * MEDIA_RATE)
    for start in range(late - 48_000, round(20 * MEDIA_RATE), 960):
        noise = chance.normal(0.0, 200.0, 960)
        spoken = conversation(start - late, 960) if start >= late else np.zeros(960)
        pcm = (part * spoken + noise).astype(np.int16)
        heard.append(Heard(100.0 + start / MEDIA_RATE + chance.uniform(0.0, 0.015), 5_000 + start, pcm))
    ways = ways_ms(conversation, 100.0, heard)
    if found:
        assert len(ways) >= 5
        assert ways == pytest.approx([1000 * way_s + 7.5 - CALLER_BUFFER_MS] * len(ways), abs=2.5)
    else:
        assert ways == []
    assert ways_ms(conversation, None, heard) == ways_ms(conversation, 100.0, []) == []


def test_the_way_is_found_although_it_changes_in_a_pause() -> None:
    def heard_at(start: int) -> int:
        """What the sound that arrives is delayed by, in samples: less from the first pause on."""
        return round((1.3 if start < 9.5 * MEDIA_RATE else 0.9) * MEDIA_RATE)

    heard = []
    for start in range(0, round(18 * MEDIA_RATE), 960):
        spoken = start - heard_at(start)
        pcm = conversation(spoken, 960) if spoken >= 0 else np.zeros(960, np.int16)
        heard.append(Heard(start / MEDIA_RATE, start, pcm))
    ways = [way + CALLER_BUFFER_MS for way in ways_ms(conversation, 0.0, heard)]
    assert {round(way, -1) for way in ways} == {1300, 900}


async def test_a_call_through_the_server_is_measured() -> None:
    core, kbit, fps = await stream.measure("H264", SMALL, seconds=2.0, settle_s=1.5)
    assert 0.005 < core < 1.5
    assert kbit > 20
    assert fps == pytest.approx(24, abs=3)


def test_the_figures_are_the_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    async def measured(codec: str, *_: object, record: Path | None = None) -> tuple[float, float, float]:
        return (0.1 if codec == "H264" else 0.2) + (0.05 if record else 0.0), 500.0, 24.0

    monkeypatch.setattr(stream, "measure", measured)
    assert stream.main(["--seconds", "1"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {
        "h264_core": 0.1,
        "vp8_core": 0.2,
        "recorded_core": 0.15,
    }


async def test_a_silent_caller_has_no_microphone() -> None:
    caller = Caller(None)
    assert caller.microphone is None
    assert await caller.received_bytes() == 0
    await caller.close()
