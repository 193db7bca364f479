"""Gives memory that ended streams and peers leave back to the system.

An ended connection is a ring of Python objects, aiortc's and what wires it to its stream: callbacks point both ways. So
it stays, with a megabyte of sound, packets and OpenSSL's and libsrtp's state, until Python searches all objects for
rings that nobody needs, which it does by itself after some fifty calls. Encoders, resamplers and connections allocate
from many threads, and glibc keeps what they free in pieces for later. A server whose visitors come and go would look as
if it grew all day.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SWEEP_AFTER_S = 1.0
"""How long after somebody ended what they leave is looked for. aiortc's own tasks have ended by then, and those who
leave together share one search."""


class Sweeper:
    """Looks for what those who ended leave, once for all who ended shortly after one another."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def sweep_soon(self) -> None:
        """Somebody has ended."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_AFTER_S, self._sweep)

    def close(self) -> None:
        """No further search."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = None
        # On this thread, whose sockets and tasks are what is found.
        gc.collect()
        asyncio.get_running_loop().run_in_executor(None, give_back)


@contextmanager
def settled() -> Iterator[None]:
    """While inside, what there is now is taken to stay: nobody searches it for rings any more.

    These are the program's own modules, classes and tables, and searching them takes tens of milliseconds, in which no
    packet leaves. What is left to search are streams and peers: half a millisecond for each. Who settles in a process
    that is settled already adds to that, and it stays so.
    """
    outermost = not gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if outermost:
            gc.unfreeze()


def give_back() -> bool:
    """Returns freed memory to the system, where the C library can (glibc); whether there was any. Takes some
    milliseconds; call it on a thread."""
    trim = _trim()
    return bool(trim is not None and trim(0))


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return None
