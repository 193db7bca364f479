"""The one place that reaches into aiortc and aioice beyond what they document.

These things cannot be had otherwise: a short jitter buffer for the microphone; key-frame requests, bitrate estimates
and sender reports for tracks that hand out ready packets; losing a vanished peer within seconds instead of half a
minute; not waiting long for a dead STUN or TURN server; UDP ports of a range; and limits to what strangers may send.
Every reach is checked: if aiortc has changed, :class:`SeamError` says which attribute is gone. It knows nothing of
streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import queue
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import aioice.ice
import aioice.turn
import av
from aiortc import (
    RTCDtlsTransport,
    RTCIceParameters,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCSctpTransport,
)
from aiortc.clock import current_ntp_time
from aiortc.codecs import get_encoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import random_sequence_number
from aiortc.rtcsctptransport import Chunk
from aiortc.rtp import (
    RTP_HISTORY_SIZE,
    AnyRtcpPacket,
    HeaderExtensions,
    RtcpByePacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
)
from aiortc.utils import random32, uint16_add, uint32_add

from echo_rtc.rtc.ports import PortRange, PortsExhaustedError

MICROPHONE_WAITING_PACKETS = 3
"""Packets of the microphone that may wait for one before them; then it counts as lost. A later one finds its place
taken."""
MICROPHONE_JUMP_PACKETS = 100
"""Sequence numbers that fall back by more than this are no late packets: the sender counts anew."""
CONSENT_INTERVAL_S = 1
CONSENT_FAILURES = 4
"""Consent checks in a row without an answer after which a peer counts as gone (RFC 7675). Each takes half a second to
fail and the next one waits for about ``CONSENT_INTERVAL_S``: six seconds in all, and a gap of four is lived through."""

GATHERING_LIMIT_S = 2
"""Most that STUN and TURN servers may delay an answer. TURN over TLS takes five round trips."""
MAX_UNSENT_BYTES = 256 * 1024
"""What may wait for a peer's socket, where the machine's own network is too slow; a second of picture and sound."""
UNSENT_WAIT_S = 0.005
RELAY_END_LIMIT_S = 1.0
"""Most that a TURN server may take to give up a relay; it does so by itself some minutes later."""
MAX_QUEUED_DATAGRAMS = 512
"""Datagrams of a connection that may wait to be read, most of all before it is up."""

_WINDOW = "_advertised_rwnd"
_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"
_ENCODER = "_RTCRtpSender__encoder"
_LAST_REPORT = "_RTCRtpSender__lsr"
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


_NTP_ORIGIN = current_ntp_time() - (time.monotonic_ns() << 32) // 10**9


def steady_ntp_time() -> int:
    """The wall clock as RTP states it (32.32 bits of seconds since 1900), which goes on evenly when the system's clock
    is set. Receivers would take a step for a gap of its size between sound and picture, until both have been reported.
    """
    return _NTP_ORIGIN + (time.monotonic_ns() << 32) // 10**9


class SeamError(RuntimeError):
    """aiortc or aioice no longer has an attribute that this server replaces; the message names it."""


class MicrophoneJitterBuffer(JitterBuffer):
    """Puts the microphone's packets into order; each is whole by itself and is passed on as soon as its turn has come.

    aiortc's takes a packet for whole only when the next one is there. So it holds every packet back, drops the one
    before each that is lost (of 5 % lost packets it makes 10 %, and 25 % at its own size), and once one was lost it
    holds 14 of them for the rest of the call. This one holds none, and two after a loss: aiortc asks it for one packet
    whenever one comes. Packets without a payload (padding) pass by: an empty packet means "flush" to FFmpeg's decoder,
    which would end it for good.
    """

    def __init__(self) -> None:
        super().__init__(capacity=4)
        self._next: int | None = None
        self._held: dict[int, RtpPacket] = {}

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        number = packet.sequence_number
        if self._next is None or self._ahead(number) < -MICROPHONE_JUMP_PACKETS:
            self._held.clear()
            self._next = number
        ahead = self._ahead(number)
        if ahead >= 0:
            self._held[number] = packet
            if self._next not in self._held and (
                ahead > MICROPHONE_WAITING_PACKETS or len(self._held) >= MICROPHONE_WAITING_PACKETS
            ):
                self._next = min(self._held, key=self._ahead)
        while self._next in self._held:
            due = self._held.pop(self._next)
            self._next = (self._next + 1) % 2**16
            if due.payload:
                return False, JitterFrame(due._data, due.timestamp)  # type: ignore[attr-defined]  # the receiver's
        return False, None

    def _ahead(self, number: int) -> int:
        """How far a sequence number is ahead of the next one, negative if behind it."""
        assert self._next is not None
        return (number - self._next + 2**15) % 2**16 - 2**15


class Estimates:
    """What a sender takes for its encoder, where the stream encodes: passes the receiver's bitrate estimates (REMB,
    bit/s) on."""

    def __init__(self, on_bitrate: Callable[[int], None]) -> None:
        self._on_bitrate = on_bitrate
        self._target_bitrate = 0

    @property
    def target_bitrate(self) -> int:
        """The latest estimate in bit/s; 0 before the first."""
        return self._target_bitrate

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._target_bitrate = bitrate
        self._on_bitrate(bitrate)


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
        self._resend = _method(sender, "_retransmit")
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


def shorten_microphone_buffer(receiver: RTCRtpReceiver) -> None:
    """Replaces the jitter buffer of an audio receiver that has not received yet. Raises SeamError."""
    _require(receiver, _JITTER_BUFFER, JitterBuffer)
    setattr(receiver, _JITTER_BUFFER, MicrophoneJitterBuffer())


def wire_feedback(sender: RTCRtpSender, on_key_frame: Callable[[], None], on_bitrate: Callable[[int], None]) -> None:
    """Makes a video sender pass PLI and FIR to ``on_key_frame`` and REMB (bit/s) to ``on_bitrate``.

    To be called before the connection is up. Raises SeamError.
    """
    if not callable(getattr(sender, "_send_keyframe", None)):
        raise SeamError("aiortc's RTCRtpSender has no method _send_keyframe; key-frame requests would be lost")
    _require(sender, _ENCODER, type(None))
    sender._send_keyframe = on_key_frame  # type: ignore[method-assign]
    setattr(sender, _ENCODER, Estimates(on_bitrate))


def report_due_times(sender: RTCRtpSender, due_s: Callable[[], float | None], now_s: Callable[[], float]) -> None:
    """Makes a sender's reports (RFC 3550, 6.4.1) state when its latest packet was due, by ``due_s``, instead of when it
    left: receivers align sound and picture by these times, and a busy machine sends one of the two late.

    Both callables give seconds of one monotonic clock; ``due_s`` is None before the first packet. Raises SeamError.
    """
    if not callable(getattr(sender, "_send_rtcp", None)) or not hasattr(sender, _LAST_REPORT):
        raise SeamError(f"aiortc's RTCRtpSender has no _send_rtcp or {_LAST_REPORT}; its reports cannot be corrected")
    send = sender._send_rtcp

    async def send_corrected(packets: list[AnyRtcpPacket]) -> None:
        due = due_s()
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and packet.sender_info.packet_count and due is not None:
                stated = steady_ntp_time() - round((now_s() - due) * 2**32)
                packet.sender_info.ntp_timestamp = stated
                # Round trips are measured by the middle of the stated time, which the receiver sends back.
                setattr(sender, _LAST_REPORT, stated >> 16 & 0xFFFFFFFF)
        await send(packets)

    sender._send_rtcp = send_corrected  # type: ignore[method-assign]


def shorten_gathering() -> None:
    """Makes ICE go on without STUN and TURN servers that do not answer in time, in this process: neither the beginning
    of a connection waits for them nor its end. Raises SeamError."""
    gather = aioice.ice.Connection.get_component_candidates
    names = inspect.getfullargspec(gather).args
    if names[-1:] != ["timeout"] or len(gather.__defaults__ or ()) != 1:
        raise SeamError("aioice's get_component_candidates has no timeout; a dead STUN server would delay every call")
    gather.__defaults__ = (GATHERING_LIMIT_S,)
    end = aioice.turn.TurnClientMixin.delete
    if hasattr(end, "limited"):
        return
    if inspect.getfullargspec(end).args != ["self"] or "finally:" not in inspect.getsource(end):
        raise SeamError("aioice's TURN client does not close when its end is cut short; a dead server would keep calls")

    async def delete(relay: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RELAY_END_LIMIT_S):
                await end(relay)

    delete.limited = True  # type: ignore[attr-defined]
    aioice.turn.TurnClientMixin.delete = delete


@dataclass(slots=True)
class Binding:
    """The sockets that are opened while :func:`ports_from` is inside. ``exhausted``: one of them found no free port."""

    ports: PortRange | None
    exhausted: bool = False


@contextmanager
def ports_from(ports: PortRange | None) -> Iterator[Binding]:
    """While inside, in this task and those it starts, UDP sockets without a port of their own get one of ``ports``.

    aioice asks the running loop for its sockets, and goes on without those that it cannot have; so the loop is taught
    about ranges, and what was missing is told by the Binding. Raises SeamError.
    """
    binding = Binding(ports)
    if ports is not None:
        _teach_ranges(asyncio.get_running_loop())
    before = _BINDING.set(binding)
    try:
        yield binding
    finally:
        _BINDING.reset(before)


_BINDING: ContextVar[Binding | None] = ContextVar("binding", default=None)
_ENDPOINT = "create_datagram_endpoint"


def _teach_ranges(loop: asyncio.AbstractEventLoop) -> None:
    """Puts the ports of the present Binding, if there is one, into what this loop opens. Once for each loop."""
    create = getattr(loop, _ENDPOINT)
    if hasattr(create, "knows_ranges"):
        return
    for module in (aioice.ice, aioice.turn):
        if _ENDPOINT not in inspect.getsource(module):
            raise SeamError(f"{module.__name__} does not call {_ENDPOINT} any more; --udp-ports would not hold")

    async def create_within(
        factory: Callable[[], asyncio.DatagramProtocol],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
        **more: Any,
    ) -> Any:
        binding = _BINDING.get()
        chosen = local_addr is not None and local_addr[1] != 0
        if binding is None or binding.ports is None or chosen or "sock" in more:
            return await create(factory, local_addr, remote_addr, **more)
        hosts = [local_addr[0]] if local_addr is not None else ["0.0.0.0", "::"]

        async def bind(port: int) -> Any:
            for host in hosts[:-1]:
                with suppress(ValueError):  # the other side has no address of this kind
                    return await create(factory, (host, port), remote_addr, **more)
            return await create(factory, (hosts[-1], port), remote_addr, **more)

        try:
            return await binding.ports.open(bind)
        except PortsExhaustedError:
            binding.exhausted = True
            raise

    create_within.knows_ranges = True  # type: ignore[attr-defined]
    setattr(loop, _ENDPOINT, create_within)


def shorten_consent() -> None:
    """Makes ICE notice a vanished peer after about six seconds, in this process. Raises SeamError."""
    for name in ("CONSENT_INTERVAL", "CONSENT_FAILURES"):
        if not isinstance(getattr(aioice.ice, name, None), int):
            raise SeamError(f"aioice.ice has no integer {name}; vanished peers would hold their place for 30 s")
    aioice.ice.CONSENT_INTERVAL = CONSENT_INTERVAL_S
    aioice.ice.CONSENT_FAILURES = CONSENT_FAILURES


def _require(owner: object, name: str, kind: type) -> None:
    if not hasattr(owner, name) or not isinstance(getattr(owner, name), kind):
        raise SeamError(f"aiortc's {type(owner).__name__} has no {name} of type {kind.__name__} any more")


class SenderClock:
    """What a receiver has learnt of its sender's clock: the RTP timestamp from which its frames' pts count, and the
    sender reports, each of which ties an RTP timestamp to the sender's wall clock (RFC 3550, 6.4.1)."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._origin: int | None = None
        self._reports: list[tuple[float, int]] = []

    @property
    def reports(self) -> int:
        """How many sender reports have come."""
        return len(self._reports)

    def packet(self, packet: RtpPacket) -> None:
        if self._origin is None:
            self._origin = packet.timestamp

    def report(self, packet: RtcpSrPacket) -> None:
        info = packet.sender_info
        if self._origin is not None and info.packet_count:
            # Within 2**31 ticks of the first packet: hours, which is more than anything that measures runs for.
            ticks = (info.rtp_timestamp - self._origin + 2**31) % 2**32 - 2**31
            self._reports.append((info.ntp_timestamp / 2**32, ticks))

    def wall_time(self, pts: float) -> float:
        """The sender's wall clock (s since 1900) at ``pts``, by the latest report before it, else the first after.
        Raises ValueError before the first report."""
        if not self._reports:
            raise ValueError("no sender report has come yet")
        seconds, ticks = max((r for r in self._reports if r[1] <= pts), key=lambda r: r[1], default=self._reports[0])
        return seconds + (pts - ticks) / self._rate


def watch_sender(receiver: RTCRtpReceiver, rate: int) -> SenderClock:
    """Follows what the sender of a receiver says of its clock, from now on. ``rate`` is the RTP clock in Hz.

    Measurements use it; the server does not. Raises SeamError.
    """
    clock = SenderClock(rate)
    for name in ("_handle_rtp_packet", "_handle_rtcp_packet"):
        if not callable(getattr(receiver, name, None)):
            raise SeamError(f"aiortc's RTCRtpReceiver has no method {name}; the sender's clock cannot be followed")
    take_packet, take_report = receiver._handle_rtp_packet, receiver._handle_rtcp_packet

    async def on_packet(packet: RtpPacket, arrival_time_ms: int) -> None:
        clock.packet(packet)
        await take_packet(packet, arrival_time_ms)

    async def on_report(packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpSrPacket):
            clock.report(packet)
        await take_report(packet)

    receiver._handle_rtp_packet = on_packet  # type: ignore[method-assign]
    receiver._handle_rtcp_packet = on_report  # type: ignore[method-assign]
    return clock


def without_decoding(receiver: RTCRtpReceiver, on_frame: Callable[[int], None]) -> None:
    """Makes a receiver that has not received yet call ``on_frame`` with the timestamp of each whole encoded frame,
    instead of decoding it. Its reports, its requests and its jitter buffer stay as they are.

    Measurements use it; the server does not. Raises SeamError.
    """
    _require(receiver, _DECODER_QUEUE, queue.Queue)
    inner: queue.Queue[Any] = getattr(receiver, _DECODER_QUEUE)

    class Counting:
        """Takes the place of the queue to the decoder's thread, which gets to know only of its end."""

        def put(self, task: tuple[RTCRtpCodecParameters, JitterFrame] | None) -> None:
            if task is None:
                inner.put(None)
            else:
                on_frame(task[1].timestamp)

        def get(self) -> Any:
            return inner.get()

    setattr(receiver, _DECODER_QUEUE, Counting())


class Gate(Protocol):
    """Says what of a peer's packets is handled; see ``guard.Guard``."""

    def packet(self, source: int) -> bool: ...

    def report(self) -> bool: ...

    def data(self) -> bool: ...

    def resends(self, wanted: int) -> int: ...

    def unfinished(self, size: int) -> None: ...

    def fault(self, what: str) -> None: ...


def guard_connection(connection: RTCPeerConnection, gate: Gate) -> None:
    """Lets ``gate`` decide over every packet that the other side of a connection sends through its encryption.

    aiortc handles all that comes, keeps what never ends, and ends a connection with a traceback where a packet breaks
    it. To be called after the offer was taken and before the connection is up. Raises SeamError.
    """
    transceivers = connection.getTransceivers()
    transports = {transceiver.receiver.transport for transceiver in transceivers}
    if connection.sctp is not None:
        transports.add(connection.sctp.transport)
        _guard_data(connection.sctp, gate)
    for transport in transports:
        _guard_media(transport, gate)
        _start_once(transport.transport)
    for transceiver in transceivers:
        _guard_feedback(transceiver.sender, gate)
        _ignore_goodbyes(transceiver.receiver)


def _guard_media(transport: RTCDtlsTransport, gate: Gate) -> None:
    take_packet = _method(transport, "_handle_rtp_data")
    take_report = _method(transport, "_handle_rtcp_data")

    async def on_packet(data: bytes, arrival_time_ms: int) -> None:
        if gate.packet(int.from_bytes(data[8:12], "big")):
            await _contained(take_packet(data, arrival_time_ms=arrival_time_ms), gate, "media")

    async def on_report(data: bytes) -> None:
        if gate.report():
            await _contained(take_report(data), gate, "feedback")

    transport._handle_rtp_data = on_packet  # type: ignore[method-assign]
    transport._handle_rtcp_data = on_report  # type: ignore[method-assign]


def _start_once(ice: RTCIceTransport) -> None:
    """Lets aiortc go on to start a transport that was closed meanwhile, as it does where an offer has several: it would
    fail in a task that nobody awaits."""
    start = _method(ice, "start")

    async def start_unless_closed(remoteParameters: RTCIceParameters) -> None:
        if ice.state == "closed":
            raise asyncio.CancelledError("the connection was closed while it was coming up")
        await start(remoteParameters)

    ice.start = start_unless_closed  # type: ignore[method-assign]


def _guard_data(sctp: RTCSctpTransport, gate: Gate) -> None:
    take_data = _method(sctp, "_handle_data")
    _require(sctp, _WINDOW, int)
    window = getattr(sctp, _WINDOW)

    async def on_data(data: bytes) -> None:
        if gate.data():
            await _contained(take_data(data), gate, "messages")
            gate.unfinished(window - getattr(sctp, _WINDOW))

    sctp._handle_data = on_data  # type: ignore[method-assign]
    send = _method(sctp, "_send_chunk")

    async def send_unless_over(chunk: Chunk) -> None:
        # What waits to be sent when a connection ends would fail in a task that nobody awaits.
        with contextlib.suppress(ConnectionError):
            await send(chunk)

    sctp._send_chunk = send_unless_over  # type: ignore[method-assign]


def _guard_feedback(sender: RTCRtpSender, gate: Gate) -> None:
    take_report = _method(sender, "_handle_rtcp_packet")

    async def on_report(packet: AnyRtcpPacket) -> None:
        if isinstance(packet, RtcpRtpfbPacket):
            lost = list(dict.fromkeys(packet.lost))
            packet.lost = lost[: gate.resends(len(lost))]
        await take_report(packet)

    sender._handle_rtcp_packet = on_report  # type: ignore[method-assign]


def _ignore_goodbyes(receiver: RTCRtpReceiver) -> None:
    """A goodbye (RTCP BYE) would stop the receiver for the rest of the connection, and hold up the event loop until all
    that waits is decoded. A source may go and another one come; who leaves closes the connection."""
    take_report = _method(receiver, "_handle_rtcp_packet")

    async def on_report(packet: AnyRtcpPacket) -> None:
        if not isinstance(packet, RtcpByePacket):
            await take_report(packet)

    receiver._handle_rtcp_packet = on_report  # type: ignore[method-assign]


async def _contained(work: Awaitable[None], gate: Gate, what: str) -> None:
    """Lets no stranger's packet end a task of aiortc's with a traceback."""
    try:
        await work
    except ConnectionError:
        raise  # how aiortc says that the connection is over
    except Exception as error:  # a boundary: what aiortc trips over in a stranger's packet is the stranger's fault
        logger.debug("a packet could not be handled (%s)", what, exc_info=error)
        gate.fault(what)


class IceDatagrams:
    """How many datagrams were thrown away before anybody was known to have sent them: empty, malformed, or too many
    before a connection reads. Of this process; reset by nobody."""

    refused = 0


def harden_ice() -> None:
    """Makes ICE throw datagrams away that would break it, in this process: anybody who finds the port can send them.

    An empty one ends aiortc's connection, a malformed STUN message leaves a traceback in the log, and what comes before
    a connection reads is kept without bound. Raises SeamError.
    """
    if getattr(aioice.ice.StunProtocol.datagram_received, "hardened", False):
        return
    take = _method(aioice.ice.StunProtocol, "datagram_received")
    keep = _method(aioice.ice.Connection, "data_received")

    def datagram_received(self: Any, data: bytes, addr: tuple[Any, ...]) -> None:
        if not data:
            IceDatagrams.refused += 1
            return
        try:
            take(self, data, addr)
        except Exception as error:  # a boundary: nobody knows yet who sent this
            IceDatagrams.refused += 1
            logger.debug("a datagram from %s could not be handled", addr, exc_info=error)

    def data_received(self: Any, data: bytes, component: int) -> None:
        if self._queue.qsize() >= MAX_QUEUED_DATAGRAMS:
            IceDatagrams.refused += 1
        else:
            keep(self, data, component)

    datagram_received.hardened = True  # type: ignore[attr-defined]
    aioice.ice.StunProtocol.datagram_received = datagram_received
    aioice.ice.Connection.data_received = data_received


def _method(owner: object, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] | None = getattr(owner, name, None)
    if method is None or not callable(method):
        kind = owner if isinstance(owner, type) else type(owner)
        raise SeamError(f"{kind.__module__.split('.')[0]}'s {kind.__name__} has no method {name} any more")
    return method
