"""Ray engines that are made as local ones are, by their workers' specifications: what is tested of one kind of workers
can be tested of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echo_rtc.clips import ClipFormat
from echo_rtc.engine.fleet import FleetOptions
from echo_rtc.engine.ray_engine import RayEngine
from echo_rtc.engine.ray_environment import RayOptions
from echo_rtc.engine.worker import WorkerSpec


class GivenRayEngine(RayEngine):
    """A Ray engine with just these workers, of one CPU each."""

    def __init__(
        self,
        clip_format: ClipFormat,
        specs: Callable[[], Sequence[WorkerSpec]],
        address: str,
        options: FleetOptions | None = None,
    ) -> None:
        super().__init__(clip_format, lambda name, device, cores: specs()[0], RayOptions(address, workers=1), options)
        self._given = specs

    async def _connect(self) -> Sequence[WorkerSpec]:
        await super()._connect()
        self._cpus_each = 1.0
        return self._given()
