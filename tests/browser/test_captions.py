"""What is said over the picture: the words of pushed speech while they are said, and that the stream is recorded."""

from __future__ import annotations

import base64

import aiohttp
import pytest
from playwright.async_api import expect

from tests.browser.conftest import PageFactory, RunningServer
from tests.browser.visit import WORDS_MS

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORDS = "Good morning."
LONG = base64.b64encode(b"\x00\x20\x00\xe0" * 240_000).decode()
"""20 s of sound at 24 kHz."""


async def test_words_and_recordings_are_shown_while_they_last(card: RunningServer, page: PageFactory) -> None:
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{card.url}/streams", json={"name": "captioned"})
        opened = await response.json()
        visit = await page("about:blank")
        visit.origins += (card.url,)
        await visit.page.goto(f"{card.url}/embed?mode=view&name=captioned&captions&muted&autoplay")
        await visit.live()
        text = visit.part("caption-text")
        await expect(text).to_be_hidden()
        async with session.ws_connect(f"{card.url}{opened['speech']}") as channel:
            await channel.send_json({"type": "agent.speak", "audio": LONG, "text": WORDS})
            await expect(text).to_have_text(WORDS, timeout=WORDS_MS)
            await expect(text).to_be_visible()
            await expect(text).to_have_attribute("aria-live", "off")
            await expect(text).to_have_css("user-select", "text")
            await channel.send_json({"type": "agent.interrupt"})
            await expect(text).to_be_hidden(timeout=WORDS_MS)
        recorded = visit.page.get_by_text("Recording", exact=True)
        await expect(recorded).to_be_hidden()
        assert (await session.post(f"{card.url}{opened['stream']}/recordings")).status == 201
        await expect(recorded).to_be_visible(timeout=WORDS_MS)
        assert (await session.delete(f"{card.url}{opened['stream']}/recordings")).status == 200
        await expect(recorded).to_be_hidden(timeout=WORDS_MS)
        await session.delete(f"{card.url}{opened['stream']}")
