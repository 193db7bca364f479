"""The path below which a reverse proxy shows this server, such as ``/avatar``, for the addresses in answers.

The proxy strips it before it passes a request on. It is set by ``--base-path``, or told by a trusted proxy in
``X-Forwarded-Prefix``; any other client's header is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from echo_rtc.web.clients import Clients

HEADER = "X-Forwarded-Prefix"
MAX_CHARACTERS = 256
PREFIX = web.RequestKey("echo_rtc.prefix", str)
"""The key under which a request carries its prefix, "" for none."""

_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def prefix_of(request: web.Request) -> str:
    """What to put before the path of an address of this server."""
    found: str = request.get(PREFIX, "")
    return found


def finding_prefixes(base_path: str, clients: Clients) -> Middleware:
    """Finds each request's prefix. ``base_path``, if there is one, is that of all."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[PREFIX] = base_path or _told(request, clients)
        return await handler(request)

    return middleware


def _told(request: web.Request, clients: Clients) -> str:
    told = request.headers.getall(HEADER, [])
    if len(told) != 1 or not clients.through_proxy(request):
        return ""
    prefix = told[0].strip().rstrip("/")
    is_path = len(prefix) <= MAX_CHARACTERS and _PATH.fullmatch(prefix) is not None
    return prefix if is_path and not {".", ".."} & set(prefix.split("/")) else ""
