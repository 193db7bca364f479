"""``echo-rtc doctor [--no-measure] [settings]``: what this machine can do with these settings, on one page.

Devices, memory, PyTorch and its kernels, 8-bit floating point, what keeps optional libraries from being used, codecs,
the port, which model files are there, and the rung that ``--quality auto`` would take: that one is measured, with the
model loaded, unless ``--no-measure`` is given. Exit code 0 if a server could start, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import av
import psutil

from echo_rtc import __version__
from echo_rtc.engine.devices import usable_cores
from echo_rtc.engine.ladder import settled
from echo_rtc.errors import EchoRtcError
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.quality import AUTO, Able
from echo_rtc.offline.credentials import EXTRA, CredentialsSigner, library_is_there
from echo_rtc.settings import Settings, SettingsParser, settings_from

GIB = 2**30
PROBE_S = 120.0
"""How long importing torch and asking each device may take (s)."""

PROBE = """
import importlib, importlib.metadata, json, shutil, torch
devices = []
for number in range(torch.cuda.device_count()):
    free, total = torch.cuda.mem_get_info(number)
    about = torch.cuda.get_device_properties(number)
    devices.append([about.name, free, total, [about.major, about.minor], about.multi_processor_count])
has = {}
for library, module in (("triton", "triton"), ("xformers", "xformers.ops"), ("torchao", "torchao.quantization")):
    try:
        importlib.import_module(module)
        has[library] = [importlib.metadata.version(library), ""]
    except ModuleNotFoundError as error:
        has[library] = ["", "" if error.name == library else str(error)]
    except Exception as error:
        has[library] = ["", str(error).splitlines()[0]]
compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "devices": devices, "has": has,
                  "compiler": compiler}))
"""

ADA, TURING = (8, 9), (7, 5)
AUTOTUNE_PROCESSORS = 68
"""Multiprocessors below which PyTorch does not tune matrix products (torch._inductor.utils.is_big_gpu)."""

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
        parser = SettingsParser("echo-rtc doctor", "Says what this machine can do with these settings.")
        parser.add_argument(
            "--measure",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="load the model and measure which rung --quality auto would take [True]",
        )
        arguments = parser.arguments(argv)
        settings = settings_from(arguments, os.environ)
    except EchoRtcError as error:
        sys.stderr.write(f"echo-rtc doctor: {error}\n")
        return 2
    findings = [*examined(settings)]
    if arguments.measure and settings.engine == "local" and not any(finding.missing for finding in findings):
        findings.append(_rung(settings))
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        sys.stdout.write(f"{'!' if finding.missing else ' '} {finding.what:<{width}}  {finding.found}\n")
    return int(any(finding.missing for finding in findings))


def examined(settings: Settings) -> Iterator[Finding]:
    """All findings for these settings that need no model. Blocks while torch is imported in a process of its own."""
    yield Finding("echo_rtc", f"{__version__}, Python {sys.version.split()[0]}")
    memory = psutil.virtual_memory()
    yield Finding("processor", f"{usable_cores():g} cores that this process may use")
    yield Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")
    yield from _torch(settings)
    yield from _codecs()
    yield signing(settings)
    yield from _recordings(settings)
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
    for number, (name, free, total, capability, _) in enumerate(found["devices"]):
        eight_bits = "8-bit floating point" if tuple(capability) >= ADA else "no 8-bit floating point"
        yield Finding(f"GPU {number}", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {eight_bits}")
    yield from _libraries(found)


def _libraries(found: dict[str, Any]) -> Iterator[Finding]:
    """Optional ways to compute, and what stands in the way of each here."""
    devices = found["devices"]
    weakest = min((tuple(device[3]) for device in devices), default=(0, 0))
    smallest = min((device[4] for device in devices), default=0)
    for library, use, least in (
        ("triton", "--kernels triton", TURING),
        ("xformers", "--attention xformers", TURING),
        ("torchao", "--quantize-fp8-mode dynamic and weight-only", ADA),
    ):
        version, error = found["has"][library]
        obstacles = [] if version else [f"it cannot be imported ({error})" if error else "not installed (extra gpu)"]
        obstacles += [] if weakest >= least else [f"needs a GPU of compute capability {least[0]}.{least[1]}"]
        yield Finding(library, f"{version or 'no version'}, {use}: {'; '.join(obstacles) or 'can be used'}")
    obstacles = [] if found["has"]["triton"][0] else ["needs Triton"]
    obstacles += [] if found["compiler"] else ["needs a C compiler (cc)"]
    obstacles += [] if devices else ["needs a GPU"]
    if devices and smallest < AUTOTUNE_PROCESSORS:
        obstacles.append(f"PyTorch tunes products from {AUTOTUNE_PROCESSORS} multiprocessors on; here are {smallest}")
    state = "; ".join(obstacles) or "can be used; the first start compiles for minutes"
    yield Finding("max-autotune", f"--compile-unet --compile-unet-mode max-autotune: {state}")


def _rung(settings: Settings) -> Finding:
    """The rung that ``--quality auto`` would take. Loads the model and measures it."""
    description = ModelDescription.from_mapping(settings.model, settings.model_base)
    quiet = logging.getLogger(__name__).debug
    wanted = replace(settings, quality=AUTO)
    try:
        _, chosen = asyncio.run(settled(wanted, quiet, partial(Able.of, description)))
    except EchoRtcError as error:
        return Finding("auto", str(error), True)
    return Finding("auto", str(chosen))


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


def _recordings(settings: Settings) -> Iterator[Finding]:
    """Whether recordings can be written, where there is a folder for them."""
    folder = settings.recording_dir
    if folder is None:
        return
    if "libx264" not in av.codecs_available:
        yield Finding("recordings", "need libx264, which this build of PyAV lacks", True)
        return
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding("recordings", f"{folder} cannot be written", True)
        return
    free = shutil.disk_usage(existing).free
    few = free < settings.min_free_disk * 1024**2
    yield Finding("recordings", f"{folder}, {free / GIB:.1f} GiB free{', less than --min-free-disk' if few else ''}")


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
