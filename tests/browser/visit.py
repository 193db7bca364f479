"""A visitor of the page: what a person would do and see there, and what a machine can measure besides.

Knows the page by its words, roles and a few ids, and nothing of the server behind it.
"""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass, field

import numpy as np
from playwright.async_api import ConsoleMessage, Error, Locator, Page, Request, expect

from echo_rtc.clips import U8Array
from echo_rtc.engine.card import CardFacts, read_card

LIVE_MS = 20_000
"""Time in which a call must show its first picture; a busy machine takes many times what an idle one does."""
WORDS_MS = 15_000
"""Time in which words must appear that follow from something."""

NOTHING = "\N{EN DASH}"
"""What stands for a figure that there is not."""
TIMES = "\N{MULTIPLICATION SIGN}"

OPEN_SHADOWS = """
const attachShadow = Element.prototype.attachShadow;
Element.prototype.attachShadow = function (options) {
  return attachShadow.call(this, { ...options, mode: "open" });
};
"""
"""What an element keeps to itself cannot be looked at from outside, so tests open it before the page's scripts run."""

VIDEO = "document.querySelector('echo-rtc').shadowRoot.querySelector('video')"

_STATE = "document.querySelector('echo-rtc').shadowRoot.querySelector('[part~=state]').textContent.trim()"

_LUMA_OF_VIDEO = """
() => {
  const video = VIDEO;
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(video, 0, 0);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  const luma = new Uint8Array(data.length / 4);
  for (let i = 0; i < luma.length; i += 1) {
    luma[i] = Math.round(0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]);
  }
  let text = "";
  for (let i = 0; i < luma.length; i += 32768) {
    text += String.fromCharCode(...luma.subarray(i, i + 32768));
  }
  return [canvas.height, canvas.width, btoa(text)];
}
""".replace("VIDEO", VIDEO)

_NEXT_FRAME = f"new Promise((go) => {VIDEO}.requestVideoFrameCallback(go))"

# Web Audio gets what WebRTC received, whatever the element's volume. The window is 0.34 s long.
_LISTEN = """
async () => {
  const context = new AudioContext();
  await context.resume();
  const analyser = new AnalyserNode(context, { fftSize: 16384 });
  context.createMediaStreamSource(document.querySelector("echo-rtc").media).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  globalThis.loudnessForTests = () => {
    analyser.getFloatTimeDomainData(samples);
    return Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length);
  };
}
"""


# Playwright's own wait_for_function evaluates text within the page, which the page's policy forbids.
_UNTIL = """
(timeoutMs) => new Promise((resolve, reject) => {
  const end = performance.now() + timeoutMs;
  const look = () => {
    if (CONDITION) {
      resolve();
    } else if (performance.now() > end) {
      reject(new Error("it never came about that " + String.raw`CONDITION`));
    } else {
      setTimeout(look, 20);
    }
  };
  look();
})
"""


@dataclass
class Visit:
    """One open page. ``troubles`` are its errors on the console, uncaught ones, and requests to other origins; what is
    not ``expected`` (regular expressions) fails the test at its end."""

    page: Page
    origins: tuple[str, ...]
    """Which may be asked."""
    troubles: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    """The ids of the calls that were opened, in order."""
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self) -> None:
        """Begins to note what happens; to be called before the page is opened."""
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"uncaught: {error}"))
        self.page.on("request", self._on_request)
        self.page.on("requestfinished", self._on_request_finished)

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.troubles if not any(re.search(pattern, text) for pattern in self.expected)]

    def part(self, name: str) -> Locator:
        """A part of the element."""
        return self.page.locator(f"echo-rtc [part~={name}]")

    async def start(self, button: str = "Start the call") -> None:
        """Presses a button of the notice, and waits for the stream and its picture."""
        self._answered.clear()
        await self.page.get_by_role("button", name=button).click()
        await self.live()
        await asyncio.wait_for(self._answered.wait(), LIVE_MS / 1000)

    async def live(self) -> None:
        """Waits until a picture plays."""
        await self.until("document.querySelector('echo-rtc').matches(':state(live)')", LIVE_MS)
        await self.until(f"{VIDEO}.videoWidth > 0", LIVE_MS)

    async def end(self) -> None:
        """Hangs up."""
        await self.page.get_by_role("button", name="End the call").click()
        await self.page.wait_for_selector("body[data-phase=off]")

    async def sees(self, title: str) -> None:
        """Waits for a notice of this title."""
        await expect(self.part("title")).to_have_text(title)

    async def state(self, word: str) -> None:
        """Waits for the call's state in words; it may pass sooner than ``expect``, which looks once a second, sees."""
        try:
            await self.until(f"{_STATE} === '{word}'")
        except Error:  # the page was left meanwhile, or it never came
            await expect(self.part("state")).to_have_text(word)

    async def figure(self, name: str) -> str:
        """A figure of the statistics, once it is there."""
        place = self.page.locator(f"[data-figure={name}]")
        await expect(place).to_be_visible()
        await expect(place).not_to_have_text(NOTHING)
        return await place.inner_text()

    async def luma(self) -> U8Array:
        """The picture that is shown, (H, W) uint8, full range."""
        height, width, text = await self.page.evaluate(_LUMA_OF_VIDEO)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width)

    async def rendered_card(self) -> CardFacts:
        """The next test card that was made of a voice, and is not of the idle loop."""
        async with asyncio.timeout(LIVE_MS / 1000):
            while True:
                await self.page.evaluate(_NEXT_FRAME)
                card = read_card(await self.luma())
                if not card.idle:
                    return card

    async def listen(self) -> None:
        """Begins to measure the sound that comes back on the present connection."""
        await self.page.evaluate(_LISTEN)

    async def hears(self, above: float = 0.0, below: float = 1.0) -> None:
        """Waits until the RMS (full scale 1) of the last 0.34 s lies between these; ``listen`` comes first."""
        await self.until(f"loudnessForTests() >= {above} && loudnessForTests() <= {below}")

    async def until(self, condition: str, timeout_ms: float = WORDS_MS) -> None:
        """Waits until a JavaScript expression is true in the page. Raises playwright's Error with the expression."""
        await self.page.evaluate(_UNTIL.replace("CONDITION", condition), timeout_ms)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.troubles.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((*self.origins, "data:", "blob:")):
            self.troubles.append(f"another origin was asked: {request.url}")

    async def _on_request_finished(self, request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/offer"):
            try:
                response = await request.response()
                if response is not None and response.status == 200:
                    self.streams.append((await response.json())["stream"])
                    self._answered.set()
            except Error:  # the page was closed meanwhile; the answer is nobody's any more
                return
