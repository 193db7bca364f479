"""Runs one benchmark: ``python -m echo_rtc.bench NAME [arguments]``.

Each is a module of this package with ``main(argv) -> exit code``, imported only when asked for, because some load torch
and some must not. Knows their names and nothing else about them.
"""

from __future__ import annotations

import importlib
import sys

from echo_rtc.errors import EchoRtcError

BENCHMARKS = {
    "parity": "how far the networks' numbers are from a reference",
    "combinations": "how far each way to compute the model is from the slowest",
    "render": "frames per second and share of the processor of the clip generator",
    "generation": "frames per second of full-size EchoMimic-V2 with random weights on a GPU",
    "sync": "difference between sound and picture as a client receives them",
    "speech": "how soon pushed speech is heard and seen, and how soon an interruption ends it",
    "stream": "processor time of the whole server process for one stream",
    "viewers": "processor time of the whole server process for each viewer of one stream",
    "live": "whole calls at a whole server: frames, delay, steps, a killed worker, the start",
    "admission": "how many streams workers at the edge of real time are given, and whether these are held",
    "engine": "throughput of several workers, and what preparing, handing over and losing one costs",
    "latency": "delay from the microphone to the echo",
    "capacity": "how many calls one core holds, and what one more does to them",
    "soak": "visitors come and go for a long time, and what is left of them",
    "faults": "a live call while packets are lost, clients vanish and the server stops",
    "hostile": "hostile requests at a real server, and what they leave behind",
    "avatars": "held frames of a stream while a further avatar is prepared",
}


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first argument names; returns the exit code, 2 for an error of the user's."""
    if argv and argv[0] in ("-h", "--help"):
        lines = (f"  {name:<12} {about}" for name, about in BENCHMARKS.items())
        sys.stdout.write("usage: echo-rtc bench NAME [flags]; each has --help\n\n" + "\n".join(lines) + "\n")
        return 0
    if not argv or argv[0] not in BENCHMARKS:
        given = repr(argv[0]) if argv else "missing"
        sys.stderr.write(f"the benchmark's name is {given}; it must be one of {', '.join(BENCHMARKS)}\n")
        return 2
    module = importlib.import_module(f"echo_rtc.bench.{argv[0]}")
    try:
        return int(module.main(argv[1:]))
    except EchoRtcError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
