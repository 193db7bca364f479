"""Which of a peer's ICE candidates are checked: parses them, and leaves out addresses that must not be contacted.

Every check is a packet, repeated, to an address that an untrusted peer has named. So names are not resolved, addresses
that cannot be a peer's are left out, and of the rest only a few are checked. Pure: opens no socket.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from echo_rtc.errors import OfferError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_CHECKED = 16
"""Addresses of a peer that are checked, over all of its transports and its whole life: those it names, and those that
its own checks come from."""
MAX_NAMED = 12
"""Of these, those that it names; what is left is for the addresses that its checks come from."""

_KINDS = ("host", "srflx", "prflx", "relay")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_FOUNDATION = re.compile(r"[!-~]{1,64}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate over UDP that is an address. ``kind``: host, srflx, prflx or relay."""

    foundation: str
    priority: int
    address: Address
    port: int
    kind: str

    def line(self) -> str:
        """The value of its ``a=candidate`` line."""
        kind = "srflx" if self.kind == "prflx" else self.kind
        return f"{self.foundation} 1 udp {self.priority} {self.address} {self.port} typ {kind}"


@dataclass(frozen=True, slots=True)
class Reach:
    """The addresses that checks are sent to. ``loopback``: also this machine's own loopback, for callers on it;
    ``private``: also addresses that the Internet does not route. ``broadcast``: the broadcast addresses of the networks
    that this machine is in, to which nothing is sent."""

    loopback: bool = False
    private: bool = True
    broadcast: frozenset[Address] = frozenset()

    def allows(self, address: Address, port: int) -> bool:
        """Whether a peer may be there. Addresses in which another one is written count as that one."""
        if not 1 <= port <= 65_535:
            return False
        address = _embedded(address)
        if address.is_loopback:
            return self.loopback
        if address.is_unspecified or address.is_multicast or address.is_link_local or address.is_reserved:
            return False
        if isinstance(address, ipaddress.IPv4Address) and address.packed[0] == 0:
            return False  # "this network", which reaches this machine
        if address in self.broadcast:
            return False
        return self.private or not (address.is_private or _is_site_or_shared(address))


def read_candidate(value: str) -> Candidate | None:
    """From the value of an ``a=candidate`` line (RFC 8839, 5.1); None for one of a kind that is not used here: over
    TCP, of RTCP, or with a name for an address. Raises OfferError for one that cannot be read."""
    words = value.split()
    try:
        foundation, component, transport, priority, host, port, typ, kind = words[:8]
        numbers = (int(component), int(priority), int(port))
    except ValueError:
        raise OfferError(f"the candidate {value.strip()[:60]!r} cannot be read") from None
    if typ.lower() != "typ" or not _FOUNDATION.fullmatch(foundation) or not 0 <= numbers[1] < 2**32:
        raise OfferError(f"the candidate {value.strip()[:60]!r} cannot be read")
    if transport.lower() != "udp" or numbers[0] != 1 or kind.lower() not in _KINDS:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name: .local of mDNS, or one that would have to be looked up
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return None
    return Candidate(foundation, numbers[1], address, numbers[2], kind.lower())


def chosen(candidates: Sequence[Candidate], limit: int) -> tuple[Candidate, ...]:
    """At most ``limit`` of them, those of the highest priority of each kind in turn: a client with many interfaces has
    many of its own addresses, and perhaps one relay that works. Those with the address of another are left out."""
    best = sorted(candidates, key=lambda candidate: -candidate.priority)
    by_kind: dict[str, list[Candidate]] = {}
    for candidate in {(each.address, each.port): each for each in reversed(best)}.values():
        by_kind.setdefault(candidate.kind, []).append(candidate)
    picked: list[Candidate] = []
    while len(picked) < limit and any(by_kind.values()):
        for kind in _KINDS:
            if by_kind.get(kind) and len(picked) < limit:
                picked.append(by_kind[kind].pop())
    return tuple(sorted(picked, key=lambda candidate: -candidate.priority))


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour or address


def _is_site_or_shared(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_site_local
    return address in _SHARED
