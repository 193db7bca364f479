"""What a LiveKit access token says, read without its key: whether it can be good for joining a room as an avatar.

Whether it is genuine is the LiveKit server's to say; what cannot work need not be tried.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import jwt

from echo_rtc.errors import TicketError

MAX_TOKEN_CHARACTERS = 8192


@dataclass(frozen=True, slots=True)
class Ticket:
    """A token for ``room``, as the participant ``identity``."""

    room: str
    identity: str


def read_ticket(token: str, now: float | None = None) -> Ticket:
    """Reads a token. ``now``: seconds since 1970. Raises TicketError."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise TicketError(
            f"the livekit_token has more than {MAX_TOKEN_CHARACTERS} characters; send an access token of LiveKit"
        )
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise TicketError("the livekit_token cannot be read; send an access token of LiveKit, which is a JWT") from None
    expiry = claims.get("exp")
    if isinstance(expiry, int | float) and expiry <= (time.time() if now is None else now):
        raise TicketError("the livekit_token has expired; send one that is good for joining now")
    video, identity = claims.get("video"), claims.get("sub")
    grants: Mapping[str, object] = video if isinstance(video, Mapping) else {}
    room = grants.get("room")
    if grants.get("roomJoin") is not True or not isinstance(room, str) or not room:
        raise TicketError("the livekit_token does not allow to join a room; grant room_join for one room")
    for key in ("canPublish", "canPublishData"):
        if grants.get(key, True) is not True:
            raise TicketError(f"the livekit_token forbids {key}, without which the avatar cannot be seen or heard")
    if not isinstance(identity, str) or not identity:
        raise TicketError("the livekit_token names no identity; give the avatar one")
    return Ticket(room, identity)
