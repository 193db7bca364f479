"""A whole server, edge and WebRTC, under hostile requests: each is refused in words or served, and nothing is left
behind. ``python -m echo_rtc.bench hostile`` is the long form."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.bench import hostile
from echo_rtc.bench.hostile import FuzzCounts, assault, end_all, send, settled, udp_sockets
from echo_rtc.bench.support import siege
from echo_rtc.bench.support.attacks import ELSEWHERE, Attacker, Route, harmless, read_offers, spoilt
from echo_rtc.cli import serve
from echo_rtc.errors import InputError, OfferError
from echo_rtc.logs import LogFile
from echo_rtc.rtc.fragment import read_fragment
from echo_rtc.rtc.offer import plan_call, plan_publishing, plan_viewing, read_offer
from echo_rtc.settings import Settings
from echo_rtc.web.app import routes
from echo_rtc.web.auth import Right, mint
from tests.test_server import free_port

OFFERS = read_offers(hostile.OFFERS)
ROUTES = [Route(row.method, row.path) for row in routes()]
PLANS = {"call": plan_call, "whip": plan_publishing, "whep": plan_viewing}
REQUESTS = 1_000
LIFE_S = 60.0


SECRETS = (
    "a-secret-that-signs-the-tokens-of-32",
    "a-secret-of-the-turn-server",
    "a-key-of-the-text-to-speech-server",
)
"""Beside the token."""


@pytest.fixture
async def port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    """A server of test cards in this process, with a token and another secret, and settings of the test; its port."""
    chosen = Settings(
        engine="testcard",
        port=free_port(),
        width=64,
        height=64,
        max_streams=16,
        auth_token=siege.TOKEN,
        token_secret=SECRETS[0],
        tts_url="http://127.0.0.1:9",
        tts_key=SECRETS[2],
        **getattr(request, "param", {}),
    )
    task = asyncio.create_task(serve.serve(chosen, LogFile(None, None)))
    async with asyncio.timeout(LIFE_S):
        while True:
            with contextlib.suppress(ConnectionError):
                if (
                    await send(chosen.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                ).status == 200:
                    break
            await asyncio.sleep(0.02)
    yield chosen.port
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_hostile_requests_get_their_answers_and_leave_nothing(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "echo_rtc")
    attacker = Attacker(OFFERS, ROUTES, seed=20, token=siege.TOKEN)
    fuzz_counts = FuzzCounts()
    await assault(port, attacker, REQUESTS, fuzz_counts)
    await end_all(port, attacker)
    process = psutil.Process()
    assert await settled(lambda: udp_sockets(process)) == 0
    assert fuzz_counts.failures == []
    assert fuzz_counts.requests == REQUESTS
    assert fuzz_counts.opened > 20
    refused = sum(
        count for counter in fuzz_counts.statuses.values() for status, count in counter.items() if status >= 400
    )
    assert refused > REQUESTS / 2
    authorised = f"Connection: close\r\nAuthorization: Bearer {siege.TOKEN}\r\n\r\n"
    metrics = await send(port, f"GET /metrics HTTP/1.1\r\nHost: x\r\n{authorised}".encode())
    unreadable = re.search(rb"^echo_rtc_requests_unreadable_total (\S+)$", metrics.body, re.MULTILINE)
    assert unreadable
    assert float(unreadable[1]) > 10
    alarms = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert alarms == []
    assert siege.TOKEN not in caplog.text


@pytest.mark.parametrize(
    "port", [{"turn_secret": SECRETS[1], "ice_server": ("turn:192.0.2.9:3478",)}], indirect=True, ids=["with TURN"]
)
async def test_nothing_secret_is_told(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "a-token-that-somebody-guessed"
    signed = mint(SECRETS[0], frozenset({Right.VIEW}), "studio", 60.0)
    told: list[bytes] = []
    for route in ROUTES:
        path = re.sub(r"\{[^}]+\}", "studio", route.path)
        for token in (None, wrong, signed, siege.TOKEN):
            # A stream of events lasts as long as it is read: its head tells as much.
            method = "HEAD" if path == "/places" else route.method
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
            head += f"Authorization: Bearer {token}\r\n" if token else ""
            answer = await send(port, f"{head}Content-Type: application/json\r\n\r\n{{}}".encode())
            assert answer.status is not None
            assert answer.status < 500 or answer.status in (501, 503)
            told += [answer.body, repr(answer.headers).encode()]
    everything = b"\n".join(told) + caplog.text.encode()
    for secret in (*SECRETS, siege.TOKEN, wrong, signed):
        assert secret.encode() not in everything, secret


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_any_spoilt_offer_is_read_or_refused_in_words(seed: int, times: int) -> None:
    chance = random.Random(seed)
    texts = [offer.sdp for offer in OFFERS]
    text = chance.choice(texts)
    for _ in range(times):
        text = spoilt(chance, [text], texts)
    refusals = []
    for read in (read_fragment, *(lambda text, plan=plan: plan(read_offer(text)) for plan in PLANS.values())):
        try:
            read(text)
        except OfferError as error:
            refusals.append(str(error))
    assert all(10 < len(words) < 400 and "\n" not in words for words in refusals)


@given(st.lists(st.sampled_from([line for offer in OFFERS for line in offer.sdp.splitlines()]) | st.text(max_size=40)))
@settings(max_examples=150, deadline=None)
def test_any_lines_are_an_offer_or_refused_in_words(lines: list[str]) -> None:
    for text in ("\r\n".join(lines), "\n".join(["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", *lines])):
        with contextlib.suppress(OfferError):
            read_offer(text)
        with contextlib.suppress(OfferError):
            read_fragment(text)


def test_the_offers_of_all_programs_are_understood_as_they_are() -> None:
    assert {offer.kind for offer in OFFERS} == set(PLANS)
    for offer in OFFERS:
        PLANS[offer.kind](read_offer(offer.sdp))


def test_attacks_contact_no_other_address(tmp_path: Path) -> None:
    text = "a=candidate:1 1 udp 9 8.8.8.8 53 typ host\r\na=candidate:2 1 udp 9 2606:4700::1 53 typ host\r\n"
    text += "a=candidate:3 1 udp 9 example.org 53 typ host\r\na=candidate:4 1 udp 9 127.0.0.1 53 typ host"
    assert [line.split()[4] for line in harmless(text).splitlines()] == [ELSEWHERE] * 3 + ["127.0.0.1"]
    with pytest.raises(InputError, match="holds no offers"):
        read_offers(tmp_path)


def test_the_same_seed_makes_the_same_attacks() -> None:
    first, second = (Attacker(OFFERS, ROUTES, seed=5) for _ in range(2))
    assert [first.next() for _ in range(50)] == [second.next() for _ in range(50)]
