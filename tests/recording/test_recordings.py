"""The recordings of a stream, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from echo_rtc.clips import ClipFormat
from echo_rtc.recording.options import RecordingLimits, RecordingOptions
from echo_rtc.recording.recordings import STOPPED, Recordings
from echo_rtc.stream.sinks import PacketSink
from tests.recording.film import FORMAT


@dataclass
class FakeStream:
    """A stream without packets. ``told``: whether it is recorded, as people in the call hear of it."""

    id: str = "a-stream"
    avatar: str = "ann"
    format: ClipFormat = FORMAT
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    told: list[bool] = field(default_factory=list)

    def add_sink(self, sink: PacketSink) -> Callable[[], None]:
        self.ended.add_done_callback(lambda _: sink.close())
        return lambda: None

    def tell_recording(self, active: bool) -> None:
        self.told.append(active)


async def test_a_stream_holds_none_of_its_ended_recordings(tmp_path: Path) -> None:
    stream = FakeStream()
    recordings = Recordings(RecordingOptions(tmp_path, False, RecordingLimits()), lambda _: stream)
    for _ in range(5):
        await recordings.start(stream.id, None)
        assert await recordings.stop(stream.id) is not None
        await recordings.close()
    assert repr(stream.ended._callbacks).count("Recordings.") == 1
    assert recordings.of(stream.id) is not None
    await recordings.start(stream.id, None)
    stream.ended.set_result("enough")
    await asyncio.sleep(0)
    await recordings.close()
    assert recordings.of(stream.id) is None


async def test_a_recording_that_follows_at_once_stays_told(tmp_path: Path) -> None:
    """Another one may begin in the moment in which one has ended."""
    stream = FakeStream()
    recordings = Recordings(RecordingOptions(tmp_path, False, RecordingLimits()), lambda _: stream)
    await recordings.start(stream.id, None)
    recordings._latest[stream.id].end(STOPPED)
    recordings._begin(stream, None)
    await asyncio.sleep(0)
    assert stream.told == [True, True]
    await recordings.stop(stream.id)
    assert stream.told == [True, True, False]
    await recordings.close()
