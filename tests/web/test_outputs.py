"""The routes of outputs: tokens, bodies, statuses, and that no secret is returned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from echo_rtc.errors import ConflictError
from echo_rtc.outputs.facts import OutputFacts, OutputState
from echo_rtc.outputs.hosts import HostRules
from echo_rtc.outputs.whip import Endpoint
from echo_rtc.web.app import Access, AppOptions, Outlets, create_app
from echo_rtc.web.auth import Authorisation, Right, mint
from echo_rtc.web.health import Health, Lifecycle, Phase
from tests.web.conftest import Client, Edge, FakeEngine, FakeLibrary, FakeStreams, Server, gallery_of

STATIC = Path(__file__).parents[2] / "static"
SECRET = "a-secret-of-thirty-two-characters-1"
DAY_S = 86_400
"""Tokens are minted when the file is collected, long before it runs."""
URL = "https://live.example/secret-path"
WISH = {"type": "whip", "endpoint": URL, "bearer": "secret-token"}
RULES = HostRules.of(["live.example"])


@dataclass
class FakeOutputs:
    """Takes one output of a stream."""

    started: list[tuple[str, Endpoint]] = field(default_factory=list)

    @property
    def facts(self) -> OutputFacts:
        return OutputFacts("out-1", "whip", "https://live.example", OutputState.WAITING, retry_in_s=3.21, error="busy")

    def start(self, stream_id: str, endpoint: str, bearer: str | None) -> OutputFacts:
        if self.started:
            raise ConflictError("the stream is pushed there already")
        self.started.append((stream_id, Endpoint.of(endpoint, bearer, RULES)))
        return self.facts

    def of(self, stream_id: str) -> Sequence[OutputFacts]:
        return [self.facts] if self.started else []

    def find(self, stream_id: str, output_id: str) -> OutputFacts | None:
        return self.facts if self.started and output_id == "out-1" else None

    async def stop(self, stream_id: str, output_id: str) -> bool:
        return self.find(stream_id, output_id) is not None and bool(self.started.pop())


class NamedStreams(FakeStreams):
    taken_over = False
    asked = False

    def stream_of(self, key: str) -> str | None:
        self.asked = True
        return None if key == "unknown" or self.taken_over else key

    def name_of(self, key: str) -> str | None:
        return "studio"


@pytest.fixture
def streams() -> NamedStreams:
    return NamedStreams()


@pytest.fixture
def outputs() -> FakeOutputs:
    return FakeOutputs()


@pytest.fixture
async def client(
    aiohttp_client: Client, aiohttp_server: Server, streams: NamedStreams, outputs: FakeOutputs
) -> TestClient[web.Request, web.Application]:
    health = Health(FakeEngine(), Lifecycle(Phase.READY), "local", tuple, free_places=lambda: 1)
    access, outlets = Access(Authorisation(secret=SECRET)), Outlets(outputs=outputs)
    app = create_app(streams, health, STATIC, gallery_of(FakeLibrary()), AppOptions(access, outlets=outlets))
    server: TestServer = await aiohttp_server(app)
    return await aiohttp_client(server)


def token(right: Right, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {mint(SECRET, frozenset({right}), name, DAY_S)}"}


MINE = token(Right.PUBLISH, "studio")
HERE = "/streams/known-id/outputs"


async def test_an_output_from_its_beginning_to_its_end(client: TestClient[web.Request, web.Application]) -> None:
    wrong = {"Authorization": "Bearer not-this-one"}
    for headers, status in (
        ({}, 401),
        (wrong, 401),
        (token(Right.VIEW, "studio"), 403),
        (token(Right.PUBLISH, "other"), 403),
    ):
        for method, path in ("POST", HERE), ("GET", HERE), ("GET", f"{HERE}/out-1"), ("DELETE", f"{HERE}/out-1"):
            refused = await client.request(method, path, headers=headers)
            assert (refused.status, "WWW-Authenticate" in refused.headers) == (status, True)
    assert (await client.post("/streams/unknown/outputs", json=WISH, headers=MINE)).status == 404
    assert (await client.get(f"{HERE}/out-1", headers=MINE)).status == 404
    begun = await client.post(HERE, json=WISH, headers=MINE)
    assert (begun.status, begun.headers["Location"]) == (201, f"{HERE}/out-1")
    assert (await client.post(HERE, json=WISH, headers=MINE)).status == 409
    for answer in (begun, *[await client.get(path, headers=MINE) for path in (HERE, f"{HERE}/out-1")]):
        text = await answer.text()
        assert '"retry_in_s": 3.2' in text
        assert "secret" not in text
        assert answer.headers["Cache-Control"] == "no-store"
    assert (await client.delete(f"{HERE}/out-1", headers=MINE)).status == 204
    assert (await client.delete(f"{HERE}/out-1", headers=MINE)).status == 404


async def test_who_loses_a_stream_while_sending_pushes_it_nowhere(
    client: TestClient[web.Request, web.Application], streams: NamedStreams, outputs: FakeOutputs
) -> None:
    async def body() -> AsyncIterator[bytes]:
        content = json.dumps(WISH).encode()
        yield content[:9]
        while not streams.asked:  # noqa: ASYNC110  a request's first check has no event
            await asyncio.sleep(0.005)
        streams.taken_over = True
        yield content[9:]

    refused = await client.post(HERE, data=body(), headers={**MINE, "Content-Type": "application/json"})
    assert (refused.status, outputs.started) == (404, [])


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"type": "rtmp"}, 422, "type is 'rtmp'"),
        ({"type": None}, 422, "type is None"),
        ({"endpoint": 5}, 422, "endpoint is missing"),
        ({"endpoint": "https://other.example/secret-path"}, 422, "https://other.example is not one that --output-host"),
        ({"endpoint": "http://127.0.0.1/secret-path"}, 422, "http://127.0.0.1 is not one"),
        ({"bearer": 5}, 422, "bearer is no text"),
        ({"bearer": "secret token"}, 422, "bearer is no token"),
    ],
)
async def test_wishes_that_cannot_be_are_told_why(
    client: TestClient[web.Request, web.Application], change: dict[str, object], status: int, words: str
) -> None:
    refused = await client.post(HERE, json={**WISH, **change}, headers=MINE)
    detail = (await refused.json())["detail"]
    assert (refused.status, detail[: len(words)].lower()) == (status, words.lower())
    assert "secret" not in detail


async def test_bodies_that_are_no_wishes_are_refused(client: TestClient[web.Request, web.Application]) -> None:
    json_type = {**MINE, "Content-Type": "application/json"}
    for body, headers, status in (b"[]", json_type, 400), (b"{", json_type, 400), (b"{}", MINE, 415):
        assert (await client.post(HERE, data=body, headers=headers)).status == status
    assert (await client.post(HERE, data=b" " * 70_000, headers=json_type)).status == 413


async def test_without_hosts_nothing_is_pushed(edge: Edge) -> None:
    refused = await edge.client.post(HERE, json=WISH)
    assert refused.status == 501
    assert "--output-host" in (await refused.json())["detail"]
