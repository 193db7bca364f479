"""Programs of the system that tests need."""

from __future__ import annotations

import shutil

import pytest


def program(*names: str) -> str:
    """The path of the first of these programs that there is; fails the test if there is none."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(f"this test needs {' or '.join(names)}; .ci/run names the package to install")
    return found
