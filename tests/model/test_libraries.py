"""Large libraries are imported without the frameworks that are not used."""

from __future__ import annotations

import os

import pytest

from echo_rtc.model import libraries


def test_other_frameworks_are_left_alone_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str | None]] = []
    monkeypatch.setattr(
        libraries,
        "import_module",
        lambda name: asked.append((name, os.environ.get("USE_TF"), os.environ.get("USE_FLAX"))),
    )
    monkeypatch.delenv("USE_TF", raising=False)
    monkeypatch.setenv("USE_FLAX", "1")
    libraries.import_library("diffusers")
    assert asked == [("diffusers", "0", "1")]
