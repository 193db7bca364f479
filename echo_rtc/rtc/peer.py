"""One RTCPeerConnection of a stream: answers an offer, wires its tracks to the stream, and says when it is over.

Owns the connection and nothing else. A call publishes and views in one connection, others do one of the two: what a
peer does is a plan of which media section serves what.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from aiortc import (
    RTCDataChannel,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
    sdp,
)
from aiortc.exceptions import OperationError

from echo_rtc.clips import ClipFormat
from echo_rtc.codec.concealment import VoiceDecoder
from echo_rtc.codec.picture import VideoCodec
from echo_rtc.errors import CapacityError, IceRestartError, OfferError, TooManyError, UnsupportedMediaError
from echo_rtc.rtc.candidates import MAX_NAMED, Candidate, Reach
from echo_rtc.rtc.connections import close_connection, negotiate
from echo_rtc.rtc.fragment import read_fragment
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.negotiation import Negotiation, with_inband_fec, with_rtcp_mux_only
from echo_rtc.rtc.network import Network
from echo_rtc.rtc.offer import Offer, OfferSource
from echo_rtc.rtc.ports import Lease
from echo_rtc.rtc.reports import reception_of
from echo_rtc.rtc.seams.guarding import guard_connection
from echo_rtc.rtc.seams.jitter import decode_microphone, shorten_microphone_buffer
from echo_rtc.rtc.seams.ports import ports_from
from echo_rtc.rtc.voice import microphone
from echo_rtc.rtc.wiring import codec_preferences, send_to_viewer
from echo_rtc.stream.control import Control
from echo_rtc.stream.events import Event
from echo_rtc.stream.stream import Stream
from echo_rtc.stream.viewers import Viewer
from echo_rtc.token_bucket import TokenBucket

CONNECT_TIMEOUT_S = 15.0
"""A peer whose connection is not up this long after the answer is given up."""
PORTS_RETRY_S = 10
"""When to ask again while all ports are taken: they become free as calls end."""
FRAGMENTS_PER_S, FRAGMENTS_BURST = 5.0, 100.0
"""Requests with further candidates, each of which may take 5 ms to read; a client makes one or two for each address."""
GOODBYE_TIMEOUT_S = 0.2
"""Time that the last event may take to leave before the connection closes under it."""
MAX_EVENT_CHANNELS = 4
"""Data channels of a peer that get events; further ones are closed."""
MAX_CHANNEL_BACKLOG_BYTES = 64 * 1024
"""What may wait on a data channel; events beyond are left out."""


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """The settings of peers: how long a connection may take to come up, and how it finds its way."""

    connect_timeout_s: float = CONNECT_TIMEOUT_S
    network: Network = field(default_factory=Network)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a peer is answered by: the offer, what is negotiated of it, which addresses may be checked, the ``client``
    for limits, and the UDP ports that are set aside, None where there is no range. ``is_owner``:
    whether its messages control the stream."""

    offer: Offer
    negotiation: Negotiation
    reach: Reach
    client: str = ""
    lease: Lease | None = None
    is_owner: bool = False

    def release(self) -> None:
        """Gives the UDP ports back; idempotent."""
        if self.lease is not None:
            self.lease.release()


class Peer:
    """A connection that is being answered, up, or over. Made by :meth:`answer`."""

    def __init__(self, terms: Terms, stream: Stream, options: PeerOptions) -> None:
        loop = asyncio.get_running_loop()
        self._terms = terms
        self._plan = terms.negotiation.plan
        self._stream = stream
        self._network = options.network
        self._connection = RTCPeerConnection(options.network.configuration())
        self._viewer: Viewer | None = None
        self._decoder = VoiceDecoder() if terms.negotiation.plan.microphone is not None else None
        self._control = Control(stream.speaker, terms.is_owner)
        self._guard = Guard(self._end, loop.time, stream.guard_counters)
        self._channels: dict[RTCDataChannel, Callable[[], object]] = {}
        self._connect_timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self.answer_sdp = ""
        self._named = terms.offer.named
        self._fragments = TokenBucket(FRAGMENTS_PER_S, FRAGMENTS_BURST, loop.time())
        self.is_up = False
        """Whether the connection has come up, ever."""
        self.settled: asyncio.Future[None] = loop.create_future()
        """Done as soon as the connection is up or over."""
        self.ended: asyncio.Future[str] = loop.create_future()
        """Done, with the reason, as soon as the connection is over or given up."""
        self._connection.on("connectionstatechange", self._on_state)
        self._connection.on("datachannel", self._on_channel)

    @classmethod
    async def answer(cls, terms: Terms, stream: Stream, clip_format: ClipFormat, options: PeerOptions) -> Peer:
        """Answers an offer: its microphone, if the plan has one, drives ``stream``; picture and sound of the stream go
        where the plan says.

        Raises UnsupportedMediaError if no codec fits, OfferError if aiortc finds another fault and CapacityError if no
        UDP port is free; nothing is left of the connection then.
        """
        peer = cls(terms, stream, options)
        await negotiate(peer._answer(clip_format), peer.close, "answer an offer")
        if not peer.ended.done():
            # From the answer on: finding the server's own candidates takes time of its own.
            loop = asyncio.get_running_loop()
            peer._connect_timer = loop.call_later(options.connect_timeout_s, peer._end, "the connection never came up")
        return peer

    @property
    def source(self) -> OfferSource:
        """The client's connection that this is the other end of."""
        return self._terms.offer.source

    async def add_candidates(self, text: str) -> None:
        """Takes a fragment with ICE candidates that come after the offer; those that are of no use or too many are left
        out.

        Raises OfferError where it cannot be read, TooManyError where too many come, IceRestartError if they are not of
        the ICE session that the offer began.
        """
        now = asyncio.get_running_loop().time()
        if not self._fragments.take(1, now):
            raise TooManyError(
                "too many requests with candidates came for this session; send several candidates in one",
                math.ceil(self._fragments.wait_s(now)),
            )
        fragment = read_fragment(text)
        offer, reach = self._terms.offer, self._terms.reach
        if fragment.ufrag is not None and fragment.ufrag != offer.ufrag:
            raise IceRestartError(
                "the candidates belong to another ICE session, and this server does not restart ICE; "
                "the session goes on as it is, delete it and post a new offer to start again"
            )
        for trickled in fragment.candidates:
            candidate = trickled.candidate
            mid = offer.transport_of(trickled.mid, trickled.index)
            if mid is None or self._named >= MAX_NAMED or self.ended.done():
                continue
            if not reach.allows(candidate.address, candidate.port):
                continue
            self._named += 1
            with suppress(ValueError):  # the offer said that there were no more
                await self._connection.addIceCandidate(_ice_candidate(candidate, mid))

    async def close(self, reason: str = "closed by the server") -> None:
        """Closes the connection and waits for it. The first reason counts."""
        self._end(reason)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close a peer")
        await asyncio.shield(self._closing)

    async def _answer(self, clip_format: ClipFormat) -> None:
        transceivers = self._add_transceivers(clip_format)
        try:
            await self._connection.setRemoteDescription(RTCSessionDescription(self._terms.negotiation.sdp, "offer"))
        except OperationError as error:
            raise UnsupportedMediaError(
                "a section of the offer has no codec in common with this server; offer Opus, and H264 or VP8"
            ) from error
        except Exception as error:  # a boundary: the offer is untrusted
            self._stream.log.warning("an offer that could be read cannot be answered (%s)", type(error).__name__)
            self._stream.log.debug("where it fails", exc_info=True)
            raise OfferError("the session description cannot be answered; send that of an RTCPeerConnection") from error
        guard_connection(self._connection, self._guard, self._terms.reach)
        if self._plan.microphone is not None and self._decoder is not None:
            receiver = transceivers[self._plan.microphone].receiver
            shorten_microphone_buffer(receiver)
            decode_microphone(receiver, self._decoder)
        with ports_from(self._network.ports) as binding:
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        if binding.exhausted:
            raise CapacityError(
                "all UDP ports that this server may use for media are taken; try again later", PORTS_RETRY_S
            )
        answer = self._connection.localDescription.sdp
        self._wire(transceivers, answer)
        answer = with_inband_fec(with_rtcp_mux_only(self._network.seen_from_outside(answer)))
        self.answer_sdp = self._terms.negotiation.answer(answer)

    def _add_transceivers(self, clip_format: ClipFormat) -> dict[int, RTCRtpTransceiver]:
        """One per section of sound or picture, in the offer's order, which is how aiortc pairs them."""
        plan = self._plan
        directions: dict[int | None, str] = {plan.picture: "sendonly", plan.sound: "sendonly"}
        directions[plan.microphone] = "sendrecv" if plan.sound == plan.microphone else "recvonly"
        transceivers: dict[int, RTCRtpTransceiver] = {}
        for i, section in enumerate(self._terms.negotiation.sections):
            if section.kind == "application":
                continue
            transceiver = self._connection.addTransceiver(section.kind, directions.get(i, "inactive"))
            if i in directions:
                transceiver.setCodecPreferences(codec_preferences(section.kind, clip_format))
            transceivers[i] = transceiver
        return transceivers

    def _wire(self, transceivers: dict[int, RTCRtpTransceiver], answer: str) -> None:
        """Ties the tracks to the stream; runs before the connection can be up."""
        plan = self._plan
        answered = None
        if plan.picture is not None:
            answered = sdp.SessionDescription.parse(answer).media[plan.picture].rtp.codecs[0]
        if answered is not None or plan.sound is not None:
            codec = VideoCodec(answered.name) if answered is not None else None
            self._viewer = self._stream.add_viewer(codec, with_sound=plan.sound is not None)
        if self._viewer is not None:
            picture = transceivers[plan.picture].sender if plan.picture is not None else None
            sound = transceivers[plan.sound].sender if plan.sound is not None else None
            send_to_viewer(self._stream, self._viewer, picture, sound)
        if plan.microphone is not None and (decoder := self._decoder) is not None:
            receiver = transceivers[plan.microphone].receiver
            self._stream.listen(microphone(receiver.track), lambda: reception_of(receiver, decoder))

    def _on_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self._stop_timer()
            self.is_up = True
            self._settle()
            self._stream.begin()
        elif state == "failed":
            self._end("the connection failed")
        elif state == "closed":
            self._end("the connection was closed by the other side or lost")

    def disown(self) -> None:
        """The stream has another owner: messages of this connection control nothing any more."""
        self._control.is_owner = False

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if len(self._channels) >= MAX_EVENT_CHANNELS:
            channel.close()
            return

        def tell(event: Event) -> bool:
            return send_event(channel, event)

        def hear(data: str | bytes) -> None:
            if self._guard.control() and (error := self._control.follow(data)) is not None:
                tell(error)

        unsubscribe, unwatch = self._stream.subscribe(tell), self._control.watch(tell)
        self._channels[channel] = lambda: (unsubscribe(), unwatch())
        channel.on("message", hear)
        channel.on("close", lambda: self._forget(channel))

    def _forget(self, channel: RTCDataChannel) -> None:
        unsubscribe = self._channels.pop(channel, None)
        if unsubscribe is not None:
            unsubscribe()

    def _stop_timer(self) -> None:
        if self._connect_timer is not None:
            self._connect_timer.cancel()

    def _end(self, reason: str) -> None:
        self._stop_timer()
        self._settle()
        if not self.ended.done():
            self.ended.set_result(reason)

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)

    async def _close(self) -> None:
        await self._say_goodbye()
        for channel in tuple(self._channels):
            self._forget(channel)
        if self._viewer is not None:
            self._stream.remove_viewer(self._viewer)
        await close_connection(self._connection, self._stream.log)
        self._terms.release()

    async def _say_goodbye(self) -> None:
        """Lets events that were sent just now leave; aiortc's channels buffer and its close does not wait for them."""
        deadline = asyncio.get_running_loop().time() + GOODBYE_TIMEOUT_S
        while any(channel.bufferedAmount for channel in self._channels if channel.readyState == "open"):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.005)


def send_event(channel: RTCDataChannel, event: Event) -> bool:
    """Sends an event as JSON unless the channel is not open, is cut off or has too much waiting. Whether it did."""
    if channel.readyState != "open" or channel.bufferedAmount > MAX_CHANNEL_BACKLOG_BYTES:
        return False
    # A channel stays open when its connection is cut; what is sent then fails in a task that is never awaited.
    if channel.transport.transport.state != "connected":
        return False
    channel.send(json.dumps(event))
    return True


def _ice_candidate(candidate: Candidate, mid: str) -> RTCIceCandidate:
    return RTCIceCandidate(
        component=1,
        foundation=candidate.foundation,
        ip=str(candidate.address),
        port=candidate.port,
        priority=candidate.priority,
        protocol="udp",
        type="srflx" if candidate.kind == "prflx" else candidate.kind,
        sdpMid=mid,
    )
