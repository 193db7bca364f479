"""What of a section's codecs this server can use, as far as the offer's text says. Text in, facts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiortc import sdp

from echo_rtc.errors import OfferError
from echo_rtc.rtc.description import UNREADABLE, MediaPart

MAX_CODECS_KEPT = 16
"""Codecs of a section that are negotiated; further ones that this server knows are left out."""
MAX_PARAMETERS = 64
"""Parameters of one codec."""

_CLOCKS: Mapping[str, Mapping[str, int]] = {
    "audio": {"opus": 48_000},
    "video": {"vp8": 90_000, "h264": 90_000, "rtx": 90_000},
}
_FEEDBACK = ("nack", "nack pli", "goog-remb")
"""The feedback (RTCP) that this server understands."""
_PROFILES = (sdp.H264Profile.PROFILE_BASELINE, sdp.H264Profile.PROFILE_CONSTRAINED_BASELINE)
DEFAULT_PROFILE = "42E01F"
"""The H.264 profile and level of an offer that names none, as libwebrtc takes it."""


@dataclass(frozen=True, slots=True)
class OfferedCodecs:
    """``names``: in lower case, of the codecs that can be used, in the offerer's order; ``misfits``: those that cannot
    although they are known, in words; ``formats`` and ``lines``: the payload types and attributes that are negotiated;
    ``first``: the ``a=rtpmap`` value of the section's first format, without its payload type."""

    names: tuple[str, ...]
    misfits: tuple[str, ...]
    formats: tuple[str, ...]
    lines: tuple[str, ...]
    first: str | None


@dataclass(frozen=True, slots=True)
class _Codec:
    """A line ``a=rtpmap``, with what the section says of its payload type."""

    payload_type: str
    encoding: str
    name: str
    clock: int
    parameters: str | None
    feedback: tuple[str, ...]


def read_codecs(media: MediaPart) -> OfferedCodecs:
    """Reads a section of sound or picture. Raises OfferError where its lines contradict each other."""
    for payload_type in media.formats:
        if not payload_type.isdecimal() or int(payload_type) > 127 or 72 <= int(payload_type) <= 76:
            raise OfferError(UNREADABLE)
    codecs = _read(media)
    names: list[str] = []
    misfits: list[str] = []
    kept: list[_Codec] = []
    for payload_type in media.formats:
        codec = codecs.get(payload_type)
        if codec is None or codec.clock != _CLOCKS[media.kind].get(codec.name) or codec.name == "rtx":
            continue
        misfit = _misfit(codec)
        if misfit is not None:
            misfits.append(misfit)
        elif len(kept) < MAX_CODECS_KEPT:
            names.append(codec.name)
            kept.append(codec)
    repaired = {codec.payload_type for codec in kept}
    kept += [codec for codec in codecs.values() if _repairs(codec, media) in repaired][: len(kept)]
    first = codecs.get(media.formats[0])
    return OfferedCodecs(
        names=tuple(names),
        misfits=tuple(misfits),
        formats=tuple(codec.payload_type for codec in kept),
        lines=tuple(line for codec in kept for line in _lines(codec)),
        first=None if first is None else first.encoding,
    )


def _read(media: MediaPart) -> dict[str, _Codec]:
    """The codecs of a section by their payload types, as its attributes have them."""
    attributes = media.attributes
    parameters: dict[str, str] = {}
    for value in attributes.all("fmtp"):
        payload_type, _, text = value.partition(" ")
        parameters[payload_type] = text.strip()
    feedback: dict[str, list[str]] = {}
    for value in attributes.all("rtcp-fb"):
        payload_type, _, text = value.partition(" ")
        if text.strip() in _FEEDBACK:
            feedback.setdefault(payload_type, []).append(text.strip())
    for_all = feedback.get("*", [])
    codecs: dict[str, _Codec] = {}
    for value in attributes.all("rtpmap"):
        payload_type, _, encoding = value.partition(" ")
        name, _, rest = encoding.strip().partition("/")
        clock = rest.partition("/")[0]
        if not name or not clock.isdecimal() or len(clock) > 9:
            raise OfferError(UNREADABLE)
        if payload_type in codecs:
            raise OfferError(f"a section of the offer has two codecs of the payload type {payload_type[:20]}")
        own = dict.fromkeys([*feedback.get(payload_type, []), *for_all])
        codecs[payload_type] = _Codec(
            payload_type, encoding.strip(), name.lower(), int(clock), parameters.get(payload_type), tuple(own)
        )
    if not parameters.keys() <= codecs.keys() | set(media.formats):
        raise OfferError(UNREADABLE)
    return codecs


def _misfit(codec: _Codec) -> str | None:
    """In what way a known codec cannot be used, None where it can."""
    if codec.name != "h264":
        _parameters(codec)
        return None
    parameters = _parameters(codec)
    profile = str(parameters.get("profile-level-id") or DEFAULT_PROFILE)
    mode = str(parameters.get("packetization-mode") or "0")
    try:
        fits = sdp.parse_h264_profile_level_id(profile)[0] in _PROFILES
    except ValueError:
        fits = False
    if fits and mode == "1":
        return None
    shown = profile if "profile-level-id" in parameters else "not given"
    return f"H264 with profile-level-id {shown[:12]} and packetization-mode {mode[:4]}"


def _parameters(codec: _Codec) -> dict[str, object]:
    """What ``a=fmtp`` says of a codec. Raises OfferError where aiortc could not read it."""
    text = codec.parameters
    if text is None:
        return {}
    if text.count(";") >= MAX_PARAMETERS:
        raise OfferError(f"a codec of the offer has more than {MAX_PARAMETERS} parameters")
    try:
        return dict(sdp.parameters_from_sdp(text))
    except ValueError:
        raise OfferError(UNREADABLE) from None


def _repairs(codec: _Codec, media: MediaPart) -> str | None:
    """The payload type whose packets a codec sends again (RFC 4588), None where it does not."""
    if codec.name != "rtx" or media.kind != "video" or codec.clock != _CLOCKS["video"]["rtx"]:
        return None
    if codec.payload_type not in media.formats:
        return None
    apt = _parameters(codec).get("apt")
    return None if apt is None else str(apt)


def _lines(codec: _Codec) -> list[str]:
    lines = [f"a=rtpmap:{codec.payload_type} {codec.encoding}"]
    lines += [f"a=rtcp-fb:{codec.payload_type} {value}" for value in codec.feedback]
    if codec.parameters:
        lines.append(f"a=fmtp:{codec.payload_type} {codec.parameters}")
    return lines
