"""Benchmarks are found by name, end in one line of JSON, and say what is wrong in one sentence."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from echo_rtc.bench import __main__ as command
from echo_rtc.bench.support.report import report, table


def test_a_table_lines_up() -> None:
    text = table(("stage", "ms"), [("decode", 12.34567), ("a", 3), ("b", "")])
    assert text.splitlines() == ["stage      ms", "------  -----", "decode  12.35", "a           3", "b"]


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    report(("a", "b"), [(1, 2)], {"fps": 24.5, "stages_ms": {"decode": 1.0}})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"fps": 24.5, "stages_ms": {"decode": 1.0}}


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_is_there(name: str) -> None:
    assert callable(importlib.import_module(f"echo_rtc.bench.{name}").main)


@pytest.mark.parametrize(("argv", "given"), [([], "missing"), (["speed"], "'speed'"), (["report"], "'report'")])
def test_an_unknown_name_is_one_sentence(argv: list[str], given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 2
    error = capsys.readouterr().err
    assert error == f"the benchmark's name is {given}; it must be one of {', '.join(command.BENCHMARKS)}\n"


def test_help_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in command.BENCHMARKS)


def test_an_error_of_the_users_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["parity", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert f"{tmp_path / 'expected.safetensors'} does not exist" in captured.err
    assert captured.out == ""
