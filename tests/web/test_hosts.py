"""A server for this machine: under which names it is asked, and by whose pages."""

from __future__ import annotations

import pytest

from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation
from echo_rtc.web.clients import Clients
from echo_rtc.web.cors import CrossOrigin
from tests.web.conftest import Edge, MakeEdge

PATHS = ("/", "/config", "/echo-rtc.js", "/avatars", "/whip/x", "/admin", "/nothing", "/static/app.js")


async def status(edge: Edge, path: str, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with edge.client.get(path, headers=named) as response:
        return response.status


async def test_it_answers_under_its_own_names_only(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(loopback=True))
    for path in PATHS:
        for host in ("evil.example", "localhost.evil.example:8080", "192.0.2.7", "[", "", "127.0.0.1.evil.example"):
            assert await status(edge, path, Host=host) == 403, (path, host)
        for host in ("localhost", "127.0.0.1:8080", "[::1]", "me.localhost:1"):
            assert await status(edge, path, Host=host) != 403, (path, host)
    for path in ("/healthz", "/readyz"):
        assert await status(edge, path, Host="evil.example", Origin="https://evil.example") == 200


async def test_pages_of_other_origins_are_refused(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(loopback=True, cross_origin=CrossOrigin.of(["http://localhost:3000"])))
    for origin in ("https://evil.example", "null", "http://localhost:8081", ""):
        assert await status(edge, "/config", Host="localhost:8080", Origin=origin) == 403, origin
    for origin in ("http://localhost:8080", "http://localhost:3000", "https://localhost:8080"):
        assert await status(edge, "/config", Host="localhost:8080", Origin=origin) == 200, origin


async def test_a_trusted_proxy_asks_under_any_name(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(loopback=True, clients=Clients.of(["127.0.0.1"])))
    proxied = {"X_Forwarded_For": "198.51.100.7"}
    assert await status(edge, "/config", Host="avatars.example", **proxied) == 200
    assert await status(edge, "/config", Host="avatars.example") == 403, "nothing says that a proxy passed it on"
    own = {"Origin": "https://avatars.example", **proxied}
    assert await status(edge, "/config", Host="avatars.example", **own) == 200
    assert await status(edge, "/config", Host="127.0.0.1:8080", X_Forwarded_Host="avatars.example", **own) == 200
    assert await status(edge, "/config", Host="127.0.0.1:8080", **own) == 403
    assert await status(edge, "/config", Host="avatars.example", Origin="https://evil.example", **proxied) == 403


@pytest.mark.parametrize("access", [Access(), Access(loopback=True, authorisation=Authorisation("a-token-for-all"))])
async def test_a_server_for_others_or_with_a_token_asks_nothing(make_edge: MakeEdge, access: Access) -> None:
    edge = await make_edge(access)
    assert await status(edge, "/config", Host="avatars.example", Origin="https://avatars.example") == 200
    assert await status(edge, "/config", Host="avatars.example", Origin="https://other.example") == 200
