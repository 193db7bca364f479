"""Checks of Host and Origin for a server that listens on loopback only and needs no token.

A browser on this machine reaches such a server for any page. A page whose host name was pointed at this server (DNS
rebinding) sends that name in ``Host``; a page of another origin sends its origin in ``Origin``. Health is exempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from echo_rtc.web.access_log import route_of
from echo_rtc.web.clients import Clients, is_own_origin, names_this_machine
from echo_rtc.web.cors import CrossOrigin
from echo_rtc.web.problems import Problem, ProblemType

HEALTH = ("/healthz", "/readyz")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusing_strange_hosts(clients: Clients, cross_origin: CrossOrigin) -> Middleware:
    """Answers 403 to requests for another host than this machine, and to those of pages that are not allowed. A trusted
    proxy may pass on requests for any host."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if route_of(request) in HEALTH:
            return await handler(request)
        proxied = clients.through_proxy(request)
        if not proxied and not names_this_machine(request.headers.get(hdrs.HOST, "")):
            raise _forbidden(
                "This server is for its own machine and is asked under another name; ask for localhost, pass the "
                "address of the proxy in front with --trusted-proxy, or set --auth-token."
            )
        further = request.headers.getall("X-Forwarded-Host", []) if proxied else []
        if not is_own_origin(request, further) and cross_origin.allowed(request) is None:
            raise _forbidden("The page that asks is of another origin; --allow-origin allows it.")
        return await handler(request)

    return middleware


def _forbidden(detail: str) -> Problem:
    return Problem(403, detail, ProblemType.FORBIDDEN)
