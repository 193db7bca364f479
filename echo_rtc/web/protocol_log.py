"""What the log says of connections that do not speak HTTP: one line at debug level, where aiohttp writes an error and a
traceback. Any client that reaches the port can send bytes that are no HTTP at any rate.
"""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError

logger = logging.getLogger(__name__)


class NotHttp(logging.Filter):
    """Takes aiohttp's records of requests that cannot be parsed out of the log, and counts them."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        self.count += 1
        reason, _, _ = str(error).partition("\n")
        logger.debug("a request is no HTTP: %s", reason[:200])
        return False


NOT_HTTP = NotHttp()
"""The one of this process, as loggers are."""


def protocol_logger() -> logging.Logger:
    """For aiohttp's connections."""
    found = logging.getLogger(f"{__name__}.connection")
    found.addFilter(NOT_HTTP)
    return found
