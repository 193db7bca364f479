"""Reads a session description (SDP, RFC 8866) line by line, within bounds that hold before anything interprets it.

aiortc's own parser takes time and memory that grow with the product of what it is given (formats times feedback lines),
on the event loop. So it never sees what came: lines are counted here, per section, per attribute and in all; attributes
that nothing reads are left out; and ``offer`` writes a short description from what is left. Text in, text out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from echo_rtc.errors import OfferError

MAX_SDP_CHARACTERS = 64 * 1024
MAX_LINES = 2_000
"""Lines of a description in all. Chromium's with 14 network interfaces and three sections has about 250."""
MAX_SECTIONS = 8
"""Media sections; a call needs three (audio, video, data)."""
MAX_SECTION_LINES = 1_000
MAX_FORMATS = 64
"""Codecs and other formats of one section; Chromium offers about 45."""
MAX_VALUE_CHARACTERS = 2_048
"""The value of an attribute that is read. The longest in use are the parameters of H.264, about 300."""

AT_MOST: Mapping[str, int] = {
    "rtpmap": MAX_FORMATS,
    "fmtp": MAX_FORMATS,
    "rtcp-fb": 8 * MAX_FORMATS,
    "extmap": 32,
    "ssrc": 128,
    "fingerprint": 8,
    "group": 8,
    **dict.fromkeys(
        (
            *("sendrecv", "sendonly", "recvonly", "inactive"),
            *("ice-ufrag", "ice-pwd", "ice-lite", "setup", "mid", "rtcp-mux", "bundle-only", "end-of-candidates"),
            *("sctp-port", "sctpmap", "max-message-size"),
        ),
        2,
    ),
}
"""The attributes that are read, and how many lines of each a section, or the session's part, may have."""
MAX_CANDIDATE_LINES = 256
"""Candidates that are looked at, over all sections; further ones are left out, because they end no call."""

UNREADABLE = "the session description cannot be read; send the SDP of an RTCPeerConnection"
_MEDIA = re.compile(r"m=([^ ]{1,32}) ([0-9]{1,5}) ([A-Za-z0-9/]{1,64}) ([^ ].*)")
_TOKEN = re.compile(r"[!-~]{1,64}")


@dataclass(frozen=True, slots=True)
class Part:
    """The session's part of a description, or one section without its ``m=`` line: the values of each attribute that
    is read, in order; "" for one without a value."""

    values: Mapping[str, tuple[str, ...]]

    def all(self, name: str) -> tuple[str, ...]:
        """Every value of an attribute."""
        return self.values.get(name, ())

    def last(self, name: str) -> str | None:
        """The value of an attribute that has one; None where it is missing."""
        found = self.all(name)
        return found[-1] if found else None

    def has(self, name: str) -> bool:
        return name in self.values


@dataclass(frozen=True, slots=True)
class MediaPart:
    """One media section: its ``m=`` line in pieces, and its attributes."""

    kind: str
    port: int
    profile: str
    formats: tuple[str, ...]
    attributes: Part


@dataclass(frozen=True, slots=True)
class Description:
    """A description within its bounds. ``origin`` is its ``o=`` line's value, "" where it has none."""

    origin: str
    session: Part
    media: tuple[MediaPart, ...]


def read_description(text: str) -> Description:
    """Reads a description. Raises OfferError where it is over a bound or is no SDP."""
    if len(text) > MAX_SDP_CHARACTERS:
        raise OfferError(f"the offer has {len(text)} characters; at most {MAX_SDP_CHARACTERS} are read")
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise OfferError(f"the offer has {len(lines)} lines; at most {MAX_LINES} are read")
    head, *sections = _split(lines)
    if len(sections) > MAX_SECTIONS:
        raise OfferError(f"the offer has more than {MAX_SECTIONS} media sections; audio, video and data will do")
    for line in head:
        if line.startswith("v=") and line.strip() != "v=0":
            raise OfferError(UNREADABLE)
    origin = next((line[2:].strip() for line in head if line.startswith("o=")), "")
    left = iter(range(MAX_CANDIDATE_LINES))
    return Description(origin[:256], _part(head, left), tuple(_media(section, left) for section in sections))


def _split(lines: list[str]) -> list[list[str]]:
    """The session's lines, then those of each section."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("m="):
            parts.append([])
        parts[-1].append(line)
    return parts


def _media(lines: list[str], left: Iterator[int]) -> MediaPart:
    match = _MEDIA.fullmatch(lines[0].rstrip())
    if match is None:
        raise OfferError(UNREADABLE)
    formats = tuple(match[4].split())
    if len(formats) > MAX_FORMATS:
        raise OfferError(f"a section of the offer names {len(formats)} formats; at most {MAX_FORMATS} are read")
    if not all(map(_TOKEN.fullmatch, formats)):
        raise OfferError(UNREADABLE)
    if len(set(formats)) != len(formats):
        raise OfferError("a section of the offer names the same format twice")
    return MediaPart(match[1], int(match[2]), match[3], formats, _part(lines[1:], left))


def _part(lines: list[str], left: Iterator[int]) -> Part:
    if len(lines) > MAX_SECTION_LINES:
        raise OfferError(f"a section of the offer has {len(lines)} lines; at most {MAX_SECTION_LINES} are read")
    values: dict[str, list[str]] = {}
    for line in lines:
        if not line.startswith("a="):
            continue
        name, _, value = line[2:].partition(":")
        name = name.strip()
        if name == "candidate":
            if next(left, None) is not None:
                values.setdefault(name, []).append(value[:MAX_VALUE_CHARACTERS])
            continue
        if name not in AT_MOST:
            continue
        value = value.strip()
        if len(value) > MAX_VALUE_CHARACTERS:
            raise OfferError(f"an a={name} line of the offer has {len(value)} characters; at most 2048 are read")
        found = values.setdefault(name, [])
        if len(found) >= AT_MOST[name]:
            raise OfferError(f"a section of the offer has more than {AT_MOST[name]} a={name} lines")
        found.append(value)
    return Part({name: tuple(found) for name, found in values.items()})
