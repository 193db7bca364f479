"""The element in pages of others: from another origin, with a token, as a viewer, in an iframe, and by its API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Frame, Locator, Route, expect

from tests.browser.conftest import TEST_CARD, PageFactory, RunningServer, Servers
from tests.browser.visit import LIVE_MS, VIDEO, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN = "a-token-for-everything-on-this-server"
REFUSED = "status of (401|404|409)"


class Site:
    """Somebody else's site, on an origin of its own: each path answers with the HTML that was put there, and a policy
    that lets the page do no more than the README says."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, str]] = {}
        self.origin = ""

    def page(self, body: str, server: str) -> str:
        """The address of a page with this body, and the server's module where the body has the element."""
        script = f'<script type="module" src="{server}/echo-rtc.js"></script>' if "<echo-rtc" in body else ""
        styles = "'unsafe-inline'" if "<style" in body else "'none'"
        sources = f"script-src {server}; connect-src {server}; img-src {server} data:; frame-src {server}"
        path = f"/{len(self.pages)}"
        html = f'<!doctype html><title>app</title><link rel="icon" href="data:,">{body}{script}'
        self.pages[path] = html, f"default-src 'none'; style-src {styles}; {sources}"
        return self.origin + path

    async def answer(self, request: web.Request) -> web.Response:
        html, policy = self.pages[request.path]
        return web.Response(text=html, content_type="text/html", headers={"Content-Security-Policy": policy})


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    site.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory, site: Site) -> AsyncIterator[RunningServer]:
    """A server that wants a token, and lets the site's pages use and frame it."""
    servers = Servers(tmp_path_factory.mktemp("shared") / "logs")
    access = ("--auth-token", TOKEN, "--allow-origin", site.origin, "--frame-ancestors", site.origin)
    picture = ("--vad-threshold", "0.01", "--width", "256", "--height", "256", "--max-streams", "8")
    try:
        yield await servers.start(TEST_CARD, *access, *picture)
    finally:
        await servers.close()


async def embedded(page: PageFactory, server: RunningServer, url: str, script: str = "") -> Visit:
    """Opens a page of the site, which may ask that server."""
    visit = await page("about:blank", script=script)
    visit.origins += (url.rpartition("/")[0], server.url)
    await visit.page.goto(url)
    return visit


async def test_a_call_from_another_origin_and_its_viewer(shared: RunningServer, site: Site, page: PageFactory) -> None:
    url = site.page(f'<echo-rtc controls src="{shared.url}" name="studio" token="{TOKEN}"></echo-rtc>', shared.url)
    caller = await embedded(page, shared, url, EVENTS)
    caller.expected.append(REFUSED)
    await caller.start()
    await caller.until("events.some(({ type }) => type === 'stats')")
    first = await caller.rendered_card()

    body = f'<echo-rtc src="{shared.url}" mode="view" name="studio" token="{TOKEN}" muted autoplay></echo-rtc>'
    viewer = await embedded(page, shared, site.page(body, shared.url), EVENTS)
    viewer.expected.append(REFUSED)
    await viewer.live()
    seen = await viewer.rendered_card()
    assert seen.mark == first.mark
    assert seen.frame > first.frame
    await viewer.until("events.some(({ type, detail }) => type === 'stats' && detail.link.fps > 0)")
    await viewer.page.get_by_role("button", name="Tap for sound").click()
    await viewer.listen()
    await viewer.hears(above=0.02)

    [stream] = caller.streams
    await caller.page.goto("about:blank")
    await shared.freed(stream)
    await viewer.sees("The stream has ended")
    await caller.page.goto(url)
    await caller.start()
    await viewer.live()
    assert (await viewer.rendered_card()).mark != first.mark
    kinds = await viewer.page.evaluate(
        "events.filter(({ type }) => type === 'state').map(({ detail }) => detail.state)"
    )
    assert {"connecting", "watching", "speaking", "waiting"} <= set(kinds)


async def test_a_missing_token_is_told_and_can_be_given(shared: RunningServer, site: Site, page: PageFactory) -> None:
    url = site.page(f'<echo-rtc controls src="{shared.url}"></echo-rtc>', shared.url)
    visit = await embedded(page, shared, url, EVENTS)
    visit.expected.append(REFUSED)
    assert await visit.page.evaluate("document.querySelector('echo-rtc').start()") is False
    await visit.sees("This call needs permission")
    errors = await visit.page.evaluate("events.filter(({ type }) => type === 'error').map(({ detail }) => detail)")
    assert [error["code"] for error in errors] == ["unauthorized"]
    assert errors[0]["message"].startswith("This call needs permission. ")
    await visit.page.evaluate(f"document.querySelector('echo-rtc').setAttribute('token', '{TOKEN}')")
    await visit.start()


async def test_the_page_asks_for_a_token_and_keeps_it_to_its_tab(shared: RunningServer, page: PageFactory) -> None:
    visit = await page(shared.url)
    visit.expected.append(REFUSED)
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("This call needs permission")
    await visit.state("Needs permission")
    await expect(visit.page.get_by_label("Token")).to_be_focused()
    await visit.page.get_by_label("Token").fill(TOKEN)
    await visit.page.keyboard.press("Enter")
    await visit.live()
    await visit.page.reload()
    await visit.start()
    other = await page(f"{shared.url}/#token={TOKEN}")
    other.expected.append("ERR_ABORTED")
    await other.start()
    assert other.page.url == f"{shared.url}/"
    assert TOKEN not in await other.page.evaluate("JSON.stringify(localStorage)")


async def test_the_servers_relays_are_used(shared: RunningServer, page: PageFactory) -> None:
    visit = await page(f"{shared.url}/#token={TOKEN}", script=KEEP_CONFIGURATIONS)
    relay = {"urls": ["turn:127.0.0.1:9"], "username": "somebody", "credential": "secret"}
    asked: list[str | None] = []

    async def answer(route: Route) -> None:
        asked.append(route.request.headers.get("authorization"))
        response = await route.fetch()
        await route.fulfill(response=response, json={**await response.json(), "ice_servers": [relay]})

    await visit.page.route("**/config", answer)
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.until("configurations.length === 1")
    assert await visit.page.evaluate("configurations[0].iceServers") == [relay]
    assert set(asked) == {f"Bearer {TOKEN}"}
    await visit.page.get_by_role("button", name="Cancel").click()


async def test_a_page_by_its_own_controls(shared: RunningServer, site: Site, page: PageFactory) -> None:
    url = site.page(f'<echo-rtc src="{shared.url}" token="{TOKEN}"></echo-rtc>', shared.url)
    visit = await embedded(page, shared, url, EVENTS)
    echo = "document.querySelector('echo-rtc')"
    await visit.page.evaluate(BEEP)
    assert await visit.page.evaluate(f"{echo}.setMicrophone(tone)") is True
    assert await visit.page.evaluate(f"{echo}.start()") is True
    await expect(visit.part("controls")).to_be_hidden()
    await expect(visit.part("state")).to_be_hidden()
    await visit.until(f"{echo}.state === 'speaking'")
    await visit.listen()
    await visit.hears(above=0.02)
    await visit.page.evaluate(f"{VIDEO}.pause()")
    await visit.until(f"!{VIDEO}.paused")
    await visit.page.evaluate(f"{echo}.microphoneMuted = true")
    await visit.hears(below=0.001)
    assert await visit.page.evaluate("tone.enabled && tone.readyState") == "live"
    await visit.page.evaluate(f"{echo}.microphoneMuted = false; {echo}.muted = true")
    await expect(visit.page.get_by_role("button", name="Tap for sound")).to_be_visible()
    assert await visit.page.evaluate(f"{echo}.setMicrophone('')") is True
    await visit.page.evaluate(f"{echo}.setMicrophone(7).catch((error) => (globalThis.complaint = error.name))")
    assert await visit.page.evaluate("complaint") == "TypeError"
    # Moved within the page the call goes on; taken out of it, it ends.
    await visit.page.evaluate(f"document.body.prepend({echo})")
    await visit.page.evaluate("new Promise(requestAnimationFrame)")
    assert await visit.page.evaluate(f"{echo}.matches(':state(live)')")
    await visit.page.evaluate(f"globalThis.kept = {echo}; kept.remove()")
    await visit.until("kept.state === 'new' && kept.media === null")
    await shared.freed(visit.streams[0])


async def test_what_cannot_be_is_told(shared: RunningServer, site: Site, page: PageFactory) -> None:
    bodies = {
        '<echo-rtc mode="view"></echo-rtc>': "nameless",
        '<echo-rtc src="ftp://nowhere/"></echo-rtc>': "address",
        '<echo-rtc src="https://"></echo-rtc>': "address",
    }
    for body, code in bodies.items():
        visit = await embedded(page, shared, site.page(body, shared.url), EVENTS)
        # It is said at once, and again to whoever starts it all the same.
        await expect(visit.part("title")).to_be_visible()
        assert await visit.page.evaluate("document.querySelector('echo-rtc').start()") is False
        assert await visit.page.evaluate("events.find(({ type }) => type === 'error').detail.code") == code


async def test_an_element_keeps_its_inside_and_can_be_dressed(
    shared: RunningServer, site: Site, page: PageFactory, card: RunningServer
) -> None:
    dress = """<style>
      echo-rtc { --echo-rtc-accent: rgb(200, 0, 100); --echo-rtc-radius: 7px; width: 300px }
      echo-rtc::part(title) { color: rgb(1, 2, 3) }
    </style>"""
    visit = await embedded(page, shared, site.page(f"{dress}<echo-rtc></echo-rtc>", shared.url))
    button = visit.page.get_by_role("button", name="Start the call")
    style = "(element) => [getComputedStyle(element).backgroundColor, getComputedStyle(element).color]"
    assert (await button.evaluate(style))[0] == "rgb(200, 0, 100)"
    assert (await visit.part("title").evaluate(style))[1] == "rgb(1, 2, 3)"
    stage = await visit.part("stage").bounding_box()
    assert stage is not None
    assert stage["width"] == pytest.approx(300, abs=1)
    # As visitors have it: without the tests' own way in.
    closed = await visit.page.context.new_page()
    await closed.goto(card.url)
    assert await closed.evaluate("document.querySelector('echo-rtc').shadowRoot") is None


async def test_an_iframe_has_the_element(shared: RunningServer, site: Site, page: PageFactory) -> None:
    frame = (
        f'<iframe src="{shared.url}/embed?name=framed#token={TOKEN}" allow="{{}}" width="480" height="480"></iframe>'
    )
    visit = await embedded(page, shared, site.page(frame.format("microphone; autoplay"), shared.url))
    caller = await the_frame(visit)
    await caller.get_by_role("button", name="Start the call").click()
    await expect(caller.get_by_role("button", name="End the call")).to_be_visible(timeout=LIVE_MS)
    viewing = f"{shared.url}/embed?mode=view&name=framed&muted&autoplay&controls=off#token={TOKEN}"
    viewer = await embedded(page, shared, site.page(f'<iframe src="{viewing}" allow="autoplay"></iframe>', shared.url))
    inside = await the_frame(viewer)
    await expect(inside.get_by_role("button", name="Tap for sound")).to_be_visible(timeout=LIVE_MS)
    await expect(controls(inside)).to_be_hidden()

    without = await embedded(page, shared, site.page(frame.format("autoplay"), shared.url))
    without.expected.append("Permissions policy violation")
    inside = await the_frame(without)
    await inside.get_by_role("button", name="Start the call").click()
    await expect(inside.get_by_role("heading", name="No microphone in this frame")).to_be_visible()
    assert not [line for line in shared.lines if TOKEN in line]


async def test_others_cannot_frame_it(card: RunningServer, site: Site, page: PageFactory) -> None:
    visit = await embedded(page, card, site.page(f'<iframe src="{card.url}/embed"></iframe>', card.url))
    visit.expected.append("frame-ancestors|Framing")
    await visit.page.wait_for_load_state()
    [_, frame] = visit.page.frames
    assert await frame.locator("echo-rtc").count() == 0


async def the_frame(visit: Visit) -> Frame:
    await visit.page.locator("iframe").wait_for()
    [_, frame] = visit.page.frames
    await frame.locator("echo-rtc").wait_for()
    return frame


def controls(frame: Frame) -> Locator:
    return frame.locator("echo-rtc [part=controls]")


EVENTS = """
globalThis.events = [];
addEventListener("DOMContentLoaded", () => {
  for (const type of ["state", "stats", "error"]) {
    document.querySelector("echo-rtc")?.addEventListener(type, ({ detail }) => events.push({ type, detail }));
  }
});
"""

KEEP_CONFIGURATIONS = """
globalThis.configurations = [];
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(configuration) {
    super(configuration);
    configurations.push(configuration);
  }
};
"""

BEEP = """
async () => {
  const context = new AudioContext();
  await context.resume();
  const tone = new OscillatorNode(context, { frequency: 440 });
  const out = new MediaStreamAudioDestinationNode(context);
  tone.connect(out);
  tone.start();
  [globalThis.tone] = out.stream.getAudioTracks();
}
"""
