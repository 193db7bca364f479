"""``python -m echo_rtc.bench hostile``: hostile requests and named attacks at a real server, and what they do to it.

A server of test cards, started as an operator does it, takes one request after the other, each over a connection of its
own; calls and sessions that come of it are ended again. Counted: answers of the 500s other than a 501 (switched off
here) and a 503 that says when to come back, complete requests without an answer, tracebacks and errors in the log, UDP
sockets that stay, and the growth of its memory after the first fifth. Then the named attacks of ``siege``,
each beside an honest call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from echo_rtc.bench.support.attacks import KNOWN_KEPT, Attack, Attacker, RealOffer, Route, read_offers
from echo_rtc.bench.support.http_attacks import ATTACKS as HTTP_ATTACKS
from echo_rtc.bench.support.real_server import ROOT, RealServer
from echo_rtc.bench.support.report import report, table
from echo_rtc.bench.support.rtc_attacks import ATTACKS as RTC_ATTACKS
from echo_rtc.bench.support.siege import HEADINGS, TOKEN, NamedAttack, Outcome, besiege
from echo_rtc.bench.support.siege import rows as attack_rows
from echo_rtc.bench.support.speech_attacks import ATTACKS as SPEECH_ATTACKS
from echo_rtc.errors import InputError
from echo_rtc.web.app import routes

ANSWER_S = 30.0
"""Time that an answer may take; the slowest are offers whose candidates lead nowhere."""
HANG_UP_S = 0.2
"""A client that has not sent all it announced hangs up after this time of silence."""
SETTLE_S = 20.0
"""Time that what was opened may take to be gone."""
MAX_GROWTH_MB = 20.0
ATTACKS = (*HTTP_ATTACKS, *RTC_ATTACKS, *SPEECH_ATTACKS)
"""All named attacks."""
OFFERS = ROOT / "tests" / "data" / "offers"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status (None if nothing did), headers by their names in lower case, body."""

    status: int | None
    headers: dict[str, str]
    body: bytes


@dataclass
class FuzzCounts:
    """What a run of attacks has seen. ``statuses`` counts answers (0: none) by kind of attack."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    opened: int = 0

    @property
    def requests(self) -> int:
        return sum(counter.total() for counter in self.statuses.values())


def main(argv: list[str]) -> int:
    """Attacks and prints; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="echo-rtc bench hostile", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="how many requests to send; 0 for none")
    parser.add_argument("--seed", type=int, default=1, help="of the requests: the same seed sends the same ones")
    parser.add_argument("--offers", type=Path, default=OFFERS, help="folder of real offers (.sdp)")
    parser.add_argument(
        "--attacks",
        default="all",
        metavar="NAME,...",
        help="named attacks to run, separated by commas: names or beginnings of names, all or none",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each named attack (s)")
    arguments = parser.parse_args(argv)
    attacks = chosen(arguments.attacks)
    fuzz_counts, fuzzed = FuzzCounts(), dict[str, float]()
    if arguments.requests:
        fuzz_counts, fuzzed = asyncio.run(measure(arguments.requests, arguments.seed, read_offers(arguments.offers)))
    outcomes = asyncio.run(besiege(attacks, arguments.seconds))
    kinds = [
        [kind, counts.total(), *(sum(n for status, n in counts.items() if status // 100 == k) for k in range(6))]
        for kind, counts in sorted(fuzz_counts.statuses.items())
    ]
    for failure in fuzz_counts.failures[:20]:
        print(failure)  # noqa: T201  what went wrong stands above the table
    if kinds:
        headings = ["requests", "sent", "no answer", "1xx", "2xx", "3xx", "4xx", "5xx"]
        print(table(headings, kinds), end="\n\n")  # noqa: T201  the first of two tables
    report(HEADINGS, attack_rows(outcomes), {**fuzzed, **figures_of(outcomes)})
    return 0 if withstood(fuzzed, outcomes) else 1


def chosen(names: str) -> list[NamedAttack]:
    """The named attacks that ``--attacks`` asks for. Raises InputError for a name that no attack has."""
    if names in ("all", "none"):
        return list(ATTACKS) if names == "all" else []
    found: list[NamedAttack] = []
    for name in (word.strip() for word in names.split(",")):
        fitting = [attack for attack in ATTACKS if attack.name.lower().startswith(name.lower())]
        if not fitting:
            known = ", ".join(attack.name for attack in ATTACKS)
            raise InputError(f"--attacks names {name[:60]!r}, which is no attack; there are {known}")
        found += fitting
    return found


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """The figures of all attacks together; 0 where there was none."""
    return {
        "attacks": len(outcomes),
        "failed": sum(bool(outcome.failures) for outcome in outcomes),
        "worst_gap_s": round(max((outcome.gap_s for outcome in outcomes), default=0.0), 3),
        "worst_healthz_s": round(max((outcome.healthz_s for outcome in outcomes), default=0.0), 3),
        "memory_mb": round(max((outcome.memory_mb for outcome in outcomes), default=0.0), 1),
    }


def withstood(fuzzed: Mapping[str, float], outcomes: Sequence[Outcome]) -> bool:
    """Whether nothing was wrong; ``fuzzed`` is empty where no requests were sent."""
    left = fuzzed.get("failures", 0) + fuzzed.get("sockets_left", 0)
    growth_mb = fuzzed.get("rss_growth_mb", 0.0)
    return not left and growth_mb < MAX_GROWTH_MB and not any(outcome.failures for outcome in outcomes)


async def measure(requests: int, seed: int, offers: list[RealOffer]) -> tuple[FuzzCounts, dict[str, float]]:
    """Runs the attacks on a server of its own; what was seen, and the figures."""
    with tempfile.TemporaryDirectory() as logs:
        card = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--width", "128", "--height", "128")
        access = (
            "--max-streams",
            "16",
            "--auth-token",
            TOKEN,
        )  # programs of this machine may ask as often as they like
        async with RealServer(*card, *access, "--log-dir", logs) as server:
            attacker = Attacker(offers, [Route(row.method, row.path) for row in routes()], seed, TOKEN)
            process = server.process
            sockets = udp_sockets(process)
            fuzz_counts = FuzzCounts()
            await assault(server.port, attacker, requests // 5, fuzz_counts)
            warm_mb = process.memory_info().rss / 1e6
            await assault(server.port, attacker, requests - requests // 5, fuzz_counts)
            await end_all(server.port, attacker)
            left = await settled(lambda: udp_sockets(process) - sockets)
            growth_mb = process.memory_info().rss / 1e6 - warm_mb
        fuzz_counts.failures += [f"log: {line}" for line in server.troubles]
    figures = {
        "requests": fuzz_counts.requests,
        "opened": fuzz_counts.opened,
        "failures": len(fuzz_counts.failures),
        "sockets_left": left,
        "rss_growth_mb": round(growth_mb, 2),
    }
    return fuzz_counts, figures


async def assault(port: int, attacker: Attacker, requests: int, fuzz_counts: FuzzCounts) -> None:
    """Sends requests one after the other and judges the answers."""
    for _ in range(requests):
        attack = attacker.next()
        answer = await send(port, attack.raw, ANSWER_S if attack.whole else HANG_UP_S)
        fuzz_counts.statuses.setdefault(attack.kind, Counter())[answer.status or 0] += 1
        failure = wrong(attack, answer)
        if failure is not None:
            fuzz_counts.failures.append(f"{failure}: {attack.raw[:300]!r}")
        fuzz_counts.opened += remember(attacker, answer)
        while len(attacker.known.sessions) + len(attacker.known.streams) > KNOWN_KEPT:
            await end_oldest(port, attacker)


def wrong(attack: Attack, answer: Answer) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if answer.status is None:
        return "no answer" if attack.whole else None
    meant = answer.status == 501 or (answer.status == 503 and "retry-after" in answer.headers)
    if answer.status >= 500 and not meant:
        return f"{answer.status} for {attack.kind}"
    if b"Traceback" in answer.body or b'File "' in answer.body:
        return f"a traceback in the answer to {attack.kind}"
    return None


def remember(attacker: Attacker, answer: Answer) -> bool:
    """Keeps what an answer has opened; whether it has."""
    if answer.status == 201 and "location" in answer.headers:
        attacker.known.sessions.append((answer.headers["location"], answer.headers.get("etag", '"?"')))
        return True
    if answer.status == 200 and answer.body.startswith(b"{"):
        with contextlib.suppress(ValueError):
            stream = json.loads(answer.body).get("stream")
            if isinstance(stream, str) and "sdp" in json.loads(answer.body):
                attacker.known.streams.append(stream)
                return True
    return False


async def end_oldest(port: int, attacker: Attacker) -> None:
    """Ends one session or stream of those remembered; it may be gone already."""
    known = attacker.known
    more_sessions = len(known.sessions) > len(known.streams)
    path = known.sessions.pop(0)[0] if more_sessions else f"/streams/{known.streams.pop(0)}"
    head = f"DELETE {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    await send(port, head.encode())


async def end_all(port: int, attacker: Attacker) -> None:
    """Ends all that is remembered."""
    while attacker.known.sessions or attacker.known.streams:
        await end_oldest(port, attacker)


async def send(port: int, raw: bytes, patience_s: float = ANSWER_S) -> Answer:
    """Sends bytes over a connection of their own; reads until the server closes it, or says nothing for that long."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        with contextlib.suppress(ConnectionError, TimeoutError):  # judged by what did not come
            writer.write(raw)
            await writer.drain()
            while piece := await asyncio.wait_for(reader.read(65_536), patience_s):
                answer += piece
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return parsed(answer)


def parsed(answer: bytes) -> Answer:
    """Reads status, headers and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    found = re.match(r"HTTP/1\.[01] (\d{3})", lines[0])
    if found is None:
        return Answer(None, {}, answer)
    fields = (line.partition(": ") for line in lines[1:])
    return Answer(int(found[1]), {name.lower(): value for name, _, value in fields}, body)


def udp_sockets(process: psutil.Process) -> int:
    """UDP sockets that a process holds; each peer has some."""
    return len(process.net_connections("udp"))


async def settled(left: Callable[[], int], within_s: float = SETTLE_S) -> int:
    """Waits until nothing is left, and no longer than that; what is."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while (count := left()) > 0 and loop.time() < deadline:  # noqa: ASYNC110  sockets have no event
        await asyncio.sleep(0.2)
    return count
