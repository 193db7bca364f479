"""Calls without a microphone, whose owners control what is said over their data channels, and others do not."""

from __future__ import annotations

import asyncio
import json

import pytest

from echo_rtc.bench.support.calls import Caller
from echo_rtc.engine.testcard import AVATAR
from echo_rtc.errors import NameTakenError, UnsupportedMediaError
from echo_rtc.rtc.guard import CONTROLS_BURST
from echo_rtc.rtc.manager import TAKEN_OVER
from tests.rtc.test_calls import House, _offer, house, until
from tests.stream.test_speech import loud

INTERRUPT = json.dumps({"type": "agent.interrupt"})


def types(caller: Caller) -> list[object]:
    return [event["type"] for event in caller.events if event["type"] not in ("state", "stats", "caption")]


async def join(home: House, name: str | None, key: str | None = None) -> tuple[Caller, str]:
    """A call of pushed speech under ``name``, or a viewer of the stream ``key``; with the stream's key."""
    caller, opened = Caller(None, speaks=False), list[str]()
    home.callers.append(caller)

    async def exchange(offer: str) -> str:
        if key is None:
            answer = await home.manager.open_call(offer, AVATAR, name, pushed=True)
        else:
            answer = await home.manager.view(key, offer)
        opened.append(answer.stream)
        return answer.answer_sdp

    await caller.connect(exchange)
    await until(lambda: caller.channel.readyState == "open")
    return caller, opened[0]


async def test_owners_control_what_is_said_and_viewers_do_not() -> None:
    async with house() as home:
        owner, key = await join(home, "studio")
        (viewer, _), (agent, _) = await asyncio.gather(join(home, None, "studio"), join(home, None, key))
        speaker = home.manager.speaker(key)
        assert speaker is not None
        speaker.say("a", loud(30.0))
        await until(lambda: "agent.speak_started" in types(owner))
        viewer.channel.send(INTERRUPT)
        await until(lambda: "error" in types(viewer))
        assert next(event for event in viewer.events if event["type"] == "error")["code"] == "forbidden"
        assert types(owner) == ["agent.speak_started"]
        agent.channel.send(INTERRUPT)
        await until(lambda: types(owner)[-1] == types(agent)[-1] == "agent.speak_interrupted")
        assert types(viewer) == ["error"]
        for _ in range(100):
            viewer.channel.send(INTERRUPT)
        await until(lambda: home.statistics(key)["guard"]["controls_refused"] > 50)
        assert len(types(viewer)) <= 1 + CONTROLS_BURST + 10
        # A stream keeps its kind of voice, also for whoever takes its name over.
        await owner.close()
        await until(lambda: not home.statistics(key)["published"])
        with pytest.raises(NameTakenError):
            await home.manager.open_call(await _offer(), AVATAR, "studio")
        # It is all theirs then: what was admitted by the former owner's key controls nothing, and is told nothing.
        former = home.manager.ending(key)
        _, present = await join(home, "studio")
        assert former is not None
        assert await former == TAKEN_OVER
        assert home.manager.ending(key) is None
        told = len(types(agent))
        agent.channel.send(INTERRUPT)
        await until(lambda: len(types(agent)) > told)
        assert next(event for event in agent.events if event["type"] == "error")["code"] == "forbidden"
        held = home.manager.ending(present)
        assert held is not None
        assert not held.done()


async def test_a_call_of_pushed_speech_ends_with_its_owner() -> None:
    async with house() as home:
        owner, key = await join(home, None)
        assert home.statistics(key)["source"] == "pushed"
        await owner.close()
        await until(lambda: not home.manager.streams)
        with pytest.raises(UnsupportedMediaError, match="sends no audio"):
            await home.manager.open_call(await _offer(speaks=False), AVATAR)
