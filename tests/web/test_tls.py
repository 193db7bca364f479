"""Certificates: given ones, ones made for a local network, and files that cannot be used."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from echo_rtc.errors import InputError, SettingsError
from echo_rtc.web import tls
from echo_rtc.web.tls import Certificate, TlsOptions, from_files, own_names, self_signed

LOCAL = ["localhost", ipaddress.ip_address("127.0.0.1")]


def kept(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / "self-signed.pem").read_bytes())


async def test_only_a_client_that_trusts_the_certificate_connects(tmp_path: Path) -> None:
    certificate = self_signed(LOCAL, tmp_path)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"over": "tls"})

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate.context).start()
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
        trusting = ssl.create_default_context(cafile=str(tmp_path / "self-signed.pem"))
        async with aiohttp.ClientSession() as session:
            async with session.get(url, ssl=trusting) as response:
                assert await response.json() == {"over": "tls"}
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(url)
            pinned = aiohttp.Fingerprint(bytes.fromhex(certificate.fingerprint.replace(":", "")))
            async with session.get(url, ssl=pinned) as response:
                assert response.status == 200
    finally:
        await runner.cleanup()


def test_it_is_kept_between_starts_and_its_key_is_its_owners(tmp_path: Path) -> None:
    first = self_signed(LOCAL, tmp_path / "new" / "folder")
    assert self_signed(LOCAL[:1], tmp_path / "new" / "folder").fingerprint == first.fingerprint
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "folder" / "self-signed.key").stat().st_mode & 0o077 == 0
    assert len(first.fingerprint.split(":")) == 32


def test_it_is_replaced_for_a_new_address_and_near_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = self_signed(LOCAL, tmp_path)
    second = self_signed([*LOCAL, ipaddress.ip_address("192.0.2.7")], tmp_path)
    assert second.fingerprint != first.fingerprint
    assert self_signed([*LOCAL, ipaddress.ip_address("2001:db8::7")], tmp_path).fingerprint == second.fingerprint
    monkeypatch.setattr(tls, "RENEW_BEFORE", timedelta(days=396))
    third = self_signed(LOCAL, tmp_path)
    assert third.fingerprint != second.fingerprint
    monkeypatch.undo()
    (tmp_path / "self-signed.key").write_text("damaged")
    assert self_signed(LOCAL, tmp_path).fingerprint != third.fingerprint


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(tmp_path: Path) -> None:
    used = self_signed(LOCAL, tmp_path)
    first = used.fingerprint
    assert not used.renew()
    self_signed(LOCAL, tmp_path / "other")
    for name in ("self-signed.pem", "self-signed.key"):
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
        os.utime(tmp_path / name, (1, 1))
    assert used.renew()
    second = used.fingerprint
    assert second != first
    (tmp_path / "self-signed.pem").write_text("half a cert")
    with pytest.raises(InputError, match="cannot be used together"):
        used.renew()
    assert not used.renew()
    (tmp_path / "self-signed.pem").unlink()
    assert not used.renew()
    assert used.fingerprint == second


def test_a_certificate_that_changes_during_a_poll_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = self_signed(LOCAL, tmp_path)
    self_signed(LOCAL, tmp_path / "other")
    for name in ("self-signed.pem", "self-signed.key"):
        (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
        os.utime(tmp_path / name, (1, 1))

    def vanished(cert: Path, key: Path) -> Certificate:
        raise FileNotFoundError(cert)

    with monkeypatch.context() as patch:
        patch.setattr("echo_rtc.web.tls.from_files", vanished)
        with pytest.raises(InputError, match="changed while they were read"):
            used.renew()
    assert used.renew()


def test_it_says_what_browsers_want(tmp_path: Path) -> None:
    self_signed(own_names(), tmp_path)
    certificate = kept(tmp_path)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", socket.gethostname().lower()} <= set(names.get_values_for_type(x509.DNSName))
    assert ipaddress.ip_address("127.0.0.1") in names.get_values_for_type(x509.IPAddress)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=397)
    assert certificate.not_valid_before_utc < datetime.now(UTC) < certificate.not_valid_after_utc
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be kept in .*; set XDG_STATE_HOME"):
        self_signed(LOCAL, tmp_path / "file")


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert tls.kept_in() == Path("/state/echo_rtc")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ann")
    assert tls.kept_in() == Path("/home/ann/.local/state/echo_rtc")


Spoil = Callable[[Path, Path], None]


def encrypt(_: Path, key: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def swap(_: Path, key: Path) -> None:
    self_signed(LOCAL, key.parent / "other")
    key.write_bytes((key.parent / "other" / "self-signed.key").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cert, _: cert.unlink(), "tls_cert .* cannot be read"),
        (lambda _, key: key.unlink(), "tls_key .* cannot be read"),
        (lambda cert, _: cert.write_text("no PEM"), "one of them is not PEM"),
        (lambda _, key: key.write_text("no PEM"), "one of them is not PEM"),
        (encrypt, "asks for a password"),
        (swap, "the key is another certificate's"),
    ],
)
def test_files_that_cannot_be_used_are_one_sentence(tmp_path: Path, spoil: Spoil, words: str) -> None:
    self_signed(LOCAL, tmp_path)
    cert, key = tmp_path / "self-signed.pem", tmp_path / "self-signed.key"
    assert isinstance(from_files(cert, key), Certificate)
    spoil(cert, key)
    with pytest.raises(InputError, match=words):
        from_files(cert, key)


def test_what_does_not_go_together_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    with pytest.raises(SettingsError, match="tls_key is missing"):
        TlsOptions.of(path, None, False)
    with pytest.raises(SettingsError, match="tls_cert is missing"):
        TlsOptions.of(None, path, False)
    with pytest.raises(SettingsError, match="tls_self_signed is given with tls_cert"):
        TlsOptions.of(path, path, True)
    assert TlsOptions.of(None, None, False).certificate() is None
