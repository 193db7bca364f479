"""Where log lines go: the console and a bounded file ``run_<timestamp>.log``, as text or as one JSON object a line.

A log is never a reason to stop, nor to wait. A folder that cannot be written, or a disk that fills up later, costs the
file's lines, which are counted, and one warning on the console. A thread of its own does all writing, so that a slow
disk or a blocked console holds up no call. Knows nothing of what is logged, and no setting but those of
:class:`LogOptions`.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler, RotatingFileHandler
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

MAX_WAITING_LINES = 10_000
"""Lines that may wait to be written; further ones are left out and counted."""
LAST_LINES_S = 2.0
"""At the end, how long the lines that wait may take."""

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

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every log record has; other attributes are what a line was given as ``extra``."""

logger = logging.getLogger(__name__)


class _Console(logging.StreamHandler[TextIO]):
    """Writes to stderr, above a progress bar where one is shown."""

    def __init__(self) -> None:
        super().__init__()
        terminal = getattr(self.stream, "isatty", None)
        self._terminal = terminal is not None and terminal()

    def emit(self, record: logging.LogRecord) -> None:
        if not self._terminal:
            super().emit(record)
            return
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The settings of logging.

    ``level``: least severity that is logged: debug, info, warning, error. ``folder``: of the run's files. ``as_json``:
    one JSON object a line instead of text. ``file_bytes``: size at which a file is full and the next one is begun.
    ``old_files``: how many filled files of a run are kept beside the one being written.
    """

    level: str = "info"
    folder: Path = Path("logs")
    as_json: bool = False
    file_bytes: int = 10 * 1024 * 1024
    old_files: int = 3


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC, ISO 8601), level, logger, message, the fields given as ``extra``, and
    the traceback, if there is one, as ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OWN_FIELDS and name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII: a file name that is not UTF-8 stays readable, and no line can be broken by what is in it.
        return json.dumps(line, default=str)


class RunFileHandler(RotatingFileHandler):
    """The file of a run. A line that cannot be written is counted in :attr:`lost`; the first of a series is told."""

    def __init__(self, path: Path, file_bytes: int, old_files: int) -> None:
        super().__init__(
            path,
            maxBytes=file_bytes,
            backupCount=old_files,
            encoding="utf-8",
            delay=True,  # the first line opens it
            errors="backslashreplace",
        )
        self.lost = 0
        self._failing = False

    @property
    def failing(self) -> bool:
        """Whether the latest line could not be written."""
        return self._failing

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
        # What is left in the stream's buffer would fail again at every flush: the next line opens the file again.
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):
                stream.close()
        if not self._failing:
            self._failing = True
            reason = error.strerror or error
            with suppress(OSError, ValueError):  # the console may be gone, too, and the thread that writes must go on
                sys.stderr.write(
                    f"warning: the log file {self.baseFilename} cannot be written ({reason}); going on without\n"
                )


class LogWriter(QueueHandler):
    """Takes lines without waiting, and writes them with ``handlers`` on a thread of its own. Lines beyond
    MAX_WAITING_LINES are counted in :attr:`left_out`."""

    def __init__(self, handlers: Sequence[logging.Handler]) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(MAX_WAITING_LINES)
        super().__init__(self._lines)
        self._handlers = handlers
        self.left_out = 0
        self._thread = threading.Thread(target=self._write, name="echo-log", daemon=True)
        self._thread.start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record with its text made, because what it was given may change before it is written."""
        made = copy.copy(record)
        made.msg, made.args = record.getMessage(), None
        return made

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.left_out += 1

    def finish(self) -> None:
        """Ends the thread and the handlers once all lines are written, or after LAST_LINES_S without them."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=LAST_LINES_S)
        self._thread.join(LAST_LINES_S)
        if not self._thread.is_alive():  # else it holds their locks, for as long as its write takes
            for handler in self._handlers:
                handler.close()

    def _write(self) -> None:
        while (record := self._lines.get()) is not None:
            for handler in self._handlers:
                handler.handle(record)


class LogFile:
    """The log file of this run. ``path`` is None where no file could be made."""

    def __init__(self, path: Path | None, handler: RunFileHandler | None, writer: LogWriter | None = None) -> None:
        self.path = path
        self._handler = handler
        self._writer = writer

    @property
    def lost(self) -> int:
        """Lines that could not be written to the file, once there was one, or were too many to be written at all."""
        return (self._handler.lost if self._handler else 0) + (self._writer.left_out if self._writer else 0)

    @property
    def writable(self) -> bool:
        """Whether there is a file, and the latest line could be written to it."""
        return self._handler is not None and not self._handler.failing


@contextmanager
def logging_to(options: LogOptions) -> Iterator[LogFile]:
    """While inside, log lines go to the console (stderr) and to a new file in the options' folder.

    Where the file cannot be made, they go to the console alone, after one warning there.
    """
    formatter = JsonFormatter() if options.as_json else logging.Formatter(_FORMAT, _TIME_FORMAT)
    handlers: list[logging.Handler] = [_Console()]
    path, file_handler, complaint = None, None, ""
    try:
        path = _new_file(options.folder)
        file_handler = RunFileHandler(path, options.file_bytes, options.old_files)
        handlers.append(file_handler)
    except OSError as error:
        complaint = error.strerror or str(error)
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    former = {name: logging.getLogger(name).level for name in ("", *_CHATTY)}
    root.setLevel(options.level.upper())
    writer = LogWriter(handlers)
    root.addHandler(writer)
    for name, least in _CHATTY.items():
        level = logging.INFO if options.level == "debug" and least < logging.ERROR else least
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    try:
        if complaint:
            logger.warning(
                "log_dir %s cannot be written (%s); logging to the console only, name another with --log-dir",
                options.folder,
                complaint,
            )
        yield LogFile(path, file_handler, writer)
    finally:
        logging.captureWarnings(False)
        for name, value in former.items():
            logging.getLogger(name).setLevel(value)
        root.removeHandler(writer)
        writer.finish()


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
