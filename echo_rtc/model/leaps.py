"""Frames of an idle loop that look alike, so that it may go on from one to the other across a short fade. Knows no
torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from echo_rtc.clips import U8Array

CELL = 16
"""Side of the squares whose mean brightness is compared, pixels. The most different square counts: a lid or a finger is
a small part of a picture."""

LIMIT = 16.0
"""Levels of brightness by which no square may differ: an edge that is a pixel off does so, a shut lid by twice as
many."""

FADE_FRAMES = 8
"""Frames for which the pictures before and after a leap are mixed, so all of them must look alike."""

AWAY_FRAMES = 24
"""Leaps over fewer frames are of no use."""

MOST = 8
"""Frames that are kept for each frame, the most alike."""


def cells_of(luma: U8Array) -> NDArray[np.float32]:
    """Mean brightness of the squares of pictures (F, H, W): (F, squares)."""
    frames, height, width = luma.shape
    side = min(CELL, height, width)
    rows, columns = height // side, width // side
    parts = luma[:, : rows * side, : columns * side].reshape(frames, rows, side, columns, side)
    means: NDArray[np.float32] = parts.mean(axis=(2, 4), dtype=np.float32).reshape(frames, rows * columns)
    return means


def find_leaps(cells: NDArray[np.float32]) -> tuple[tuple[int, ...], ...]:
    """For each frame of a loop (N, squares) those that may be shown in its place, with what follows them."""
    count = len(cells)
    apart = np.empty((count, count), np.float32)
    for number, frame in enumerate(cells):
        apart[number] = np.abs(cells - frame).max(axis=1)
    worse = apart
    for frames in range(1, FADE_FRAMES):
        worse = np.maximum(worse, np.roll(apart, (-frames, -frames), axis=(0, 1)))
    gap = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    worse[np.minimum(gap, count - gap) < AWAY_FRAMES] = np.inf
    order = np.argsort(worse, axis=1)[:, :MOST]
    return tuple(
        tuple(int(other) for other in others if worse[number, other] <= LIMIT) for number, others in enumerate(order)
    )
