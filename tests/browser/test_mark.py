"""The words AI-generated over the picture: no page's style takes them away, only the server's operator does."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Route, expect

from echo_rtc.clips import U8Array
from tests.browser.conftest import PageFactory, RunningServer
from tests.browser.visit import Visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARK = "echo-rtc .mark"
WHITE = 200

HOSTILE = """
html { font-size: 1px; }
* { opacity: 0.99; }
echo-rtc {
  color: transparent; font-size: 0; line-height: 0; letter-spacing: -1em; text-indent: -99em;
  -webkit-text-fill-color: transparent; -webkit-text-security: disc; text-transform: full-size-kana;
  --echo-rtc-radius: 50%; --echo-rtc-ink: transparent; --on-picture: transparent; --shade: transparent;
}
echo-rtc .mark, .mark, echo-rtc::part(mark) { display: none !important; }
echo-rtc::part(stage) {
  clip-path: inset(40% 0 0 40%) !important; overflow: clip !important; opacity: 0.01 !important;
  filter: contrast(0) !important; mask: linear-gradient(transparent, transparent) !important;
  visibility: hidden !important; position: static !important; display: contents !important; max-width: none !important;
}
echo-rtc::part(stage)::after, echo-rtc::part(stage)::before {
  content: "" !important; position: absolute !important; inset: 0 !important; background: #222 !important;
  z-index: 2147483647 !important;
}
echo-rtc::part(video), echo-rtc::part(poster), echo-rtc::part(overlay), echo-rtc::part(state) {
  position: absolute !important; inset: 0 !important; z-index: 2147483647 !important; background: #222 !important;
}
echo-rtc::part(video) {
  position: fixed !important; inset: auto !important; margin: 400px 0 0 400px !important; width: 99vw !important;
  transform: translate(300px, 300px) !important; translate: 0 300px !important; scale: 3 !important;
}
"""


# Whether the mark lies within the moving picture.
INSIDE = """
() => {
  const { shadowRoot } = document.querySelector("echo-rtc");
  const [mark, video] = [".mark", "video"].map((name) => shadowRoot.querySelector(name).getBoundingClientRect());
  return mark.left >= video.left && mark.right <= video.right && mark.top >= video.top && mark.bottom <= video.bottom;
}
"""


async def shown(visit: Visit) -> U8Array:
    """The mark and what lies over it, (H, W) uint8, as it is on the screen."""
    box = await visit.page.locator(MARK).bounding_box()
    assert box is not None
    assert box["height"] >= 16
    assert box["width"] >= 80
    picture = await visit.page.screenshot(clip=box, animations="disabled")
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


async def answered(route: Route, changes: dict[str, Any]) -> None:
    """The server's configuration, with changes; None takes a key away."""
    answer = await route.fetch()
    content = {key: value for key, value in {**await answer.json(), **changes}.items() if value is not None}
    await route.fulfill(status=200, content_type="application/json", body=json.dumps(content))


async def test_a_pages_styles_do_not_reach_it(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, bypass_csp=True)
    await expect(visit.page.locator(MARK)).to_have_text("AI-generated")
    letters = (await shown(visit) > WHITE).mean()
    assert 0.05 < letters < 0.4
    await visit.page.add_style_tag(content=HOSTILE)
    assert (await shown(visit) > WHITE).mean() == pytest.approx(letters, rel=0.3)
    assert await visit.page.evaluate(INSIDE)


async def test_only_a_plain_no_of_the_server_takes_it_away(card: RunningServer, page: PageFactory) -> None:
    visit = await page("about:blank")
    visit.origins += (card.url,)
    changes: dict[str, Any] = {}
    await visit.page.route("**/config", lambda route: answered(route, changes))
    for value, visible in ((None, True), (0, True), ("false", True), (False, False), (True, True)):
        changes["mark"] = value
        await visit.page.goto(f"{card.url}/embed")
        await visit.sees("Give your voice a face")
        await expect(visit.part("poster")).to_be_visible()
        await expect(visit.page.locator(MARK)).to_be_visible(visible=visible)
