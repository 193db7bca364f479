"""A client of WHIP (RFC 9725) over HTTP: posts offers, follows redirects within bounds, ends sessions.

The token is sent to the origin of the endpoint only. The size of an answer is checked before it is interpreted. Knows
no WebRTC: an offer and an answer are texts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from echo_rtc.errors import OutputRefusedError
from echo_rtc.outputs.hosts import CheckedResolver, HostRules, shown

HTTP_TIMEOUT_S = 10.0
"""Of one request, with its redirects and the lookups of the servers that it names."""
DELETE_TIMEOUT_S = 2.0
MAX_REDIRECTS = 3
MAX_ANSWER_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 300
MAX_ICE_SERVERS = 4
SDP = "application/sdp"
RETRIED = frozenset({404, 408, 409, 425, 429})
"""Statuses below 500 that may be others a moment later; 404 and 409: of a place that another session still has."""
_TOKEN = re.compile(r"[!-~]{1,4096}")
_LINK = re.compile(r"<([^<>]{1,1024})>([^<]*)")
_PARAMETER = re.compile(r';\s*([A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]+))')
_ICE_URL = re.compile(
    r"(?P<kind>stun|turn):(?P<host>[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?(?P<rest>\?transport=(udp|tcp))?"
)


class WhipError(Exception):
    """A request failed; the message says how, without anything secret. ``lasting``: trying again is of no use.
    ``retry_after_s``: when the other side wants to be asked again."""

    def __init__(self, message: str, lasting: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.lasting = lasting
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a stream is pushed to, and the token for it."""

    url: URL
    bearer: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, endpoint: str, bearer: str | None, rules: HostRules) -> Endpoint:
        """Raises OutputRefusedError."""
        if bearer is not None and not _TOKEN.fullmatch(bearer):
            raise OutputRefusedError(
                "bearer is no token of 1 to 4096 visible ASCII characters; send one, or leave it out"
            )
        return cls(rules.checked(endpoint), bearer)

    def headers(self, url: URL) -> dict[str, str]:
        """The token, for a request to the origin that it is meant for."""
        same = url.origin() == self.url.origin()
        return {"Authorization": f"Bearer {self.bearer}"} if self.bearer is not None and same else {}


@dataclass(frozen=True, slots=True)
class LinkedServer:
    """A STUN or TURN server that an endpoint names; its host is an address."""

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class WhipSession:
    """What an endpoint answered: SDP, the session's own URL (None: it gave none), and servers for ICE."""

    answer: str
    url: URL | None
    ice_servers: tuple[LinkedServer, ...]


class WhipClient:
    """Requests to one endpoint at a time. An async context manager is not needed: each request has its own session."""

    def __init__(self, rules: HostRules) -> None:
        self._rules = rules

    async def ice_servers(self, endpoint: Endpoint) -> tuple[LinkedServer, ...]:
        """The servers that an endpoint names before an offer (OPTIONS, as many of them do); none where it does not."""
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_S), self._http(HTTP_TIMEOUT_S) as http:
                headers = endpoint.headers(endpoint.url)
                async with http.options(endpoint.url, headers=headers, allow_redirects=False) as response:
                    return await self._linked(response) if response.status in (200, 204) else ()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return ()  # the offer will say what is wrong

    async def open(self, endpoint: Endpoint, offer: str) -> WhipSession:
        """Posts an offer. Raises WhipError."""
        url = endpoint.url
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_S), self._http(HTTP_TIMEOUT_S) as http:
                for _ in range(MAX_REDIRECTS + 1):
                    headers = {"Content-Type": SDP, "Accept": SDP, **endpoint.headers(url)}
                    async with http.post(url, data=offer.encode(), headers=headers, allow_redirects=False) as response:
                        if response.status not in (307, 308):
                            return await self._session(response, url)
                        url = self._target(url, response, "redirect")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WhipError(f"{shown(url)} cannot be reached ({_words(error)})") from error
        except TimeoutError:
            raise WhipError(f"{shown(url)} did not answer within {HTTP_TIMEOUT_S:g} s") from None
        raise WhipError(f"{shown(endpoint.url)} redirects more than {MAX_REDIRECTS} times", lasting=True)

    async def close(self, endpoint: Endpoint, session: WhipSession) -> None:
        """Ends a session. What goes wrong with it is of no consequence: the other side notices by itself."""
        if session.url is None:
            return
        try:
            async with asyncio.timeout(DELETE_TIMEOUT_S), self._http(DELETE_TIMEOUT_S) as http:
                headers = endpoint.headers(session.url)
                async with http.delete(session.url, headers=headers, allow_redirects=False):
                    pass
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return

    def _http(self, limit_s: float) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._rules), use_dns_cache=False, limit=1)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=limit_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "echo_rtc", "Accept-Encoding": "identity"},
        )

    async def _session(self, response: aiohttp.ClientResponse, url: URL) -> WhipSession:
        """Of an answer to an offer. Raises WhipError."""
        status = response.status
        if status != 201:
            lasting = status < 500 and status not in RETRIED
            raise WhipError(f"{shown(url)} answers {status}", lasting, _retry_after_s(response.headers))
        if response.content_type != SDP or "Content-Encoding" in response.headers:
            raise WhipError(f"{shown(url)} answers with something else than {SDP}", lasting=True)
        body = await _read(response)
        session_url = self._target(url, response, "session") if "Location" in response.headers else None
        try:
            answer = body.decode("utf-8")
        except UnicodeDecodeError:
            raise WhipError(f"{shown(url)} answers with what is no text", lasting=True) from None
        return WhipSession(answer, session_url, await self._linked(response))

    def _target(self, url: URL, response: aiohttp.ClientResponse, what: str) -> URL:
        """Where a Location leads, relative to ``url`` or not. Raises WhipError."""
        try:
            joined = url.join(URL(response.headers.get("Location", "")))
            return self._rules.checked(str(joined.with_fragment(None)))
        except (OutputRefusedError, ValueError) as error:
            raise WhipError(f"the {what} of {shown(url)} cannot be followed: {error}", lasting=True) from None

    async def _linked(self, response: aiohttp.ClientResponse) -> tuple[LinkedServer, ...]:
        """The ICE servers of an answer, by address: of the first MAX_ICE_SERVERS, those whose names stand for one that
        may be sent to. Each costs a lookup, so that their number is bounded whether or not they resolve."""
        servers: list[LinkedServer] = []
        for url, username, credential in linked_servers(response.headers.getall("Link", []))[:MAX_ICE_SERVERS]:
            match = _ICE_URL.fullmatch(url)
            if match is None:
                continue
            port = int(match["port"] or 3478)
            # A name that the endpoint gives is none that the operator named: only public addresses, unless it is a
            # host of the rules itself.
            try:
                found = await CheckedResolver(self._rules).resolve(match["host"], port)
            except (OSError, ValueError):
                continue
            address = next((each["host"] for each in found if ":" not in each["host"]), None)
            if address is not None:
                place = f"{match['kind']}:{address}:{port}{match['rest'] or ''}"
                servers.append(LinkedServer(place, username, credential))
        return tuple(servers)


def linked_servers(values: Iterable[str]) -> list[tuple[str, str | None, str | None]]:
    """(url, username, credential) of each ``Link: <...>; rel="ice-server"`` (RFC 9725, 4.6)."""
    found: list[tuple[str, str | None, str | None]] = []
    for value in values:
        for url, rest in _LINK.findall(value[:8_192]):
            parameters = {name.lower(): _unquoted(quoted) or plain for name, quoted, plain in _PARAMETER.findall(rest)}
            if "ice-server" in parameters.get("rel", "").split():
                found.append((url, parameters.get("username"), parameters.get("credential")))
    return found


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body. Raises WhipError where it is too large."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise WhipError(f"{shown(response.url)} answers with more than {MAX_ANSWER_BYTES} bytes", lasting=True)
    return bytes(body)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(min(int(text), MAX_RETRY_AFTER_S)) if text.isascii() and text.isdigit() and len(text) < 7 else 0.0


def _words(error: Exception) -> str:
    """An error of the network in a word or two, never with a URL in it."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    return type(error).__name__
