"""The command line: which commands there are, and what it says of one that there is not."""

from __future__ import annotations

import contextlib
import importlib

import pytest

from echo_rtc import __version__
from echo_rtc.cli.main import COMMANDS, main


def test_without_a_command_it_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr().err
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == said
    assert said.startswith("usage: echo-rtc COMMAND [flags]")
    assert all(f"  {name} " in said for name in COMMANDS)


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rendr"]) == 2
    assert capsys.readouterr().err == "echo-rtc: 'rendr' is not a command; did you mean render?\n"
    assert main(["--port"]) == 2
    assert "the commands are serve, render" in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"echo-rtc {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_main_and_usage_of_one_style(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(importlib.import_module(COMMANDS[name][0]).main)
    with contextlib.suppress(SystemExit):  # argparse's way to end
        assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: echo-rtc {name} ")
