"""All streams of this server: opens them from offers, refuses what is too much, and ends them.

The only part that knows several streams. Knows no HTTP: what it raises are the classes of ``errors``.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from echo_rtc.engine.protocol import Engine
from echo_rtc.errors import CapacityError, OfferError
from echo_rtc.rtc.offer import CallPlan, Offer, plan_call, read_offer
from echo_rtc.rtc.peer import CONNECT_TIMEOUT_S, Peer
from echo_rtc.rtc.stream import Stream, StreamOptions

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 10
"""When a refused client may ask again: places become free as calls end, which nobody can foresee."""


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """The settings of the manager. ``max_streams``: how many streams there may be at once, 0 for as many as the engine
    holds by its measured speed."""

    stream: StreamOptions = field(default_factory=StreamOptions)
    max_streams: int = 0
    connect_timeout_s: float = CONNECT_TIMEOUT_S


@dataclass(slots=True)
class _Call:
    """A stream and the one peer that publishes and views it, and the task that ends both together."""

    stream: Stream
    peer: Peer
    supervisor: asyncio.Task[None]


class StreamManager:
    """Opens, finds and ends streams."""

    def __init__(self, engine: Engine, options: ManagerOptions) -> None:
        self._engine = engine
        self._options = options
        self._calls: dict[str, _Call] = {}
        self._building = 0
        self._built = asyncio.Event()
        """Set whenever nothing is being built."""
        self._built.set()
        self._closed = False
        self.refused = 0
        """Offers refused for want of room."""

    @property
    def capacity(self) -> int:
        """How many streams there may be at once."""
        return self._options.max_streams or self._engine.capacity

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams that are open, by id."""
        return {stream_id: call.stream for stream_id, call in self._calls.items()}

    async def open_call(self, offer_sdp: str, avatar: str) -> tuple[str, str]:
        """Opens a stream for a peer that sends a microphone and receives the avatar; (stream id, answer SDP).

        Raises OfferError, UnsupportedMediaError or CapacityError; nothing is left behind then.
        """
        offer = read_offer(offer_sdp)
        plan = plan_call(offer)
        if avatar not in self._engine.avatars:
            raise OfferError(f"there is no avatar {avatar!r}; choose one of {', '.join(self._engine.avatars)}")
        self._admit()
        self._building += 1
        self._built.clear()
        try:
            stream, peer = await self._build(offer, plan, avatar)
            supervisor = asyncio.create_task(self._supervise(stream, peer), name=f"supervise stream {stream.id[:8]}")
            self._calls[stream.id] = _Call(stream, peer, supervisor)
        finally:
            self._building -= 1
            if not self._building:
                self._built.set()
        codec = peer.viewer.codec if peer.viewer else None
        stream.log.info("opened: avatar %s, %s", stream.avatar, codec)
        return stream.id, peer.answer_sdp

    async def close_stream(self, stream_id: str, reason: str) -> bool:
        """Ends a stream and waits until nothing of it is left; False if there is none of that id."""
        call = self._calls.get(stream_id)
        if call is None:
            return False
        await call.stream.close(reason)
        await asyncio.shield(call.supervisor)
        return True

    def statistics(self, stream_id: str) -> dict[str, object] | None:
        """The counters of a stream; None if there is none of that id."""
        call = self._calls.get(stream_id)
        return call.stream.statistics() if call else None

    async def close(self) -> None:
        """Takes no further streams and ends all there are, those that are just being built too."""
        self._closed = True
        await self._built.wait()
        await asyncio.gather(*(self.close_stream(stream_id, "the server is stopping") for stream_id in self._calls))

    def _admit(self) -> None:
        if self._closed:
            raise CapacityError("the server is stopping and takes no new streams", RETRY_AFTER_S)
        if len(self._calls) + self._building >= self.capacity:
            self.refused += 1
            raise CapacityError(
                f"all {self.capacity} streams that this server holds in real time are taken; try again later",
                RETRY_AFTER_S,
            )

    async def _build(self, offer: Offer, plan: CallPlan, avatar: str) -> tuple[Stream, Peer]:
        """The two halves of a call. Leaves nothing behind if it fails or is cancelled."""
        stream = Stream(self._engine, self._engine.avatars[avatar], self._options.stream)
        try:
            peer = await Peer.answer_call(offer, plan, stream, self._engine.format, self._options.connect_timeout_s)
        except BaseException as error:
            await stream.close(f"the offer could not be answered ({type(error).__name__})")
            raise
        return stream, peer

    async def _supervise(self, stream: Stream, peer: Peer) -> None:
        """A call's life: both ends go together, whichever is first."""
        await asyncio.wait((stream.ended, peer.ended), return_when=asyncio.FIRST_COMPLETED)
        reason = stream.ended.result() if stream.ended.done() else peer.ended.result()
        try:
            await stream.close(reason)
        finally:
            try:
                await peer.close()
            finally:
                del self._calls[stream.id]
