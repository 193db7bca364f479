"""Calls as people make them, in Chromium against a real server with the test card: the picture is read back, the sound
that returns is measured, and the server is asked whether it agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from echo_rtc.settings import Settings
from tests.browser.conftest import PageFactory, RunningServer
from tests.browser.visit import TIMES, VIDEO

pytestmark = pytest.mark.asyncio(loop_scope="session")

HEARD = 0.02
"""RMS of speech that has come back."""
SILENT = 0.0005
SAMPLE_VOICE = "Sample voice, without a microphone"


async def test_the_page_opens_with_what_the_server_shows(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.sees("Give your voice a face")
    await visit.state("Ready")
    await expect(visit.page).to_have_title("Test card · echo_rtc")
    await expect(visit.page.locator("#about")).to_have_text("Test card")
    await expect(visit.part("text")).to_have_text("You speak, and a second later this person says your words.")
    await expect(visit.part("controls")).to_be_hidden()
    await visit.page.get_by_text("Details").click()
    await expect(visit.page.locator("#picture")).to_have_text(f"256 {TIMES} 256, 24 frames a second")
    await expect(visit.page.locator("[data-figure=delay]")).to_be_hidden()
    await expect(visit.page.get_by_role("button", name="Start the call")).to_be_visible()
    await expect(visit.page.get_by_role("button", name="Try the sample voice")).to_be_visible()
    await expect(visit.page.get_by_role("button", name="End the call")).to_be_hidden()
    await expect(visit.page.get_by_role("group", name="Avatar")).to_be_hidden()


async def test_the_stage_has_the_shape_and_twice_the_size(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, viewport={"width": 1920, "height": 1080})
    await visit.page.route("**/config", lambda route: route.fulfill(json=WIDE))
    await visit.page.reload()
    await expect(visit.page.locator("#picture")).to_have_text(f"480 {TIMES} 270, 25 frames a second")
    box = await visit.part("stage").bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == pytest.approx((960, 540), abs=1)


async def test_a_call_with_a_microphone(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.start()
    await visit.state("Speaking")
    first = await visit.rendered_card()
    await visit.listen()
    await visit.hears(above=HEARD)
    second = await visit.rendered_card()
    assert second.frame > first.frame
    assert second.mark == first.mark
    [stream] = visit.streams
    status, statistics = await card.get(f"/streams/{stream}")
    assert status == 200
    assert statistics["output"]
    await visit.end()
    await card.freed(stream)
    await visit.sees("The call has ended")
    await expect(visit.part("text")).to_have_text(re.compile(r"^It lasted 0:\d\d\.$"))
    await visit.state("Ended")
    await expect(visit.page.get_by_role("button", name="Start again")).to_be_visible()


async def test_the_statistics_are_the_calls_own(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, viewport={"width": 1440, "height": 900})
    await visit.start()
    await visit.page.get_by_text("Details").click()
    assert await visit.figure("codec") == "H264"
    assert await visit.figure("size") == f"256 {TIMES} 256"
    assert 0.5 < float((await visit.figure("delay")).removesuffix(" s")) < 3
    assert 15 <= float(await visit.figure("fps")) <= 33
    assert float((await visit.figure("roundTrip")).removesuffix(" ms")) < 200
    rate, unit = (await visit.figure("rate")).split()
    assert unit in {"kbit/s", "Mbit/s"}
    assert float(rate) > 0
    assert (await visit.figure("held")).isdigit()
    # A busy machine takes steps off.
    assert Settings().min_steps <= int(await visit.figure("steps")) <= Settings().steps
    await expect(visit.part("clock")).to_contain_text("0:03")
    await visit.end()
    await expect(visit.page.locator("[data-figure=delay]")).to_be_hidden()
    await expect(visit.part("clock")).to_be_hidden()


async def test_mute_sends_silence_and_the_avatar_rests(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    mute = visit.page.get_by_role("button", name="Mute or unmute your voice")
    await visit.start()
    await mute.click()
    await expect(mute).to_have_attribute("aria-pressed", "true")
    await expect(mute).to_have_text("Unmute")
    # What is said while muted is heard by the page alone, which says so.
    await expect(visit.part("banner")).to_have_text("You are muted. Unmute to be heard")
    await visit.state("Idle")
    await visit.listen()
    await visit.hears(below=SILENT)
    level = visit.page.get_by_role("meter", name="Level")
    await expect(level).to_have_attribute("aria-valuetext", "good")
    await mute.click()
    await expect(mute).to_have_attribute("aria-pressed", "false")
    await expect(mute).to_have_text("Mute")
    await expect(visit.part("banner")).to_be_hidden()
    await visit.state("Hearing you")
    await visit.hears(above=HEARD)
    await visit.state("Speaking")


async def test_the_sample_voice_needs_no_microphone(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, microphone="missing")
    await visit.page.get_by_role("combobox", name="Voice").select_option(label=SAMPLE_VOICE)
    assert await visit.page.evaluate("navigator.mediaDevices.enumerateDevices()") == []
    await visit.start("Start with the sample voice")
    await visit.listen()
    await visit.hears(above=HEARD)
    await visit.state("Speaking")


async def test_the_voice_changes_within_a_call(card: RunningServer, page: PageFactory, silence: Path) -> None:
    visit = await page(card.url, voice=silence, script=KEEP_TRACKS)
    await visit.start()
    await visit.state("Idle")
    await visit.listen()
    await visit.hears(below=SILENT)
    voices = visit.page.get_by_role("combobox", name="Voice")
    await voices.select_option(label=SAMPLE_VOICE)
    await visit.until("keptTracks[0].readyState === 'ended'")
    await visit.hears(above=HEARD)
    await visit.state("Speaking")
    await voices.select_option(label="Default microphone")
    await visit.until("keptTracks.length === 2")
    await voices.select_option(label="Fake Audio Input 1")
    await visit.until("keptTracks.length === 3 && keptTracks[1].readyState === 'ended'")
    await visit.hears(below=SILENT)
    await visit.state("Idle")
    assert len(visit.streams) == 1


async def test_a_microphone_that_is_unplugged_is_replaced(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script=KEEP_TRACKS)
    await visit.start()
    await visit.listen()
    await visit.page.evaluate("keptTracks[0].stop(); keptTracks[0].dispatchEvent(new Event('ended'))")
    await expect(visit.part("banner")).to_have_text("The microphone is gone; another one took over")
    await visit.until("keptTracks.length === 2 && keptTracks[1].readyState === 'live'")
    await visit.hears(below=SILENT)
    await visit.hears(above=HEARD)
    assert len(visit.streams) == 1


async def test_the_avatar_that_was_chosen_is_asked_for(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    visit.expected.append("status of 422")  # the test card has only one avatar, and refuses the other
    await visit.page.route("**/avatars", lambda route: route.fulfill(json=AVATARS))
    await visit.page.reload()
    group = visit.page.get_by_role("group", name="Avatar")
    await group.get_by_role("radio", name="Nobody Else").check()
    poster = visit.part("poster")
    await expect(poster).to_have_attribute("src", re.compile(r"/static/icon\.svg\?nobody_else$"))
    await expect(poster).to_be_visible()
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("The server refused the call")
    await expect(visit.part("text")).to_have_text("There is no avatar 'nobody_else'; choose one of default.")
    await visit.page.reload()
    await expect(group.get_by_role("radio", name="Nobody Else")).to_be_checked()
    await group.get_by_role("radio", name="Default").check()
    await visit.start()
    await expect(poster).to_be_hidden()
    await expect(group.get_by_role("radio", name="Nobody Else")).to_be_disabled()


async def test_the_sound_can_be_silenced_and_set(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.start()
    sound = visit.page.get_by_role("button", name="Sound off")
    playback = visit.page.get_by_role("checkbox", name="Hear yourself")
    heard = f"[{VIDEO}.muted, {VIDEO}.volume]"
    await sound.click()
    assert await visit.page.evaluate(f"{VIDEO}.muted")
    await expect(playback).not_to_be_checked()
    slider = visit.page.get_by_role("slider", name="Volume")
    await slider.fill("40")
    await expect(slider).to_have_attribute("aria-valuetext", "40 %")
    assert await visit.page.evaluate(heard) == [False, 0.4]
    await slider.fill("0")
    assert await visit.page.evaluate(heard) == [True, 0]
    await sound.click()
    assert await visit.page.evaluate(heard) == [False, 0.4]
    await playback.uncheck()
    await visit.page.reload()
    assert await visit.page.evaluate(heard) == [True, 0.4]
    await expect(playback).not_to_be_checked()


async def test_leaving_the_page_frees_its_place(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.start()
    await visit.page.goto("about:blank")
    [stream] = visit.streams
    await card.freed(stream)


async def test_a_reload_frees_the_place_and_the_page_calls_again(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.start()
    await visit.page.reload()
    await card.freed(visit.streams[0])
    await visit.start()
    assert len(set(visit.streams)) == 2


async def test_a_call_by_keyboard_alone(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.sees("Give your voice a face")
    start = visit.page.get_by_role("button", name="Start the call")
    for _ in range(5):
        await visit.page.keyboard.press("Tab")
        if await start.evaluate("(button) => button === button.getRootNode().activeElement"):
            break
    await expect(start).to_be_focused()
    # A key that is pressed twice or once more a little later neither cancels nor ends the call.
    await visit.page.keyboard.press("Enter")
    await visit.page.keyboard.press("Enter")
    await visit.live()
    await expect(visit.part("stage")).to_be_focused()
    await visit.page.keyboard.press("Space")
    await visit.page.keyboard.press("m")
    mute = visit.page.get_by_role("button", name="Mute or unmute your voice")
    await expect(mute).to_have_attribute("aria-pressed", "true")
    await expect(mute).to_have_attribute("aria-keyshortcuts", "M")
    await visit.page.keyboard.press("m")
    await visit.page.keyboard.press("s")
    await expect(visit.page.get_by_role("button", name="Sound off")).to_have_attribute("aria-pressed", "true")
    await visit.page.keyboard.press("Escape")
    await expect(visit.part("banner")).to_have_text("Press Esc again to end the call")
    await visit.live()
    await visit.page.keyboard.press("Escape")
    await visit.sees("The call has ended")
    await visit.page.keyboard.press("Tab")
    await expect(visit.page.get_by_role("button", name="Start again")).to_be_focused()
    await card.freed(visit.streams[0])


WIDE = {"engine": "local", "status": "ready", "width": 480, "height": 270, "fps": 25, "avatars": ["default"]}

AVATARS = [{"name": name, "preview": f"/static/icon.svg?{name}"} for name in ("default", "nobody_else")]

KEEP_TRACKS = """
globalThis.keptTracks = [];
const getUserMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (constraints) => {
  const stream = await getUserMedia(constraints);
  globalThis.keptTracks.push(...stream.getTracks());
  return stream;
};
"""
