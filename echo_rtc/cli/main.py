"""``echo-rtc COMMAND``, which is also ``python -m echo_rtc COMMAND``: finds the module of a command and runs it.

Modules are imported when their command is run: some load torch, some must not, and a worker process, which imports the
program that started it, needs none of them.
"""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from collections.abc import Callable, Sequence

from echo_rtc import __version__

COMMANDS = {
    "serve": ("echo_rtc.cli.serve", "serve talking avatars to browsers, WHIP and WHEP clients"),
    "render": ("echo_rtc.cli.render", "render the voice of files to movies"),
    "inspect": ("echo_rtc.cli.inspect", "say whether files are marked as AI-generated"),
    "token": ("echo_rtc.cli.token", "print a signed token that allows one thing for some time"),
    "doctor": ("echo_rtc.cli.doctor", "say what this machine can do with these settings"),
    "bench": ("echo_rtc.bench.__main__", "measure: delay, sync, speed, load, attacks"),
    "convert": ("echo_rtc.model.convert", "write published weights as safetensors beside one config.json"),
    "train": ("echo_rtc.train.__main__", "make the embedded model: data, training, evaluation"),
}
"""Each command's module, whose ``main(argv)`` returns the exit code, and one line about it."""

PROG = "echo-rtc"


def usage() -> str:
    """What ``--help`` prints."""
    rows = "\n".join(f"  {name:<9} {about}" for name, (_, about) in COMMANDS.items())
    return (
        f"usage: {PROG} COMMAND [flags]\n\ncommands:\n{rows}\n\n"
        f"options:\n  -h, --help   show this text; {PROG} COMMAND --help shows a command's flags\n"
        "  --version    show the version\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code, 2 where there is no such command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text; to print one must not fail after the work is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        sys.stderr.write(usage())
        return 2
    if words[0] in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"{PROG} {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        mend = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
        sys.stderr.write(f"{PROG}: {words[0][:60]!r} is not a command; {mend}\n")
        return 2
    module = importlib.import_module(COMMANDS[words[0]][0])
    run: Callable[[Sequence[str]], int] = module.main
    return run(words[1:])
