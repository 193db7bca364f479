"""Runs a Ray engine on a cluster of its own, and says how it fares: "ready HOST:PORT" (of the head) once it is up,
"rendered" after a clip, "failed REASON" when it has failed, "closed" at the end. Run as a module by
test_ray_confined.py."""

from __future__ import annotations

import asyncio
import sys

from echo_rtc.engine.ray_environment import RayOptions, prepare_environment

prepare_environment("")

import ray  # noqa: E402

from echo_rtc.engine.ray_engine import RayEngine  # noqa: E402
from echo_rtc.engine.worker import WorkerSpec  # noqa: E402
from tests.engine.fakes import FakeLoader  # noqa: E402
from tests.engine.test_local import FORMAT, request  # noqa: E402


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main() -> None:
    engine = RayEngine(
        FORMAT, lambda name, device, cores: WorkerSpec(name, FakeLoader(FORMAT)), RayOptions(devices="cpu", workers=1)
    )
    await engine.start(lambda line: None)
    try:
        say(f"ready {ray.get_runtime_context().gcs_address}")
        await engine.render(request())
        say("rendered")
        reason = await engine.failed()
        say(f"failed {engine.ready} {reason}")
    finally:
        await engine.close()
    say("closed")


if __name__ == "__main__":
    asyncio.run(main())
