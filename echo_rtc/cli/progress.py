"""A bar that shows on a terminal how far the engine has come with loading."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

STEPS = 14
"""Lines of progress that the full model brings on one device; where there are more, the bar grows with them."""
BAR = "{desc} {percentage:3.0f} %|{bar:20}| {elapsed}, {remaining} left"
_SHOWN = 44
"""Characters of a line of progress."""


class LoadingBar:
    """Percentage, elapsed and remaining time of loading, on stderr; nothing at all where that is not a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Self:
        self._bar = tqdm(
            total=STEPS,
            desc="loading",
            bar_format=BAR,
            file=sys.stderr,
            disable=None,
            leave=False,
            dynamic_ncols=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def advance(self, line: str) -> None:
        """One more line of progress."""
        bar = self._bar
        if bar is None or bar.disable:
            return
        bar.total = max(bar.total or 0, int(bar.n) + 2)  # it is not done before it is closed
        bar.set_description_str(line[:_SHOWN], refresh=False)
        bar.update()
