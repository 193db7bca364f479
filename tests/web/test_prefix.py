"""Addresses in answers below a reverse proxy's path: where it is set, told by a trusted proxy, or told by anybody."""

from __future__ import annotations

import pytest

from echo_rtc.web.app import Access
from echo_rtc.web.clients import Clients
from tests.web.conftest import Edge, MakeEdge

SDP = {"Content-Type": "application/sdp"}
TOLD = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Prefix": "/avatar/"}


async def places(edge: Edge, headers: dict[str, str]) -> list[str]:
    """Where a publisher's session, a viewer's and an avatar's picture are."""
    found = []
    for path in ("/whip/studio", "/whep/studio"):
        async with edge.client.post(path, data="v=0", headers={**SDP, **headers}) as response:
            assert response.status == 201
            found.append(response.headers["Location"])
    async with edge.client.get("/avatars", headers=headers) as response:
        found.append((await response.json())[0]["preview"])
    return found


async def test_what_is_set_is_before_every_address(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(base_path="/a/b"))
    first, second, preview = await places(edge, {"X-Forwarded-Prefix": "/other"})
    assert first.startswith("/a/b/whip/studio/")
    assert second.startswith("/a/b/whep/studio/")
    assert preview == "/a/b/avatars/ann/preview"


async def test_a_trusted_proxy_tells_it(make_edge: MakeEdge) -> None:
    edge = await make_edge(Access(clients=Clients.of(["127.0.0.1"])))
    first, _, preview = await places(edge, TOLD)
    assert first.startswith("/avatar/whip/studio/")
    assert preview == "/avatar/avatars/ann/preview"
    # The proxy strips the path, so that the session is where it was.
    async with edge.client.delete(first.removeprefix("/avatar"), headers=TOLD) as response:
        assert response.status == 200


async def test_the_header_is_ignored_from_other_clients(edge: Edge) -> None:
    assert (await places(edge, TOLD))[0].startswith("/whip/studio/")


@pytest.mark.parametrize(
    "told", ["", "/", "avatar", "//evil.example", "https://evil.example", "/../x", "/a b", "/a?b", "/" + "x" * 300]
)
async def test_what_is_no_path_counts_as_none(make_edge: MakeEdge, told: str) -> None:
    edge = await make_edge(Access(clients=Clients.of(["127.0.0.1"])))
    assert (await places(edge, {**TOLD, "X-Forwarded-Prefix": told}))[0].startswith("/whip/studio/")
