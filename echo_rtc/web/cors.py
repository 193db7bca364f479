"""Which pages of other origins may use this server (CORS, as the Fetch standard has it).

Without a list only the server's own pages may. Browsers ask by a preflight, which never carries a token and is answered
here, before tokens are checked. Clients that are no browsers send no ``Origin`` and need no permission.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from echo_rtc.errors import SettingsError

ANY = "*"
MAX_AGE_S = 600
"""How long a browser may keep the answer to a preflight."""
REQUEST_HEADERS = ("Authorization", "Content-Type", "If-Match")
"""What a page may send beyond what any page may."""
RESPONSE_HEADERS = ("Location", "ETag", "Link", "Retry-After", "WWW-Authenticate")
"""What a page may read beyond what any page may."""

_DEFAULT_PORTS = {"http": 80, "https": 443}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class CrossOrigin:
    """The allowed origins, as browsers write them; ``*`` among them stands for all."""

    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, allowed: Iterable[str]) -> CrossOrigin:
        """From ``--allow-origin``. Raises SettingsError."""
        return cls(frozenset(_origin(text) for text in allowed))

    @property
    def resource_policy(self) -> str:
        """The Cross-Origin-Resource-Policy: browsers load pictures without ``Origin``, so it is the same for all
        pages."""
        return "cross-origin" if self.origins else "same-origin"

    def allowed(self, request: web.Request) -> str | None:
        """The origin of the asking page, if it may use this server."""
        origin = request.headers.get(hdrs.ORIGIN)
        return origin if origin is not None and (ANY in self.origins or origin in self.origins) else None

    def middleware(self) -> Middleware:
        """Answers the preflights of allowed origins for every route there is. The outermost middleware."""

        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            preflight = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
            if not preflight or self.allowed(request) is None:
                return await handler(request)
            refusal = request.match_info.http_exception
            methods: Iterable[str] = ()
            if isinstance(refusal, web.HTTPMethodNotAllowed):
                response: web.StreamResponse = web.Response(status=204)
                methods = refusal.allowed_methods
            else:
                # A route that answers OPTIONS by itself, or none at all.
                response = await handler(request)
                resource = request.match_info.route.resource
                methods = [] if resource is None else [route.method for route in resource]
            if methods:
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = ", ".join(sorted(methods))
                response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join(REQUEST_HEADERS)
                response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(MAX_AGE_S)
            return response

        return answer

    def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds the headers that let an allowed origin read the response."""
        if not self.origins:
            return
        if ANY not in self.origins:
            before = response.headers.get(hdrs.VARY)
            response.headers[hdrs.VARY] = f"{before}, {hdrs.ORIGIN}" if before else str(hdrs.ORIGIN)
        origin = self.allowed(request)
        if origin is not None:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = ANY if ANY in self.origins else origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(RESPONSE_HEADERS)


def _origin(text: str) -> str:
    """An origin in the form that browsers send (RFC 6454, 6.2): lower case, no default port, no path."""
    if text == ANY:
        return ANY
    try:
        parts = urlsplit(text.lower())
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if not host or parts.username is not None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise SettingsError(f"allow_origin is {text[:60]!r}; it must be an origin such as https://app.example, or *")
    host = f"[{host}]" if ":" in host else host
    shown = "" if port is None or port == _DEFAULT_PORTS.get(parts.scheme) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"
