"""Signals on event loops that take them and on those that refuse, as Windows' do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from echo_rtc.cli.signals import signals_handled

ROOT = Path(__file__).parents[2]
WITHOUT = """
import asyncio, os, signal, sys
for name in ("SIGKILL", "SIGHUP"):
    delattr(signal, name)
del signal.pthread_sigmask, os.nice

def refuse(*_):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = asyncio.SelectorEventLoop.remove_signal_handler = refuse
from echo_rtc.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
"""The command line where Python lacks what it lacks on Windows."""


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_signal_calls_its_handler(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    loop = asyncio.get_running_loop()
    if refuses:
        monkeypatch.setattr(loop, "add_signal_handler", refuse)
        monkeypatch.setattr(loop, "remove_signal_handler", refuse)
    before = signal.getsignal(signal.SIGTERM)
    came = asyncio.Event()
    with signals_handled({signal.SIGTERM: came.set}):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(came.wait(), 5)
    assert signal.getsignal(signal.SIGTERM) is before


async def test_a_server_runs_without_what_windows_lacks(tmp_path: Path) -> None:
    program = tmp_path / "windows.py"
    program.write_text(WITHOUT)
    flags = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--port", "0", "--log-dir", str(tmp_path / "logs"))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), "serve", *flags),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        async with asyncio.timeout(60):
            said = b""
            while b"Open http" not in said:
                line = await child.stderr.readline()
                assert line, said.decode()
                said += line
            child.send_signal(signal.SIGTERM)
            rest = await child.stderr.read()
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert b"Traceback" not in said + rest
