"""Voices against a text-to-speech server of ours with scripted troubles, and against espeak-ng where there is one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from echo_rtc.errors import SettingsError
from echo_rtc.tts import voices
from echo_rtc.tts.sentences import MAX_SENTENCE_CHARACTERS, sentences
from echo_rtc.tts.voices import LocalVoice, ServerVoice, TtsError, TtsServer, Voice, make_voice

KEY = "a-key-of-the-server"
PCM = b"\x01\x02" * 1200


@dataclass
class Stub:
    """A text-to-speech server. ``script``: "ok", "odd", "empty", "endless", "cut", "silent", or a status."""

    script: str = "ok"
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.came.set()
        self.keys.append(request.headers.get("Authorization"))
        if self.script.isdigit():
            return web.Response(status=int(self.script), text=KEY, headers={"Location": "/elsewhere"})
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while self.script == "endless":
                await response.write(bytes(1 << 16))
            if self.script == "slow":
                await response.write(PCM)
            if self.script in ("silent", "slow"):
                await asyncio.Event().wait()
        except (ConnectionError, asyncio.CancelledError):
            self.gone.set()
            raise
        if self.script == "cut":
            await response.write(PCM)
            assert request.transport is not None
            request.transport.abort()
        await response.write({"odd": PCM + b"\x05", "empty": b""}.get(self.script, PCM))
        return response


async def said(voice: Voice, sentence: str = "Hello.") -> tuple[bytes, int]:
    """All the sound of a sentence, and its rate."""
    async with aclosing(voice.say(sentence)) as sound:
        parts = [part async for part in sound]
    [rate] = {part.rate for part in parts}
    return b"".join(part.pcm for part in parts), rate


@pytest.fixture
async def made() -> AsyncIterator[tuple[Stub, ServerVoice]]:
    stub = Stub()
    app = web.Application()
    app.router.add_post("/v1/audio/speech", stub.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    voice = ServerVoice(TtsServer(TtsServer.address(url), "tts-1", "alloy", KEY))
    yield stub, voice
    await voice.close()
    await runner.cleanup()


async def test_a_server_is_asked_as_openais_is(made: tuple[Stub, ServerVoice]) -> None:
    stub, voice = made
    assert await said(voice) == (PCM, 24_000)
    assert stub.asked == [{"model": "tts-1", "input": "Hello.", "voice": "alloy", "response_format": "pcm"}]
    assert stub.keys == [f"Bearer {KEY}"]
    stub.script = "odd"
    assert await said(voice) == (PCM, 24_000)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("500", "answers 500"),
        ("302", "answers 302"),
        ("empty", "holds no sound"),
        ("cut", "cannot be used"),
        ("endless", "longer than 60 s"),
        ("silent", "takes too long"),
    ],
)
async def test_troubles_of_a_server_are_one_sentence(
    made: tuple[Stub, ServerVoice], script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, voice = made
    stub.script = script
    monkeypatch.setattr(voices, "SILENCE_S", 0.1 if script == "silent" else 15.0)
    with pytest.raises(TtsError, match=words) as refused:
        await said(voice)
    assert KEY not in str(refused.value)
    assert len(stub.asked) == 1


async def test_sound_is_handed_on_before_the_sentence_is_whole(made: tuple[Stub, ServerVoice]) -> None:
    stub, voice = made
    stub.script = "slow"
    async with asyncio.timeout(10), aclosing(voice.say("Hello.")) as sound:
        first = await anext(sound)
        assert first.pcm == PCM
    # Closing it has ended the request.
    await asyncio.wait_for(stub.gone.wait(), 10)


async def test_a_server_that_is_not_there_is_one_sentence() -> None:
    voice = ServerVoice(TtsServer("http://127.0.0.1:9/v1/audio/speech", "tts-1", "alloy", KEY))
    with pytest.raises(TtsError, match=r"^the text-to-speech server cannot be reached; .*--tts-url$"):
        await said(voice)
    await voice.close()


async def test_a_cancelled_sentence_ends_its_request(made: tuple[Stub, ServerVoice]) -> None:
    stub, voice = made
    stub.script = "silent"
    task = asyncio.create_task(said(voice))
    await asyncio.wait_for(stub.came.wait(), 10)
    task.cancel()
    await asyncio.wait_for(stub.gone.wait(), 10)


def test_addresses_lead_to_the_interface() -> None:
    expected = "http://tts.example:8880/v1/audio/speech"
    for url in ("http://tts.example:8880", "http://tts.example:8880/v1/", expected):
        assert TtsServer.address(url) == expected
    assert KEY not in repr(TtsServer(expected, "tts-1", "alloy", KEY))


async def test_espeak_says_a_sentence(tmp_path: Path) -> None:
    program = shutil.which("espeak-ng")
    if program is not None:
        pcm, rate = await said(LocalVoice(program, "en"), "Good\ud800 morning.")
        assert 0.3 < len(pcm) / 2 / rate < 5
    broken = tmp_path / "espeak-ng"
    broken.write_text("#!/bin/sh\ncat > /dev/null\necho nonsense\n")
    broken.chmod(0o755)
    with pytest.raises(TtsError, match="returned no WAV"):
        await said(LocalVoice(str(broken), "en"))


def test_espeak_that_is_missing_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SettingsError, match="espeak-ng is not installed"):
        make_voice("local", "tts-1", None, None)


@pytest.mark.parametrize(
    "url", ["https://[", "https://host:99999", "http://:80", "http://", "ftp://host", "http://h:0"]
)
def test_an_address_that_is_none_is_said_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match=r"tts_url is .*; it must be the address of a server"):
        make_voice(url, "tts-1", None, None)


def test_texts_are_split_into_sentences() -> None:
    assert sentences(' Hello there.  "How are you?" Fine... 3.5 of them!\n\nNew line ') == [
        "Hello there.",
        '"How are you?"',
        "Fine...",
        "3.5 of them!",
        "New line",
    ]
    assert sentences("\u4f60\u597d\u3002\u518d\u89c1\uff01") == ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]
    assert sentences("... !?") == []
    for text in ("x" * 4096, "word, " * 600):
        parts = sentences(text)
        assert max(map(len, parts)) <= MAX_SENTENCE_CHARACTERS
        assert "".join("".join(parts).split()) == "".join(text.split())
