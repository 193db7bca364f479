"""What aioice does with sockets and with datagrams of unknown senders.

Process-wide, once at the start: a vanished peer is lost within seconds, unreachable STUN and TURN servers delay nothing
for long, and a machine with only a loopback interface has candidates. For each connection: which datagrams are read,
and which addresses are checked.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from functools import cache, wraps
from ipaddress import ip_address
from typing import Any

import aioice.ice
import aioice.stun
import aioice.turn
from aiortc import RTCIceTransport

from echo_rtc.rtc.candidates import MAX_CHECKED, Reach
from echo_rtc.rtc.guard import Guard
from echo_rtc.rtc.packets import is_stun, stun_is_short
from echo_rtc.rtc.seams.checks import SeamError, method

CONSENT_INTERVAL_S = 1
CONSENT_FAILURES = 4
"""Consent checks in a row without an answer after which a peer counts as gone (RFC 7675). Each takes half a second to
fail and the next one waits for about ``CONSENT_INTERVAL_S``: six seconds in all, and a gap of four is lived through."""
GATHERING_LIMIT_S = 2
"""Most that STUN and TURN servers may delay an answer. TURN over TLS takes five round trips."""
RELAY_END_LIMIT_S = 1.0
"""Most that a TURN server may take to give up a relay; it does so by itself some minutes later."""
CHECK_RETRANSMISSIONS = 4
"""How often a connectivity check is sent again: for 15 s in all, as long as a connection may take to come up."""
MAX_QUEUED_DATAGRAMS = 512
"""Datagrams of a connection that may wait to be read, most of all before it is up."""
_BINDING_REQUEST = b"\x00\x01"
_GUARD = "_datagram_guard"

logger = logging.getLogger(__name__)


@cache
def apply_ice_patches() -> None:
    """Changes aioice for this process; further calls do nothing. Raises SeamError."""
    shorten_consent()
    shorten_gathering()
    limit_retransmissions()
    gather_loopback()
    watch_datagrams()


def shorten_consent() -> None:
    """Makes ICE notice a vanished peer after about six seconds. Raises SeamError."""
    for name in ("CONSENT_INTERVAL", "CONSENT_FAILURES"):
        if not isinstance(getattr(aioice.ice, name, None), int):
            raise SeamError(f"aioice.ice has no integer {name}; vanished peers would hold their place for 30 s")
    aioice.ice.CONSENT_INTERVAL = CONSENT_INTERVAL_S
    aioice.ice.CONSENT_FAILURES = CONSENT_FAILURES


def shorten_gathering() -> None:
    """Makes ICE go on without STUN and TURN servers that do not answer in time: neither the beginning of a connection
    waits for them nor its end. Raises SeamError."""
    gather = aioice.ice.Connection.get_component_candidates
    names = inspect.getfullargspec(gather).args
    if names[-1:] != ["timeout"] or len(gather.__defaults__ or ()) != 1:
        raise SeamError("aioice's get_component_candidates has no timeout; a dead STUN server would delay every call")
    gather.__defaults__ = (GATHERING_LIMIT_S,)
    end = inspect.unwrap(aioice.turn.TurnClientMixin.delete)
    if inspect.getfullargspec(end).args != ["self"] or "finally:" not in inspect.getsource(end):
        raise SeamError("aioice's TURN client does not close when its end is cut short; a dead server would keep calls")

    @wraps(end)
    async def delete(self: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RELAY_END_LIMIT_S):
                await end(self)

    aioice.turn.TurnClientMixin.delete = delete


def limit_retransmissions() -> None:
    """Bounds how often a check that nothing answers is sent to an address that a peer has named. Raises SeamError."""
    if not isinstance(getattr(aioice.stun, "RETRY_MAX", None), int):
        raise SeamError("aioice.stun has no integer RETRY_MAX; unanswered checks would go on for half a minute")
    aioice.stun.RETRY_MAX = CHECK_RETRANSMISSIONS


def gather_loopback() -> None:
    """Gives a machine that has no other address candidates on its loopback interface, for its own programs. Raises
    SeamError."""
    find = inspect.unwrap(method(aioice.ice, "get_host_addresses"))

    @wraps(find)
    def get_host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        found: list[str] = find(use_ipv4, use_ipv6)
        return found or (["127.0.0.1"] if use_ipv4 else ["::1"])

    aioice.ice.get_host_addresses = get_host_addresses


def watch_datagrams() -> None:
    """Lets the guard of a connection, if it has one, see a datagram before aioice reads it, and keeps one that breaks
    aioice from leaving a traceback. Raises SeamError."""
    take = inspect.unwrap(method(aioice.ice.StunProtocol, "datagram_received"))

    @wraps(take)
    def datagram_received(self: Any, data: bytes, addr: tuple[Any, ...]) -> None:
        watch: _DatagramGuard | None = getattr(self.receiver, _GUARD, None)
        if not data or (watch is not None and not watch.admits(data, addr, self)):
            return
        try:
            take(self, data, addr)
        except Exception as error:  # a boundary: the sender is unknown yet
            if watch is not None:
                watch.guard.datagram_refused()
            logger.debug("a datagram from %s could not be handled", addr, exc_info=error)

    aioice.ice.StunProtocol.datagram_received = datagram_received


def guard_ice(ice: RTCIceTransport, guard: Guard, reach: Reach) -> None:
    """Lets ``guard`` and ``reach`` decide over every datagram that reaches a connection, and over the addresses
    that are checked because a check came from there. Raises SeamError."""
    connection: Any = getattr(ice, "_connection", None)
    if not isinstance(connection, aioice.ice.Connection):
        raise SeamError("aiortc's RTCIceTransport has no _connection of aioice any more")
    setattr(connection, _GUARD, _DatagramGuard(connection, guard, reach))


class _DatagramGuard:
    """Filters the datagrams that reach a connection's sockets.

    From known addresses: all are read, within a rate. From others: only checks with this connection's user name, which
    only the peer and those it passed it to know, and responses to own requests.
    """

    def __init__(self, connection: Any, guard: Guard, reach: Reach) -> None:
        for name in ("_early_checks", "_remote_candidates", "_queue"):
            if not hasattr(connection, name):
                raise SeamError(f"aioice's Connection has no {name} any more")
        self._connection = connection
        self._reach = reach
        self.guard = guard
        self._own_name = f"{connection.local_username}:".encode()
        self._check = method(connection, "check_incoming")
        self._keep = method(connection, "data_received")
        connection.check_incoming = self._check_incoming
        connection.data_received = self._data_received

    def admits(self, data: bytes, addr: tuple[Any, ...], protocol: Any) -> bool:
        """Whether a datagram is given to aioice. What is not is counted."""
        admitted = self._admits(data, addr, protocol)
        if not admitted:
            self.guard.datagram_refused()
        return admitted

    def _admits(self, data: bytes, addr: tuple[Any, ...], protocol: Any) -> bool:
        known = self._knows(addr)
        if not is_stun(data):
            return known and self.guard.datagram()
        if not stun_is_short(data):
            return False
        if data[8:20] in protocol.transactions:
            return True
        if known:
            return self.guard.datagram()
        if not data.startswith(_BINDING_REQUEST) or self._own_name not in data:
            return False
        return self._reach.allows(ip_address(addr[0]), addr[1]) and self.guard.datagram()

    def _knows(self, addr: tuple[Any, ...]) -> bool:
        """Whether an address was named by the peer, or has sent a check that was authentic."""
        connection, address = self._connection, (addr[0], addr[1])
        if any((c._network_host, c.port) == address for c in connection._remote_candidates):
            return True
        return any(check[1] == address for check in connection._early_checks)

    def _check_incoming(self, message: Any, addr: tuple[str, int], protocol: Any) -> None:
        """An authentic check; it makes aioice check the address that it came from."""
        candidates = self._connection._remote_candidates
        known = any((c._network_host, c.port) == addr for c in candidates)
        if known or len(candidates) < MAX_CHECKED or self._forgets_one():
            self._check(message, addr, protocol)
        else:
            self.guard.datagram_refused()

    def _forgets_one(self) -> bool:
        """Whether there is an address that was learnt from a check, and that has failed by now; it is forgotten."""
        connection = self._connection
        failed = aioice.ice.CandidatePair.State.FAILED
        for candidate in connection._remote_candidates:
            pairs = [pair for pair in connection._check_list if pair.remote_candidate is candidate]
            if candidate.type == "prflx" and all(pair.state is failed for pair in pairs):
                connection._remote_candidates.remove(candidate)
                connection._check_list = [pair for pair in connection._check_list if pair not in pairs]
                return True
        return False

    def _data_received(self, data: bytes, component: int) -> None:
        if self._connection._queue.qsize() >= MAX_QUEUED_DATAGRAMS:
            self.guard.datagram_refused()
        else:
            self._keep(data, component)
