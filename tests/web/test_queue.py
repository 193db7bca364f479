"""The queue of a full server: positions, held places, and who may take them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from echo_rtc.web import queue as module
from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation
from echo_rtc.web.health import Phase
from echo_rtc.web.problems import Problem
from echo_rtc.web.queue import HOLD_S, MOST_OF_ADDRESS, MOST_WAITING, Queue
from tests.web.conftest import Edge, MakeEdge

ANSWER_S = 10.0


def state(*waiters: module.Waiter) -> list[tuple[int, bool]]:
    """Position, and whether a place is held."""
    return [(waiter.position, waiter.held_until is not None) for waiter in waiters]


def test_places_are_held_for_the_first_in_their_order() -> None:
    queue = Queue()
    first, second, third = (queue.enter(client) for client in ("a", "b", "c"))
    queue.look(0, 0.0)
    assert state(first, second, third) == [(1, False), (2, False), (3, False)]
    queue.look(1, 1.0)
    assert state(first, second, third) == [(1, True), (2, False), (3, False)]
    assert [queue.held_for_others(client) for client in ("a", "b", "z")] == [0, 1, 1]
    queue.take("z")
    queue.take("a")
    assert first.over
    queue.look(0, 2.0)
    assert state(second, third) == [(1, False), (2, False)]
    assert queue.held_for_others("z") == 0


def test_who_does_not_take_a_place_in_time_leaves() -> None:
    queue = Queue()
    first, second = queue.enter("a"), queue.enter("b")
    queue.look(1, 5.0)
    queue.look(1, 5.0 + HOLD_S - 0.1)
    assert state(first, second) == [(1, True), (2, False)]
    queue.look(1, 5.0 + HOLD_S)
    assert first.over
    assert state(second) == [(1, True)]
    queue.leave(second)
    queue.leave(second)
    assert queue.waiting == 0


def test_a_place_that_is_gone_is_no_longer_held() -> None:
    queue = Queue()
    first, second = queue.enter("a"), queue.enter("b")
    queue.look(2, 0.0)
    assert state(first, second) == [(1, True), (2, True)]
    first.changed.clear()
    second.changed.clear()
    queue.look(1, 1.0)
    assert state(first, second) == [(1, True), (2, False)]
    assert (first.changed.is_set(), second.changed.is_set()) == (False, True)


def test_the_queue_is_bounded_in_all_and_by_address() -> None:
    queue = Queue()
    for _ in range(MOST_OF_ADDRESS):
        queue.enter("a")
    with pytest.raises(Problem) as refused:
        queue.enter("a")
    assert refused.value.status == 429
    for number in range(MOST_WAITING - MOST_OF_ADDRESS):
        queue.enter(f"b{number}")
    with pytest.raises(Problem) as refused:
        queue.enter("c")
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "10")


async def event(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event."""
    async with asyncio.timeout(ANSWER_S):
        while line := await response.content.readline():
            if line.startswith(b"data: "):
                found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                return found
    raise AssertionError("the stream of events has ended")


async def test_waiting_clients_are_told_of_their_turn(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    edge.streams.free = 0
    async with edge.client.get("/places") as first, edge.client.get("/places") as second:
        assert first.content_type == "text/event-stream"
        assert await event(first) == {"position": 1, "free": False}
        assert await event(second) == {"position": 2, "free": False}
        edge.streams.free = 1
        assert await event(first) == {"position": 1, "free": True}
        assert edge.streams.reservations.held_for_others("192.0.2.1") == 1
        edge.streams.reservations.take("127.0.0.1")
        edge.streams.free = 0
        assert (await first.content.read()).strip() == b"", "the first has its place"
        assert await event(second) == {"position": 1, "free": False}


async def test_a_queue_is_for_callers_of_a_server_that_runs(make_edge: MakeEdge) -> None:
    locked = await make_edge(Access(authorisation=Authorisation("a-token-for-everything")))
    async with locked.client.get("/places") as response:
        assert response.status == 401
    async with locked.client.head("/places", headers={"Authorization": "Bearer a-token-for-everything"}) as response:
        assert response.status == 200
    locked.lifecycle.phase = Phase.STARTING
    async with locked.client.get("/places", headers={"Authorization": "Bearer a-token-for-everything"}) as response:
        assert response.status == 503
