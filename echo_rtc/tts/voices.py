"""Voices that say a sentence: a server with OpenAI's POST /v1/audio/speech, or espeak-ng on this machine.

The sound is handed on as it comes, so that a sentence begins to be heard before its last word has been made.
Nothing but the configured address is contacted: redirects are not followed, and proxies of the environment not used.
Each sentence is bounded in time and in bytes.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator
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
_CHUNK = 16 * 1024
_MAX_HEAD = 1024
"""A WAV's samples begin before this byte."""
_RATES = range(8_000, 48_001)
_PATH = "/audio/speech"


class TtsError(Exception):
    """A sentence could not be said: why, in one sentence without anything secret."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """Some sound of a sentence: 16-bit little-endian mono PCM of ``rate`` Hz, an even number of bytes."""

    pcm: bytes
    rate: int


class Voice(Protocol):
    """Says sentences."""

    def say(self, sentence: str) -> AsyncGenerator[Spoken, None]:
        """The sound, in parts as it comes, all of one rate. Raises TtsError, after some parts perhaps. Closing it ends
        the request."""
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

    async def say(self, sentence: str) -> AsyncGenerator[Spoken, None]:
        server = self._server
        body = {"model": server.model, "input": sentence, "voice": server.voice, "response_format": "pcm"}
        headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
        samples = _Samples(PCM_RATE)
        try:
            async with self._client().post(server.url, json=body, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise TtsError(f"the text-to-speech server answers {response.status}")
                async for chunk in response.content.iter_any():
                    if (spoken := samples.take(chunk)) is not None:
                        yield spoken
        except TimeoutError:
            raise TtsError("the text-to-speech server takes too long") from None
        except aiohttp.ClientConnectorError:
            raise TtsError("the text-to-speech server cannot be reached; check that it runs at --tts-url") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TtsError(f"the text-to-speech server cannot be used ({type(error).__name__})") from None
        samples.require_some()

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

    async def say(self, sentence: str) -> AsyncGenerator[Spoken, None]:
        try:
            process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
        except OSError as error:
            raise TtsError(f"{LOCAL_PROGRAM} cannot be started ({error.strerror})") from None
        try:
            async with asyncio.timeout(TOTAL_S):
                await self._give(process, sentence)
                samples = await self._read_head(process)
                assert process.stdout is not None
                while chunk := await process.stdout.read(_CHUNK):
                    if (spoken := samples.take(chunk)) is not None:
                        yield spoken
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
        samples.require_some()

    async def close(self) -> None:
        """Each process ends with its sentence."""

    @staticmethod
    async def _give(process: asyncio.subprocess.Process, sentence: str) -> None:
        assert process.stdin is not None
        with suppress(ConnectionError):
            # A sentence is smaller than what a pipe holds.
            process.stdin.write(sentence.encode("utf-8", "replace"))
            await process.stdin.drain()
        process.stdin.close()

    @staticmethod
    async def _read_head(process: asyncio.subprocess.Process) -> _Samples:
        """Reads the head of a WAV that is streamed, whose sizes mean nothing yet. Raises TtsError for any but mono of
        16 bits."""
        assert process.stdout is not None
        wav = b""
        while (data := wav.find(b"data", 36, _MAX_HEAD)) < 0 or len(wav) < data + 8:
            chunk = await process.stdout.read(_CHUNK)
            wav += chunk
            if not chunk or len(wav) > _MAX_HEAD + _CHUNK or (len(wav) >= 16 and not _is_wav(wav)):
                raise TtsError(f"{LOCAL_PROGRAM} returned no WAV")
        rate, bits = int.from_bytes(wav[24:28], "little"), int.from_bytes(wav[34:36], "little")
        if wav[22:24] != b"\x01\x00" or bits != 16 or rate not in _RATES:
            raise TtsError(f"{LOCAL_PROGRAM} returned sound of {rate} Hz and {bits} bits; mono of 16 bits is expected")
        return _Samples(rate, wav[data + 8 :])


class _Samples:
    """Bytes as they come into whole samples, no more than a sentence may have."""

    def __init__(self, rate: int, begun: bytes = b"") -> None:
        self._rate = rate
        self._rest = begun
        self._given = 0

    def take(self, chunk: bytes) -> Spoken | None:
        """What ``chunk`` completes; None if that is nothing. Raises TtsError where it is too much."""
        data = self._rest + chunk
        whole = len(data) & ~1
        self._rest = data[whole:]
        self._given += whole
        if self._given > 2 * self._rate * MAX_SENTENCE_S:
            raise TtsError(f"the sound of a sentence is longer than {MAX_SENTENCE_S} s")
        return Spoken(data[:whole], self._rate) if whole else None

    def require_some(self) -> None:
        """Raises TtsError where nothing came."""
        if not self._given:
            raise TtsError("the answer holds no sound")


def make_voice(url: str, model: str, voice: str | None, key: str | None) -> Voice:
    """The voice of the settings tts_url, tts_model, tts_voice and tts_key. Raises SettingsError."""
    if url == LOCAL:
        program = shutil.which(LOCAL_PROGRAM)
        if program is None:
            raise SettingsError(
                f"tts_url is {LOCAL!r} and {LOCAL_PROGRAM} is not installed; install it, or name a server"
            )
        return LocalVoice(program, voice or "en")
    if not _is_address(url):
        raise SettingsError(
            f"tts_url is {url[:120]!r}; it must be the address of a server, such as http://localhost:8880, or {LOCAL}"
        )
    return ServerVoice(TtsServer(TtsServer.address(url), model, voice or "alloy", key))


def _is_address(url: str) -> bool:
    """Whether requests can be sent there, as far as the text says."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_wav(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt "
