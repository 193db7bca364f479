"""UDP ports of a range, for sockets that aioice opens without asking for one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aioice.ice
import aioice.turn

from echo_rtc.rtc.ports import PortRange, PortsExhaustedError
from echo_rtc.rtc.seams.checks import SeamError


@dataclass(slots=True)
class Binding:
    """The sockets that are opened while :func:`ports_from` is inside. ``exhausted``: one of them found no free port."""

    ports: PortRange | None
    exhausted: bool = False


@contextmanager
def ports_from(ports: PortRange | None) -> Iterator[Binding]:
    """While inside, in this task and those it starts, UDP sockets without a port of their own get one of ``ports``.

    aioice asks the running loop for its sockets, and goes on without those that it cannot have; so the loop is taught
    about ranges, and what was missing is told by the Binding. Raises SeamError.
    """
    binding = Binding(ports)
    if ports is not None:
        _teach_ranges(asyncio.get_running_loop())
    before = _BINDING.set(binding)
    try:
        yield binding
    finally:
        _BINDING.reset(before)


_BINDING: ContextVar[Binding | None] = ContextVar("binding", default=None)
_ENDPOINT = "create_datagram_endpoint"


def require_endpoint() -> None:
    """Raises SeamError unless aioice opens its sockets as this file expects."""
    for module in (aioice.ice, aioice.turn):
        if _ENDPOINT not in inspect.getsource(module):
            raise SeamError(f"{module.__name__} does not call {_ENDPOINT} any more; --udp-ports would not hold")


def _teach_ranges(loop: asyncio.AbstractEventLoop) -> None:
    """Puts the ports of the present Binding, if there is one, into what this loop opens. Once for each loop."""
    create = getattr(loop, _ENDPOINT)
    if hasattr(create, "knows_ranges"):
        return
    require_endpoint()

    async def create_within(
        factory: Callable[[], asyncio.DatagramProtocol],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
        **more: Any,
    ) -> Any:
        binding = _BINDING.get()
        chosen = local_addr is not None and local_addr[1] != 0
        if binding is None or binding.ports is None or chosen or "sock" in more:
            return await create(factory, local_addr, remote_addr, **more)
        hosts = [local_addr[0]] if local_addr is not None else ["0.0.0.0", "::"]

        async def bind(port: int) -> Any:
            for host in hosts[:-1]:
                with suppress(ValueError):  # the other side has no address of this kind
                    return await create(factory, (host, port), remote_addr, **more)
            return await create(factory, (hosts[-1], port), remote_addr, **more)

        try:
            return await binding.ports.open(bind)
        except PortsExhaustedError:
            binding.exhausted = True
            raise

    create_within.knows_ranges = True  # type: ignore[attr-defined]
    setattr(loop, _ENDPOINT, create_within)
