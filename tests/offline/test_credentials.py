"""Movies that are signed: the library's own reader finds what was signed, and every fault is told before rendering."""

from __future__ import annotations

import logging
import struct
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from echo_rtc.cli.main import main
from echo_rtc.codec.marking import SYNTHETIC, Mark
from echo_rtc.errors import InputError, SettingsError
from echo_rtc.offline.credentials import CredentialsSigner, credentials_in
from echo_rtc.offline.inspection import inspected
from echo_rtc.recording.shelf import Shelf
from tests.offline.test_files import tone, write_wav
from tests.offline.test_render import TESTCARD, plain_environment
from tests.recording.film import film, watch
from tests.recording.test_recorder import Session
from tests.support.signing import PEM, Signer, make_signer

__all__ = ["plain_environment"]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return make_signer(tmp_path_factory.mktemp("signer"))


def render(folder: Path, output: str, *flags: str) -> int:
    audio = write_wav(folder / "voice.wav", tone(0.3, 16_000), 16_000)
    return main(["render", "--audio", str(audio), "--output", str(folder / output), *TESTCARD, *flags])


@pytest.mark.parametrize("name", ["face.mp4", "face.mov"])
def test_a_movie_is_signed_as_made_by_a_model(
    name: str, tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(tmp_path, name, *signer.flags) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "voice.wav"]
    found = credentials_in(tmp_path / name)
    assert found is not None
    assert found.state == "Valid"
    assert found.actions == (("c2pa.created", SYNTHETIC),)
    assert (found.signer, found.generator.partition(" ")[0]) == ("Signer", "echo_rtc")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / name)]) == 0
    assert "Content Credentials: Valid" in capsys.readouterr().out


def test_a_change_after_signing_shows(tmp_path: Path, signer: Signer) -> None:
    assert render(tmp_path, "face.mp4", *signer.flags) == 0
    movie = tmp_path / "face.mp4"
    content = bytearray(movie.read_bytes())
    content[content.index(b"mdat") + 200] ^= 0xFF
    movie.write_bytes(content)
    found = credentials_in(movie)
    assert found is not None
    assert found.state == "Invalid"
    assert not found.say_synthetic


async def test_a_recording_is_signed_once_and_plays_as_before(tmp_path: Path, signer: Signer) -> None:
    made = CredentialsSigner.of(signer.cert, signer.key)
    assert made is not None
    unsigned: list[bytes] = []
    steps = (lambda path: unsigned.append(path.read_bytes()), made.finish)
    session = Session(Shelf(tmp_path, steps))
    async with film() as reel:
        await reel.play(session.recorder, 75)
    path = await session.end()
    found = credentials_in(path)
    assert found is not None
    assert found.state == "Valid"
    assert path.stat().st_mode & 0o077 == 0
    before = tmp_path / "before.mp4"
    before.write_bytes(unsigned[0])
    assert watch(path) == watch(before)
    content = path.read_bytes()
    at = content.rindex(b"tfra")
    (count,) = struct.unpack_from(">I", content, at + 16)
    places = [struct.unpack_from(">Q", content, at + 28 + 19 * entry)[0] for entry in range(count)]
    assert len(set(places)) == count > 1
    assert all(content[place + 4 : place + 8] == b"moof" for place in places)
    assert inspected(path).marked == inspected(path).keyframes > 0
    made.finish(path)
    assert path.read_bytes() == content


def test_without_a_certificate_there_are_no_credentials(tmp_path: Path) -> None:
    assert render(tmp_path, "face.mp4") == 0
    assert credentials_in(tmp_path / "face.mp4") is None


def broken(signer: Signer, fault: str, folder: Path) -> Signer:
    """A signer that cannot sign, because of this fault."""
    cert, key, other = signer.cert, signer.key, folder / "other.pem"
    match fault:
        case "expired":
            return make_signer(folder / fault, days=(-9, -2))
        case "early":
            return make_signer(folder / fault, days=(2, 9))
        case "usage":
            return make_signer(folder / fault, usage=ExtendedKeyUsageOID.SERVER_AUTH)
        case "other key":
            return Signer(cert, make_signer(folder / fault).key)
        case "no file":
            return Signer(folder / "nothing.pem", key)
        case "no PEM":
            other.write_bytes(b"\xff\0 no PEM")
            return Signer(cert, other)
        case "no certificate":
            return Signer(key, key)
        case "self-signed":
            return make_signer(folder / fault, self_signed=True)
        case _:
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            encryption = serialization.BestAvailableEncryption(b"secret")
            other.write_bytes(loaded.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption))
            return Signer(cert, other)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("expired", "has expired"),
        ("early", "is not good yet"),
        ("usage", "cannot sign"),
        ("other key", "is not the key of the first certificate"),
        ("no file", "cannot be read (No such file or directory)"),
        ("no PEM", "has no private key"),
        ("no certificate", "has no certificate"),
        ("self-signed", "is self-signed"),
        ("password", "asks for a password"),
    ],
)
def test_a_certificate_that_cannot_sign_is_told_first(
    fault: str, words: str, tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = broken(signer, fault, tmp_path).flags
    assert render(tmp_path, "face.mp4", *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("echo-rtc render: c2pa_")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "face.mp4").exists()


def test_what_does_not_go_together_is_told_first(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(tmp_path, "face.mp4", *signer.flags[:2]) == 2
    assert "c2pa_key is missing" in capsys.readouterr().err
    assert render(tmp_path, "face.mkv", *signer.flags) == 2
    assert "choose one of .mp4, .m4v, .mov" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert render(tmp_path, "face.mp4", *signer.flags) == 2
    assert "pip install 'echo-rtc[c2pa]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voice.wav"]


def test_no_server_starts_that_could_not_sign(
    tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Path(__file__).parents[2] / "configs" / "testcard.yaml"
    flags = ["--config", str(config), "--port", "0", "--log-dir", str(tmp_path / "logs")]
    assert main(["serve", *flags, "--c2pa-cert", str(signer.cert), "--c2pa-key", str(tmp_path / "no.key")]) == 2
    assert f"c2pa_key {tmp_path / 'no.key'} cannot be read" in capsys.readouterr().err


def test_a_key_that_others_can_read_is_warned_of(signer: Signer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CredentialsSigner.of(signer.cert, signer.key)
        assert caplog.messages == []
        signer.key.chmod(0o640)
        CredentialsSigner.of(signer.cert, signer.key)
        signer.key.chmod(0o600)
    (message,) = caplog.messages
    assert "can be read by others (mode 640)" in message


def test_what_is_no_movie_is_not_signed(tmp_path: Path, signer: Signer) -> None:
    made = CredentialsSigner.of(signer.cert, signer.key)
    assert made is not None
    path = tmp_path / "face.mp4"
    path.write_bytes(b"no movie")
    with pytest.raises(InputError, match="cannot be signed"):
        made.sign(path, path, Mark())
    assert path.read_bytes() == b"no movie"
    assert [file.name for file in tmp_path.iterdir()] == ["face.mp4"]
    assert CredentialsSigner.of(None, None) is None
    with pytest.raises(SettingsError, match="c2pa_cert is missing"):
        CredentialsSigner.of(None, signer.key)
