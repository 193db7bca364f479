"""Packages of npm that tests need, installed beside the ``package.json`` that names them, into a folder that git does
not know."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support.programs import program

INSTALL_S = 240.0


def installed(folder: Path) -> Path:
    """The folder of the packages that ``folder / "package.json"`` names, installed or brought up to date if they are
    not. Fails the test if npm cannot."""
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    modules = folder / "node_modules"
    if _versions(modules, wanted) != wanted:
        flags = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--omit=dev")
        done = subprocess.run(
            [program("npm"), "install", *flags],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
        assert done.returncode == 0, f"npm could not install what {folder} needs: {done.stderr}"
    return modules


def _versions(modules: Path, names: dict[str, str]) -> dict[str, str]:
    """The versions of these packages that are installed."""
    descriptions = {name: modules / name / "package.json" for name in names}
    return {name: json.loads(path.read_text())["version"] for name, path in descriptions.items() if path.is_file()}
