"""Where compiled kernels are kept from one start to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echo_rtc.engine.worker import keep_compiled


def test_compiled_kernels_are_kept_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"TORCHINDUCTOR_CACHE_DIR": "mine"})
    assert keep_compiled(tmp_path / "cache")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    assert Path(os.environ["TRITON_CACHE_DIR"]) == tmp_path / "cache" / "triton"
    assert (tmp_path / "cache" / "triton").is_dir()


def test_a_place_that_cannot_be_used_costs_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "environ", {})
    (tmp_path / "file").write_text("")
    assert not keep_compiled(tmp_path / "file")
    assert "TRITON_CACHE_DIR" not in os.environ
    assert "compile_cache is" in caplog.text
    assert "cannot be used" in caplog.text
