"""Gathers what was trained into the embedded model's folder: ``python -m echo_rtc.train package``.

Weights are stored in half precision, with the widths beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from safetensors.torch import save

from echo_rtc.errors import InputError
from echo_rtc.model.weights import read_state
from echo_rtc.train.loop import make_folder, start_log
from echo_rtc.train.recipe import NETWORKS

log = logging.getLogger(__name__)

PARTS = ("reference_unet", "denoising_unet", "pose_encoder", "autoencoder", "audio_encoder")
MAX_BYTES = 40_000_000


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train package", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder that the training commands wrote to")
    parser.add_argument("--output", type=Path, required=True, help="folder of the embedded model")
    options = parser.parse_args(argv)
    start_log()
    make_folder(options.output)
    # Everything is read before anything is written: no folder is left with parts of two models.
    files = {}
    for part in PARTS:
        path = options.folder / f"{part}.safetensors"
        if not path.is_file():
            raise InputError(f"{path} does not exist; train {part} first")
        state = {name: value.half().contiguous() for name, value in read_state(path).items()}
        broken = [name for name, value in state.items() if not value.isfinite().all()]
        if broken:
            raise InputError(f"{path}: {broken[0]} is not finite in half precision; train {part} again")
        files[path.name] = save(state)
    total = sum(map(len, files.values()))
    if total > MAX_BYTES:
        raise InputError(f"the weights take {total} bytes; the package has room for {MAX_BYTES}")
    for name, content in files.items():
        (options.output / name).write_bytes(content)
    (options.output / "config.json").write_text(json.dumps(NETWORKS, indent=1) + "\n")
    log.info("%d bytes of weights in %s", total, options.output)
    return 0
