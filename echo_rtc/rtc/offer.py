"""Reads an offer and says what can be done with it, before anything is built for it.

Everything here is text in, facts out: no connection, no socket, no stream. aiortc's own SDP parser does the reading;
what aiortc would only trip over later (in a task of its own, half built) is refused here in words.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass

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
    """A readable offer: the text (mended where aiortc needs it) and its sections in order."""

    sdp: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Which sections of an offer serve a call: indices into ``Offer.sections``.

    ``sound`` is None where the offerer wants no sound back.
    """

    microphone: int
    picture: int
    sound: int | None


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
    return Offer(text, tuple(_section(media) for media in description.media))


def plan_call(offer: Offer) -> CallPlan:
    """Finds the microphone, and where picture and sound go back. Raises UnsupportedMediaError, naming what lacks."""
    audio = [(i, s) for i, s in enumerate(offer.sections) if s.kind == "audio"]
    video = [(i, s) for i, s in enumerate(offer.sections) if s.kind == "video"]
    microphone = next((i for i, s in audio if s.sends and s.takes(_SOUND_CODECS)), None)
    if microphone is None:
        if any(s.sends for _, s in audio):
            raise UnsupportedMediaError("the offer's audio has no Opus; offer the opus codec for the microphone")
        raise UnsupportedMediaError("the offer sends no audio; add the microphone's track before making the offer")
    picture = next((i for i, s in video if s.receives and s.takes(_PICTURE_CODECS)), None)
    if picture is None:
        if any(s.receives for _, s in video):
            raise UnsupportedMediaError("the offer's video has neither H264 nor VP8; offer one of them")
        raise UnsupportedMediaError("the offer receives no video; add a video transceiver that is recvonly")
    sound = next((i for i, s in audio if s.receives and s.takes(_SOUND_CODECS)), None)
    return CallPlan(microphone=microphone, picture=picture, sound=sound)


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
    """The offer as aiortc takes it without harm: with a direction in every section, without mDNS candidates."""
    starts = [i for i, line in enumerate(lines) if line.startswith("m=")] + [len(lines)]
    head = lines[: starts[0]]
    # RFC 8866 (6.7): sendrecv is implied, or the direction of the whole session. aiortc fails where none is written.
    directions = tuple(f"a={direction}" for direction in sdp.DIRECTIONS)
    implied = next((line.strip() for line in head if line.strip() in directions), "a=sendrecv")
    mended = head
    for start, end in itertools.pairwise(starts):
        section = _without_mdns(lines[start:end])
        if section[0].startswith(("m=audio", "m=video")) and not any(line.strip() in directions for line in section):
            section.insert(1, implied)
        mended += section
    return "\r\n".join(mended) + "\r\n"


def _without_mdns(section: list[str]) -> list[str]:
    """A section without candidates whose address is a .local name. Resolving one costs a second or fails, and a browser
    that hides its address reaches ours anyway: ICE learns the browser's from its first check. More candidates may be
    expected then, even if the browser said that these are all."""
    kept = [line for line in section if not (line.startswith("a=candidate:") and ".local " in line)]
    if len(kept) == len(section):
        return section
    return [line for line in kept if line.strip() != "a=end-of-candidates"]
