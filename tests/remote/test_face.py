"""A server elsewhere that refuses, or is none, as a program is told of it."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from echo_rtc.errors import RemoteError
from echo_rtc.remote.face import RemoteFace


async def refusing(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") != "Bearer good":
        return web.json_response({"detail": "A token is needed."}, status=401)
    raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/streams")


async def test_refusals_are_told_and_redirects_not_followed() -> None:
    app = web.Application()
    app.add_routes([web.post("/streams", refusing)])
    async with TestServer(app) as server:
        url = str(server.make_url("/"))
        with pytest.raises(RemoteError, match=r"refuses \(401\): A token is needed"):
            await RemoteFace.open(url)
        with pytest.raises(RemoteError, match=r"refuses \(307\): it says no more"):
            await RemoteFace.open(url, "good")
    with pytest.raises(RemoteError, match="cannot be used"):
        await RemoteFace.open(url)


async def test_a_server_of_another_kind_is_told() -> None:
    async def other(request: web.Request) -> web.Response:
        return web.json_response([], status=201)

    app = web.Application()
    app.add_routes([web.post("/streams", other)])
    async with TestServer(app) as server:
        with pytest.raises(RemoteError, match="cannot be used"):
            await RemoteFace.open(str(server.make_url("/")))
