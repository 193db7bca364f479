"""The microphone's jitter buffer, in the place of aiortc's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket

from echo_rtc.codec.concealment import VoiceDecoder, to_frame
from echo_rtc.rtc.seams.checks import require

MICROPHONE_WAITING_PACKETS = 3
"""Reorder window: later packets to receive before a missing one is declared lost."""
MICROPHONE_JUMP_PACKETS = 100
"""Sequence numbers that fall back by more than this are no late packets: the sender has restarted its count."""

_JITTER_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"
_TRACK_QUEUE = "_queue"

logger = logging.getLogger(__name__)


class MicrophoneFrame(JitterFrame):
    """A packet of the microphone, and how many before it are lost."""

    lost = 0


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
        self._lost = 0

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        number = packet.sequence_number
        if self._next is None or self._ahead(number) < -MICROPHONE_JUMP_PACKETS:
            self._held.clear()
            self._next, self._lost = number, 0
        ahead = self._ahead(number)
        if ahead >= 0:
            self._held[number] = packet
            if self._next not in self._held and (
                ahead > MICROPHONE_WAITING_PACKETS or len(self._held) >= MICROPHONE_WAITING_PACKETS
            ):
                first = min(self._held, key=self._ahead)
                self._lost += self._ahead(first)
                self._next = first
        while self._next in self._held:
            due = self._held.pop(self._next)
            self._next = (self._next + 1) % 2**16
            if due.payload:
                frame = MicrophoneFrame(due._data, due.timestamp)  # type: ignore[attr-defined]  # the receiver's
                frame.lost, self._lost = self._lost, 0
                return False, frame
        return False, None

    def _ahead(self, number: int) -> int:
        """How far a sequence number is ahead of the next one, negative if behind it."""
        assert self._next is not None
        return (number - self._next + 2**15) % 2**16 - 2**15


def shorten_microphone_buffer(receiver: RTCRtpReceiver) -> None:
    """Replaces the jitter buffer of an audio receiver that has not received yet. Raises SeamError."""
    require(receiver, _JITTER_BUFFER, JitterBuffer)
    setattr(receiver, _JITTER_BUFFER, MicrophoneJitterBuffer())


def decode_microphone(receiver: RTCRtpReceiver, decoder: VoiceDecoder) -> None:
    """Makes an audio receiver that has not received yet decode with ``decoder``, on aiortc's own thread. To be called
    once its track is there. Raises SeamError."""
    require(receiver, _DECODER_QUEUE, queue.Queue)
    require(receiver.track, _TRACK_QUEUE, asyncio.Queue)
    frames: asyncio.Queue[object] = getattr(receiver.track, _TRACK_QUEUE)
    setattr(receiver, _DECODER_QUEUE, _DecodingQueue(decoder, frames, asyncio.get_running_loop()))


class _DecodingQueue:
    """Takes the place of the queue to aiortc's decoder thread: the thread decodes here, and gets to know of the end
    only."""

    def __init__(self, decoder: VoiceDecoder, frames: asyncio.Queue[object], loop: asyncio.AbstractEventLoop) -> None:
        self._packets: queue.Queue[MicrophoneFrame | None] = queue.Queue()
        self._decoder = decoder
        self._frames = frames
        self._loop = loop

    def put(self, task: tuple[object, MicrophoneFrame] | None) -> None:
        """From the event loop: a packet with its codec, or None at the end."""
        self._packets.put(None if task is None else task[1])

    def get(self) -> None:
        """On the thread: decodes until the end."""
        while (packet := self._packets.get()) is not None:
            try:
                blocks = self._decoder.decode(packet.data, packet.timestamp, packet.lost)
            except Exception as error:  # a boundary: a peer's packet must not end the thread
                logger.debug("a packet of a microphone cannot be decoded", exc_info=error)
                continue
            for block in blocks:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._frames.put_nowait, to_frame(block))
