"""Offers are judged as text, before anything is built for them."""

from __future__ import annotations

import random

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender

from echo_rtc.errors import OfferError, UnsupportedMediaError
from echo_rtc.rtc.candidates import MAX_NAMED
from echo_rtc.rtc.description import MAX_SDP_CHARACTERS, MAX_SECTIONS
from echo_rtc.rtc.negotiation import Negotiation, with_inband_fec, with_rtcp_mux_only
from echo_rtc.rtc.offer import Offer, plan_call, plan_publishing, plan_viewing, read_offer

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


def asked(text: str) -> str:
    """What aiortc is asked for a call's offer."""
    read = read_offer(text)
    return Negotiation.of(read, plan_call(read)).sdp


def test_answers_ask_for_opus_with_the_packet_before() -> None:
    answer = with_inband_fec(offer(audio(), video(), DATA))
    assert answer.count("a=fmtp:111 minptime=10;useinbandfec=1\r\n") == 1
    assert with_inband_fec(answer) == answer


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


def published(text: str) -> tuple[Negotiation, Offer]:
    """What is negotiated of a publisher's offer."""
    read = read_offer(text)
    return Negotiation.of(read, plan_publishing(read)), read


def lines_of(text: str, *starts: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(starts)]


def test_sections_without_use_are_refused() -> None:
    strange = video("sendonly").replace("VP8", "AV1").replace("H264", "H265")
    negotiated, whole = published(offer(audio("sendonly"), strange, strange, DATA))
    assert negotiated.plan.microphone == 0
    assert [section.kind for section in negotiated.sections] == ["audio", "application"]
    assert negotiated.transports == 1
    assert "a=group:BUNDLE 0 3\r\n" in negotiated.sdp
    assert "AV1" not in negotiated.sdp
    assert [section.lines for section in read_offer(negotiated.sdp).sections] == [
        section.lines for section in negotiated.sections
    ]
    assert {whole.transport_of(mid, 9) for mid in "0123"} == {"0"}
    answer = negotiated.answer(negotiated.sdp)
    assert lines_of(answer, "m=", "a=mid:", "a=group") == [
        "a=group:BUNDLE 0 3",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "a=mid:0",
        "m=video 0 UDP/TLS/RTP/SAVPF 96 102",
        "a=mid:1",
        "m=video 0 UDP/TLS/RTP/SAVPF 96 102",
        "a=mid:2",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "a=mid:3",
    ]
    # What could be sent is only not used.
    assert len(published(offer(audio("sendonly"), video("sendonly")))[0].sections) == 2


def test_the_bundles_first_section_stays_inactive() -> None:
    strange = video("sendonly").replace("VP8", "AV1").replace("H264", "H265")
    negotiated, _ = published(offer(strange, audio("sendonly")))
    assert negotiated.plan.microphone == 1
    assert negotiated.bundle == ("0", "1")
    answer = negotiated.answer(negotiated.sdp)
    [first, _] = answer.split("m=")[1:]
    assert first.startswith("video 9 UDP/TLS/RTP/SAVPF 96\r\n")
    assert "a=inactive\r\n" in first
    assert "a=rtpmap:96 AV1/90000\r\n" in first
    assert "a=ice-ufrag:abcd" in first
    assert "VP8" not in answer


def test_an_offer_without_a_group_gets_none() -> None:
    text = offer(audio(), video()).replace("a=group:BUNDLE 0 1\r\n", "")
    read = read_offer(text)
    negotiated = Negotiation.of(read, plan_call(read))
    assert negotiated.transports == 2
    answer = negotiated.answer("v=0\r\na=group:BUNDLE 0 1\r\n" + negotiated.sdp.partition("t=0 0\r\n")[2])
    assert "BUNDLE" not in answer
    # Nothing opens a port of its own that is of no use.
    publisher = read_offer(text.replace("a=recvonly", "a=sendonly"))
    assert Negotiation.of(publisher, plan_publishing(publisher)).transports == 1


def without_transport(section: str) -> str:
    """A section that leaves everything to the bundle's first one (RFC 9143, 7.1)."""
    own = ("a=ice-", "a=fingerprint", "a=setup", "a=rtcp", "c=")
    return "".join(line + "\n" for line in section.splitlines() if not line.startswith(own))


def test_bundle_only_sections_use_the_first_ones_transport() -> None:
    bare = without_transport(video()).replace("m=video 9", "m=video 0") + "a=bundle-only\n"
    read = read_offer(offer(audio(), bare, without_transport(DATA)))
    assert [section.refused for section in read.sections] == [False, False, False]
    assert {section.transport for section in read.sections} == {read.sections[0].transport}
    assert plan_call(read).picture == 1


def test_a_section_that_the_offer_refuses_is_refused_back() -> None:
    gone = "m=video 0 UDP/TLS/RTP/SAVPF 96\nc=IN IP4 0.0.0.0\na=inactive\na=mid:{mid}\na=rtpmap:96 VP8/90000\n"
    for text in (
        offer(audio(), gone, video()).replace("BUNDLE 0 1 2", "BUNDLE 0 2"),
        offer(audio(), gone.replace("a=mid:{mid}\n", ""), video()).replace("BUNDLE 0 1 2", "BUNDLE 0 2"),
        offer(audio(), "m=image 0 udptl t38\n", video()).replace("BUNDLE 0 1 2", "BUNDLE 0 2"),
    ):
        read = read_offer(text)
        assert plan_call(read).picture == 2
        negotiated = Negotiation.of(read, plan_call(read))
        assert negotiated.plan.picture == 1
        assert [line.split()[1] for line in lines_of(negotiated.answer(negotiated.sdp), "m=")] == ["9", "0", "9"]
    with pytest.raises(UnsupportedMediaError, match="port 0"):
        read_offer(offer(gone).replace("a=group:BUNDLE 0\r\n", ""))


H264 = "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (H264.replace("42e01f", "640028"), "profile-level-id 640028 and packetization-mode 1"),
        (H264.replace("42e01f", "4d001f"), "profile-level-id 4d001f and packetization-mode 1"),
        (H264.replace("mode=1", "mode=0"), "profile-level-id 42e01f and packetization-mode 0"),
        (H264.replace("42e01f", "zz"), "profile-level-id zz and"),
        ("", "profile-level-id not given and packetization-mode 0"),
    ],
)
def test_h264_in_another_form_is_named_and_harmless(parameters: str, words: str) -> None:
    only = video().replace("96 102", "102").replace("a=rtpmap:96 VP8/90000\n", "")
    only = only.replace(f"a=fmtp:102 {H264}\n", f"a=fmtp:102 {parameters}\n" if parameters else "")
    with pytest.raises(UnsupportedMediaError, match=words):
        plan_viewing(read_offer(offer(audio("recvonly"), only)))
    negotiated, _ = published(offer(audio("sendonly"), only.replace("recvonly", "sendonly")))
    assert [section.kind for section in negotiated.sections] == ["audio"]
    assert lines_of(negotiated.answer(negotiated.sdp), "m=video") == ["m=video 0 UDP/TLS/RTP/SAVPF 102"]


def test_a_further_offer_of_a_connection_is_recognised() -> None:
    first = read_offer(offer(audio(), video())).source
    assert first.is_same(read_offer(offer(audio(), video(), DATA)).source)
    restarted = offer(audio(), video()).replace("0123456789abcdefghijklmn", "nmlkjihgfedcba9876543210")
    assert first.is_same(read_offer(restarted).source)
    assert not first.is_same(read_offer(restarted.replace("o=- 1 2", "o=- 9 2")).source)
    assert not first.is_same(read_offer(restarted.replace("AB:AB", "AC:AC")).source)


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
        (offer(audio().replace("111 0", " ".join(["111"] * 200))), "formats"),
        (offer(audio().replace("111 0", "111 111")), "the same format twice"),
        (offer(audio() + "a=rtpmap:111 opus/48000/2\n"), "two codecs of the payload type 111"),
        (offer(audio() + "a=rtcp-fb:* nack\n" * 2000), "lines"),
        (offer(audio() + "a=rtcp-fb:* nack\n" * 513), "more than 512 a=rtcp-fb lines"),
        (offer(audio(), video(), DATA.replace("5000", "70000")), "SCTP port"),
        (offer(audio().replace("abcd", "a" * 300)), "ICE does not allow"),
        (offer(audio().replace("sha-256", "sha-1")), "SHA-256"),
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
    assert asked(text).count("a=sendrecv") == 1


def test_a_direction_of_the_session_holds_where_none_is_given() -> None:
    text = offer(audio().replace("a=sendrecv\n", ""), video()).replace("t=0 0\r\n", "t=0 0\r\na=sendonly\r\n")
    read = read_offer(text)
    assert (read.sections[0].sends, read.sections[0].receives) == (True, False)
    assert (read.sections[1].sends, read.sections[1].receives) == (False, True)


def test_the_offerer_begins_the_handshake() -> None:
    text = asked(offer(audio(), video()))
    assert text.count("a=setup:active\r\n") == 2
    assert "actpass" not in text
    assert "a=setup:passive" in asked(offer(audio(), video()).replace("actpass", "passive"))


def test_addresses_that_are_hidden_are_left_out() -> None:
    candidate = "a=candidate:1 1 udp 1 {} 9 typ host\n"
    hidden, open_ = candidate.format("0a1b-2c3d.local"), candidate.format("10.0.0.1")
    end = "a=end-of-candidates\n"
    text = asked(offer(audio() + hidden + open_ + end, video() + open_ + end))
    assert ".local" not in text
    # Those of the second section are of a transport that the bundle does without.
    assert text.count("a=candidate:") == 1
    assert text.count("a=end-of-candidates") == 0
    assert asked(offer(audio() + open_ + end, video())).count("a=end-of-candidates") == 1


def test_too_many_candidates_are_left_out() -> None:
    many = "".join(f"a=candidate:1 1 udp {n} 10.0.0.{n} 9 typ host\n" for n in range(1, 200))
    read = read_offer(offer(audio() + many, video()))
    assert read.named == MAX_NAMED
    assert "10.0.0.199" in asked(offer(audio() + many, video()))
    apart = read_offer(offer(audio() + many, video() + many).replace("a=group:BUNDLE 0 1\r\n", ""))
    assert apart.named == MAX_NAMED


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
