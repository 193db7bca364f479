"""Voices that say a sentence: a server with OpenAI's POST /v1/audio/speech, or espeak-ng on this machine.

Nothing but the configured address is contacted: redirects are not followed, and proxies of the environment not used.
Each sentence is bounded in time and in bytes.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from echo_rtc.errors import SettingsError

LOCAL = "local"
"""The address that stands for espeak-ng."""
LOCAL_PROGRAM = "espeak-ng"
PCM_RATE = 24_000
"""Sample rate of the PCM that OpenAI's interface returns, in Hz."""
MAX_SENTENCE_S = 60
"""Longest sound of a sentence."""
CONNECT_S = 5.0
SILENCE_S = 15.0
"""A server that sends nothing for this long is given up."""
TOTAL_S = 60.0
"""Most time for a sentence."""
_CHUNK = 64 * 1024
_RATES = range(8_000, 48_001)
_PATH = "/audio/speech"


class TtsError(Exception):
    """A sentence could not be said: why, in one sentence without anything secret."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """Sound of a sentence: 16-bit little-endian mono PCM of ``rate`` Hz, an even number of bytes."""

    pcm: bytes
    rate: int


class Voice(Protocol):
    """Says sentences."""

    async def say(self, sentence: str) -> Spoken:
        """Raises TtsError. May be cancelled: then nothing of the request goes on."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TtsServer:
    """A text-to-speech server. ``url``: its whole address; ``key`` is sent as a bearer token and never shown."""

    url: str
    model: str
    voice: str
    key: str | None = None

    @staticmethod
    def address(url: str) -> str:
        """The address of the interface on the server, or below the path, that ``url`` names."""
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        if not path.endswith(_PATH):
            path += _PATH if path.endswith("/v1") else f"/v1{_PATH}"
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    def __repr__(self) -> str:
        return f"TtsServer({self.url!r}, {self.model!r}, {self.voice!r})"


class ServerVoice:
    """A voice behind OpenAI's interface."""

    def __init__(self, server: TtsServer) -> None:
        self._server = server
        self._session: aiohttp.ClientSession | None = None

    async def say(self, sentence: str) -> Spoken:
        server = self._server
        body = {"model": server.model, "input": sentence, "voice": server.voice, "response_format": "pcm"}
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        try:
            async with self._client().post(server.url, json=body, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise TtsError(f"the text-to-speech server answers {response.status}")
                pcm = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK):
                    pcm += chunk
                    _require_short(len(pcm), PCM_RATE)
        except TimeoutError:
            raise TtsError("the text-to-speech server takes too long") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TtsError(f"the text-to-speech server cannot be used ({type(error).__name__})") from None
        return _spoken(bytes(pcm), PCM_RATE)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            self._session = aiohttp.ClientSession(
                timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session


class LocalVoice:
    """The voice of espeak-ng: one process a sentence, ended with it."""

    def __init__(self, program: str, voice: str) -> None:
        self._command = (program, "--stdin", "--stdout", "-b", "1", "-v", voice)

    async def say(self, sentence: str) -> Spoken:
        try:
            process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        except OSError as error:
            raise TtsError(f"{LOCAL_PROGRAM} cannot be started ({error.strerror})") from None
        try:
            async with asyncio.timeout(TOTAL_S):
                wav = await self._talk(process, sentence)
                code = await process.wait()
        except TimeoutError:
            raise TtsError(f"{LOCAL_PROGRAM} takes too long") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if code != 0:
            raise TtsError(f"{LOCAL_PROGRAM} ends with the code {code}")
        return _read_wav(wav)

    async def close(self) -> None:
        """Each process ends with its sentence."""

    @staticmethod
    async def _talk(process: asyncio.subprocess.Process, sentence: str) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(ConnectionError):
            # A sentence is smaller than what a pipe holds.
            process.stdin.write(sentence.encode("utf-8", "replace"))
            await process.stdin.drain()
        process.stdin.close()
        wav = bytearray()
        while chunk := await process.stdout.read(_CHUNK):
            wav += chunk
            _require_short(len(wav), _RATES[-1])
        return bytes(wav)


def make_voice(url: str, model: str, voice: str | None, key: str | None) -> Voice:
    """The voice of the settings tts_url, tts_model, tts_voice and tts_key. Raises SettingsError."""
    if url == LOCAL:
        program = shutil.which(LOCAL_PROGRAM)
        if program is None:
            raise SettingsError(
                f"tts_url is {LOCAL!r} and {LOCAL_PROGRAM} is not installed; install it, or name a server"
            )
        return LocalVoice(program, voice or "en")
    return ServerVoice(TtsServer(TtsServer.address(url), model, voice or "alloy", key))


def _require_short(size: int, rate: int) -> None:
    if size > 2 * rate * MAX_SENTENCE_S:
        raise TtsError(f"the sound of a sentence is longer than {MAX_SENTENCE_S} s")


def _spoken(pcm: bytes, rate: int) -> Spoken:
    if len(pcm) < 2:
        raise TtsError("the answer holds no sound")
    return Spoken(pcm[: len(pcm) & ~1], rate)


def _read_wav(wav: bytes) -> Spoken:
    """The PCM of a WAV that was streamed, whose sizes mean nothing yet. Raises TtsError for any but mono of 16 bits."""
    data = wav.find(b"data", 36, 1024)
    if wav[:4] != b"RIFF" or wav[8:16] != b"WAVEfmt " or data < 0:
        raise TtsError(f"{LOCAL_PROGRAM} returned no WAV")
    rate, bits = int.from_bytes(wav[24:28], "little"), int.from_bytes(wav[34:36], "little")
    if wav[22:24] != b"\x01\x00" or bits != 16 or rate not in _RATES:
        raise TtsError(f"{LOCAL_PROGRAM} returned sound of {rate} Hz and {bits} bits; mono of 16 bits is expected")
    return _spoken(wav[data + 8 :], rate)
