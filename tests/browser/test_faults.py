"""A browser that dies in a call."""

from __future__ import annotations

import asyncio
import contextlib
import os

import psutil
import pytest
from playwright.async_api import Error

from tests.browser.conftest import NO_SOUND_DEVICES, SAMPLE, BrowserKind, Browsers, RunningServer
from tests.browser.visit import OPEN_SHADOWS, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session")


def browser_processes() -> set[psutil.Process]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "chrom" in process.name():
                found.add(process)
    return found


async def test_a_killed_browser_frees_its_place_within_seven_seconds(card: RunningServer, browsers: Browsers) -> None:
    others = browser_processes()
    browser = await browsers.playwright.chromium.launch(
        executable_path=browsers.executable,
        args=BrowserKind("speaking", SAMPLE, ()).flags,
        env={**os.environ, **NO_SOUND_DEVICES},
    )
    visit = Visit(await browser.new_page(), (card.url,))
    visit.watch()
    await visit.page.add_init_script(OPEN_SHADOWS)
    await visit.page.goto(card.url)
    await visit.start()
    [stream] = visit.streams
    assert (await card.get(f"/streams/{stream}"))[0] == 200
    killed = asyncio.get_running_loop().time()
    for process in browser_processes() - others:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    await card.freed(stream)
    assert asyncio.get_running_loop().time() - killed < 7.0
    with contextlib.suppress(Error):
        await browser.close()
