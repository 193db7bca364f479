"""``echo-rtc doctor [settings]``: what this machine can do with these settings, on one page, without starting anything.

Devices, memory, PyTorch and its kernels, 8-bit floating point, codecs, the port, and which model files are there.
Exit code 0 if a server could start, else 1.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import av
import psutil

from echo_rtc import __version__
from echo_rtc.engine.devices import usable_cores
from echo_rtc.errors import EchoRtcError
from echo_rtc.model.description import ModelDescription
from echo_rtc.offline.credentials import EXTRA, CredentialsSigner, library_is_there
from echo_rtc.settings import Settings, load_settings

GIB = 2**30
PROBE_S = 120.0
"""How long importing torch and asking each device may take (s)."""

PROBE = """
import importlib.util, json, torch
devices = []
for number in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(number)
    capability = torch.cuda.get_device_capability(number)
    devices.append([torch.cuda.get_device_name(number), free, total, capability])
has = {name: importlib.util.find_spec(name) is not None for name in ("triton", "xformers", "torchao")}
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "devices": devices, "has": has}))
"""

FP8_CAPABILITY = (8, 9)
CODECS = ("libopus", "libx264", "libvpx")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page. ``missing``: without it no server starts."""

    what: str
    found: str
    missing: bool = False


def main(argv: Sequence[str]) -> int:
    """Prints the page; returns the exit code."""
    try:
        settings = load_settings(argv, os.environ, "echo-rtc doctor")
    except EchoRtcError as error:
        sys.stderr.write(f"echo-rtc doctor: {error}\n")
        return 2
    findings = [*examined(settings)]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        sys.stdout.write(f"{'!' if finding.missing else ' '} {finding.what:<{width}}  {finding.found}\n")
    return int(any(finding.missing for finding in findings))


def examined(settings: Settings) -> Iterator[Finding]:
    """All findings for these settings. Blocks while torch is imported in a process of its own."""
    yield Finding("echo_rtc", f"{__version__}, Python {sys.version.split()[0]}")
    memory = psutil.virtual_memory()
    yield Finding("processor", f"{usable_cores():g} cores that this process may use")
    yield Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")
    yield from _torch(settings)
    yield from _codecs()
    yield signing(settings)
    yield _port(settings)
    yield from _model(settings)


def _torch(settings: Settings) -> Iterator[Finding]:
    needed = settings.engine != "testcard"
    try:
        answer = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S, check=True
        )
        found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        yield Finding("PyTorch", f"cannot be asked: {error}", needed)
        return
    yield Finding("PyTorch", f"{found['torch']}, CUDA {found['cuda'] or 'none'}")
    if not found["devices"]:
        yield Finding("GPU", "none that PyTorch can use; the model runs on the processor")
    for number, (name, free, total, capability) in enumerate(found["devices"]):
        eight_bits = "8-bit floating point" if tuple(capability) >= FP8_CAPABILITY else "no 8-bit floating point"
        yield Finding(f"GPU {number}", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {eight_bits}")
    for library, use in (
        ("triton", "the fused kernels (--kernels triton)"),
        ("xformers", "--attention xformers"),
        ("torchao", "--quantize-fp8-mode dynamic and weight-only"),
    ):
        state = metadata.version(library) if found["has"][library] else "not installed"
        yield Finding(library, f"{state}: {use}")


def _codecs() -> Iterator[Finding]:
    for name in CODECS:
        there = name in av.codecs_available
        yield Finding(name, "there" if there else "not in this build of PyAV", not there and name != "libx264")


def signing(settings: Settings) -> Finding:
    """Whether movies can be signed, and with these settings will be."""
    name = "c2pa-python"
    if not library_is_there():
        return Finding(name, f"not installed: signed movies; {EXTRA}", settings.c2pa_cert is not None)
    try:
        signer = CredentialsSigner.of(settings.c2pa_cert, settings.c2pa_key)
    except EchoRtcError as error:
        return Finding(name, str(error), True)
    use = "signed movies (--c2pa-cert)" if signer is None else "movies and recordings are signed"
    return Finding(name, f"{metadata.version(name)}: {use}")


def _port(settings: Settings) -> Finding:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as error:
        return Finding("port", f"{settings.port} on {settings.host} cannot be had: {error.strerror}", True)
    return Finding("port", f"{settings.port} on {settings.host} is free")


def _model(settings: Settings) -> Iterator[Finding]:
    for what, path in (("reference image", settings.reference_image), ("poses", settings.pose_dir)):
        yield Finding(what, f"{path}{'' if path.exists() else ' does not exist'}", not path.exists())
    if settings.engine == "testcard":
        return
    try:
        ModelDescription.from_mapping(settings.model, settings.model_base)
    except EchoRtcError as error:
        yield Finding("model", str(error), True)
    else:
        yield Finding("model", f"all files of {settings.config} are there")
