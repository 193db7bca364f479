"""One RTCPeerConnection that this server offers: a stream's picture and sound, sent to another server.

Owns the connection and its share of the stream. Knows no HTTP: the offer and the answer are texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)

from echo_rtc.clips import ClipFormat
from echo_rtc.codec.picture import VideoCodec, codec_preference
from echo_rtc.errors import OfferError, UnsupportedMediaError
from echo_rtc.rtc.candidates import Reach
from echo_rtc.rtc.connections import close_connection, negotiate
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.negotiation import description_of, stand_in
from echo_rtc.rtc.network import Network
from echo_rtc.rtc.offer import Offer, Section, read_offer
from echo_rtc.rtc.ports import Lease, PortsExhaustedError
from echo_rtc.rtc.seams.guarding import guard_connection
from echo_rtc.rtc.seams.ports import ports_from
from echo_rtc.rtc.wiring import codec_preferences, send_to_viewer
from echo_rtc.stream.stream import Stream
from echo_rtc.stream.viewers import Viewer

_KINDS = ("video", "audio")


@dataclass(frozen=True, slots=True)
class Sent:
    """What the other side takes: the codec of the picture, None for none; and whether it takes sound."""

    codec: VideoCodec | None
    sound: bool


class OutgoingPeer:
    """A connection that is offered, up, or over. Made by :meth:`offer`."""

    def __init__(self, stream: Stream, network: Network, servers: Sequence[RTCIceServer]) -> None:
        loop = asyncio.get_running_loop()
        own: RTCConfiguration = network.configuration()
        configuration = RTCConfiguration([*servers, *(own.iceServers or ())], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self._connection = RTCPeerConnection(configuration)
        self._stream = stream
        self._network = network
        self._lease: Lease | None = None
        self._viewer: Viewer | None = None
        self._transceivers: dict[str, RTCRtpTransceiver] = {}
        self._closing: asyncio.Task[None] | None = None
        self.offer_sdp = ""
        self.up: asyncio.Future[None] = loop.create_future()
        """Done once packets can leave; cancelled where that never comes."""
        self.ended: asyncio.Future[str] = loop.create_future()
        """Done, with the reason, as soon as the connection is over."""
        self._connection.on("connectionstatechange", self._on_state)

    @classmethod
    async def offer(cls, stream: Stream, network: Network, servers: Sequence[RTCIceServer] = ()) -> OutgoingPeer:
        """A connection with its offer. Raises PortsExhaustedError; nothing is left of it then."""
        peer = cls(stream, network, servers)
        await negotiate(peer._offer(), peer.close, "offer an output")
        return peer

    async def accept(self, answer: str, reach: Reach) -> Sent:
        """Takes the answer, whose candidates ``reach`` limits, and sends what it accepts as soon as the connection is
        up. Raises UnsupportedMediaError where it accepts nothing, OfferError where it cannot be read."""
        try:
            read = read_offer(answer, reach)
            if [section.kind for section in read.sections] != list(_KINDS):
                raise OfferError("it answers other sections than were offered")
            sent = _sent(read, self._stream.format)
            mids = tuple(str(n) for n in range(len(_KINDS)))
            text = description_of(self._answered(read), mids, read.ice_lite)
            guard = Guard(self._end, asyncio.get_running_loop().time, self._stream.guard_counters)
            guard_connection(self._connection, guard, reach)
            await self._connection.setRemoteDescription(RTCSessionDescription(text, "answer"))
        except UnsupportedMediaError:
            raise
        except OfferError as error:
            raise OfferError(f"the answer cannot be used: {str(error).replace('offer', 'answer')}") from error
        except Exception as error:  # a boundary: the answer is untrusted
            raise OfferError(f"the answer cannot be used ({type(error).__name__})") from error
        self._viewer = self._stream.add_viewer(sent.codec, with_sound=sent.sound)
        picture, sound = (self._transceivers[kind].sender for kind in _KINDS)
        send_to_viewer(
            self._stream, self._viewer, picture if sent.codec is not None else None, sound if sent.sound else None
        )
        return sent

    async def close(self, reason: str = "closed") -> None:
        """Closes the connection and waits for it. The first reason counts."""
        self._end(reason)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close an output's connection")
        await asyncio.shield(self._closing)

    async def _offer(self) -> None:
        network = self._network
        if network.ports is not None:
            self._lease = network.ports.lease(network.ports_per_transport)
        for kind in _KINDS:
            transceiver = self._connection.addTransceiver(kind, "sendonly")
            transceiver.setCodecPreferences(codec_preferences(kind, self._stream.format))
            self._transceivers[kind] = transceiver
        with ports_from(network.ports) as binding:
            await self._connection.setLocalDescription(await self._connection.createOffer())
        if binding.exhausted:
            raise PortsExhaustedError("all UDP ports that this server may use for media are taken")
        self.offer_sdp = network.seen_from_outside(self._connection.localDescription.sdp)

    @staticmethod
    def _answered(read: Offer) -> tuple[Section, ...]:
        """The sections of an answer as aiortc can take them: those that were refused are there, and inactive."""
        (_, first), *_ = read.live
        sections = []
        for mid, section in enumerate(read.sections):
            if section.refused or not section.codecs:
                section = stand_in(replace(section, profile=first.profile, transport=first.transport))
            sections.append(replace(section, mid=str(mid)))
        return tuple(sections)

    def _on_state(self) -> None:
        state = self._connection.connectionState
        if state == "connected" and not self.up.done():
            self._stream.begin()
            self.up.set_result(None)
        elif state == "failed":
            self._end("the connection failed")
        elif state == "closed":
            self._end("the connection was closed by the other side or lost")

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)
        if not self.up.done():
            self.up.cancel()

    async def _close(self) -> None:
        if self._viewer is not None:
            self._stream.remove_viewer(self._viewer)
        await close_connection(self._connection, self._stream.log)
        if self._lease is not None:
            self._lease.release()


def _sent(answer: Offer, clip_format: ClipFormat) -> Sent:
    """What an answer accepts. Raises UnsupportedMediaError where that is nothing."""
    picture, sound = answer.sections
    # Of several, aiortc takes the one that was preferred in the offer.
    known = (codec for codec in codec_preference(clip_format) if codec.lower() in picture.codecs)
    codec = next(known, None) if picture.receives else None
    with_sound = sound.receives and "opus" in sound.codecs
    if codec is None and not with_sound:
        raise UnsupportedMediaError("the other server takes neither Opus nor H.264 or VP8")
    return Sent(codec, with_sound)
