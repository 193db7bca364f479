"""Sends ready packets in the place of aiortc's loop from track to transport."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any, Protocol

import av
from aiortc import RTCRtpSender
from aiortc.codecs import get_encoder
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import random_sequence_number
from aiortc.rtp import RTP_HISTORY_SIZE, HeaderExtensions, RtpPacket
from aiortc.utils import random32, uint16_add, uint32_add

from echo_rtc.rtc.seams.checks import SeamError, method
from echo_rtc.rtc.seams.clock import steady_ntp_time

MAX_UNSENT_BYTES = 256 * 1024
"""What may wait for a peer's socket, where the machine's own network is too slow; a second of picture and sound."""
UNSENT_WAIT_S = 0.005

_ENCODER = "_RTCRtpSender__encoder"
_EXTENSIONS = "_RTCRtpSender__rtp_header_extensions_map"
_HISTORY = "_RTCRtpSender__rtp_history"
_MID = "_RTCRtpSender__mid"
_NTP_TIME = "_RTCRtpSender__ntp_timestamp"
_RTP_TIME = "_RTCRtpSender__rtp_timestamp"
_OCTETS = "_RTCRtpSender__octet_count"
_PACKETS = "_RTCRtpSender__packet_count"
_RTP_STARTED = "_RTCRtpSender__rtp_started"
_RTP_EXITED = "_RTCRtpSender__rtp_exited"
_SENT_BYTES = "_RTCDtlsTransport__tx_bytes"
_SENT_PACKETS = "_RTCDtlsTransport__tx_packets"
_SENDER_STATE = (
    *(_ENCODER, _EXTENSIONS, _HISTORY, _MID, _NTP_TIME, _RTP_TIME, _OCTETS, _PACKETS, _RTP_STARTED, _RTP_EXITED),
    *("_run_rtp", "_ssrc"),
)

_RTP_HEADER = struct.Struct("!BBHLL")
_EXTENSION_HEADER = struct.Struct("!HH")
_Kept = tuple[int, int, int, bytes]
"""Marker and payload type, sequence number, time stamp and payload of a packet that may have to be sent again."""

logger = logging.getLogger(__name__)


class Sendable(Protocol):
    """A frame or a block of sound as RTP payloads; ``pts`` counts on the clock of its RTP time stamps."""

    @property
    def payloads(self) -> tuple[bytes, ...]: ...

    @property
    def pts(self) -> int: ...


class SendableTrack(Protocol):
    """Where parcels come from, when they are due."""

    async def recv(self) -> Sendable:
        """Raises MediaStreamError at the end."""
        ...

    def stop(self) -> None: ...


def payload_cutter(mime_type: str) -> Callable[[av.Packet[Any]], tuple[bytes, ...]]:
    """What cuts encoded frames of one stream, in order, into the payloads of RTP packets."""
    encoder = get_encoder(RTCRtpCodecParameters(mimeType=mime_type, clockRate=90_000, payloadType=0))
    return lambda packet: tuple(encoder.pack(packet)[0])


def send_parcels(sender: RTCRtpSender, track: SendableTrack) -> None:
    """Makes a sender send the parcels of ``track`` as they come. To be called before the connection is up.

    aiortc packs each frame for each peer and takes every packet through five coroutines to the socket: twice as much
    work. What waits for the socket is bounded here, and nothing is read from the track meanwhile. Raises SeamError.
    """
    _ParcelSender(sender, track)


class _ParcelSender:
    """Takes the place of aiortc's loop from track to transport, and tells its reports and its resending of lost packets
    what was sent."""

    def __init__(self, sender: RTCRtpSender, track: SendableTrack) -> None:
        for name in _SENDER_STATE:
            if not hasattr(sender, name):
                raise SeamError(f"aiortc's RTCRtpSender has no {name} any more")
        self._sender = sender
        self._track = track
        self._resend = method(sender, "_retransmit")
        self._kept: dict[int, _Kept] = {}
        sender._run_rtp = self._run  # type: ignore[method-assign]
        sender._retransmit = self._retransmit  # type: ignore[method-assign]

    async def _run(self, codec: RTCRtpCodecParameters) -> None:
        sender = self._sender
        getattr(sender, _RTP_STARTED).set()
        try:
            await self._send_all(codec)
        except (asyncio.CancelledError, ConnectionError, MediaStreamError):
            pass
        except Exception:  # aiortc waits for the end of this task, whatever it ends by
            logger.exception("sending to a peer failed")
        finally:
            self._track.stop()
            sender.replaceTrack(None)
            setattr(sender, _ENCODER, None)
            getattr(sender, _RTP_EXITED).set()

    async def _send_all(self, codec: RTCRtpCodecParameters) -> None:
        sender, payload_type = self._sender, codec.payloadType
        assert payload_type is not None  # it was negotiated
        number, origin = random_sequence_number(), random32()
        extensions = HeaderExtensions(mid=getattr(sender, _MID))
        while True:
            parcel = await self._track.recv()
            socket, address = await self._way()
            timestamp = uint32_add(origin, parcel.pts)
            extensions.abs_send_time = steady_ntp_time() >> 14 & 0xFFFFFF
            first, extension = self._extension(extensions)
            marked = len(parcel.payloads) - 1
            for i, payload in enumerate(parcel.payloads):
                kind = payload_type | (0x80 if i == marked else 0)
                header = _RTP_HEADER.pack(first, kind, number, timestamp, sender._ssrc)
                socket.sendto(sender.transport._tx_srtp.protect(header + extension + payload), address)
                self._kept[number % RTP_HISTORY_SIZE] = (kind, number, timestamp, payload)
                number = uint16_add(number, 1)
            self._count(timestamp, parcel.payloads)

    async def _way(self) -> tuple[asyncio.DatagramTransport, Any]:
        """The socket and the address of the peer, once not too much waits for the socket. Raises ConnectionError where
        there is no way to the peer any more."""
        dtls = self._sender.transport
        while True:
            pair = dtls.transport._connection._nominated.get(1)
            if pair is None or dtls.state != "connected":
                raise ConnectionError("the connection is over")
            socket = pair.protocol.transport
            # A relay's takes everything at once.
            waiting = getattr(socket, "get_write_buffer_size", lambda: 0)
            if waiting() <= MAX_UNSENT_BYTES:
                return socket, pair.remote_addr
            await asyncio.sleep(UNSENT_WAIT_S)

    def _extension(self, extensions: HeaderExtensions) -> tuple[int, bytes]:
        """The first byte of a packet's header, and its header extension (RFC 3550, 5.3.1)."""
        profile, value = getattr(self._sender, _EXTENSIONS).set(extensions)
        if not value:
            return 0x80, b""
        return 0x90, _EXTENSION_HEADER.pack(profile, len(value) // 4) + value

    def _count(self, timestamp: int, payloads: tuple[bytes, ...]) -> None:
        """For sender reports and statistics."""
        sender = self._sender
        size = sum(map(len, payloads))
        setattr(sender, _NTP_TIME, steady_ntp_time())
        setattr(sender, _RTP_TIME, timestamp)
        for owner, name, more in (
            (sender, _OCTETS, size),
            (sender, _PACKETS, len(payloads)),
            (sender.transport, _SENT_BYTES, size),
            (sender.transport, _SENT_PACKETS, len(payloads)),
        ):
            setattr(owner, name, getattr(owner, name) + more)

    async def _retransmit(self, sequence_number: int) -> None:
        number = sequence_number
        kept = self._kept.get(number % RTP_HISTORY_SIZE)
        if kept is not None and kept[1] == number:
            kind, _, timestamp, payload = kept
            packet = RtpPacket(kind & 0x7F, kind >> 7, number, timestamp, self._sender._ssrc, payload)
            packet.extensions.mid = getattr(self._sender, _MID)
            packet.extensions.abs_send_time = steady_ntp_time() >> 14 & 0xFFFFFF
            getattr(self._sender, _HISTORY)[number % RTP_HISTORY_SIZE] = packet
            await self._resend(number)
