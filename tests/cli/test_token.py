"""``python -m echo_rtc token``: what it prints opens what it says, and what it refuses it refuses in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_rtc.cli import main as command_line
from echo_rtc.web.auth import Authorisation, Grant, Right
from tests.web.test_auth import SECRET

CARD = str(Path(__file__).parents[2] / "configs" / "testcard.yaml")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECHO_RTC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("ECHO_RTC_TOKEN_SECRET", SECRET)


@pytest.mark.parametrize(
    ("words", "grant"),
    [
        ("--scope publish --name studio", Grant(frozenset({Right.PUBLISH}), "studio")),
        ("--scope view --name studio --expires 90s", Grant(frozenset({Right.VIEW}), "studio")),
        ("--scope call --name studio --expires 30d", Grant(frozenset({Right.PUBLISH, Right.VIEW}), "studio")),
        (f"--scope admin --config {CARD}", Grant(frozenset({Right.ADMIN}))),
    ],
)
def test_it_prints_a_token_that_the_server_knows(words: str, grant: Grant, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["token", *words.split()]) == 0
    [token] = capsys.readouterr().out.splitlines()
    assert Authorisation.of(None, SECRET).grant(token) == grant


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--name studio", "--scope"),
        ("--scope all --name studio", "--scope is 'all'; it must be publish, view, call, admin"),
        ("--scope view", "--name is missing"),
        ("--scope view --name ../studio", "--name is '../studio'; it must be 1 to 64 letters, digits"),
        ("--scope admin --name studio", "--name is given for the scope admin"),
        ("--scope view --name studio --expires 0s", "--expires is '0s'; it must be a time such as"),
        ("--scope view --name studio --expires 9999d", "--expires is '9999d'"),
        ("--scope view --name studio --expires forever", "--expires is 'forever'"),
        ("--scope view --name studio --port 80", "--port is not a flag"),
        ("--scope view --name studio --token-secret short", "is a secret of 5 characters, which is not shown; it must"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["token", *words.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert complaint in said.err
    assert said.err.startswith("echo-rtc token: ")
    assert said.err.count("\n") == 1


def test_without_a_secret_it_says_where_to_put_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ECHO_RTC_TOKEN_SECRET")
    for short in ("", "--auth-token too-short-to-sign"):
        assert command_line.main(["token", "--scope", "view", "--name", "studio", *short.split()]) == 2
        assert "set ECHO_RTC_TOKEN_SECRET" in capsys.readouterr().err
