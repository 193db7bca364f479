"""HTTPS: the certificate that the server shows, given by files or made here for a local network.

A certificate made here is kept between starts, so that a browser that was told to trust it need not be told again, and
replaced when it nears its end or this machine has an address that it does not name. Its key is readable by its owner
only. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ifaddr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from echo_rtc.errors import InputError, SettingsError

RENEWAL_LOOK_S = 60.0
"""Polling interval for certificate files that were renewed."""
LIFETIME = timedelta(days=397)
"""Browsers refuse certificates that are good for longer."""
RENEW_BEFORE = timedelta(days=30)

logger = logging.getLogger(__name__)

Name = str | ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(slots=True)
class Certificate:
    """A certificate in use: its context, its SHA-256 fingerprint as browsers show it, and the files it is from."""

    context: ssl.SSLContext
    fingerprint: str
    cert: Path
    key: Path
    _seen: tuple[float, float] = (0.0, 0.0)

    def renew(self) -> bool:
        """Takes the files' new contents for connections from now on, if they have changed; whether the certificate is
        another one. Raises InputError, once for each change, if they cannot be used; the old one stays then."""
        try:
            changed = (self.cert.stat().st_mtime, self.key.stat().st_mtime)
        except OSError:  # one of them is just being replaced
            return False
        if changed == self._seen:
            return False
        self._seen = changed
        try:
            fresh = from_files(self.cert, self.key)
            self.context.load_cert_chain(self.cert, self.key)  # also if only its issuers have changed
        except (OSError, ssl.SSLError) as error:  # one of them was replaced between two looks at it
            self._seen = (0.0, 0.0)
            raise InputError(f"tls_cert {self.cert} and tls_key {self.key} changed while they were read") from error
        renewed = fresh.fingerprint != self.fingerprint
        self.fingerprint = fresh.fingerprint
        return renewed


async def keep_renewed(certificate: Certificate) -> None:
    """Looks for renewed files for ever, and logs what comes of it."""
    while True:
        await asyncio.sleep(RENEWAL_LOOK_S)
        try:
            if certificate.renew():
                logger.info("a renewed certificate is in use; its SHA-256 fingerprint is %s", certificate.fingerprint)
        except InputError as error:
            logger.error("the renewed certificate cannot be used, the old one stays: %s", error)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The settings of TLS. Without any, the server speaks plain HTTP."""

    cert: Path | None = None
    key: Path | None = None
    self_signed: bool = False

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, self_signed: bool) -> TlsOptions:
        """Raises SettingsError for what does not go together."""
        if (cert is None) != (key is None):
            missing = "tls_key" if key is None else "tls_cert"
            raise SettingsError(f"{missing} is missing; a certificate and its key are given together")
        if self_signed and cert is not None:
            raise SettingsError("tls_self_signed is given with tls_cert; leave one of them out")
        return cls(cert, key, self_signed)

    def certificate(self) -> Certificate | None:
        """The certificate to show, None for plain HTTP. Raises InputError if its files cannot be used."""
        if self.cert is not None and self.key is not None:
            return from_files(self.cert, self.key)
        if self.self_signed:
            return self_signed(own_names(), kept_in())
        return None


def from_files(cert: Path, key: Path) -> Certificate:
    """A certificate (PEM, with those of its issuers) and its key. Raises InputError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def no_password() -> str:
        raise InputError(f"tls_key {key} asks for a password; store it without one, readable by this user only")

    for path, name in ((cert, "tls_cert"), (key, "tls_key")):
        try:
            path.read_bytes()
        except OSError as error:
            raise InputError(f"{name} {path} cannot be read ({error.strerror}); name a PEM file") from error
    try:
        context.load_cert_chain(cert, key, no_password)
        fingerprint = _fingerprint(x509.load_pem_x509_certificate(cert.read_bytes()))
    except (ssl.SSLError, ValueError) as error:
        why = "the key is another certificate's" if "MISMATCH" in str(error) else "one of them is not PEM"
        raise InputError(f"tls_cert {cert} and tls_key {key} cannot be used together: {why}") from error
    return Certificate(context, fingerprint, cert, key, (cert.stat().st_mtime, key.stat().st_mtime))


def self_signed(names: Iterable[Name], folder: Path) -> Certificate:
    """A certificate for these names, kept in ``folder`` and replaced if need be. Raises InputError if it cannot be."""
    names = list(names)
    cert, key = folder / "self-signed.pem", folder / "self-signed.key"
    if not _still_good(cert, key, names):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            certificate_pem, key_pem = _make(names, datetime.now(UTC))
            _write(key, key_pem)
            _write(cert, certificate_pem)
        except OSError as error:
            raise InputError(
                f"the certificate for --tls-self-signed cannot be kept in {folder} ({error.strerror}); set "
                "XDG_STATE_HOME to a folder that can be written"
            ) from error
    return from_files(cert, key)


def own_names() -> list[Name]:
    """What this machine is called: localhost, its host name (also .local) and all its addresses."""
    host = socket.gethostname().lower()
    names: list[Name] = ["localhost"]
    if host and host.isascii():
        names += [host, f"{host.partition('.')[0]}.local"]
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            names.append(ipaddress.ip_address(text.partition("%")[0]))
    return list(dict.fromkeys(names))


def kept_in() -> Path:
    """The folder of certificates that are made here, by the XDG base directory specification."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "echo_rtc"


def _still_good(cert: Path, key: Path, names: Iterable[Name]) -> bool:
    """Whether the kept certificate lasts for some time yet and names all of ``names`` but for IPv6 addresses, which
    many systems change every day."""
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    if loaded.public_key() != certificate.public_key():
        return False
    named = {*known.get_values_for_type(x509.DNSName), *known.get_values_for_type(x509.IPAddress)}
    needed = {name for name in names if not isinstance(name, ipaddress.IPv6Address)}
    return needed <= named and datetime.now(UTC) < certificate.not_valid_after_utc - RENEW_BEFORE


def _make(names: Iterable[Name], now: datetime) -> tuple[bytes, bytes]:
    """(certificate, key) as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "echo_rtc, self-signed")])
    alternative: list[x509.GeneralName] = [
        x509.DNSName(name) if isinstance(name, str) else x509.IPAddress(name) for name in names
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFETIME - timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, and for its owner only."""
    partial = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(partial, path)


def _fingerprint(certificate: x509.Certificate) -> str:
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
