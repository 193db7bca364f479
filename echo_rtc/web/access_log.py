"""Requests in the log: by the route they took, never by their path, because a path may be all that is needed to end a
stream. Only ``--log-level debug`` shows them."""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger


class RouteLogger(AbstractAccessLogger):
    """Logs one line per request: client, method, route, status and duration."""

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        self.logger.info(
            "%s %s %s: %d in %.0f ms", request.remote, request.method, route_of(request), response.status, time * 1000
        )


def route_of(request: web.BaseRequest) -> str:
    """The pattern of the route that a request took, such as ``/streams/{id}``."""
    resource = request.match_info.route.resource if isinstance(request, web.Request) else None
    return "no route" if resource is None else resource.canonical
