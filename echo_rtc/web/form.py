"""Forms with files (multipart/form-data, RFC 7578), read strictly and at once from a body that is held in memory.

Takes what browsers, curl and HTTP libraries send, and refuses what they do not: transfer encodings, parts without a
name, text around the parts. A body of nothing but line ends costs no more than any other. Knows no route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from echo_rtc.web.problems import Problem, ProblemType, sentence

MAX_HEAD_BYTES = 4096
"""Of one part's headers."""

_BOUNDARY = re.compile(
    r""";\s*boundary=(?:"([\w'()+,./:=? -]{1,70})"|([\w'()+,./:=?-]{1,70}))\s*(?:;|$)""", re.A | re.I
)
_PARAMETER = re.compile(r';\s*([\w*-]+)=("(?:[^"\\]|\\.)*"|[^;"\s]*)', re.ASCII)
_PLAIN_ENCODINGS = ("binary", "8bit", "7bit")


def read_form(content_type: str, body: bytes, most: Mapping[str, int]) -> dict[str, bytes]:
    """The parts of a form by their names, which are those of ``most``; none is larger than it allows (bytes). Raises
    Problem 400 or 413."""
    delimiter = b"\r\n--" + _boundary(content_type)
    if not body.startswith(delimiter[2:]):
        raise bad_form("the upload does not begin with the boundary that its content type names")
    found: dict[str, bytes] = {}
    at = len(delimiter) - 2
    while not body.startswith(b"--", at):
        head_end = body.find(b"\r\n\r\n", at, at + MAX_HEAD_BYTES)
        if not body.startswith(b"\r\n", at) or head_end < 0:
            raise bad_form("the upload is cut off or badly encoded; send it again")
        name = _name(body[at:head_end], most)
        if name in found:
            raise bad_form(f"{name} is given twice")
        begin = head_end + 4
        # The line end before a delimiter is the delimiter's, so that an empty part shares it with its headers.
        end = body.find(delimiter, begin - 2)
        if end < 0:
            raise bad_form("the upload is cut off or badly encoded; send it again")
        if end - begin > most[name]:
            raise Problem(413, f"{name} is larger than {_size(most[name])}; make it smaller.")
        found[name] = body[begin : max(begin, end)]
        at = end + len(delimiter)
    return found


def bad_form(detail: str) -> Problem:
    """The refusal of a form; ``detail`` is a sentence without its capital and its full stop."""
    return Problem(400, sentence(detail), ProblemType.BAD_AVATAR)


def _boundary(content_type: str) -> bytes:
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise bad_form("the content type names no boundary that can be read; send a form as browsers do")
    return (match[1] or match[2]).encode("ascii")


def _name(head: bytes, known: Mapping[str, int]) -> str:
    """The name in a part's headers. Raises Problem 400 where there is none that is known, or the part is encoded."""
    fields = dict[str, str]()
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        fields[key.strip().lower()] = value.strip()
    disposition = fields.get("content-disposition", "")
    parameters = {key.lower(): value.strip('"') for key, value in _PARAMETER.findall(disposition)}
    name = parameters.get("name", "") if disposition.lower().startswith("form-data") else ""
    if name not in known:
        raise bad_form(f"{(name or 'a part without a name')[:80]!r} is not expected; known are {', '.join(known)}")
    encoding = fields.get("content-transfer-encoding", "binary").lower()
    if encoding not in _PLAIN_ENCODINGS:
        raise bad_form(f"{name} has the transfer encoding {encoding[:80]!r}; send its bytes as they are")
    return name


def _size(count: int) -> str:
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count} bytes"
