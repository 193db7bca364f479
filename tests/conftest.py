"""What every test is checked for, whatever it tests: that it leaves nothing behind.

A test fails if a task, a thread that runs our work, a child process, a UDP socket or a listening socket is left over
when it ends. What lives longer on purpose (fixtures of a wider scope) is there before the test and does not count.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

from echo_rtc.engine.ray_environment import prepare_environment
from echo_rtc.rtc.memory import frozen_heap

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("repository", deadline=None)
hypothesis.settings.load_profile("repository")

SETTLE_S = 2.0
"""Time that threads, processes and sockets may take to go after they were told to."""

# As the server has it for a cluster of its own; Ray reads this when it is first imported, by whichever test.
prepare_environment("")

_OUR_THREADS = ("echo-", "audio-decoder", "video-decoder")
"""Names with which the threads begin that this server causes: its own, and those of aiortc's receivers."""
_LASTING_CHILDREN = ("resource_tracker", "forkserver", "ray::IDLE", "ray/_private/workers/default_worker.py")
"""Helpers of multiprocessing that stay until the interpreter ends, and processes that a Ray cluster, which lasts for
all tests, holds ready for whoever wants one next; one that works has another name."""

_LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--picture", metavar="FILE", help="keep a picture of the call on the embedded model (PNG)")


@pytest.fixture(scope="session", autouse=True)
def settled_process() -> Iterator[None]:
    """As in a server: else every search for what an ended call leaves would go through all that the tests import, and
    hold up the calls that go on for a tenth of a second."""
    with frozen_heap():
        yield


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with two CPUs each, both on this machine."""
    from ray.cluster_utils import Cluster  # half a second that most tests do not need

    store = {"object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **store})
    cluster.add_node(num_cpus=2, **store)
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test on leaked threads, child processes and sockets, and on leaked tasks if it is a coroutine."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_leaked_tasks")
    before = Belongings.now()
    yield
    deadline = time.monotonic() + SETTLE_S
    left = Belongings.now().without(before)
    while left and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        left = Belongings.now().without(before)
    if left:
        pytest.fail(f"left behind: {', '.join(left)}")


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fails the test if asyncio tasks are left that were not there before. A few turns of the loop may pass."""
    before = asyncio.all_tasks()
    yield
    left: set[asyncio.Task[object]] = set()
    for _ in range(100):
        left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"tasks left behind: {', '.join(sorted(map(repr, left)))}")


class Belongings:
    """The threads, child processes and sockets of this process, each under a name that tells it apart."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    @classmethod
    def now(cls) -> Belongings:
        names: dict[str, str] = {}
        for thread in threading.enumerate():
            if thread.name.startswith(_OUR_THREADS):
                names[f"thread {id(thread)}"] = f"thread {thread.name}"
        for child in psutil.Process().children(recursive=True):
            try:
                command = " ".join(child.cmdline()[:4])
                gone = child.status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                continue
            if not gone and not any(helper in command for helper in _LASTING_CHILDREN):
                names[f"process {child.pid} {child.create_time()}"] = f"process {child.pid} ({command})"
        for descriptor in _descriptors():
            names[descriptor] = descriptor
        return cls(names)

    def without(self, before: Belongings) -> list[str]:
        return [text for name, text in self._names.items() if name not in before._names]


def _descriptors() -> list[str]:
    """The UDP and the listening TCP sockets that this process holds. Where there is no /proc, none are found."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        return []
    inodes = set()
    for entry in descriptors.iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path("/proc/self/net") / table
        rows = (line.split() for line in path.read_text().splitlines()[1:]) if path.exists() else ()
        for row in rows:
            address, state, inode = row[1], row[3], row[9]
            if inode in inodes and (table.startswith("udp") or state == _LISTENING):
                found.append(f"{table} socket {address} (inode {inode})")
    return found
