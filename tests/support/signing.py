"""A small certificate authority, whose certificates sign Content Credentials."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Signer:
    """The files of a certificate with its issuer's, and of its key."""

    cert: Path
    key: Path

    @property
    def flags(self) -> list[str]:
        return ["--c2pa-cert", str(self.cert), "--c2pa-key", str(self.key)]


def make_signer(
    folder: Path,
    days: tuple[int, int] = (-1, 30),
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    self_signed: bool = False,
) -> Signer:
    """A signer whose certificate is good between these days from now, and for ``usage``."""
    folder.mkdir(parents=True, exist_ok=True)
    key, root_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    root = (
        _certificate("Root", root_key.public_key(), (now - 100 * DAY, now + 100 * DAY), ca=True)
        .issuer_name(_name("Root"))
        .sign(root_key, hashes.SHA256())
    )
    issuer_key = key if self_signed else root_key
    issuer_id = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    leaf = (
        _certificate("Signer", key.public_key(), (now + days[0] * DAY, now + days[1] * DAY), ca=False)
        .issuer_name(_name("Signer" if self_signed else "Root"))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    chain = [leaf] if self_signed else [leaf, root]
    made = Signer(folder / "signer.pem", folder / "signer.key")
    made.cert.write_bytes(b"".join(certificate.public_bytes(PEM) for certificate in chain))
    made.key.touch(mode=0o600)
    made.key.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return made


def _name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _certificate(
    common: str, key: ec.EllipticCurvePublicKey, good: tuple[datetime, datetime], ca: bool
) -> x509.CertificateBuilder:
    """What all certificates have."""
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(good[0])
        .not_valid_after(good[1])
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(_key_usage(ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
