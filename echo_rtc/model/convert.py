"""``echo-rtc convert --weights FOLDER --output FOLDER``: published weights to our own layout.

Our own layout is safetensors and one config.json: half the files, no pickles, and quicker to read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from echo_rtc.errors import EchoRtcError, InputError
from echo_rtc.model.audio import WhisperAudioEncoder
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.generator import DTYPES
from echo_rtc.model.loading import load_networks, save_safetensors_layout
from echo_rtc.model.options import INTEGERS

STORED = tuple(name for name in DTYPES if name != INTEGERS)
"""Number formats of stored weights; 8-bit integers are made from them when a model is loaded."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code, 2 for an error of the user's."""
    convert = argparse.ArgumentParser(prog="echo-rtc convert", description="Writes weights in our own layout.")
    convert.add_argument("--weights", required=True, help="folder with weights in the published layout or our own")
    convert.add_argument("--config", help="config.json with the widths, if they are not the published ones")
    convert.add_argument("--output", type=Path, required=True, help="new or empty folder to write to")
    convert.add_argument("--dtype", choices=STORED, default="float16", help="type of the stored numbers")
    options = convert.parse_args(argv)
    try:
        output: Path = options.output
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise InputError(f"the output {output} is not empty; name a new folder")
        description = ModelDescription.from_mapping({"weights": options.weights, "config": options.config}, Path())
        networks = load_networks(description, torch.device("cpu"), torch.float32, _progress)
        audio = WhisperAudioEncoder.load(description.audio_encoder, description.config.get("whisper"))
        save_safetensors_layout(output, networks, audio, description.config, DTYPES[options.dtype])
    except EchoRtcError as error:
        sys.stderr.write(f"echo-rtc convert: {error}\n")
        return 2
    _progress(f"wrote {options.output}")
    return 0


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
