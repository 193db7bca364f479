"""Large libraries are imported where they are needed only, and without the frameworks that are not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from echo_rtc.model import libraries
from tests.model.small import MINI

LARGE = ("transformers", "diffusers", "torchao", "tensorflow", "jax", "torch._dynamo", "torch._inductor", "sympy")
CHILD = """
import json, sys
from pathlib import Path
from echo_rtc.clips import ClipFormat
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import ClipGenerator, GeneratorSettings
description = ModelDescription.from_mapping({"weights": sys.argv[1]}, Path())
ClipGenerator.load(description, GeneratorSettings(ClipFormat(width=64, height=64), kernels="torch"), lambda line: None)
print(json.dumps([name for name in json.loads(sys.argv[2]) if name in sys.modules]))
"""


def test_a_model_loads_without_the_large_libraries() -> None:
    """Each takes a second or more of every start; torch imports its compiler for arithmetic on the meta device."""
    weights = str(MINI / "pretrained_weights")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, weights, json.dumps(LARGE)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=240,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == []


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
