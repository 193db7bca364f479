"""The operator's page and what it asks for: who gets it, what is in it, and the end of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from echo_rtc.outputs.facts import OutputState
from echo_rtc.web.admin import ENDED_BY_OPERATOR, SHOWN
from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation, Right, mint
from echo_rtc.web.health import Phase
from echo_rtc.web.metrics import NoOutputs, NoRecordings, Watch
from tests.web.conftest import Edge, MakeEdge
from tests.web.test_auth import SECRET, bearer, signed


class SeenStream:
    """Something that is listed; what is shown of it comes from the statistics."""


async def state(edge: Edge) -> dict[str, Any]:
    async with edge.client.get("/admin/state") as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        found: dict[str, Any] = await response.json()
        return found


async def test_the_page_is_open_and_never_kept(edge: Edge) -> None:
    async with edge.client.get("/admin") as response:
        assert response.status == 404, "this folder has no such page"
    (edge.static / "admin.html").write_text("<!doctype html><title>admin</title>")
    async with edge.client.get("/admin") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        assert response.headers["Cache-Control"] == "no-store"


async def test_it_shows_the_server_its_streams_and_its_refusals(edge: Edge) -> None:
    edge.streams.streams["known-id"] = SeenStream()  # type: ignore[assignment]
    async with edge.client.get("/nothing"):
        pass
    seen = await state(edge)
    assert seen["engine"] == "local"
    assert seen["trouble"] == ""
    assert seen["capacity"] == 2
    assert seen["refusals"] == {"not-found": 1}
    assert seen["frames"] == {"rendered": 0, "idle": 0, "held": 0, "dropped": 0}
    assert seen["server"]["memory_bytes"] > 0
    assert seen["workers"] == []
    [stream] = seen["streams"]
    assert set(stream) == set(SHOWN)
    assert stream["rendered"] == 24
    assert (seen["recordings"], seen["outputs"]) == ([], [])
    edge.lifecycle.phase = Phase.STOPPING
    assert (await state(edge))["trouble"] == "The server is stopping and takes no new streams."


async def test_it_shows_recordings_and_outputs(make_edge: MakeEdge) -> None:
    class Overview(NoRecordings):
        def overview(self) -> Sequence[Mapping[str, object]]:
            return [{"id": "r", "file": "r.part.mp4", "bytes": 5}]

    class Pushed(NoOutputs):
        def overview(self) -> Sequence[Mapping[str, object]]:
            return [{"id": "o", "state": OutputState.WAITING, "error": "the server answers 503"}]

    seen = await state(await make_edge(Access(), watch=Watch(recordings=Overview(), outputs=Pushed())))
    assert seen["recordings"] == [{"id": "r", "file": "r.part.mp4", "bytes": 5}]
    assert seen["outputs"] == [{"id": "o", "state": "waiting", "error": "the server answers 503"}]


async def test_a_stream_is_ended_once(edge: Edge) -> None:
    async with edge.client.delete("/admin/streams/known-id") as response:
        assert response.status == 204
    assert edge.streams.closed == [("known-id", ENDED_BY_OPERATOR)]
    async with edge.client.delete("/admin/streams/known-id") as response:
        assert response.status == 404
        assert (await response.json(content_type=None))["type"].endswith(":unknown-stream")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/metrics"), ("GET", "/admin/state"), ("DELETE", "/admin/streams/known-id")]
)
async def test_only_an_administrators_token_opens_it(make_edge: MakeEdge, method: str, path: str) -> None:
    edge = await make_edge(Access(Authorisation.of(None, SECRET)))
    admin = mint(SECRET, frozenset({Right.ADMIN}), None, 60)
    for headers, status in (({}, 401), (bearer(signed()), 403), (bearer(admin + "x"), 401)):
        async with edge.client.request(method, path, headers=headers) as response:
            assert response.status == status
    assert edge.streams.closed == []
    async with edge.client.request(method, path, headers=bearer(admin)) as response:
        assert response.status in {200, 204}


async def test_without_tokens_administration_still_needs_one(make_edge: MakeEdge) -> None:
    """A local program is no administrator: a forwarder on this machine speaks for anybody."""
    edge = await make_edge(Access())
    for path in ("/metrics", "/admin/state"):
        async with edge.client.get(path) as response:
            assert response.status == 200
        for headers in ({"Authorization": ""}, {"Authorization": "", "X-Forwarded-For": "127.0.0.1"}, bearer("wrong")):
            async with edge.client.get(path, headers=headers) as response:
                assert response.status == 401
                detail = (await response.json(content_type=None))["detail"]
                assert ("administrator's token" in detail) is (headers["Authorization"] == "")
