"""Returns the memory of ended streams and peers to the system.

An ended connection is a reference cycle of Python objects, aiortc's and those that wire it to its stream, because
callbacks refer both ways. So it stays, with a megabyte of sound, packets, OpenSSL's and libsrtp's state, until the
cyclic garbage collector runs, which by itself it does after some fifty calls. Encoders, resamplers and connections
allocate from many threads, and glibc keeps the fragments that they free. Without this, the memory of a server whose
visitors come and go would seem to grow all day.
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
"""Delay from the end of a stream or peer to the collection. aiortc's own tasks have ended by then, and what ends
together shares one collection."""


class Sweeper:
    """Runs gc.collect() once, shortly after peers or streams closed (debounced)."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def sweep_soon(self) -> None:
        """A peer or a stream has ended."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_AFTER_S, self._sweep)

    def close(self) -> None:
        """Cancels the collection that is due."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = None
        # On this thread, to which the collected sockets and tasks belong.
        gc.collect()
        asyncio.get_running_loop().run_in_executor(None, give_back)


@contextmanager
def frozen_heap() -> Iterator[None]:
    """gc.freeze() for the duration: later collections skip the objects that are alive now.

    These are the program's own modules, classes and tables; collecting over them takes tens of milliseconds, in which
    no packet leaves. Streams and peers remain: half a millisecond for each. Nested use freezes more objects, which stay
    frozen until the outermost one ends.
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
