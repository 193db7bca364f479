"""Named attacks on a real server, each beside an honest call whose longest gap in the sound is its figure.

An attack is a coroutine that gets a :class:`Target` and a time, does its worst for about that long, and raises
AttackSucceededError for what it achieved itself: an answer that should not have been given, a connection that stayed.
What it did to others is measured here: to the honest call, to another client's /healthz, to the server's memory and to
its log. Attacks are grouped by how the server they are for lets people in; each group has a server of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

from aiohttp import web

from echo_rtc.bench.support.real_server import ROOT, RealServer
from echo_rtc.bench.support.witness import NAME, Witness
from echo_rtc.web.auth import Right, mint

TOKEN = "a-token-of-this-measurement-only"
SECRET = "a-secret-of-this-measurement-only-32"
MAX_GAP_S = 0.2
MAX_HEALTHZ_S = 1.0
MAX_MEMORY_MB = 50.0
MAX_LOG_BYTES = 64 * 1024
"""For an attack of a few seconds."""
PATIENCE_S = 30.0
"""What an attack may take beyond its time."""
LOOK_S = 0.05
SETTLE_S = 1.0
TOKEN_LIFE_S = 3600.0
USUAL_LIMITS = ("sh", "-c", 'ulimit -S -n 1024 && exec "$0" "$@"', sys.executable)
"""How the server is started: with as many descriptors as a login shell allows."""


class AttackSucceededError(Exception):
    """What an attack achieved, as one sentence."""


class Doors(Enum):
    """How a server lets people in: with tokens; without any, on loopback; with tokens over HTTPS. The values are the
    server's flags."""

    TOKENS = ("--auth-token", TOKEN, "--token-secret", SECRET)
    OPEN = ()
    TLS = ("--auth-token", TOKEN, "--token-secret", SECRET, "--tls-self-signed")

    @property
    def token(self) -> str | None:
        """What opens a call."""
        return TOKEN if TOKEN in self.value else None


@dataclass(frozen=True, slots=True)
class Target:
    """The server under attack. ``view_token``: what every viewer of the honest call's stream may have, the only token
    of attackers that have one; None where no token is asked for. ``live``: that stream's name."""

    port: int
    secure: bool = False
    view_token: str | None = None
    live: str = NAME

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class NamedAttack:
    """A row of the table. ``attack(target, seconds)`` raises AttackSucceededError."""

    name: str
    attack: Callable[[Target, float], Awaitable[None]]
    doors: Doors = Doors.TOKENS


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack did: to the honest call and another client's /healthz (s), to the server's memory at its most
    (MB), to its log (bytes). ``failures``: what was more than is bearable, in words; none if the server withstood."""

    name: str
    gap_s: float
    healthz_s: float
    memory_mb: float
    log_bytes: int
    failures: tuple[str, ...] = field(default=())


HEADINGS = ("named attack", "gap s", "healthz s", "memory MB", "log kB", "verdict")


def rows(outcomes: Iterable[Outcome]) -> list[list[object]]:
    """The table's rows."""
    return [
        [o.name, o.gap_s, o.healthz_s, o.memory_mb, o.log_bytes / 1000, "; ".join(o.failures) or "withstood"]
        for o in outcomes
    ]


async def besiege(attacks: Sequence[NamedAttack], seconds: float) -> list[Outcome]:
    """Runs attacks of ``seconds`` each, one after the other; what they did."""
    outcomes = []
    for doors in Doors:
        chosen = [attack for attack in attacks if attack.doors is doors]
        if chosen:
            async with _besieged(doors) as (server, witness, target):
                outcomes += [await _measured(attack, seconds, server, witness, target) for attack in chosen]
    return outcomes


def judged(outcome: Outcome, achieved: str | None) -> Outcome:
    """The outcome with what was unbearable in it; ``achieved``: what the attack says of itself."""
    failures = [achieved] if achieved else []
    if outcome.gap_s > MAX_GAP_S:
        failures.append(f"no sound for {outcome.gap_s:.2f} s")
    if outcome.healthz_s > MAX_HEALTHZ_S:
        failures.append(f"/healthz took {outcome.healthz_s:.2f} s")
    if outcome.memory_mb > MAX_MEMORY_MB:
        failures.append(f"{outcome.memory_mb:.0f} MB more memory")
    if outcome.log_bytes > MAX_LOG_BYTES:
        failures.append(f"{outcome.log_bytes / 1000:.0f} kB of log")
    return Outcome(
        outcome.name, outcome.gap_s, outcome.healthz_s, outcome.memory_mb, outcome.log_bytes, tuple(failures)
    )


@asynccontextmanager
async def _besieged(doors: Doors) -> AsyncIterator[tuple[RealServer, Witness, Target]]:
    """A server of test cards with an honest call on it."""
    card = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--width", "128", "--height", "128")
    view_token = mint(SECRET, frozenset({Right.VIEW}), NAME, TOKEN_LIFE_S) if doors.token else None
    with tempfile.TemporaryDirectory() as logs:
        flags = (*card, "--max-streams", "16", *doors.value, "--log-dir", logs)
        async with speech_server() as tts_url, RealServer(*flags, "--tts-url", tts_url, command=USUAL_LIMITS) as server:
            target = Target(server.port, doors is Doors.TLS, view_token)
            async with Witness(target.url, doors.token) as witness:
                yield server, witness, target


@asynccontextmanager
async def speech_server() -> AsyncIterator[str]:
    """The address of a text-to-speech server that says every sentence in a second of silence."""

    async def say(_: web.Request) -> web.Response:
        return web.Response(body=bytes(48_000))

    app = web.Application()
    app.router.add_post("/v1/audio/speech", say)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _measured(
    named: NamedAttack, seconds: float, server: RealServer, witness: Witness, target: Target
) -> Outcome:
    """One attack, and what it did."""
    await asyncio.sleep(SETTLE_S)
    lines, before = len(server.lines), server.process.memory_info().rss
    await witness.mark()
    highest = before
    achieved = None
    task = asyncio.ensure_future(_bounded(named, target, seconds))
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK_S)
        highest = max(highest, server.process.memory_info().rss)
    with contextlib.suppress(ConnectionError):
        try:
            task.result()
        except AttackSucceededError as error:
            achieved = str(error)
        except TimeoutError:
            achieved = f"it could go on for more than {seconds + PATIENCE_S:g} s"
    await asyncio.sleep(SETTLE_S)
    seen = await witness.mark()
    written = sum(len(line) + 1 for line in server.lines[lines:])
    outcome = Outcome(named.name, seen.gap_s, seen.healthz_s, (highest - before) / 1e6, written)
    return judged(outcome, achieved)


async def _bounded(named: NamedAttack, target: Target, seconds: float) -> None:
    async with asyncio.timeout(seconds + PATIENCE_S):
        await named.attack(target, seconds)
