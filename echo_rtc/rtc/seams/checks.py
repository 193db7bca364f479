"""How a reach into a library's internals says that they have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from echo_rtc.errors import EchoRtcError


class SeamError(EchoRtcError):
    """aiortc or aioice no longer has an attribute that this server replaces; the message names it."""


def require(owner: object, name: str, kind: type) -> None:
    """Raises SeamError unless ``owner`` has an attribute of this name and type."""
    if not hasattr(owner, name) or not isinstance(getattr(owner, name), kind):
        raise SeamError(f"aiortc's {type(owner).__name__} has no {name} of type {kind.__name__} any more")


def method(owner: object, name: str) -> Callable[..., Any]:
    """The method of this name of an object or class. Raises SeamError."""
    found: Callable[..., Any] | None = getattr(owner, name, None)
    if found is None or not callable(found):
        kind = owner if isinstance(owner, type) else type(owner)
        raise SeamError(f"{kind.__module__.split('.')[0]}'s {kind.__name__} has no method {name} any more")
    return found
