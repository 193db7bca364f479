"""An output's life in virtual time: it comes back, later each time, and gives up where that is of no use."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from echo_rtc.outputs.backoff import MAX_FAILURES, MOST_S, wait_s
from echo_rtc.outputs.facts import OutputState
from echo_rtc.outputs.output import STABLE_S, Output, OutputCounters
from echo_rtc.outputs.whip import WhipError
from echo_rtc.stream.log import StreamLog
from tests.support.virtual import run

LOG = StreamLog(logging.getLogger("test"), "0123456789")


class Line:
    """A connection that the test ends."""

    codec: str | None = "H264"
    sound = True

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class World:
    """Connects after a second, or fails as scripted."""

    def __init__(self) -> None:
        self.failures: list[WhipError] = []
        self.lines: list[Line] = []
        self.attempts: list[float] = []

    async def connect(self) -> Line:
        self.attempts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        if self.failures:
            raise self.failures.pop(0)
        self.lines.append(Line())
        return self.lines[-1]


def scene() -> tuple[World, Output, OutputCounters]:
    world, counters = World(), OutputCounters()
    output = Output("abc", "https://live.example", world.connect, LOG, counters)
    output.start()
    return world, output, counters


async def settle(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(10_000):
        while not what():  # noqa: ASYNC110  in virtual time
            await asyncio.sleep(0.5)


def test_the_back_off_doubles_and_is_bounded() -> None:
    assert [wait_s(n, share=1.0) for n in (1, 2, 3, 7, 10**6)] == [1, 2, 4, MOST_S, MOST_S]
    assert wait_s(3, share=0.0) == 2
    assert 30 <= wait_s(20) <= 60
    assert wait_s(1, retry_after_s=90, share=1.0) == 90


def test_an_output_comes_back_until_it_is_ended() -> None:
    async def live() -> None:
        world, output, counters = scene()
        world.failures = [WhipError("busy", retry_after_s=30.0), WhipError("busy")]
        await settle(lambda: output.state is OutputState.WAITING)
        facts = output.facts
        assert (facts.error, facts.failures) == ("busy", 1)
        assert facts.retry_in_s == pytest.approx(30, abs=1)
        await settle(lambda: output.state is OutputState.LIVE)
        assert world.attempts[1] - world.attempts[0] >= 31
        assert (output.facts.error, output.facts.codec) == (None, "H264")
        await asyncio.sleep(STABLE_S)
        world.lines[0].ended.set_result("the connection failed")
        await settle(lambda: output.state is OutputState.WAITING)
        assert (output.facts.failures, world.lines[0].closed) == (1, True)
        await settle(lambda: output.state is OutputState.LIVE)
        await output.close()
        assert world.lines[1].closed
        assert output.state is OutputState.ENDED
        assert (counters.connected, counters.failed) == (2, 3)

    run(live())


@pytest.mark.parametrize("lasting", [True, False])
def test_what_cannot_succeed_is_given_up(lasting: bool) -> None:
    async def live() -> None:
        world, output, _ = scene()
        world.failures = [WhipError("https://live.example answers 401", lasting=lasting) for _ in range(100)]
        await settle(lambda: output.state is OutputState.FAILED)
        assert len(world.attempts) == (1 if lasting else MAX_FAILURES)
        assert output.facts.error == "https://live.example answers 401"
        await output.close()

    run(live())


def test_an_output_ends_while_it_waits_or_connects() -> None:
    async def live() -> None:
        world, output, _ = scene()
        world.failures = [WhipError("busy", retry_after_s=300)]
        await settle(lambda: output.state is OutputState.WAITING)
        await output.close()
        _, connecting, _ = scene()
        await asyncio.sleep(0.1)
        await connecting.close()
        assert len(world.attempts) == 1

    run(live())
