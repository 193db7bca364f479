"""Outputs over HTTP: the owner of a stream starts, inspects and ends pushes of it to other servers.

Checks the form of a body; whether an endpoint is allowed is checked by the outputs. Secrets are never returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from echo_rtc.web.bodies import json_object
from echo_rtc.web.prefix import prefix_of
from echo_rtc.web.problems import Problem, ProblemType
from echo_rtc.web.signalling import read_offer_body
from echo_rtc.web.stream_access import StreamAccess

OFF = "Nothing is pushed to other servers here; --output-host names those that may be pushed to."
_NO_STORE = {"Cache-Control": "no-store"}
_FORM = '{"type": "whip", "endpoint": "https://HOST/PATH", "bearer": "..."}'


class Facts(Protocol):
    """What is known of an output."""

    @property
    def id(self) -> str: ...

    def as_json(self) -> dict[str, object]: ...


class OutputControl(Protocol):
    """What this file asks of the outputs."""

    def start(self, stream_id: str, endpoint: str, bearer: str | None) -> Facts:
        """Raises OutputRefusedError, ConflictError, UnknownStreamError."""
        ...

    def of(self, stream_id: str) -> Sequence[Facts]: ...

    def find(self, stream_id: str, output_id: str) -> Facts | None: ...

    async def stop(self, stream_id: str, output_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class OutputHandlers:
    """The handlers. ``control`` is None where nothing is pushed."""

    access: StreamAccess
    control: OutputControl | None

    async def start(self, request: web.Request) -> web.StreamResponse:
        """201 with the output's facts; 400, 401, 403, 404, 408, 409, 413, 415, 422 or 501 as a problem."""
        control = self._on()
        self.access.published(request)
        endpoint, bearer = _wanted(json_object(request, await read_offer_body(request), _FORM))
        # Once more: the stream may have another owner by now, since a client sends its body when it likes.
        facts = control.start(self.access.published(request).id, endpoint, bearer)
        here = f"{prefix_of(request)}{request.rel_url.raw_path}/{facts.id}"
        return web.json_response(facts.as_json(), status=201, headers={"Location": here, **_NO_STORE})

    async def list(self, request: web.Request) -> web.StreamResponse:
        """200 with all outputs of the stream; 401, 403, 404 or 501 as a problem."""
        control = self._on()
        facts = control.of(self.access.published(request).id)
        return web.json_response([each.as_json() for each in facts], headers=_NO_STORE)

    async def show(self, request: web.Request) -> web.StreamResponse:
        """200 with an output; 401, 403, 404 or 501 as a problem."""
        control = self._on()
        facts = control.find(self.access.published(request).id, request.match_info["output"])
        if facts is None:
            raise _unknown_output()
        return web.json_response(facts.as_json(), headers=_NO_STORE)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """204 once the other side was told and the connection is closed; 401, 403, 404 or 501 as a problem."""
        control = self._on()
        if not await control.stop(self.access.published(request).id, request.match_info["output"]):
            raise _unknown_output()
        return web.Response(status=204)

    def _on(self) -> OutputControl:
        if self.control is None:
            raise Problem(501, OFF)
        return self.control


def _wanted(content: Mapping[str, Any]) -> tuple[str, str | None]:
    """Endpoint and token that a body asks for. Raises Problem 422, which shows neither."""
    if content.get("type") != "whip":
        shown = repr(content["type"])[:80] if "type" in content else "missing"
        raise Problem(422, f"type is {shown}; it must be 'whip'.", ProblemType.BAD_OUTPUT)
    endpoint, bearer = content.get("endpoint"), content.get("bearer")
    if not isinstance(endpoint, str):
        raise Problem(422, "endpoint is missing or no text; it must be an https URL.", ProblemType.BAD_OUTPUT)
    if bearer is not None and not isinstance(bearer, str):
        raise Problem(422, "bearer is no text; it must be a token, or left out.", ProblemType.BAD_OUTPUT)
    return endpoint, bearer


def _unknown_output() -> Problem:
    return Problem(404, "There is no such output; it may have ended with its stream.")
