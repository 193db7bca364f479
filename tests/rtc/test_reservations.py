"""A place that is held for a client who waits is given to nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.testcard import TestCardEngine
from echo_rtc.errors import CapacityError, OfferError
from echo_rtc.rtc.manager import ManagerOptions, StreamManager
from echo_rtc.rtc.session import Caller


@dataclass
class HeldFor:
    """A place that is held for one client until it is taken."""

    client: str
    taken: list[str] = field(default_factory=list)

    def held_for_others(self, client: str) -> int:
        return int(client != self.client and not self.taken)

    def take(self, client: str) -> None:
        self.taken.append(client)


async def test_a_held_place_is_for_the_waiting_client() -> None:
    engine = TestCardEngine(ClipFormat(width=64, height=64))
    await engine.start(lambda _: None)
    manager = StreamManager(engine, ManagerOptions(max_streams=1))
    held = manager.reservations = HeldFor("192.0.2.1")
    try:
        for client in ("192.0.2.2", ""):
            with pytest.raises(CapacityError):
                await manager.open_call("no offer", "default", None, Caller(client))
        assert (manager.free, manager.unreserved) == (1, 0)
        assert held.taken == []
        with pytest.raises(OfferError):  # it has its place, and its offer is read
            await manager.open_call("no offer", "default", None, Caller("192.0.2.1"))
        assert held.taken == ["192.0.2.1"]
    finally:
        await manager.close()
        await engine.close()
