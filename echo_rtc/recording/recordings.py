"""All recordings of this server: begins and ends them, tells of those that run and of those on the disk.

A stream has one recording at a time. A recording ends with its stream, and its failure never ends the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from echo_rtc.clips import ClipFormat
from echo_rtc.counting import Names
from echo_rtc.errors import ConflictError, UnknownStreamError
from echo_rtc.recording.facts import RecordingFacts, RecordingState
from echo_rtc.recording.options import RecordingOptions
from echo_rtc.recording.recorder import STREAM_ENDED, Recorder
from echo_rtc.recording.shelf import Shelf
from echo_rtc.stream.sinks import PacketSink

STOPPED = "stopped by a client"
ORDINARY = (STREAM_ENDED, STOPPED)

logger = logging.getLogger(__name__)


class RecordedStream(Protocol):
    """The part of a stream that is recorded."""

    id: str
    avatar: str
    format: ClipFormat
    ended: asyncio.Future[str]

    def add_sink(self, sink: PacketSink) -> Callable[[], None]: ...

    def tell_recording(self, active: bool) -> None: ...


@dataclass(slots=True)
class RecordingCounters:
    """Recordings begun; bytes of those that ended; packets that a slow disk did not take."""

    begun: int = 0
    bytes: int = 0
    dropped_packets: int = 0


class Recordings:
    """The recordings of all streams."""

    def __init__(self, options: RecordingOptions, find: Callable[[str], RecordedStream | None]) -> None:
        """``find``: the live stream of an id."""
        self._options = options
        self._find = find
        self._shelf = Shelf(options.folder, options.finishing)
        self._latest: dict[str, Recorder] = {}
        """The running recording of each live stream, or its last one, by the stream's id."""
        self._ending: set[asyncio.Task[None]] = set()
        self.counters = RecordingCounters()
        self.ended = Names()
        """Recordings that have ended, by why."""

    @property
    def shelf(self) -> Shelf:
        return self._shelf

    @property
    def active(self) -> int:
        """How many are being recorded."""
        return sum(recorder.reason is None for recorder in self._latest.values())

    def opened(self, stream: RecordedStream, name: str | None) -> None:
        """A stream has begun, which is recorded if all are."""
        if self._options.all_streams:
            self._begin(stream, name)  # which looks at the disk with its first second, not here on the event loop

    async def start(self, stream_id: str, name: str | None) -> RecordingFacts:
        """Begins to record the stream of this id, which is viewed under ``name``. Raises ConflictError where that is
        done already, StorageError where the disk has too little left, UnknownStreamError where there is none."""
        self._require_none(stream_id)
        await asyncio.to_thread(self._shelf.require_free, self._options.limits.least_free_bytes)
        stream = self._find(stream_id)
        if stream is None or stream.ended.done():
            raise UnknownStreamError("there is no such stream; it may have ended")
        return self._begin(stream, name).facts

    async def stop(self, stream_id: str) -> RecordingFacts | None:
        """Ends a stream's recording and waits until it is complete; None where nothing is recorded."""
        recorder = self._latest.get(stream_id)
        if recorder is None or recorder.reason is not None:
            return None
        recorder.end(STOPPED)
        await recorder.finished()
        return recorder.facts

    def of(self, stream_id: str) -> RecordingFacts | None:
        """The running recording of a stream, or the last one that it had."""
        recorder = self._latest.get(stream_id)
        return None if recorder is None else recorder.facts

    def overview(self) -> Sequence[Mapping[str, object]]:
        """For operators, as JSON: the running recording of each live stream, or its last one, with the stream's id and
        the name of the file, None where there is none."""
        return [
            {**recorder.facts.as_json(), "stream_id": stream_id, "file": self._shelf.file_name(recorder.facts)}
            for stream_id, recorder in self._latest.items()
        ]

    async def list(self) -> Sequence[RecordingFacts]:
        """All that are running or on the disk, the newest first. Raises StorageError."""
        live = {recorder.facts.id: recorder.facts for recorder in self._latest.values()}
        found = await asyncio.to_thread(self._shelf.list)
        kept = [facts for facts in found if facts.id not in live or facts.state is RecordingState.COMPLETE]
        known = {facts.id for facts in kept}
        running = [
            facts for facts in live.values() if facts.id not in known and facts.state is not RecordingState.EMPTY
        ]
        return sorted([*running, *kept], key=lambda facts: facts.started, reverse=True)

    async def find(self, recording_id: str) -> Path | None:
        """The file of a complete recording."""
        return await asyncio.to_thread(self._shelf.find, recording_id)

    async def delete(self, recording_id: str) -> bool:
        """Deletes a complete recording; whether there was one. Raises StorageError."""
        return await asyncio.to_thread(self._shelf.delete, recording_id)

    async def close(self) -> None:
        """Waits for the recordings of streams that have ended."""
        while self._ending:
            await asyncio.wait(self._ending)

    def _require_none(self, stream_id: str) -> None:
        recorder = self._latest.get(stream_id)
        if recorder is not None and recorder.reason is None:
            raise ConflictError("the stream is being recorded already; end that by DELETE")

    def _begin(self, stream: RecordedStream, name: str | None) -> Recorder:
        self._require_none(stream.id)
        facts = self._shelf.new(name, stream.avatar)
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        recorder = Recorder(facts, self._shelf, self._options.limits, stream.format.fps, ended.set_result)
        remove = stream.add_sink(recorder)
        if stream.id not in self._latest:
            stream_id = stream.id
            stream.ended.add_done_callback(lambda _: self._forget(stream_id))
        self._latest[stream.id] = recorder
        self.counters.begun += 1
        stream.tell_recording(True)
        logger.info("[stream %s] recording %s begins", stream.id[:8], facts.id)
        task = asyncio.create_task(self._attend(stream, recorder, ended, remove), name=f"recording {facts.id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return recorder

    async def _attend(
        self, stream: RecordedStream, recorder: Recorder, ended: asyncio.Future[str], remove: Callable[[], None]
    ) -> None:
        """A recording's life."""
        reason = await ended
        remove()
        # The last event of a stream is its end; and another recording may have begun in the same moment.
        if not stream.ended.done() and self._latest.get(stream.id) is recorder:
            stream.tell_recording(False)
        await recorder.finished()
        facts = recorder.facts
        self.counters.bytes += facts.bytes
        self.counters.dropped_packets += recorder.dropped_packets
        self.ended.count(reason)
        severity = logging.INFO if reason in ORDINARY else logging.WARNING
        logger.log(
            severity,
            "[stream %s] recording %s has ended: %s; %.1f s, %d bytes, %s",
            *(stream.id[:8], facts.id, reason, facts.seconds, facts.bytes, facts.state),
        )
        if stream.ended.done():
            self._forget(stream.id)

    def _forget(self, stream_id: str) -> None:
        """The stream has ended: its recording is forgotten as soon as that has ended too."""
        recorder = self._latest.get(stream_id)
        if recorder is not None and recorder.is_finished:
            del self._latest[stream_id]
