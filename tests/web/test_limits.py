"""Limits for each client: what is too much is a 429 that says when to come back, and others are none the worse."""

from __future__ import annotations

import asyncio

import pytest

from echo_rtc.errors import CapacityError
from echo_rtc.web import limits as module
from echo_rtc.web.app import Access
from echo_rtc.web.clients import Clients
from echo_rtc.web.limits import BURST_REQUESTS, MAX_PACE_S, REQUESTS_PER_S, LimitOptions, Limits, Pace
from echo_rtc.web.problems import Problem, ProblemType
from tests.web.conftest import Edge, MakeEdge
from tests.web.test_clients import request

ANN, BEA = "192.0.2.1", "192.0.2.2"
OFFER = {"sdp": "v=0", "type": "offer"}


class Clock:
    """A clock that stands until it is moved. Seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(limits: Limits, remote: str) -> Problem | None:
    """Why this address may not make an offer; None if it may."""
    try:
        limits.claim(request(remote)).settle()
    except Problem as problem:
        return problem
    return None


def test_offers_over_the_rate_are_refused_and_later_admitted() -> None:
    clock = Clock()
    limits = Limits(LimitOptions(offers_per_minute=6), Clients(), clock)
    assert [refusal(limits, ANN) for _ in range(6)] == [None] * 6
    refused = refusal(limits, ANN)
    assert refused is not None
    assert (refused.status, refused.kind, refused.headers["Retry-After"]) == (429, ProblemType.TOO_MANY, "10")
    assert "More than 6 offers a minute" in refused.detail
    assert refusal(limits, BEA) is None
    clock.now = 9.0
    refused = refusal(limits, ANN)
    assert refused is not None
    assert refused.headers["Retry-After"] == "1"
    clock.now = 10.0
    assert refusal(limits, ANN) is None
    assert refusal(limits, ANN) is not None
    # However long it was quiet, it has no more than a minute's worth.
    clock.now = 10_000.0
    assert [refusal(limits, ANN) is None for _ in range(7)] == [True] * 6 + [False]


def test_an_ipv6_network_is_one_client_and_loopback_unlimited() -> None:
    limits = Limits(LimitOptions(offers_per_minute=1, peers=1), Clients(), Clock())
    assert refusal(limits, "2001:db8::1") is None
    assert refusal(limits, "2001:db8::2") is not None
    assert refusal(limits, "2001:db8:0:1::1") is None
    assert [refusal(limits, "127.0.0.1") for _ in range(5)] == [None] * 5


def test_without_limits_nothing_is_refused() -> None:
    limits = Limits(LimitOptions(), Clients(), Clock())
    assert [refusal(limits, ANN) for _ in range(500)] == [None] * 500


def test_only_so_many_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    limits = Limits(LimitOptions(offers_per_minute=1), Clients(), Clock())
    for address in (ANN, BEA, "192.0.2.3"):
        assert refusal(limits, address) is None
    assert refusal(limits, BEA) is not None
    assert refusal(limits, ANN) is None


async def test_an_address_has_so_many_peers_at_once() -> None:
    limits = Limits(LimitOptions(peers=2), Clients(), Clock())
    over: list[asyncio.Future[str]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for future in over:
        claim = limits.claim(request(ANN))
        claim.keep(future)
        claim.settle()
    refused = refusal(limits, ANN)
    assert refused is not None
    assert (refused.status, refused.kind, refused.headers["Retry-After"]) == (429, ProblemType.TOO_MANY, "10")
    assert "has 2 peers" in refused.detail
    assert refusal(limits, BEA) is None
    over[0].set_result("hung up")
    await asyncio.sleep(0)
    # One place, and an offer that leads to nothing gives it back.
    assert [refusal(limits, ANN) for _ in range(3)] == [None] * 3
    waiting = limits.claim(request(ANN))
    assert refusal(limits, ANN) is not None
    waiting.settle()
    assert refusal(limits, ANN) is None


@pytest.fixture
async def limited(make_edge: MakeEdge) -> Edge:
    """Two offers a minute, from clients behind a proxy on this machine."""
    clients = Clients.of(["127.0.0.1"])
    return await make_edge(Access(clients=clients, limits=LimitOptions(offers_per_minute=2)))


async def test_every_way_to_open_a_peer_counts_and_nothing_else(limited: Edge) -> None:
    behind = {"X-Forwarded-For": ANN}
    sdp = {"Content-Type": "application/sdp", **behind}
    async with limited.client.post("/offer", json=OFFER, headers=behind) as response:
        assert response.status == 200
    async with limited.client.post("/whip/studio", data="v=0", headers=sdp) as response:
        assert response.status == 201
    for path in ("/whip/studio", "/whep/studio"):
        async with limited.client.post(path, data="v=0", headers=sdp) as response:
            problem = await response.json(content_type="application/problem+json")
            assert response.status == problem["status"] == 429
            assert problem["type"] == ProblemType.TOO_MANY
            assert int(response.headers["Retry-After"]) > 0
    async with limited.client.delete("/streams/known-id", headers=behind) as response:
        assert response.status == 204
    for path in ("/", "/config", "/readyz"):
        async with limited.client.get(path, headers=behind) as response:
            assert response.status == 200
    async with limited.client.post("/offer", json=OFFER, headers={"X-Forwarded-For": BEA}) as response:
        assert response.status == 200


@pytest.mark.parametrize("what", ["outputs", "recordings"])
async def test_what_is_begun_for_a_stream_counts_too(limited: Edge, what: str) -> None:
    behind, path = {"X-Forwarded-For": ANN}, f"/streams/known-id/{what}"
    statuses = [(await limited.client.post(path, json={}, headers=behind)).status for _ in range(3)]
    assert statuses == [501, 501, 429]
    assert (await limited.client.get(path, headers=behind)).status == 501
    assert (await limited.client.post(path, json={}, headers={"X-Forwarded-For": BEA})).status == 501


async def test_texts_have_a_limit_of_their_own(make_edge: MakeEdge) -> None:
    limits = LimitOptions(offers_per_minute=1, texts_per_minute=2)
    edge = await make_edge(Access(clients=Clients.of(["127.0.0.1"]), limits=limits))
    behind, path = {"X-Forwarded-For": ANN}, "/streams/known-id/speak"
    for status in (409, 409, 429):
        async with edge.client.post(path, json={"text": "Hello."}, headers=behind) as response:
            assert response.status == status
    assert int(response.headers["Retry-After"]) == 30
    for other in ({"X-Forwarded-For": BEA}, {}):
        async with edge.client.post(path, json={"text": "Hello."}, headers=other) as response:
            assert response.status == 409
    async with edge.client.post("/offer", json=OFFER, headers=behind) as response:
        assert response.status == 200


async def test_a_refused_offer_holds_no_place(make_edge: MakeEdge) -> None:
    clients = Clients.of(["127.0.0.1"])
    edge = await make_edge(Access(clients=clients, limits=LimitOptions(peers=1)))
    edge.streams.failure = CapacityError("all places are taken", 5)
    for _ in range(3):
        async with edge.client.post("/offer", json=OFFER, headers={"X-Forwarded-For": ANN}) as response:
            assert response.status == 503


def test_requests_of_one_address_are_spaced_out() -> None:
    now = 100.0
    pace = Pace(Clients(), lambda: now)
    delays = [pace.delay_s(request("192.0.2.1")) for _ in range(BURST_REQUESTS + 200)]
    assert delays[:BURST_REQUESTS] == [0.0] * BURST_REQUESTS
    assert delays[-1] == pytest.approx(200 / REQUESTS_PER_S)
    assert pace.delay_s(request("192.0.2.2")) == 0.0
    for _ in range(int(MAX_PACE_S * REQUESTS_PER_S) - 200):
        pace.delay_s(request("192.0.2.1"))
    for _ in range(3):
        with pytest.raises(Problem) as refused:
            pace.delay_s(request("192.0.2.1"))
        assert refused.value.status == 429
    now += MAX_PACE_S + BURST_REQUESTS / REQUESTS_PER_S
    assert pace.delay_s(request("192.0.2.1")) == 0.0
