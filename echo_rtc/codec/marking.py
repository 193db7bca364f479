"""The mark in H.264 that says that pictures are synthetic: decoders ignore it, and programs can read it.

It is a supplemental enhancement information (SEI) message of the kind "user data unregistered" (ITU-T H.264, D.1.7 and
7.3.2.3): a UUID that is ours, then JSON. It stands before the first slice of a keyframe. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from echo_rtc.resources import VERSION

MARK_UUID = UUID("e4cc96fd-0394-48f5-a9f0-a4f0c04fc782")
"""Begins each of our messages. It never changes."""
GENERATOR = "echo_rtc"
SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media that a trained model made."""
MAX_MARK_BYTES = 4_096
"""A longer message that begins with our UUID is not one of ours."""

_SEI_NAL, _USER_DATA_UNREGISTERED = 6, 5
_SLICES = range(1, 6)
"""Types of NAL units that hold parts of a picture."""
_START_CODE, _LONG_START_CODE = b"\0\0\1", b"\0\0\0\1"
_STOP_BIT = b"\x80"


@dataclass(frozen=True, slots=True)
class Mark:
    """The content of a mark. ``avatar``: the name of the avatar, "" for none."""

    avatar: str = ""
    version: str = VERSION

    def as_json(self) -> dict[str, str]:
        """The content of the message."""
        avatar = {"avatar": self.avatar} if self.avatar else {}
        return {"generator": GENERATOR, "version": self.version, "digitalSourceType": SYNTHETIC, **avatar}

    def message(self) -> bytes:
        """The UUID and the JSON."""
        return MARK_UUID.bytes + json.dumps(self.as_json(), separators=(",", ":")).encode()

    def nal_unit(self) -> bytes:
        """The message as a NAL unit, without a start code."""
        message = self.message()
        size = b"\xff" * (len(message) // 255) + bytes([len(message) % 255])
        return bytes([_SEI_NAL]) + escaped(bytes([_USER_DATA_UNREGISTERED]) + size + message + _STOP_BIT)


def escaped(payload: bytes) -> bytes:
    """A payload with emulation prevention: a 3 goes between two zeros and what would make a start code of them
    (H.264, 7.4.1)."""
    done = bytearray()
    zeros = 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            done.append(3)
            zeros = 0
        done.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(done)


def marked(picture: bytes, nal_unit: bytes) -> bytes:
    """An encoded picture (Annex B: NAL units behind start codes) with another NAL unit before its first slice. Raises
    ValueError for what has no slice."""
    at = picture.find(_START_CODE)
    while 0 <= at < len(picture) - len(_START_CODE):
        if picture[at + len(_START_CODE)] & 0x1F in _SLICES:
            before = at - 1 if at and picture[at - 1] == 0 else at
            return picture[:before] + _LONG_START_CODE + nal_unit + picture[before:]
        at = picture.find(_START_CODE, at + len(_START_CODE))
    raise ValueError(f"{len(picture)} bytes of H.264 hold no slice")


def mark_in(message: bytes) -> dict[str, Any] | None:
    """The content of a message (UUID and what follows it) of the kind user data unregistered, in which nothing is
    nested; None where it is not ours."""
    if len(message) > MAX_MARK_BYTES or message[:16] != MARK_UUID.bytes:
        return None
    try:
        content = json.loads(message[16:], parse_constant=str)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or any(isinstance(value, dict | list) for value in content.values()):
        return None
    return content
