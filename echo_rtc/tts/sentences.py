"""Splits a text into sentences, which are fetched and said one by one."""

from __future__ import annotations

import re

MAX_SENTENCE_CHARACTERS = 400
"""A longer sentence is split at a comma or a blank, or anywhere if it has none."""

_END = re.compile(r"(?<=[.!?\N{HORIZONTAL ELLIPSIS}])[\"')\]]*\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_PAUSE = re.compile(r"[,;:\u3001\uff0c]\s*|\s+")


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, without blanks around them, each of at most MAX_SENTENCE_CHARACTERS; those in
    which nothing can be said (no letter, no digit) are left out."""
    found: list[str] = []
    start = 0
    for end in [*(match.end() for match in _END.finditer(text)), len(text)]:
        found += _shortened(text[start:end].strip())
        start = end
    return [sentence for sentence in found if any(character.isalnum() for character in sentence)]


def _shortened(sentence: str) -> list[str]:
    parts: list[str] = []
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        pauses = [match.end() for match in _PAUSE.finditer(sentence, 0, MAX_SENTENCE_CHARACTERS)]
        at = pauses[-1] if pauses else MAX_SENTENCE_CHARACTERS
        parts.append(sentence[:at].strip())
        sentence = sentence[at:].strip()
    return [*parts, sentence]
