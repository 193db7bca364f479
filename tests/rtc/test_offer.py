"""Offers are judged as text, before anything is built for them."""

from __future__ import annotations

import random

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender

from echo_rtc.errors import OfferError, UnsupportedMediaError
from echo_rtc.rtc.offer import (
    MAX_CANDIDATES,
    MAX_SDP_CHARACTERS,
    MAX_SECTIONS,
    plan_call,
    plan_publishing,
    plan_viewing,
    read_offer,
    with_rejected,
    with_rtcp_mux_only,
    without_unusable,
)

AUDIO = """m=audio 9 UDP/TLS/RTP/SAVPF 111 0
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdefghijklmn
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:{mid}
a={direction}
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=rtpmap:0 PCMU/8000
"""
VIDEO = """m=video 9 UDP/TLS/RTP/SAVPF 96 102
c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdefghijklmn
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:{mid}
a={direction}
a=rtcp-mux
a=rtpmap:96 VP8/90000
a=rtpmap:102 H264/90000
a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
"""
DATA = """m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdefghijklmn
a=fingerprint:sha-256 {fingerprint}
a=setup:actpass
a=mid:{mid}
a=sctp-port:5000
"""
FINGERPRINT = ":".join(["AB"] * 32)


def offer(*sections: str) -> str:
    """An offer of these sections, bundled, with mids 0, 1, 2 ..."""
    mids = " ".join(str(i) for i in range(len(sections)))
    head = f"v=0\no=- 1 2 IN IP4 127.0.0.1\ns=-\nt=0 0\na=group:BUNDLE {mids}\n"
    body = "".join(
        section.replace("{mid}", str(i)).replace("{fingerprint}", FINGERPRINT) for i, section in enumerate(sections)
    )
    return (head + body).replace("\n", "\r\n")


def audio(direction: str = "sendrecv") -> str:
    return AUDIO.replace("{direction}", direction)


def video(direction: str = "recvonly") -> str:
    return VIDEO.replace("{direction}", direction)


def test_a_call_is_planned() -> None:
    plan = plan_call(read_offer(offer(audio(), video(), DATA)))
    assert (plan.microphone, plan.sound, plan.picture) == (0, 0, 1)


def test_sections_may_come_in_any_order_and_apart() -> None:
    plan = plan_call(read_offer(offer(DATA, video(), audio("recvonly"), audio("sendonly"))))
    assert (plan.microphone, plan.sound, plan.picture) == (3, 2, 1)


def test_a_call_may_want_no_sound_back() -> None:
    assert plan_call(read_offer(offer(audio("sendonly"), video()))).sound is None


def test_a_publisher_needs_a_microphone_only() -> None:
    plan = plan_publishing(read_offer(offer(video("sendonly"), audio("sendonly"))))
    assert (plan.microphone, plan.picture, plan.sound) == (1, None, None)
    with pytest.raises(UnsupportedMediaError, match="sends no audio"):
        plan_publishing(read_offer(offer(audio("recvonly"), video())))


def test_a_viewer_may_do_without_one_of_the_two() -> None:
    for sections, picture, sound in (
        ((audio("recvonly"), video()), 1, 0),
        ((video(),), 0, None),
        ((audio("recvonly"), DATA), None, 0),
        ((audio("recvonly"), video("sendonly")), None, 0),
    ):
        plan = plan_viewing(read_offer(offer(*sections)))
        assert (plan.microphone, plan.picture, plan.sound) == (None, picture, sound)
    neither = video().replace("VP8", "AV1").replace("H264", "H265")
    for text in (offer(audio("sendonly")), offer(audio("recvonly"), neither)):
        with pytest.raises(UnsupportedMediaError):
            plan_viewing(read_offer(text))


def test_candidates_belong_to_the_transport_of_their_section() -> None:
    bundled = read_offer(offer(audio(), video(), DATA))
    assert bundled.ufrag == "abcd"
    assert [bundled.transport_of(mid, 9) for mid in ("0", "1", "2", "3")] == ["0", "0", "0", None]
    assert [bundled.transport_of(None, index) for index in (0, 2, 3)] == ["0", "0", None]
    apart = read_offer(offer(audio(), video()).replace("a=group:BUNDLE 0 1\r\n", ""))
    assert [apart.transport_of(mid, 9) for mid in ("0", "1")] == ["0", "1"]


def test_answers_say_that_rtcp_has_no_port_of_its_own() -> None:
    answer = with_rtcp_mux_only(offer(audio(), video(), DATA))
    assert answer.count("a=rtcp-mux\r\na=rtcp-mux-only\r\n") == 2
    assert "\r\r" not in answer


def test_what_nobody_needs_and_nobody_knows_is_refused() -> None:
    strange = video("sendonly").replace("VP8", "AV1").replace("H264", "H265")
    text = offer(strange, audio("sendonly"), strange, DATA)
    whole = read_offer(text)
    reduced, plan = without_unusable(whole, plan_publishing(whole))
    assert plan.microphone == 0
    assert [section.kind for section in reduced.sections] == ["audio", "application"]
    assert "a=group:BUNDLE 1 3\r\n" in reduced.sdp
    assert "AV1" not in reduced.sdp
    assert read_offer(reduced.sdp).sections == reduced.sections
    assert {reduced.transport_of(mid, 9) for mid in "0123"} == {"1"}
    answer = with_rejected(reduced.sdp, reduced.rejected)
    lines = [line for line in answer.splitlines() if line.startswith(("m=", "a=mid:"))]
    assert [line.split()[:2] for line in lines[::2]] == [
        ["m=video", "0"],
        ["m=audio", "9"],
        ["m=video", "0"],
        ["m=application", "9"],
    ]
    assert lines[1::2] == ["a=mid:0", "a=mid:1", "a=mid:2", "a=mid:3"]
    # What could be sent is only not used.
    usual = read_offer(offer(audio("sendonly"), video("sendonly")))
    assert without_unusable(usual, plan_publishing(usual))[0] is usual


async def test_aiortcs_own_offer_is_planned() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio", "sendrecv")
    connection.addTransceiver("video", "recvonly")
    connection.createDataChannel("events")
    read = read_offer((await connection.createOffer()).sdp)
    await connection.close()
    assert [section.kind for section in read.sections] == ["audio", "video", "application"]
    plan_call(read)
    assert {codec.name.lower() for codec in RTCRtpSender.getCapabilities("video").codecs} >= set(
        read.sections[1].codecs
    ) - {"rtx"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (offer(video(), DATA), "sends no audio"),
        (offer(audio("recvonly"), video()), "sends no audio"),
        (offer(audio().replace("opus", "speex"), video()), "no Opus"),
        (offer(audio(), DATA), "receives no video"),
        (offer(audio(), video("sendonly")), "receives no video"),
        (offer(audio(), video().replace("VP8", "AV1").replace("H264", "H265")), "neither H264 nor VP8"),
        (offer(audio(), video(), DATA.replace("application", "image")), "'image'"),
        (offer(audio(), video(), DATA, DATA), "more than one data section"),
    ],
)
def test_what_cannot_be_served_is_named(text: str, words: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=words):
        plan_call(read_offer(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no media section"),
        ("hello", "no media section"),
        ("v=0\r\nm=audio\r\n", "cannot be read"),
        ("v=zero\r\n", "cannot be read"),
        (offer(audio()).replace("111 0", "111 x"), "cannot be read"),
        (offer(audio()).replace("a=rtpmap:111 ", "a=fmtp:99 x\r\na=rtpmap:111 "), "cannot be read"),
        (offer(audio()).replace("a=ice-pwd:0123456789abcdefghijklmn\r\n", ""), "ICE"),
        (offer(audio()).replace("a=setup:actpass\r\n", ""), "DTLS"),
        (offer(audio()).replace(f"a=fingerprint:sha-256 {FINGERPRINT}\r\n", ""), "DTLS"),
        (offer(audio()).replace("a=rtcp-mux\r\n", ""), "rtcp-mux"),
        (offer(audio()).replace("a=mid:0\r\n", ""), "a=mid"),
        (offer(audio()).replace("BUNDLE 0", "BUNDLE 0 7"), "BUNDLE"),
        (offer(audio(), video()).replace("a=mid:1", "a=mid:0"), "same a=mid"),
        (offer(audio(), video(), DATA).replace("a=sctp-port:5000\r\n", ""), "sctp-port"),
        ("x" * (MAX_SDP_CHARACTERS + 1), "characters"),
        (offer(*[audio()] * (MAX_SECTIONS + 1)), "media sections"),
        (
            offer(audio() + "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\n" * (MAX_CANDIDATES + 1)),
            "candidates",
        ),
        (offer(audio().replace("111 0", " ".join(["111"] * 200))), "formats"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str) -> None:
    with pytest.raises(OfferError, match=words):
        read_offer(text)


def test_a_missing_direction_means_sendrecv() -> None:
    text = offer(audio().replace("a=sendrecv\n", ""), video())
    read = read_offer(text)
    assert read.sections[0].sends
    assert read.sections[0].receives
    assert read.sdp.count("a=sendrecv") == 1


def test_a_direction_of_the_session_holds_where_none_is_given() -> None:
    text = offer(audio().replace("a=sendrecv\n", ""), video()).replace("t=0 0\r\n", "t=0 0\r\na=sendonly\r\n")
    read = read_offer(text)
    assert (read.sections[0].sends, read.sections[0].receives) == (True, False)
    assert (read.sections[1].sends, read.sections[1].receives) == (False, True)


def test_the_offerer_begins_the_handshake() -> None:
    read = read_offer(offer(audio(), video()))
    assert read.sdp.count("a=setup:active\r\n") == 2
    assert "actpass" not in read.sdp
    assert "a=setup:passive" in read_offer(offer(audio().replace("actpass", "passive"))).sdp


def test_addresses_that_are_hidden_are_left_out() -> None:
    candidate = "a=candidate:1 1 udp 1 {} 9 typ host\n"
    hidden, open_ = candidate.format("0a1b-2c3d.local"), candidate.format("10.0.0.1")
    end = "a=end-of-candidates\n"
    read = read_offer(offer(audio() + hidden + open_ + end, video() + open_ + end))
    assert ".local" not in read.sdp
    assert read.sdp.count("a=candidate:") == 2
    assert read.sdp.count("a=end-of-candidates") == 1


def test_mutated_offers_are_refused_in_words_or_read() -> None:
    chance = random.Random(7)
    whole = offer(audio(), video(), DATA)
    for _ in range(2000):
        characters = list(whole)
        for _ in range(chance.randint(1, 20)):
            at = chance.randrange(len(characters))
            characters[at : at + chance.randint(0, 5)] = chance.choice(
                ["", "\r\n", "m=", "a=", "999999999999", "\x00", "ä"]
            )
        try:
            plan_call(read_offer("".join(characters)))
        except OfferError as error:
            assert str(error)  # noqa: PT017
