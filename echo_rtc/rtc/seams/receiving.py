"""What the sender of an aiortc receiver says of its clock, which aiortc keeps to itself."""

from __future__ import annotations

from aiortc import RTCRtpReceiver
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket, RtpPacket

from echo_rtc.rtc.seams.checks import method


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

    Raises SeamError.
    """
    clock = SenderClock(rate)
    take_packet, take_report = method(receiver, "_handle_rtp_packet"), method(receiver, "_handle_rtcp_packet")

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
