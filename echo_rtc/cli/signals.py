"""Signals that end a command, on every event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType


@contextmanager
def signals_handled(handlers: Mapping[int, Callable[[], object]]) -> Iterator[None]:
    """While inside, a signal calls its handler in the running event loop.

    Event loops of Windows refuse signal handlers (NotImplementedError). There Python's own handler passes the signal on
    to the loop, which wakes up for it. Must be entered in the main thread.
    """
    loop = asyncio.get_running_loop()
    with ExitStack() as undo:
        for number, handler in handlers.items():
            try:
                loop.add_signal_handler(number, handler)
                undo.callback(loop.remove_signal_handler, number)
            except NotImplementedError:

                def passed_on(_number: int, _frame: FrameType | None, handler: Callable[[], object] = handler) -> None:
                    loop.call_soon_threadsafe(handler)

                undo.callback(signal.signal, number, signal.signal(number, passed_on))
        yield
