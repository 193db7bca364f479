"""The bar of loading: percentage and remaining time on a terminal, nothing elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from echo_rtc.cli.progress import STEPS, LoadingBar


class Terminal(io.StringIO):
    """A console that says it is one."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_percentage_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with LoadingBar() as bar:
        for number in range(3 * STEPS):  # more than expected
            bar.advance(f"reading file {number}")
        assert bar._bar is not None
        bar._bar.refresh()
    shown = terminal.getvalue()
    assert "loading   0 %|" in shown
    assert f"reading file {3 * STEPS - 1}" in shown
    assert " left" in shown
    assert "100 %" not in shown, "it is done when it goes"


def test_what_is_no_terminal_sees_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with LoadingBar() as bar:
        bar.advance("reading")
    assert capsys.readouterr() == ("", "")
