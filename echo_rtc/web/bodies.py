"""Bodies of requests: none is read before the request is authorised, and none that is packed is read at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from echo_rtc.web.problems import Problem

PLAIN = ("", "identity")
"""Values of Content-Encoding that change nothing."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


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


async def await_body(request: web.Request) -> None:
    """aiohttp's hook for ``Expect: 100-continue``: says nothing yet, because the request is not authorised; reading the
    body does. Raises HTTPExpectationFailed for any other expectation."""
    expectation = request.headers.get(hdrs.EXPECT, "")
    if request.version >= HttpVersion11 and expectation.lower() != "100-continue":
        raise web.HTTPExpectationFailed


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


def json_object(request: web.Request, body: bytes, example: str) -> dict[str, Any]:
    """The body as a JSON object. Raises Problem 415 for another content type, 400 with ``example`` for another body."""
    if request.content_type != "application/json":
        raise Problem(415, f"The content type is {request.content_type[:80]!r}; send application/json.")
    try:
        content = json.loads(body.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Problem(400, f"The body is not a JSON object; send {example}.")
    return content


def _too_large(most: int) -> Problem:
    size = f"{most // 1024} KiB" if most < 2**20 else f"{most / 2**20:.3g} MiB"
    return Problem(413, f"The body is larger than {size}, which is the most that is taken here.")
