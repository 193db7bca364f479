"""How a setting is declared: the metadata of a dataclass field, from which flag, help, limits and messages follow."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Scalar = bool | int | float | str | Path | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one setting apart from its name and default.

    ``low`` and ``high`` are inclusive. A text is one of ``choices``, or matches ``form``, which ``words`` describe; so
    does each text of a setting that is a list, whose flag may be repeated. ``kind`` is the type of a setting whose
    default is None. What is ``secret`` is never shown, neither in a message nor in the settings as text.
    """

    group: str
    help: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    even: bool = False
    choices: tuple[str, ...] = ()
    form: str = ".*"
    words: str = ""
    kind: type | None = None
    secret: bool = False

    def admits(self, value: Scalar) -> bool:
        """Whether a value of the right type lies within the limits."""
        if isinstance(value, bool | Path):
            return True
        if isinstance(value, tuple):
            return all(self.admits(item) for item in value)
        if isinstance(value, str):
            return value in self.choices if self.choices else re.fullmatch(self.form, value) is not None
        return self.low <= value <= self.high and not (self.even and value % 2)


def about(group: str, meaning: str, **limits: Any) -> dict[str, Option]:
    """The metadata of a setting's dataclass field."""
    return {"option": Option(group, meaning, **limits)}
