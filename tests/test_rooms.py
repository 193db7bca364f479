"""Who may know whom: what each room imports, as written and as loaded by a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "echo_rtc"
TORCH = ("torch", "diffusers", "transformers", "xformers", "torchao")
WIRE = ("aiortc", "aioice", "aiohttp")
SHARED = {"echo_rtc.clips", "echo_rtc.counting", "echo_rtc.errors", "echo_rtc.token_bucket"}
CHILD = """
import importlib, json, sys
modules, forbidden = json.loads(sys.argv[1])
guilty = {}
for name in modules:
    importlib.import_module(name)
    for other in forbidden:
        if other in sys.modules:
            guilty.setdefault(other, name)
sys.stdout.write(json.dumps(guilty))
"""

ALLOWED: dict[str, set[str]] = {
    "clips": set(),
    "counting": set(),
    "errors": set(),
    "logs": set(),
    "resources": set(),
    "options": set(),
    "token_bucket": set(),
    "settings": SHARED | {"echo_rtc.resources", "echo_rtc.options", "echo_rtc.model.options", "echo_rtc.model.quality"},
    "media": SHARED | {"echo_rtc.media"},
    "engine": SHARED
    | {
        "echo_rtc.engine",
        "echo_rtc.model.options",
        "echo_rtc.model.quality",
        "echo_rtc.rendering",
        "echo_rtc.settings",
    },
    "rendering": SHARED,
    "codec": SHARED | {"echo_rtc.codec", "echo_rtc.resources"},
    "stream": SHARED | {"echo_rtc.stream", "echo_rtc.codec", "echo_rtc.media", "echo_rtc.rendering"},
    "rtc": SHARED | {"echo_rtc.rtc", "echo_rtc.stream", "echo_rtc.codec", "echo_rtc.rendering"},
    "participant": SHARED
    | {"echo_rtc.participant", "echo_rtc.stream", "echo_rtc.rtc.session", "echo_rtc.codec.resampling"},
    "outputs": SHARED | {"echo_rtc.outputs", "echo_rtc.rtc", "echo_rtc.stream"},
    "recording": SHARED | {"echo_rtc.recording", "echo_rtc.stream", "echo_rtc.codec"},
    "operations": SHARED | {"echo_rtc.operations", "echo_rtc.stream", "echo_rtc.rtc.session", "echo_rtc.rendering"},
    "offline": SHARED
    | {"echo_rtc.offline", "echo_rtc.codec", "echo_rtc.media", "echo_rtc.rendering", "echo_rtc.settings"},
    "avatars": SHARED
    | {"echo_rtc.avatars", "echo_rtc.codec.picture", "echo_rtc.model", "echo_rtc.rendering", "echo_rtc.settings"},
    "web": SHARED
    | {
        "echo_rtc.web",
        "echo_rtc.operations",
        "echo_rtc.stream",
        "echo_rtc.rtc.session",
        "echo_rtc.rendering",
        "echo_rtc.tts",
    },
    "tts": SHARED | {"echo_rtc.tts"},
    "model": SHARED | {"echo_rtc.model", "echo_rtc.options", "echo_rtc.rendering"},
}
"""What the modules of each room may import of this package; rooms that are not named may import all but ``train``."""

WORKERS = {"echo_rtc.engine.worker": {"echo_rtc.model"}}
"""Modules that run in a worker process, and what else they may import there."""


def modules_of(room: str) -> list[str]:
    """Dotted names of a room's modules (a package's or a single file's); ``server`` is the file beside the package."""
    if room == "server":
        return ["server"]
    if (PACKAGE / f"{room}.py").is_file():
        return [f"echo_rtc.{room}"]
    paths = sorted((PACKAGE / room).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    # Importing __main__ would run it.
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Every module of this package that a file imports, inside functions too, as ``package.module`` or deeper."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "echo_rtc")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if (node.module or "").split(".")[0] == "echo_rtc":
                for alias in node.names:
                    deeper = f"{node.module}.{alias.name}"
                    yield deeper if path_of(deeper).is_file() else str(node.module)


def loaded(modules: list[str], forbidden: tuple[str, ...]) -> dict[str, str]:
    """Which of ``forbidden`` a fresh interpreter has loaded after importing ``modules``, and by which of them."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([modules, forbidden])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    guilty: dict[str, str] = json.loads(child.stdout)
    return guilty


def belongs(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_is_written_against_the_rooms_below(room: str) -> None:
    for module in modules_of(room):
        allowed = ALLOWED[room] | WORKERS.get(module, set())
        strangers = {name for name in imports_of(path_of(module)) if not belongs(name, allowed)}
        assert not strangers, f"{module} imports {', '.join(sorted(strangers))}"


def test_nothing_imports_the_training() -> None:
    rest = [path for path in [*PACKAGE.rglob("*.py"), ROOT / "server.py"] if PACKAGE / "train" not in path.parents]
    assert len(rest) > 20
    for path in rest:
        assert not any(belongs(name, {"echo_rtc.train"}) for name in imports_of(path)), path


@pytest.mark.parametrize("room", ["settings", "logs", "web", "engine", "avatars", "avatar", "operations", "server"])
def test_the_server_process_never_loads_torch(room: str) -> None:
    assert loaded(modules_of(room), TORCH) == {}


def test_codecs_know_no_event_loop() -> None:
    assert loaded(modules_of("codec"), (*TORCH, *WIRE, "asyncio", "socket", "echo_rtc.media")) == {}


def test_a_stream_knows_no_webrtc_and_no_http() -> None:
    assert loaded(modules_of("stream"), (*TORCH, *WIRE, "echo_rtc.engine", "echo_rtc.rtc", "echo_rtc.web")) == {}


def test_recordings_know_no_wire() -> None:
    assert loaded(modules_of("recording"), (*TORCH, *WIRE, "echo_rtc.engine", "echo_rtc.rtc", "echo_rtc.web")) == {}


def test_a_participant_of_rooms_knows_no_webrtc_of_ours() -> None:
    assert loaded(modules_of("participant"), (*TORCH, "aiortc", "aioice", "echo_rtc.engine", "echo_rtc.web")) == {}


def test_rendering_offline_knows_no_network() -> None:
    assert loaded(modules_of("offline"), (*TORCH, *WIRE, "echo_rtc.rtc", "echo_rtc.stream", "echo_rtc.web")) == {}


def test_the_webrtc_edge_knows_no_http() -> None:
    assert loaded(modules_of("rtc"), (*TORCH, "aiohttp", "echo_rtc.engine", "echo_rtc.web")) == {}


def test_the_http_edge_knows_no_aiortc() -> None:
    assert loaded(modules_of("web"), (*TORCH, "aiortc", "aioice", "echo_rtc.engine")) == {}


def test_the_shared_words_need_numpy_only() -> None:
    shared = ["echo_rtc.rendering", *SHARED]
    assert loaded(shared, (*TORCH, *WIRE, "av", "asyncio", "socket", "echo_rtc.engine", "echo_rtc.settings")) == {}


def test_media_needs_numpy_and_nothing_that_waits() -> None:
    assert loaded(modules_of("media"), (*TORCH, *WIRE, "av", "asyncio", "socket")) == {}


def test_the_model_knows_no_wire() -> None:
    assert (
        loaded(modules_of("model"), (*WIRE, "echo_rtc.rtc", "echo_rtc.web", "echo_rtc.media", "echo_rtc.engine")) == {}
    )


def test_the_check_sees_what_it_looks_for() -> None:
    assert loaded(["echo_rtc.rtc.offer"], ("aiortc", "torch")) == {"aiortc": "echo_rtc.rtc.offer"}
    assert "echo_rtc.clips" in set(imports_of(PACKAGE / "rendering.py"))
