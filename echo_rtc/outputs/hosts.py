"""The rules of --output-host, which keep clients from making this server send requests to any address (server-side
request forgery).

A URL is parsed once, by the parser of the HTTP client that uses it. A name is resolved once for each connection, which
goes to the address that was checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from echo_rtc.errors import OutputRefusedError, SettingsError
from echo_rtc.rtc.candidates import Reach

MAX_URL_CHARACTERS = 2_048
_RULE = re.compile(
    r"((?P<scheme>https?)://)?(?P<host>\*|(\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
)
_URL_CHARACTERS = re.compile(r"[!-~]+")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HostRule:
    """One pattern. ``host``: a name, an address, ``*.`` and a domain, or ``*``."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """From ``[http://|https://]HOST[:PORT]``; https where no scheme is given. Raises SettingsError."""
        match = _RULE.fullmatch(text.lower())
        port = int(match["port"] or 1) if match else 0
        if match is None or not 0 < port < 65_536 or not _is_plain(match["host"].strip("[]")):
            raise SettingsError(
                f"output_host is {text[:60]!r}; it must be a host such as live.example, *.example or "
                "http://mediamtx.example:8889"
            )
        scheme = match["scheme"] or "https"
        return cls(scheme, match["host"].strip("[]"), port if match["port"] else _PORTS[scheme])

    @property
    def is_exact(self) -> bool:
        """Whether the operator named this very host, and so trusts wherever it is."""
        return not self.host.startswith("*")

    def covers(self, url: URL) -> bool:
        host = host_of(url)
        if url.scheme != self.scheme or url.port != self.port:
            return False
        if self.host == "*" or self.host == host:
            return True
        return self.host.startswith("*.") and host.endswith(self.host[1:]) and host != self.host[2:]


@dataclass(frozen=True, slots=True)
class HostRules:
    """All patterns of ``--output-host``."""

    rules: tuple[HostRule, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> HostRules:
        """Raises SettingsError."""
        return cls(tuple(HostRule.parse(text) for text in texts))

    def checked(self, text: str) -> URL:
        """The URL, if it is one that may be pushed to. Raises OutputRefusedError, which shows nothing of it but scheme,
        host and port: the rest may be a secret."""
        if len(text) > MAX_URL_CHARACTERS or not _URL_CHARACTERS.fullmatch(text) or "\\" in text:
            raise OutputRefusedError(
                f"endpoint is no URL of at most {MAX_URL_CHARACTERS} characters of ASCII; send https://HOST/PATH"
            )
        try:
            url = URL(text)
            host, port = host_of(url), url.port
        except ValueError:
            raise OutputRefusedError("endpoint is no URL that can be read; send https://HOST/PATH") from None
        if url.scheme not in _PORTS or not host or port is None or "%" in host:
            raise OutputRefusedError("endpoint is no http or https URL with a host; send https://HOST/PATH")
        if not _is_plain(host):
            raise OutputRefusedError(
                "endpoint has a host that can be read in more than one way; send a name or a whole address"
            )
        if url.user is not None or url.password is not None:
            raise OutputRefusedError("endpoint has a user or a password in it; send the token as bearer")
        if url.fragment:
            raise OutputRefusedError("endpoint has a fragment (#...), which is never sent; leave it out")
        self.require(url)
        return url

    def require(self, url: URL) -> None:
        """Raises OutputRefusedError unless a rule covers the URL."""
        if not any(rule.covers(url) for rule in self.rules):
            raise OutputRefusedError(f"{shown(url)} is not one that --output-host allows")
        address = _address(host_of(url))
        if address is not None and not self.reach(host_of(url)).allows(address, url.port or 1):
            raise OutputRefusedError(f"{shown(url)} is an address that nothing is pushed to")

    def reach(self, host: str) -> Reach:
        """Which addresses a name may stand for: public ones, or any that a host of its kind can have if the operator
        named it by itself."""
        exact = any(rule.is_exact and rule.host == host for rule in self.rules)
        return Reach(loopback=exact, private=exact)


class CheckedResolver(AbstractResolver):
    """Looks names up, and leaves out addresses that the rules do not allow for them."""

    def __init__(self, rules: HostRules) -> None:
        self._rules = rules

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        reach = self._rules.reach(host.lower().rstrip("."))
        results: list[ResolveResult] = []
        for kind, _, protocol, _, place in found:
            address = _address(str(place[0]))
            if address is not None and reach.allows(address, port or 1):
                results.append(
                    ResolveResult(
                        hostname=host,
                        host=str(place[0]),
                        port=port,
                        family=kind,
                        proto=protocol,
                        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                    )
                )
        if not results:
            raise OSError(None, f"{host} stands for no address that may be pushed to")
        return results

    async def close(self) -> None:
        """Nothing is held."""


def host_of(url: URL) -> str:
    """The host in the one form in which it is compared."""
    return (url.raw_host or "").lower().rstrip(".")


def shown(url: URL) -> str:
    """What of a URL may be shown: its path may be a secret."""
    return str(url.origin())


def _is_plain(host: str) -> bool:
    """Whether a host is a name, or an address in its one usual form: resolvers read 127.1, 0x7f.1 and 2130706433 as
    addresses too."""
    address = _address(host)
    if address is not None:
        return str(address) == host
    return not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
