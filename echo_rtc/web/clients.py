"""Whose request it is: the address of the client itself, behind however many proxies we trust.

``X-Forwarded-For`` is believed only as far as it was written by trusted proxies; anybody else may write anything in it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from echo_rtc.errors import SettingsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP")
"""Headers by which a proxy shows that it is one."""
NOWHERE = ipaddress.IPv6Address(0)
"""The address of a request whose sender is unknown: it has hung up already."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Tells clients apart by address. ``proxies`` are trusted."""

    proxies: tuple[Network, ...] = ()

    @classmethod
    def of(cls, trusted: Iterable[str]) -> Clients:
        """From ``--trusted-proxy``: addresses or networks. Raises SettingsError."""
        networks = []
        for text in trusted:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError:
                raise SettingsError(
                    f"trusted_proxy is {text[:60]!r}; it must be an address such as 10.0.0.5 or a network such as "
                    "10.0.0.0/24"
                ) from None
        return cls(tuple(networks))

    def address(self, request: web.Request) -> Address:
        """The nearest address on the way to the client that is not a trusted proxy's."""
        address = _address(request.remote or "")
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        while hops and self._trusted(address):
            hop = hops.pop().strip()
            if not hop:
                continue
            # Some proxies add the client's port.
            match = re.fullmatch(r"([0-9.]+):[0-9]+|\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?", hop)
            try:
                address = _unmapped(ipaddress.ip_address((match[1] or match[2]) if match else hop))
            except ValueError:  # a name, or nonsense: the proxy itself is all that is known
                break
        return address

    def on_this_machine(self, request: web.Request) -> bool:
        """Whether the request was made by a program of this machine for itself, as far as can be known.

        A proxy on it that is not trusted may speak for anybody. So may a browser on it whose page comes from elsewhere:
        it says in ``Origin`` from where, and under a name that was made to lead here (DNS rebinding), that name in
        ``Host``.
        """
        if not self.address(request).is_loopback:
            return False
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if any(name in request.headers for name in FORWARDED):
            if not self._trusted(_address(request.remote or "")):
                return False
        elif not _leads_here_only(host):
            return False
        return origin is None or origin.lower().partition("://")[2] == host.lower()

    def _trusted(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.proxies)


def household(address: Address) -> str:
    """What counts as one client for limits: an IPv4 address, or the network of an IPv6 one (/64), in which everybody
    has as many addresses as they like."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _leads_here_only(host: str) -> bool:
    """Whether the host of a URL is an address or localhost, which nobody can make lead elsewhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _address(text: str) -> Address:
    try:
        return _unmapped(ipaddress.ip_address(text))
    except ValueError:
        return NOWHERE


def _unmapped(address: Address) -> Address:
    """A socket for both families shows IPv4 clients as ::ffff:192.0.2.1."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
