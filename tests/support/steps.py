"""Work counted in lines of Python, which a slow machine does not change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def counted() -> Iterator[list[int]]:
    """Counts calls and lines that are run while inside, in the one item of the list."""
    steps = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        steps[0] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)
