"""Bodies of requests: none is read before the request is authorised, and none that is packed is read at all."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from echo_rtc.web.problems import Problem

PLAIN = ("", "identity")
"""Values of Content-Encoding that change nothing."""

MAX_JSON_VALUES = 16_384
"""Values of a JSON text, as its brackets and commas say, which may be in a text to be said, too: that has 4096
characters."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BaseHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def refusing_packed_bodies() -> Middleware:
    """Answers 415 to every request with a Content-Encoding, whatever its path. Nothing of its body is read."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        encodings = request.headers.getall(hdrs.CONTENT_ENCODING, [])
        packed = next((text for text in encodings if text.strip().lower() not in PLAIN), None)
        if packed is not None:
            raise Problem(
                415,
                f"The body has the Content-Encoding {packed[:40]!r}; send it as it is.",
                headers={"Accept-Encoding": "identity", "Connection": "close"},
            )
        return await handler(request)

    return middleware


async def await_body(_: web.Request) -> None:
    """aiohttp's hook for ``Expect: 100-continue``: says nothing yet, because the request is not authorised; reading the
    body does."""


def refusing_expectations(handle: BaseHandler) -> BaseHandler:
    """``handle``, with 417 for every request that expects something else than to be asked for its body.

    Around the whole application: aiohttp looks at expectations before its middlewares, and for paths that are not there
    by a hook of its own, which fails at what is no text.
    """

    async def refuse_or_handle(request: web.BaseRequest) -> web.StreamResponse:
        expectation = request.headers.get(hdrs.EXPECT, "")
        if request.version >= HttpVersion11 and expectation.lower() not in ("", "100-continue"):
            return Problem(417, "The header Expect may be 100-continue; leave it out.").response()
        return await handle(request)

    return refuse_or_handle


async def read_body(request: web.Request, most: int, within_s: float, cut_off: Problem) -> bytes:
    """The body of a request of at most ``most`` bytes. Raises Problem 413 as soon as it is known to be larger, 408
    where it takes longer than ``within_s``, and ``cut_off`` where it does not come whole."""
    announced = request.content_length
    if announced is not None and announced > most:
        raise _too_large(most)
    if hdrs.EXPECT in request.headers and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp does it: no part of the answer
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        detail = f"The body took longer than {within_s:g} s; send it at once."
        raise Problem(408, detail, headers={"Connection": "close"}) from None
    except (web.RequestPayloadError, ConnectionError):  # the latter: the client has disconnected
        raise cut_off from None
    return bytes(body)


def read_json(text: str) -> Any:
    """A value of JSON. Raises ValueError for everything else, such as NaN, too deep a nesting, or half of a surrogate
    pair, which no encoder takes further on; and, before it is parsed, for more than MAX_JSON_VALUES values: each
    becomes an object, and a megabyte of empty lists would stop the event loop for half a second."""
    if sum(map(text.count, "[{,")) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES} values")
    try:
        content = json.loads(text, parse_constant=_refuse)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("the nesting is too deep") from None
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def json_object(request: web.Request, body: bytes, example: str) -> dict[str, Any]:
    """The body as a JSON object. Raises Problem 415 for another content type, 400 with ``example`` for another body."""
    if request.content_type != "application/json":
        raise Problem(415, f"The content type is {request.content_type[:80]!r}; send application/json.")
    try:
        content = read_json(body.decode("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Problem(400, f"The body is not a JSON object; send {example}.")
    return content


def _too_large(most: int) -> Problem:
    size = f"{most // 1024} KiB" if most < 2**20 else f"{most / 2**20:.3g} MiB"
    return Problem(413, f"The body is larger than {size}, which is the most that is taken here.")
