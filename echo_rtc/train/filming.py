"""Renders takes and pictures with many processes until a time is over: ``echo-rtc train film``.

Take and picture numbers are handed out in order, so what a longer run makes begins with what a shorter one makes. It
knows nothing of how people are made or of what is trained on them.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import torch

from echo_rtc.errors import InputError
from echo_rtc.train.footage import pack, save
from echo_rtc.train.loop import make_folder, start_log
from echo_rtc.train.people.asset import Asset
from echo_rtc.train.people.person import NAMED
from echo_rtc.train.people.shoot import (
    HELD_OUT_PEOPLE,
    TAKES_PER_PERSON,
    Speech,
    Studio,
    make_picture,
    make_take,
)

log = logging.getLogger(__name__)

PICTURES_PER_FILE = 16

MAX_FAILURES = 3
"""Blocks in a row that a worker may fail at before it ends."""

PEOPLE = ("training", "held-out", "named")


@dataclass(frozen=True)
class Plan:
    """What is filmed: from which ``asset`` and ``corpus`` into which folder, until when (``time.time``), how many
    blocks of one person at most, frames of a take, files of pictures after each block, and which :data:`PEOPLE`."""

    asset: Path
    corpus: Path
    output: Path
    until: float
    blocks: int
    frames: int
    pictures: int
    gpus: int
    people: str


def _work(plan: Plan, worker: int, counter: Synchronized[int]) -> None:
    """Films block after block."""
    torch.set_num_threads(1)
    start_log()
    device = torch.device(f"cuda:{worker % plan.gpus}" if plan.gpus else "cpu")
    if plan.gpus:
        torch.cuda.set_device(device)
    studio = Studio(Asset.load(plan.asset), device, device_index=worker % plan.gpus if plan.gpus else None)
    while not plan.corpus.exists() and time.time() < plan.until:  # it may still be in the making
        time.sleep(0.5)
    if not plan.corpus.exists():
        log.error("the corpus %s was not there in time; make it with echo-rtc train speech", plan.corpus)
        return
    speech = Speech.load(plan.corpus)
    film_blocks(plan, counter, lambda block: _block(plan, studio, speech, block))


def film_blocks(plan: Plan, counter: Synchronized[int], film: Callable[[int], None]) -> None:
    """Films the next block of all, again and again, until time or blocks are used up, or :data:`MAX_FAILURES` blocks in
    a row have failed: a worker whose device is lost must not use up the blocks of the others."""
    failures = 0
    while time.time() < plan.until and failures < MAX_FAILURES:
        with counter.get_lock():
            block = counter.value
            counter.value += 1
        if block >= plan.blocks:
            break
        try:
            film(block)
            failures = 0
        except Exception:  # one person that cannot be made is no reason to stop
            failures += 1
            log.exception("block %d", block)


def _block(plan: Plan, studio: Studio, speech: Speech, block: int) -> None:
    """One person's takes, and pictures of several."""
    for number in range(TAKES_PER_PERSON * block, TAKES_PER_PERSON * (block + 1)):
        if time.time() > plan.until:
            return
        person: str | int | None = None
        if plan.people == "held-out":
            person = HELD_OUT_PEOPLE + block
        elif plan.people == "named":
            person = list(NAMED)[block % len(NAMED)]
        take = make_take(studio, speech, number, frames=plan.frames, person=person)
        save(plan.output / "takes" / f"{number:06d}.npz", pack(take))
        if person is not None:
            return
    for file in range(plan.pictures * block, plan.pictures * (block + 1)):
        if time.time() > plan.until:
            return
        first = PICTURES_PER_FILE * file
        shots = [make_picture(studio, number) for number in range(first, first + PICTURES_PER_FILE)]
        images = np.stack([np.moveaxis(image, -1, 0) for image, _ in shots])
        save(
            plan.output / "pictures" / f"{file:06d}.npz",
            {"images": images, "boxes": np.stack([boxes for _, boxes in shots]).astype(np.float32)},
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="echo-rtc train film", description=__doc__)
    parser.add_argument("--asset", type=Path, required=True, help="file of the command people-asset")
    parser.add_argument("--corpus", type=Path, required=True, help="file of the command speech")
    parser.add_argument("--output", type=Path, required=True, help="folder for takes/ and pictures/")
    parser.add_argument("--seconds", type=float, default=300.0, help="when to stop")
    parser.add_argument("--blocks", type=int, default=1_000_000, help=f"people at most, {TAKES_PER_PERSON} takes each")
    parser.add_argument("--frames", type=int, default=96, help="frames of a take")
    parser.add_argument("--pictures", type=int, default=1, help=f"files of {PICTURES_PER_FILE} pictures a block")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--people", choices=PEOPLE, default="training", help="held-out and named ones: one take of each, no pictures"
    )
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="auto takes all CUDA devices")
    options = parser.parse_args(argv)
    for name in ("seconds", "blocks", "frames", "processes"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} is {getattr(options, name)}; it must be above 0")
    start_log()
    for name in ("takes", "pictures"):
        make_folder(options.output / name)
    plan = Plan(
        asset=options.asset,
        corpus=options.corpus,
        output=options.output,
        until=time.time() + options.seconds,
        blocks=options.blocks,
        frames=options.frames,
        pictures=options.pictures,
        gpus=torch.cuda.device_count() if options.device == "auto" else 0,
        people=options.people,
    )
    context = get_context("spawn")
    counter = context.Value("l", 0)
    workers = [
        context.Process(target=_work, args=(plan, worker, counter), daemon=True) for worker in range(options.processes)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    made = len(list((options.output / "takes").glob("*.npz")))
    if not made:
        raise InputError(f"no take was made in {options.output}; the lines above say why")
    log.info("%d takes, %d files of pictures", made, len(list((options.output / "pictures").glob("*.npz"))))
    return 0
