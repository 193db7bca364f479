"""Rooms without a LiveKit server: as much of ``livekit.rtc.Room`` as agents and avatars use, connected in this process.

Everything else in the tests is the real thing: livekit-agents' audio output on the agent's side, ours on the avatar's.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from livekit import rtc

URL = "wss://livekit.example"
SECRET = "a-secret-of-a-livekit-server-that-is-not-there"
AGENT, AVATAR, PERSON = "agent-1", "echo-rtc-avatar", "ann"
ON_BEHALF = "lk.publish_on_behalf"
STANDARD, OF_AGENT = rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD, rtc.ParticipantKind.PARTICIPANT_KIND_AGENT


def ticket(room: str = "room", identity: str = AVATAR, **claims: Any) -> str:
    """An access token as LiveKit's library makes it."""
    content = {
        "sub": identity,
        "kind": "agent",
        "attributes": {ON_BEHALF: AGENT},
        "video": {"roomJoin": True, "room": room},
        **claims,
    }
    return jwt.encode(content, SECRET, algorithm="HS256")


@dataclass(eq=False)
class Info:
    attributes: dict[str, str] | None


class Reader:
    """An incoming byte stream."""

    def __init__(self, attributes: dict[str, str] | None) -> None:
        self.info = Info(attributes)
        self.chunks: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = None if self.closed else await self.chunks.get()
        if isinstance(chunk, Exception):
            raise chunk
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.chunks.put_nowait(None)


class Writer:
    """An outgoing byte stream, cut into chunks as LiveKit does."""

    def __init__(self, readers: list[Reader]) -> None:
        self._readers = readers

    async def write(self, data: bytes) -> None:
        for reader in self._readers:
            for start in range(0, len(data), 15_000):
                reader.chunks.put_nowait(data[start : start + 15_000])

    async def aclose(self) -> None:
        for reader in self._readers:
            reader.chunks.put_nowait(None)


@dataclass(eq=False)
class Publication:
    kind: Any
    sid: str = "TR"


@dataclass(eq=False)
class Remote:
    """A participant as others see it."""

    identity: str
    kind: Any
    attributes: Mapping[str, str]
    track_publications: dict[str, Publication] = field(default_factory=dict)
    state: Any = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE


class Local:
    """A participant as its own room has it."""

    def __init__(self, hub: Hub, me: Remote) -> None:
        self._hub = hub
        self._me = me
        self.identity, self.attributes, self.kind = me.identity, me.attributes, me.kind
        self.track_publications = me.track_publications
        self._rpc_handlers: dict[str, Callable[[rtc.RpcInvocationData], Any]] = {}
        self.published: list[tuple[Any, Any]] = []

    def register_rpc_method(self, name: str, handler: Callable[[rtc.RpcInvocationData], Any]) -> None:
        self._rpc_handlers[name] = handler

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        await asyncio.sleep(0.01)
        error = self._hub.rpc_errors.pop(0) if self._hub.rpc_errors else None
        room = self._hub.rooms.get(destination_identity)
        if room is None or error is not None:
            raise rtc.RpcError(error or rtc.RpcError.ErrorCode.RECIPIENT_NOT_FOUND, "not there")
        handler = room.local_participant._rpc_handlers.get(method)
        if handler is None:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, "unknown")
        self._hub.calls.append((asyncio.get_running_loop().time(), self.identity, method, payload))
        answer = handler(rtc.RpcInvocationData("1", self.identity, payload, 10.0, method))
        return str(await answer if inspect.isawaitable(answer) else answer)

    async def stream_bytes(
        self, *, name: str, topic: str, destination_identities: list[str], attributes: dict[str, str]
    ) -> Writer:
        readers = []
        for identity in destination_identities:
            handler = self._hub.rooms[identity].handlers.get(topic)
            if handler is not None:
                readers.append(Reader(attributes))
                handler(readers[-1], self.identity)
        return Writer(readers)

    async def publish_track(self, track: Any, options: Any = None) -> Publication:
        self.published.append((track, options))
        publication = Publication(track.kind, f"TR_{len(self.published)}")
        self._me.track_publications[publication.sid] = publication
        for room in self._hub.others(self.identity):
            room.emit("track_published", publication, self._me)
        return publication


class Hub:
    """One room, of which each participant has a :class:`Room`."""

    def __init__(self) -> None:
        self.rooms: dict[str, Room] = {}
        self.calls: list[tuple[float, str, str, str]] = []
        self.rpc_errors: list[int | None] = []
        """What the next remote procedure calls fail with."""

    def others(self, identity: str) -> list[Room]:
        return [room for name, room in self.rooms.items() if name != identity]


class Room(rtc.EventEmitter[Any]):
    """A participant's view of the room. ``refuses``: what connecting raises, or how long it takes (s)."""

    def __init__(self, hub: Hub, refuses: Exception | float | None = None) -> None:
        super().__init__()
        self._hub = hub
        self._refuses = refuses
        self._me: Remote | None = None
        self._local: Local | None = None
        self.handlers: dict[str, Callable[[Any, str], None]] = {}
        self.name = "room"
        self.options: rtc.RoomOptions | None = None
        self.left = False

    async def connect(self, url: str, token: str, options: rtc.RoomOptions) -> None:
        claims = jwt.decode(token, options={"verify_signature": False})
        self.options = options
        if isinstance(self._refuses, float):
            await asyncio.sleep(self._refuses)
        elif self._refuses is not None:
            raise self._refuses
        kind = OF_AGENT if claims.get("kind") == "agent" else STANDARD
        self.enter(claims["sub"], kind, claims.get("attributes") or {})

    def enter(self, identity: str, kind: Any = STANDARD, attributes: Mapping[str, str] | None = None) -> Room:
        self._me = Remote(identity, kind, attributes or {})
        self._local = Local(self._hub, self._me)
        self._hub.rooms[identity] = self
        for room in self._hub.others(identity):
            room.emit("participant_connected", self._me)
            room.emit("participant_active", self._me)
        return self

    def isconnected(self) -> bool:
        return self._me is not None

    @property
    def local_participant(self) -> Local:
        assert self._local is not None
        return self._local

    @property
    def remote_participants(self) -> dict[str, Remote]:
        me = self._me
        others = self._hub.others(me.identity) if me is not None else []
        return {room._me.identity: room._me for room in others if room._me is not None}

    def register_byte_stream_handler(self, topic: str, handler: Callable[[Any, str], None]) -> None:
        self.handlers[topic] = handler

    async def disconnect(self) -> None:
        self.left = True
        if self._me is not None:
            self.lose()

    def lose(self) -> None:
        """The connection ends, as when the room is deleted."""
        me, self._me = self._me, None
        assert me is not None
        del self._hub.rooms[me.identity]
        for room in self._hub.rooms.values():
            room.emit("participant_disconnected", me)
        self.emit("connection_state_changed", rtc.ConnectionState.CONN_DISCONNECTED)
        self.emit("disconnected", 1)
