"""Puts a guard in front of everything that aiortc does with a peer's packets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from aiortc import (
    RTCDtlsTransport,
    RTCIceParameters,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
)
from aiortc.rtp import AnyRtcpPacket, RtcpByePacket, RtcpRtpfbPacket

from echo_rtc.rtc.candidates import Reach
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.packets import rtcp_packets, rtp_extension_bytes
from echo_rtc.rtc.seams.checks import method
from echo_rtc.rtc.seams.ice import guard_ice
from echo_rtc.rtc.seams.sctp import guard_data

logger = logging.getLogger(__name__)


def guard_connection(connection: RTCPeerConnection, guard: Guard, reach: Reach) -> None:
    """Lets ``guard`` decide over every packet that the other side of a connection sends, and ``reach`` over the
    addresses that it sends from.

    aiortc handles all that comes, keeps what never ends, and ends a connection with a traceback where a packet breaks
    it. To be called after the offer was taken and before the connection is up. Raises SeamError.
    """
    transceivers = connection.getTransceivers()
    transports = {transceiver.receiver.transport for transceiver in transceivers}
    if connection.sctp is not None:
        transports.add(connection.sctp.transport)
        guard_data(connection.sctp, guard)
    for transport in transports:
        _guard_media(transport, guard)
        guard_ice(transport.transport, guard, reach)
        _start_once(transport.transport)
    for transceiver in transceivers:
        _guard_feedback(transceiver.sender, guard)
        _ignore_goodbyes(transceiver.receiver)


def _guard_media(transport: RTCDtlsTransport, guard: Guard) -> None:
    take_packet = method(transport, "_handle_rtp_data")
    take_report = method(transport, "_handle_rtcp_data")

    async def on_packet(data: bytes, arrival_time_ms: int) -> None:
        if guard.packet(int.from_bytes(data[8:12], "big"), rtp_extension_bytes(data)):
            await contained(take_packet(data, arrival_time_ms=arrival_time_ms), guard, "media")

    async def on_report(data: bytes) -> None:
        if guard.report(rtcp_packets(data)):
            await contained(take_report(data), guard, "feedback")

    transport._handle_rtp_data = on_packet  # type: ignore[method-assign]
    transport._handle_rtcp_data = on_report  # type: ignore[method-assign]


def _start_once(ice: RTCIceTransport) -> None:
    """Makes starting a closed transport a no-op. aiortc does that where an offer has several transports, and would
    fail in a task that is never awaited."""
    start = method(ice, "start")

    async def start_unless_closed(remoteParameters: RTCIceParameters) -> None:
        if ice.state == "closed":
            raise asyncio.CancelledError("the connection was closed while it was coming up")
        await start(remoteParameters)

    ice.start = start_unless_closed  # type: ignore[method-assign]


def _guard_feedback(sender: RTCRtpSender, guard: Guard) -> None:
    take_report = method(sender, "_handle_rtcp_packet")

    async def on_report(packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRtpfbPacket):
            lost = list(dict.fromkeys(packet.lost))
            packet.lost = lost[: guard.resends(len(lost))]
        await take_report(packet)

    sender._handle_rtcp_packet = on_report  # type: ignore[method-assign]


def _ignore_goodbyes(receiver: RTCRtpReceiver) -> None:
    """A goodbye (RTCP BYE) would stop the receiver for the rest of the connection, and hold up the event loop until all
    that waits is decoded. A source may end and another one begin; a peer that leaves closes the connection."""
    take_report = method(receiver, "_handle_rtcp_packet")

    async def on_report(packet: AnyRtcpPacket) -> None:
        if not isinstance(packet, RtcpByePacket):
            await take_report(packet)

    receiver._handle_rtcp_packet = on_report  # type: ignore[method-assign]


async def contained(work: Awaitable[None], guard: Guard, what: str) -> None:
    """Lets no peer's packet end a task of aiortc's with a traceback."""
    try:
        await work
    except ConnectionError:
        raise  # how aiortc says that the connection is over
    except Exception as error:  # a boundary: what aiortc trips over in a peer's packet is the peer's fault
        logger.debug("a packet could not be handled (%s)", what, exc_info=error)
        guard.fault(what)
