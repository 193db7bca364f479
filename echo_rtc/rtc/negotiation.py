"""What aiortc is asked for an offer, and how its answer becomes one to the whole offer. Text in, text out.

aiortc negotiates codecs section by section and fails as a whole where it knows none of one. It bundles whatever it
answers, and refuses no section. So it gets a description of those sections only that are of use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from echo_rtc.rtc.offer import MediaPlan, Offer, Section

_STAND_IN = {"audio": "opus/48000/2", "video": "VP8/90000"}
_STAND_IN_FORMAT = "96"


@dataclass(frozen=True, slots=True)
class Negotiation:
    """``sdp`` is what aiortc reads; ``sections`` are the ones in it and ``plan`` points to those. ``bundle``: the mids
    that share a transport. ``refused``: the other sections by their place in the offer, each as the answer has it.
    ``carriers``: sections that are there for their transport only, by their place in ``sdp``."""

    sdp: str
    plan: MediaPlan
    sections: tuple[Section, ...]
    bundle: tuple[str, ...]
    refused: Mapping[int, str]
    carriers: Mapping[int, Section]

    @classmethod
    def of(cls, offer: Offer, plan: MediaPlan) -> Negotiation:
        """Leaves out what the plan does not need and aiortc could not negotiate, or would open a port of its own for.
        The section whose transport the others share stays, inactive, whatever its codecs are (RFC 9143, 7.3)."""
        kept: list[int] = []
        carriers: dict[int, Section] = {}
        for i, section in offer.live:
            shares = section.mid in offer.bundle and len(offer.bundle) > 1
            if i in plan.sections or section.kind == "application" or (shares and section.codecs):
                kept.append(i)
            elif shares and section.mid == offer.bundle[0]:
                carriers[len(kept)] = section
                kept.append(i)
        sections = tuple(
            stand_in(offer.sections[i]) if place in carriers else offer.sections[i] for place, i in enumerate(kept)
        )
        mids = [section.mid for section in sections]
        bundle = tuple(mid for mid in offer.bundle if mid in mids)
        places: dict[int | None, int | None] = {before: now for now, before in enumerate(kept)}
        return cls(
            sdp=description_of(sections, bundle, offer.ice_lite),
            plan=MediaPlan(places.get(plan.microphone), places.get(plan.picture), places.get(plan.sound)),
            sections=sections,
            bundle=bundle,
            refused={i: _refusal(section) for i, section in enumerate(offer.sections) if i not in kept},
            carriers=carriers,
        )

    @property
    def transports(self) -> int:
        """How many connections the answer opens."""
        return (1 if self.bundle else 0) + sum(section.mid not in self.bundle for section in self.sections)

    def answer(self, text: str) -> str:
        """aiortc's answer as one to the whole offer: with the group that was offered, and with every section."""
        head, *texts = re.split(r"^(?=m=)", text, flags=re.MULTILINE)
        group = f"a=group:BUNDLE {' '.join(self.bundle)}\r\n" if self.bundle else ""
        head = re.sub(r"^a=group:BUNDLE[^\r\n]*\r?\n", lambda _: group, head, flags=re.MULTILINE)
        for place, section in self.carriers.items():
            texts[place] = _as_offered(texts[place], section)
        for place in sorted(self.refused):
            texts.insert(place, self.refused[place])
        return head + "".join(texts)


def with_rtcp_mux_only(answer: str) -> str:
    """The answer with ``a=rtcp-mux-only`` (RFC 8858), which WHIP requires."""
    return re.sub(r"^(a=rtcp-mux)\r?$", r"\1\r\na=rtcp-mux-only\r", answer, flags=re.MULTILINE)


def with_inband_fec(answer: str) -> str:
    """An answer that asks for Opus whose packets carry the one before once more (RFC 7587, 6.1)."""
    pattern = r"^(a=rtpmap:(\d+) opus/48000/2)\r?\n(?!(?:a=rtcp-fb[^\n]*\n)*a=fmtp:\2 )"
    return re.sub(pattern, r"\1\r\na=fmtp:\2 minptime=10;useinbandfec=1\r\n", answer, flags=re.MULTILINE)


def description_of(sections: tuple[Section, ...], bundle: tuple[str, ...], ice_lite: bool) -> str:
    """A description of these sections, none of which is refused, as aiortc reads it."""
    lines = ["v=0", "o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0"]
    lines += ["a=ice-lite"] * ice_lite
    if bundle:
        lines.append(f"a=group:BUNDLE {' '.join(bundle)}")
    for section in sections:
        assert section.transport is not None  # of those that are not refused
        lines.append(f"m={section.kind} 9 {section.profile} {' '.join(section.negotiated)}")
        lines += [f"a=mid:{section.mid}", *section.transport.lines()]
        if section.kind != "application":
            lines.append("a=rtcp-mux")
        lines += section.lines
        lines += [f"a=candidate:{candidate.line()}" for candidate in section.candidates]
        lines += ["a=end-of-candidates"] * section.complete
    return "\r\n".join(lines) + "\r\n"


def stand_in(section: Section) -> Section:
    """A section without codecs of ours as one that aiortc can negotiate, although nothing is ever sent in it."""
    lines = ("a=inactive", f"a=rtpmap:{_STAND_IN_FORMAT} {_STAND_IN[section.kind]}")
    return replace(section, negotiated=(_STAND_IN_FORMAT,), lines=lines)


def _as_offered(text: str, section: Section) -> str:
    """The answer for such a section: inactive, and with the first of the formats that were offered."""
    payload_type = section.formats[0]
    text = re.sub(r"^(m=\S+ \S+ \S+) [^\r\n]*", lambda match: f"{match[1]} {payload_type}", text)
    text = re.sub(r"^a=(?:rtcp-fb|fmtp|ssrc|ssrc-group|msid):[^\r\n]*\r?\n", "", text, flags=re.MULTILINE)
    codec = "" if section.first_format is None else f"a=rtpmap:{payload_type} {section.first_format}\r\n"
    return re.sub(r"^a=rtpmap:[^\r\n]*\r?\n", lambda _: codec, text, flags=re.MULTILINE)


def _refusal(section: Section) -> str:
    """How an answer refuses a section (RFC 3264, 6): the same kind and formats, on port 0."""
    mid = f"a=mid:{section.mid}\r\n" if section.mid else ""
    formats = " ".join(section.formats)
    return f"m={section.kind} 0 {section.profile} {formats}\r\nc=IN IP4 0.0.0.0\r\na=inactive\r\n{mid}"
