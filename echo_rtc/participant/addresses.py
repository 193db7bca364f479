"""Which LiveKit servers may be joined: the operator's patterns, and what a caller's address must be to fit one.

An address that fits is rebuilt from its parts, so that no two readers of it can disagree about its host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from echo_rtc.errors import AddressError, SettingsError

MAX_URL_CHARACTERS = 512
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_PATTERN = re.compile(r"(?P<scheme>wss?://)?(?P<host>\[[0-9a-f:]+\]|[a-z0-9.*-]+)(:(?P<port>[0-9]{1,5}))?")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
_PORTS = {"wss": 443, "ws": 80}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One pattern: ``host`` is a name, an IP address or "*.domain"."""

    scheme: str
    host: str
    port: int

    def fits(self, scheme: str, host: str, port: int) -> bool:
        if scheme != self.scheme or port != self.port:
            return False
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The LiveKit servers that may be joined. Made by :meth:`of`."""

    rules: tuple[_Rule, ...] = ()

    @classmethod
    def of(cls, patterns: Sequence[str]) -> AllowedHosts:
        """Patterns such as ``livekit.example:7880``, ``*.livekit.cloud`` and ``ws://localhost:7880``. Raises
        SettingsError."""
        return cls(tuple(_rule(pattern) for pattern in patterns))

    def checked(self, url: str) -> str:
        """``url`` as it is to be used. Raises AddressError where it cannot be read, or no pattern allows it."""
        scheme, host, port, path = _parts(url)
        if not any(rule.fits(scheme, host, port) for rule in self.rules):
            shown = f"{scheme}://{host}:{port}"
            raise AddressError(
                f"the LiveKit server {shown[:120]} is not allowed here; --livekit-host lists those that are"
            )
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path.rstrip('/')}"


def _rule(pattern: str) -> _Rule:
    found = _PATTERN.fullmatch(pattern.lower())
    host = "" if found is None else found["host"].strip("[]")
    bare = host.removeprefix("*.")
    if found is None or not _is_host(bare) or (host != bare and (_is_address(bare) or "." not in bare)):
        raise SettingsError(
            f"livekit_host is {pattern!r}; it must be a host such as livekit.example, with a port if that is not 443, "
            "or *.livekit.example for all below"
        )
    scheme = (found["scheme"] or "wss://").removesuffix("://")
    if scheme == "ws" and host not in LOOPBACK:
        raise SettingsError(
            f"the livekit_host is {pattern!r}; ws:// is for {', '.join(LOOPBACK)} only, others need wss://"
        )
    port = int(found["port"] or _PORTS[scheme])
    if not 0 < port < 65_536:
        raise SettingsError(f"livekit_host is {pattern!r}; a port is from 1 to 65535")
    return _Rule(scheme, host, port)


def _parts(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path. Raises AddressError."""
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressError(f"the livekit_url has other characters than an address, or more than {MAX_URL_CHARACTERS}")
    try:
        split = urlsplit(url)
        host, port = (split.hostname or "").lower(), split.port
    except ValueError:
        raise AddressError(
            "the livekit_url cannot be read as an address; send one such as wss://livekit.example"
        ) from None
    if split.scheme not in _PORTS:
        raise AddressError("the livekit_url has another scheme than wss; send one such as wss://a.example")
    if "@" in split.netloc or "?" in url or "#" in url or not _PATH.fullmatch(split.path):
        raise AddressError(
            "the livekit_url has more than host, port and a plain path; leave out users, queries and the like"
        )
    if "/." in split.path:
        raise AddressError("the livekit_url has a path that begins with a dot; send the path itself")
    if not _is_host(host):
        raise AddressError(
            "the livekit_url names no host that can be read in one way only; send a name, or a whole address"
        )
    return split.scheme, host, port or _PORTS[split.scheme], split.path


def _is_host(host: str) -> bool:
    """Whether this is a DNS name, or an IP address in its one usual form: some readers take 127.1, 0x7f.1 and
    2130706433 for addresses."""
    if _is_address(host):
        return True
    last = host.rpartition(".")[2]
    return len(host) <= 253 and _NAME.fullmatch(host) is not None and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last)


def _is_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    return str(address) == host and not mapped
