"""Fragments of SDP are read for their candidates, and refused in words."""

from __future__ import annotations

import random

import pytest

from echo_rtc.errors import OfferError
from echo_rtc.rtc.description import MAX_CANDIDATE_LINES, MAX_LINES, MAX_SDP_CHARACTERS
from echo_rtc.rtc.fragment import read_fragment

CANDIDATE = "a=candidate:1 1 udp 2130706431 192.0.2.1 3478 typ host"
WHOLE = f"""a=ice-ufrag:EsAw
a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1
m=audio 9 UDP/TLS/RTP/SAVPF 0
a=mid:voice
{CANDIDATE}
a=candidate:2 1 UDP 1694498815 2001:db8::1 3478 typ srflx raddr 192.0.2.1 rport 3478
a=end-of-candidates
"""


def test_candidates_know_their_section() -> None:
    read = read_fragment(WHOLE)
    assert read.ufrag == "EsAw"
    found = [(c.mid, str(c.candidate.address), c.candidate.port, c.candidate.kind) for c in read.candidates]
    assert found == [
        ("voice", "192.0.2.1", 3478, "host"),
        ("voice", "2001:db8::1", 3478, "srflx"),
    ]
    bare = read_fragment(f"{CANDIDATE}\nm=audio 9 X 0\nm=video 9 X 0\n{CANDIDATE}")
    assert bare.ufrag is None
    assert [(c.mid, c.index) for c in bare.candidates] == [(None, 0), (None, 1)]


@pytest.mark.parametrize(
    ("old", "new"),
    [("udp", "tcp"), ("192.0.2.1", "0a1b-2c3d.local"), ("192.0.2.1", "evil.example"), ("1 1 u", "1 2 u")],
)
def test_candidates_of_no_use_are_counted(old: str, new: str) -> None:
    read = read_fragment(CANDIDATE.replace(old, new))
    assert read.candidates == ()
    assert read.unusable == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("hello", "'hello'"),
        ("a=candidate:1 1 udp", "cannot be read"),
        ("a=candidate:1 x udp 1 192.0.2.1 9 typ host", "cannot be read"),
        (f"{WHOLE}a=ice-ufrag:other", "several"),
        ("x" * (MAX_SDP_CHARACTERS + 1), "characters"),
        ("a=x\n" * (MAX_LINES + 1), "lines"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str) -> None:
    with pytest.raises(OfferError, match=words):
        read_fragment(text)


def test_candidates_beyond_the_limit_are_left_out() -> None:
    read = read_fragment(f"{CANDIDATE}\n" * (MAX_CANDIDATE_LINES + 9))
    assert (len(read.candidates), read.unusable) == (MAX_CANDIDATE_LINES, 9)


def test_mutated_fragments_are_refused_in_words_or_read() -> None:
    chance = random.Random(5)
    for _ in range(2000):
        characters = list(WHOLE)
        for _ in range(chance.randint(1, 10)):
            at = chance.randrange(len(characters))
            characters[at : at + chance.randint(0, 5)] = chance.choice(["", "\n", "m=", "a=", "9" * 30, "\x00", "ä"])
        try:
            read_fragment("".join(characters))
        except OfferError as error:
            assert str(error)  # noqa: PT017
