"""The version, and where the files lie that are not code: the page, the set-ups and the embedded model.

In a checkout ``static/`` and ``configs/`` stand beside the package, in an installed wheel inside it.
"""

from __future__ import annotations

from pathlib import Path

VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "configs").is_dir()
"""Whether this package came as a wheel rather than as a checkout."""

_PLACE = PACKAGE if INSTALLED else PACKAGE.parent
STATIC = _PLACE / "static"
CONFIGS = _PLACE / "configs"
EMBEDDED = PACKAGE / "assets" / "embedded"
PREFIX = "package:"
"""Begins a path in a YAML file that starts from this package, wherever it is installed."""
