"""What goes wrong between people, browsers and servers, and the words and the way out that the page has for it."""

from __future__ import annotations

import pytest
from playwright.async_api import Route, expect

from echo_rtc.clips import ClipFormat
from echo_rtc.web.health import Health, Lifecycle
from echo_rtc.web.problems import Problem
from tests.browser.conftest import TEST_CARD, PageFactory, RunningServer, ServerFactory
from tests.browser.visit import VIDEO

pytestmark = pytest.mark.asyncio(loop_scope="session")

REFUSED_BY_SERVER = "status of 503"
GONE = "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_SOCKET_NOT_CONNECTED"
SMALL = ("--width", "128", "--height", "128")


async def test_a_refused_microphone(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, microphone="refused")
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("The microphone was refused")
    await visit.state("Needs a microphone")
    await expect(visit.page.get_by_role("button", name="Try again")).to_be_focused()
    await expect(visit.page.get_by_role("alert")).to_contain_text("Allow the microphone for this page")
    await visit.page.get_by_role("button", name="Try again").click()
    await visit.sees("The microphone was refused")
    assert visit.streams == []
    await visit.start("Use the sample voice")
    await visit.state("Speaking")


async def test_no_microphone(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, microphone="missing")
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("There is no microphone")
    await expect(visit.page.get_by_role("alert")).to_contain_text("Plug one in")
    assert visit.streams == []
    await visit.start("Use the sample voice")


async def test_a_microphone_in_use(card: RunningServer, page: PageFactory) -> None:
    busy = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('busy', 'NotReadableError'); };"
    visit = await page(card.url, script=busy)
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("The microphone is in use")
    await expect(visit.page.get_by_role("button", name="Use the sample voice")).to_be_visible()


async def test_the_browser_asks_for_the_microphone_without_answer(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script="navigator.mediaDevices.getUserMedia = () => new Promise(() => {});")
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("May this page hear you?")
    await visit.start("Use the sample voice")
    await visit.state("Speaking")


async def test_an_insecure_address(server: ServerFactory, page: PageFactory) -> None:
    # On loopback alone the server answers under no such name.
    card = await server(TEST_CARD, *SMALL, "--host", "0.0.0.0")
    visit = await page(f"http://avatar.test:{card.port}", hosts={"avatar.test": "127.0.0.1"})
    assert await visit.page.evaluate("navigator.mediaDevices === undefined")
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("No microphone at this address")
    await expect(visit.part("text")).to_contain_text(f"http://avatar.test:{card.port} is not one")
    await visit.start("Use the sample voice")
    await visit.state("Speaking")


async def test_a_full_server_admits_the_waiting_client(server: ServerFactory, page: PageFactory) -> None:
    one_place = await server(TEST_CARD, *SMALL, "--max-streams", "1")
    first = await page(one_place.url)
    await first.start()
    second = await page(one_place.url)
    second.expected.append("status of 503")
    await second.page.get_by_role("button", name="Start the call").click()
    await second.sees("All places are taken")
    await first.end()
    await second.live()


async def test_a_server_that_is_still_loading(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    visit.expected.append(REFUSED_BY_SERVER)
    loading = Loading()
    await visit.page.route("**/readyz", loading.answer)
    await visit.page.route("**/offer", loading.answer)
    await visit.page.reload()
    await visit.sees("The avatar is getting ready")
    # What the server says of its parts is for those who run it.
    await expect(visit.page.get_by_text("reference_unet")).to_have_count(0)
    other = visit.page.get_by_role("button", name="Try the sample voice")
    await other.focus()
    async with visit.page.expect_response("**/readyz"):
        pass
    await expect(other).to_be_focused()
    await visit.page.get_by_role("button", name="Start the call").click()
    await expect(visit.part("text")).to_contain_text("The call begins by itself")
    await visit.state("Getting ready")
    async with visit.page.expect_response("**/readyz"):
        pass
    await expect(visit.page.get_by_text("reference_unet")).to_have_count(0)
    loading.over = True
    await visit.live()


async def test_a_waiting_call_can_be_cancelled(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script=KEEP_TRACK)
    visit.expected.append(REFUSED_BY_SERVER)
    await visit.page.route("**/offer", Loading().answer)
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("The avatar is getting ready")
    await visit.page.get_by_role("button", name="Cancel").click()
    await visit.sees("Give your voice a face")
    await visit.until("keptTrack.readyState === 'ended'")
    await visit.state("Ready")


async def test_a_killed_server_and_its_return(server: ServerFactory, page: PageFactory) -> None:
    first = await server(TEST_CARD, *SMALL)
    visit = await page(first.url)
    visit.expected.append(GONE)
    await visit.page.clock.install()
    await visit.page.reload()
    await visit.start()
    await first.kill()
    await visit.state("No connection")
    await expect(visit.page.get_by_role("alert")).to_contain_text("The connection was lost")
    await server(TEST_CARD, *SMALL, "--port", str(first.port))
    await visit.page.clock.fast_forward(20_000)  # longer than any pause between two attempts
    await visit.live()
    await visit.state("Speaking")
    assert len(visit.streams) == 2


async def test_a_stream_that_was_ended_elsewhere(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    await visit.start()
    await visit.page.evaluate(f"fetch('/streams/{visit.streams[0]}', {{ method: 'DELETE' }})")
    await visit.sees("The server ended the call")
    await visit.state("Ended")
    await visit.start("Start again")
    assert len(visit.streams) == 2


async def test_a_restarted_server_is_called_again(server: ServerFactory, page: PageFactory) -> None:
    running = await server(TEST_CARD, *SMALL)
    visit = await page(running.url)
    visit.expected.append(GONE)
    await visit.start()
    assert await running.stop() == 0
    await visit.sees("The server is restarting")
    await visit.state("Restarting")
    await expect(visit.part("countdown")).to_contain_text("Trying")
    await server(TEST_CARD, *SMALL, "--port", str(running.port))
    await visit.page.get_by_role("button", name="Try now").click()
    await visit.live()
    assert len(visit.streams) == 2


async def test_a_browser_that_wants_a_tap_for_sound(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script=NO_AUTOPLAY.replace("FORBIDDEN", "!this.muted"))
    await visit.start()
    assert await visit.page.evaluate(f"{VIDEO}.muted")
    sound = visit.page.get_by_role("button", name="Tap for sound")
    await sound.click()
    assert not await visit.page.evaluate(f"{VIDEO}.muted")
    await expect(sound).to_be_hidden()


async def test_a_browser_that_wants_a_tap_for_anything(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script=NO_AUTOPLAY.replace("FORBIDDEN", "(tries += 1) <= 2"))
    await visit.page.get_by_role("button", name="Start the call").click()
    await visit.sees("Tap to watch and listen")
    await visit.page.get_by_role("button", name="Play").click()
    await visit.live()
    assert not await visit.page.evaluate(f"{VIDEO}.muted")


async def test_a_missing_sample(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url)
    visit.expected.append("status of 404")
    await visit.page.route("**/sample.wav", lambda route: route.fulfill(status=404))
    await visit.page.get_by_role("button", name="Try the sample voice").click()
    await visit.sees("The sample voice cannot be played")
    await visit.page.get_by_role("button", name="Try again").click()
    await visit.sees("The sample voice cannot be played")
    await visit.start("Use the microphone")


async def test_a_browser_without_webrtc(card: RunningServer, page: PageFactory) -> None:
    visit = await page(card.url, script="delete globalThis.RTCPeerConnection;")
    await visit.sees("This browser cannot make calls")
    await expect(visit.page.get_by_role("button", name="Start the call")).to_have_count(0)


class Loading:
    """Answers as a server whose engine is starting does, with that very code, until it is over."""

    def __init__(self) -> None:
        self.lifecycle = Lifecycle(progress="reference_unet is loaded")
        self.over = False

    @property
    def trouble(self) -> str:
        return ""

    @property
    def format(self) -> ClipFormat:
        return ClipFormat()

    @property
    def avatars(self) -> dict[str, object]:
        return {}

    ready = False

    async def answer(self, route: Route) -> None:
        if self.over:
            await route.continue_()
            return
        with pytest.raises(Problem) as raised:
            Health(self, self.lifecycle, "local").require_ready()
        response = raised.value.response()
        await route.fulfill(status=response.status, headers=dict(response.headers), body=response.text)


KEEP_TRACK = """
const getUserMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (constraints) => {
  const stream = await getUserMedia(constraints);
  [globalThis.keptTrack] = stream.getTracks();
  return stream;
};
"""

NO_AUTOPLAY = """
let tries = 0;
const play = HTMLMediaElement.prototype.play;
HTMLMediaElement.prototype.play = function () {
  return FORBIDDEN ? Promise.reject(new DOMException("a gesture is needed", "NotAllowedError")) : play.call(this);
};
"""
