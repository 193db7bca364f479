"""The settings as the parts of a server receive them: each package has options of its own, and none sees them all.

Pure: nothing is opened, loaded or begun here.
"""

from __future__ import annotations

from dataclasses import replace

from echo_rtc.avatar import stream_options
from echo_rtc.errors import SettingsError
from echo_rtc.logs import LogOptions
from echo_rtc.offline.credentials import CredentialsSigner
from echo_rtc.outputs.hosts import HostRules
from echo_rtc.outputs.outputs import OutputOptions
from echo_rtc.recording.options import RecordingLimits, RecordingOptions
from echo_rtc.rtc.manager import ManagerOptions
from echo_rtc.rtc.network import Network
from echo_rtc.rtc.peer import PeerOptions
from echo_rtc.settings import Settings
from echo_rtc.tts.voices import Voice, make_voice
from echo_rtc.web.app import Access
from echo_rtc.web.auth import Authorisation
from echo_rtc.web.clients import Clients
from echo_rtc.web.cors import CrossOrigin
from echo_rtc.web.limits import LimitOptions
from echo_rtc.web.pages import frame_sources

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts that only programs of this machine can reach."""


def log_options(settings: Settings) -> LogOptions:
    """The log's part of the settings."""
    return LogOptions(
        level=settings.log_level,
        folder=settings.log_dir,
        as_json=settings.log_format == "json",
        file_bytes=round(settings.log_file_size * 1024 * 1024),
        old_files=settings.log_files,
    )


def manager_options(settings: Settings, network: Network) -> ManagerOptions:
    """The streams' part of the settings."""
    return ManagerOptions(
        stream=replace(stream_options(settings), voice_timeout_s=settings.voice_timeout),
        speech_timeout_s=settings.speech_timeout,
        max_streams=settings.max_streams,
        max_peers=settings.max_peers_per_stream,
        peer=PeerOptions(connect_timeout_s=settings.connect_timeout, network=network),
    )


def recording_options(settings: Settings) -> RecordingOptions | None:
    """Where streams are recorded; None where nowhere. Raises SettingsError for a certificate that could not sign."""
    signer = CredentialsSigner.of(settings.c2pa_cert, settings.c2pa_key)
    if settings.recording_dir is None:
        return None
    limits = RecordingLimits(
        most_bytes=round(settings.max_recording_size * 1024 * 1024),
        most_s=settings.max_recording_time,
        least_free_bytes=round(settings.min_free_disk * 1024 * 1024),
    )
    finishing = () if signer is None else (signer.finish,)
    return RecordingOptions(settings.recording_dir, settings.record == "all", limits, finishing)


def output_options(settings: Settings, network: Network) -> OutputOptions | None:
    """Where streams may be pushed; None where nowhere. Raises SettingsError."""
    if not settings.output_host:
        return None
    rules = HostRules.of(settings.output_host)
    return OutputOptions(rules, settings.max_outputs, settings.max_outputs_per_stream, network)


def voice_of(settings: Settings) -> Voice | None:
    """What says texts, by the settings. Raises SettingsError."""
    if settings.tts_url is None:
        return None
    return make_voice(settings.tts_url, settings.tts_model, settings.tts_voice, settings.tts_key)


def network_of(settings: Settings) -> Network:
    """How peers get through to each other, by the settings. Raises SettingsError."""
    return Network.of(
        settings.ice_server,
        settings.turn_secret,
        settings.udp_ports,
        settings.public_ip,
        private_peers=not settings.public_peers_only,
    )


def access_of(settings: Settings) -> Access:
    """Tokens, origins and limits of clients, by the settings. Raises SettingsError."""
    authorisation = Authorisation.of(settings.auth_token, settings.token_secret, settings.admin_token)
    if settings.require_token and not authorisation.required:
        raise SettingsError(
            "require_token is set and there is no token; set ECHO_RTC_AUTH_TOKEN or ECHO_RTC_TOKEN_SECRET, or take "
            "--no-require-token to admit every client"
        )
    return Access(
        authorisation=authorisation if authorisation.administered else authorisation.with_admin(),
        clients=Clients.of(settings.trusted_proxy),
        limits=LimitOptions(
            settings.max_offers_per_minute, settings.max_texts_per_minute, settings.max_peers_per_address
        ),
        cross_origin=CrossOrigin.of(settings.allow_origin),
        frame_ancestors=frame_sources(settings.frame_ancestors),
        loopback=settings.host in LOOPBACK,
        base_path=(settings.base_path or "").rstrip("/"),
    )
