"""What those who end leave is found, freed memory goes back to the system, and where it cannot nothing happens."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import platform
import sys
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import psutil
import pytest

from echo_rtc.rtc import memory


class Ring:
    """Nobody needs it, and only garbage collection finds that out."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Python looks for no rings by itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_streams_that_end_together_share_one_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SWEEP_AFTER_S", 0.0)
    sweeper, gone = memory.Sweeper(), asyncio.Event()
    for _ in range(2):  # a second time, too
        gone.clear()
        searches = gc.get_stats()[2]["collections"]
        weakref.finalize(Ring(), gone.set)
        for _ in range(3):
            sweeper.sweep_soon()
        assert not gone.is_set()
        await gone.wait()
        assert gc.get_stats()[2]["collections"] == searches + 1


async def test_a_closed_sweeper_looks_for_nothing() -> None:
    sweeper = memory.Sweeper()
    sweeper.sweep_soon()
    timer = sweeper._timer
    assert timer is not None
    sweeper.close()
    assert timer.cancelled()
    sweeper.sweep_soon()
    assert sweeper._timer is timer


def test_a_frozen_heap_is_not_collected_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls, since the heap of this process is frozen for the other tests."""
    calls: list[str] = []
    for name in ("collect", "freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, partial(calls.append, name))
    for frozen, expected in ((0, ["collect", "freeze", "unfreeze"]), (1000, ["collect", "freeze"])):
        monkeypatch.setattr(gc, "get_freeze_count", partial(int, frozen))
        calls.clear()
        with memory.frozen_heap():
            assert calls == ["collect", "freeze"]
        assert calls == expected


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
