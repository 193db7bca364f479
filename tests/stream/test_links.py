"""The figures of a link: counts that never decrease, and statistics that cannot be read."""

from __future__ import annotations

from echo_rtc.stream.links import Delivery, Link, Reception


async def test_counts_never_become_less() -> None:
    answers = iter([Reception(100, 5, 0.01), Reception(150, 4, 0.02)])

    async def probe() -> Reception:
        return next(answers)

    link = Link(Reception(), probe)
    assert link.latest == Reception()
    await link.ask()
    await link.ask()
    assert link.latest == Reception(150, 5, 0.02)


async def test_figures_that_cannot_be_had_stay_as_they_were() -> None:
    answers = iter([Delivery(7, 0.1)])

    async def probe() -> Delivery:
        return next(answers)  # the second time: RuntimeError, as StopIteration becomes in a coroutine

    link = Link(Delivery(), probe)
    await link.ask()
    await link.ask()
    assert link.latest == Delivery(7, 0.1)


async def test_without_a_probe_nothing_is_known() -> None:
    link = Link(Delivery(), None)
    await link.ask()
    assert link.latest == Delivery()
