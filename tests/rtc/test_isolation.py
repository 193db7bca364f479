"""Many calls at once, and who receives whose: a picture carries the mark of its stream, a voice has its own tone."""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil

from echo_rtc.bench.support.calls import Caller, Heard, Voice
from echo_rtc.clips import MEDIA_RATE, ClipFormat, S16Array
from echo_rtc.engine.testcard import AVATAR, TestCardEngine
from tests.rtc.test_calls import House, Sight, house, tone, until

FORMAT = ClipFormat(fps=12, clip_frames=3, width=96, height=96)
STREAMS, ROUNDS = 5, 6
"""In each round as many callers, and a viewer for each: a hundred joins in all."""
WINDOW = 4_800
"""Samples in which a tone is looked for: 10 Hz apart."""
NEAR_HZ = 20
"""A gap within a window blurs its tone; those of others, of the round before too, are further away."""


def pitch(hz: int) -> Voice:
    def voice(start: int, count: int) -> S16Array:
        return (np.sin(np.arange(start, start + count) * 2 * np.pi * hz / MEDIA_RATE) * 12_000).astype(np.int16)

    return voice


def pitches(sound: list[Heard]) -> set[int]:
    """The tones (Hz, to 10) that were heard in whole windows of loud sound."""
    line = np.concatenate([heard.pcm for heard in sound]).astype(np.float64)
    found = set()
    for start in range(0, len(line) - WINDOW, WINDOW):
        window = line[start : start + WINDOW]
        if np.abs(window).reshape(-1, 480).max(axis=1).min() > 6_000:
            found.add(int(np.abs(np.fft.rfft(window * np.hanning(WINDOW))).argmax()) * MEDIA_RATE // WINDOW)
    return found


async def view(home: House, name: str, caller: Caller) -> None:
    home.callers.append(caller)

    async def exchange(offer: str) -> str:
        return (await home.manager.view(name, offer)).answer_sdp

    await caller.connect(exchange)


async def call(home: House, name: str, caller: Caller) -> str:
    home.callers.append(caller)
    opened: list[str] = []

    async def exchange(offer: str) -> str:
        answer = await home.manager.open_call(offer, AVATAR, name)
        opened.append(answer.stream)
        return answer.answer_sdp

    await caller.connect(exchange)
    return opened[0]


async def test_streams_stay_apart_over_many_joins() -> None:
    async with house(TestCardEngine(FORMAT, capacity=STREAMS)) as home:
        for turn in range(ROUNDS):
            tones = {f"room-{number}": 500 + 300 * number + 30 * turn for number in range(STREAMS)}
            sights = {name: (Sight(), Sight()) for name in tones}
            callers = {name: Caller(pitch(hz), sights[name][0].hear, sights[name][0].see) for name, hz in tones.items()}
            streams = await asyncio.gather(*(call(home, name, caller) for name, caller in callers.items()))
            viewers = [Caller(None, sights[name][1].hear, sights[name][1].see, speaks=False) for name in tones]
            await asyncio.gather(*(view(home, name, viewer) for name, viewer in zip(tones, viewers, strict=True)))
            everybody = [sight for pair in sights.values() for sight in pair]
            heard_by_all = lambda: all(len(s.spoken) > 6 and len(s.sound) > 40 for s in everybody)  # noqa: E731, B023
            await until(heard_by_all, patience_s=60.0)  # so many calls and viewers have two cores to decode with
            for stream in streams:
                assert await home.manager.close_stream(stream, "the round is over")
            marks = {}
            for name, pair in sights.items():
                marks[name] = {card.mark for sight in pair for card in sight.spoken}
                for sight in pair:
                    heard = pitches(sight.sound)
                    assert all(abs(hz - tones[name]) <= NEAR_HZ for hz in heard), f"{name} heard {heard}"
                assert pitches(pair[0].sound), f"{name} heard nothing"
            assert all(len(mark) == 1 for mark in marks.values()), marks
            assert len(set.union(*marks.values())) == STREAMS
            await asyncio.gather(*(caller.close() for caller in home.callers))
            home.callers.clear()


class _Asked:
    """Whom this process asks for anything over a network, while it is looked at. Audit hooks stay for ever."""

    addresses: set[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _Asked.addresses is None or event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        return
    target = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    host = target[0] if isinstance(target, tuple) else target
    _Asked.addresses.add(host.decode() if isinstance(host, bytes) else str(host))


@contextmanager
def asked() -> Iterator[set[str]]:
    if not any(hook is _audit for hook in _hooked):
        sys.addaudithook(_audit)
        _hooked.append(_audit)
    _Asked.addresses = set()
    try:
        yield _Asked.addresses
    finally:
        _Asked.addresses = None


_hooked: list[object] = []


async def test_a_call_contacts_only_its_peer() -> None:
    own = {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
    with asked() as addresses:
        async with house(TestCardEngine(FORMAT, capacity=1)) as home:
            sight = Sight()
            await home.call(Caller(tone(9_000), sight.hear, sight.see))
            await until(lambda: len(sight.spoken) > 6)
    assert addresses
    for address in addresses:
        assert ipaddress.ip_address(address.partition("%")[0]).is_loopback or address.partition("%")[0] in own, address
