"""How peers reach this server and it reaches them: STUN and TURN servers, UDP ports, addresses outside a NAT.

Text and addresses in, what browsers and aiortc take out; no socket is opened here. Knows nothing of streams or HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote

import ifaddr
from aiortc import RTCConfiguration, RTCIceServer

from echo_rtc.errors import SettingsError
from echo_rtc.rtc.candidates import Reach
from echo_rtc.rtc.ports import PortRange

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

TURN_LIFETIME_S = 12 * 3600
"""How long credentials for TURN are good for. They are needed when a connection begins, and again only when it is
opened again."""
TURN_USER = "echo_rtc"

_URL = re.compile(
    r"(?P<scheme>stuns?|turns?):((?P<user>[^:@?\s]+):(?P<password>[^:@?\s]+)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@?/\s]+)(:(?P<port>[0-9]{1,5}))?(\?transport=(?P<transport>udp|tcp))?"
)


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server. ``url`` is without the credentials, as RFC 7064 and 7065 have it."""

    url: str
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, text: str) -> IceServer:
        """From ``stun:HOST:PORT``, ``turn:USER:PASSWORD@HOST:PORT?transport=udp`` or without user and password; special
        characters in these are written as in URLs (%40). Raises SettingsError, which shows no password."""
        match = _URL.fullmatch(text)
        if match is None or int(match["port"] or 1) not in range(1, 65_536):
            raise SettingsError(
                f"ice_server is {_without_password(text)!r}; it must be of the form stun:HOST:PORT or "
                "turn:USER:PASSWORD@HOST:PORT?transport=udp"
            )
        turn = match["scheme"].startswith("turn")
        if not turn and (match["user"] or match["transport"]):
            raise SettingsError(
                f"ice_server is {_without_password(text)!r}; a stun server has neither a password nor a transport"
            )
        if match["scheme"] == "turns" and match["transport"] == "udp":
            raise SettingsError(f"ice_server is {_without_password(text)!r}; turns goes over TCP, write ?transport=tcp")
        url = text if not match["user"] else f"{match['scheme']}:{text.partition('@')[2]}"
        if not match["user"]:
            return cls(url)
        return cls(url, unquote(match["user"]), unquote(match["password"]))

    @property
    def is_turn(self) -> bool:
        return self.url.startswith("turn")


@dataclass(frozen=True, slots=True)
class Network:
    """The network's part of the settings. Without any, peers must reach an address of this machine itself.

    ``servers`` are told to clients and used by this server. ``turn_secret`` makes credentials for those TURN servers
    that have none of their own (coturn's ``use-auth-secret``). ``ports`` are the UDP ports that media may use, None for
    any. ``public`` are this machine's addresses as the outside sees them, at most one of each kind. ``private_peers``:
    whether peers may be at addresses that the Internet does not route.
    """

    servers: tuple[IceServer, ...] = ()
    turn_secret: str | None = None
    ports: PortRange | None = None
    public: tuple[Address, ...] = ()
    private_peers: bool = True
    now_s: Callable[[], float] = time.time

    @classmethod
    def of(
        cls,
        ice_server: Iterable[str],
        turn_secret: str | None,
        udp_ports: str | None,
        public_ip: Iterable[str],
        private_peers: bool = True,
    ) -> Network:
        """From the settings of these names. Raises SettingsError."""
        servers = tuple(IceServer.parse(text) for text in ice_server)
        for server in servers:
            if server.is_turn and server.username is None and turn_secret is None:
                raise SettingsError(
                    f"ice_server is {server.url!r} without a password; write turn:USER:PASSWORD@HOST or set turn_secret"
                )
        if turn_secret is not None and not any(server.is_turn and server.username is None for server in servers):
            raise SettingsError("turn_secret is set, but no ice_server is a turn server without a password of its own")
        ports = None if udp_ports is None else PortRange.parse(udp_ports)
        return cls(servers, turn_secret, ports, _addresses(public_ip), private_peers)

    @property
    def ports_per_transport(self) -> int:
        """UDP ports that one connection needs: its own, and one towards a TURN server."""
        return 1 + any(server.is_turn for server in self.servers)

    def ice_servers(self) -> list[dict[str, str]]:
        """The servers as clients take them (RTCIceServer of the WebRTC standard), with credentials from now on."""
        return [self._with_credentials(server) for server in self.servers]

    def configuration(self) -> RTCConfiguration:
        """What this server's own connections use: of the servers, those that aiortc knows how to speak with.

        An empty list and none are two things: with none, aiortc asks a stranger's STUN server.
        """
        own = []
        for server in self.servers:
            # aiortc reads no IPv6 addresses here and has no STUN over TLS. STUN would find the public address again.
            if "[" in server.url or server.url.startswith("stuns:") or (self.public and not server.is_turn):
                continue
            known = self._with_credentials(server)
            own.append(RTCIceServer(known["urls"], known.get("username"), known.get("credential")))
        return RTCConfiguration(iceServers=own)

    def reach(self, on_loopback: bool) -> Reach:
        """Which addresses a caller may name; ``on_loopback``: a program of this machine."""
        own = broadcast_addresses()
        return Reach(on_loopback, self.private_peers, own)

    def seen_from_outside(self, sdp: str) -> str:
        """A description in which this machine's own addresses are replaced by those that the outside sees (NAT 1:1: the
        ports stay as they are)."""
        if not self.public:
            return sdp
        outside: dict[int, str] = {address.version: str(address) for address in self.public}
        return "\r\n".join(_rewritten(line, outside) for line in sdp.splitlines()) + "\r\n"

    def _with_credentials(self, server: IceServer) -> dict[str, str]:
        if not server.is_turn:
            return {"urls": server.url}
        username, password = server.username, server.password
        if username is None and self.turn_secret is not None:
            username, password = turn_credentials(self.turn_secret, self.now_s() + TURN_LIFETIME_S)
        return {"urls": server.url, "username": username or "", "credential": password or ""}


def turn_credentials(secret: str, until_s: float) -> tuple[str, str]:
    """(user, password) that a TURN server with this secret takes until a time in seconds since 1970.

    The scheme is coturn's (draft-uberti-behave-turn-rest): the user is the time, the password its signature.
    """
    username = f"{int(until_s)}:{TURN_USER}"
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def broadcast_addresses() -> frozenset[Address]:
    """The broadcast addresses of the networks that this machine is in."""
    found: set[Address] = set()
    for adapter in ifaddr.get_adapters():
        for own in adapter.ips:
            if isinstance(own.ip, str) and own.network_prefix <= 30:
                network = ipaddress.ip_network((own.ip, own.network_prefix), strict=False)
                found.update((network.broadcast_address, network.network_address))
    return frozenset(found)


def _rewritten(line: str, outside: dict[int, str]) -> str:
    """A line of a description; candidates of relays and of STUN are outside already."""
    if line.startswith("a=candidate:"):
        words = line.split(" ")
        if words[6:8] == ["typ", "host"]:
            words[4] = _outside(words[4], outside)
        return " ".join(words)
    if line.startswith(("c=IN IP4 ", "c=IN IP6 ")):
        start, _, address = line.rpartition(" ")
        return f"{start} {_outside(address, outside)}"
    return line


def _outside(address: str, outside: dict[int, str]) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    # 0.0.0.0 stands for "no address yet".
    return address if parsed.is_unspecified else outside.get(parsed.version, address)


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    found: dict[int, Address] = {}
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise SettingsError(f"public_ip is {text[:60]!r}; it must be an address such as 203.0.113.5") from None
        if address.version in found:
            raise SettingsError(f"public_ip is given twice for IPv{address.version}; give one address of each kind")
        found[address.version] = address
    return tuple(found.values())


def _without_password(text: str) -> str:
    """The text of a server for a message."""
    return text[:80] if "@" not in text else f"{text.partition(':')[0]}:...@{text.rpartition('@')[2][:60]}"
