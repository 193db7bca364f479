"""Every setting once: its name, type, default, unit, limits and meaning, and how a value is found for it. Those of the
model are declared in its room (``model/options.py``).

A value comes from the first of: a flag (``--clip-frames``), the environment (``ECHO_RTC_CLIP_FRAMES``), the YAML file
named by ``--config`` (``clip_frames``), the default below. Whatever is unknown or impossible is told in one sentence,
as a SettingsError, before anything is loaded. This file opens the YAML file and nothing else: whether an image, a
folder or a device exists is checked where it is opened, and the ``model`` mapping is read by the model room.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import stat
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from echo_rtc.clips import DEFAULT_AVATAR, ClipFormat
from echo_rtc.errors import SettingsError
from echo_rtc.model.options import ModelOptions
from echo_rtc.model.quality import AUTO, RUNGS, on_rung
from echo_rtc.options import Option, Scalar, about
from echo_rtc.resources import CONFIGS, EMBEDDED, INSTALLED, PACKAGE, PREFIX, VERSION

ENVIRONMENT_PREFIX = "ECHO_RTC_"
MAX_CONFIG_BYTES = 64 * 1024
MAX_CONFIG_DEPTH = 4
"""Levels of nesting: the file's mapping, ``model`` inside it, and room for one more."""
MIN_CLIP_S = 0.1
MAX_CLIP_S = 4.0
"""A clip is rendered whole, so it is also the least delay there can be."""

_COMMON = frozenset(
    (
        *("host", "port", "config", "engine", "devices", "reference_image", "pose_dir", "avatar_dir"),
        *("allow_avatar_upload", "steps", "width", "height", "max_streams", "auth_token", "allow_origin"),
        *("tls_cert", "tls_key", "tls_self_signed", "ice_server", "udp_ports", "public_ip", "log_dir", "log_level"),
    )
)
"""Settings that ``--help`` shows; ``--help-all`` shows the others too."""
_SHOWN_CHARACTERS = 60
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TITLES = {
    "server": "server",
    "avatar": "avatar",
    "model": "model",
    "clips": "clips and picture",
    "streams": "streams",
    "marking": "marks of what is synthetic",
    "library": "further avatars",
    "access": "tokens and permissions",
    "limits": "limits",
    "network": "sound and picture on the network",
    "recording": "recordings and outputs",
    "logs": "logs",
}

AVATAR_NAME = r"[a-z0-9][a-z0-9_-]{0,39}"
AVATAR_NAME_WORDS = "1 to 40 small letters, digits, - and _, the first of them a letter or digit"


@dataclass(frozen=True, slots=True)
class AvatarSource:
    """A further avatar of the YAML file's mapping ``avatars``; ``pose_dir`` and ``idle_pose_dir`` are the settings of
    these names unless it has its own."""

    name: str
    reference_image: Path
    pose_dir: Path
    idle_pose_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class FlagRow:
    """One row of the README's table: ``--flag``, the default as text, the unit (or ""), the meaning."""

    flag: str
    default: str
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Settings(ModelOptions):
    """All settings of a server or an offline rendering, checked on construction (SettingsError).

    ``model`` is the YAML file's mapping of that name, unread; its paths are relative to :attr:`model_base`.
    """

    host: str = field(
        default="127.0.0.1",
        metadata=about(
            "server",
            "Address to listen on. The default admits this machine only; 0.0.0.0 admits everyone who can reach it, "
            "and browsers then ask for HTTPS before they allow the microphone.",
            form=r"[^\s/]+",
            words="an address or a host name",
        ),
    )
    port: int = field(
        default=8080, metadata=about("server", "HTTP server port; 0 takes any free one.", low=0, high=65_535)
    )
    base_path: str | None = field(
        default=None,
        metadata=about(
            "server",
            "Path prefix, such as /avatar, under which a reverse proxy publishes the server; the proxy strips it, and "
            "the server puts it into the addresses of its answers. A --trusted-proxy may send it as X-Forwarded-Prefix "
            "instead.",
            kind=str,
            form=r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}){1,8}/?",
            words="a path such as /avatar",
        ),
    )
    config: Path = field(
        default=CONFIGS / "embedded.yaml",
        metadata=about("server", "YAML file with settings of these same names and the description of the model."),
    )
    engine: Literal["local", "ray", "testcard"] = field(
        default="local",
        metadata=about(
            "server",
            "What renders: local = the model, in one process per device of this machine; ray = the model, on the "
            "machines of a Ray cluster; testcard = a test picture without any model.",
            choices=("local", "ray", "testcard"),
        ),
    )
    devices: str = field(
        default="auto",
        metadata=about(
            "server",
            "Devices of the local engine, one worker process each: auto (every CUDA device, else the CPU), cpu, "
            "cuda, or a list such as cuda:0,cuda:1.",
            form=r"auto|(cpu|cuda(:\d{1,3})?)(,(cpu|cuda:\d{1,3}))*",
            words="auto, cpu, cuda or a list of different devices such as cuda:0,cuda:1",
        ),
    )
    ray_address: str | None = field(
        default=None,
        metadata=about(
            "server",
            "Ray cluster to render on, such as 10.0.0.5:6379; auto = the one that this machine belongs to; none starts "
            "a cluster on this machine that ends with the server.",
            kind=str,
            form=r"auto|[A-Za-z0-9.:_\[\]-]+:\d{1,5}",
            words="auto, or the address and port of a cluster's head such as 10.0.0.5:6379",
        ),
    )
    ray_workers: int = field(
        default=0,
        metadata=about(
            "server",
            "Workers of the Ray engine; 0 takes one per GPU of the cluster, or one per node where there are none.",
            unit="workers",
            low=0,
            high=1_000,
        ),
    )
    avatar_name: str = field(
        default=DEFAULT_AVATAR,
        metadata=about(
            "avatar",
            "Name of the avatar of reference_image; default stays another name of it.",
            form=AVATAR_NAME,
            words=AVATAR_NAME_WORDS,
        ),
    )
    reference_image: Path = field(
        default=EMBEDDED / "reference.png",
        metadata=about("avatar", "Reference face image: the person who will speak."),
    )
    pose_dir: Path = field(
        default=EMBEDDED / "poses", metadata=about("avatar", "Directory of .npy pose files, 0.npy onwards.")
    )
    idle_pose_dir: Path | None = field(
        default=None,
        metadata=about(
            "avatar",
            "Directory of the poses shown in silence; without it the calmest stretch of pose_dir is used.",
            kind=Path,
        ),
    )
    burn_mark: bool = field(
        default=False,
        metadata=about(
            "marking",
            "Draw the words AI-generated into the pictures themselves, in the lower right corner, of calls and movies.",
        ),
    )
    c2pa_cert: Path | None = field(
        default=None,
        metadata=about(
            "marking",
            "Certificate that signs movies and recordings (C2PA), a PEM file with those of its issuers after it; "
            "with it goes --c2pa-key. Needs the extra c2pa.",
            kind=Path,
        ),
    )
    c2pa_key: Path | None = field(
        default=None,
        metadata=about("marking", "Private key of --c2pa-cert, a PEM file without a password.", kind=Path),
    )
    mark: bool = field(
        default=True,
        metadata=about(
            "marking",
            "Show the words AI-generated over the picture of the page and of <echo-rtc>. Marks within H.264 do not "
            "depend on it.",
        ),
    )
    avatar_dir: Path = field(
        default=Path("avatars"),
        metadata=about(
            "library", "Directory of the avatars that were uploaded, one folder each; they are prepared at every start."
        ),
    )
    allow_avatar_upload: bool = field(
        default=False,
        metadata=about("library", "Let administrators upload and delete avatars (POST and DELETE /avatars)."),
    )
    max_avatars: int = field(
        default=8,
        metadata=about(
            "library",
            "Most avatars at once, of the settings and uploaded; each keeps its idle loop in memory.",
            unit="avatars",
            low=1,
            high=1_000,
        ),
    )
    use_init_latent: bool = field(
        default=True,
        metadata=about(
            "model",
            "Start each clip from the last latent of the one before, so that clips join smoothly, where one worker is "
            "enough for a stream.",
        ),
    )
    overlap_frames: int = field(
        default=6,
        metadata=about(
            "model",
            "Frames that clips have in common with the clip before, to be cross-faded, where several workers share a "
            "stream; 0 for no blending, at most clip_frames.",
            unit="frames",
            low=0,
            high=48,
        ),
    )
    quality: str | None = field(
        default=None,
        metadata=about(
            "model",
            "Rung of the ladder of qualities (docs/performance.md): from best to lowest each gives up one thing more "
            "for speed; auto measures this machine at the start and takes the best one that holds --fps. Flags that "
            "are given win over it; without it nothing is given up.",
            kind=str,
            choices=(AUTO, *RUNGS),
        ),
    )
    min_steps: int = field(
        default=4,
        metadata=about(
            "model",
            "Fewest denoising steps. A stream is admitted if it is held in real time with these, and gets as many as "
            "are held, up to --steps; while clips come late it falls towards them. From --steps up, steps never fall.",
            unit="steps",
            low=1,
            high=100,
        ),
    )
    compile_cache: Path = field(
        default=Path("~/.cache/echo_rtc"),
        metadata=about(
            "model", "Directory that keeps compiled kernels, idle loops and encoded poses for the next start."
        ),
    )
    keep_idle_loops: bool = field(
        default=True,
        metadata=about(
            "model",
            "Keep the idle loops (at most 2 GiB) and the encoded poses (at most 1 GiB) of avatars in the directory of "
            "--compile-cache, and read them at the next start instead of computing them.",
        ),
    )
    width: int = field(
        default=512, metadata=about("clips", "Output width.", unit="pixels", low=32, high=2048, even=True)
    )
    height: int = field(
        default=512, metadata=about("clips", "Output height.", unit="pixels", low=32, high=2048, even=True)
    )
    fps: int = field(default=24, metadata=about("clips", "Output video frame rate.", unit="frames/s", low=1, high=60))
    clip_frames: int = field(
        default=12,
        metadata=about(
            "clips",
            "Frames rendered at a time. Fewer shorten the delay, more join better.",
            unit="frames",
            low=1,
            high=96,
        ),
    )
    sample_rate: int = field(
        default=16_000,
        metadata=about(
            "clips",
            "Sample rate of the audio that goes to the workers, which resample it to what the audio model needs.",
            unit="Hz",
            low=8_000,
            high=48_000,
        ),
    )
    vad_threshold: float = field(
        default=0.015,
        metadata=about(
            "clips",
            "Loudness (RMS, full scale = 1) below which a clip counts as silence and is not rendered; 0.0 renders "
            "everything.",
            unit="RMS",
            low=0,
            high=1,
        ),
    )
    max_latency: float = field(
        default=3.0,
        metadata=about(
            "streams",
            "Most that sound and picture may lag behind the microphone; a slower renderer shows held frames.",
            unit="s",
            low=0.2,
            high=30,
        ),
    )
    max_streams: int = field(
        default=0,
        metadata=about(
            "streams",
            "Most streams at once; 0 admits as many as the measured speed holds in real time.",
            unit="streams",
            low=0,
            high=1_000,
        ),
    )
    render_timeout: float = field(
        default=0.0,
        metadata=about(
            "streams",
            "Time after which a clip is given up and its worker replaced; 0 takes ten times a clip's length, or "
            "twelve times what a clip took when workers were measured at the start, whichever is longer.",
            unit="s",
            low=0,
            high=300,
        ),
    )
    auth_token: str | None = field(
        default=None,
        repr=False,
        metadata=about(
            "access",
            "Token that allows everything, in the header Authorization: Bearer. Give it as an environment variable: "
            "flags can be read by every user of the machine.",
            kind=str,
            secret=True,
            form=r"[A-Za-z0-9._~+/=-]{8,512}",
            words="8 to 512 letters, digits and -._~+/=",
        ),
    )
    token_secret: str | None = field(
        default=None,
        repr=False,
        metadata=about(
            "access",
            "Key that signs the tokens which allow one thing for some time (echo-rtc token makes them). "
            "Better given as an environment variable too.",
            kind=str,
            secret=True,
            form=r"[!-~]{32,512}",
            words="32 to 512 visible ASCII characters",
        ),
    )
    admin_token: str | None = field(
        default=None,
        repr=False,
        metadata=about(
            "access",
            "Token for administration alone (/admin, /metrics, uploads), also where calls need none. Without it and "
            "any other token one is made at each start and printed on the console.",
            kind=str,
            secret=True,
            form=r"[A-Za-z0-9._~+/=-]{8,512}",
            words="8 to 512 letters, digits and -._~+/=",
        ),
    )
    require_token: bool = field(
        default=False,
        metadata=about("access", "Do not start unless calls need a token: --auth-token or --token-secret."),
    )
    allow_origin: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "access",
            "Origin (https://app.example) whose pages may use this server besides its own; * for all; may be repeated.",
            form=r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s]+/?",
            words="an origin such as https://app.example, or *",
        ),
    )
    frame_ancestors: tuple[str, ...] = field(
        default=("self",),
        metadata=about(
            "access",
            "Origins whose pages may put /embed into an iframe: self, none, * for all, or an origin "
            "(https://app.example); may be repeated.",
            form=r"'?(self|none)'?|\*|[A-Za-z][A-Za-z0-9+.-]*://(\*\.)?[A-Za-z0-9.-]+(:([0-9]{1,5}|\*))?/?",
            words="self, none, * or an origin such as https://app.example",
        ),
    )
    trusted_proxy: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "access",
            "Address or network (10.0.0.0/8) of a proxy whose X-Forwarded-For is believed; may be repeated.",
            form=r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?",
            words="an address such as 10.0.0.5 or a network such as 10.0.0.0/8",
        ),
    )
    tls_cert: Path | None = field(
        default=None,
        metadata=about(
            "access",
            "Certificate for HTTPS, a PEM file with those of its issuers; with it goes --tls-key.",
            kind=Path,
        ),
    )
    tls_key: Path | None = field(
        default=None, metadata=about("access", "Private key of --tls-cert, a PEM file without a password.", kind=Path)
    )
    tls_self_signed: bool = field(
        default=False,
        metadata=about(
            "access",
            "HTTPS with a certificate that is made here, for a local network: browsers ask once whether to trust it.",
        ),
    )
    max_peers_per_stream: int = field(
        default=100,
        metadata=about(
            "limits",
            "Most peers of one stream, its publisher and its viewers; 0 for any number.",
            unit="peers",
            low=0,
            high=10_000,
        ),
    )
    max_peers_per_address: int = field(
        default=64,
        metadata=about(
            "limits",
            "Most peers of one client's address (IPv6: network of 64 bits) at once; 0 for any number. Programs of the "
            "server's own machine are not limited.",
            unit="peers",
            low=0,
            high=10_000,
        ),
    )
    max_connections_per_address: int = field(
        default=256,
        metadata=about(
            "limits",
            "Most HTTP connections of one client's address at once; 0 for any number. Beyond it the ones that have "
            "been idle for longest are closed. A --trusted-proxy is not limited.",
            unit="connections",
            low=0,
            high=100_000,
        ),
    )
    max_offers_per_minute: int = field(
        default=300,
        metadata=about(
            "limits",
            "Most offers a minute from one client's address, outputs and recordings that it begins included; 0 for any "
            "number. A proxy in front must be a --trusted-proxy, or all its clients count as one.",
            unit="offers",
            low=0,
            high=100_000,
        ),
    )
    max_texts_per_minute: int = field(
        default=600,
        metadata=about(
            "limits",
            "Most texts a minute that one client's address has streams say (--tts-url); 0 for any number. Programs of "
            "the server's own machine are not limited.",
            unit="texts",
            low=0,
            high=100_000,
        ),
    )
    connect_timeout: float = field(
        default=15.0,
        metadata=about(
            "limits",
            "Time after which a peer that was answered but has not connected is closed.",
            unit="s",
            low=1,
            high=300,
        ),
    )
    voice_timeout: float = field(
        default=60.0,
        metadata=about(
            "limits",
            "Time after which a stream ends if its microphone sends no packets at all (silence is sent as packets); 0: "
            "never.",
            unit="s",
            low=0,
            high=86_400,
        ),
    )
    speech_timeout: float = field(
        default=300.0,
        metadata=about(
            "limits",
            "Time after which a stream of pushed speech ends if no client speaks to it or views it; 0: never.",
            unit="s",
            low=0,
            high=86_400,
        ),
    )
    livekit_host: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "access",
            "LiveKit server whose rooms avatars may join (POST /livekit): livekit.example, with a port if that is not "
            "443, *.livekit.example for all below, ws://localhost:7880 for one of this machine; may be repeated. "
            'Needs pip install "echo-rtc[livekit]".',
        ),
    )
    tts_url: str | None = field(
        default=None,
        metadata=about(
            "streams",
            "Address of a text-to-speech server with OpenAI's POST /v1/audio/speech, for the texts of pushed speech; "
            "local: espeak-ng on this machine.",
            kind=str,
            form=r"local|https?://[^\s@?#]{1,500}",
            words="local, or an address such as http://127.0.0.1:8880 without a password in it",
        ),
    )
    tts_model: str = field(
        default="tts-1",
        metadata=about(
            "streams", "Model to request from the text-to-speech server.", form=r"\S{1,200}", words="a word"
        ),
    )
    tts_voice: str | None = field(
        default=None,
        metadata=about(
            "streams",
            "Voice to request from the text-to-speech server; without one alloy, or en of espeak-ng.",
            kind=str,
            form=r"[\w.+/:-]{1,200}",
            words="1 to 200 letters, digits and _.+/:-",
        ),
    )
    tts_key: str | None = field(
        default=None,
        repr=False,
        metadata=about(
            "streams",
            "Key of the text-to-speech server, sent as Authorization: Bearer. Give it as an environment variable.",
            kind=str,
            secret=True,
            form=r"[!-~]{1,512}",
            words="1 to 512 visible ASCII characters",
        ),
    )
    ice_server: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=about(
            "network",
            "STUN or TURN server (stun:HOST:PORT, turn:USER:PASSWORD@HOST:PORT?transport=udp) that clients are told of "
            "and the server itself uses; may be repeated.",
            secret=True,
            form=r"(stuns?|turns?):\S+",
            words="of the form stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT?transport=udp",
        ),
    )
    turn_secret: str | None = field(
        default=None,
        repr=False,
        metadata=about(
            "network",
            "Secret shared with the TURN server (coturn: static-auth-secret), with which time-limited credentials are "
            "made for every turn server that is given without USER:PASSWORD.",
            kind=str,
            secret=True,
            form=r"[!-~]{8,512}",
            words="8 to 512 visible ASCII characters",
        ),
    )
    udp_ports: str | None = field(
        default=None,
        metadata=about(
            "network",
            "UDP ports for sound and picture, such as 40000-40100; each peer takes one (one for each section if its "
            "offer has no BUNDLE group), and as many again if there is a TURN server. Up to a quarter is kept for "
            "publishers. Without it the system picks any.",
            kind=str,
            form=r"[0-9]{1,5}-[0-9]{1,5}",
            words="a range such as 40000-40100",
        ),
    )
    public_ip: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "network",
            "Address at which clients reach this machine through a NAT that keeps the ports (1:1), or the host's "
            "address where the server is in a container; may be given once for IPv4 and once for IPv6.",
            form=r"[0-9A-Fa-f:.]+",
            words="an address such as 203.0.113.5",
        ),
    )
    public_peers_only: bool = field(
        default=False,
        metadata=about(
            "network",
            "Send nothing to peers at addresses that the Internet does not route (10.0.0.0/8, fd00::/8 and the like), "
            "which an untrusted client may name to make the server probe its own network. Peers of the same network "
            "can then connect through a TURN server only.",
        ),
    )
    recording_dir: Path | None = field(
        default=None,
        metadata=about(
            "recording",
            "Directory of recordings, one MP4 file each; without it nothing can be recorded.",
            kind=Path,
        ),
    )
    record: Literal["asked", "all"] = field(
        default="asked",
        metadata=about(
            "recording",
            "Which streams are recorded: asked = those for which a client asks (POST /streams/{id}/recordings); all = "
            "every stream from its beginning. The page shows it to all participants.",
            choices=("asked", "all"),
        ),
    )
    max_recording_time: float = field(
        default=14_400.0,
        metadata=about("recording", "Length at which a recording ends; 0: never.", unit="s", low=0, high=604_800),
    )
    max_recording_size: float = field(
        default=4096.0,
        metadata=about("recording", "Size at which a recording ends; 0: never.", unit="MiB", low=0, high=1_000_000),
    )
    min_free_disk: float = field(
        default=1024.0,
        metadata=about(
            "recording",
            "Free space on the disk of --recording-dir below which recordings end and no new one begins.",
            unit="MiB",
            low=0,
            high=100_000_000,
        ),
    )
    output_host: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "recording",
            "Server that streams may be pushed to by WHIP (POST /streams/{id}/outputs): HOST or HOST:PORT "
            "over https, with http:// before it over http; *.DOMAIN and * mean public addresses only; may be repeated. "
            "Without it none may.",
            form=r"(https?://)?(\*|(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?",
            words="a host such as live.example, *.example or http://mediamtx:8889",
        ),
    )
    max_outputs: int = field(
        default=16,
        metadata=about("recording", "Most outputs of all streams at once.", unit="outputs", low=1, high=1_000),
    )
    max_outputs_per_stream: int = field(
        default=4,
        metadata=about("recording", "Most outputs of one stream at once.", unit="outputs", low=1, high=100),
    )
    log_dir: Path = field(
        default=Path("logs"), metadata=about("logs", "Directory of the log files run_<timestamp>.log.")
    )
    log_level: Literal["debug", "info", "warning", "error"] = field(
        default="info",
        metadata=about("logs", "Lowest severity that is logged.", choices=("debug", "info", "warning", "error")),
    )
    log_format: Literal["text", "json"] = field(
        default="text",
        metadata=about(
            "logs",
            "Form of the log lines, on the console and in the files: text, or json = one JSON object a line.",
            choices=("text", "json"),
        ),
    )
    log_file_size: float = field(
        default=10.0,
        metadata=about(
            "logs",
            "Size at which a log file is full and the next one is begun.",
            unit="MiB",
            low=0.01,
            high=10_000,
        ),
    )
    log_files: int = field(
        default=3,
        metadata=about(
            "logs",
            "Filled log files of a run that are kept beside the one being written; the oldest goes first.",
            unit="files",
            low=1,
            high=1_000,
        ),
    )
    model: Mapping[str, str | None] = field(default_factory=dict)
    avatars: tuple[AvatarSource, ...] = ()
    explicit: frozenset[str] = field(default=frozenset(), compare=False)
    """The settings that were given by flags, the environment or a program, which a rung of quality leaves alone."""

    def __post_init__(self) -> None:
        for name in _options():
            _check(name, getattr(self, name), name)
        clip_s = self.clip_frames / self.fps
        if not MIN_CLIP_S <= clip_s <= MAX_CLIP_S:
            raise SettingsError(
                f"clip_frames is {self.clip_frames} at {self.fps} frames/s, so a clip would last {clip_s:.3g} s; "
                f"choose clip_frames and fps so that it lasts {MIN_CLIP_S:g} to {MAX_CLIP_S:g} s"
            )
        if self.max_latency <= clip_s:
            raise SettingsError(
                f"max_latency is {self.max_latency:g} s, but a clip of {self.clip_frames} frames alone lasts "
                f"{clip_s:.3g} s; raise max_latency or lower clip_frames"
            )
        if len(self.avatars) >= self.max_avatars:
            raise SettingsError(
                f"max_avatars is {self.max_avatars}, but the configuration describes {len(self.avatars) + 1}; "
                "raise max_avatars or take avatars out"
            )
        if self.record == "all" and self.recording_dir is None:
            raise SettingsError("record is all and there is no recording_dir; name a folder with --recording-dir")
        if self.quality == AUTO and self.engine != "local":
            raise SettingsError(
                f"quality is auto, which measures the devices of this machine, but engine is {self.engine}; "
                f"name one of {', '.join(RUNGS)}, or leave it out"
            )
        if self.avatar_name in {each.name for each in self.avatars}:
            raise SettingsError(
                f"avatar_name is {self.avatar_name}, which is one of avatars too; choose another name for one of them"
            )
        names = self.devices.split(",")
        if len(set(names)) < len(names):
            raise SettingsError(f"devices is {_shown(self.devices)}; name each device once, it has one worker process")

    @property
    def clip_format(self) -> ClipFormat:
        """What the clips of every stream have in common."""
        return ClipFormat(
            fps=self.fps,
            clip_frames=self.clip_frames,
            width=self.width,
            height=self.height,
            sample_rate=self.sample_rate,
        )

    @property
    def model_base(self) -> Path:
        """The folder that relative paths in ``model`` start from."""
        return _base_of(self.config)


class SettingsParser(argparse.ArgumentParser):
    """An argparse parser that has every setting as a flag and tells a wrong one by SettingsError.

    A command may add arguments of its own, and leave out settings (``without``) that mean nothing to it. ``--help``
    shows the common settings, ``--help-all`` all of them, each with the default that applies: of the environment and of
    the configuration in use.
    """

    def __init__(self, prog: str, description: str, without: Collection[str] = (), required: str = "") -> None:
        """``required``: the command's own flags that must be given, for the line of usage."""
        super().__init__(
            prog=prog,
            usage=f"%(prog)s {required}{' ' if required else ''}[flags]",
            description=description,
            allow_abbrev=False,
            add_help=False,
        )
        general = self.add_argument_group("help")
        general.add_argument("-h", "--help", action="store_true", help="Show the common flags.")
        general.add_argument("--help-all", action="store_true", help="Show all flags.")
        general.add_argument("--version", action="store_true", help="Show the version.")
        self._shown: dict[str, argparse.Action] = {}
        for group, title in _TITLES.items():
            section = self.add_argument_group(title)
            for name, option in _options().items():
                if option.group == group and name not in without:
                    self._shown[name] = self._add(section, name, option)

    @staticmethod
    def _add(section: argparse._ArgumentGroup, name: str, option: Option) -> argparse.Action:
        if isinstance(_default(name), bool):
            return section.add_argument(
                _flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=option.help
            )
        kind = _kind(name)
        metavar = "|".join(option.choices) or _METAVARS[kind]
        action = "append" if kind is tuple else "store"
        return section.add_argument(
            _flag(name), metavar=metavar, action=action, default=argparse.SUPPRESS, help=option.help
        )

    def _help_text(self, argv: Sequence[str], everything: bool) -> str:
        """What ``--help`` or ``--help-all`` prints; with the built-in defaults where the configuration is at fault."""
        config = next((argv[n + 1] for n, word in enumerate(argv[:-1]) if word == "--config"), None)
        config = next((word.partition("=")[2] for word in argv if word.startswith("--config=")), config)
        given = {} if config is None else {"config": ("--config", config)}
        try:
            settings = _settings([_environment(os.environ), given])
        except SettingsError:
            settings = Settings()
        for name, action in self._shown.items():
            option, value = _options()[name], getattr(settings, name)
            shown = ("set" if value else "none") if option.secret else _value_text(value)
            text = f"{option.help} [{shown}{' ' + option.unit if option.unit else ''}]".replace("%", "%%")
            action.help = text if everything or name in _COMMON else argparse.SUPPRESS
        more = "" if everything else " --help-all shows all flags."
        self.epilog = (
            f"In brackets: the defaults that apply, of {_value_text(settings.config)} and the environment.{more} Each "
            f"setting may also be given as an environment variable (--clip-frames: {ENVIRONMENT_PREFIX}CLIP_FRAMES) or "
            "as a key of the YAML file (clip_frames). A flag wins over the environment, the environment over the file, "
            "the file over the default."
        )
        return self.format_help()

    def _answer(self, argv: Sequence[str]) -> None:
        """Prints what was asked for instead of the command's work, and ends the program; else does nothing."""
        if "--help-all" in argv or "-h" in argv or "--help" in argv:
            sys.stdout.write(self._help_text(argv, "--help-all" in argv))
            raise SystemExit(0)
        if "--version" in argv:
            sys.stdout.write(f"echo-rtc {VERSION}\n")
            raise SystemExit(0)

    def arguments(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses ``argv`` (without the program's name). Settings that were not given are absent from the result.

        ``--help``, ``--help-all`` and ``--version`` print and raise SystemExit(0).
        """
        self._answer(argv)
        for word in argv:
            flag, equals, value = word.partition("=")
            if equals and isinstance(self._option_string_actions.get(flag), argparse.BooleanOptionalAction):
                yes = flag.replace("--no-", "--", 1)
                self.error(f"{flag} is given {_shown(value)} but takes no value; write {yes} or --no-{yes[2:]}")
        namespace, rest = self.parse_known_args(list(argv))
        if not rest:
            return namespace
        key = rest[0].partition("=")[0]
        if not key.startswith("-"):
            self.error(f"{_shown(key)} is not expected here; every setting is a flag, and --help lists them")
        self.error(f"{_bare(key)} is not a flag; {_suggestion(key, self._option_string_actions, '--help lists them')}")

    def error(self, message: str) -> NoReturn:
        """Raises SettingsError instead of argparse's usage text and exit."""
        message = message.removeprefix("argument ")
        flag, colon, complaint = message.partition(": ")
        name = flag.removeprefix("--").replace("-", "_")
        if colon and complaint == "expected one argument" and name in _options():
            message = f"{flag} is given without a value; it must be {_expected(name)}"
        raise SettingsError(message)


def load_settings(argv: Sequence[str], environ: Mapping[str, str], prog: str = "echo-rtc serve") -> Settings:
    """The settings of the server from flags (without the program's name), environment, YAML file and defaults.

    Raises SettingsError; ``--help`` prints and raises SystemExit(0).
    """
    parser = SettingsParser(
        prog, "Serves talking avatars over WebRTC: a voice goes in, its talking face comes out, live."
    )
    return settings_from(parser.arguments(argv), environ)


def settings_from(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings from what a :class:`SettingsParser` has parsed, the environment, the YAML file and the defaults.

    Attributes of ``arguments`` that are no settings are left alone. Raises SettingsError.
    """
    given = {name: (_flag(name), value) for name, value in vars(arguments).items() if name in _options()}
    return _settings([_environment(environ), given])


def named_settings(given: Mapping[str, object]) -> Settings:
    """The settings of a program that names them itself, as keys of the YAML file, which ``config`` names.

    What it leaves out comes from that file and the defaults; relative paths start from the working directory. Raises
    SettingsError.
    """
    for name in given:
        if name not in _options():
            raise SettingsError(f"{_bare(name)} is not a setting; {_suggestion(name, _options(), 'see --help')}")

    def words(raw: object) -> bool | str | list[str]:
        if isinstance(raw, list | tuple):
            return [str(word) for word in raw]
        return raw if isinstance(raw, bool) else str(raw)

    return _settings([{name: (name, words(raw)) for name, raw in given.items()}])


def _settings(sources: Sequence[Mapping[str, tuple[str, Any]]]) -> Settings:
    """The settings from labelled values, of which a later source wins, then the YAML file, then the defaults."""
    values: dict[str, Scalar] = {}
    for source in sources:
        for name, (label, raw) in source.items():
            text = " ".join(raw) if isinstance(raw, list) else raw
            values[name] = text if isinstance(text, bool) else _parse(name, label, text, Path.cwd())
    config = values.get("config", _default("config"))
    assert isinstance(config, Path)
    config = _known_config(config)
    content = read_config(config)
    model = _model(content.pop("model", {}), config)
    avatars = content.pop("avatars", {})
    for name, (label, raw) in _from_file(content, config).items():
        value = _parse(name, label, raw, _base_of(config))
        values.setdefault(name, value)
    poses = values.get("pose_dir", _default("pose_dir"))
    assert isinstance(poses, Path)
    explicit = frozenset(name for source in sources for name in source)
    if "pose_dir" in explicit and "idle_pose_dir" not in explicit:
        values.pop("idle_pose_dir", None)  # the file's idle poses belong to the file's pose sequence
    idle = values.get("idle_pose_dir")
    assert idle is None or isinstance(idle, Path)
    further = _avatars(avatars, config, poses, idle)
    merged: dict[str, Any] = {**values, "config": config, "model": model, "avatars": further, "explicit": explicit}
    settings = Settings(**merged)
    if settings.quality in RUNGS:
        settings = on_rung(settings, settings.quality, explicit)
    if settings.engine != "testcard" and not model:
        raise SettingsError(
            f"model is missing in {config}; the local engine needs it to find the weights, --engine testcard does not"
        )
    return settings


def settings_of(*groups: str) -> list[str]:
    """The names of the settings of these groups, in the order of ``--help``."""
    return [name for group in groups for name, option in _options().items() if option.group == group]


def flag_table() -> list[FlagRow]:
    """Every setting as a row of the README's table, in the order of ``--help``."""
    ordered = [(name, option) for group in _TITLES for name, option in _options().items() if option.group == group]
    return [FlagRow(_flag(name), _value_text(_default(name)), option.unit, option.help) for name, option in ordered]


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, every scalar as text, plain nulls as None. Raises SettingsError.

    Scalars stay text so that a file, a flag and the environment are read by the same rules, and YAML 1.1's surprises
    (``1e-3`` is text, ``12:30`` is 750) never show. Tags, anchors and repeated keys are refused.
    """
    text = _config_text(path)
    try:
        _check_events(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f"config {path} is not YAML: {_yaml_complaint(error)}") from error
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(f"config {path} is not a mapping; write one 'key: value' per line")
    result = _plain(node, path)
    assert isinstance(result, dict)
    return result


def _config_text(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise SettingsError(f"config {path} is {kind}; name a YAML file, such as configs/embedded.yaml")
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise SettingsError(f"config {path} does not exist; name a YAML file, such as configs/embedded.yaml") from None
    except OSError as error:
        raise SettingsError(
            f"config {path} cannot be read ({error.strerror}); make it readable or name another"
        ) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise SettingsError(f"config {path} is larger than {MAX_CONFIG_BYTES // 1024} KiB; name a file of settings")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"config {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _check_events(text: str, path: Path) -> None:
    """Refuses tags, anchors and deep nesting before any tree is built, so that building it is cheap and safe."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise SettingsError(f"line {line} of config {path} has an anchor or alias; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise SettingsError(
                f"line {line} of config {path} has the tag {_shown(tag)}; write the value without a tag"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_CONFIG_DEPTH:
            raise SettingsError(f"line {line} of config {path} is nested too deeply; settings are 'key: value' lines")


def _plain(node: yaml.Node, path: Path, names: bool = False) -> dict[str, Any] | list[Any] | str | None:
    """The node as plain values; ``names``: its keys are names, which stay as they are written."""
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in _NULLS else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise SettingsError(f"line {line} of config {path} has a key that is not a word; write 'key: value'")
        key = key_node.value if names else key_node.value.replace("-", "_")
        if key in result:
            raise SettingsError(f"{_bare(key)} is given twice in config {path} (line {line}); keep one of the two")
        result[key] = _plain(value_node, path, names=key == "avatars" and not names)
    return result


def _yaml_complaint(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, {error.problem or 'it cannot be read'}"
    return " ".join(str(error).split())


def _from_file(content: Mapping[str, Any], path: Path) -> dict[str, tuple[str, str]]:
    result: dict[str, tuple[str, str]] = {}
    for name, raw in content.items():
        if name == "config":
            raise SettingsError(f"config is given inside config {path}; a file cannot name another, so leave it out")
        if name not in _options():
            mend = _suggestion(name, [*_options(), "model", "avatars"], "--help lists the settings")
            raise SettingsError(f"{_bare(name)} in {path} is not a setting; {mend}")
        label = f"{name} in {path}"
        if raw is None:
            raise SettingsError(f"{label} has no value; it must be {_expected(name)}, or leave the key out")
        if isinstance(raw, list) and raw and _kind(name) is tuple and all(isinstance(item, str) for item in raw):
            raw = " ".join(raw)
        if not isinstance(raw, str):
            raise SettingsError(
                f"{label} is a {'list' if isinstance(raw, list) else 'mapping'}; it must be {_expected(name)}"
            )
        result[name] = (label, raw)
    return result


def _model(raw: object, path: Path) -> dict[str, str | None]:
    if not isinstance(raw, dict):
        raise SettingsError(f"model in {path} is {_shown(raw)}; it must be a mapping that names the weights")
    for key, value in raw.items():
        if value is not None and not isinstance(value, str):
            raise SettingsError(f"model.{_bare(key)} in {path} is {_shown(value)}; it must be one path or null")
    return {key: _in_package(value) for key, value in raw.items()}


def _in_package(path: str | None) -> str | None:
    """The path itself, or where it lies if it starts from this package."""
    return str(PACKAGE / path.removeprefix(PREFIX)) if path is not None and path.startswith(PREFIX) else path


def _base_of(config: Path) -> Path:
    """The folder that relative paths in a YAML file start from: its own.

    The set-ups of an installed package stand where no user keeps weights: their paths start as if the file were in
    ``configs`` of the working directory, as it is in a checkout.
    """
    return Path.cwd() / "configs" if INSTALLED and config.parent == CONFIGS else config.parent


def _known_config(path: Path) -> Path:
    """The path itself, or the set-up of this package whose name it has (``testcard``, ``configs/testcard.yaml``) where
    there is no such file."""
    if path.exists() or path.suffix not in ("", ".yaml") or path.parent not in (Path.cwd(), Path.cwd() / "configs"):
        return path
    known = CONFIGS / f"{path.stem}.yaml"
    return known if known.is_file() else path


def _avatars(raw: object, path: Path, poses: Path, idle: Path | None) -> tuple[AvatarSource, ...]:
    """The further avatars that the file describes, in its order."""
    if not isinstance(raw, dict):
        raise SettingsError(f"avatars in {path} is {_shown(raw)}; it must be a mapping of names to their files")
    sources: list[AvatarSource] = []
    for name, content in raw.items():
        label = f"avatars.{_bare(name)} in {path}"
        if not re.fullmatch(AVATAR_NAME, name):
            raise SettingsError(f"{label} is not a name; it must have {AVATAR_NAME_WORDS}")
        if name == DEFAULT_AVATAR:
            raise SettingsError(f"{label} is taken: it is the avatar of reference_image; choose another name")
        if not isinstance(content, dict) or not content.get("reference_image"):
            raise SettingsError(f"{label} lacks reference_image; write avatars: {{{name}: {{reference_image: PATH}}}}")
        paths: dict[str, Path] = {"pose_dir": poses}
        for key, value in content.items():
            if key not in ("reference_image", "pose_dir", "idle_pose_dir"):
                known = "known are reference_image, pose_dir and idle_pose_dir"
                raise SettingsError(f"avatars.{name}.{_bare(key)} in {path} is unknown; {known}")
            found = _convert(value.strip(), type(poses), _base_of(path)) if isinstance(value, str) else None
            if not isinstance(found, Path):
                raise SettingsError(f"avatars.{name}.{key} in {path} is {_shown(value)}; it must be a path")
            paths[key] = found
        # The common idle poses belong to the common pose sequence.
        own = paths.get("idle_pose_dir", None if "pose_dir" in content else idle)
        sources.append(AvatarSource(name, paths["reference_image"], paths["pose_dir"], own))
    return tuple(sources)


def _environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    known = {ENVIRONMENT_PREFIX + name.upper(): name for name in _options()}
    result: dict[str, tuple[str, str]] = {}
    for key in sorted(environ):
        if not key.startswith(ENVIRONMENT_PREFIX):
            continue
        if key not in known:
            mend = _suggestion(key, known, "unset it, --help lists the settings")
            raise SettingsError(f"the environment variable {_bare(key)} is not a setting; {mend}")
        if environ[key].strip():  # compose files and unit files set variables to nothing where they have no value
            result[known[key]] = (key, environ[key])
    return result


def _parse(name: str, label: str, raw: str, base: Path) -> Scalar:
    """The value of setting ``name`` from text; ``label`` is the key as the user wrote it, ``base`` starts paths."""
    value = _convert(raw.strip(), _kind(name), base)
    if value is None:
        raise SettingsError(f"{label} is {_shown_of(name, raw)}; it must be {_expected(name)}")
    _check(name, value, label)
    return value


def _convert(text: str, kind: type, base: Path) -> Scalar | None:
    """``text`` as a ``kind``, or None if it is no such thing."""
    if not text or "\0" in text:
        return None
    if kind is bool:
        return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    if kind is int:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
    if kind is float:
        return float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text) else None
    if kind is str:
        return text
    if kind is tuple:
        return tuple(re.split(r"[\s,]+", text.strip(", ")))
    if text.startswith(PREFIX):
        return PACKAGE / text.removeprefix(PREFIX)
    try:
        return Path(os.path.abspath(base / Path(text).expanduser()))
    except RuntimeError:  # ~name of a user who does not exist
        return None


def _check(name: str, value: Scalar | None, label: str) -> None:
    """Raises SettingsError if ``value`` is of another type than the setting's, or outside its limits."""
    option, kind = _options()[name], _kind(name)
    if value is None and _default(name) is None:
        return
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if fits and value is not None and option.admits(value):
        return
    if isinstance(value, tuple):
        value = next((item for item in value if not isinstance(item, str) or not option.admits(item)), value)
    mend = ""
    if isinstance(value, str) and (close := difflib.get_close_matches(value, option.choices, n=1)):
        mend = f"; did you mean {close[0]}?"
    raise SettingsError(f"{label} is {_shown_of(name, value)}; it must be {_expected(name)}{mend}")


def _expected(name: str) -> str:
    """What a value of this setting must be, in words."""
    option, kind = _options()[name], _kind(name)
    if option.choices:
        return f"{', '.join(option.choices[:-1])} or {option.choices[-1]}"
    if option.words:
        return option.words
    if kind is bool:
        return "true or false"
    if issubclass(kind, Path):
        return "a path"
    number = "a number" if kind is float else "an even number" if option.even else "a whole number"
    return f"{number} from {option.low:g} to {option.high:g}"


def _suggestion(key: str, known: Iterable[str], otherwise: str) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise


def _shown(value: object) -> str:
    """A value for a message: quoted where it is text, and never long."""
    text = repr(str(value)) if isinstance(value, str | Path) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _shown_of(name: str, value: object) -> str:
    """A setting's value for a message; a secret one only by its length."""
    if not _options()[name].secret:
        return _shown(value)
    return f"a secret of {len(str(value))} characters, which is not shown" if value else "empty"


def _bare(key: object) -> str:
    """A key for a message: unquoted where it is an ordinary word."""
    text = str(key)
    return text if re.fullmatch(r"[\w.-]{1,60}", text) else _shown(text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@cache
def _options() -> dict[str, Option]:
    return {item.name: item.metadata["option"] for item in fields(Settings) if "option" in item.metadata}


@cache
def _defaults() -> dict[str, Any]:
    return {item.name: item.default for item in fields(Settings) if "option" in item.metadata}


def _default(name: str) -> Scalar | None:
    default: Scalar | None = _defaults()[name]
    return default


def _kind(name: str) -> type:
    """The type of a setting's value, apart from None where that is its default."""
    return _options()[name].kind or type(_default(name))


def _value_text(default: Scalar | None) -> str:
    """A setting's value as help and tables show it."""
    if isinstance(default, Path) and default.is_relative_to(CONFIGS):
        return f"configs/{default.relative_to(CONFIGS)}"
    if isinstance(default, Path) and default.is_relative_to(PACKAGE):
        return f"{PREFIX}{default.relative_to(PACKAGE)}"
    if isinstance(default, tuple):
        return ", ".join(default) or "none"
    return "none" if default is None else str(default)


_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT", tuple: "TEXT", type(Path()): "PATH", Path: "PATH"}
