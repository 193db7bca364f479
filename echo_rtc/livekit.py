"""A face for LiveKit agents: an avatar of an echo_rtc server joins the agent's room and says what the agent says.

    avatar = AvatarSession(url="https://avatar.example", token="...")
    await avatar.start(session, room=ctx.room)
    await session.start(agent=Agent(instructions="..."), room=ctx.room)

Used like the avatar plugins of livekit-agents. The server must be started with ``--livekit-host`` for the LiveKit
server of the room; the agent's process renders nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import aiohttp

try:
    from livekit import api, rtc
    from livekit.agents import AgentSession, APIConnectionError, APIStatusError, get_job_context
    from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
    from livekit.agents.voice.avatar import AvatarSession as BaseAvatarSession
    from livekit.agents.voice.avatar import DataStreamAudioOutput
except ModuleNotFoundError as error:
    raise ImportError(f'{error}; install it with: pip install "echo-rtc[livekit]"') from error

from echo_rtc.errors import InputError

__all__ = ["AvatarSession"]

IDENTITY = "echo-rtc-avatar"
TOKEN_LIFETIME = timedelta(minutes=10)
"""Time in which the avatar may join by its token; once it has, LiveKit renews it."""
REQUEST_TIMEOUT_S = 30.0
TRIES = 3
RETRY_S = 1.0
RETRY_STATUSES = (429, 502, 503)


class AvatarSession(BaseAvatarSession[Literal["metrics_collected"]]):
    """An avatar of an echo_rtc server in one LiveKit room."""

    def __init__(
        self,
        *,
        url: str | None = None,
        token: str | None = None,
        avatar: str | None = None,
        avatar_participant_identity: str = IDENTITY,
        avatar_participant_name: str = IDENTITY,
    ) -> None:
        """``url``: of the echo_rtc server, ``token``: of the scope "call" where it asks for one; without them the
        environment's ECHO_RTC_URL and ECHO_RTC_TOKEN. ``avatar``: one of the server's by name, else its first. Raises
        InputError without an address."""
        super().__init__()
        self._url = (url or os.environ.get("ECHO_RTC_URL", "")).rstrip("/")
        if not self._url.startswith(("http://", "https://")):
            raise InputError(f"url is {self._url!r}; give the address of an echo_rtc server, or set ECHO_RTC_URL")
        self._token = token or os.environ.get("ECHO_RTC_TOKEN")
        self._avatar = avatar
        self._identity = avatar_participant_identity
        self._name = avatar_participant_name
        self._stream: str | None = None
        self._output: DataStreamAudioOutput | None = None

    @property
    def avatar_identity(self) -> str:
        return self._identity

    @property
    def provider(self) -> str:
        return "echo_rtc"

    @property
    def stream_url(self) -> str | None:
        """The address at which the server tells of the stream (GET) and ends it (DELETE); None before :meth:`start`."""
        return self._stream

    async def start(
        self,
        agent_session: AgentSession[Any],
        room: rtc.Room,
        *,
        livekit_url: str | None = None,
        livekit_api_key: str | None = None,
        livekit_api_secret: str | None = None,
    ) -> None:
        """The avatar joins ``room`` and is the session's audio output from then on. To be called before the session
        starts. LiveKit's address and keys come from the environment where they are not given (LIVEKIT_URL,
        LIVEKIT_API_KEY, LIVEKIT_API_SECRET).

        Raises InputError where something is missing, APIStatusError where the server refuses, and APIConnectionError
        where it does not answer.
        """
        address = livekit_url or os.environ.get("LIVEKIT_URL")
        key = livekit_api_key or os.environ.get("LIVEKIT_API_KEY")
        secret = livekit_api_secret or os.environ.get("LIVEKIT_API_SECRET")
        if not address or not key or not secret:
            raise InputError(
                "the LiveKit server is not known; give livekit_url, livekit_api_key and livekit_api_secret, or set "
                "LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
            )
        if not room.name:
            raise InputError("the room has no name yet; connect to it before the avatar is started")
        await super().start(agent_session, room)
        try:
            self._stream = await self._open(address, self._ticket(room, key, secret))
        except BaseException:
            await super().aclose()
            raise
        self._output = DataStreamAudioOutput(
            room=room,
            destination_identity=self._identity,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
        agent_session.output.replace_audio_tail(self._output)

    async def aclose(self) -> None:
        """The avatar leaves the room. Closing twice is harmless."""
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                await self._end(stream)
        finally:
            await super().aclose()

    def _ticket(self, room: rtc.Room, key: str, secret: str) -> str:
        """An access token by which the avatar may join the room on the agent's behalf."""
        context = get_job_context(required=False)
        agent = context.local_participant_identity if context is not None else room.local_participant.identity
        return (
            api.AccessToken(api_key=key, api_secret=secret)
            .with_kind("agent")
            .with_identity(self._identity)
            .with_name(self._name)
            .with_ttl(TOKEN_LIFETIME)
            .with_grants(api.VideoGrants(room_join=True, room=room.name, can_subscribe=False))
            .with_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: agent})
            .to_jwt()
        )

    async def _open(self, address: str, ticket: str) -> str:
        """The address of the stream that joined. Raises APIStatusError and APIConnectionError."""
        body = {"livekit_url": address, "livekit_token": ticket}
        if self._avatar is not None:
            body["avatar"] = self._avatar
        for attempt in range(TRIES):
            try:
                return await self._post(body)
            except APIStatusError as error:
                if error.status_code not in RETRY_STATUSES or attempt == TRIES - 1:
                    raise
            except APIConnectionError:
                if attempt == TRIES - 1:
                    raise
            await asyncio.sleep(RETRY_S)
        raise AssertionError("every try returns or raises")

    async def _post(self, body: Mapping[str, str]) -> str:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as http,
                http.post(f"{self._url}/livekit", json=body, headers=self._headers) as response,
            ):
                content = await response.json(content_type=None)
                if response.status != 201:
                    raise APIStatusError(_detail(content), status_code=response.status, body=content)
                return f"{self._url}/streams/{str(content['stream']).rpartition('/')[2]}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise APIConnectionError(f"the echo_rtc server {self._url} does not answer: {error}") from error

    async def _end(self, stream: str) -> None:
        """Ends the stream, if the server still knows it."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)) as http,
                http.delete(stream, headers=self._headers),
            ):
                return
        except (aiohttp.ClientError, TimeoutError):
            return  # it ends by itself once the agent has left the room

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}


def _detail(content: object) -> str:
    detail = content.get("detail") if isinstance(content, Mapping) else None
    return str(detail or "the echo_rtc server refuses")
