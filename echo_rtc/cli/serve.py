"""``echo-rtc serve``, which is also ``python server.py``: serves talking avatars on http://localhost:8080.

The composition root: flags, settings, logging, engine, streams, HTTP, and their end in the opposite order. It knows
every room by its front door and nothing of what happens inside.

Exit codes: 0 after SIGINT, SIGTERM or SIGHUP, 2 for a setting that cannot be, 1 for anything else that keeps it from
running; both with one sentence on the console.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, TypeVar

import av
from aiohttp import web

from echo_rtc import __version__
from echo_rtc.avatars.library import MAX_PICTURE_BYTES, MAX_POSES_BYTES, AvatarLibrary, Shelf
from echo_rtc.avatars.lock import locked
from echo_rtc.cli.parts import (
    LOOPBACK,
    access_of,
    log_options,
    manager_options,
    network_of,
    output_options,
    recording_options,
    voice_of,
)
from echo_rtc.cli.progress import LoadingBar
from echo_rtc.cli.signals import signals_handled
from echo_rtc.engine.factory import MakeSpecs, create_engine
from echo_rtc.engine.ladder import settled
from echo_rtc.errors import EchoRtcError, SettingsError
from echo_rtc.logs import LogFile, logging_to
from echo_rtc.model.description import ModelDescription
from echo_rtc.model.quality import Able
from echo_rtc.operations.performance import PerformanceLog
from echo_rtc.outputs.outputs import Outputs
from echo_rtc.participant.addresses import AllowedHosts
from echo_rtc.recording.recordings import Recordings
from echo_rtc.rendering import Engine, notices_of
from echo_rtc.resources import STATIC
from echo_rtc.rtc.manager import StreamManager
from echo_rtc.rtc.memory import Sweeper, frozen_heap
from echo_rtc.rtc.network import Network
from echo_rtc.rtc.seams.selfcheck import check_seams
from echo_rtc.settings import Settings, load_settings
from echo_rtc.web.app import Access, AppOptions, Outlets, create_app
from echo_rtc.web.avatars import Gallery
from echo_rtc.web.connections import ConnectionLimits, Places, bind, listening, raise_descriptor_limit
from echo_rtc.web.health import Health, Lifecycle, Phase
from echo_rtc.web.metrics import Watch
from echo_rtc.web.text_speech import TextSpeeches
from echo_rtc.web.tls import Certificate, TlsOptions, keep_renewed, own_names

if TYPE_CHECKING:
    from echo_rtc.participant.rooms import Rooms

EVERYWHERE = ("0.0.0.0", "::")
"""Hosts that listen on every address of this machine."""
CLOSE_STREAMS_S = 2.5
CLOSE_OUTLETS_S = 1.0
"""Outputs tell the other side; a recording that is not finished by then is finished by the next start."""
CLOSE_ENGINE_S = 5.0
BACK_AFTER_S = 2.0
"""When clients of a server that is restarted are told to come back."""
CANCEL_START_S = 3.5
"""Together with the second that requests may still take, these keep the whole end below 10 s, or below 12.5 s where
LiveKit rooms are left as well; while the engine starts there are no streams to close, but its start to cancel."""

logger = logging.getLogger("echo_rtc.server")

T = TypeVar("T")


class ListenError(EchoRtcError):
    """The address or the port cannot be listened on."""


def main(
    argv: Sequence[str] | None = None,
    prog: str = "echo-rtc serve",
    specs: MakeSpecs | None = None,
) -> int:
    """Runs the server until it is told to stop; returns the exit code. ``prog``: the name in messages and help;
    ``specs``: other workers than those of the settings, which need no files of a model."""
    try:
        settings = load_settings(sys.argv[1:] if argv is None else argv, os.environ, prog)
    except SettingsError as error:
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    with logging_to(log_options(settings)) as log_file:
        if log_file.path is not None:
            logger.info("logging to %s", log_file.path)
        try:
            asyncio.run(serve(settings, log_file, specs))
        except SettingsError as error:
            logger.error("%s", error)
            return 2
        except EchoRtcError as error:
            logger.error("%s", error)
            return 1
        except Exception:  # the outermost boundary: the log keeps what happened
            logger.critical("the server has to stop", exc_info=True)
            return 1
    return 0


async def serve(settings: Settings, log_file: LogFile, specs: MakeSpecs | None = None) -> None:
    """A server's life, from binding its port to its end by a signal. ``log_file`` is what metrics tell of.

    Raises SettingsError or InputError before anything is loaded, ListenError if the port cannot be had, what the engine
    raises if it does not start, and RenderError if it cannot go on later. Whatever was begun is ended.
    """
    lifecycle = Lifecycle()
    failure: EchoRtcError | None = None
    async with AsyncExitStack() as life:
        stop = life.enter_context(_stop_signal())
        await check_seams()
        access, network = access_of(settings), network_of(settings)
        limits = ConnectionLimits.of(settings.max_connections_per_address, raise_descriptor_limit())
        places = Places(limits, access.clients)
        tls = TlsOptions.of(settings.tls_cert, settings.tls_key, settings.tls_self_signed).certificate()
        able: Callable[[bool], Able] = Able
        if settings.engine != "testcard" and specs is None:
            # A misspelt key or a missing folder need not wait for the minute that a worker takes to find it.
            description = ModelDescription.from_mapping(settings.model, settings.model_base)
            able = partial(Able.of, description)
        found = await _unless_stopped(settled(settings, logger.info, able, specs), stop)
        if found is None:
            return
        settings, quality = found
        lifecycle.quality = quality.facts if quality else {"rung": settings.quality} if settings.quality else None
        engine = create_engine(settings, specs)
        life.push_async_callback(_within, CLOSE_ENGINE_S, engine.close, "the engine")
        streams = StreamManager(engine, manager_options(settings, network))
        recordings, outputs = await _recordings(settings, streams, life), _outputs(settings, streams, network)
        life.push_async_callback(
            _within, CLOSE_OUTLETS_S, lambda: _close_outlets(recordings, outputs), "recordings and outputs"
        )
        life.push_async_callback(_within, CLOSE_STREAMS_S, lambda: streams.close(stop.back_after_s), "the streams")
        texts = TextSpeeches(voice_of(settings))
        life.push_async_callback(texts.close)
        health = Health(
            engine,
            lifecycle,
            settings.engine,
            network.ice_servers,
            lambda: streams.unreserved,
            says_text=texts.configured,
            mark=settings.mark,
        )
        library = AvatarLibrary(engine, Shelf.of(settings), lambda: {each.avatar for each in streams.streams.values()})
        if settings.allow_avatar_upload:
            life.enter_context(locked(settings.avatar_dir))
        gallery = Gallery(library, MAX_PICTURE_BYTES, MAX_POSES_BYTES, settings.allow_avatar_upload)
        watch = Watch(__version__, lambda: engine.workers, log_file, avatars=library, connections=places)
        watch = replace(watch, recordings=recordings or watch.recordings, outputs=outputs or watch.outputs)
        rooms = _rooms(settings, streams, engine)
        if rooms is not None:
            life.push_async_callback(_within, CLOSE_STREAMS_S, rooms.close, "the LiveKit rooms")
        options = AppOptions(access, watch, texts, Outlets(recordings, outputs, rooms))
        app = create_app(streams, health, STATIC, gallery, options)
        # The port comes before the engine: one that is taken is told at once, and the page can say "starting".
        url = await life.enter_async_context(_listening(app, places, settings, tls))
        logger.info("listening on %s; the %s engine is starting", url, settings.engine)
        _log_access(settings, access)
        _say_how_it_is_reached(settings, url, tls)
        if tls is not None:
            await life.enter_async_context(_running(keep_renewed(tls), "renew the certificate"))
        if await _started(engine, library, lifecycle, stop):
            lifecycle.phase = Phase.READY
            logger.info("echo_rtc is ready: %s", url)
            lifecycle.notices = [*_of_workers(engine, settings), *([str(quality)] if quality else [])]
            _say_what_to_open(url, settings)
            life.enter_context(frozen_heap())
            async with _running(PerformanceLog(streams, watch.workers, watch.usage).run(), "performance log"):
                failure = await _stopped_or_failed(stop, engine)
        lifecycle.phase = Phase.STOPPING
        logger.info("stopping: streams end, workers are closed")
    logger.info("stopped")
    if failure is not None:
        raise failure


class Stop(asyncio.Event):
    """Set once the server is to end. ``back_after_s``: when clients may come back, None if it is not restarted."""

    back_after_s: float | None = None

    def restart(self) -> None:
        """Ends the server by a signal of a supervisor that restarts it: a service manager, a deployment."""
        self.back_after_s = BACK_AFTER_S
        self.set()


@contextmanager
def _stop_signal() -> Iterator[Stop]:
    """While inside, SIGINT, SIGTERM and SIGHUP set the event. A second one changes nothing: the end is bounded anyway.

    SIGHUP that is ignored, as under nohup, stays so.
    """
    stop = Stop()
    handlers: dict[int, Callable[[], None]] = {signal.SIGINT: stop.set, signal.SIGTERM: stop.restart}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = stop.restart
    with signals_handled(handlers):
        yield stop


async def _recordings(settings: Settings, streams: StreamManager, life: AsyncExitStack) -> Recordings | None:
    """The recordings, where there is a folder for them, which is this server's while ``life`` lasts; what a server that
    was killed has left in it is finished first. Raises SettingsError, InputError and
    StorageError."""
    options = recording_options(settings)
    if options is None:
        return None
    if "libx264" not in av.codecs_available:
        raise SettingsError("recording_dir is set, but this build of PyAV has no libx264 to record with; leave it out")
    recordings = Recordings(options, lambda stream_id: streams.streams.get(stream_id))
    life.enter_context(recordings.shelf.locked())
    await asyncio.to_thread(recordings.shelf.recover)
    streams.on_open = recordings.opened
    return recordings


def _outputs(settings: Settings, streams: StreamManager, network: Network) -> Outputs | None:
    """The outputs, where there are hosts for them. Raises SettingsError."""
    options = output_options(settings, network)
    return None if options is None else Outputs(options, lambda stream_id: streams.streams.get(stream_id))


async def _close_outlets(recordings: Recordings | None, outputs: Outputs | None) -> None:
    """Waits for what is left of streams that have ended."""
    await asyncio.gather(*(outlet.close() for outlet in (recordings, outputs) if outlet is not None))


def _rooms(settings: Settings, streams: StreamManager, engine: Engine) -> Rooms | None:
    """Where avatars join LiveKit rooms, by the settings; None where no server may be joined. Raises SettingsError."""
    if not settings.livekit_host:
        return None
    hosts = AllowedHosts.of(settings.livekit_host)
    try:
        # The library takes half a second to load, which no call may have to wait for.
        from echo_rtc.participant.rooms import Rooms
    except ModuleNotFoundError as error:
        raise SettingsError(
            f'livekit_host is set and {error.name} is not installed; run pip install "echo-rtc[livekit]"'
        ) from None
    return Rooms(streams, lambda: engine.format, hosts)


def _log_access(settings: Settings, access: Access) -> None:
    host, authorisation = settings.host, access.authorisation
    if authorisation.required:
        logger.info("calls need a token")
    elif host in LOOPBACK:
        logger.info("calls need no token; only programs of this machine reach %s (--host, --auth-token)", host)
    else:
        logger.warning(
            "calls need no token: every client that reaches %s can open them; --auth-token requires one", host
        )
    if authorisation.admin is not None and settings.admin_token is None:
        _print_secret("admin_token", authorisation.admin, settings.log_format == "json")


def _print_secret(name: str, value: str, as_json: bool) -> None:
    """Writes a secret of this start to the console, and never to the log files."""
    meaning = "administrator's token of this start (/admin, /metrics; --admin-token sets a lasting one)"
    line = json.dumps({"message": meaning, name: value}) if as_json else f"{meaning}: {value}"
    with suppress(OSError, ValueError):  # there may be no console
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _say_how_it_is_reached(settings: Settings, url: str, tls: Certificate | None) -> None:
    if tls is not None:
        logger.info("the certificate's SHA-256 fingerprint is %s", tls.fingerprint)
    if settings.host in EVERYWHERE:
        port = url.rpartition(":")[2]
        others = [name for name in own_names() if isinstance(name, IPv4Address) and not name.is_loopback]
        for address in others:
            logger.info("from other machines: %s://%s:%s", url.partition(":")[0], address, port)
    if tls is None and settings.host not in LOOPBACK:
        logger.info(
            "browsers on other machines give out no microphone to pages without HTTPS; use --tls-cert and --tls-key, "
            "--tls-self-signed, or a proxy with HTTPS in front"
        )


def _of_workers(engine: Engine, settings: Settings) -> Iterator[str]:
    """Says how workers have chosen to compute, and of each that was measured slower than real time that it is; in the
    log, too."""
    for chosen in notices_of(engine.workers):
        logger.info("%s", chosen)
        yield chosen
    fewer = f"clips get fewer denoising steps, down to {settings.min_steps}, or " if engine.capacity_steps > 1 else ""
    for worker in engine.workers:
        speed = worker.frames_per_second
        if speed is None or speed >= engine.format.fps:
            continue
        line = (
            f"Worker {worker.name} is slower than real time, {speed:.1f} of {engine.format.fps} frames/s: {fewer}"
            "the picture stands still now and then. --quality auto looks for settings that hold."
        )
        logger.warning("%s", line)
        yield line


def _say_what_to_open(url: str, settings: Settings) -> None:
    """Writes the one line that a newcomer needs to the console, apart from the log."""
    if settings.log_format == "json":
        return
    line = f"Open {url}"
    with suppress(OSError, ValueError):  # there may be no console
        sys.stderr.write(f"\n  \033[1m{line}\033[0m\n\n" if sys.stderr.isatty() else f"{line}\n")
        sys.stderr.flush()


async def _unless_stopped(work: Coroutine[None, None, T], stop: asyncio.Event) -> T | None:
    """What ``work`` returns; None if the server was told to stop meanwhile."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait(), name="stop signal")
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.wait({task, stopped}, timeout=CANCEL_START_S)


async def _started(engine: Engine, library: AvatarLibrary, lifecycle: Lifecycle, stop: asyncio.Event) -> bool:
    """Starts the engine and prepares all avatars; False if the server was told to stop meanwhile. Raises what they
    raise."""

    bar = LoadingBar()

    def progress(line: str) -> None:
        lifecycle.progress = line
        logger.info("%s", line)
        bar.advance(line)

    async def begin() -> bool:
        with bar:
            await engine.start(progress)
            await library.prepare(progress)
        return True

    return await _unless_stopped(begin(), stop) is not None


async def _stopped_or_failed(stop: asyncio.Event, engine: Engine) -> EchoRtcError | None:
    """Wait until the server is told to stop (None), or its engine cannot go on: the reason."""
    stopped = asyncio.create_task(stop.wait(), name="stop signal")
    failed = asyncio.create_task(engine.failed(), name="engine failure")
    try:
        await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        return None if stopped.done() else failed.result()
    finally:
        for task in (stopped, failed):
            task.cancel()
        await asyncio.wait({stopped, failed})


@asynccontextmanager
async def _listening(
    app: web.Application, places: Places, settings: Settings, tls: Certificate | None
) -> AsyncIterator[str]:
    """The application served while inside; yields its URL. Raises ListenError."""
    host, port = settings.host, settings.port
    try:
        sockets = await bind(host, port)
    except OSError as error:
        raise ListenError(_why_not(error, host, port)) from error
    chosen = sockets[0].getsockname()[1]
    sweeper = Sweeper()
    try:
        async with listening(app, places, sockets, tls.context if tls else None, sweeper.sweep_soon):
            yield _url("https" if tls else "http", host, chosen)
    finally:
        sweeper.close()


def _why_not(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is not an address of this machine; try --host 127.0.0.1 or --host 0.0.0.0"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; stop the program that has it, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one from 1024 up with --port"
    return f"{host} port {port} cannot be listened on ({error.strerror}); choose others with --host and --port"


def _url(scheme: str, host: str, port: int) -> str:
    """What to type into a browser of this machine. Microphones are given out on localhost, not on bare addresses."""
    if host in (*LOOPBACK, *EVERYWHERE):
        host = "localhost"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def _running(work: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    """The work runs while inside. If it fails, that is logged, and all else goes on."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_say_if_it_failed)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def _say_if_it_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the %s failed", task.get_name(), exc_info=error)


async def _within(limit_s: float, close: Callable[[], Awaitable[None]], what: str) -> None:
    """Closes a part, but waits no longer than ``limit_s`` for it."""
    task = asyncio.ensure_future(close())
    done, _ = await asyncio.wait({task}, timeout=limit_s)
    if not done:
        logger.error("closing %s takes longer than %g s; going on without it", what, limit_s)
        task.cancel()
    elif (error := task.exception()) is not None:
        logger.error("closing %s failed", what, exc_info=error)
