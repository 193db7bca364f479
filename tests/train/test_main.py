"""``python -m echo_rtc.train``: its list of commands, and how each way of being wrong ends."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from echo_rtc.train.__main__ import COMMANDS, main


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, _, meaning) in COMMANDS.items():
        assert f"  {name} " in text
        assert meaning in text
    assert main([]) == 2
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"usage: echo-rtc train {name}" in capsys.readouterr().out


def test_each_function_is_there() -> None:
    for module, function, _ in COMMANDS.values():
        assert callable(getattr(import_module(f"echo_rtc.train.{module}"), function))


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dance"]) == 2
    assert capsys.readouterr().err.startswith("train: unknown command 'dance'; known are speech, film")


def test_a_wrong_file_and_a_wrong_setting_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--folder", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["package", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("train package: ")
    assert error.endswith("reference_unet.safetensors does not exist; train reference_unet first\n")
    assert main(["autoencoder", "--output", str(tmp_path), "--pictures", str(tmp_path), "--device", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("train autoencoder: --device is 'abacus', which is not there")


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "echo_rtc.train", "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "talking-face" in done.stdout
