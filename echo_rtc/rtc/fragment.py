"""Reads the SDP fragments with which WHIP and WHEP clients send ICE candidates later than their offer (RFC 8840).

Text in, facts out, as ``offer`` does it for whole session descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_rtc.errors import OfferError
from echo_rtc.rtc.candidates import Candidate, read_candidate
from echo_rtc.rtc.description import MAX_CANDIDATE_LINES, MAX_LINES, MAX_SDP_CHARACTERS

WANTED = "a=ice-ufrag, m=, a=mid and a=candidate lines"


@dataclass(frozen=True, slots=True)
class Trickled:
    """A candidate that came later, with the ``a=mid`` of its section, or with the section's index where ``mid`` is
    None."""

    candidate: Candidate
    mid: str | None
    index: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """``ufrag``: the ICE username fragment that the candidates belong to, None where none is named. ``unusable``: how
    many more candidates there were, of a kind that this server cannot use or too many."""

    ufrag: str | None
    candidates: tuple[Trickled, ...]
    unusable: int


def read_fragment(text: str) -> Fragment:
    """Parses a fragment. Candidates over TCP, those with names for addresses, and what is more than
    ``MAX_CANDIDATE_LINES``, are counted and left out.

    Raises OfferError where the fragment cannot be read or is over a limit.
    """
    if len(text) > MAX_SDP_CHARACTERS:
        raise OfferError(f"the fragment has {len(text)} characters; at most {MAX_SDP_CHARACTERS} are read")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        raise OfferError(f"the fragment has {len(lines)} lines; at most {MAX_LINES} are read")
    ufrags: set[str] = set()
    candidates: list[Trickled] = []
    unusable = 0
    index, mid = -1, None
    for line in lines:
        kind, _, value = line.partition("=")
        name, _, value = value.partition(":")
        if kind == "m":
            index, mid = index + 1, None
        elif line.startswith("a=mid:"):
            mid = value.strip()
        elif line.startswith("a=ice-ufrag:"):
            ufrags.add(value.strip())
        elif line.startswith("a=candidate:"):
            candidate = read_candidate(value) if len(candidates) + unusable < MAX_CANDIDATE_LINES else None
            if candidate is None:
                unusable += 1
            else:
                candidates.append(Trickled(candidate, mid, max(index, 0)))
        elif kind != "a" or not name:
            raise OfferError(f"the fragment has the line {line[:40]!r}; send {WANTED}")
    if not lines:
        raise OfferError(f"the fragment is empty; send {WANTED}")
    if len(ufrags) > 1:
        raise OfferError("the fragment names several ICE username fragments; candidates belong to one")
    return Fragment(ufrags.pop() if ufrags else None, tuple(candidates), unusable)
