"""Reads an offer and says what can be done with it, before anything is built for it.

Everything here is text in, facts out: no connection, no socket, no stream. aiortc's own SDP parser does the reading;
what aiortc would only trip over later (in a task of its own, half built) is refused here in words.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiortc import sdp

from echo_rtc.errors import OfferError, UnsupportedMediaError

logger = logging.getLogger(__name__)

MAX_SDP_CHARACTERS = 64 * 1024
MAX_SECTIONS = 8
"""Media sections in an offer; a call needs three (audio, video, data)."""
MAX_CANDIDATES = 64
"""Remote ICE candidates in an offer, over all its sections."""
MAX_CODECS = 64
"""Codecs and other formats in one section; Chromium offers about 25."""

_KINDS = ("audio", "video", "application")
_SENDING = ("sendrecv", "sendonly")
_RECEIVING = ("sendrecv", "recvonly")
_SOUND_CODECS = ("opus",)
_PICTURE_CODECS = ("h264", "vp8")


@dataclass(frozen=True, slots=True)
class Section:
    """One media section: its kind (audio, video, application), and what the *offerer* would do in it."""

    kind: str
    mid: str
    sends: bool
    receives: bool
    codecs: tuple[str, ...]
    """Names in lower case, in the offerer's order."""

    def takes(self, codecs: tuple[str, ...]) -> bool:
        """Whether one of these codecs is offered."""
        return any(codec in codecs for codec in self.codecs)


@dataclass(frozen=True, slots=True)
class Offer:
    """A readable offer: the text (mended where aiortc needs it), its sections in order, the mids of those that share
    one transport, and the ICE username fragment of the first section. ``rejected``: sections that were there, too, by
    their place, each as an answer refuses it."""

    sdp: str
    sections: tuple[Section, ...]
    bundle: tuple[str, ...]
    ufrag: str
    rejected: Mapping[int, str] = field(default_factory=dict)

    def transport_of(self, mid: str | None, index: int) -> str | None:
        """The mid of the section whose transport serves the section of this mid, or of this index where ``mid`` is
        None; None if there is no such section."""
        mids = [section.mid for section in self.sections]
        if mid is None:
            mid = mids[index] if index < len(mids) else None
        return self.bundle[0] if mid in self.bundle else mid if mid in mids else None


@dataclass(frozen=True, slots=True)
class MediaPlan:
    """Which sections of an offer serve what: indices into ``Offer.sections``, None where nothing does.

    ``microphone``: where the voice comes from; ``picture`` and ``sound``: where the avatar goes to.
    """

    microphone: int | None = None
    picture: int | None = None
    sound: int | None = None

    @property
    def sections(self) -> frozenset[int]:
        """The sections that are of use."""
        return frozenset(i for i in (self.microphone, self.picture, self.sound) if i is not None)


def read_offer(text: str) -> Offer:
    """Parses an offer. Raises OfferError where it cannot be read or is over a limit, UnsupportedMediaError where it
    holds a kind of section that no browser's call has."""
    if len(text) > MAX_SDP_CHARACTERS:
        raise OfferError(f"the offer has {len(text)} characters; at most {MAX_SDP_CHARACTERS} are read")
    lines = text.splitlines()
    if sum(line.startswith("m=") for line in lines) > MAX_SECTIONS:
        raise OfferError(f"the offer has more than {MAX_SECTIONS} media sections; audio, video and data will do")
    if sum(line.startswith("a=candidate:") for line in lines) > MAX_CANDIDATES:
        raise OfferError(f"the offer has more than {MAX_CANDIDATES} ICE candidates; send fewer")
    text = _mended(lines)
    try:
        description = sdp.SessionDescription.parse(text)
    except Exception as error:  # aiortc's parser raises whatever its own statements do on malformed text
        logger.debug("an offer cannot be parsed", exc_info=True)
        raise OfferError("the session description cannot be read; send the SDP of an RTCPeerConnection") from error
    if not description.media:
        raise OfferError("the session description has no media section; offer a microphone and ask for video")
    for media in description.media:
        _check_section(media)
    _check_bundle(description)
    bundles = (tuple(map(str, group.items)) for group in description.group if group.semantic == "BUNDLE")
    ice = description.media[0].ice
    assert ice is not None
    return Offer(
        sdp=text,
        sections=tuple(_section(media) for media in description.media),
        bundle=next(bundles, ()),
        ufrag=ice.usernameFragment or "",
    )


def plan_call(offer: Offer) -> MediaPlan:
    """For a peer that speaks and watches: finds the microphone, and where picture and sound go back.

    Raises UnsupportedMediaError, naming what lacks.
    """
    return MediaPlan(microphone=_microphone(offer), picture=_picture(offer), sound=_sound(offer))


def plan_publishing(offer: Offer) -> MediaPlan:
    """For a peer that only speaks: finds the microphone. Pictures that it sends are not looked at.

    Raises UnsupportedMediaError, naming what lacks.
    """
    return MediaPlan(microphone=_microphone(offer))


def plan_viewing(offer: Offer) -> MediaPlan:
    """For a peer that only watches: finds where picture and sound go; one of them will do.

    Raises UnsupportedMediaError, naming what lacks.
    """
    sound = _sound(offer)
    if sound is not None and not any(s.kind == "video" and s.receives for s in offer.sections):
        return MediaPlan(sound=sound)
    return MediaPlan(picture=_picture(offer), sound=sound)


def _microphone(offer: Offer) -> int:
    audio = [(i, s) for i, s in enumerate(offer.sections) if s.kind == "audio"]
    microphone = next((i for i, s in audio if s.sends and s.takes(_SOUND_CODECS)), None)
    if microphone is None:
        if any(s.sends for _, s in audio):
            raise UnsupportedMediaError("the offer's audio has no Opus; offer the opus codec for the microphone")
        raise UnsupportedMediaError("the offer sends no audio; add the microphone's track before making the offer")
    return microphone


def _picture(offer: Offer) -> int:
    video = [(i, s) for i, s in enumerate(offer.sections) if s.kind == "video"]
    picture = next((i for i, s in video if s.receives and s.takes(_PICTURE_CODECS)), None)
    if picture is None:
        if any(s.receives for _, s in video):
            raise UnsupportedMediaError("the offer's video has neither H264 nor VP8; offer one of them")
        raise UnsupportedMediaError("the offer receives no video; add a video transceiver that is recvonly")
    return picture


def _sound(offer: Offer) -> int | None:
    sections = enumerate(offer.sections)
    return next((i for i, s in sections if s.kind == "audio" and s.receives and s.takes(_SOUND_CODECS)), None)


def without_unusable(offer: Offer, plan: MediaPlan) -> tuple[Offer, MediaPlan]:
    """The offer without the sections that nobody needs and aiortc has no codec for, such as the AV1 of a publisher who
    sends a picture, too; and the plan for what is left. The answer refuses those: see :func:`with_rejected`."""
    known = {"audio": _SOUND_CODECS, "video": _PICTURE_CODECS}
    sections = enumerate(offer.sections)
    unusable = [i for i, s in sections if i not in plan.sections and s.kind in known and not s.takes(known[s.kind])]
    if not unusable:
        return offer, plan
    head, *texts = _parts(offer.sdp)
    mids = {offer.sections[i].mid for i in unusable}
    head = re.sub(r"^a=group:[^\r\n]*", lambda group: _without_words(group[0], mids), head, flags=re.MULTILINE)
    kept = [i for i in range(len(texts)) if i not in unusable]
    rejected = {i: _refusal(texts[i], offer.sections[i].mid) for i in unusable}
    places = {before: now for now, before in enumerate(kept)}
    reduced = Offer(
        sdp=head + "".join(texts[i] for i in kept),
        sections=tuple(offer.sections[i] for i in kept),
        # Candidates may still be said to be those of a section that is gone.
        bundle=(*(mid for mid in offer.bundle if mid not in mids), *(mid for mid in offer.bundle if mid in mids)),
        ufrag=offer.ufrag,
        rejected=rejected,
    )
    return reduced, MediaPlan(
        microphone=None if plan.microphone is None else places[plan.microphone],
        picture=None if plan.picture is None else places[plan.picture],
        sound=None if plan.sound is None else places[plan.sound],
    )


def with_rejected(answer: str, rejected: Mapping[int, str]) -> str:
    """An answer to what :func:`without_unusable` left, as one to the whole offer."""
    head, *texts = _parts(answer)
    for place in sorted(rejected):
        texts.insert(place, rejected[place])
    return head + "".join(texts)


def _parts(text: str) -> list[str]:
    """What comes before the first section, and the sections."""
    return re.split(r"^(?=m=)", text, flags=re.MULTILINE)


def _without_words(line: str, words: set[str]) -> str:
    return " ".join(word for word in line.split() if word not in words)


def _refusal(section: str, mid: str) -> str:
    """How an answer refuses a section (RFC 3264, 6): the same kind and formats, on port 0."""
    kind, _, formats = section.splitlines()[0].split(" ", 2)
    return f"{kind} 0 {formats.strip()}\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\na=mid:{mid}\r\n"


def with_rtcp_mux_only(answer: str) -> str:
    """An answer that says in so many words that RTCP shares the port of RTP (RFC 8858), as WHIP asks for."""
    return re.sub(r"^(a=rtcp-mux)\r?$", r"\1\r\na=rtcp-mux-only\r", answer, flags=re.MULTILINE)


def _section(media: sdp.MediaDescription) -> Section:
    return Section(
        kind=media.kind,
        mid=media.rtp.muxId,
        sends=media.direction in _SENDING,
        receives=media.direction in _RECEIVING,
        codecs=tuple(codec.name.lower() for codec in media.rtp.codecs),
    )


def _check_section(media: sdp.MediaDescription) -> None:
    if media.kind not in _KINDS:
        raise UnsupportedMediaError(f"the offer has a section of kind {media.kind!r}; audio, video and data are known")
    if len(media.fmt) > MAX_CODECS:
        raise OfferError(f"a section of the offer names {len(media.fmt)} formats; at most {MAX_CODECS} are read")
    if not media.rtp.muxId:
        raise OfferError(f"the offer's {media.kind} section has no a=mid line")
    if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
        raise OfferError(f"the offer's {media.kind} section has no ICE username fragment or password")
    if media.dtls is None or not media.dtls.fingerprints:
        raise OfferError(f"the offer's {media.kind} section has no DTLS fingerprint or no a=setup line")
    if media.kind == "application":
        if media.sctp_port is None and media.profile != "DTLS/SCTP":
            raise OfferError("the offer's data section has no a=sctp-port line")
    elif not media.rtcp_mux:
        raise OfferError(f"the offer's {media.kind} section lacks a=rtcp-mux, without which no answer is possible")


def _check_bundle(description: sdp.SessionDescription) -> None:
    mids = [media.rtp.muxId for media in description.media]
    if len(set(mids)) != len(mids):
        raise OfferError("two sections of the offer have the same a=mid")
    if sum(media.kind == "application" for media in description.media) > 1:
        raise UnsupportedMediaError("the offer has more than one data section; data channels share one")
    for group in description.group:
        if group.semantic == "BUNDLE" and not set(map(str, group.items)) <= set(mids):
            raise OfferError("the offer's BUNDLE group names a section that is not there")


def _mended(lines: list[str]) -> str:
    """The offer as aiortc takes it without harm: with a direction in every section, without mDNS candidates, and with
    the part of the DTLS client taken by the offerer."""
    starts = [i for i, line in enumerate(lines) if line.startswith("m=")] + [len(lines)]
    head = lines[: starts[0]]
    # RFC 8866 (6.7): sendrecv is implied, or the direction of the whole session. aiortc fails where none is written.
    directions = tuple(f"a={direction}" for direction in sdp.DIRECTIONS)
    implied = next((line.strip() for line in head if line.strip() in directions), "a=sendrecv")
    mended = [_offerer_begins(line) for line in head]
    for start, end in itertools.pairwise(starts):
        section = [_offerer_begins(line) for line in _without_mdns(lines[start:end])]
        if section[0].startswith(("m=audio", "m=video")) and not any(line.strip() in directions for line in section):
            section.insert(1, implied)
        mended += section
    return "\r\n".join(mended) + "\r\n"


def _offerer_begins(line: str) -> str:
    """Whoever leaves it to us to begin the DTLS handshake begins it: aiortc as a client knows ECDSA certificates only,
    and GStreamer has one for RSA; as a server it takes any."""
    return "a=setup:active" if line.strip() == "a=setup:actpass" else line


def _without_mdns(section: list[str]) -> list[str]:
    """A section without candidates whose address is a .local name. Resolving one costs a second or fails, and a browser
    that hides its address reaches ours anyway: ICE learns the browser's from its first check. More candidates may be
    expected then, even if the browser said that these are all."""
    kept = [line for line in section if not (line.startswith("a=candidate:") and ".local " in line)]
    if len(kept) == len(section):
        return section
    return [line for line in kept if line.strip() != "a=end-of-candidates"]
