"""Puts a guard in front of the data channels' transport (SCTP over DTLS)."""

from __future__ import annotations

import contextlib
import logging

from aiortc import RTCSctpTransport
from aiortc.rtcsctptransport import Chunk

from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.packets import Association, HostilePacketError, read_sctp
from echo_rtc.rtc.seams.checks import SeamError, method, require

_WINDOW = "_advertised_rwnd"
_STATE = ("_last_received_tsn", "_sack_misordered", "_local_tsn", "_inbound_streams")

logger = logging.getLogger(__name__)


def guard_data(sctp: RTCSctpTransport, guard: Guard) -> None:
    """Lets ``guard`` decide over every packet of data channels before aiortc handles it. Raises SeamError."""
    take_data = method(sctp, "_handle_data")
    require(sctp, _WINDOW, int)
    for name in _STATE:
        if not hasattr(sctp, name):
            raise SeamError(f"aiortc's RTCSctpTransport has no {name} any more")
    window = getattr(sctp, _WINDOW)

    async def on_data(data: bytes) -> None:
        if not guard.is_open:
            return
        try:
            packet = read_sctp(data, _association(sctp))
        except HostilePacketError as error:
            guard.hostile(str(error))
            return
        if not guard.data(packet.chunks, packet.opens, packet.begins):
            return
        try:
            await take_data(data)
        except ConnectionError:
            raise  # how aiortc says that the connection is over
        except Exception as error:  # a boundary: what aiortc trips over in a peer's packet is the peer's fault
            logger.debug("a packet could not be handled (messages)", exc_info=error)
            guard.fault("messages")
        guard.unfinished(window - getattr(sctp, _WINDOW))

    sctp._handle_data = on_data  # type: ignore[method-assign]
    send = method(sctp, "_send_chunk")

    async def send_unless_over(chunk: Chunk) -> None:
        # What waits to be sent when a connection ends would fail in a task that is never awaited.
        with contextlib.suppress(ConnectionError):
            await send(chunk)

    sctp._send_chunk = send_unless_over  # type: ignore[method-assign]


def _association(sctp: RTCSctpTransport) -> Association:
    return Association(
        received=sctp._last_received_tsn,
        misordered=len(sctp._sack_misordered),
        next_sent=sctp._local_tsn,
        streams=sctp._inbound_streams.keys(),
        waiting=sum(len(stream.reassembly) for stream in sctp._inbound_streams.values()),
    )
