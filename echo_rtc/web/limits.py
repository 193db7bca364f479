"""How much one client may ask for: offers and texts a minute, and peers at once. Clients are told apart by address.

Programs of the server's own machine are not limited. Knows no route; what the whole server holds is the streams' own
business.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Middleware

from echo_rtc.rtc.session import Caller
from echo_rtc.token_bucket import TokenBucket
from echo_rtc.web.access_log import route_of
from echo_rtc.web.clients import Clients, rate_limit_key
from echo_rtc.web.problems import Problem, ProblemType

PEERS_RETRY_S = 10
"""Retry-After for the limit of peers of an address; a guess."""
REQUESTS_PER_S = 200.0
BURST_REQUESTS = 400
MAX_PACE_S = 5.0
MAX_REMEMBERED = 10_000
"""Clients with a bucket; beyond, the least recently used are dropped."""


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """The settings of limits for each client; 0 stands for none."""

    offers_per_minute: int = 0
    texts_per_minute: int = 0
    peers: int = 0


class Claim:
    """One client's claim to one peer: made before the peer is, kept as long as it lives."""

    def __init__(self, caller: Caller, release: Callable[[], None]) -> None:
        self.caller = caller
        self._release = release
        self._kept = False

    def keep(self, over: asyncio.Future[str] | None) -> None:
        """The peer was let in and lives until ``over`` is done."""
        if over is not None:
            self._kept = True
            over.add_done_callback(lambda _: self._release())

    def settle(self) -> None:
        """The offer was answered, one way or the other; without a peer the claim ends."""
        if not self._kept:
            self._release()


CLAIM = web.RequestKey("echo_rtc.claim", Claim)
"""The key under which a request carries its Claim, if it wants a peer."""


class PerMinute:
    """A token bucket for each client, which holds ``limit`` and refills within a minute; 0 stands for no limit.
    ``what`` is counted, in words for clients."""

    def __init__(self, limit: int, what: str, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._what = what
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        """What each client may still have, in the order of their latest requests."""

    def take(self, client: str) -> None:
        """Counts one of a client. Raises Problem 429 where that is one too many."""
        if not self._limit:
            return
        now = self._clock()
        bucket = self._buckets.pop(client, None) or TokenBucket(self._limit / 60, self._limit, now)
        self._buckets[client] = bucket
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        if not bucket.take(1, now):
            raise _too_many(f"More than {self._limit} {self._what}; wait a little.", math.ceil(bucket.wait_s(now)))


class Limits:
    """Counts what clients ask for, and refuses what is too much (Problem 429)."""

    def __init__(self, options: LimitOptions, clients: Clients, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_peers = options.peers
        self._clients = clients
        self._peers: Counter[str] = Counter()
        offers = "offers a minute came from this address, outputs and recordings that it began included"
        self._offers = PerMinute(options.offers_per_minute, offers, clock)
        self._texts = PerMinute(options.texts_per_minute, "texts a minute came from this address", clock)

    def claim(self, request: web.Request) -> Claim:
        """To be called for an offer, before anything is done with it. Raises Problem 429."""
        client = rate_limit_key(self._clients.address(request))
        if self._clients.on_this_machine(request):
            return Claim(Caller(client, on_loopback=True), lambda: None)
        self._offers.take(client)
        if self._most_peers and self._peers[client] >= self._most_peers:
            raise _too_many(
                f"This address has {self._peers[client]} peers, which is as many as it may have; end one first.",
                PEERS_RETRY_S,
            )
        self._peers[client] += 1
        return Claim(Caller(client), lambda: self._end(client))

    def count_offer(self, request: web.Request) -> None:
        """To be called for a request that counts as an offer but wants no peer. Raises Problem 429."""
        self._count(self._offers, request)

    def count_text(self, request: web.Request) -> None:
        """To be called for each text, before it is said. Raises Problem 429."""
        self._count(self._texts, request)

    def _count(self, counted: PerMinute, request: web.Request) -> None:
        if not self._clients.on_this_machine(request):
            counted.take(rate_limit_key(self._clients.address(request)))

    def _end(self, client: str) -> None:
        self._peers[client] -= 1
        if not self._peers[client]:
            del self._peers[client]


class Pace:
    """A leaky bucket for the requests of each address: BURST_REQUESTS at once, then REQUESTS_PER_S; those beyond wait
    in turn, where a token bucket would refuse them."""

    def __init__(self, clients: Clients, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients = clients
        self._clock = clock
        self._due: OrderedDict[str, float] = OrderedDict()
        """When the next request of a client would be due at the even rate; the client of the latest request last."""

    def delay_s(self, request: web.Request) -> float:
        """How long the request has to wait; 0 within the burst. Raises Problem 429 where that is too long."""
        client, now = rate_limit_key(self._clients.address(request)), self._clock()
        due = max(now, self._due.pop(client, 0.0)) + 1 / REQUESTS_PER_S
        delay_s = max(0.0, due - now - BURST_REQUESTS / REQUESTS_PER_S)
        if delay_s > MAX_PACE_S:
            self._due[client] = due - 1 / REQUESTS_PER_S
            raise _too_many("Too many requests come from this address; wait a little.", math.ceil(delay_s))
        self._due[client] = due
        if len(self._due) > MAX_REMEMBERED:
            self._due.popitem(last=False)
        return delay_s

    def middleware(self, exempt: Collection[str]) -> Middleware:
        """Lets requests wait their turn, but for those of the routes ``exempt``."""

        @web.middleware
        async def wait(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if route_of(request) not in exempt and (delay_s := self.delay_s(request)):
                await asyncio.sleep(delay_s)
            return await handler(request)

        return wait


def _too_many(detail: str, retry_s: int) -> Problem:
    return Problem(429, detail, ProblemType.TOO_MANY, {"Retry-After": str(retry_s)})
