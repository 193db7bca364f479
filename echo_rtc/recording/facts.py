"""What is known of a recording, as HTTP and its own small JSON file tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self


class RecordingState(StrEnum):
    """Being recorded; closed and worked on; there to be downloaded; not finished, which the next start tries again;
    without any picture, so that there is no file."""

    RECORDING = "recording"
    FINISHING = "finishing"
    COMPLETE = "complete"
    UNFINISHED = "unfinished"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class RecordingFacts:
    """``stream``: the name under which the stream was viewed, if it had one; ``started``: UTC, as in ISO 8601;
    ``reason``: why it ended, None while it has not."""

    id: str
    state: RecordingState
    started: str
    stream: str | None = None
    avatar: str = ""
    seconds: float = 0.0
    bytes: int = 0
    reason: str | None = None

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    @classmethod
    def read(cls, text: str, known: Self) -> Self:
        """From the JSON of a file; what it lacks or has in another form is as in ``known``. Raises ValueError for what
        is no JSON object."""
        content = json.loads(text)
        if not isinstance(content, Mapping):
            raise ValueError("no JSON object")
        found: dict[str, object] = {}
        for name in ("stream", "avatar", "reason"):
            if isinstance(content.get(name), str):
                found[name] = content[name]
        if isinstance(content.get("seconds"), int | float):
            found["seconds"] = float(content["seconds"])
        return cls(**{**{name: getattr(known, name) for name in cls.__dataclass_fields__}, **found})
