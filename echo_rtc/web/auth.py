"""Tokens and what they allow: one token that allows everything, one for administrators, and signed tokens that allow
one thing for some time.

A signed token is a JWT (RFC 7519, HS256) with the claims ``exp``, ``scope`` (words of :class:`Right`, apart by spaces)
and ``name`` (of the one stream it is for; tokens of the scope admin have none). Any JWT library can make it, given the
secret. Tokens come in the header ``Authorization: Bearer`` (RFC 6750) and nowhere else, so that no log of addresses
ever has one.

A client may view and end what it has opened by the unguessable address it was given, without a token: tokens may be
short-lived, and a client whose token has expired can still end its stream.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import jwt
from aiohttp import web

from echo_rtc.rtc.session import can_be_a_name
from echo_rtc.web.problems import Problem, ProblemType

if TYPE_CHECKING:
    from jwt.types import Options

ALGORITHM = "HS256"
MIN_SECRET_CHARACTERS = 32
"""RFC 7518, 3.2: a key of HS256 has at least 256 bits."""
MAX_TOKEN_CHARACTERS = 4096
LEEWAY_S = 10
"""How far the clocks of a token's issuer and of this server may differ, seconds."""
ADMIN_TOKEN_BYTES = 24
"""Of the administrator's token that is generated where none is set."""
REALM = "echo_rtc"
_TOKEN_NEEDED = "This needs a token; send it in the header Authorization: Bearer."

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Right(StrEnum):
    """What a token can allow."""

    PUBLISH = "publish"
    VIEW = "view"
    ADMIN = "admin"


class Scope(StrEnum):
    """What a request to a route must prove.

    ``open``: nothing. ``token``: any token of this server. ``call``: a token to publish and to view. ``own``: the
    unguessable address, which only the client that opened it was given. ``admin``: an administrator's token, also where
    calls need none.
    """

    OPEN = "open"
    TOKEN = "token"
    CALL = "call"
    PUBLISH = "publish"
    VIEW = "view"
    OWN = "own"
    ADMIN = "admin"

    @property
    def rights(self) -> frozenset[Right]:
        """What a token must allow for it."""
        return _RIGHTS[self]

    @property
    def asks(self) -> bool:
        """Whether a token is asked for."""
        return bool(self.rights) or self is Scope.TOKEN


_RIGHTS = {
    Scope.OPEN: frozenset[Right](),
    Scope.TOKEN: frozenset[Right](),
    Scope.CALL: frozenset({Right.PUBLISH, Right.VIEW}),
    Scope.PUBLISH: frozenset({Right.PUBLISH}),
    Scope.VIEW: frozenset({Right.VIEW}),
    Scope.OWN: frozenset[Right](),
    Scope.ADMIN: frozenset({Right.ADMIN}),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may do. ``name`` is the one stream it may do it with; None for any."""

    rights: frozenset[Right]
    name: str | None = None

    def allows(self, scope: Scope) -> bool:
        """Whether it holds all that a route asks for, on some stream."""
        return scope.rights <= self.rights and (bool(self.rights) or not scope.asks)

    def covers(self, name: str | None) -> bool:
        """Whether it is good for the stream of this name, or for one without a name."""
        return self.name is None or name == self.name

    def may_publish(self, name: str | None) -> bool:
        """Whether it is good for publishing the stream of this name."""
        return Right.PUBLISH in self.rights and self.covers(name)


EVERYTHING = Grant(frozenset(Right))
CALLS = Grant(frozenset({Right.PUBLISH, Right.VIEW}))
ADMINISTRATION = Grant(frozenset({Right.ADMIN}))
NOTHING = Grant(frozenset())
GRANT = web.RequestKey("echo_rtc.grant", Grant)
"""The key under which a request carries its Grant."""


@dataclass(frozen=True, slots=True)
class Authorisation:
    """The secrets of a server. Without ``token`` and ``secret``, calls need no token; administration always needs one,
    ``admin`` or one of the others."""

    token: str | None = None
    secret: str | None = None
    admin: str | None = None

    @classmethod
    def of(cls, auth_token: str | None, token_secret: str | None, admin_token: str | None = None) -> Authorisation:
        """From ``--auth-token``, ``--token-secret`` and ``--admin-token``; without a secret a long enough token
        signs, too."""
        if token_secret is None and auth_token is not None and len(auth_token) >= MIN_SECRET_CHARACTERS:
            token_secret = auth_token
        return cls(auth_token, token_secret, admin_token)

    @property
    def required(self) -> bool:
        """Whether calls need a token."""
        return self.token is not None or self.secret is not None

    @property
    def administered(self) -> bool:
        """Whether there is a token for administrators."""
        return self.required or self.admin is not None

    def with_admin(self) -> Authorisation:
        """The same with a new random token for administrators."""
        return replace(self, admin=secrets.token_urlsafe(ADMIN_TOKEN_BYTES))

    def grant(self, token: str) -> Grant:
        """What a token allows. Raises Problem 401 if it is none of ours, or no longer."""
        if self.token is not None and _same(token, self.token):
            return EVERYTHING
        if self.admin is not None and _same(token, self.admin):
            return ADMINISTRATION
        if self.secret is None or len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
            raise _unauthorised("The token is not one of this server's.", "invalid_token")
        try:
            # The audience claim (aud) is not checked.
            options: Options = {"require": ["exp"], "verify_aud": False}
            decoded = jwt.decode_complete(token, self.secret, algorithms=[ALGORITHM], options=options, leeway=LEEWAY_S)
        except jwt.ExpiredSignatureError:
            raise _unauthorised("The token has expired; ask for a new one.", "invalid_token") from None
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError):  # JSON's own, too
            raise _unauthorised("The token is not one of this server's.", "invalid_token") from None
        # RFC 7515, 4.1.11: what is named there must be understood. Nothing is here, and not every PyJWT looks.
        if "crit" in decoded["header"]:
            raise _unauthorised("The token has critical headers (crit), which are not supported.", "invalid_token")
        return _grant_of(decoded["payload"])


def mint(secret: str, rights: frozenset[Right], name: str | None, lifetime_s: float, now_s: float | None = None) -> str:
    """A signed token. ``now_s`` is seconds since 1970, the present time if left out."""
    issued = int(time.time() if now_s is None else now_s)
    claims: dict[str, object] = {
        "iat": issued,
        "exp": issued + int(lifetime_s),
        "scope": " ".join(right for right in Right if right in rights),
    }
    if name is not None:
        claims["name"] = name
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def grant_of(request: web.Request) -> Grant:
    """What this request may do, as :func:`authorise` found it."""
    return request[GRANT]


def require_name(request: web.Request, name: str | None) -> None:
    """For names that are in a request's body: raises Problem 403 unless its token is for the stream of that name."""
    if not grant_of(request).covers(name):
        raise _forbidden(f"The token is for another stream than {_shown(name)}.", None)


def require_publish(request: web.Request, authorisation: Authorisation, name: str | None) -> None:
    """For streams that a request's address names: where tokens are used, raises Problem 401 without one of this server,
    403 for one of another scope or stream."""
    if not authorisation.required:
        return
    token = bearer_of(request)
    if token is None:
        raise _unauthorised(_TOKEN_NEEDED, None)
    if not authorisation.grant(token).may_publish(name):
        detail = "The token does not allow this; it must have the scope publish, for this stream's name."
        raise _forbidden(detail, Scope.PUBLISH)


def authorise(request: web.Request, scope: Scope, authorisation: Authorisation) -> Grant:
    """What the request may do, if that is enough for a route of this scope. Raises Problem 401 or 403.

    Where a route asks for no token, one that is wrong does no harm: it may be meant for a proxy in front.
    """
    if not authorisation.required and scope is not Scope.ADMIN:
        return CALLS
    token = bearer_of(request)
    if not scope.asks:
        try:
            return NOTHING if token is None else authorisation.grant(token)
        except Problem:
            return NOTHING
    if token is None and scope is Scope.ADMIN and not authorisation.required:
        detail = "This needs the administrator's token; the server prints it on its console, or it is --admin-token."
        raise _unauthorised(detail, None)
    if token is None:
        raise _unauthorised(_TOKEN_NEEDED, None)
    grant = authorisation.grant(token)
    if not grant.allows(scope):
        missing = " and ".join(sorted(scope.rights - grant.rights))
        raise _forbidden(f"The token does not allow this; it must have the scope {missing}.", scope)
    name = request.match_info.get("name")
    if name is not None and not grant.covers(name):
        raise _forbidden(f"The token is for another stream than {_shown(name)}.", None)
    return grant


def bearer_of(request: web.Request) -> str | None:
    """The token that a request brings in its header."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def _same(given: str, expected: str) -> bool:
    """Constant-time comparison of digests; leaks neither content nor length."""
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _grant_of(claims: dict[str, object]) -> Grant:
    """A signed token's claims; the signature says that they are meant, not that they make sense."""
    scope, name = claims.get("scope"), claims.get("name")
    words = frozenset(scope.split()) if isinstance(scope, str) else frozenset[str]()
    if not words or not words <= set(Right):
        raise _unauthorised("The token's scope must be of the words publish, view and admin.", "invalid_token")
    if name is not None and not (isinstance(name, str) and can_be_a_name(name)):
        raise _unauthorised("The token's name must be the name of a stream.", "invalid_token")
    rights = frozenset(Right(word) for word in words)
    if name is None and Right.ADMIN not in rights:
        raise _unauthorised("The token has no name of a stream; put it into its claims.", "invalid_token")
    if name is not None and Right.ADMIN in rights:
        raise _unauthorised("The token's scope admin cannot be for one stream.", "invalid_token")
    return Grant(rights, name)


def _shown(name: str | None) -> str:
    return "one without a name" if name is None else repr(name[:80])


def _unauthorised(detail: str, error: str | None) -> Problem:
    challenge = f'Bearer realm="{REALM}"' + (f', error="{error}", error_description="{detail}"' if error else "")
    return Problem(401, detail, ProblemType.UNAUTHORISED, {"WWW-Authenticate": challenge})


def _forbidden(detail: str, scope: Scope | None) -> Problem:
    wanted = f', scope="{" ".join(sorted(scope.rights))}"' if scope else ""
    challenge = f'Bearer realm="{REALM}", error="insufficient_scope"{wanted}'
    return Problem(403, detail, ProblemType.FORBIDDEN, {"WWW-Authenticate": challenge})
