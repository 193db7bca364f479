"""Types that the HTTP edge and the manager share: one peer of a stream, with an unguessable id and a role.

Knows neither of them, nor any connection.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from echo_rtc.errors import OfferError

MAX_NAME_CHARACTERS = 64
_NAME = re.compile(rf"[A-Za-z0-9._~-]{{1,{MAX_NAME_CHARACTERS}}}")


class Role(StrEnum):
    """What a peer does: speak and watch in one connection; speak; watch."""

    CALL = "call"
    PUBLISH = "publish"
    VIEW = "view"


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of an offer, as far as HTTP says: ``client`` is the address, or the network, that counts as one client
    for limits; "" where it is not known. ``on_loopback``: a program of this machine."""

    client: str = ""
    on_loopback: bool = False


class Reservations(Protocol):
    """Places that are held for clients in the queue."""

    def held_for_others(self, client: str) -> int:
        """How many are held for other clients than this one."""
        ...

    def take(self, client: str) -> None:
        """The client opens a stream, in the place held for it if there is one."""
        ...


class NoReservations:
    """No queue: no place is held."""

    def held_for_others(self, client: str) -> int:
        return 0

    def take(self, client: str) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A peer that was let in. ``session`` is its own id; ``stream`` the key to the stream that it speaks to or watches;
    ``tag`` names its ICE session, which later candidates must name too. ``over`` resolves when the peer is closed; None
    where no caller needs it."""

    session: str
    stream: str
    tag: str
    answer_sdp: str
    over: asyncio.Future[str] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class OpenedSpeech:
    """A stream of pushed speech that was opened. ``key``: to speak to it, to look at it and to end it; ``name``: under
    which it is viewed."""

    key: str
    name: str


def can_be_a_name(name: str) -> bool:
    """Whether a stream may be called so."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """``name`` itself. Raises OfferError unless it can be a stream's name."""
    if not can_be_a_name(name):
        raise OfferError(
            f"the name {name[:80]!r} cannot be a stream's; take 1 to {MAX_NAME_CHARACTERS} letters, digits or . _ ~ -"
        )
    return name
