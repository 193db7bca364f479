"""Logging of streams: each line begins with the stream's id, and repeated warnings are rate limited."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any

COMPLAINT_SPACING_S = 1.0


class StreamLog(logging.LoggerAdapter[logging.Logger]):
    """Puts ``[stream ab12cd34]`` before each line. Ids open streams, so only their beginning is ever logged."""

    def __init__(self, logger: logging.Logger, stream_id: str) -> None:
        super().__init__(logger, {"stream": stream_id[:8]})
        self._prefix = f"[stream {stream_id[:8]}] "

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return f"{self._prefix}{msg}", kwargs


class Complaints:
    """Rate limit for warnings that may come with every packet: one a second, with the number of those suppressed."""

    def __init__(self, log: StreamLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said_at = -COMPLAINT_SPACING_S
        self._left_out = 0

    def warning(self, message: str, *args: object) -> None:
        now = self._clock()
        if now - self._said_at < COMPLAINT_SPACING_S:
            self._left_out += 1
            return
        more = f" ({self._left_out} more like it since the last)" if self._left_out else ""
        self._log.warning(f"{message}{more}", *args)
        self._said_at, self._left_out = now, 0
