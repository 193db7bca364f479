"""Where log lines go: the console and a bounded file ``run_<timestamp>.log``.

A log is never a reason to stop: a folder that cannot be written, or a disk that fills up later, costs the file's
lines, which are counted, and one warning on the console. Knows nothing of what is logged, and no setting but the
level and the folder.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

MAX_FILE_BYTES = 10 * 1024 * 1024
OLD_FILES = 3
"""How many filled files of a run are kept beside the one being written."""

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
_CHATTY = {
    "aioice": logging.WARNING,
    "aiortc": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "libav": logging.ERROR,
    "PIL": logging.WARNING,
}
"""Loggers that report every packet, candidate or request, and the least severity that is let through."""

logger = logging.getLogger(__name__)


class RunFileHandler(RotatingFileHandler):
    """The file of a run. A line that cannot be written is counted in :attr:`lost`; the first of a series is told."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, maxBytes=MAX_FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8", errors="backslashreplace"
        )
        self.lost = 0
        self._failing = False

    def emit(self, record: logging.LogRecord) -> None:
        lost = self.lost
        super().emit(record)
        if self._failing and self.lost == lost:
            self._failing = False
            note = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "args": (lost,)}
            super().emit(logging.makeLogRecord({**note, "msg": "%d lines so far could not be written to this file"}))

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.lost += 1
        # What is left in the stream's buffer would fail again at every flush: the next line opens the file anew.
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()
        if not self._failing:
            self._failing = True
            reason = error.strerror or error
            sys.stderr.write(
                f"warning: the log file {self.baseFilename} cannot be written ({reason}); going on without\n"
            )


@contextmanager
def logging_to(level: str, folder: Path) -> Iterator[Path | None]:
    """While inside, log lines of at least ``level`` go to the console (stderr) and to a new file in ``folder``.

    Yields the file's path, or None where it cannot be written, after one warning on the console. ``level`` is one of
    debug, info, warning, error.
    """
    formatter = logging.Formatter(_FORMAT, _TIME_FORMAT)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    path, complaint = None, ""
    try:
        path = _new_file(folder)
        handlers.append(RunFileHandler(path))
    except OSError as error:
        complaint = error.strerror or str(error)
    root = logging.getLogger()
    former = {name: logging.getLogger(name).level for name in ("", *_CHATTY)}
    root.setLevel(level.upper())
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    for name, least in _CHATTY.items():
        logging.getLogger(name).setLevel(logging.INFO if level == "debug" and least < logging.ERROR else least)
    logging.captureWarnings(True)
    try:
        if complaint:
            logger.warning(
                "log_dir %s cannot be written (%s); logging to the console only, name another with --log-dir",
                folder,
                complaint,
            )
        yield path
    finally:
        logging.captureWarnings(False)
        for name, value in former.items():
            logging.getLogger(name).setLevel(value)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _new_file(folder: Path) -> Path:
    """An empty ``run_<timestamp>.log`` that no other run has. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"run_{datetime.now():%Y%m%d_%H%M%S}"
    attempt = 1
    while True:
        path = folder / (f"{stem}.log" if attempt == 1 else f"{stem}_{attempt}.log")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            attempt += 1
        else:
            return path
