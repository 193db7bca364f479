"""What ``echo-rtc doctor`` says of a machine and its settings."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from echo_rtc.cli import doctor
from echo_rtc.engine import ladder
from echo_rtc.settings import Settings
from tests.support.signing import make_signer


def findings(settings: Settings) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examined(settings)}


def test_a_machine_that_can_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--port", "0", "--no-measure"]) == 0
    page = capsys.readouterr().out
    for what in ("PyTorch", "GPU", "memory", "libopus", "port", "model"):
        assert what in page
    assert "!" not in page


def test_quality_auto_and_missing_libraries_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def card(settings: Settings, *_: object) -> float:
        return 20.0

    monkeypatch.setattr(ladder, "measured", card)
    card_says = {
        "torch": "2.0",
        "cuda": "13.0",
        "devices": [["RTX 3060", 11 * 2**30, 12 * 2**30, [8, 6], 28]],
        "has": {"triton": ["3.6", ""], "xformers": ["", "no symbol"], "torchao": ["0.9", ""]},
        "compiler": None,
    }
    monkeypatch.setattr(doctor, "PROBE", f"print({json.dumps(card_says)!r})")
    assert doctor.main(["--port", "0", "--devices", "cpu"]) == 0
    rows = {line[2:18].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "quality best, the last rung, does not hold real time: 20.0 frames/s for the 24" in rows["auto"]
    assert "can be used" in rows["triton"]
    assert "cannot be imported (no symbol)" in rows["xformers"]
    assert "needs a GPU of compute capability 8.9" in rows["torchao"]
    assert (
        "needs a C compiler (cc); PyTorch tunes products from 68 multiprocessors on; here are 28"
        in rows["max-autotune"]
    )


def test_what_is_missing_is_marked(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(
            engine="testcard", port=taken.getsockname()[1], reference_image=tmp_path / "nobody.png", pose_dir=tmp_path
        )
        found = findings(settings)
    assert found["port"].missing
    assert found["reference image"].missing
    assert not found["poses"].missing


def test_the_folder_of_recordings_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    card = Settings(engine="testcard", recording_dir=tmp_path / "new", min_free_disk=1.0)
    [found] = doctor._recordings(card)
    assert (found.missing, "GiB free" in found.found) == (False, True)
    [found] = doctor._recordings(replace(card, min_free_disk=1e8))
    assert (found.missing, "--min-free-disk" in found.found) == (False, True)
    [found] = doctor._recordings(replace(card, recording_dir=tmp_path / "file" / "in"))
    assert found.missing
    assert not list(doctor._recordings(replace(card, recording_dir=None)))


def test_a_model_without_its_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", "print(1/0)")
    found = findings(Settings(model={"weights": "/nowhere"}))
    assert found["model"].missing
    assert found["PyTorch"].missing


def test_a_certificate_that_cannot_sign_is_marked(tmp_path: Path) -> None:
    assert not doctor.signing(Settings()).missing
    found = doctor.signing(Settings(c2pa_cert=tmp_path / "nobody.pem", c2pa_key=tmp_path / "nobody.key"))
    assert found.missing
    assert "cannot be read" in found.found
    made = make_signer(tmp_path)
    assert doctor.signing(Settings(c2pa_cert=made.cert, c2pa_key=made.key)).found.endswith("are signed")
