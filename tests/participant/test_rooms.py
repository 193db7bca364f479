"""Asking a LiveKit server for the way before its library does."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from echo_rtc.errors import RoomError, TicketError
from echo_rtc.participant.rooms import knock

OLD, NEW = "/rtc/validate", "/rtc/v1/validate"


@pytest.mark.parametrize(
    ("answers", "error", "why"),
    [
        ({OLD: 200, NEW: 400}, None, ""),
        ({OLD: 200}, None, ""),
        ({OLD: 401, NEW: 401}, TicketError, "refuses livekit_token"),
        ({OLD: 302, NEW: 404}, RoomError, "redirects"),
        ({OLD: 200, NEW: 307}, RoomError, "redirects"),
        ({}, RoomError, "the status 404"),
    ],
)
async def test_a_server_is_asked_first(answers: dict[str, int], error: type[Exception] | None, why: str) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        assert request.headers["Authorization"] == "Bearer token"
        return web.Response(status=answers.get(request.path, 404), headers={"Location": "/inside"}, text="a secret")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        address = str(server.make_url("")).replace("http", "ws").rstrip("/")
        if error is None:
            await knock(address, "token")
        else:
            with pytest.raises(error, match=why) as refused:
                await knock(address, "token")
            assert "secret" not in str(refused.value)
    assert set(asked) <= {OLD, NEW}


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(RoomError, match="does not answer"):
        await knock("ws://127.0.0.1:9", "token")
