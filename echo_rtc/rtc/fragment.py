"""Reads the SDP fragments with which WHIP and WHEP clients send ICE candidates later than their offer (RFC 8840).

Text in, facts out, as ``offer`` does it for whole session descriptions.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, replace

from aiortc import RTCIceCandidate, sdp

from echo_rtc.errors import OfferError
from echo_rtc.rtc.offer import MAX_CANDIDATES, MAX_SDP_CHARACTERS

logger = logging.getLogger(__name__)

WANTED = "a=ice-ufrag, m=, a=mid and a=candidate lines"


@dataclass(frozen=True, slots=True)
class Fragment:
    """``ufrag``: the ICE username fragment that the candidates belong to, None where none is named. ``candidates``:
    each with the ``sdpMid`` of its section, or with the section's index where it has no a=mid line. ``unusable``: how
    many more there were that this server cannot use."""

    ufrag: str | None
    candidates: tuple[RTCIceCandidate, ...]
    unusable: int


def read_fragment(text: str) -> Fragment:
    """Parses a fragment. Candidates over TCP, and those with names for addresses, are counted and left out.

    Raises OfferError where the fragment cannot be read or is over a limit.
    """
    if len(text) > MAX_SDP_CHARACTERS:
        raise OfferError(f"the fragment has {len(text)} characters; at most {MAX_SDP_CHARACTERS} are read")
    ufrags: set[str] = set()
    candidates: list[RTCIceCandidate] = []
    unusable = 0
    index, mid = -1, None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        kind, _, value = line.partition("=")
        name, _, value = value.partition(":")
        if kind == "m":
            index, mid = index + 1, None
        elif line.startswith("a=mid:"):
            mid = value
        elif line.startswith("a=ice-ufrag:"):
            ufrags.add(value)
        elif line.startswith("a=candidate:"):
            candidate = _candidate(value)
            if candidate is None:
                unusable += 1
            else:
                candidates.append(replace(candidate, sdpMid=mid, sdpMLineIndex=max(index, 0)))
        elif kind != "a" or not name:
            raise OfferError(f"the fragment has the line {line[:40]!r}; send {WANTED}")
        if len(candidates) + unusable > MAX_CANDIDATES:
            raise OfferError(f"the fragment has more than {MAX_CANDIDATES} ICE candidates; send fewer")
    if not lines:
        raise OfferError(f"the fragment is empty; send {WANTED}")
    if len(ufrags) > 1:
        raise OfferError("the fragment names several ICE username fragments; candidates belong to one")
    return Fragment(ufrags.pop() if ufrags else None, tuple(candidates), unusable)


def _candidate(value: str) -> RTCIceCandidate | None:
    """None for a candidate of a kind that is not used here. Raises OfferError for one that cannot be read."""
    try:
        candidate = sdp.candidate_from_sdp(value)
    except Exception as error:  # aiortc's parser raises whatever its own statements do on malformed text
        logger.debug("a candidate cannot be parsed", exc_info=True)
        raise OfferError(f"the candidate {value[:60]!r} cannot be read") from error
    if candidate.protocol.lower() != "udp" or candidate.component != 1:
        return None
    try:
        ipaddress.ip_address(candidate.ip)
    except ValueError:
        return None
    return candidate
