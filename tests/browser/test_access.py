"""Whether everybody can use the page: names, roles, contrast, focus, motion and room, each computed in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import expect

from tests.browser.conftest import PageFactory, RunningServer
from tests.browser.visit import Visit
from tests.support.npm import installed

pytestmark = pytest.mark.asyncio(loop_scope="session")

Scheme = Literal["light", "dark"]

TEXT_CONTRAST = 4.5
EDGE_CONTRAST = 3.0
"""WCAG 2.2, 1.4.3 and 1.4.11, level AA."""
TARGET_PX = 24.0
"""WCAG 2.2, 2.5.8."""
PAGE_BYTES = 200_000
"""All that the page loads before a call."""

SIZES = ((320, 568), (360, 740), (740, 360), (768, 1024), (1440, 900))

INTERACTIVE = {"button", "checkbox", "combobox", "link", "DisclosureTriangle", "meter"}
LANDMARKS = {"banner", "main", "complementary", "status", "alert", "heading"}


async def nodes(visit: Visit) -> list[dict[str, Any]]:
    """What assistive technology is given: nodes with role and name."""
    session = await visit.page.context.new_cdp_session(visit.page)
    tree = await session.send("Accessibility.getFullAXTree")
    return [
        {"role": node.get("role", {}).get("value", ""), "name": node.get("name", {}).get("value", "")}
        for node in tree["nodes"]
        if not node.get("ignored")
    ]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which looks through a page for what keeps people from using it."""
    return (installed(Path(__file__).parent) / "axe-core" / "axe.min.js").read_text()


async def serious(visit: Visit, axe: str) -> list[str]:
    """What axe-core finds in the page that is serious or worse."""
    await visit.page.evaluate(axe)
    found = await visit.page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{rule['id']}: {node['html']}"
        for rule in found
        if rule["impact"] in {"serious", "critical"}
        for node in rule["nodes"]
    ]


async def faint(visit: Visit) -> list[str]:
    """The texts and edges whose contrast is too low, in light or in dark."""
    least = {"text": TEXT_CONTRAST, "edge": EDGE_CONTRAST}
    schemes: tuple[Scheme, ...] = ("light", "dark")
    faint = []
    for scheme in schemes:
        await visit.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = await visit.page.evaluate(CONTRASTS)
        assert len(found) > 12
        faint += [
            f"{scheme}: {item['what']} {item['ratio']:.2f}" for item in found if item["ratio"] < least[item["kind"]]
        ]
    return faint


async def cramped(visit: Visit) -> list[str]:
    """What lacks room, in windows from a small phone's to a desk's."""
    cramped = []
    for width, height in SIZES:
        await visit.page.set_viewport_size({"width": width, "height": height})
        cramped += [f"{width} x {height}: {what}" for what in await visit.page.evaluate(CRAMPED, TARGET_PX)]
    return cramped


async def test_everything_can_be_read_and_has_room(card: RunningServer, page: PageFactory, axe: str) -> None:
    visit = await page(card.url, viewport={"width": 1440, "height": 900}, microphone="refused")
    element = visit.page.locator("echo-rtc")
    await visit.sees("Give your voice a face")
    assert await faint(visit) == await cramped(visit) == await serious(visit, axe) == []
    await expect(element).to_match_aria_snapshot(WELCOME)
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("The microphone was refused")
    assert await faint(visit) == await cramped(visit) == await serious(visit, axe) == []
    await expect(element).to_match_aria_snapshot(REFUSED)
    await visit.start("Use the sample voice")
    await visit.page.get_by_role("button", name="Mute or unmute").click()
    await visit.page.get_by_role("button", name="Sound off").click()
    await expect(element).to_match_aria_snapshot(MUTED)
    assert await faint(visit) == await cramped(visit) == await serious(visit, axe) == []
    await visit.end()
    await expect(element).to_match_aria_snapshot(ENDED)


async def test_embed_and_admin_have_nothing_serious(card: RunningServer, page: PageFactory, axe: str) -> None:
    visit = await page("about:blank")
    visit.origins = (card.url,)
    await visit.page.goto(f"{card.url}/embed")
    await visit.sees("Give your voice a face")
    assert await serious(visit, axe) == []
    visit.expected.append("status of (401|403)")
    await visit.page.goto(f"{card.url}/admin")
    await expect(visit.page.locator("#board, #gate").filter(visible=True)).to_have_count(1)
    assert await serious(visit, axe) == []


async def test_the_page_is_light(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await expect(visit.part("poster")).to_be_visible()
    sizes = await visit.page.evaluate(
        "performance.getEntries().filter((entry) => entry.transferSize > 0).map((entry) => entry.encodedBodySize)"
    )
    assert len(sizes) > 10
    assert sum(sizes) < PAGE_BYTES


async def test_everything_has_a_name(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.sees("Give your voice a face")
    for more in (set(), {"slider"}):
        found = await nodes(visit)
        roles = {node["role"] for node in found}
        assert roles >= INTERACTIVE | LANDMARKS | more
        assert [node for node in found if node["role"] in INTERACTIVE | {"slider"} and not node["name"]] == []
        if not more:
            assert "slider" not in roles
            await visit.start()
            await expect(visit.page.get_by_role("status")).to_have_text("Connected. The avatar speaks with your voice.")


async def test_the_focus_is_always_seen(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, viewport={"width": 1440, "height": 900})
    await visit.sees("Give your voice a face")
    seen = []
    for _ in range(20):
        await visit.page.keyboard.press("Tab")
        name, outline = await visit.page.evaluate(FOCUSED)
        if name == "BODY" or name in seen:
            break
        assert outline, name
        seen.append(name)
    assert len(seen) >= 7


async def test_nothing_moves_for_those_who_want_rest(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script="navigator.mediaDevices.getUserMedia = () => new Promise(() => {});")
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("May this page hear you?")
    moving = "document.querySelector('echo-rtc').shadowRoot.getAnimations().length"
    assert await visit.page.evaluate(moving) > 0
    await visit.page.emulate_media(reduced_motion="reduce")
    assert await visit.page.evaluate(moving) == 0


async def test_dark_and_light_are_a_choice_that_is_remembered(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, color_scheme="light")
    button = visit.page.get_by_role("button", name="Dark colours")
    ground = "getComputedStyle(document.body).backgroundColor"
    await expect(button).to_have_attribute("aria-pressed", "false")
    light = await visit.page.evaluate(ground)
    await button.click()
    await expect(button).to_have_attribute("aria-pressed", "true")
    dark = await visit.page.evaluate(ground)
    assert dark != light
    await visit.page.reload()
    assert await visit.page.evaluate(ground) == dark
    await button.click()
    assert await visit.page.evaluate(ground) == light
    await visit.page.emulate_media(color_scheme="dark")
    assert await visit.page.evaluate(ground) == light  # the visitor's word counts more than the system's


# The accessibility tree of the element in its states.
WELCOME = """
- region "Avatar":
  - heading "Give your voice a face" [level=2]
  - paragraph: You speak, and a second later this person says your words.
  - button "Start the call"
  - button "Try the sample voice"
  - paragraph: Headphones are best. Nothing is sent before you start.
  - paragraph: Ready
  - paragraph: AI-generated
- status
- alert
"""
REFUSED = """
- region "Avatar":
  - heading "The microphone was refused" [level=2]
  - paragraph: /Allow the microphone for this page/
  - button "Try again"
  - button "Use the sample voice"
  - paragraph: Needs a microphone
  - paragraph: AI-generated
- status
- alert: /The microphone was refused. Allow the microphone/
"""
MUTED = """
- region "Avatar":
  - paragraph: /Idle|Speaking|Behind/
  - paragraph: /Length of the call.*/
  - paragraph: /You are muted/
  - paragraph: AI-generated
- group "Call controls":
  - button "Mute or unmute your voice" [pressed]: Unmute
  - button "Sound off" [pressed]: Sound
  - text: Volume
  - slider "Volume"
  - button "End the call": End
"""
ENDED = """
- region "Avatar":
  - heading "The call has ended" [level=2]
  - paragraph: /It lasted \\d+:\\d+/
  - button "Start again"
  - button "Use the microphone"
  - paragraph: Ended
  - paragraph: AI-generated
- status: /The call has ended. It lasted/
- alert
"""

# The page and the element within it. `all`: what a selector finds in both.
BOTH = """
  const roots = [document.body, document.querySelector("echo-rtc").shadowRoot];
  const all = (selector) => roots.flatMap((root) => [...root.querySelectorAll(selector)]);
"""

# Every visible text against what lies behind it, and the edges of controls against what is beside them. Over a picture
# anything may be behind, so the worst is taken: white behind light text on a dark, translucent chip.
CONTRASTS = """
() => {
  BOTH
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const behind = (element) => {
    if (element === null) {
      return [255, 255, 255, 1];
    }
    const own = rgba(getComputedStyle(element).backgroundColor);
    if (own[3] === 1) {
      return own;
    }
    const overPicture = element.matches(".chip, .mark, .banner, .unmute, [data-over=poster] .notice");
    const around = element.parentElement ?? element.getRootNode().host ?? null;
    return over(own, overPicture ? [255, 255, 255] : behind(around));
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const root of roots) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const text = walker.currentNode.data.trim();
      if (text !== "" && element.checkVisibility() && !element.closest(".unseen, .skip, noscript, option")) {
        const back = behind(element);
        found.push({ kind: "text", what: text, ratio: ratio(over(rgba(getComputedStyle(element).color), back), back) });
      }
    }
  }
  for (const element of all("select, .action.first, .token")) {
    if (element.checkVisibility()) {
      const back = behind(element.parentElement);
      const style = getComputedStyle(element);
      const edge = Math.max(
        ...[style.borderTopColor, style.backgroundColor].map((colour) => ratio(over(rgba(colour), back), back)),
      );
      found.push({ kind: "edge", what: element.textContent.trim(), ratio: edge });
    }
  }
  return found;
}
""".replace("BOTH", BOTH)

FOCUSED = """
() => {
  const element = document.activeElement.shadowRoot?.activeElement ?? document.activeElement;
  const shown = element.type === "radio" ? element.nextElementSibling : element;
  const { outlineStyle, outlineWidth } = getComputedStyle(shown);
  const name = `${element.tagName} ${element.id} ${element.value ?? ""} ${element.textContent.trim().slice(0, 20)}`;
  return [element === document.body ? "BODY" : name, outlineStyle !== "none" && parseFloat(outlineWidth) >= 2];
}
"""

# What is wider than the window or cut off, and what is too small for a finger.
CRAMPED = """
(least) => {
  BOTH
  const found = [];
  const page = document.scrollingElement;
  if (page.scrollWidth > innerWidth) {
    found.push(`the page is ${page.scrollWidth} wide`);
  }
  for (const element of all(".notice *, .card *, .controls *, header *")) {
    const box = element.getBoundingClientRect();
    if (!element.checkVisibility() || element.closest("svg, .unseen, .about, .emblem") || box.width === 0) {
      continue;
    }
    const what = `${element.tagName} ${element.id} ${element.textContent.trim().slice(0, 30)}`;
    if (box.left < -0.5 || box.right > innerWidth + 0.5) {
      found.push(`${what} reaches from ${box.left} to ${box.right}`);
    }
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0 && element.tagName !== "SELECT") {
      found.push(`${what} is cut off`);
    }
    if (element.matches("button, select, summary, input[type=range]") && Math.min(box.width, box.height) < least) {
      found.push(`${what} is ${box.width} by ${box.height}`);
    }
  }
  const [stage] = all(".stage").map((element) => element.getBoundingClientRect());
  const [shown] = all(".notice").map((element) => element.checkVisibility());
  const [notice] = all(".notice").map((element) => element.getBoundingClientRect());
  if (shown && (notice.top < stage.top || notice.bottom > stage.bottom)) {
    found.push(`the notice (${notice.top} to ${notice.bottom}) leaves the stage (${stage.top} to ${stage.bottom})`);
  }
  const [mark] = all(".mark").map((element) => element.getBoundingClientRect());
  for (const element of all(".chip, .controls, .banner, .unmute, .caption-text, .notice")) {
    const box = element.getBoundingClientRect();
    const apart = box.right <= mark.left || box.left >= mark.right || box.bottom <= mark.top || box.top >= mark.bottom;
    if (element.checkVisibility() && !apart) {
      found.push(`${element.className} and the mark lie over each other`);
    }
  }
  return found;
}
""".replace("BOTH", BOTH)
