"""Gives memory that ended streams have freed back to the system.

Encoders, resamplers and connections allocate from many threads, and glibc keeps what they free in pieces for later. A
server whose visitors come and go would look as if it grew all day.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


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
