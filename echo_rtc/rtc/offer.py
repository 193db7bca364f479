"""Reads an offer and says what can be done with it, before anything is built for it.

Everything here is text in, facts out: no connection, no socket, no stream. What aiortc would only trip over later (in a
task of its own, half built) is refused here in words, and what it need not know it never gets to see: ``negotiation``
writes it a description of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from aiortc import sdp

from echo_rtc.errors import OfferError, UnsupportedMediaError
from echo_rtc.rtc.candidates import MAX_NAMED, Candidate, Reach, chosen, read_candidate
from echo_rtc.rtc.codecs_offered import read_codecs
from echo_rtc.rtc.description import UNREADABLE, Description, MediaPart, Part, read_description

MAX_MESSAGE_BYTES = 2**31
"""The largest message that a client may say it takes; a larger number stands for this one."""

_KINDS = ("audio", "video", "application")
_SENDING = ("sendrecv", "sendonly")
_RECEIVING = ("sendrecv", "recvonly")
_SOUND_CODECS = ("opus",)
_PICTURE_CODECS = ("h264", "vp8")
_EXTENSIONS = (
    "urn:ietf:params:rtp-hdrext:sdes:mid",
    "urn:ietf:params:rtp-hdrext:ssrc-audio-level",
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
)
"""The header extensions of RTP that this server understands."""
_SSRCS_KEPT = 2
"""SSRCs of a section that are read: of its packets, and of those that are sent again."""
_PROFILE = re.compile(r"[A-Z/]+")
_ICE = re.compile(r"[!-~]{1,256}")
_MID = re.compile(r"[!-~]{1,64}")
_FINGERPRINT = re.compile(r"sha-(?:1|224|256|384|512) (?:[0-9A-F]{2}:)+[0-9A-F]{2}")
_VERIFIED = ("sha-256 ", "sha-384 ", "sha-512 ")
"""The fingerprints that aiortc can compare."""


@dataclass(frozen=True, slots=True)
class Transport:
    """How a section's packets get through: ICE user and password, the certificate's fingerprints, and the part that the
    offerer takes in the DTLS handshake ("active" or "passive")."""

    ufrag: str
    password: str
    fingerprints: tuple[str, ...]
    setup: str

    def lines(self) -> Iterator[str]:
        """As attributes of a section."""
        yield f"a=ice-ufrag:{self.ufrag}"
        yield f"a=ice-pwd:{self.password}"
        yield from (f"a=fingerprint:{fingerprint}" for fingerprint in self.fingerprints)
        yield f"a=setup:{self.setup}"


@dataclass(frozen=True, slots=True)
class Section:
    """One media section: its kind (audio, video, application), and what the *offerer* would do in it."""

    kind: str
    mid: str
    sends: bool
    receives: bool
    codecs: tuple[str, ...]
    """Names in lower case of those that this server can use, in the offerer's order."""
    profile: str
    formats: tuple[str, ...]
    """All that its ``m=`` line names."""
    refused: bool = False
    """Whether the offerer itself has no use for it (port 0), which the answer repeats."""
    misfits: tuple[str, ...] = ()
    """Codecs that this server knows, but not in this form; each in words."""
    first_format: str | None = None
    """What the first of ``formats`` is, by its ``a=rtpmap`` line."""
    negotiated: tuple[str, ...] = ()
    """The formats that can be used."""
    lines: tuple[str, ...] = ()
    """Its attributes of media, those that can be used."""
    transport: Transport | None = None
    """Its own, or that of its bundle."""
    candidates: tuple[Candidate, ...] = ()
    complete: bool = False
    """Whether no further candidates will come."""

    def takes(self, codecs: tuple[str, ...]) -> bool:
        """Whether one of these codecs is offered."""
        return any(codec in codecs for codec in self.codecs)


@dataclass(frozen=True, slots=True)
class OfferSource:
    """Which connection of a client an offer is of: its ICE passwords; the session's name and its certificates. Another
    offer of the same connection has the former or, where it restarts ICE, the latter."""

    passwords: frozenset[str]
    session: str
    fingerprints: frozenset[str]

    def is_same(self, other: OfferSource) -> bool:
        """Whether the two are offers of one connection."""
        if self.passwords & other.passwords:
            return True
        return bool(self.session) and self.session == other.session and bool(self.fingerprints & other.fingerprints)


@dataclass(frozen=True, slots=True)
class Offer:
    """A readable offer: its sections in order, the mids of those that share one transport, the ICE username fragment of
    the first section, and the connection that it is of. ``ice_lite``: the offerer checks no address by itself."""

    sections: tuple[Section, ...]
    bundle: tuple[str, ...]
    ufrag: str
    source: OfferSource
    ice_lite: bool = False

    @property
    def live(self) -> list[tuple[int, Section]]:
        """The sections that the offerer has a use for, with their places."""
        return [(i, section) for i, section in enumerate(self.sections) if not section.refused]

    @property
    def named(self) -> int:
        """How many candidates are to be checked."""
        return sum(len(section.candidates) for section in self.sections)

    def transport_of(self, mid: str | None, index: int) -> str | None:
        """The mid of the section whose transport serves the section of this mid, or of this index where ``mid`` is
        None; None if there is no such section."""
        mids = [section.mid for _, section in self.live]
        if mid is None:
            mid = self.sections[index].mid if index < len(self.sections) else None
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


def read_offer(text: str, reach: Reach | None = None) -> Offer:
    """Parses an offer; ``reach`` says which of its candidates may be checked. Raises OfferError where it cannot be read
    or is over a limit, UnsupportedMediaError where it holds a kind of section that no browser's call has."""
    description = read_description(text)
    if not description.media:
        raise OfferError("the session description has no media section; offer a microphone and ask for video")
    bundle = _bundle(description)
    sections = [_section(media, description.session, bundle) for media in description.media]
    live = [section for section in sections if not section.refused]
    if not live:
        raise UnsupportedMediaError("every section of the offer is on port 0, which refuses it; offer a microphone")
    mids = [section.mid for section in live]
    if len(set(mids)) != len(mids):
        raise OfferError("two sections of the offer have the same a=mid")
    if sum(section.kind == "application" for section in live) > 1:
        raise UnsupportedMediaError("the offer has more than one data section; data channels share one")
    if not set(bundle) <= {section.mid for section in sections}:
        raise OfferError("the offer's BUNDLE group names a section that is not there")
    bundle = tuple(mid for mid in bundle if mid in mids)
    sections = _with_transports(description, sections, bundle)
    sections = _with_candidates(description, sections, bundle, reach or Reach())
    transports = [section.transport for section in sections if section.transport is not None]
    source = OfferSource(
        passwords=frozenset(transport.password for transport in transports),
        session=" ".join(description.origin.split()[:2]) if len(description.origin.split()) == 6 else "",
        fingerprints=frozenset(value for transport in transports for value in transport.fingerprints),
    )
    return Offer(tuple(sections), bundle, transports[0].ufrag, source, description.session.has("ice-lite"))


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
    if sound is not None and not any(s.kind == "video" and s.receives for _, s in offer.live):
        return MediaPlan(sound=sound)
    return MediaPlan(picture=_picture(offer), sound=sound)


def _microphone(offer: Offer) -> int:
    audio = [(i, s) for i, s in offer.live if s.kind == "audio"]
    microphone = next((i for i, s in audio if s.sends and s.takes(_SOUND_CODECS)), None)
    if microphone is None:
        if any(s.sends for _, s in audio):
            raise UnsupportedMediaError("the offer's audio has no Opus; offer the opus codec for the microphone")
        raise UnsupportedMediaError("the offer sends no audio; add the microphone's track before making the offer")
    return microphone


def _picture(offer: Offer) -> int:
    video = [(i, s) for i, s in offer.live if s.kind == "video"]
    picture = next((i for i, s in video if s.receives and s.takes(_PICTURE_CODECS)), None)
    if picture is None:
        misfits = list(dict.fromkeys(misfit for _, s in video if s.receives for misfit in s.misfits))[:4]
        if misfits:
            raise UnsupportedMediaError(
                f"the offer's video has {', '.join(misfits)}, which this server cannot send; offer VP8, or H264 with "
                "profile-level-id 42e01f and packetization-mode 1"
            )
        if any(s.receives for _, s in video):
            raise UnsupportedMediaError("the offer's video has neither H264 nor VP8; offer one of them")
        raise UnsupportedMediaError("the offer receives no video; add a video transceiver that is recvonly")
    return picture


def _sound(offer: Offer) -> int | None:
    return next((i for i, s in offer.live if s.kind == "audio" and s.receives and s.takes(_SOUND_CODECS)), None)


def _bundle(description: Description) -> tuple[str, ...]:
    """The mids of the first BUNDLE group; the sections of further groups have transports of their own."""
    groups = [value.split() for value in description.session.all("group")]
    bundles = [tuple(words[1:]) for words in groups if words[:1] == ["BUNDLE"]]
    return tuple(dict.fromkeys(next(iter(bundles), ())))


def _section(media: MediaPart, session: Part, bundle: tuple[str, ...]) -> Section:
    """What a section says of its media. Transports and candidates, which sections share, come later."""
    attributes = media.attributes
    mid = attributes.last("mid") or ""
    blank = Section(media.kind, mid, False, False, (), media.profile, media.formats)
    if media.port == 0 and not (attributes.has("bundle-only") and mid in bundle):
        return replace(blank, mid=mid if _MID.fullmatch(mid) else "", refused=True)
    if media.kind not in _KINDS:
        raise UnsupportedMediaError(f"the offer has a section of kind {media.kind!r}; audio, video and data are known")
    if not _PROFILE.fullmatch(media.profile):
        raise OfferError(UNREADABLE)
    if not mid:
        raise OfferError(f"the offer's {media.kind} section has no a=mid line")
    if not _MID.fullmatch(mid):
        raise OfferError(f"the offer's {media.kind} section has the a=mid {mid[:20]!r}; take 1 to 64 characters")
    if media.kind == "application":
        return replace(blank, negotiated=media.formats[:1], lines=tuple(_data_lines(media)))
    codecs = read_codecs(media)
    direction = _direction(attributes) or _direction(session) or "sendrecv"
    return replace(
        blank,
        sends=direction in _SENDING,
        receives=direction in _RECEIVING,
        codecs=codecs.names,
        misfits=codecs.misfits,
        first_format=codecs.first,
        negotiated=codecs.formats,
        lines=(f"a={direction}", *_extension_lines(attributes), *_ssrc_lines(attributes), *codecs.lines),
    )


def _direction(part: Part) -> str | None:
    """RFC 8866 (6.7): where none is given that of the session holds, and else sendrecv."""
    return next((direction for direction in sdp.DIRECTIONS if part.has(direction)), None)


def _extension_lines(attributes: Part) -> Iterator[str]:
    """The header extensions that both sides know, each with a number of its own."""
    numbers: dict[int, str] = {}
    for value in attributes.all("extmap"):
        words = value.split()
        number = words[0].partition("/")[0] if len(words) >= 2 else ""
        if not number.isdecimal() or len(number) > 9:
            raise OfferError(UNREADABLE)
        known = words[1] in _EXTENSIONS and words[1] not in numbers.values()
        # 15 stands for no extension where a header has one byte (RFC 8285).
        if known and 0 < int(number) < 256 and int(number) != 15:
            numbers.setdefault(int(number), words[1])
    return (f"a=extmap:{number} {uri}" for number, uri in numbers.items())


def _ssrc_lines(attributes: Part) -> Iterator[str]:
    """The sources that a section names first."""
    sources: dict[int, None] = {}
    for value in attributes.all("ssrc"):
        number = value.partition(" ")[0]
        if not number.isdecimal() or len(number) > 10 or int(number) >= 2**32:
            raise OfferError(UNREADABLE)
        sources[int(number)] = None
    return (f"a=ssrc:{number} cname:-" for number in list(sources)[:_SSRCS_KEPT])


def _data_lines(media: MediaPart) -> Iterator[str]:
    """The attributes of a data section. Raises OfferError."""
    legacy = media.profile == "DTLS/SCTP"
    port = media.formats[0] if legacy else media.attributes.last("sctp-port")
    if port is None:
        raise OfferError("the offer's data section has no a=sctp-port line")
    if not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65_536:
        raise OfferError(f"the offer's data section has the SCTP port {port[:20]!r}; it must be from 1 to 65535")
    if not legacy:
        yield f"a=sctp-port:{int(port)}"
    size = media.attributes.last("max-message-size")
    if size is not None:
        if not size.isdecimal():
            raise OfferError(UNREADABLE)
        yield f"a=max-message-size:{MAX_MESSAGE_BYTES if len(size) > 10 else min(int(size), MAX_MESSAGE_BYTES)}"


def _with_transports(description: Description, sections: list[Section], bundle: tuple[str, ...]) -> list[Section]:
    """Each section with its transport: its own, or that of the bundle's first section, which the others may leave to it
    (RFC 9143, 7.1). Raises OfferError where one lacks something."""
    first: Transport | None = None
    by_place: dict[int, Section] = {}
    for i in sorted(range(len(sections)), key=lambda i: sections[i].mid not in bundle[:1]):
        section, attributes = sections[i], description.media[i].attributes
        if section.refused:
            by_place[i] = section
            continue
        if section.mid in bundle[1:] and first is not None and not attributes.has("ice-ufrag"):
            by_place[i] = replace(section, transport=first)
            continue
        transport = _transport(section.kind, attributes, description.session)
        if section.kind != "application" and not attributes.has("rtcp-mux"):
            raise OfferError(
                f"the offer's {section.kind} section lacks a=rtcp-mux, without which no answer is possible"
            )
        first = first or transport
        by_place[i] = replace(section, transport=transport)
    return [by_place[i] for i in range(len(sections))]


def _transport(kind: str, own: Part, session: Part) -> Transport:
    def last(name: str) -> str:
        return own.last(name) or session.last(name) or ""

    ufrag, password = last("ice-ufrag"), last("ice-pwd")
    if not ufrag or not password:
        raise OfferError(f"the offer's {kind} section has no ICE username fragment or password")
    if not _ICE.fullmatch(ufrag) or not _ICE.fullmatch(password):
        raise OfferError(f"the offer's {kind} section has an ICE username fragment or password that ICE does not allow")
    prints = [" ".join(value.split()) for value in (*session.all("fingerprint"), *own.all("fingerprint"))]
    prints = [f"{value.partition(' ')[0].lower()} {value.partition(' ')[2].upper()}" for value in prints]
    setup = last("setup")
    if not prints or not setup:
        raise OfferError(f"the offer's {kind} section has no DTLS fingerprint or no a=setup line")
    if not all(map(_FINGERPRINT.fullmatch, prints)) or setup not in ("actpass", "active", "passive"):
        raise OfferError(UNREADABLE)
    if not any(value.startswith(_VERIFIED) for value in prints):
        raise OfferError(f"the offer's {kind} section has no DTLS fingerprint by SHA-256, which browsers send")
    # A peer that accepts either DTLS role is the client: aiortc as a client knows ECDSA certificates only, and
    # GStreamer has one for RSA; as a server it takes any.
    return Transport(ufrag, password, tuple(dict.fromkeys(prints)), "passive" if setup == "passive" else "active")


def _with_candidates(
    description: Description, sections: list[Section], bundle: tuple[str, ...], reach: Reach
) -> list[Section]:
    """Each section that has a transport of its own with the candidates that are checked. Where some are left out, more
    may be expected than the offer says: ICE learns an address from the first check that comes from there."""
    alone = [section.mid for section in sections if not section.refused and section.mid not in bundle[1:]]
    found: list[Section] = []
    for section, media in zip(sections, description.media, strict=True):
        if section.refused or section.mid not in alone:
            found.append(section)
            continue
        values = media.attributes.all("candidate")
        read = [read_candidate(value) for value in values]
        usable = [each for each in read if each is not None and reach.allows(each.address, each.port)]
        checked = chosen(usable, max(1, MAX_NAMED // len(alone)))
        complete = media.attributes.has("end-of-candidates") and len(checked) == len(values)
        found.append(replace(section, candidates=checked, complete=complete))
    return found
