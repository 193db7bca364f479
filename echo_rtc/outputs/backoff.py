"""When a connection that failed is tried again: exponential back-off with jitter, bounded."""

from __future__ import annotations

import random

FIRST_S, MOST_S = 1.0, 60.0
MAX_FAILURES = 20
"""In a row; about a quarter of an hour. Then an output is given up."""


def wait_s(failures: int, retry_after_s: float = 0.0, share: float | None = None) -> float:
    """Seconds to wait after ``failures`` in a row (from 1 on): half of the back-off and a random share of the other
    half (``share``, 0..1), so that many outputs do not come back at once; but no less than the other side asks for."""
    whole = min(MOST_S, FIRST_S * 2.0 ** min(failures - 1, 16))
    share = random.uniform(0, 1) if share is None else share
    return max(retry_after_s, whole * (0.5 + 0.5 * share))
