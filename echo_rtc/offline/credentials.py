"""Content Credentials (C2PA): a signed statement within a finished file that it was made by a trained model.

A reader that trusts the issuer of the certificate can check the signer, and that the file was not changed afterwards.
No time-stamp server and no other address is asked. Needs the extra ``c2pa``.
"""

from __future__ import annotations

import io
import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from PIL import Image

from echo_rtc.codec.marking import GENERATOR, SYNTHETIC, Mark
from echo_rtc.codec.movie import write_index
from echo_rtc.errors import InputError, SettingsError

logger = logging.getLogger(__name__)

MEDIA_TYPES: Mapping[str, str] = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime"}
"""The endings of movies that can be signed."""
EXTRA = "pip install 'echo-rtc[c2pa]'"
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_OFFLINE = {
    "verify": {"verify_trust": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
"""Settings of the library: nothing is fetched, and issuers are not judged here."""


class CredentialsSigner:
    """Signs finished files with one certificate. Made by :meth:`of`."""

    def __init__(self, chain: bytes, key: bytes, algorithm: str) -> None:
        """``chain``: certificates as PEM, the signer's first. ``key``: PKCS #8 as PEM. ``algorithm``: C2PA's name."""
        self._library = _library()
        self._chain, self._key, self._algorithm = chain, key, algorithm

    @classmethod
    def of(cls, cert: Path | None, key: Path | None) -> CredentialsSigner | None:
        """The signer for the settings ``c2pa_cert`` and ``c2pa_key``; None without them. It signs one small picture as
        a trial. Raises SettingsError if these files cannot sign."""
        if cert is None and key is None:
            return None
        if cert is None or key is None:
            missing = "c2pa_cert" if cert is None else "c2pa_key"
            raise SettingsError(f"{missing} is missing; a certificate and its key are given together")
        chain, private = _chain(cert), _private_key(key)
        _check_dates(chain, cert)
        if chain[0].issuer == chain[0].subject:
            raise SettingsError(f"c2pa_cert {cert} is self-signed; C2PA requires one that an issuer signed")
        if chain[0].public_key() != private.public_key():
            raise SettingsError(f"c2pa_key {key} is not the key of the first certificate in c2pa_cert {cert}")
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain_pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain)
        signer = cls(chain_pem, pem, _algorithm(private, key))
        signer._try(cert)
        _warn_if_readable(key)
        return signer

    def sign(self, path: Path, name: Path, mark: Mark) -> None:
        """Adds credentials to the finished file at ``path``, which is replaced atomically; ``name`` is its final name.
        Raises InputError if that fails."""
        signed = path.with_name(f"{path.name}.signed")
        manifest = _manifest(name.name, mark)
        try:
            rights = stat.S_IMODE(path.stat().st_mode)
            with path.open("rb") as source, open(signed, "w+b", opener=partial(os.open, mode=rights)) as target:
                self._sign(source, target, MEDIA_TYPES[name.suffix.lower()], manifest)
                # c2pa 0.38 writes an index in which every entry leads to the last fragment. The hash does not cover it.
                write_index(source, target)
                target.flush()
                os.fsync(target.fileno())
            signed.replace(path)
        except (OSError, ValueError, self._library.C2paError) as error:
            raise InputError(f"output is {name}, which cannot be signed: {_reason(error)}") from error
        finally:
            signed.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        """Signs a recording, unless it was signed before. Raises InputError if that fails."""
        found = credentials_in(path)
        if found is None or not found.say_synthetic:
            self.sign(path, path.with_name(path.name.replace(".partial", "")), Mark())

    def _try(self, cert: Path) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "JPEG")
        picture.seek(0)
        try:
            self._sign(picture, io.BytesIO(), "image/jpeg", _manifest("trial", Mark()))
        except self._library.C2paError as error:
            raise SettingsError(f"c2pa_cert {cert} cannot sign: {_reason(error)}") from error

    def _sign(self, source: BinaryIO, target: BinaryIO, media_type: str, manifest: Mapping[str, Any]) -> None:
        library = self._library
        info = library.C2paSignerInfo(self._algorithm.encode(), self._chain, self._key, None)
        with (
            library.Signer.from_info(info) as signer,
            library.Context.from_dict(_OFFLINE) as context,
            library.Builder(dict(manifest), context) as builder,
        ):
            builder.sign(signer, media_type, source, target)


def check_can_be_signed(path: Path) -> None:
    """Raises SettingsError for a container that cannot be signed."""
    if path.suffix.lower() not in MEDIA_TYPES:
        kinds = ", ".join(MEDIA_TYPES)
        raise SettingsError(f"c2pa_cert is given, and output is {path}, which cannot be signed; choose one of {kinds}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The Content Credentials of a file. ``state``: "Valid" if the file is as it was signed, "Trusted" if its issuer is
    trusted too, else "Invalid". ``signer``: the subject of the certificate. ``actions``: each with its
    ``digitalSourceType``, "" if it has none. ``problems``: codes of failed checks."""

    state: str
    signer: str
    generator: str
    actions: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    @property
    def say_synthetic(self) -> bool:
        """Whether they are valid, and say that a trained model made the file."""
        return self.state in ("Valid", "Trusted") and any(source == SYNTHETIC for _, source in self.actions)


def credentials_in(path: Path) -> Credentials | None:
    """The Content Credentials of a file; None where it has none, or is of a kind that has none. Raises InputError where
    it cannot be read, SettingsError where the library is missing."""
    library = _library()
    try:
        with (
            path.open("rb") as file,
            library.Context.from_dict(_OFFLINE) as context,
            library.Reader(MEDIA_TYPES.get(path.suffix.lower()), file, context=context) as reader,
        ):
            store = json.loads(reader.json())
    except (library.C2paError.ManifestNotFound, library.C2paError.NotSupported):
        return None
    except (OSError, ValueError, library.C2paError) as error:
        raise InputError(f"the Content Credentials of {path} cannot be read: {_reason(error)}") from error
    active = store["manifests"][store["active_manifest"]]
    signature = active.get("signature_info", {})
    generators = active.get("claim_generator_info", [{}])
    return Credentials(
        state=str(store.get("validation_state", "")),
        signer=str(signature.get("common_name") or signature.get("issuer") or ""),
        generator=" ".join(str(generators[0].get(name, "")) for name in ("name", "version")).strip(),
        actions=tuple(
            (str(action.get("action", "")), str(action.get("digitalSourceType", "")))
            for assertion in active.get("assertions", [])
            if str(assertion.get("label", "")).startswith("c2pa.actions")
            for action in assertion["data"].get("actions", [])
        ),
        problems=tuple(str(status.get("code", "")) for status in store.get("validation_status", [])),
    )


def library_is_there() -> bool:
    """Whether the extra is installed."""
    try:
        _library()
    except SettingsError:
        return False
    return True


def _library() -> ModuleType:
    try:
        import c2pa
    except ImportError as error:
        raise SettingsError(f"c2pa_cert needs the library c2pa-python; {EXTRA}") from error
    module: ModuleType = c2pa
    return module


def _manifest(title: str, mark: Mark) -> dict[str, Any]:
    """The manifest to sign: the file was created by a trained model, with this generator."""
    agent = {"name": GENERATOR, "version": mark.version}
    created = {"action": "c2pa.created", "digitalSourceType": SYNTHETIC, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


def _chain(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_content(path, "c2pa_cert"))
    except ValueError as error:
        raise SettingsError(f"c2pa_cert {path} has no certificate; name a PEM file with the signer's first") from error


def _private_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(_content(path, "c2pa_key"), None)
    except TypeError as error:
        raise SettingsError(
            f"c2pa_key {path} asks for a password; store it without one, readable by this user only"
        ) from error
    except ValueError as error:
        raise SettingsError(f"c2pa_key {path} has no private key; name a PEM file") from error


def _content(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name} {path} cannot be read ({error.strerror}); name a PEM file") from error


def _check_dates(chain: list[x509.Certificate], path: Path) -> None:
    now = datetime.now(UTC)
    for certificate in chain:
        name = certificate.subject.rfc4514_string()
        if certificate.not_valid_after_utc < now:
            ended = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            raise SettingsError(f"c2pa_cert {path} has expired: {name} was good until {ended}; renew it")
        if certificate.not_valid_before_utc > now:
            begins = f"{certificate.not_valid_before_utc:%Y-%m-%d}"
            raise SettingsError(f"c2pa_cert {path} is not good yet: {name} begins on {begins}; check the clock")


def _algorithm(key: PrivateKeyTypes, path: Path) -> str:
    """C2PA's name of the signature that a key makes. Raises SettingsError."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise SettingsError(
        f"c2pa_key {path} is of a kind that C2PA does not know; use P-256, P-384, P-521, RSA or Ed25519"
    )


def _warn_if_readable(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        logger.warning("c2pa_key %s can be read by others (mode %o); chmod 600 keeps it to this user", path, mode)


def _reason(error: Exception) -> str:
    """The message of a library's error in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
