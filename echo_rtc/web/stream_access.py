"""Permission to change a stream by its address: where tokens are used, a token to publish under its name.

The address of a stream (``/streams/{id}``) cannot be guessed and is given to its publisher; reading the stream's
counters and ending it need no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from echo_rtc.web.auth import Authorisation, require_publish
from echo_rtc.web.signalling import unknown_stream


class OwnedStreams(Protocol):
    """Streams by what their owners hold of them."""

    def stream_of(self, key: str) -> str | None: ...

    def name_of(self, key: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class OwnedStream:
    """A stream that a request's address names: its id, and the name under which it is viewed, if it has one."""

    id: str
    name: str | None


@dataclass(frozen=True, slots=True)
class StreamAccess:
    """Finds the stream of a request."""

    streams: OwnedStreams
    authorisation: Authorisation

    def known(self, request: web.Request) -> OwnedStream:
        """The stream that the address names. Raises Problem 404."""
        key = request.match_info["id"]
        stream_id = self.streams.stream_of(key)
        if stream_id is None:
            raise unknown_stream()
        return OwnedStream(stream_id, self.streams.name_of(key))

    def published(self, request: web.Request) -> OwnedStream:
        """The same, for a request that may publish it. Raises Problem 404; 401 without a token where one is needed, 403
        for one of another scope or stream."""
        found = self.known(request)
        require_publish(request, self.authorisation, found.name)
        return found
