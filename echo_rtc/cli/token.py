"""``echo-rtc token``: makes a signed token. Knows flags and text; what a token is, is in ``auth``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields

from echo_rtc.errors import EchoRtcError, SettingsError
from echo_rtc.rtc.session import MAX_NAME_CHARACTERS, can_be_a_name
from echo_rtc.settings import Settings, SettingsParser, settings_from
from echo_rtc.web.auth import MIN_SECRET_CHARACTERS, Authorisation, Right, mint

PROG = "echo-rtc token"
SETTINGS = ("config", "auth_token", "token_secret")
"""The settings that matter to a token."""
SCOPES = {
    "publish": frozenset({Right.PUBLISH}),
    "view": frozenset({Right.VIEW}),
    "call": frozenset({Right.PUBLISH, Right.VIEW}),
    "admin": frozenset({Right.ADMIN}),
}
DEFAULT_EXPIRES = "1h"
MAX_DAYS = 3650

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code, 2 for a flag or setting that cannot be."""
    try:
        sys.stdout.write(f"{token_of(argv)}\n")
    except EchoRtcError as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 2
    return 0


def token_of(argv: Sequence[str]) -> str:
    """The token that these flags ask for. Raises SettingsError; ``--help`` prints and raises SystemExit(0)."""
    parser = SettingsParser(
        PROG,
        "Prints a token that allows one thing for some time, signed with the secret of the server (--token-secret, or "
        "an --auth-token of 32 characters).",
        without=[item.name for item in fields(Settings) if item.name not in SETTINGS],
        required="--scope SCOPE [--name NAME]",
    )
    group = parser.add_argument_group("token")
    group.add_argument("--scope", metavar="|".join(SCOPES), required=True, help="What it allows; call: both.")
    group.add_argument("--name", metavar="NAME", help="The stream it is for; every scope but admin needs one.")
    group.add_argument(
        "--expires",
        metavar="TIME",
        default=DEFAULT_EXPIRES,
        help=f"How long it is good for, such as 90s, 15m, 12h or 30d [{DEFAULT_EXPIRES}]",
    )
    arguments = parser.arguments(argv)
    if arguments.scope not in SCOPES:
        raise SettingsError(f"--scope is {arguments.scope[:60]!r}; it must be {', '.join(SCOPES)}")
    rights, name = SCOPES[arguments.scope], arguments.name
    if Right.ADMIN in rights and name is not None:
        raise SettingsError(f"--name is given for the scope {arguments.scope}, which is for no single stream")
    if Right.ADMIN not in rights:
        if name is None:
            raise SettingsError(f"--name is missing; the scope {arguments.scope} is for the stream of one name")
        if not can_be_a_name(name):
            raise SettingsError(
                f"--name is {name[:60]!r}; it must be 1 to {MAX_NAME_CHARACTERS} letters, digits or . _ ~ -"
            )
    lifetime_s = _seconds(arguments.expires)
    settings = settings_from(arguments, os.environ)
    secret = Authorisation.of(settings.auth_token, settings.token_secret).secret
    if secret is None:
        raise SettingsError(
            "there is nothing to sign with; set ECHO_RTC_TOKEN_SECRET, or an ECHO_RTC_AUTH_TOKEN of at least "
            f"{MIN_SECRET_CHARACTERS} characters, as for the server"
        )
    return mint(secret, rights, name, lifetime_s)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text)
    if match is None or (seconds := int(match[1]) * _UNITS_S[match[2]]) > MAX_DAYS * _UNITS_S["d"]:
        raise SettingsError(f"--expires is {text[:60]!r}; it must be a time such as 90s, 15m, 12h or 30d")
    return seconds
