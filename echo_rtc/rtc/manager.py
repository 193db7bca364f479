"""All streams of this server, their names and their peers: opens them from offers, within limits, and ends them.

A stream lives as long as it has a publisher. With a name and viewers it outlives a publisher that is lost (not one that
leaves) by a grace period: it shows the idle loop, and the next publisher under its name takes it over. The only
part that knows several streams. Knows no HTTP: what it raises are the classes of ``errors``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from echo_rtc.errors import (
    CapacityError,
    NameTakenError,
    NotLiveError,
    OfferError,
    RenegotiationError,
    StoppingError,
    TooManyError,
    UnknownStreamError,
)
from echo_rtc.rendering import Engine
from echo_rtc.rtc.memory import Sweeper
from echo_rtc.rtc.negotiation import Negotiation
from echo_rtc.rtc.offer import MediaPlan, Offer, plan_call, plan_publishing, plan_viewing, read_offer
from echo_rtc.rtc.peer import PORTS_RETRY_S, Peer, PeerOptions, Terms
from echo_rtc.rtc.ports import Lease, PortsExhaustedError
from echo_rtc.rtc.publisher_seat import PublisherSeat
from echo_rtc.rtc.seams.ice import apply_ice_patches
from echo_rtc.rtc.session import Caller, NoReservations, Opened, OpenedSpeech, Reservations, Role, checked_name
from echo_rtc.rtc.tracks import packetizer
from echo_rtc.stream.speech import Speaker
from echo_rtc.stream.stream import Stream, StreamOptions, VoiceSource
from echo_rtc.stream.tally import Ledger, Tally

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 10
"""Retry-After of a full server; a guess, because calls end at any time."""
NAME_RETRY_S = 2
"""Retry-After for a name that is taken or not live: a lost publisher is noticed within seconds."""
LINGER_S = 10.0
"""Grace period: how long viewers see the idle loop after the publisher was lost, before the stream ends."""
LOST = "the publisher was lost"
TAKEN_OVER = "another publisher has taken the stream over"
MAX_HALF_OPEN = 8
"""Peers of one address that are answered and not connected yet. A connection is up within a second; a peer that never
connects holds ports for ``--connect-timeout``."""
HALF_OPEN_RETRY_S = 2
PORTS_KEPT = 4
"""One part in this many of the UDP port range is kept for publishers, or fewer where there is room for fewer."""

IN_PROCESS = Caller(on_loopback=True)
"""The caller of an offer that did not come by HTTP: a program that uses this manager."""

_PLANS: Mapping[Role, Callable[[Offer], MediaPlan]] = {
    Role.CALL: plan_call,
    Role.PUBLISH: plan_publishing,
    Role.VIEW: plan_viewing,
}


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """The settings of the manager. ``max_streams``: how many streams there may be at once, 0 for as many as the engine
    holds by its measured speed. ``max_peers``: how many peers of one stream, 0 for any number."""

    stream: StreamOptions = field(default_factory=StreamOptions)
    max_streams: int = 0
    max_peers: int = 0
    peer: PeerOptions = field(default_factory=PeerOptions)
    linger_s: float = LINGER_S
    speech_timeout_s: float = 0.0
    """Time without a speaker or viewer after which a stream of pushed speech ends; 0: never."""


@dataclass(slots=True)
class ManagerCounters:
    """Offers refused: for want of room in the server; in one stream; because the name is taken; because nothing is live
    under the name; because too many of the client's connections are not up yet. And streams that a lost publisher came
    back to."""

    full: int = 0
    half_open: int = 0
    crowded: int = 0
    name_taken: int = 0
    not_live: int = 0
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class _Request:
    """An offer as it came: nothing of it has been read."""

    role: Role
    sdp: str
    caller: Caller
    pushed: bool = False
    """Whether a call's voice is pushed speech, and no microphone."""
    is_owner: bool = True
    """Whether the peer may control the stream."""

    @property
    def plan(self) -> Callable[[Offer], MediaPlan]:
        """Finds what the sections of the offer are for."""
        return plan_viewing if self.pushed else _PLANS[self.role]


@dataclass(slots=True, eq=False)
class _Session:
    """One peer of a stream, and the task that looks after it until it is gone."""

    id: str
    tag: str
    role: Role
    peer: Peer
    attendant: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Live:
    """A stream, its name if it has one, its peers, and the task that ends it with all of them. ``key``: the id that its
    publisher holds, by which it may end the stream; another publisher gets another one."""

    stream: Stream
    name: str | None
    key: str
    hold: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done, with the reason, when ``key`` is no longer good: the stream ends, or another publisher has it."""
    supervisor: asyncio.Task[None] | None = None
    seat: PublisherSeat[_Session] = field(default_factory=PublisherSeat)
    sessions: dict[str, _Session] = field(default_factory=dict)
    joining: int = 0
    """Viewers that are just being let in."""

    @property
    def publisher(self) -> _Session | None:
        """The peer that publishes the stream now."""
        return self.seat.publisher

    def let_go(self, reason: str) -> None:
        """The present key is no longer good."""
        if not self.hold.done():
            self.hold.set_result(reason)

    def pass_on(self, key: str) -> None:
        """Another publisher holds the stream by ``key``; clients admitted by the former key lose control."""
        self.let_go(TAKEN_OVER)
        self.hold, self.key = asyncio.get_running_loop().create_future(), key
        for session in self.sessions.values():
            session.peer.disown()

    def find(self, session_id: str) -> _Session | None:
        """The peer of this id."""
        lost = self.seat.lost
        if lost is not None and lost.id == session_id:
            return lost
        return self.sessions.get(session_id)


class StreamManager:
    """Opens, finds and ends streams and their peers."""

    def __init__(self, engine: Engine, options: ManagerOptions) -> None:
        apply_ice_patches()
        self._engine = engine
        self._options = options
        self._live: dict[str, _Live] = {}
        """By the streams' ids, which operators know."""
        self._keys: dict[str, _Live] = {}
        """By what their publishers hold."""
        self._names: dict[str, _Live | None] = {}
        """Every name in use; None while its stream is being built."""
        self._new_streams = 0
        """Streams that are being built."""
        self._building = 0
        """Peers that are being built."""
        self._built = asyncio.Event()
        """Set whenever nothing is being built."""
        self._built.set()
        self._half_open: Counter[str] = Counter()
        """Peers that are not up yet, by client."""
        self._closed = False
        self._sweeper = Sweeper()
        self.counters = ManagerCounters()
        self.ledger = Ledger()
        self.reservations: Reservations = NoReservations()
        self.on_open: Callable[[Stream, str | None], None] = lambda stream, name: None
        """Is called with each new stream and its name."""

    @property
    def capacity(self) -> int:
        """How many streams there may be at once."""
        return self._options.max_streams or self._engine.capacity

    @property
    def free(self) -> int:
        """How many more streams there may be now, those that are being built counted as there."""
        return max(0, self.capacity - len(self._live) - self._new_streams)

    @property
    def unreserved(self) -> int:
        """How many of these are not held for clients in the queue."""
        return max(0, self.free - self.reservations.held_for_others(""))

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams that are open, by id."""
        return {stream_id: live.stream for stream_id, live in self._live.items()}

    @property
    def peers(self) -> dict[Role, int]:
        """How many peers there are, by what they do."""
        roles = [session.role for live in self._live.values() for session in live.sessions.values()]
        return {role: roles.count(role) for role in Role}

    async def open_call(
        self, offer_sdp: str, avatar: str, name: str | None = None, caller: Caller | None = None, pushed: bool = False
    ) -> Opened:
        """Lets a peer in that sends a microphone and receives the avatar; with ``name``, others may view it under that.
        ``pushed``: it sends none, and speech is pushed to its stream.

        Raises OfferError, UnsupportedMediaError, RenegotiationError, NameTakenError or CapacityError; nothing is left
        behind then. The offer is read only where a name and a place are free for it.
        """
        request = _Request(Role.CALL, offer_sdp, caller or IN_PROCESS, pushed)
        return await self._publish(request, avatar, name)

    async def publish(self, name: str, offer_sdp: str, avatar: str, caller: Caller | None = None) -> Opened:
        """Lets a peer in that sends a microphone, whose avatar is to be viewed under ``name``. Raises as above."""
        return await self._publish(_Request(Role.PUBLISH, offer_sdp, caller or IN_PROCESS), avatar, name)

    async def open_speech(
        self, avatar: str, name: str | None = None, source: VoiceSource = VoiceSource.PUSHED, client: str = ""
    ) -> OpenedSpeech:
        """Opens a stream of pushed speech, which plays from now on; without a name it is viewed under one that is made
        for it. ``source``: the kind of client that pushes it; ``client``: for which a place may be held. Raises
        OfferError, NameTakenError or CapacityError."""
        if avatar not in self._engine.avatars:
            raise self._no_avatar(avatar)
        if name is not None:
            checked_name(name)
            if name in self._names or name in self._keys:
                raise self._taken(name)
        self._require_room(client)
        stream = self._stream(avatar, source)
        live = self._keep(stream, name or secrets.token_urlsafe(12))
        stream.begin()
        stream.log.info("opened%s: avatar %s, speech by %s", f" as {name}" if name else "", stream.avatar, source)
        return OpenedSpeech(live.key, live.name or "")

    def held(self, key: str) -> Stream:
        """The stream that its owner holds by ``key``. Raises UnknownStreamError where there is no such stream."""
        live = self._keys.get(key)
        if live is None or live.stream.ended.done():
            raise UnknownStreamError("there is no such stream; it may have ended")
        return live.stream

    def speaker(self, key: str) -> Speaker | None:
        """What says pushed speech in the stream that its owner holds by ``key``. Raises UnknownStreamError where there
        is no such stream; None where it has a microphone."""
        return self.held(key).speaker

    def ending(self, key: str) -> asyncio.Future[str] | None:
        """Done, with the reason, when the stream that its owner holds by ``key`` is to end, or another publisher has
        taken it over; None if that was so already."""
        live = self._keys.get(key)
        return None if live is None else live.hold

    def name_of(self, key: str) -> str | None:
        """The name under which the stream is viewed that its owner holds by ``key``."""
        live = self._keys.get(key)
        return None if live is None else live.name

    async def view(self, name: str, offer_sdp: str, caller: Caller | None = None) -> Opened:
        """Lets a peer in that receives the stream of that name or id.

        Raises OfferError, UnsupportedMediaError, RenegotiationError, NotLiveError or CapacityError; nothing is left
        behind then. The offer is read only where something is live and has a place free.
        """
        if self._closed:
            raise _stopping()
        live = self._find(name)
        with self._build(), self._seat(live):
            request = _Request(Role.VIEW, offer_sdp, caller or IN_PROCESS, is_owner=name == live.key)
            peer = await self._answer(self._read(request), live.stream)
            if live.stream.ended.done():  # meanwhile; another one may have its name already
                await peer.close()
                raise self._not_live(name)
            if name != live.key:  # or no longer: another publisher has taken the stream over
                peer.disown()
            return self._admit(live, peer, Role.VIEW)

    def find(self, role: Role, name: str, session_id: str) -> Opened | None:
        """The peer of this id, if it has this role in the stream of this name or id."""
        live = self._names.get(name) or self._keys.get(name)
        session = live.find(session_id) if live else None
        if live is None or session is None or session.role is not role:
            return None
        return Opened(session.id, live.key, session.tag, session.peer.answer_sdp)

    async def add_candidates(self, opened: Opened, fragment: str) -> None:
        """Takes ICE candidates of a peer that come after its offer. Raises OfferError, TooManyError or
        IceRestartError."""
        live = self._keys.get(opened.stream)
        session = live.find(opened.session) if live else None
        if session is not None:
            await session.peer.add_candidates(fragment)

    async def close_session(self, opened: Opened, reason: str) -> bool:
        """Ends a peer, and its stream if it is the publisher; waits until nothing of it is left. False if it has ended
        already."""
        live = self._keys.get(opened.stream)
        session = live.find(opened.session) if live else None
        if live is None or session is None:
            return False
        if session in (live.seat.publisher, live.seat.lost):
            return await self.close_stream(live.stream.id, reason)
        await session.peer.close(reason)
        assert session.attendant is not None
        await asyncio.wait({session.attendant})
        return True

    def stream_of(self, key: str) -> str | None:
        """The id of the stream that a publisher holds by ``key`` (``Opened.stream``); None if it has ended, or another
        publisher has taken it over."""
        live = self._keys.get(key)
        return None if live is None else live.stream.id

    async def close_stream(self, stream_id: str, reason: str) -> bool:
        """Ends a stream with all its peers and waits until nothing of it is left; False if there is none of that id."""
        live = self._live.get(stream_id)
        if live is None:
            return False
        await live.stream.close(reason)
        assert live.supervisor is not None
        await asyncio.wait({live.supervisor})
        return True

    def statistics(self, stream_id: str) -> dict[str, object] | None:
        """The counters of a stream; None if there is none of that id."""
        live = self._live.get(stream_id)
        if live is None:
            return None
        return {
            **live.stream.statistics(),
            "name": live.name,
            "published": live.publisher is not None,
        }

    def tally(self) -> Tally:
        """What all streams have counted since the start, those that ended too."""
        return self.ledger.total(live.stream for live in self._live.values())

    async def close(self, back_after_s: float | None = None) -> None:
        """Takes no further streams and ends all there are, those that are just being built too. Clients are told to
        come back after ``back_after_s``; None: not at all."""
        self._closed = True
        try:
            await self._built.wait()
            if back_after_s is not None:
                for live in self._live.values():
                    live.stream.say_when_to_reconnect(back_after_s)
            await asyncio.gather(*(self.close_stream(stream_id, "the server is stopping") for stream_id in self._live))
        finally:
            self._sweeper.close()

    async def _publish(self, request: _Request, avatar: str, name: str | None) -> Opened:
        if avatar not in self._engine.avatars:
            raise self._no_avatar(avatar)
        avatar = self._engine.avatars[avatar].name
        orphan = self._orphan(name, avatar, request.pushed) if name is not None else None
        if orphan is not None:
            with self._build():
                return await self._resume(orphan, request)
        self._require_room(request.caller.client)
        with self._build():
            return await self._open(request, avatar, name)

    def _find(self, name: str) -> _Live:
        """The live stream of that name or id. Raises NotLiveError."""
        live = self._names.get(name) or self._keys.get(name)
        if live is None or live.stream.ended.done():
            raise self._not_live(name)
        return live

    def _not_live(self, name: str) -> NotLiveError:
        self.counters.not_live += 1
        return NotLiveError(f"nothing is live under the name {name[:80]!r} now; try again later", NAME_RETRY_S)

    def _orphan(self, name: str, avatar: str, pushed: bool) -> _Live | None:
        """The stream under this name whose publisher was lost, to be taken over; None where the name is free. A stream
        keeps its kind of voice.

        Raises NameTakenError, and OfferError for what cannot be a name.
        """
        checked_name(name)
        if name not in self._names and name not in self._keys:
            return None
        live = self._names.get(name)
        is_fitting = live is not None and live.stream.avatar == avatar and pushed == (live.stream.speaker is not None)
        if live is None or not is_fitting or not live.seat.can_be_claimed:
            raise self._taken(name)
        return live

    def _taken(self, name: str) -> NameTakenError:
        self.counters.name_taken += 1
        return NameTakenError(
            f"the name {name!r} has a publisher; take another name, or wait until it leaves", NAME_RETRY_S
        )

    def _no_avatar(self, avatar: str) -> OfferError:
        return OfferError(f"there is no avatar {avatar!r}; choose one of {', '.join(self._engine.avatars)}")

    def _require_room(self, client: str) -> None:
        """Raises CapacityError unless there is a place that is not held for another client."""
        if self._closed:
            raise _stopping()
        if self.free <= self.reservations.held_for_others(client):
            self.counters.full += 1
            raise CapacityError(
                f"all {self.capacity} streams that this server holds in real time, with "
                f"{self._engine.capacity_steps} denoising steps at least, are taken; try again later",
                RETRY_AFTER_S,
            )
        self.reservations.take(client)

    async def _open(self, request: _Request, avatar: str, name: str | None) -> Opened:
        """A new stream with its publisher. Leaves nothing behind if it fails or is cancelled."""
        terms = self._read(request)
        self._new_streams += 1
        if name is not None:
            self._names[name] = None
        try:
            stream = self._stream(avatar, VoiceSource.PUSHED if request.pushed else VoiceSource.MICROPHONE)
            try:
                peer = await self._answer(terms, stream)
                if avatar not in self._engine.avatars:  # it was deleted meanwhile, while no stream showed it
                    await peer.close()
                    raise self._no_avatar(avatar)
            except BaseException as error:
                await stream.close(f"the offer could not be answered ({type(error).__name__})")
                raise
        except BaseException:
            terms.release()
            if name is not None:
                del self._names[name]
            raise
        finally:
            self._new_streams -= 1
        live = self._keep(stream, name)
        if request.pushed:
            # Speech may come before the connection is up.
            stream.begin()
        stream.log.info("opened%s: avatar %s, %s", f" as {name}" if name else "", stream.avatar, request.role)
        return self._admit(live, peer, request.role)

    def _stream(self, avatar: str, source: VoiceSource) -> Stream:
        """A new stream that does not run yet."""
        options = replace(self._options.stream, source=source)
        if options.pushed:
            options = replace(options, voice_timeout_s=self._options.speech_timeout_s)
        return Stream(self._engine, self._engine.avatars[avatar], options, packetizer)

    def _keep(self, stream: Stream, name: str | None) -> _Live:
        """A stream that has been built is one of ours from now on."""
        live = _Live(stream, name, stream.id)
        stream.ended.add_done_callback(lambda ended: live.let_go(ended.result()))
        self._live[stream.id] = self._keys[live.key] = live
        self.ledger.opened += 1
        if name is not None:
            self._names[name] = live
        live.supervisor = asyncio.create_task(self._supervise(live), name=f"supervise stream {stream.id[:8]}")
        self.on_open(stream, name)
        return live

    async def _resume(self, live: _Live, request: _Request) -> Opened:
        """Gives a stream whose publisher was lost to a new one; the former publisher's key is invalid from then on."""
        terms = self._read(request)
        live.seat.claim()
        try:
            peer = await self._answer(terms, live.stream)
        except BaseException:
            if live.seat.release():
                live.stream.end(LOST)
            raise
        if live.stream.ended.done():
            live.seat.release()
            await peer.close()
            raise self._taken(live.name or "")
        self.counters.resumed += 1
        live.stream.log.info("the publisher is back")
        del self._keys[live.key]
        live.pass_on(secrets.token_urlsafe(16))
        self._keys[live.key] = live
        return self._admit(live, peer, request.role)

    def _admit(self, live: _Live, peer: Peer, role: Role) -> Opened:
        """Makes a peer that was answered one of a stream's, and looks after it from now on."""
        session = _Session(secrets.token_urlsafe(16), secrets.token_urlsafe(9), role, peer)
        live.sessions[session.id] = session
        if role is not Role.VIEW:
            live.seat.take(session)
        name = f"attend a peer of stream {live.stream.id[:8]}"
        session.attendant = asyncio.create_task(self._attend(live, session), name=name)
        return Opened(session.id, live.key, session.tag, peer.answer_sdp, peer.ended)

    def _read(self, request: _Request) -> Terms:
        """Reads an offer, for which there is a name and a place. Raises OfferError, UnsupportedMediaError,
        RenegotiationError and CapacityError."""
        client = request.caller.client
        if client and self._half_open[client] >= MAX_HALF_OPEN:
            self.counters.half_open += 1
            raise TooManyError(
                f"{MAX_HALF_OPEN} connections from this address are being made and none is up yet; try again later",
                HALF_OPEN_RETRY_S,
            )
        reach = self._options.peer.network.reach(request.caller.on_loopback)
        offer = read_offer(request.sdp, reach)
        plan = request.plan(offer)
        sessions = (session for live in self._live.values() for session in live.sessions.values())
        if any(session.peer.is_up and offer.source.is_same(session.peer.source) for session in sessions):
            raise RenegotiationError(
                "this offer is of a connection that is up, and connections are not renegotiated here; it goes on as it "
                "is, and another one needs an RTCPeerConnection of its own"
            )
        negotiation = Negotiation.of(offer, plan)
        lease = self._lease(negotiation.transports, request.role)
        return Terms(offer, negotiation, reach, client, lease, request.is_owner)

    def _lease(self, transports: int, role: Role) -> Lease | None:
        """UDP ports for a peer, where there is a range of them; some are kept for publishers. Raises CapacityError."""
        network = self._options.peer.network
        ports = network.ports
        if ports is None:
            return None
        kept = 0
        if role is Role.VIEW:
            waiting = sum(live.publisher is None for live in self._live.values())
            kept = min((self.free + waiting) * network.ports_per_transport, len(ports) // PORTS_KEPT)
        try:
            return ports.lease(transports * network.ports_per_transport, kept)
        except PortsExhaustedError as error:
            raise CapacityError(f"{error.strerror}; try again later", PORTS_RETRY_S) from None

    async def _answer(self, terms: Terms, stream: Stream) -> Peer:
        client = terms.client
        self._half_open[client] += 1
        try:
            peer = await Peer.answer(terms, stream, self._engine.format, self._options.peer)
        except BaseException:
            terms.release()
            self._connected(client)
            self._sweeper.sweep_soon()
            raise
        peer.settled.add_done_callback(lambda _: self._connected(client))
        return peer

    def _connected(self, client: str) -> None:
        """A peer of this client is up or over."""
        self._half_open[client] -= 1
        if not self._half_open[client]:
            del self._half_open[client]

    @contextmanager
    def _seat(self, live: _Live) -> Iterator[None]:
        """A viewer is being let in while inside. Raises CapacityError if the stream has as many peers as it may."""
        limit = self._options.max_peers
        if limit and len(live.sessions) + live.joining >= limit:
            self.counters.crowded += 1
            raise CapacityError(
                f"this stream has {limit} peers, which is as many as it may have; try again later", RETRY_AFTER_S
            )
        live.joining += 1
        try:
            yield
        finally:
            live.joining -= 1

    @contextmanager
    def _build(self) -> Iterator[None]:
        """A peer is being built while inside; the manager's end waits for it."""
        self._building += 1
        self._built.clear()
        try:
            yield
        finally:
            self._building -= 1
            if not self._building:
                self._built.set()

    async def _attend(self, live: _Live, session: _Session) -> None:
        """A peer's life, and what its end means for the stream."""
        await asyncio.wait({session.peer.ended})
        reason = session.peer.ended.result()
        try:
            await session.peer.close()
        finally:
            del live.sessions[session.id]
            self._sweeper.sweep_soon()
        if session.role is Role.VIEW:
            live.stream.log.info("a viewer is gone: %s", reason)
        if session is live.publisher:
            watched = bool(live.sessions) or live.stream.watched
            if live.name is not None and watched and not live.stream.ended.done():
                grace_s = self._options.linger_s
                live.stream.log.info("the publisher is lost: %s; its name is kept for %g s", reason, grace_s)
                live.seat.lose(grace_s, lambda: live.stream.end(LOST))
            else:
                live.seat.leave()
                live.stream.end(reason)
        elif live.seat.is_vacant and not live.sessions and live.stream.speaker is None and not live.stream.watched:
            live.stream.end(LOST)

    async def _supervise(self, live: _Live) -> None:
        """A stream's life: once it is to end, all its peers go with it."""
        await asyncio.wait({live.stream.ended})
        reason = live.stream.ended.result()
        try:
            await live.stream.close(reason)
        finally:
            live.seat.close()
            peers = tuple(live.sessions.values())
            attendants = [session.attendant for session in peers if session.attendant is not None]
            try:
                await asyncio.gather(*(session.peer.close(reason) for session in peers), *attendants)
            finally:
                del self._live[live.stream.id], self._keys[live.key]
                self.ledger.close(live.stream, reason)
                if live.name is not None:
                    del self._names[live.name]
                self._sweeper.sweep_soon()


def _stopping() -> StoppingError:
    return StoppingError("the server is stopping and takes no new streams", RETRY_AFTER_S)
