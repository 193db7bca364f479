"""What takes a stream's encoded frames beside its viewers: a recording. It takes any bitrate and loses nothing on a
network, so it has no say in how viewers are encoded for."""

from __future__ import annotations

from typing import Protocol

from echo_rtc.codec.picture import VideoCodec
from echo_rtc.stream.encoder_bank import EncodedFrame


class PacketSink(Protocol):
    """Takes frames when they are due, on the event loop, and never waits."""

    @property
    def codec(self) -> VideoCodec:
        """Of the pictures that it takes."""
        ...

    def take_sound(self, frame: EncodedFrame) -> None: ...

    def take_picture(self, frame: EncodedFrame) -> None: ...

    def close(self) -> None:
        """The stream has ended."""
        ...
