"""Clients that others have written publish, view and call: each decodes at least a hundred frames.

Real time cannot be avoided: a hundred frames take four seconds.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import async_playwright

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Publisher
from tests.browser.conftest import BrowserKind
from tests.clients.conftest import CLIENT_S, HERE, House, run_client
from tests.clients.firefox import firefox
from tests.support.programs import program

pytestmark = pytest.mark.asyncio(loop_scope="session")

FRAMES = 100
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LOUD = 5_000
"""A peak (int16) that silence and comfort noise never have."""


@asynccontextmanager
async def published(house: House, name: str) -> AsyncIterator[str]:
    """A voice under this name while inside; the URL at which its avatar is viewed."""
    publisher = Publisher(babble)
    place = ""

    async def exchange(offer: str) -> str:
        nonlocal place
        url = f"{house.server.url}/whip/{name}"
        headers = {"Content-Type": "application/sdp"}
        async with aiohttp.ClientSession() as http, http.post(url, data=offer, headers=headers) as response:
            assert response.status == 201, await response.text()
            place = response.headers["Location"]
            return await response.text()

    try:
        await publisher.connect(exchange)
        yield f"{house.server.url}/whep/{name}"
    finally:
        async with aiohttp.ClientSession() as http, http.delete(house.server.url + place) as response:
            assert response.status == 200
        await publisher.close()


async def test_whip_whep_of_npm_publishes_and_views(house: House, npm_modules: Path) -> None:
    seen = json.loads(await run_client(program("node"), "whip_whep.mjs", house.server.url, "npm", str(FRAMES)))
    assert seen["frames"] >= FRAMES
    assert seen["size"] == "256x256"
    assert seen["loudest"] > LOUD
    # It hangs up and deletes its sessions, so that the name is free again.
    async with published(house, "npm"):
        pass


async def test_gstreamer_views(house: House) -> None:
    async with published(house, "gstreamer") as endpoint:
        # The bindings belong to the system's Python, whatever Python the tests run in.
        seen = json.loads(await run_client("/usr/bin/python3", "gstreamer_viewer.py", endpoint, str(FRAMES)))
    assert seen["frames"] >= FRAMES
    assert seen["size"] == "256x256"
    assert seen["blocks"] >= 100


async def test_eyevinns_player_views_from_another_origin(house: House, npm_modules: Path) -> None:
    bundle = house.folder / "player.bundle.js"
    esbuild = npm_modules / ".bin" / "esbuild"
    options = ("--bundle", "--format=esm", "--log-level=error", f"--outfile={bundle}")
    await run_client(program("node"), esbuild, "player.js", *options)
    shutil.copy(HERE / "player.html", house.folder)
    flags = BrowserKind("missing", Path(), ()).flags
    async with published(house, "eyevinn") as endpoint, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program(*CHROMIUM), args=flags)
        try:
            page = await browser.new_page()
            deleted: list[int] = []
            page.on("response", lambda r: deleted.append(r.status) if r.request.method == "DELETE" else None)
            await page.goto(f"{house.pages}/player.html?whep={endpoint}")
            await page.wait_for_function(
                f"document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames >= {FRAMES}",
                timeout=CLIENT_S * 1000,
            )
            video = "document.querySelector('video')"
            assert await page.evaluate(f"[{video}.videoWidth, {video}.videoHeight]") == [256, 256]
            assert await page.evaluate(f"{video}.srcObject.getAudioTracks().length") == 1
            reports = await page.evaluate("player.peer.getStats().then((reports) => [...reports.values()])")
            assert "video/H264" in {report["mimeType"] for report in reports if report["type"] == "codec"}
            await page.evaluate("player.unload()")
            assert deleted == [200]
        finally:
            await browser.close()


PUBLISH_WITH_AV1 = """
async (endpoint) => {
  const context = new AudioContext();
  await context.resume();
  const tone = new OscillatorNode(context);
  const voice = new MediaStreamAudioDestinationNode(context);
  tone.connect(voice);
  tone.start();
  const canvas = document.createElement("canvas");
  canvas.getContext("2d").fillRect(0, 0, 10, 10);
  const peer = new RTCPeerConnection();
  const picture = peer.addTransceiver(canvas.captureStream(5).getVideoTracks()[0], { direction: "sendonly" });
  const known = RTCRtpSender.getCapabilities("video").codecs;
  picture.setCodecPreferences(known.filter(({ mimeType }) => mimeType === "video/AV1"));
  peer.addTransceiver(voice.stream.getAudioTracks()[0], { direction: "sendonly" });
  const connected = new Promise((resolve) => {
    peer.onconnectionstatechange = () => peer.connectionState === "connected" && resolve();
  });
  await peer.setLocalDescription();
  const headers = { "Content-Type": "application/sdp" };
  const response = await fetch(endpoint, { method: "POST", headers, body: peer.localDescription.sdp });
  await peer.setRemoteDescription({ type: "answer", sdp: await response.text() });
  await connected;
  const ended = await fetch(new URL(response.headers.get("Location"), endpoint), { method: "DELETE" });
  peer.close();
  return [response.status, picture.currentDirection, ended.status];
}
"""


async def test_chromium_publishes_though_its_picture_cannot_be_used(house: House) -> None:
    """Its picture is first in the offer, in a codec that the server does not know."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program(*CHROMIUM), args=BrowserKind("missing", Path(), ()).flags
        )
        try:
            page = await browser.new_page()
            shutil.copy(HERE / "player.html", house.folder)
            await page.goto(f"{house.pages}/player.html")
            found = await page.evaluate(PUBLISH_WITH_AV1, f"{house.server.url}/whip/av1")
            assert found == [201, "stopped", 200]
        finally:
            await browser.close()


KEEP_PEERS = """
() => {
  globalThis.peers = [];
  const Native = RTCPeerConnection;
  globalThis.RTCPeerConnection = class extends Native {
    constructor(...settings) {
      super(...settings);
      peers.push(this);
    }
  };
}
"""
RECEIVED = """
(async () => {
  const found = { frames: 0, energy: 0 };
  for (const peer of peers) {
    for (const report of (await peer.getStats()).values()) {
      if (report.type === "inbound-rtp" && report.kind === "video") {
        found.frames += report.framesDecoded ?? 0;
      } else if (report.type === "inbound-rtp") {
        found.energy += report.totalAudioEnergy ?? 0;
      }
    }
  }
  return found;
})()
"""


async def test_firefox_does_the_pages_call(house: House, tmp_path: Path) -> None:
    async with firefox(program("firefox-esr", "firefox"), tmp_path / "profile") as browser:
        await browser.before_each_page(KEEP_PEERS)
        await browser.open(house.server.url)
        await browser.evaluate("customElements.whenDefined('echo-rtc').then(() => true)")
        await browser.evaluate("void document.querySelector('echo-rtc').start()")
        seen = {"frames": 0, "energy": 0.0}
        async with asyncio.timeout(CLIENT_S):
            while seen["frames"] < FRAMES:
                await asyncio.sleep(0.2)
                seen = await browser.evaluate(RECEIVED)
        assert await browser.evaluate("peers.map((peer) => peer.connectionState)") == ["connected"]
        assert seen["energy"] > 0.001
        await browser.evaluate("void document.querySelector('echo-rtc').stop()")
