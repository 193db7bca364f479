"""Turns: order, giving up, being sent away."""

from __future__ import annotations

import asyncio

import pytest

from echo_rtc.engine.turns import Turns


async def waiting(turns: Turns[str], count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(turns.take()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_what_is_free_goes_out_in_the_order_it_came() -> None:
    turns: Turns[str] = Turns()
    for thing in "abc":
        turns.give(thing)
    assert [await turns.take() for _ in range(3)] == ["a", "b", "c"]


async def test_who_waits_longest_is_served_first() -> None:
    turns: Turns[str] = Turns()
    tasks = await waiting(turns, 3)
    for thing in "abc":
        turns.give(thing)
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]


async def test_who_gives_up_is_passed_over() -> None:
    turns: Turns[str] = Turns()
    first, second = await waiting(turns, 2)
    first.cancel()
    await asyncio.sleep(0)
    turns.give("a")
    assert await second == "a"


async def test_who_gives_up_in_the_moment_of_being_served_hands_on() -> None:
    turns: Turns[str] = Turns()
    first, second = await waiting(turns, 2)
    turns.give("a")
    first.cancel()  # it has not run since it was served
    assert await second == "a"
    (last,) = await waiting(turns, 1)
    turns.give("b")
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert await turns.take() == "b"


async def test_all_who_wait_are_sent_away_and_later_ones_served() -> None:
    turns: Turns[str] = Turns()
    tasks = await waiting(turns, 2)
    turns.dismiss(LookupError("closed"))
    for task in tasks:
        with pytest.raises(LookupError, match="closed"):
            await task
    turns.give("a")
    assert await turns.take() == "a"


async def test_what_is_withdrawn_is_not_given_out() -> None:
    turns: Turns[str] = Turns()
    turns.give("a")
    turns.give("b")
    turns.withdraw("a")
    turns.withdraw("c")
    assert await turns.take() == "b"
