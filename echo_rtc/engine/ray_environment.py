"""What Ray is told by environment variables: it reads them when it is imported, so they are set before.

A cluster that the server starts by itself listens on loopback only and asks every client for a token that is generated
for it. An existing cluster is joined with token authentication unless the environment switches it off. Imports no Ray.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from echo_rtc.errors import SettingsError

AUTH_MODE, AUTH_TOKEN, AUTH_TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With this at 0, Ray takes 127.0.0.1 for its node's address and binds every port to it, on Linux too."""

MINIMUM = (2, 56)
"""The first version of Ray without a known vulnerability that lets others run code; tokens exist since 2.52."""


@dataclass(frozen=True, slots=True)
class RayOptions:
    """Which cluster, and how much of it.

    ``address``: of a running cluster ("10.0.0.5:6379", or "auto" for the one that this machine belongs to); empty
    starts one on this machine that ends with the engine. ``devices``: "auto" takes GPUs if the cluster has any, else
    CPUs; "cuda" and "cpu" insist. ``workers``: how many; 0 takes one per GPU, or one per node where there are none.
    """

    address: str = ""
    devices: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.devices not in ("auto", "cuda", "cpu"):
            raise SettingsError(
                f"devices is {self.devices}, but with engine ray it is Ray that chooses the devices; "
                "it must be auto, cuda or cpu"
            )


def prepare_environment(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what Ray reads at its import, for the cluster at ``address`` (empty: one that is started here)."""
    # Nothing is reported to Ray's makers, and a program started by "uv run" gets no special treatment.
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if address:
        environment.setdefault(AUTH_MODE, "token")
        return
    environment[AUTH_MODE] = "token"
    environment.setdefault(AUTH_TOKEN, secrets.token_hex(32))
    environment[LOOPBACK_ONLY] = "0"


def check_version(version: str) -> None:
    """Raise SettingsError if this version of Ray must not be used."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise SettingsError(
            f"engine is ray, but Ray {version} lets others in the network run code here; install "
            f'Ray {wanted} or newer with pip install "ray>={wanted}"'
        )


def check_token(address: str) -> None:
    """Raise SettingsError if a cluster that exists is to be joined with token authentication and there is no token."""
    if os.environ.get(AUTH_MODE, "").lower() != "token" or os.environ.get(AUTH_TOKEN):
        return
    path = Path(os.environ.get(AUTH_TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        raise SettingsError(
            f"ray_address is {address}, but there is no token for that cluster at {path}; make one with "
            "ray get-auth-token --generate, give it to every node and start them with RAY_AUTH_MODE=token, or set "
            "RAY_AUTH_MODE=disabled if only trusted machines reach the cluster's network"
        )
