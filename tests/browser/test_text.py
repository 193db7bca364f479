"""Text that the avatar says: chosen on the page, typed, heard, interrupted, without a microphone."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import TEST_CARD, PageFactory, ServerFactory
from tests.browser.visit import WORDS_MS

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = "One two three four five six seven eight nine ten, and many more numbers after that. " * 3
"""Spoken for so long that a page that is behind for a while still comes to show it."""
CHOICE = "Typed text, in the server's voice"


async def test_a_visitor_types_and_interrupts(server: ServerFactory, page: PageFactory) -> None:
    running = await server(TEST_CARD, "--tts-url", "local", "--width", "256", "--height", "256")
    visit = await page(running.url, microphone="missing")
    choice = visit.page.get_by_role("combobox", name="Voice")
    await choice.select_option(label=CHOICE)
    await expect(choice).to_have_value("typed text")
    await visit.page.get_by_role("button", name="Start").click()
    await visit.live()
    field, interrupt = visit.page.get_by_label("Say this"), visit.page.get_by_role("button", name="Interrupt")
    await expect(interrupt).to_have_attribute("aria-disabled", "true")
    await field.fill(LONG)
    await field.press("Enter")
    await expect(field).to_have_value("")
    await expect(interrupt).to_have_attribute("aria-disabled", "false")
    await visit.state("Speaking")
    # A key that is typed is no shortcut; beside the field it is one.
    await field.press("i")
    await expect(interrupt).to_have_attribute("aria-disabled", "false")
    await field.fill("")
    await interrupt.press("i")
    await expect(interrupt).to_have_attribute("aria-disabled", "true", timeout=WORDS_MS)
    await visit.state("Idle")
    async with visit.page.expect_event("requestfinished", lambda request: request.url.endswith("/speak")):
        await field.fill(f"Once more. {LONG}")
        await visit.page.get_by_role("button", name="Say", exact=True).click()
    await visit.state("Speaking")
    await choice.select_option(label="Sample voice, without a microphone")
    await expect(field).to_be_hidden()
    await visit.live()
