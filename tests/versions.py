"""The tests at the ends of what pyproject.toml allows: ``python -m tests.versions lowest`` and ``... newest``.

``lowest`` installs the least version of every dependency; torch stays the one of the environment that runs this, of
which the tests' tools come too. ``newest`` takes the newest Python of this machine and the newest version of everything
but torch and Ray, of which there may be no small build for that Python, and runs tests that need neither. Each makes a
throw-away environment, says what is in it and which tests ran, and returns pytest's exit code.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MINORS = range(30, 10, -1)
"""Minor versions of Python 3 that are looked for, the newest first."""

HEAVY = ("torch", "diffusers", "transformers")
"""What the newest lane leaves out."""
TOOLS = ("hatchling", "hypothesis", "pytest", "pytest-aiohttp", "pytest-asyncio", "pytest-timeout")
"""What tests need of the extra ``test``, where the lane does not borrow it."""

SHARED_TESTS = (
    "tests/codec",
    "tests/recording/test_recorder.py",
    "tests/offline/test_files.py",
    "tests/avatars/test_library.py",
    "tests/web/test_auth.py",
    "tests/web/test_tls.py",
    "tests/rtc/test_offer.py",
    "tests/rtc/test_calls.py::test_a_call_brings_back_picture_sound_and_events",
)
LOWEST_TESTS = (
    *SHARED_TESTS,
    "tests/model/test_image.py",
    "tests/model/test_loading.py::test_published_weights_convert_to_our_own_layout",
    "tests/model/test_audio.py",
    "tests/model/test_sampler.py",
)
NEWEST_TESTS = (*SHARED_TESTS, "tests/cli/test_token.py", "tests/cli/test_signals.py", "tests/media/test_clipper.py")


def requirements() -> list[str]:
    """The dependencies of the package as pyproject.toml writes them."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed: list[str] = content["project"]["dependencies"]
    return listed


def name_of(requirement: str) -> str:
    """``av>=15,<20`` -> ``av``."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0]


def lowest(requirement: str) -> str:
    """``av>=15,<20`` -> ``av==15``. Raises ValueError where no minimum is given."""
    found = re.search(r">=\s*([0-9.]+)", requirement)
    if found is None:
        raise ValueError(f"the dependency {requirement} has no minimum; write >=")
    return f"{name_of(requirement)}=={found[1]}"


def newest_python() -> Path | None:
    """The newest Python 3 on the path or in pyenv's folder that is newer than this one."""
    own = sys.version_info[1]
    for minor in (minor for minor in MINORS if minor > own):
        kept = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))
        on_path = shutil.which(f"python3.{minor}")
        candidates: list[str | Path] = [*([on_path] if on_path else []), *reversed(kept)]
        for candidate in candidates:
            if subprocess.run([str(candidate), "-c", "import venv"], capture_output=True, check=False).returncode == 0:
                return Path(candidate)
    return None


def run_lane(name: str, python: Path, install: Sequence[str], tests: Iterable[str], borrowed: Path | None) -> int:
    """Makes an environment of ``python``, installs into it and runs tests; the exit code of what failed, else 0.

    ``borrowed`` is a site-packages folder whose packages count where the environment has none of its own.
    """
    with tempfile.TemporaryDirectory(prefix="echo_rtc-lane-") as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = Path(folder) / "bin" / "python"
        if borrowed is not None:
            place = next(Path(folder).glob("lib/python3*/site-packages"))
            (place / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
        pip: list[str | Path] = [
            inside,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--no-compile",
            *install,
        ]
        subprocess.run(pip, check=True)
        tell = "import sys; print('lane', *sys.argv[1:], 'Python', sys.version.split()[0], flush=True)"
        subprocess.run([inside, "-c", tell, name], check=True)
        command: list[str | Path] = [
            inside,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-q",
            "-rfE",
            "--durations=6",
            *tests,
        ]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


def main(lane: str) -> int:
    """Runs one lane; returns its exit code."""
    if lane == "lowest":
        import torch  # the one that is borrowed

        pins = [lowest(each) for each in requirements() if name_of(each) != "torch"]
        print("lowest:", *pins, f"torch=={torch.__version__}")  # noqa: T201 (a command for developers)
        borrowed = Path(torch.__file__).parents[1]
        return run_lane(lane, Path(sys.executable), pins, LOWEST_TESTS, borrowed)
    python = newest_python()
    if python is None:
        print(f"newest: this machine has no Python newer than {sys.version.split()[0]}; nothing ran")  # noqa: T201
        return 0
    wanted = [each for each in requirements() if name_of(each) not in HEAVY]
    return run_lane(lane, python, [*wanted, *TOOLS], NEWEST_TESTS, None)


if __name__ == "__main__":
    if sys.argv[1:] not in (["lowest"], ["newest"]):
        sys.exit("usage: python -m tests.versions lowest|newest")
    sys.exit(main(sys.argv[1]))
