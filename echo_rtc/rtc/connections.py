"""How a connection begins and ends without losing sockets: aiortc finishes what it began, and closing it is bounded.

Knows no stream: what a connection carries is its owner's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine

from aiortc import RTCPeerConnection

CLOSE_TIMEOUT_S = 5.0
"""Time that closing a connection may take."""


async def negotiate(
    negotiation: Coroutine[object, object, None], close: Callable[[], Awaitable[None]], name: str
) -> None:
    """Runs a negotiation as a task of this name. Raises what it raises, after ``close``; nothing is left then.

    aiortc loses sockets if it is cancelled while it opens them, so a negotiation whose caller is cancelled finishes
    first.
    """
    negotiating = asyncio.create_task(negotiation, name=name)
    try:
        await asyncio.shield(negotiating)
    except BaseException:
        await asyncio.gather(negotiating, return_exceptions=True)
        await close()
        raise


async def close_connection(connection: RTCPeerConnection, log: logging.LoggerAdapter[logging.Logger]) -> None:
    """Closes a connection within CLOSE_TIMEOUT_S. Raises nothing: its owner's place has to become free."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()
    except TimeoutError:
        log.error("a connection did not close within %g s", CLOSE_TIMEOUT_S)
    except Exception:  # a boundary: whatever aiortc trips over, the connection is gone
        log.exception("a connection did not close as it should")
