"""``echo-rtc inspect FILE...``: prints the marks in files that say that they are synthetic.

Exit codes: 0 if every file is marked, 1 if a file is not or cannot be read, 2 for a wrong flag.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echo_rtc.errors import InputError
from echo_rtc.offline.credentials import EXTRA, Credentials, credentials_in, library_is_there
from echo_rtc.offline.inspection import Found, inspected

PROG = "echo-rtc inspect"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a file. ``looked``: whether the library that reads Content Credentials is installed."""

    path: Path
    found: Found
    credentials: Credentials | None
    looked: bool

    @property
    def is_marked(self) -> bool:
        return self.found.marked > 0 or (self.credentials is not None and self.credentials.say_synthetic)


def main(argv: Sequence[str]) -> int:
    """Prints what was found in each file; returns the exit code."""
    parser = argparse.ArgumentParser(
        PROG, description="Says whether files with video are marked as AI-generated.", allow_abbrev=False
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="A file with video.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object for each file.")
    given = parser.parse_args(argv)
    looked = library_is_there()
    code = 0
    for path in given.files:
        try:
            report = Report(path, inspected(path), credentials_in(path) if looked else None, looked)
        except InputError as error:
            sys.stderr.write(_printable(f"{PROG}: {error}") + "\n")
            code = 1
            continue
        code = code if report.is_marked else 1
        lines = [json.dumps(_as_json(report))] if given.json else _as_text(report)
        sys.stdout.writelines(f"{line}\n" for line in lines)
    return code


def _as_json(report: Report) -> dict[str, Any]:
    credentials = None if report.credentials is None else asdict(report.credentials)
    return {
        "file": str(report.path),
        "synthetic": report.is_marked,
        **asdict(report.found),
        **({"content_credentials": credentials} if report.looked else {}),
    }


def _as_text(report: Report) -> list[str]:
    found = report.found
    counted = f"{found.marked} of {found.keyframes} keyframes ({found.codec})"
    lines = [f"mark in {counted}: {_words(mark)}" for mark in found.marks] or [f"no mark: {counted}"]
    lines.append(f"Content Credentials: {_credentials_words(report)}")
    verdict = "is marked as AI-generated" if report.is_marked else "is not marked as AI-generated"
    return [_printable(f"{report.path} {verdict}"), *(f"  {line}" for line in lines)]


def _credentials_words(report: Report) -> str:
    credentials = report.credentials
    if credentials is None:
        return "none" if report.looked else f"not looked for; {EXTRA}"
    actions = ", ".join(f"{action} {source.rpartition('/')[2]}".strip() for action, source in credentials.actions)
    problems = f" ({', '.join(credentials.problems)})" if credentials.problems else ""
    return _printable(
        f"{credentials.state}{problems}, signed by {credentials.signer or 'an unnamed signer'}: {actions}"
    )


def _words(mark: Mapping[str, Any]) -> str:
    """A mark's content in one line."""
    return _printable(", ".join(f"{key} {value}" for key, value in mark.items()))


def _printable(text: str) -> str:
    """Text from a file, or its name, without control characters, which a terminal would obey, and what is no text."""
    return "".join(character if character.isprintable() else "?" for character in text)
