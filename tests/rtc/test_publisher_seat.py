"""A publisher's place: kept for a grace period, claimed once, and never given up under a claim."""

from __future__ import annotations

import asyncio

import pytest

from echo_rtc.rtc.publisher_seat import PublisherSeat, SeatState
from tests.support.virtual import run

GRACE_S = 10.0


def lost(expired: list[float]) -> PublisherSeat[str]:
    """The place of a publisher who was just lost."""
    seat: PublisherSeat[str] = PublisherSeat()
    assert seat.is_vacant
    seat.take("first")
    assert (seat.state, seat.publisher, seat.is_vacant, seat.can_be_claimed) == (SeatState.TAKEN, "first", False, False)
    loop = asyncio.get_running_loop()
    seat.lose(GRACE_S, lambda: expired.append(loop.time()))
    assert (seat.publisher, seat.lost, seat.is_vacant, seat.can_be_claimed) == (None, "first", True, True)
    return seat


def test_without_a_claim_the_place_is_given_up() -> None:
    async def live() -> None:
        expired: list[float] = []
        seat, begun = lost(expired), asyncio.get_running_loop().time()
        await asyncio.sleep(2 * GRACE_S)
        assert expired == [pytest.approx(begun + GRACE_S)]
        assert not seat.can_be_claimed

    run(live())


def test_who_claims_the_place_has_it() -> None:
    async def live() -> None:
        expired: list[float] = []
        seat = lost(expired)
        seat.claim()
        assert not seat.can_be_claimed
        with pytest.raises(RuntimeError, match="CLAIMED"):
            seat.claim()
        seat.take("second")
        await asyncio.sleep(2 * GRACE_S)
        assert (seat.publisher, seat.lost, expired) == ("second", None, [])

    run(live())


def test_a_claim_outlives_the_grace_period() -> None:
    async def live() -> None:
        expired: list[float] = []
        seat = lost(expired)
        seat.claim()
        await asyncio.sleep(2 * GRACE_S)
        assert (seat.state, seat.is_vacant, expired) == (SeatState.OVERDUE, False, [])
        seat.take("second")
        assert seat.publisher == "second"

    run(live())


@pytest.mark.parametrize(("after_s", "over"), [(1.0, False), (GRACE_S + 1, True)])
def test_a_claim_given_up_leaves_what_is_left_of_the_time(after_s: float, over: bool) -> None:
    async def live() -> None:
        expired: list[float] = []
        seat = lost(expired)
        seat.claim()
        await asyncio.sleep(after_s)
        assert seat.release() is over
        assert seat.can_be_claimed is not over
        await asyncio.sleep(2 * GRACE_S)
        assert len(expired) == (not over)

    run(live())
