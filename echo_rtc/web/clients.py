"""The address of a request's client, behind any number of trusted proxies.

``X-Forwarded-For`` is believed only as far as it was written by trusted proxies; any client can send that header.
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

_FORWARDING = re.compile(
    r"via|forwarded|x-forwarded-.*|x-real-ip|x-client-ip|x-cluster-client-ip|x-original-.*|x-envoy-external-address|"
    r"true-client-ip|client-ip|fastly-client-ip|cf-.*|cdn-loop|x-azure-.*|x-amzn-trace-id|tailscale-.*",
    re.IGNORECASE,
)
"""Headers by which a proxy, a tunnel or a content delivery network shows that it is one."""
_WRITTEN_BY_PROXIES = re.compile(r"x-forwarded-.*|x-real-ip|forwarded|via|x-original-uri", re.IGNORECASE)
"""Those that an ordinary reverse proxy writes; others are of something in front of it."""
UNKNOWN_ADDRESS = ipaddress.IPv6Address(0)
"""The address of a request whose client has disconnected already."""


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

    def trusts(self, address: Address) -> bool:
        """Whether the address is a trusted proxy's."""
        return any(address.version == network.version and address in network for network in self.proxies)

    def address(self, request: web.Request) -> Address:
        """The nearest address on the way to the client that is not a trusted proxy's."""
        return self._way(request)[0]

    def through_proxy(self, request: web.Request) -> bool:
        """Whether a trusted proxy passed the request on, as far as can be known: it came from one's address, and says
        so."""
        return self.trusts(parse_address(request.remote or "")) and is_forwarded(request)

    def on_this_machine(self, request: web.Request) -> bool:
        """Whether the request was made by a program of this machine for itself, as far as can be known.

        False if there is any sign of forwarding or an address of a trusted proxy, unless all that a trusted proxy wrote
        says loopback. False too for a ``Host`` that is not this machine's own (DNS rebinding: a page whose host name
        was pointed at this server), and for an ``Origin`` that is not that host.
        """
        address, proven = self._way(request)
        if not (proven and address.is_loopback and names_this_machine(request.headers.get("Host", ""))):
            return False
        if is_forwarded(request) and not self._says_loopback_only(request):
            return False
        return is_own_origin(request)

    def _way(self, request: web.Request) -> tuple[Address, bool]:
        """The nearest address that is not a trusted proxy's, and whether it is known: an entry that a proxy left out or
        wrote as a name leaves nothing but the proxy."""
        address = parse_address(request.remote or "")
        proven = not self.trusts(address)
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        while hops and self.trusts(address):
            hop = hops.pop().strip()
            if not hop:
                continue
            try:
                address, proven = _hop(hop), True
            except ValueError:  # a name, or nonsense: the proxy itself is all that is known
                return address, False
        return address, proven

    def _says_loopback_only(self, request: web.Request) -> bool:
        """Whether a trusted proxy passed the request on, and every address in what proxies wrote is loopback."""
        if not self.trusts(parse_address(request.remote or "")):
            return False
        for name, value in request.headers.items():
            if _FORWARDING.fullmatch(name) and not _WRITTEN_BY_PROXIES.fullmatch(name):
                return False
            if name.lower() in ("x-forwarded-for", "x-real-ip") and not _all_loopback(value.split(",")):
                return False
            if name.lower() == "forwarded" and not _all_loopback(_FORWARDED_FOR.findall(value)):
                return False
        return True


def is_forwarded(request: web.Request) -> bool:
    """Whether a request bears any sign of having been passed on."""
    return any(_FORWARDING.fullmatch(name) for name in request.headers)


def names_this_machine(host: str) -> bool:
    """Whether the host of a URL is a loopback address or localhost, which DNS rebinding cannot change."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_own_origin(request: web.Request, hosts: Iterable[str] = ()) -> bool:
    """Whether the page that sent the request, if any says so in ``Origin``, is of the host that it asks, or of one of
    ``hosts``."""
    origin = request.headers.get("Origin")
    own = {host.lower() for host in (request.headers.get("Host", ""), *hosts)}
    return origin is None or origin.lower().partition("://")[2] in own - {""}


def rate_limit_key(address: Address) -> str:
    """What counts as one client for limits: an IPv4 address, or the /64 of an IPv6 address."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def parse_address(text: str) -> Address:
    """An address as sockets show it; UNKNOWN_ADDRESS for none."""
    try:
        return _unmapped(ipaddress.ip_address(text))
    except ValueError:
        return UNKNOWN_ADDRESS


_FORWARDED_FOR = re.compile(r"""for\s*=\s*("[^"]*"|[^;,\s]*)""", re.IGNORECASE)


def _hop(text: str) -> Address:
    """An entry of X-Forwarded-For; some proxies add the client's port. Raises ValueError."""
    match = re.fullmatch(r"([0-9.]+):[0-9]+|\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?", text)
    return _unmapped(ipaddress.ip_address((match[1] or match[2]) if match else text))


def _all_loopback(entries: Iterable[str]) -> bool:
    """Whether there is at least one entry, and all are loopback addresses."""
    addresses = []
    for entry in entries:
        try:
            addresses.append(_hop(entry.strip().strip('"')))
        except ValueError:
            return False
    return bool(addresses) and all(address.is_loopback for address in addresses)


def _unmapped(address: Address) -> Address:
    """A socket for both families shows IPv4 clients as ::ffff:192.0.2.1."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
