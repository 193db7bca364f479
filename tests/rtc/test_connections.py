"""Negotiations and closes that do not go as they should."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiortc import RTCPeerConnection

from echo_rtc.rtc.connections import close_connection, negotiate
from tests.support import virtual

LOG = logging.LoggerAdapter(logging.getLogger("connections"))


@pytest.mark.parametrize("fails", [True, False])
def test_a_cancelled_negotiation_ends_before_it_is_closed(fails: bool) -> None:
    happened: list[str] = []

    async def negotiation() -> None:
        await asyncio.sleep(1.0)
        happened.append("negotiated")
        if fails:
            raise OSError("no socket")

    async def close() -> None:
        happened.append("closed")

    async def cancel() -> None:
        task = asyncio.create_task(negotiate(negotiation(), close, "negotiate"))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    virtual.run(cancel())
    assert happened == ["negotiated", "closed"]


def test_a_failed_negotiation_is_closed() -> None:
    closed: list[bool] = []

    async def negotiation() -> None:
        raise OSError("no socket")

    async def close() -> None:
        closed.append(True)

    with pytest.raises(OSError, match="no socket"):
        virtual.run(negotiate(negotiation(), close, "negotiate"))
    assert closed == [True]


@pytest.mark.parametrize("error", [None, ConnectionError("lost")], ids=["hangs", "fails"])
def test_a_close_that_goes_wrong_is_logged(error: Exception | None, caplog: pytest.LogCaptureFixture) -> None:
    async def close() -> None:
        if error is not None:
            raise error
        await asyncio.Event().wait()

    virtual.run(close_connection(cast(RTCPeerConnection, cast(Any, SimpleNamespace(close=close))), LOG))
    assert "did not close" in caplog.text
