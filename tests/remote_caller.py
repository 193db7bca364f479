"""A client on another machine: calls the server at a URL with aiortc, looks and listens, and says what came.

    python -m tests.remote_caller URL TOKEN

Prints one JSON line: ``candidates``, those of the answer as [address, port, type]; ``frames`` and ``blocks``, decoded.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp

from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from tests.rtc.test_calls import Sight, until
from tests.rtc.test_reach import candidates

FRAMES, BLOCKS = 48, 100


async def call(url: str, token: str) -> dict[str, object]:
    sight = Sight()
    caller = Caller(babble, sight.hear, sight.see)
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:

            async def exchange(sdp: str) -> str:
                async with http.post(f"{url}/offer", json={"sdp": sdp, "type": "offer"}) as response:
                    assert response.status == 200, await response.text()
                    return str((await response.json())["sdp"])

            await caller.connect(exchange)
            await until(lambda: len(sight.spoken) >= FRAMES and len(sight.sound) >= BLOCKS)
        found = candidates(caller.connection.remoteDescription.sdp)
        return {"candidates": found, "frames": len(sight.spoken), "blocks": len(sight.sound)}
    finally:
        await caller.close()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(call(*sys.argv[1:]))) + "\n")
