"""The page's modules by themselves, run by the browser that runs them for visitors; and what its files may not hold."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Route

from tests.browser.conftest import ROOT, Browsers, RunningServer, visiting
from tests.browser.visit import TIMES, Visit

pytestmark = pytest.mark.asyncio(loop_scope="session")

STATIC = ROOT / "static"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def modules(card: RunningServer, browsers: Browsers) -> AsyncIterator[Visit]:
    """A page whose modules can be imported; nothing is done on it."""
    async with visiting(browsers) as visit:
        yield await visit(card.url)


async def test_retry_after_is_read_in_both_forms(modules: Visit) -> None:
    read = await modules.page.evaluate(
        """async () => {
          const { secondsOf } = await import("/element/server.js");
          const now = Date.UTC(2026, 0, 1, 12, 0, 0);
          const dates = ["Thu, 01 Jan 2026 12:00:30 GMT", "Thu, 01 Jan 2026 11:00:00 GMT"];
          return ["10", " 0 ", ...dates, "soon", "", null].map((header) => secondsOf(header, now));
        }"""
    )
    assert read == [10, 0, 30, 0, None, None, None]


async def test_refusals_are_told_apart(modules: Visit) -> None:
    kinds = await modules.page.evaluate(
        """async () => {
          const { refusalOf } = await import("/element/server.js");
          const urn = "urn:echo-rtc:problem:";
          return [
            refusalOf(503, { type: urn + "full", detail: "All taken." }, "7"),
            refusalOf(503, { type: urn + "starting" }, null),
            refusalOf(503, { type: urn + "stopping" }, null),
            refusalOf(502, {}, null),
            refusalOf(200, {}, null),
            refusalOf(422, { type: urn + "unknown-avatar", detail: "No." }, null),
            refusalOf(401, { detail: "No token." }, null),
            refusalOf(403, {}, null),
            refusalOf(409, {}, "3"),
            refusalOf(429, {}, "60"),
          ].map(({ kind, detail, retryAfterS }) => [kind, detail, retryAfterS]);
        }"""
    )
    assert kinds == [
        ["full", "All taken.", 7],
        ["starting", "", None],
        ["stopping", "", None],
        ["unreachable", "", None],
        ["unreachable", "", None],
        ["rejected", "No.", None],
        ["unauthorized", "No token.", None],
        ["unauthorized", "", None],
        ["taken", "", 3],
        ["limited", "", 60],
    ]


async def test_addresses_stay_below_a_proxys_path(modules: Visit) -> None:
    found = await modules.page.evaluate(
        """async () => {
          const { addressBelow } = await import("/element/server.js");
          const base = "https://app.example/avatar";
          const asked = base + "/whep/studio";
          const named = ["/whep/studio/1", "/avatar/whep/studio/1", "studio/1", base + "/whep/studio/1",
            "https://evil.example/s", "//evil.example/s"];
          return named.map((name) => addressBelow(name, asked, base));
        }"""
    )
    assert found == 4 * ["https://app.example/avatar/whep/studio/1"] + 2 * [None]


async def test_a_restart_is_told_from_an_ended_call(modules: Visit) -> None:
    found = await modules.page.evaluate(
        """async () => {
          const { outcomeOf } = await import("/element/connection.js");
          const messages = [{}, { reconnect: false }, { reconnect: true, after_s: 7, reason: "stopping" },
            { reconnect: true }, { reconnect: true, after_s: 1e9 }, { reconnect: true, after_s: "7" }];
          return [false, true].map((isView) => messages.map((message) => {
            const { kind, retryAfterS } = outcomeOf(message, isView);
            return [kind, retryAfterS];
          }));
        }"""
    )
    returning = [["stopping", 7], ["stopping", None], ["stopping", 300], ["stopping", None]]
    assert found == [2 * [["ended", None]] + returning, 2 * [["offline", 1]] + returning]


async def test_speech_is_told_from_clicks_and_pauses_between_words(modules: Visit) -> None:
    spoken = await modules.page.evaluate(
        """async () => {
          const { SpeechDetector } = await import("/element/meter.js");
          const detector = new SpeechDetector();
          const at = (ms) => (ms === 500 || (ms >= 1000 && ms < 3000 && !(ms > 1500 && ms < 2000)) ? 0.7 : 0.1);
          const changes = [];
          for (let ms = 0, before = false; ms <= 5000; ms += 50) {
            const now = detector.update(at(ms), ms);
            if (now !== before) changes.push(ms);
            before = now;
          }
          return changes;
        }"""
    )
    assert spoken == [1150, 3900]


async def test_a_full_servers_queue_tells_the_place_and_the_moment(modules: Visit) -> None:
    waits, calls = await modules.page.evaluate(
        """async () => {
          const { EchoCall } = await import("/element/call.js");
          const { Refusal, Server } = await import("/element/server.js");
          const events = [{ position: 2, free: false }, { position: 1, free: false }, { position: 1, free: true }];
          const stream = new ReadableStream({
            pull(controller) {
              const event = events.shift();
              const text = `event: place\\ndata: ${JSON.stringify(event)}\\n\\n`;
              controller.enqueue(new TextEncoder().encode(text.slice(0, 20)));
              controller.enqueue(new TextEncoder().encode(text.slice(20)));
            },
          }, { highWaterMark: 0 });
          let left = null;
          const original = globalThis.fetch;
          globalThis.fetch = async (url, { signal } = {}) => {
            signal.addEventListener("abort", () => (left = true));
            return new Response(stream);
          };
          let calls = 0;
          const server = new Server("https://none.example");
          server.configuration = async () => ({});
          server.call = async () => {
            calls += 1;
            left ??= false;
            throw calls === 1 ? new Refusal("full", "", 600) : new Refusal("rejected", String(left));
          };
          const voice = new MediaStreamAudioDestinationNode(new AudioContext()).stream.getAudioTracks()[0];
          const call = new EchoCall(server, { mode: "call", avatar: "", name: "" });
          const waits = [];
          call.addEventListener("wait", ({ detail }) => waits.push(detail.position));
          const end = new Promise((resolve) => call.addEventListener("end", ({ detail }) => resolve(detail)));
          call.start(voice);
          const { detail } = await end;
          globalThis.fetch = original;
          return [waits, [calls, detail, left]];
        }"""
    )
    assert waits == [None, 2, 1]
    # The place in the queue was kept until the second call had been answered.
    assert calls == [2, "false", True]


async def test_a_view_has_a_session_of_its_own_server_or_none(modules: Visit) -> None:
    headers = {"Content-Type": "application/sdp"}
    answers: dict[str, dict[str, Any]] = {
        "relative": {"status": 201, "headers": {**headers, "Location": "relative/session"}, "body": "v=0"},
        "elsewhere": {"status": 201, "headers": {**headers, "Location": "https://evil.example/s"}, "body": "v=0"},
        "nobody": {"status": 409, "headers": {"Retry-After": "2"}, "json": {"detail": "Nobody."}},
        "broken": {"status": 502, "body": "<html>"},
    }

    async def answer(route: Route) -> None:
        await route.fulfill(**answers[route.request.url.rpartition("/")[2]])

    await modules.page.route("**/whep/*", answer)
    modules.expected.append("status of (409|502)")
    found = await modules.page.evaluate(
        """async (names) => {
          const { Server } = await import("/element/server.js");
          const server = new Server(location.origin);
          return Promise.all(names.map((name) => server.view("v=0", name).then(
            ({ sdp, session }) => [sdp, session],
            ({ kind, detail, retryAfterS }) => [kind, detail, retryAfterS],
          )));
        }""",
        list(answers),
    )
    assert found == [
        ["v=0", f"{modules.origins[0]}/whep/relative/session"],
        ["rejected", "The server names a session at another address, which gets no token.", None],
        ["offline", "Nobody.", 2],
        ["unreachable", "", None],
    ]


async def test_attempts_come_less_and_less_often(modules: Visit) -> None:
    early, late = await modules.page.evaluate(
        """async () => {
          const { backOffS } = await import("/element/call.js");
          return [0, 1].map((chance) => [0, 1, 2, 3, 4, 5, 50].map((failures) => backOffS(failures, chance)));
        }"""
    )
    assert early == [1, 2, 4, 8, 15, 15, 15]
    assert late == pytest.approx([1.25 * delay for delay in early])


async def test_figures_are_differences_of_reports(modules: Visit) -> None:
    first, second, third = await modules.page.evaluate(
        """async () => {
          const { LinkMeter } = await import("/element/figures.js");
          const report = (s, frames, bytes, packets, lost) => new Map(Object.entries({
            V: { type: "inbound-rtp", kind: "video", timestamp: 1000 * s, codecId: "C", framesDecoded: frames,
                 bytesReceived: bytes, headerBytesReceived: 0, packetsReceived: packets, packetsLost: lost,
                 frameWidth: 640, frameHeight: 360 },
            A: { type: "inbound-rtp", kind: "audio", timestamp: 1000 * s, bytesReceived: bytes,
                 packetsReceived: packets },
            C: { type: "codec", mimeType: "video/VP8" },
            P: { type: "candidate-pair", state: "succeeded", nominated: true, currentRoundTripTime: 0.042 },
            Q: { type: "candidate-pair", state: "succeeded", nominated: false, currentRoundTripTime: 0.9 },
          }));
          const meter = new LinkMeter();
          return [report(1, 24, 1000, 50, 0), report(3, 72, 26000, 100, 10), report(3.1, 75, 27000, 102, 10)]
            .map((rows) => meter.read(rows));
        }"""
    )
    assert first == {
        "fps": None,
        "kbps": None,
        "roundTripMs": 42,
        "lossPercent": None,
        "codec": "VP8",
        "size": f"640 {TIMES} 360",
    }
    assert second["fps"] == 24
    assert second["kbps"] == 200
    assert second["lossPercent"] == pytest.approx(100 * 10 / 110)
    assert third["fps"] is None  # too soon after the one before to say anything


async def test_levels_are_linear_in_decibels(modules: Visit) -> None:
    levels = await modules.page.evaluate(
        """async () => {
          const { levelOf } = await import("/element/meter.js");
          return [0, 0.0005, 10 ** (-30 / 20), 1].map((value) => levelOf(new Float32Array(1024).fill(value)));
        }"""
    )
    assert levels == pytest.approx([0, 0, 0.5, 1], abs=1e-3)


async def test_durations_read_as_clocks_do(modules: Visit) -> None:
    shown = await modules.page.evaluate(
        """async () => {
          const { durationOf } = await import("/element/view.js");
          return [0, 7.9, 754, 3723].map(durationOf);
        }"""
    )
    assert shown == ["0:00", "0:07", "12:34", "1:02:03"]


async def test_every_state_and_every_trouble_has_words(modules: Visit) -> None:
    notices, states = await modules.page.evaluate(
        """async () => {
          const { ICONS } = await import("/element/icons.js");
          const { Words, stateWords } = await import("/element/words.js");
          const words = new Words(true);
          const wait = { detail: "", position: null, delayMs: 1000, quiet: false, reconnecting: false };
          const whys = ["full", "limited", "taken", "offline", "starting", "stopping", "unreachable", "lost",
            "blocked"];
          const ends = ["ended", "rejected", "unauthorized", "gave-up"];
          const faults = ["insecure", "framed", "refused", "missing", "busy", "failed", "ended"];
          const notices = [
            ...whys.map((why) => words.waiting({ ...wait, why }, "studio")),
            ...ends.map((why) => words.ended({ why, detail: "", last: null }, "0:12")),
            words.waiting({ ...wait, why: "offline", reconnecting: true }, ""),
            words.goodbye("call", "microphone", "0:12"),
            words.goodbye("view", "microphone", "0:12"),
            ...faults.map((fault) => words.withoutMicrophone(fault, "here")),
          ].map(({ title, text, chip, icon, actions }) => {
            return [title, text, icon in ICONS && chip !== "", actions.length];
          });
          const names = ["new", "connecting", "idle", "hearing", "speaking", "behind", "watching", "waiting", "closed"];
          const states = names.map(stateWords);
          return [notices, states];
        }"""
    )
    assert len({title for title, *_ in notices}) == len(notices)
    for title, text, has_icon, actions in notices:
        assert title
        assert text.endswith(".")
        assert has_icon, title
        assert actions >= 1, title
    assert len({state["word"] for state in states}) == len(states)


async def test_files_hold_nothing_inline_and_nothing_remote() -> None:
    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            assert tag != "style"
            assert tag != "script" or named.get("src", "")
            for name, value in attrs:
                assert name != "style"
                assert not name.startswith("on")
                if name in {"src", "href"}:
                    assert re.match(r"static/|element/|echo-rtc\.js$|#", value or ""), value

    for page in STATIC.glob("*.html"):
        Reader().feed(page.read_text())
        preloaded = set(re.findall(r'"modulepreload" href="element/([\w.]+)"', page.read_text()))
        has_element = page.stem in {"index", "embed"}
        assert preloaded == ({path.name for path in (STATIC / "element").iterdir()} if has_element else set()), page
    for path in STATIC.rglob("*"):
        if path.suffix in {".js", ".css", ".html"}:
            text = path.read_text()
            for example in ("https://avatar.example", "http://www.w3.org/2000/svg"):
                text = text.replace(example, "")
            assert not re.search(r"(https?:)?//[\w-]+\.\w", text), path
            assert not re.search(r"\binnerHTML\b|\beval\(|\.write\(", text), path


async def test_captions_end_by_themselves_or_with_the_next(modules: Visit) -> None:
    seen = await modules.page.evaluate(
        """async () => {
          const { Captions, captionOf } = await import("/element/captions.js");
          const said = (text, length) => ({ event_id: "a", text, start_ms: 500, end_ms: 500 + length });
          const seen = [];
          let tell = () => {};
          const captions = new Captions(({ text }) => { seen.push(text); if (text === "") tell(); });
          const next = () => new Promise((resolve) => (tell = resolve));
          captions.take(captionOf(said("one", 1)));
          await next();
          captions.take(captionOf(said("two", 60_000)));
          captions.take(captionOf(said("three", 60_000)));
          captions.take(captionOf(said("", 0)));
          captions.clear();
          captions.take(captionOf(said("four", 60_000)));
          captions.clear();
          captions.clear();
          return [seen, captionOf({ text: 5, start_ms: 0, end_ms: 1 }), captionOf({ text: "a", start_ms: "0" })];
        }"""
    )
    assert seen == [["one", "", "two", "three", "", "four", ""], None, None]
