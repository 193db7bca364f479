"""Renders one clip of the embedded model on a Ray cluster of its own; prints how many frames it has, the mean of their
luma, whether torch was loaded here, and how many child processes are left. Run as a module by test_ray_engine.py."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

import numpy as np
import psutil

from echo_rtc.engine.factory import create_engine
from echo_rtc.rendering import RenderRequest
from echo_rtc.settings import load_settings


async def main() -> None:
    # At a third of the rate an idle loop has a third of the frames.
    flags = ["--engine", "ray", "--devices", "cpu", "--fps", "8", "--clip-frames", "8", "--untrained"]
    settings = replace(load_settings(flags, {}), avatars=())
    engine = create_engine(settings)
    await engine.start(lambda line: None)
    try:
        audio = np.random.default_rng(1).normal(0, 0.1, settings.sample_rate * 3).astype(np.float32)
        result = await engine.render(RenderRequest("default", audio, 8, 0, 0))
    finally:
        await engine.close()
    children = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    words = (len(result.frames), result.frames.y.mean(), "torch" in sys.modules, len(children))
    sys.stdout.write(" ".join(map(str, words)) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
