"""Gathers what was trained into the embedded model's folder: ``python -m echo_rtc.train package``.

Weights are stored in half precision; beside them the widths, the default avatar's picture and its pose sequence.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from safetensors.torch import load_file, save_file

from echo_rtc.errors import InputError
from echo_rtc.train.gestures import main_poses
from echo_rtc.train.loop import start_log
from echo_rtc.train.person import main_person
from echo_rtc.train.recipe import NETWORKS

log = logging.getLogger(__name__)

PARTS = ("reference_unet", "denoising_unet", "pose_encoder", "autoencoder", "audio_encoder")
MAX_BYTES = 25_000_000


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m echo_rtc.train package", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder that the training commands wrote to")
    parser.add_argument("--output", type=Path, required=True, help="folder of the embedded model")
    parser.add_argument("--weights-only", action="store_true", help="leave picture and poses as they are")
    options = parser.parse_args(argv)
    start_log()
    options.output.mkdir(parents=True, exist_ok=True)
    total = 0
    for part in PARTS:
        path = options.folder / f"{part}.safetensors"
        if not path.is_file():
            raise InputError(f"{path} does not exist; train {part} first")
        save_file({name: value.half() for name, value in load_file(path).items()}, options.output / path.name)
        total += (options.output / path.name).stat().st_size
    if total > MAX_BYTES:
        raise InputError(f"the weights take {total} bytes; the package has room for {MAX_BYTES}")
    (options.output / "config.json").write_text(json.dumps(NETWORKS, indent=1) + "\n")
    log.info("%d bytes of weights in %s", total, options.output)
    if options.weights_only:
        return 0
    code = main_person(["--output", str(options.output / "reference.png"), "--size", "512"])
    return code or main_poses(["--output", str(options.output / "poses")])
