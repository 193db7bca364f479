"""What a receiver tells about the packets it gets (PLI, FIR, REMB), and what our own reports state."""

from __future__ import annotations

from collections.abc import Callable

from aiortc import RTCRtpSender
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket

from echo_rtc.rtc.seams.checks import SeamError, require
from echo_rtc.rtc.seams.clock import steady_ntp_time

_ENCODER = "_RTCRtpSender__encoder"
_LAST_REPORT = "_RTCRtpSender__lsr"


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


def wire_feedback(sender: RTCRtpSender, on_key_frame: Callable[[], None], on_bitrate: Callable[[int], None]) -> None:
    """Makes a video sender pass PLI and FIR to ``on_key_frame`` and REMB (bit/s) to ``on_bitrate``.

    To be called before the connection is up. Raises SeamError.
    """
    if not callable(getattr(sender, "_send_keyframe", None)):
        raise SeamError("aiortc's RTCRtpSender has no method _send_keyframe; key-frame requests would be lost")
    require(sender, _ENCODER, type(None))
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
