"""The files for operators say what the server understands, and name what is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from echo_rtc.cli import parts
from echo_rtc.errors import SettingsError
from echo_rtc.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]
UNIT = (ROOT / "deploy" / "echo_rtc.service").read_text()
CONTAINER = (ROOT / "deploy" / "Containerfile").read_text()


def keys(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def entry() -> list[str]:
    [line] = re.findall(r"^ENTRYPOINT (\[.*\])$", CONTAINER, re.MULTILINE)
    words: list[str] = json.loads(line)
    return words


def assert_closed(settings: Settings) -> None:
    """Such a server starts with a token only."""
    with pytest.raises(SettingsError, match="there is no token"):
        parts.access_of(settings)
    parts.access_of(replace(settings, auth_token="a-token-for-everything"))


def test_the_units_command_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    command = re.sub(r"\$\{(LOGS|CACHE|STATE)_DIRECTORY\}", str(tmp_path), keys(UNIT)["ExecStart"])
    python, program, *flags = shlex.split(command)
    assert python == f"{keys(UNIT)['WorkingDirectory']}/.venv/bin/python"
    settings = load_settings(flags, {})
    assert_closed(settings)
    assert keys(UNIT)["EnvironmentFile"] == "/etc/echo_rtc.env", "without - in front, a missing file is an error"
    assert (ROOT / program).is_file()
    assert settings.log_dir == tmp_path
    assert f"{settings.udp_ports}/udp" in UNIT
    assert f"{settings.port}/tcp" in UNIT
    assert keys(UNIT)["RestartPreventExitStatus"] == "2"
    assert {keys(UNIT)[f"{kind}Directory"] for kind in ("Logs", "Cache", "State")} == {"echo_rtc"}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Only what systemd itself judges: the program is put where it is said to be."""
    place = keys(UNIT)["WorkingDirectory"]
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    unit = tmp_path / "echo_rtc.service"
    unit.write_text(UNIT.replace(place, str(tmp_path)))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "echo_rtc.service" not in finished.stderr, finished.stderr
    assert finished.returncode == 0, finished.stderr


def test_the_containers_command_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    python, program, *flags = entry()
    assert python == "python"
    settings = load_settings(flags, {})
    assert_closed(settings)
    copied = [words.split() for words in re.findall(r"^COPY (.*)$", CONTAINER, re.MULTILINE)]
    sources = [source for *names, _ in copied for source in names]
    assert all((ROOT / source).exists() for source in sources)
    assert {program, "static", "configs", "echo_rtc", "pyproject.toml", "README.md", "LICENSE"} == set(sources)
    [exposed] = re.findall(r"^EXPOSE (.*)$", CONTAINER, re.MULTILINE)
    assert exposed.split() == [f"{settings.port}/tcp", f"{settings.udp_ports}/udp"]
    [volumes] = re.findall(r"^VOLUME (.*)$", CONTAINER, re.MULTILINE)
    assert volumes.split() == [str(settings.log_dir), str(settings.compile_cache), str(settings.avatar_dir)]
    for line in re.findall(r"^#   podman run .*?(?<!\\)\n", CONTAINER, re.MULTILINE | re.DOTALL):
        words = shlex.split(line.replace("\\\n#", ""))
        load_settings(
            [word.replace("ADDRESS_OF_THE_HOST", "192.0.2.1") for word in words[words.index("echo_rtc") + 1 :]], {}
        )


def test_the_containers_health_is_asked_where_it_is() -> None:
    [url] = re.findall(r"urlopen\('([^']+)'", CONTAINER)
    assert url == f"http://127.0.0.1:{Settings().port}/healthz"
