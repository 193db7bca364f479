"""One avatar in one LiveKit room, from joining to leaving.

The agent is the participant on whose behalf the avatar's token lets it publish, or else the first agent that speaks to
it. Its byte streams are said, its RPC ``lk.clear_buffer`` interrupts, and it is told what was heard by the RPCs
``lk.playback_started`` and ``lk.playback_finished``.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Protocol

from livekit import rtc

from echo_rtc.errors import RoomError
from echo_rtc.participant.speech import AgentSpeech, Finished, Notice
from echo_rtc.stream.stream import Stream
from echo_rtc.stream.taps import Tap

AUDIO_TOPIC = "lk.audio_stream"
CLEAR_BUFFER = "lk.clear_buffer"
PLAYBACK_STARTED = "lk.playback_started"
PLAYBACK_FINISHED = "lk.playback_finished"
ON_BEHALF = "lk.publish_on_behalf"

JOIN_TIMEOUT_S = 10.0
LEAVE_TIMEOUT_S = 2.0
AGENT_GRACE_S = 30.0
"""An avatar whose agent is not in the room for this long leaves."""
CHECK_S = 1.0
MAX_SPEECH_BYTES = 32 * 1024 * 1024
"""Most of a segment that the library takes: eleven minutes at 24 kHz."""
MAX_NOTICES = 256
NOTICE_TRIES = 3
RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class _Call:
    """A remote procedure call to the agent."""

    method: str
    payload: str


class Output(Protocol):
    """Picture and sound in a room."""

    async def publish(self, participant: rtc.LocalParticipant) -> None: ...

    async def run(self, tap: Tap) -> None: ...

    async def close(self) -> None: ...


class RoomParticipant:
    """An avatar that is in a room, or on its way there."""

    def __init__(self, room: rtc.Room, stream: Stream, output: Output) -> None:
        assert stream.speaker is not None, "the stream hears a microphone"
        self._room = room
        self._stream = stream
        self._speaker = stream.speaker
        self._speaker.claimed = True
        self._agent: str | None = None
        self._without_agent_since_s = asyncio.get_running_loop().time()
        self._output = output
        self._connecting: asyncio.Task[None] | None = None
        self.leaving: asyncio.Task[None] | None = None
        """Leaves a room that is reached after :meth:`join` has given up; the library does not stop trying at once."""
        self._notices: asyncio.Queue[_Call] = asyncio.Queue(MAX_NOTICES)
        self._speech = AgentSpeech(self._speaker, stream.ended, stream.log, self._notify)
        room.on("disconnected", self._on_disconnected)
        room.on("reconnecting", lambda: stream.log.warning("the connection to the LiveKit room is lost; trying again"))
        room.on("reconnected", lambda: stream.log.info("the connection to the LiveKit room is back"))

    async def join(self, url: str, token: str) -> None:
        """Connects and publishes. Raises RoomError; nothing is left of the connection then, or once ``leaving`` is
        done."""
        options = rtc.RoomOptions(
            auto_subscribe=False,
            connect_timeout=JOIN_TIMEOUT_S / 2,
            data_stream=rtc.DataStreamOptions(max_payload_byte_length=MAX_SPEECH_BYTES),
        )
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                self._connecting = asyncio.create_task(
                    self._room.connect(url, token, options), name="join a LiveKit room"
                )
                await asyncio.shield(self._connecting)
                participant = self._room.local_participant
                self._agent = participant.attributes.get(ON_BEHALF) or None
                participant.register_rpc_method(CLEAR_BUFFER, self._on_clear)
                self._room.register_byte_stream_handler(AUDIO_TOPIC, self._on_speech)
                await self._output.publish(participant)
        except BaseException as error:
            if self._connecting is not None and not self._connecting.done():
                self.leaving = asyncio.create_task(self._leave_late(self._connecting), name="leave a LiveKit room")
            else:
                await self._leave()
            if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
                raise
            # The library's own words may quote what the server answered, which is not the caller's to read.
            self._stream.log.warning("the LiveKit room cannot be joined: %s: %s", type(error).__name__, error)
            raise RoomError("the LiveKit room cannot be joined; the server's log says why") from None
        self._stream.log.info("joined a LiveKit room as %s", participant.identity)

    async def run(self) -> None:
        """Speaks for the agent until the stream or the room ends; leaves the room."""
        tap = self._stream.add_tap()
        works = (self._output.run(tap), self._speech.run(), self._send_notices(), self._watch_agent())
        tasks = [asyncio.create_task(work, name="avatar in a LiveKit room") for work in works]
        try:
            either: set[asyncio.Future[Any]] = {self._stream.ended, *tasks}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    self._stream.log.error("the avatar leaves its LiveKit room: %s", result, exc_info=result)
            self._stream.end("the avatar has left its LiveKit room")
            self._speech.close()
            await self._leave()

    async def _leave_late(self, connecting: asyncio.Task[None]) -> None:
        try:
            await asyncio.wait({connecting})
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await self._room.disconnect()
        except Exception as error:  # the room may be gone already, in any way
            self._stream.log.warning("leaving a LiveKit room failed: %s", error)
        await self._output.close()

    def _on_disconnected(self, reason: object) -> None:
        self._stream.end("the LiveKit room has ended")

    def _on_speech(self, stream: rtc.ByteStreamReader, sender: str) -> None:
        if self._accepts(sender):
            self._speech.take(stream)
        else:
            self._stream.log.warning("speech of a participant that is not the avatar's agent was left out")
            stream.close()

    async def _on_clear(self, data: rtc.RpcInvocationData) -> str:
        if not self._accepts(data.caller_identity):
            return "reject"
        await self._speech.clear()
        return "ok"

    def _accepts(self, sender: str) -> bool:
        """Whether this is the avatar's agent."""
        if self._agent is None:
            participant = self._room.remote_participants.get(sender)
            if participant is None or participant.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
                return False
            self._agent = sender
        return sender == self._agent

    def _notify(self, notice: Notice) -> None:
        if isinstance(notice, Finished):
            content = {"playback_position": notice.position_s, "interrupted": notice.interrupted}
            call = _Call(PLAYBACK_FINISHED, json.dumps(content))
        else:
            call = _Call(PLAYBACK_STARTED, "")
        try:
            self._notices.put_nowait(call)
        except asyncio.QueueFull:
            self._stream.end("the agent of the LiveKit room answers no more")

    async def _send_notices(self) -> None:
        while True:
            call = await self._notices.get()
            for attempt in range(NOTICE_TRIES):
                if await self._sent(call, last=attempt == NOTICE_TRIES - 1):
                    break
                await asyncio.sleep(RETRY_S)

    async def _sent(self, call: _Call, last: bool) -> bool:
        """Whether the call need not be tried again."""
        if self._agent is None:
            return True
        try:
            await self._room.local_participant.perform_rpc(
                destination_identity=self._agent, method=call.method, payload=call.payload
            )
        except rtc.RpcError as error:
            if error.code == rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD and call.method == PLAYBACK_STARTED:
                return True  # an agent need not ask for it
            if last:
                self._stream.log.warning("the agent was not told %s: %s", call.method, error)
            return False
        return True

    async def _watch_agent(self) -> None:
        """Leaves once the agent has not been in the room for a while; a watched avatar is not idle."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_S)
            others = dict(self._room.remote_participants)
            agents = [self._agent] if self._agent else [name for name, who in others.items() if _is_agent(who)]
            if any(name in others for name in agents):
                self._without_agent_since_s = loop.time()
                if len(others) > 1:
                    self._speaker.keep_alive()
            elif loop.time() - self._without_agent_since_s > AGENT_GRACE_S:
                self._stream.end(f"its agent was not in the LiveKit room for {AGENT_GRACE_S:g} s")


def _is_agent(participant: Any) -> bool:
    return bool(participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT)
