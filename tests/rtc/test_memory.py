"""Freed memory goes back to the system, and where it cannot nothing happens."""

from __future__ import annotations

import ctypes
import platform
import sys

import numpy as np
import psutil
import pytest

from echo_rtc.rtc import memory


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc can")
def test_what_was_freed_is_given_back() -> None:
    """Small pieces, of which every tenth stays: glibc keeps the rest without being told."""
    process = psutil.Process()
    pieces = [np.ones(12_000, np.uint8) for _ in range(8_000)]
    kept = pieces[::10]
    pieces.clear()
    before = process.memory_info().rss
    memory.give_back()
    assert before - process.memory_info().rss > 30_000_000
    assert len(kept) == 800


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        """Has no malloc_trim."""

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Other())
    memory._trim.cache_clear()
    assert memory.give_back() is False
    memory._trim.cache_clear()
