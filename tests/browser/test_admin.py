"""The operator's page in a browser, at a server with real streams: what it asks for, shows and does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import expect

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.web.admin import ENDED_BY_OPERATOR
from tests.browser.conftest import TEST_CARD, PageFactory, RunningServer, ServerFactory

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = "a-token-of-the-tests-and-long-enough"
SMALL = ("--width", "128", "--height", "128")
Call = Callable[[RunningServer, str | None], Awaitable[Caller]]


@pytest_asyncio.fixture(loop_scope="session")
async def call() -> AsyncIterator[Call]:
    """Opens calls of somebody who talks, and ends them after the test."""
    callers: list[Caller] = []

    async def connect(server: RunningServer, name: str | None) -> Caller:
        caller = Caller(babble, codec="VP8")
        callers.append(caller)

        async def exchange(offer: str) -> str:
            body = {"sdp": offer, "type": "offer"} | ({} if name is None else {"name": name})
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.post(f"{server.url}/offer", json=body) as response,
            ):
                assert response.status == 200
                answer: str = (await response.json())["sdp"]
                return answer

        await caller.connect(exchange)
        return caller

    yield connect
    await asyncio.gather(*(caller.close() for caller in callers))


async def record_and_push(running: RunningServer) -> None:
    """Begins a recording of the only stream, and an output to a server that is not there."""
    async with aiohttp.ClientSession(running.url, headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        async with session.get("/admin/state") as response:
            [stream] = (await response.json())["streams"]
        wish = {"type": "whip", "endpoint": "http://127.0.0.1:9/secret"}
        for what, body in (("recordings", None), ("outputs", wish)):
            async with session.post(f"/streams/{stream['stream']}/{what}", json=body) as response:
                assert response.status == 201


async def test_an_operator_sees_the_streams_and_ends_one(
    server: ServerFactory, page: PageFactory, call: Call, tmp_path: Path
) -> None:
    outlets = ("--recording-dir", str(tmp_path), "--output-host", "http://127.0.0.1:9")
    running = await server(TEST_CARD, *SMALL, "--auth-token", TOKEN, *outlets)
    staying = await call(running, "studio")
    await record_and_push(running)
    leaving = await call(running, None)
    visit = await page(running.url)
    await visit.page.goto(f"{running.url}/admin")
    visit.expected.append("401")
    gate = visit.page.get_by_role("heading", name="This page is for operators")
    await expect(gate).to_be_visible()
    await expect(visit.page.locator("#gate-text")).to_contain_text("Give the administrators' token")
    await visit.page.get_by_label("Token").fill("not this one")
    await visit.page.get_by_role("button", name="Open").click()
    await expect(visit.page.locator("#gate-text")).to_have_text("The token is not one of this server's.")
    await visit.page.get_by_label("Token").fill(TOKEN)
    await visit.page.get_by_role("button", name="Open").click()
    await expect(gate).to_be_hidden()
    rows = visit.page.locator("#stream-rows tr")
    await expect(rows).to_have_count(2)
    studio = rows.filter(has_text="studio")
    for label, pattern in {
        "State": r"^(speaking|behind|idle)",
        "Open for": r"^\d+:\d\d$",
        "Delay": r"^\d+ ms$",
        "Sync": r"^[+−]?\d+\.\d ms",  # noqa: RUF001  the page has a true minus
        "Frames": r"^\d+ a second\d+ held, \d+ dropped, \d+ clips lost$",
        "Microphone": r"^0 % lostjitter \d+\.\d ms$",
        "Sent": r"^VP8 \d+ kbit/s, H264 \d+ kbit/sOpus \d+ kbit/s$",
        "Viewers": r"^1round trip \d+ ms$",
    }.items():
        await expect(studio.locator(f"[data-label='{label}']")).to_have_text(re.compile(pattern))
    await expect(visit.page.locator("[data-figure=streams]")).to_have_text(re.compile(r"^2 of \d+2 so far$"))
    await expect(visit.page.locator("[data-figure=server]")).to_have_text(re.compile(r"^\d+\.\d\d cores\d+ MB$"))
    await expect(visit.page.locator("#worker-rows tr")).to_have_text(re.compile(r"^testcardup"))
    recording, output = (visit.page.locator(f"#{kind}-rows tr") for kind in ("recording", "output"))
    await expect(recording.locator("[data-label=File]")).to_have_text(re.compile(r"^\d{8}T\d{6}Z-[0-9a-f]{16}\.\S+$"))
    await expect(recording).to_contain_text(re.compile(r"^studiorecording"))
    await expect(output).to_contain_text(re.compile(r"^studio(waiting|connecting)http://127.0.0.1:9 cannot be reached"))
    await expect(output.locator("[data-label='Pushed to']")).to_have_text("http://127.0.0.1:9WHIP")
    assert TOKEN not in visit.page.url
    # One is kept after all, the other is ended; who called hears why.
    await studio.get_by_role("button", name="End the stream studio").click()
    await visit.page.get_by_role("button", name="Keep it").click()
    await rows.filter(has_not_text="studio").get_by_role("button").click()
    await visit.page.get_by_role("button", name="End it").click()
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("studio")
    assert leaving.events[-1] == {"type": "end", "reason": ENDED_BY_OPERATOR}
    assert not [event for event in staying.events if event["type"] == "end"]


async def test_a_token_in_the_address_opens_it_and_leaves_the_address(server: ServerFactory, page: PageFactory) -> None:
    running = await server(TEST_CARD, *SMALL, "--auth-token", TOKEN)
    visit = await page(running.url)
    await visit.page.goto(f"{running.url}/admin#token={TOKEN}")
    await expect(visit.page.get_by_text("No stream is open.")).to_be_visible()
    assert visit.page.url == f"{running.url}/admin"
    await visit.page.reload()
    await expect(visit.page.get_by_text("No stream is open.")).to_be_visible()


async def test_a_server_that_does_not_answer_is_named(server: ServerFactory, page: PageFactory) -> None:
    running = await server(TEST_CARD, *SMALL, "--admin-token", TOKEN)
    visit = await page(running.url)
    await visit.page.goto(f"{running.url}/admin#token={TOKEN}")
    visit.expected.append("Failed to load resource")
    await expect(visit.page.get_by_text("No stream is open.")).to_be_visible()
    await expect(visit.page.locator("#trouble")).to_be_hidden()
    await running.stop()
    await expect(visit.page.locator("#trouble")).to_have_text("The server does not answer.")
