"""Which UDP ports media may use. Opens none."""

from __future__ import annotations

import errno
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from echo_rtc.errors import SettingsError

MAX_TRIES = 1_000
"""Ports that are tried for one socket: a large range that others use up must not keep the server busy for seconds."""

_TAKEN = (errno.EADDRINUSE, errno.EACCES)
T = TypeVar("T")


class PortsExhaustedError(OSError):
    """Every port of the range is in use."""


@dataclass(slots=True)
class PortRange:
    """The ports ``low`` to ``high``, given out in turn, so that one that was just closed rests for as long as it can.

    Whether a port is free is the system's to say: it is tried. ``exhausted`` counts the sockets for which none was.
    """

    low: int
    high: int
    exhausted: int = 0
    leased: int = 0
    """Ports that peers have or may still open."""
    _next: int = field(default=0, repr=False)

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """From ``40000-40100``. Raises SettingsError."""
        match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
        if match is None or not 1024 <= int(match[1]) <= int(match[2]) <= 65_535:
            raise SettingsError(
                f"udp_ports is {text[:60]!r}; it must be a range such as 40000-40100, from 1024 to 65535"
            )
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.high - self.low + 1

    def lease(self, count: int, kept: int = 0) -> Lease:
        """Sets ``count`` ports aside for a peer, as long as ``kept`` more remain for others. Raises
        PortsExhaustedError."""
        if self.leased + count > len(self) - kept:
            self.exhausted += 1
            raise PortsExhaustedError(errno.EADDRINUSE, f"all UDP ports from {self.low} to {self.high} are taken")
        self.leased += count
        return Lease(self, count)

    async def open(self, bind: Callable[[int], Awaitable[T]]) -> T:
        """What ``bind`` makes with the first port that it can have. Raises PortsExhaustedError if it can have none, and
        whatever else ``bind`` raises."""
        for _ in range(min(len(self), MAX_TRIES)):
            port = self.low + self._next
            self._next = (self._next + 1) % len(self)
            try:
                return await bind(port)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
        self.exhausted += 1
        raise PortsExhaustedError(errno.EADDRINUSE, f"all UDP ports from {self.low} to {self.high} are in use")


@dataclass(slots=True)
class Lease:
    """Ports that are set aside for one peer."""

    ports: PortRange
    count: int

    def release(self) -> None:
        """Gives the ports back; idempotent."""
        self.ports.leased -= self.count
        self.count = 0
