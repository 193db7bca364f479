"""The leak check of ``conftest.py`` sees what it is there for; a check that sees nothing would pass every test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.conftest import Belongings

LEAKY = """
import asyncio

async def test_that_leaves_a_task():
    asyncio.create_task(asyncio.sleep(60), name="forgotten")

async def test_that_leaves_nothing():
    await asyncio.create_task(asyncio.sleep(0))
"""


def test_sockets_are_seen() -> None:
    before = Belongings.now()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        udp.bind(("127.0.0.1", 0))
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        left = Belongings.now().without(before)
        assert sorted(text.split()[0] for text in left) == ["tcp", "udp"]
    assert Belongings.now().without(before) == []


def test_threads_of_ours_are_seen() -> None:
    before = Belongings.now()
    done = threading.Event()
    ours = threading.Thread(target=done.wait, name="echo-encoder_0")
    other = threading.Thread(target=done.wait, name="somebody else's")
    ours.start()
    other.start()
    assert Belongings.now().without(before) == ["thread echo-encoder_0"]
    done.set()
    ours.join()
    other.join()


def test_child_processes_are_seen() -> None:
    before = Belongings.now()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (left,) = Belongings.now().without(before)
    assert str(child.pid) in left
    child.communicate(b"\n")
    assert Belongings.now().without(before) == []


def test_tasks_are_seen(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(tmp_path)]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "2 passed, 1 error" in finished.stdout
    assert "forgotten" in finished.stdout
