"""Everything below a path of a reverse proxy that strips that path, as ``location /avatar/`` of nginx does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import expect

from tests.browser.conftest import TEST_CARD, PageFactory, ServerFactory

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = "a-token-for-everything-behind-the-proxy"
PREFIX = "/avatar/"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}

Below = Callable[[str], Awaitable[str]]


@pytest_asyncio.fixture(loop_scope="session")
async def below() -> AsyncIterator[Below]:
    """Starts a proxy in front of a server, and returns the address at which that is found."""
    async with AsyncExitStack() as stack:

        async def start(server: str) -> str:
            session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))

            async def forward(request: web.Request) -> web.Response:
                url = f"{server}/{request.match_info['path']}"
                headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
                body = await request.read()
                async with session.request(
                    request.method, url, params=request.query, headers=headers, data=body, allow_redirects=False
                ) as answer:
                    kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
                    return web.Response(status=answer.status, headers=kept, body=await answer.read())

            app = web.Application()
            app.router.add_route("*", PREFIX + "{path:.*}", forward)
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "localhost", 0).start()
            return f"http://localhost:{runner.addresses[0][1]}{PREFIX}"

        yield start


async def test_nothing_leaves_the_prefix(server: ServerFactory, page: PageFactory, below: Below) -> None:
    running = await server(TEST_CARD, "--width", "128", "--height", "128", "--auth-token", TOKEN)
    home = await below(running.url)
    # A page notes each request to another address than these, and fails the test for it.
    caller = await page(f"{home}#token={TOKEN}")
    assert caller.origins == (home,)
    await expect(caller.part("poster")).to_be_visible()
    await caller.page.evaluate("document.querySelector('echo-rtc').setAttribute('name', 'studio')")
    await caller.start()

    viewer = await page("about:blank")
    viewer.origins = (home,)
    await viewer.page.goto(f"{home}embed?mode=view&name=studio&muted&autoplay#token={TOKEN}")
    await viewer.live()
    async with viewer.page.expect_response(lambda response: response.request.method == "DELETE") as left:
        await viewer.page.get_by_role("button", name="End: stop watching").click()
    assert (await left.value).status == 200

    operator = await page("about:blank")
    operator.origins = (home,)
    await operator.page.goto(f"{home}admin#token={TOKEN}")
    await expect(operator.page.locator("#stream-rows tr")).to_contain_text("studio")

    async with caller.page.expect_response(lambda response: response.request.method == "DELETE") as ended:
        await caller.end()
    assert (await ended.value).ok
