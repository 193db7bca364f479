"""The recordings of a stream, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from echo_rtc.clips import ClipFormat
from echo_rtc.recording.options import RecordingLimits, RecordingOptions
from echo_rtc.recording.recordings import Recordings
from echo_rtc.stream.sinks import PacketSink
from tests.recording.film import FORMAT


@dataclass
class FakeStream:
    """A stream without packets."""

    id: str = "a-stream"
    avatar: str = "ann"
    format: ClipFormat = FORMAT
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def add_sink(self, sink: PacketSink) -> Callable[[], None]:
        self.ended.add_done_callback(lambda _: sink.close())
        return lambda: None

    def tell_recording(self, active: bool) -> None:
        """Nothing is connected."""


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
