"""A viewer of a stream as what a connection sends: its codecs, its tracks, and the feedback that comes back."""

from __future__ import annotations

import asyncio

from aiortc import RTCRtpCodecCapability, RTCRtpSender

from echo_rtc.clips import ClipFormat
from echo_rtc.codec.picture import codec_preference
from echo_rtc.rtc.reports import delivery_of
from echo_rtc.rtc.seams.feedback import report_due_times, wire_feedback
from echo_rtc.rtc.seams.sending import send_parcels
from echo_rtc.rtc.tracks import PacketTrack
from echo_rtc.stream.stream import Stream
from echo_rtc.stream.viewers import Viewer


def send_to_viewer(stream: Stream, viewer: Viewer, picture: RTCRtpSender | None, sound: RTCRtpSender | None) -> None:
    """Sends the viewer's queues by these senders. Must be called before the connection is up."""
    if picture is not None and viewer.picture is not None:
        wire_feedback(
            picture,
            on_key_frame=lambda: stream.want_key_frame(viewer),
            on_bitrate=lambda bitrate: stream.estimate(viewer, bitrate),
        )
        _send(picture, PacketTrack("video", viewer.picture))
    if sound is not None and viewer.sound is not None:
        _send(sound, PacketTrack("audio", viewer.sound))
    senders = [sender for sender in (picture, sound) if sender is not None]
    stream.watch_delivery(viewer, lambda: delivery_of(senders))


def _send(sender: RTCRtpSender, track: PacketTrack) -> None:
    sender.replaceTrack(track)
    send_parcels(sender, track)
    report_due_times(sender, lambda: track.due_s, asyncio.get_running_loop().time)


def codec_preferences(kind: str, clip_format: ClipFormat) -> list[RTCRtpCodecCapability]:
    """What is offered or accepted, best first: Opus alone for sound; H.264 (constrained baseline before baseline) and
    VP8 for pictures, with retransmission."""
    capabilities = RTCRtpSender.getCapabilities(kind).codecs
    if kind == "audio":
        return [codec for codec in capabilities if codec.name.lower() == "opus"]
    order = [str(codec) for codec in codec_preference(clip_format)]
    known = [codec for codec in capabilities if codec.name in order]
    known.sort(key=lambda codec: (order.index(codec.name), codec.parameters.get("profile-level-id") != "42e01f"))
    return known + [codec for codec in capabilities if codec.name.lower() == "rtx"]
