"""The most that a hostile offer of full length costs before it is refused or answered: work and memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest
from aiortc import sdp

from echo_rtc.errors import OfferError
from echo_rtc.rtc.description import AT_MOST, MAX_LINES, MAX_SDP_CHARACTERS, MAX_SECTION_LINES
from echo_rtc.rtc.negotiation import Negotiation
from echo_rtc.rtc.offer import plan_call, read_offer
from tests.rtc.test_offer import DATA, audio, offer, video
from tests.support.steps import counted

MAX_STEPS = 120_000
"""Lines of Python; a laptop runs about ten million a second. The usual offer takes about 2 000."""
MAX_MEMORY_BYTES = 10_000_000

VALUES = {
    "rtpmap": "{n} opus/48000/2",
    "fmtp": "111 " + "a=1;" * 60,
    "rtcp-fb": "* nack pli",
    "extmap": "{n} urn:ietf:params:rtp-hdrext:sdes:mid",
    "ssrc": "{n} cname:x",
    "ssrc-group": "FID 1 2",
    "fingerprint": "sha-256 " + ":".join(["AB"] * 32),
    "group": "BUNDLE 0 1",
    "candidate": "1 1 udp {n} 10.0.0.1 9 typ host generation 0",
    "ice-ufrag": "abcd",
    "ice-pwd": "0123456789abcdefghijklmn",
    "setup": "actpass",
    "mid": "0",
    "sctp-port": "5000",
    "sctpmap": "5000 webrtc-datachannel 1024",
    "max-message-size": "1",
    "rid": "1 send",
    "simulcast": "send 1;2;3",
    "msid": "a b",
    "msid-semantic": "WMS a",
    "crypto": "1 AES_CM_128_HMAC_SHA1_80 inline:x",
    "imageattr": "* send [x=1,y=1]",
    "rtcp": "9 IN IP4 0.0.0.0",
    "x-unknown": "x",
}
FLAGS = ("sendrecv", "inactive", "rtcp-mux", "bundle-only", "end-of-candidates", "ice-lite", "rtcp-rsize")


def lines_of(name: str) -> Callable[[int], str]:
    value = VALUES.get(name)
    return lambda n: f"a={name}\n" if value is None else f"a={name}:{value.replace('{n}', str(n))}\n"


def filled(base: str, line: Callable[[int], str]) -> str:
    """``base`` with as many of these lines at its end as an offer may hold."""
    added: list[str] = []
    room = MAX_SDP_CHARACTERS - len(base)
    while (room := room - len(line(len(added))) - 1) > 0:
        added.append(line(len(added)))
    return base + "".join(added).replace("\n", "\r\n")


@dataclass
class Work:
    """What was done while it was measured."""

    steps: int = 0
    peak_bytes: int = 0


@contextmanager
def measured() -> Iterator[Work]:
    work = Work()
    tracemalloc.start()
    try:
        with counted() as steps:
            yield work
        work.steps = steps[0]
    finally:
        work.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def cost(text: str) -> Work:
    """What an offer costs up to the point where aiortc has read what it is asked."""
    with measured() as work, suppress(OfferError):
        read = read_offer(text)
        sdp.SessionDescription.parse(Negotiation.of(read, plan_call(read)).sdp)
    return work


@pytest.mark.parametrize("name", sorted({*AT_MOST, *VALUES, *FLAGS}))
@pytest.mark.parametrize("where", ["session", "first", "last"])
@pytest.mark.parametrize("allowed", [False, True])
def test_the_worst_of_each_attribute_is_cheap(name: str, where: str, allowed: bool) -> None:
    """As many lines as fit, and as many as are read."""
    head, *sections = offer(audio(), video(), DATA).split("\r\nm=")
    parts = [head, *(f"m={section}" for section in sections)]
    at = {"session": 0, "first": 1, "last": 3}[where]
    before, after = "\r\n".join(parts[: at + 1]) + "\r\n", "\r\n" + "\r\n".join(parts[at + 1 :])
    if allowed:
        line = lines_of(name)
        text = before + "".join(map(line, range(AT_MOST.get(name, MAX_SECTION_LINES - 20) - 1))) + after
    else:
        text = filled(before, lines_of(name))[: MAX_SDP_CHARACTERS - len(after)] + after
    work = cost(text)
    assert work.steps < MAX_STEPS
    assert work.peak_bytes < MAX_MEMORY_BYTES


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(filled("v=0\r\n", lambda n: "m=audio 9 A 0\n"), id="sections"),
        pytest.param("v=0\r\n" + "\n" * (MAX_SDP_CHARACTERS - 5), id="empty lines"),
        pytest.param(filled("v=0\r\nm=audio 9 A 0\r\n", lambda n: "\n" * 99 + "a=x\n"), id="spread lines"),
        pytest.param("v=0\r\nm=audio 9 A " + "0 " * 32_000, id="formats"),
        pytest.param("v=0\r\na=group:BUNDLE" + " 0" * 32_000 + "\r\nm=audio 9 A 0\r\na=mid:0\r\n", id="group"),
        pytest.param(offer(audio()) + "a=candidate:" + " " * 60_000, id="candidate"),
        pytest.param(offer(audio()) + "a=fmtp:111 " + ";" * 60_000, id="parameters"),
        pytest.param(offer(audio()) + "a=" + "x" * 60_000, id="name"),
    ],
)
def test_other_shapes_are_cheap(text: str) -> None:
    work = cost(text)
    assert work.steps < MAX_STEPS
    assert work.peak_bytes < MAX_MEMORY_BYTES


def test_the_most_that_is_allowed_is_cheap() -> None:
    """Codecs times feedback times sections, as many as there may be."""
    formats = [*range(35, 64), *range(96, 128)]
    section = video().replace("96 102", " ".join(map(str, formats)))
    section = section[: section.index("a=rtpmap")]
    section += "".join(f"a=rtpmap:{number} VP8/90000\n" for number in formats)
    section += "a=rtcp-fb:* nack pli\n" * 200
    text = offer(audio(), *[section] * 7)
    assert MAX_LINES * 0.9 < text.count("\r\n") < MAX_LINES
    assert len(text) < MAX_SDP_CHARACTERS
    work = cost(text)
    assert 2_000 < work.steps < MAX_STEPS
    assert work.peak_bytes < MAX_MEMORY_BYTES
