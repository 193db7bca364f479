"""A server of calls in a process of its own, without HTTP: what benchmarks measure and tests may kill.

``python -m echo_rtc.bench.support.call_server '{"format": {"width": 512, ...}, "delay_s": 0.0, "core": null, "record":
null}'`` serves test cards; requests and answers are lines of JSON over standard input and output: {"offer": sdp},
which publishes with "publish": name and views with "view": name or id -> {"stream": id, "answer": sdp} or {"error":
words}; {"statistics": id} -> {"statistics": {...}}; {"end": id} -> {"ended": true}. End of input ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.testcard import ScriptedFaults, TestCardEngine
from echo_rtc.errors import EchoRtcError
from echo_rtc.recording.options import RecordingOptions
from echo_rtc.recording.recordings import Recordings
from echo_rtc.rtc.manager import ManagerOptions, StreamManager

MAX_LINE_BYTES = 1024 * 1024
CLOSE_TIMEOUT_S = 15.0


class CallServer:
    """The server's process, seen from outside. An async context manager."""

    def __init__(
        self,
        clip_format: Mapping[str, int],
        delay_s: float = 0.0,
        core: int | None = None,
        record: Path | None = None,
        decode_s: float = 0.0,
    ) -> None:
        """``clip_format``: arguments of ClipFormat; ``delay_s``: what each clip takes to render, of which ``decode_s``
        while its frames come; ``core``: the number of the one processor core that all of it runs on, None for any;
        ``record``: the folder into which every stream is recorded, None for no recordings."""
        self._options = json.dumps(
            {
                "format": dict(clip_format),
                "delay_s": delay_s,
                "decode_s": decode_s,
                "core": core,
                "record": None if record is None else str(record),
            }
        )
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._running().pid

    async def __aenter__(self) -> CallServer:
        command = (sys.executable, "-m", "echo_rtc.bench.support.call_server", self._options)
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=MAX_LINE_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running()
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def open_call(self, offer: str) -> tuple[str, str]:
        """(stream id, answer). Raises RuntimeError with the server's words if it refuses."""
        return await self._open({"offer": offer})

    async def publish(self, offer: str, name: str) -> tuple[str, str]:
        """As ``open_call``, for a peer that only speaks."""
        return await self._open({"offer": offer, "publish": name})

    async def view(self, offer: str, name: str) -> tuple[str, str]:
        """As ``open_call``, for a peer that only watches the stream of that name or id."""
        return await self._open({"offer": offer, "view": name})

    async def _open(self, request: dict[str, object]) -> tuple[str, str]:
        reply = await self._ask(request)
        if "error" in reply:
            raise RuntimeError(str(reply["error"]))
        return str(reply["stream"]), str(reply["answer"])

    async def statistics(self, stream_id: str) -> dict[str, object]:
        """The stream's counters; empty if it has ended."""
        found = (await self._ask({"statistics": stream_id}))["statistics"]
        return dict(found) if isinstance(found, dict) else {}

    async def end(self, stream_id: str) -> None:
        await self._ask({"end": stream_id})

    def kill(self) -> None:
        """SIGKILL: the server vanishes."""
        self._running().kill()

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "the server has not been started"
        return self._process

    async def _ask(self, request: dict[str, object]) -> dict[str, object]:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        async with self._lock:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            reply = json.loads(await process.stdout.readline())
        assert isinstance(reply, dict)
        return reply


async def serve(options: Mapping[str, object]) -> None:
    """Answers requests on standard input until it ends."""
    clip_format, delay_s, decode_s = options["format"], options["delay_s"], options["decode_s"]
    assert isinstance(clip_format, dict)
    assert isinstance(delay_s, float)
    assert isinstance(decode_s, float)
    if isinstance(core := options["core"], int):
        os.sched_setaffinity(0, {core})
    engine = TestCardEngine(ClipFormat(**clip_format), ScriptedFaults(delay_s=delay_s, decode_s=decode_s))
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions())
    recordings = None
    if isinstance(folder := options["record"], str):
        recordings = Recordings(
            RecordingOptions(Path(folder), all_streams=True), lambda each: manager.streams.get(each)
        )
        manager.on_open = recordings.opened
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            sys.stdout.write(json.dumps(await answer(manager, json.loads(line))) + "\n")
            sys.stdout.flush()
    finally:
        transport.close()
        await manager.close()
        if recordings is not None:
            await recordings.close()
        await engine.close()


async def answer(manager: StreamManager, request: Mapping[str, str]) -> dict[str, object]:
    """The answer to one request."""
    if "offer" in request:
        try:
            if "publish" in request:
                opened = await manager.publish(request["publish"], request["offer"], "default")
            elif "view" in request:
                opened = await manager.view(request["view"], request["offer"])
            else:
                opened = await manager.open_call(request["offer"], "default")
        except EchoRtcError as error:
            return {"error": str(error)}
        return {"stream": opened.stream, "answer": opened.answer_sdp}
    if "statistics" in request:
        return {"statistics": manager.statistics(request["statistics"])}
    await manager.close_stream(request["end"], "the caller asked for it")
    return {"ended": True}


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
