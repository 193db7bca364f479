"""The wheel: what ``pip install`` gives runs from any folder, with the page, the set-ups and the embedded model."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import aiohttp
import pytest

from echo_rtc import __version__
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.real_server import RealServer
from echo_rtc.bench.support.visitors import Part, Visitor
from tests.docs import ROOT

MAX_LONG_DESCRIPTION_BYTES = 24 * 1024
SHOW = """
from echo_rtc.model.description import ModelDescription
from echo_rtc.settings import load_settings
settings = load_settings([], {})
ModelDescription.from_mapping(settings.model, settings.model_base)
assert settings.reference_image.is_file() and settings.pose_dir.is_dir()
print(settings.config)
print(load_settings(["--config", "echomimic_v2"], {}).model_base)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    [built] = folder.glob(f"echo_rtc-{__version__}-*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which the wheel is installed, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [place] = folder.glob("lib/python3*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (place / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, str(wheel)], check=True)
    return folder / "bin"


def ran(folder: Path, *words: str | Path) -> str:
    """What a program prints in ``folder``."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("ECHO_RTC_", "PYTHONPATH"))}
    done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_page_set_ups_and_model_and_a_short_text(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = (archive.read(name) for name in names if name.endswith(".dist-info/METADATA"))
    for kind in ("static", "configs"):
        files = {f"echo_rtc/{path.relative_to(ROOT)}" for path in (ROOT / kind).rglob("*") if path.is_file()}
        assert files
        assert files <= names
    assert "echo_rtc/assets/embedded/denoising_unet.safetensors" in names
    assert not any(name.startswith("tests/") for name in names)
    assert len(metadata) < MAX_LONG_DESCRIPTION_BYTES


def test_its_program_finds_its_files_from_another_folder(programs: Path, tmp_path: Path) -> None:
    assert ran(tmp_path, programs / "echo-rtc", "--version") == f"echo-rtc {__version__}\n"
    package = programs.parent.resolve()
    config, base = ran(tmp_path, programs / "python", "-c", SHOW).splitlines()
    assert Path(config).resolve().is_relative_to(package)
    assert Path(base) == tmp_path / "configs", "weights are looked for beside the user's files"
    assert "384 pixels" in ran(tmp_path, programs / "echo-rtc", "serve", "--help"), "the default that applies"


async def test_it_serves_its_page_and_a_call(programs: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "data" / "poses", tmp_path / "poses")  # another folder with files in it
    flags = ("--config", "testcard", "--log-dir", str(tmp_path / "logs"))
    async with RealServer(*flags, command=(str(programs / "python"),), folder=tmp_path) as server:
        async with aiohttp.ClientSession() as session:
            async with session.get(server.url) as response:
                assert "<echo-rtc" in await response.text()
            async with session.get(f"{server.url}/echo-rtc.js") as response:
                assert response.status == 200
            enough = asyncio.Event()
            visitor = Visitor(Part.CALL, "somebody", babble)
            visitor.on_block = lambda: enough.set() if visitor.frames >= 12 and visitor.blocks >= 25 else None
            await visitor.come(session, server.url)
            await asyncio.wait_for(enough.wait(), 20)
            await visitor.connection.close()
        assert await server.stop() == 0
    assert server.troubles == []
