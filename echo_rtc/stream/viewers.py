"""What one peer gets of a stream: two thin tracks whose ``recv()`` hands out parcels that are due.

Parcels are made once per stream and shared; a viewer is a pair of bounded queues of references to them. Nothing here
waits for a peer: what does not fit is dropped and counted, and the picture goes on with the next key frame. Knows no
clock, no playout and no connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from echo_rtc.codec.encoders import Parcel, VideoCodec

SOUND_QUEUE_PACKETS = 50
"""Packets of 20 ms that may wait for a peer: one second."""
PICTURE_QUEUE_PACKETS = 30
"""Frames that may wait for a peer: about one second."""


class PacketTrack(MediaStreamTrack):
    """A track of packets that are due as soon as they are put in; at most ``limit`` wait to be read.

    ``on_first_read`` is called when the peer reads for the first time: only then is its connection up.
    """

    def __init__(self, kind: str, limit: int, on_first_read: Callable[[], None]) -> None:
        super().__init__()
        self.kind = kind
        self._packets: deque[tuple[Parcel, float]] = deque()
        self._limit = limit
        self._arrived = asyncio.Event()
        self._on_first_read = on_first_read
        self.being_read = False
        self.due_s: float | None = None
        """When the packet that was read last was due, by the clock of whoever put it in."""

    async def recv(self) -> Parcel:  # type: ignore[override]  # sent by ``aiortc_seams.send_parcels`` only
        """The next packet, as soon as it is due. Raises MediaStreamError once the track has ended."""
        if not self.being_read:
            self.being_read = True
            self._on_first_read()
        while not self._packets:
            if self.readyState != "live":
                raise MediaStreamError
            self._arrived.clear()
            await self._arrived.wait()
        packet, self.due_s = self._packets.popleft()
        return packet

    @property
    def full(self) -> bool:
        return len(self._packets) >= self._limit

    def put(self, packet: Parcel, due_s: float) -> None:
        """Adds a packet that is due now; the caller has seen to it that the track is not full."""
        self._packets.append((packet, due_s))
        self._arrived.set()

    def drop(self, count: int) -> int:
        """Drops the ``count`` oldest packets, or as many as there are; returns how many."""
        dropped = min(count, len(self._packets))
        for _ in range(dropped):
            self._packets.popleft()
        return dropped

    def waiting(self) -> int:
        return len(self._packets)

    def stop(self) -> None:
        super().stop()
        self._packets.clear()
        self._arrived.set()


class Viewer:
    """One peer's share of a stream: a sound track, a picture track, or both, that begin together.

    The viewer goes live once its peer reads every track it has, which calls ``on_change``; the packets begin with a key
    frame and the sound of that moment. ``ask_key_frame`` is called whenever the picture cannot go on without one.
    """

    def __init__(
        self,
        number: int,
        codec: VideoCodec | None,
        with_sound: bool,
        on_change: Callable[[], None],
        ask_key_frame: Callable[[VideoCodec, int], None],
    ) -> None:
        self.number = number
        self.codec = codec
        self._on_change = on_change
        self._ask_key_frame = ask_key_frame
        self.sound = PacketTrack("audio", SOUND_QUEUE_PACKETS, self._read) if with_sound else None
        self.picture = PacketTrack("video", PICTURE_QUEUE_PACKETS, self._read) if codec is not None else None
        self._needs_key = codec is not None
        self._begun = codec is None
        self.sound_packets = 0
        self.picture_packets = 0
        self.sound_dropped = 0
        self.picture_dropped = 0

    @property
    def live(self) -> bool:
        """Whether the peer reads all of its tracks."""
        tracks = [track for track in (self.sound, self.picture) if track is not None]
        return bool(tracks) and all(track.being_read and track.readyState == "live" for track in tracks)

    def take_sound(self, packet: Parcel, due_s: float) -> None:
        """Offers a packet of sound that is due now, or was at ``due_s``."""
        if self.sound is None or not self._begun or not self.live:
            return
        if self.sound.full:
            self.sound_dropped += self.sound.drop(1)
        self.sound.put(packet, due_s)
        self.sound_packets += 1

    def take_picture(self, packet: Parcel, due_s: float) -> None:
        """Offers a packet of this viewer's codec that is due now, or was at ``due_s``."""
        if self.picture is None or not self.live:
            return
        if self.picture.full:
            # What follows refers to what is dropped, so nothing may be sent before the next key frame.
            self.picture_dropped += self.picture.drop(self.picture.waiting())
            self._lost_the_thread()
        if self._needs_key:
            if not packet.is_keyframe:
                self.picture_dropped += self._begun
                return
            self._needs_key, self._begun = False, True
        self.picture.put(packet, due_s)
        self.picture_packets += 1

    def close(self) -> None:
        """Ends the tracks; whoever reads them gets MediaStreamError."""
        for track in (self.sound, self.picture):
            if track is not None:
                track.stop()

    def _read(self) -> None:
        if self.live:
            self._on_change()
            if self.codec is not None:
                self._ask_key_frame(self.codec, self.number)

    def _lost_the_thread(self) -> None:
        self._needs_key = True
        if self.codec is not None:
            self._ask_key_frame(self.codec, self.number)
