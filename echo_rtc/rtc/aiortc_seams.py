"""The one place that reaches into aiortc and aioice beyond what they document.

These things cannot be had otherwise: a short jitter buffer for the microphone; key-frame requests, bitrate estimates
and sender reports for tracks that hand out ready packets; losing a vanished peer within seconds instead of half a
minute. Every reach is checked: if aiortc has changed, :class:`SeamError` says which attribute is gone. It knows nothing
of streams.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import aioice.ice
import av
from aiortc import RTCRtpReceiver, RTCRtpSender
from aiortc.clock import current_ntp_time
from aiortc.codecs import get_encoder
from aiortc.codecs.base import Encoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket, RtpPacket
from av.frame import Frame

MICROPHONE_CAPACITY_PACKETS = 4
"""Packets the microphone's jitter buffer may hold when one is missing: the most that a loss adds to the delay."""
MICROPHONE_PREFETCH_PACKETS = 1
CONSENT_INTERVAL_S = 1
CONSENT_FAILURES = 4
"""Consent checks in a row without an answer after which a peer counts as gone (RFC 7675). Each takes half a second to
fail and the next one waits for about ``CONSENT_INTERVAL_S``: six seconds in all, and a gap of four is lived through."""

_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"
_ENCODER = "_RTCRtpSender__encoder"
_LAST_REPORT = "_RTCRtpSender__lsr"


class SeamError(RuntimeError):
    """aiortc or aioice no longer has an attribute that this server replaces; the message names it."""


class MicrophoneJitterBuffer(JitterBuffer):
    """A jitter buffer of 80 ms that lets packets without a payload pass by.

    aiortc starts with 4 packets and holds 14 after the first loss, for the rest of the call; this one holds 1 and 3.
    A packet without a payload (padding) would end FFmpeg's decoder for good, because an empty packet means "flush".
    """

    def __init__(self) -> None:
        super().__init__(capacity=MICROPHONE_CAPACITY_PACKETS, prefetch=MICROPHONE_PREFETCH_PACKETS)

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        if not packet.payload:
            return False, None
        return super().add(packet)


class FeedbackEncoder(Encoder):
    """What a sender takes for its encoder, where a track hands out packets that the stream has encoded.

    It packetises as aiortc does and passes the receiver's bitrate estimates (REMB, bit/s) on. Raw frames still work.
    """

    def __init__(self, codec: RTCRtpCodecParameters, on_bitrate: Callable[[int], None]) -> None:
        self._inner = get_encoder(codec)
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

    def encode(self, frame: Frame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        return self._inner.encode(frame, force_keyframe)

    def pack(self, packet: av.Packet[Any]) -> tuple[list[bytes], int]:
        return self._inner.pack(packet)


def shorten_microphone_buffer(receiver: RTCRtpReceiver) -> None:
    """Replaces the jitter buffer of an audio receiver that has not received yet. Raises SeamError."""
    _require(receiver, _JITTER_BUFFER, JitterBuffer)
    setattr(receiver, _JITTER_BUFFER, MicrophoneJitterBuffer())


def wire_feedback(
    sender: RTCRtpSender,
    codec: RTCRtpCodecParameters,
    on_key_frame: Callable[[], None],
    on_bitrate: Callable[[int], None],
) -> None:
    """Makes a video sender pass PLI and FIR to ``on_key_frame`` and REMB (bit/s) to ``on_bitrate``.

    ``codec`` is the negotiated one. To be called before the connection is up. Raises SeamError.
    """
    if not callable(getattr(sender, "_send_keyframe", None)):
        raise SeamError("aiortc's RTCRtpSender has no method _send_keyframe; key-frame requests would be lost")
    _require(sender, _ENCODER, type(None))
    sender._send_keyframe = on_key_frame  # type: ignore[method-assign]
    setattr(sender, _ENCODER, FeedbackEncoder(codec, on_bitrate))


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
                stated = current_ntp_time() - round((now_s() - due) * 2**32)
                packet.sender_info.ntp_timestamp = stated
                # Round trips are measured by the middle of the stated time, which the receiver sends back.
                setattr(sender, _LAST_REPORT, stated >> 16 & 0xFFFFFFFF)
        await send(packets)

    sender._send_rtcp = send_corrected  # type: ignore[method-assign]


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
