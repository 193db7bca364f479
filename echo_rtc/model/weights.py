"""Weights from one file into one network, strictly: every parameter must come from the file, and fit.

Reads PyTorch files without running code from them, and safetensors; the only reader of weights. Knows nothing of which
files a model has.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from echo_rtc.errors import InputError
from echo_rtc.model.description import WEIGHT_SUFFIXES

State = dict[str, Tensor]

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one that Git LFS has not fetched."""
DAMAGED = "is damaged or holds more than plain tensors; fetch it again"
CHECK_PATH = "check its path in the configuration"

_NAMED = 4
"""How many parameters of each kind an error names before it counts the rest."""

_PICKLE_ERRORS = (
    zipfile.BadZipFile,
    pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, IndexError, AttributeError,
    TypeError, MemoryError,
)  # fmt: skip
"""What torch.load has been seen to raise on damaged files."""


def require_file(path: Path, mend: str, what: str = "the weight file") -> Path:
    """The path, which is a file. Raises InputError with what it is instead and the ``mend``."""
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder; name the file in it")
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist; {mend}")
    return path


def refuse_pointer(path: Path, what: str = "the weight file") -> None:
    """Raises InputError where the file only stands for one that Git LFS has not fetched."""
    with path.open("rb") as file:
        pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    if pointer:
        raise InputError(
            f"{what} {path} is a pointer of Git LFS and not the file itself; fetch it with: "
            f"git -C {path.parent} lfs pull"
        )


def read_file(
    path: Path, what: str = "the weight file", mend: str = CHECK_PATH, damaged: str = DAMAGED
) -> Mapping[str, Any]:
    """The mapping in a .safetensors or PyTorch file, on the CPU, without running code from it.

    Messages begin with ``what`` and the path; ``mend`` is for a file that is missing, ``damaged`` says what is wrong
    with one that cannot be read. Raises InputError.
    """
    require_file(path, mend, what)
    if path.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{what} {path} must end in one of {', '.join(WEIGHT_SUFFIXES)}")
    content: object
    try:
        refuse_pointer(path, what)
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_mappable(path))
    except (SafetensorError, *_PICKLE_ERRORS) as error:
        raise InputError(f"{what} {path} {damaged}") from error
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{what} {path} holds a {type(content).__name__}; named tensors are expected")
    return content


def read_state(path: Path) -> State:
    """The state dict in a .safetensors or PyTorch file, on the CPU.

    Raises InputError if the file is missing, damaged, or holds anything but named tensors.
    """
    content = read_file(path)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"the weight file {path} holds {name!r}, a {type(value).__name__}; only tensors are expected"
            )
    return dict(content)


def _mappable(path: Path) -> bool:
    """Whether the file may be memory-mapped, so that full-size weights are read once, straight into the network: not in
    the format from before PyTorch 1.6, and not if its archive was compressed (PyTorch would map compressed bytes)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def fill(network: nn.Module, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Puts a state dict into a network (which may be on the meta device), as ``dtype`` and as copies; convolutions'
    weights are stored channels_last, as the networks compute.

    Raises InputError unless the state dict holds exactly the network's parameters, each of its shape.
    """
    check(network, state, source)
    own = {
        name: value.detach().to(
            dtype=dtype, copy=True, memory_format=torch.channels_last if value.ndim == 4 else torch.preserve_format
        )
        for name, value in state.items()
    }
    network.load_state_dict(own, assign=True)


def check(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Compares names and shapes. Raises InputError in one sentence: what is missing, unexpected and misshapen."""
    expected = network.state_dict()
    complaints = []
    if missing := [name for name in expected if name not in state]:
        complaints.append(f"{len(missing)} parameters are missing ({_some(missing)})")
    if unexpected := [name for name in state if name not in expected]:
        complaints.append(f"{len(unexpected)} are unexpected ({_some(unexpected)})")
    misshapen = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if misshapen:
        complaints.append(f"{len(misshapen)} have another shape ({_some(misshapen)})")
    if complaints:
        raise InputError(f"{source} does not fit the {type(network).__name__} of the model: {', '.join(complaints)}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
