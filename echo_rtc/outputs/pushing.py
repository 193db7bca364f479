"""A stream pushed to a WHIP endpoint: the connection and the session at the other side, as one."""

from __future__ import annotations

import asyncio

from aiortc import RTCIceServer

from echo_rtc.errors import OfferError
from echo_rtc.outputs.hosts import HostRules, host_of
from echo_rtc.outputs.whip import Endpoint, LinkedServer, WhipClient, WhipError, WhipSession
from echo_rtc.rtc.network import Network
from echo_rtc.rtc.outgoing import OutgoingPeer, Sent
from echo_rtc.rtc.ports import PortsExhaustedError
from echo_rtc.stream.stream import Stream

CONNECT_TIMEOUT_S = 15.0
"""A connection that is not up this long after the answer is given up."""


class Push:
    """A connection that is up. Made by :meth:`Pusher.connect`."""

    def __init__(self, peer: OutgoingPeer, sent: Sent, client: WhipClient, endpoint: Endpoint, at: WhipSession) -> None:
        self._peer = peer
        self._client = client
        self._endpoint = endpoint
        self._session = at
        self.codec = None if sent.codec is None else sent.codec.value
        self.sound = sent.sound
        self.ended = peer.ended

    async def close(self) -> None:
        """Ends the session at the other side, then the connection."""
        try:
            await self._client.close(self._endpoint, self._session)
        finally:
            await self._peer.close()


class Pusher:
    """Makes connections of one stream to one endpoint."""

    def __init__(self, stream: Stream, endpoint: Endpoint, rules: HostRules, network: Network) -> None:
        self._stream = stream
        self._endpoint = endpoint
        self._network = network
        self._client = WhipClient(rules)
        # A host that --output-host names exactly may be this machine.
        self._on_loopback = rules.reach(host_of(endpoint.url)).loopback
        self._servers: tuple[LinkedServer, ...] = ()
        """What the latest answer named, for the next attempt: an offer has its addresses before there is an answer."""

    async def connect(self) -> Push:
        """A connection whose packets leave. Raises WhipError."""
        servers = self._servers or await self._client.ice_servers(self._endpoint)
        try:
            peer = await OutgoingPeer.offer(self._stream, self._network, [_ice_server(each) for each in servers])
        except PortsExhaustedError as error:
            raise WhipError(error.strerror or "no UDP port is free") from None
        session: WhipSession | None = None
        try:
            session = await self._client.open(self._endpoint, peer.offer_sdp)
            self._servers = session.ice_servers
            sent = await peer.accept(session.answer, self._network.reach(self._on_loopback))
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.shield(peer.up)
        except BaseException as error:
            if session is not None:
                await self._client.close(self._endpoint, session)
            await peer.close()
            if isinstance(error, TimeoutError):
                raise WhipError("the connection never came up") from None
            if isinstance(error, OfferError):
                raise WhipError(str(error), lasting=True) from None
            if isinstance(error, asyncio.CancelledError) and peer.up.cancelled() and not _is_cancelled():
                raise WhipError(peer.ended.result()) from None
            raise
        return Push(peer, sent, self._client, self._endpoint, session)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _ice_server(server: LinkedServer) -> RTCIceServer:
    return RTCIceServer(server.url, server.username, server.credential)
