"""Tries every reach into aiortc and aioice once, so that a version that does not fit is told at the start, not by the
first call."""

from __future__ import annotations

from aiortc import RTCConfiguration, RTCPeerConnection
from aiortc.mediastreams import MediaStreamError

from echo_rtc.rtc.candidates import Reach
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.seams.checks import SeamError
from echo_rtc.rtc.seams.feedback import report_due_times, wire_feedback
from echo_rtc.rtc.seams.guarding import guard_connection
from echo_rtc.rtc.seams.ice import apply_ice_patches
from echo_rtc.rtc.seams.jitter import shorten_microphone_buffer
from echo_rtc.rtc.seams.ports import require_endpoint
from echo_rtc.rtc.seams.sending import Sendable, payload_cutter, send_parcels


async def check_seams() -> None:
    """Opens no socket. Raises SeamError with the library's attribute that is missing."""
    apply_ice_patches()
    require_endpoint()
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        sound, picture = (connection.addTransceiver(kind) for kind in ("audio", "video"))
        connection.createDataChannel("events")
        guard_connection(connection, Guard(lambda _: None, lambda: 0.0), Reach())
        shorten_microphone_buffer(sound.receiver)
        wire_feedback(picture.sender, lambda: None, lambda _: None)
        for sender in (sound.sender, picture.sender):
            send_parcels(sender, _NoTrack())
            report_due_times(sender, lambda: None, lambda: 0.0)
        for codec in ("H264", "VP8"):
            payload_cutter(f"video/{codec}")
    except (AttributeError, TypeError) as error:
        raise SeamError(f"the installed aiortc or aioice does not fit ({error}); see pyproject.toml") from error
    finally:
        await connection.close()


class _NoTrack:
    """Never read."""

    async def recv(self) -> Sendable:
        """Never called."""
        raise MediaStreamError

    def stop(self) -> None:
        """Holds nothing."""
