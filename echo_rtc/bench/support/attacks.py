"""Hostile HTTP requests without end, from a seed: broken session descriptions, JSON, paths, methods, headers.

Session descriptions are real offers that were cut, mixed, swollen and spoilt. Routes come from the application's own
table, so that a new one is attacked as soon as it is there. Text and bytes only: sends nothing and knows no server.
Addresses in candidates are those for documentation and of this machine, so that no other machine is ever contacted.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from echo_rtc.errors import InputError

ELSEWHERE = "192.0.2.7"
"""An address for documentation, which no machine has (RFC 5737)."""
KNOWN_KEPT = 8
"""Sessions and streams that are remembered, to be attacked while they live."""
_HARMLESS = tuple(ipaddress.ip_network(text) for text in ("127.0.0.0/8", "192.0.2.0/24", "::1/128"))

_EXTREMES = ("", "0", "-1", "9", "65536", "4294967296", "99999999999999999999", "1e309", "NaN", "0x7f", " ", "\t")
_JUNK = (
    "\x00",
    "\u202e",
    "\ud7ff",
    "%00",
    "../",
    "\x7f\x1b[2J",
    "'\"><script>",
    "${jndi:x}",
    "A" * 3000,
    "é" * 40,
    ";",
    ":",
)
_WORDS = ("default", "live", "studio", "0", "", "a b", "..", "null", "é", "x" * 300, "%2f", "%00", "con", "..%5c", "~")
_METHODS = (
    "GET",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "HEAD",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "BREW",
    "get",
    "X" * 90,
)


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the application's table of routes."""

    method: str
    path: str


@dataclass(frozen=True, slots=True)
class Attack:
    """One request as it goes to the socket. ``whole``: it is valid HTTP, so an answer must come."""

    kind: str
    raw: bytes
    whole: bool = True


@dataclass
class Known:
    """What the server has given out and may still live: ids of streams, paths of sessions with their tags."""

    streams: list[str] = field(default_factory=list)
    sessions: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RealOffer:
    """An offer that some program has made: of a ``call``, of a publisher (``whip``) or of a viewer (``whep``)."""

    kind: str
    sdp: str


def read_offers(folder: Path) -> list[RealOffer]:
    """All offers (``PROGRAM-KIND.sdp``) of a folder, with the line ends of SDP. Raises InputError."""
    paths = sorted(folder.glob("*-*.sdp"))
    if not paths:
        raise InputError(f"the folder {folder} holds no offers (.sdp); name the one that comes with the tests")
    return [
        RealOffer(path.stem.rpartition("-")[2], "\r\n".join(path.read_text(encoding="utf-8").splitlines()) + "\r\n")
        for path in paths
    ]


class Attacker:
    """Makes requests. ``token``: what opens the server, sent with most of them; None where it asks for none."""

    def __init__(
        self, offers: Sequence[RealOffer], routes: Sequence[Route], seed: int, token: str | None = None
    ) -> None:
        self._real = list(offers)
        self._offers = [harmless(offer.sdp) for offer in offers]
        self._routes = list(routes)
        self._chance = random.Random(seed)
        self._token = token
        self.known = Known()

    def next(self) -> Attack:
        """The next request."""
        kinds: tuple[tuple[int, Callable[[], Attack]], ...] = (
            (40, self._offer),
            (12, self._json),
            (12, self._patch),
            (12, self._path),
            (8, self._method),
            (10, self._headers),
            (6, self._raw),
        )
        (make,) = self._chance.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        return make()

    # What is asked for

    def _offer(self) -> Attack:
        """A spoilt offer, where offers are taken."""
        path = self._fill(self._chance.choice([route for route in self._routes if route.method == "POST"]))
        fitting = [
            offer.sdp for offer in self._real if path.startswith({"call": "/offer"}.get(offer.kind, f"/{offer.kind}"))
        ]
        if self._chance.random() < 0.3 or not fitting:
            sdp = spoilt(self._chance, self._offers, self._offers)
        else:
            sdp = spoilt(self._chance, fitting, self._offers)
        if path.startswith("/offer"):
            body: dict[str, object] = {"sdp": sdp, "type": "offer"}
            if self._chance.random() < 0.3:
                body["name"] = self._word()
            return self._request("offer", "POST", path, json.dumps(body).encode(), "application/json")
        return self._request("offer", "POST", path, sdp.encode("utf-8", "replace"), "application/sdp")

    def _json(self) -> Attack:
        """A JSON body that is none, or not what it should be."""
        value: object = {"sdp": self._chance.choice(self._offers), "type": "offer", "avatar": "default"}
        assert isinstance(value, dict)
        for _ in range(self._chance.randint(1, 3)):
            key = self._chance.choice(["sdp", "type", "avatar", "name", "x", ""])
            value[key] = self._chance.choice([None, 0, 1e308, [], {}, "", [[[]]], True, self._word(), {"sdp": {}}])
        text = json.dumps(value)
        match self._chance.randrange(5):
            case 0:
                text = text[: self._chance.randrange(len(text))]
            case 1:
                text = "[" * 20_000 + "]" * 20_000
            case 2:
                text = json.dumps([value])
            case 3:
                text = text.replace('"type"', '"type": 1, "type"')
        return self._request("json", "POST", "/offer", text.encode("utf-8", "replace"), "application/json")

    def _patch(self) -> Attack:
        """ICE candidates for a session: one's own, another's, or none."""
        sessions = self.known.sessions
        path, tag = self._chance.choice(sessions) if sessions else ("/whip/x/y", '"t"')
        if self._chance.random() < 0.2:
            path = path.replace("/whip/", "/whep/") if "/whip/" in path else path.replace("/whep/", "/whip/")
        lines = [
            line for line in self._chance.choice(self._offers).splitlines() if not line.startswith(("v=", "o=", "s="))
        ]
        self._chance.shuffle(lines)
        body = harmless("\r\n".join(lines[: self._chance.randrange(1, len(lines))]))
        if self._chance.random() < 0.3:
            body += f"\r\na=candidate:1 1 udp 1 {ELSEWHERE} 9 typ host" * self._chance.choice([1, 70, 1_000])
        match = self._chance.choice([tag, "*", '"other"', 'W/"x"', "", ",,,", '"' * 50])
        headers = {"If-Match": match} if self._chance.random() < 0.8 else {}
        return self._request(
            "patch", "PATCH", path, body.encode("utf-8", "replace"), "application/trickle-ice-sdpfrag", headers
        )

    def _path(self) -> Attack:
        """A path that leads nowhere, or should not."""
        chance = self._chance
        tails = ("../" * chance.randrange(9), "%2e%2e%2f" * chance.randrange(9), "..%252f", "\\..\\", "//", "/.", "%00")
        path = (
            self._fill(chance.choice(self._routes))
            + chance.choice(tails)
            + chance.choice(("etc/passwd", "server.py", ""))
        )
        if chance.random() < 0.3:
            path = "/" + "".join(
                chance.choice("abc/.%25;:@&=+$,?#[]~^|{}") for _ in range(chance.choice([5, 60, 7_000]))
            )
        if chance.random() < 0.3:
            path += "?" + "&".join(
                f"{quote(self._word())}={quote(self._word())}" for _ in range(chance.randrange(1, 30))
            )
        return self._request("path", chance.choice(("GET", "HEAD", "DELETE", "POST")), path or "/")

    def _method(self) -> Attack:
        """A method that a route does not have. What ends live streams is left to the others."""
        return self._request("method", self._chance.choice(_METHODS), self._fill(self._chance.choice(self._routes)))

    def _headers(self) -> Attack:
        """An ordinary request with headers that are not."""
        chance = self._chance
        route = chance.choice(self._routes)
        names = (
            "Authorization", "X-Forwarded-For", "Forwarded", "Origin", "Range", "If-None-Match", "If-Match", "Cookie",
            "Accept-Encoding", "Content-Encoding", "Transfer-Encoding", "Content-Length", "Expect", "Upgrade", "Host",
            "Access-Control-Request-Method", "Content-Type", "X-" + "y" * 200,
        )  # fmt: skip
        values = (
            "Bearer ", "Bearer " + "A" * 5_000, "Basic Og==", "bearer a.b.c", "null", "::1, 1.2.3.4, unknown", "for=_x",
            "bytes=0-0,-1", "gzip, deflate, br, zstd, identity;q=0", "chunked, chunked", "-5", "1e3", "100-continue",
            "websocket", "application/json; charset=utf-7", "application/sdp;;;", "multipart/form-data; boundary=",
            "*", "x" * 9_000, "\x7f", "é",
        )  # fmt: skip
        headers = {chance.choice(names): chance.choice(values) for _ in range(chance.randint(1, 5))}
        if chance.random() < 0.1:
            headers |= {f"X-{number}": "v" for number in range(150)}
        body = chance.randbytes(chance.randrange(60)) if route.method in ("POST", "PATCH") else b""
        attack = self._request("headers", route.method, self._fill(route), body, None, headers)
        return Attack(attack.kind, attack.raw, whole=False)

    def _raw(self) -> Attack:
        """Bytes that are hardly HTTP."""
        chance = self._chance
        match chance.randrange(5):
            case 0:
                raw = chance.randbytes(chance.randrange(1, 400))
            case 1:
                raw = self._offer().raw
                raw = raw[: chance.randrange(len(raw))]
            case 2:
                raw = b"POST /offer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                raw += b"Transfer-Encoding: chunked\r\n\r\n"
                raw += chance.choice(
                    (b"FFFFFFFFFFFFFFFF\r\nx", b"-1\r\n", b"5\r\nab", b"0;" + b"x" * 9_000 + b"\r\n\r\n")
                )
            case 3:
                raw = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(200)  # TLS where there is none
            case _:
                raw = chance.choice(
                    (b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 5_000)
                )
        return Attack("raw", raw, whole=False)

    # Pieces

    def _word(self) -> str:
        return self._chance.choice(_WORDS + _JUNK)

    def _fill(self, route: Route) -> str:
        """A route's path with something in the place of its variables, live or not."""
        known = self.known
        if "{session}" in route.path and known.sessions and self._chance.random() < 0.5:
            return self._chance.choice(known.sessions)[0]

        def value(match: re.Match[str]) -> str:
            word = f"live{self._chance.randrange(20)}" if self._chance.random() < 0.6 else self._word()
            if known.streams and self._chance.random() < 0.4:
                word = self._chance.choice(known.streams)
            elif known.sessions and self._chance.random() < 0.4:
                word = self._chance.choice(known.sessions)[0].split("/")[2]
            if match[1].startswith("path"):
                word = self._chance.choice(["echo-rtc.js", "app.js", "style.css", word])
            return quote(word, safe="%~")

        return re.sub(r"\{([^}]+)\}", value, route.path)

    def _request(
        self,
        kind: str,
        method: str,
        path: str,
        body: bytes = b"",
        content_type: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Attack:
        given = {"Host": "localhost", "Connection": "close"}
        if self._token is not None and self._chance.random() < 0.8:
            given["Authorization"] = f"Bearer {self._token}"
        if content_type is not None:
            spoil = self._chance.random() < 0.05
            given["Content-Type"] = self._chance.choice(("text/plain", "image/png", "")) if spoil else content_type
        if body or method in ("POST", "PATCH", "PUT"):
            given["Content-Length"] = str(len(body))
        given |= headers or {}
        head = f"{method} {quote(path, safe=SAFE)} HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in given.items()
        )
        return Attack(kind, head.encode("utf-8", "replace") + b"\r\n" + body)


SAFE = "/%?&=#~.:;@+$,[]|{}^!*'()"
"""What is left as it is in a request's path; spaces and control characters would end it."""


def spoilt(chance: random.Random, offers: Sequence[str], parts: Sequence[str]) -> str:
    """A real offer with one to four things wrong, some of them out of ``parts``; now and then none."""
    text: str = chance.choice(offers)
    for _ in range(chance.choice((0, 1, 1, 2, 2, 3, 4))):
        text = _spoil(chance, text, parts)
    return harmless(text)


def _spoil(chance: random.Random, text: str, offers: Sequence[str]) -> str:
    lines = text.split("\r\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(14):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[other])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            numbers = list(re.finditer(r"\d+", lines[at]))
            if numbers:
                found = chance.choice(numbers)
                lines[at] = lines[at][: found.start()] + chance.choice(_EXTREMES) + lines[at][found.end() :]
        case 4:
            cut = chance.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:cut] + chance.choice(_JUNK) + lines[at][cut:]
        case 5:
            return text[: chance.randrange(len(text) + 1)]
        case 6:  # sections by the hundred
            section: list[str] = re.findall(r"m=.*?(?=\r\nm=|\Z)", text, re.DOTALL)
            if section:
                return text + (chance.choice(section).strip() + "\r\n") * chance.choice((2, 9, 300))
        case 7:  # candidates by the hundred
            return text + f"a=candidate:1 1 udp 2113937151 {ELSEWHERE} 50000 typ host\r\n" * chance.choice((5, 70, 900))
        case 8:
            sections = re.split(r"(?=^m=)", chance.choice(offers), flags=re.MULTILINE)
            return text + "".join(sections[1:])
        case 9:
            words = lines[at].split(" ")
            words[chance.randrange(len(words))] = chance.choice(_EXTREMES)
            lines[at] = " ".join(words)
        case 10:
            old, new = chance.choice(
                [
                    ("setup:actpass", "setup:passive"), ("setup:actpass", "setup:holdconn"), ("sha-256", "sha-1"),
                    ("sha-256", "md5"), ("UDP/TLS/RTP/SAVPF", "RTP/AVP"), ("opus/48000/2", "opus/8000/9"),
                    ("a=rtcp-mux", "a=x-no-mux"), ("BUNDLE 0 1", "BUNDLE 1 0"), ("BUNDLE", "LS"),
                    ("VP8/90000", "VP8/0"), ("webrtc-datachannel", "99999"), ("a=mid:1", "a=mid:0"),
                    ("typ host", "typ relay raddr x rport y"), ("sendrecv", "inactive"), ("recvonly", "sendonly"),
                    ("42e01f", "ffffff"), ("apt=", "apt=-"),
                ]
            )  # fmt: skip
            return text.replace(str(old), str(new))
        case 11:
            return text.replace("\r\n", chance.choice(("\n", "\r", "\r\n\r\n", "\u2028", " \r\n")))
        case 12:
            lines[at] = f"a=ssrc:{chance.getrandbits(34)} cname:{'x' * chance.choice((1, 300))}\r\n" * chance.choice(
                (1, 200)
            )
        case _:
            lines.insert(
                at,
                chance.choice(("a=ice-lite", "a=ice-options:renomination", "a=crypto:1 AES inline:x", "b=AS:0", "a=")),
            )
    return "\r\n".join(lines)


def harmless(sdp: str) -> str:
    """The text with every real address in a candidate replaced by one that is not in use."""

    def checked(match: re.Match[str]) -> str:
        return match[0] if _is_harmless(match[2]) else f"{match[1]}{ELSEWHERE}"

    return re.sub(r"(candidate:\S*[ \t]+\S*[ \t]+\S*[ \t]+\S*[ \t]+)(\S+)", checked, sdp)


def _is_harmless(text: str) -> bool:
    if text.endswith(".local"):
        return True
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return not re.search(r"[0-9a-zA-Z]\.[0-9a-zA-Z]", text)  # no name that could be looked up
    return any(address.version == network.version and address in network for network in _HARMLESS)
