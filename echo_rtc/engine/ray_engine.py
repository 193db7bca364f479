"""The Ray engine: the workers are actors of a Ray cluster, on one machine or on many.

Ray decides on which node an actor runs, restarts it when it or its node dies, and carries clips to it and frames
back. What remains is the fleet's: which clip goes to which worker, and what happens to the clip that is lost. Needs the
extra ``ray``; loads no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import pickle
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import ray
from ray._private import ray_constants
from ray.exceptions import RayActorError, RayError

from echo_rtc.clips import ClipFormat, YuvFrames
from echo_rtc.engine.fleet import FleetEngine, FleetOptions
from echo_rtc.engine.ray_actor import (
    CONCURRENCY_GROUPS,
    AvatarBundle,
    Failure,
    OtherIncarnation,
    RayClipWorker,
    Whereabouts,
)
from echo_rtc.engine.ray_environment import RayOptions, check_token, check_version
from echo_rtc.engine.slots import WorkerGoneError
from echo_rtc.engine.speed import Speed
from echo_rtc.engine.worker import WorkerReport, WorkerSpec
from echo_rtc.errors import InputError, RenderError, SettingsError, first_line
from echo_rtc.rendering import Avatar, AvatarFiles, Progress, RenderRequest, RenderResult, TakeFrames

logger = logging.getLogger(__name__)

PLACE_S = 60.0
"""How long Ray may take to find a node for an actor (s)."""

AGAIN_S = 0.1
"""How often an actor that is being restarted is asked whether it is there (s)."""

KNOCK_S = 5.0
"""How long the port of a cluster's head may take to open (s)."""

CONNECT_S = 60.0
"""How long a cluster may take to answer (s)."""

DISCONNECT_S = 5.0
"""How long leaving a cluster may take, or ending the one that was started here (s)."""

HEAD_RETURN_S = 5.0
"""How long a cluster's head may be gone before the engine has failed (s). Ray itself ends the process after 60 s."""

MakeSpec = Callable[[str, str, float | None], WorkerSpec]
"""What a worker is to be, from its name, its device as torch has it, and how many cores it may use (None: all)."""


class RayEngine(FleetEngine):
    """A fleet of Ray actors. One engine of this kind at a time in a process: a process has one connection to Ray."""

    def __init__(
        self, clip_format: ClipFormat, make_spec: MakeSpec, ray_options: RayOptions, options: FleetOptions | None = None
    ) -> None:
        super().__init__(clip_format, self._connect, self._open_actor, options)
        self._make_spec = make_spec
        self._ray_options = ray_options
        self._actors: dict[str, _Actor] = {}
        # Ray's own processes end with the thread that has started them, so that one must live as long as the engine.
        self._thread: ThreadPoolExecutor | None = None
        self._gpus_each = 0
        self._cpus_each = 1.0
        self._head: HeadWatch | None = None

    @property
    def ready(self) -> bool:
        """No new work is taken while the head is gone: without it no actor that dies is replaced."""
        return super().ready and (self._head is None or self._head.reachable)

    @property
    def trouble(self) -> str:
        if self._head is not None and not self._head.reachable:
            return f"The head of {_cluster(self._ray_options.address)} is gone."
        return super().trouble

    async def failed(self) -> RenderError:
        """Return once the cluster's head is gone for good. Ray ends a process that stays connected for much longer."""
        assert self._head is not None, "the engine was not started"
        await self._head.lost()
        return RenderError(
            f"the head of {_cluster(self._ray_options.address)} is gone; start the cluster again, then the server"
        )

    async def close(self) -> None:
        """Ends every actor and leaves the cluster, or ends the one that was started here, in bounded time."""
        if self._head is not None:
            await self._head.close()
        await super().close()
        for actor in self._actors.values():
            try:
                actor.end()
            except Exception:  # a boundary: whatever it is, the cluster has to be left all the same
                logger.exception("actor %s could not be ended", actor.name)
        self._actors.clear()
        if self._thread is not None:
            thread, self._thread = self._thread, None
            leaving = asyncio.get_running_loop().run_in_executor(thread, ray.shutdown)
            done, _ = await asyncio.wait({leaving}, timeout=DISCONNECT_S)
            if not done:
                logger.error("leaving the Ray cluster takes longer than %g s; going on without it", DISCONNECT_S)
            thread.shutdown(wait=bool(done))

    async def _connect(self) -> Sequence[WorkerSpec]:
        """Joins or starts the cluster, and says which workers it is to have. Raises SettingsError."""
        if ray.is_initialized():
            raise SettingsError("this process is connected to a Ray cluster already; disconnect it with ray.shutdown()")
        self._thread = ThreadPoolExecutor(1, "echo-ray")
        joining = asyncio.get_running_loop().run_in_executor(self._thread, _join, self._ray_options.address)
        done, _ = await asyncio.wait({joining}, timeout=CONNECT_S)
        if not done:
            joining.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise SettingsError(
                f"{_cluster(self._ray_options.address)} did not answer within {CONNECT_S:g} s; start it with "
                "ray start --head, or correct ray_address"
            )
        self._head = HeadWatch(await asyncio.get_running_loop().run_in_executor(self._thread, _head_address))
        return self._specs_for(*joining.result())

    def _specs_for(self, gpus: int, cpus: float, nodes: int) -> list[WorkerSpec]:
        """One worker per GPU, or per node. Raises SettingsError if the cluster has not what is asked for."""
        wanted = self._ray_options
        if wanted.devices == "cuda" and gpus == 0:
            raise SettingsError("devices is cuda, but the Ray cluster has no GPU; choose --devices cpu, or add a node")
        on_gpu = gpus > 0 and wanted.devices != "cpu"
        count = wanted.workers or (gpus if on_gpu else nodes)
        most = gpus if on_gpu else max(1, math.floor(cpus))
        if count > most:
            what = "GPUs" if on_gpu else "CPUs"
            raise SettingsError(f"ray_workers is {count}, but the Ray cluster has {most} {what}; choose that or fewer")
        self._gpus_each = int(on_gpu)
        # As much as every node can surely give to its share of the workers.
        self._cpus_each = 1.0 if on_gpu else max(1.0, math.floor(cpus / nodes / math.ceil(count / nodes)))
        device, cores = ("cuda:0", None) if on_gpu else ("cpu", self._cpus_each)
        return [self._make_spec(f"ray-{number}", device, cores) for number in range(count)]

    def _open_actor(self, spec: WorkerSpec, progress: Progress, on_gone: Callable[[], None]) -> RayWorker:
        actor = self._actors.get(spec.name)
        if actor is None:
            actor = self._actors[spec.name] = _Actor(spec, self._format, self._gpus_each, self._cpus_each)
        return RayWorker(actor, progress, on_gone)


def _cluster(address: str) -> str:
    return f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"


def _head_address() -> tuple[str, int]:
    """Host and port of the head of the cluster that this process is connected to."""
    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    return host.strip("[]"), int(port)


def _check_confined() -> None:
    """Raise SettingsError if the cluster that was started here can be reached from other machines."""
    open_to = [
        node["NodeManagerAddress"] for node in ray.nodes() if not ip_address(node["NodeManagerAddress"]).is_loopback
    ]
    if open_to:
        ray.shutdown()
        raise SettingsError(
            f"engine is ray, but Ray listens on {', '.join(open_to)} instead of loopback alone; start a cluster with "
            "ray start --head, and name it with --ray-address"
        )


def _join(address: str) -> tuple[int, float, int]:
    """Joins a cluster, and says how many GPUs, CPUs and nodes it has. Blocks. Raises SettingsError if it cannot be
    joined, or is open to others."""
    check_version(ray.__version__)
    if address:
        check_token(address)
    elif ray_constants.ENABLE_RAY_CLUSTER:
        raise SettingsError(
            "engine is ray, but Ray was imported before the engine was made and would listen on all interfaces; make "
            "the engine first, or name a running cluster with ray_address"
        )
    # It warns at every start of what is as it should be here: signals are handled by the server.
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if address and address != "auto":
            host, _, port = address.rpartition(":")
            # Ray itself would ask for a minute and more.
            socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()
        ray.init(
            address=address or "local",
            include_dashboard=False if not address else None,
            log_to_driver=False,
            configure_logging=False,
            namespace="echo_rtc",
        )
        if not address:
            _check_confined()
        resources = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return int(resources.get("GPU", 0)), float(resources.get("CPU", 1)), nodes
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        raise SettingsError(
            f"{_cluster(address)} cannot be joined ({first_line(error)}); start it with ray start --head, or correct "
            "ray_address"
        ) from error


class HeadWatch:
    """Holds a connection to the head of a cluster, whose end says at once that the head is gone.

    A head that is back within ``HEAD_RETURN_S`` (one that keeps its state outside, in Redis) costs nothing. The head
    may close a connection without a request on it: that is followed by another one.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._lost = asyncio.Event()
        self.reachable = True
        self._task = asyncio.create_task(self._watch(), name="watch the head of the Ray cluster")

    async def lost(self) -> None:
        """Return when the head is gone for good."""
        await self._lost.wait()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        seen_s = clock()
        while clock() - seen_s < HEAD_RETURN_S:
            try:
                async with asyncio.timeout(KNOCK_S):
                    reader, writer = await asyncio.open_connection(*self._address)
            except OSError:  # TimeoutError is one
                if self.reachable:
                    self.reachable = False
                    logger.error("the head of the Ray cluster at %s:%d is gone; no calls are taken", *self._address)
                await asyncio.sleep(AGAIN_S)
                continue
            if not self.reachable:
                self.reachable = True
                logger.warning("the head of the Ray cluster is back")
            try:
                _keep_alive(writer.get_extra_info("socket"))
                while await reader.read(4096):
                    pass
            except OSError:
                logger.debug("the connection to the head of the Ray cluster broke")
            finally:
                writer.transport.abort()
            seen_s = clock()
            await asyncio.sleep(AGAIN_S)
        self._lost.set()


def _keep_alive(connection: socket.socket) -> None:
    """Have a peer noticed that vanishes without a word, within ``KNOCK_S``."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


class _Actor:
    """One actor through all its incarnations: Ray restarts it whenever it dies, until :meth:`end`."""

    def __init__(self, spec: WorkerSpec, clip_format: ClipFormat, gpus: int, cpus: float) -> None:
        remote = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(RayClipWorker)
        options = {"num_gpus": gpus, "num_cpus": cpus, "max_restarts": -1, "max_task_retries": 0}
        level = logging.getLogger().getEffectiveLevel()
        self.name = spec.name
        self.needs = "a free GPU" if gpus else f"{cpus:g} free CPUs"
        self.handle: Any = remote.options(**options).remote(spec, clip_format, level)
        self.past_incarnations: set[str] = set()

    def restart(self) -> None:
        """Kills it, for Ray to restart it."""
        ray.kill(self.handle, no_restart=False)

    def end(self) -> None:
        """Kills it for good."""
        ray.kill(self.handle, no_restart=True)


class RayWorker:
    """One incarnation of an actor, as a Worker of the fleet."""

    def __init__(self, actor: _Actor, progress: Progress, on_gone: Callable[[], None]) -> None:
        self._actor = actor
        self._progress = progress
        self._on_gone = on_gone
        self._where: Whereabouts | None = None
        self._handed: set[int] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._follower: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._actor.name

    @property
    def pid(self) -> int | None:
        """The process's id if it is one of this machine."""
        here = self._where is not None and self._where.node == ray.util.get_node_ip_address()
        return self._where.pid if here and self._where is not None else None

    @property
    def _incarnation(self) -> str:
        """Which of the actor's incarnations this is; none before it was found."""
        return self._where.incarnation if self._where is not None else ""

    async def start(self, timeout_s: float) -> WorkerReport:
        """Waits until Ray has found a place, and loads. Raises SettingsError if there is none, and what the loader
        raises."""
        try:
            async with asyncio.timeout(PLACE_S):
                self._where = await self._next_incarnation()
        except TimeoutError:
            raise SettingsError(
                f"no node of the Ray cluster has {self._actor.needs} for worker {self.name}; the command ray status "
                "shows what holds them"
            ) from None
        logger.info("worker %s is process %d on node %s", self.name, self._where.pid, self._where.node)
        self._follower = asyncio.create_task(self._follow(), name=f"follow worker {self.name}")
        report = await self._call(timeout_s, "loading", self._actor.handle.load)
        assert isinstance(report, WorkerReport)
        return report

    async def measure(self, frames: int, timeout_s: float) -> Speed:
        """See Worker, as all below."""
        measured = await self._call(timeout_s, "warming up", self._actor.handle.measure, frames)
        assert isinstance(measured, Speed)
        return measured

    def prepare(self, number: int, request: RenderRequest) -> None:
        with contextlib.suppress(RenderError):  # told when the clip is rendered
            self._hand_ended(number, request)

    def discard(self, number: int) -> None:
        if number in self._handed:
            self._handed.discard(number)
            with contextlib.suppress(RayError):  # it is dead, and so is the clip
                self._actor.handle.discard.remote(self._incarnation, number)

    async def render(
        self, number: int, request: RenderRequest, timeout_s: float, on_frames: TakeFrames
    ) -> tuple[RenderResult, float]:
        clock = asyncio.get_running_loop().time
        begun = clock()
        if number not in self._handed:
            self._hand_ended(number, request)
        self._handed.discard(number)
        method = self._actor.handle.render
        result, render_s = await self._call(timeout_s, "rendering a clip", method, number, request.init_latent)
        assert isinstance(result, RenderResult)
        result = replace(result, frames=_copied(result.frames), final_latent=_copied(result.final_latent))
        result.stages_ms["handover"] = (clock() - begun - render_s) * 1000
        return result, render_s

    async def idle_piece(self, avatar: str, first: bool, timeout_s: float) -> Avatar | None:
        piece = await self._call(timeout_s, "rendering an idle loop", self._actor.handle.idle_piece, avatar, first)
        assert piece is None or isinstance(piece, Avatar)
        return piece and Avatar(piece.name, _copied(piece.idle), _copied(piece.idle_latents), piece.leaps)

    async def prepare_avatar(self, files: AvatarFiles, first: bool, timeout_s: float) -> bool:
        bundle = None
        if first:
            try:
                bundle = await asyncio.to_thread(AvatarBundle.read, files)
            except OSError as error:
                raise InputError(f"the files of avatar {files.name} cannot be read: {error}") from error
        method = self._actor.handle.prepare_avatar
        return bool(await self._call(timeout_s, "preparing an avatar", method, files.name, bundle))

    async def forget_avatar(self, name: str, timeout_s: float) -> None:
        await self._call(timeout_s, "forgetting an avatar", self._actor.handle.forget_avatar, name)

    async def ping(self, timeout_s: float) -> None:
        await self._call(timeout_s, "idle and silent", self._actor.handle.ping)

    def kill(self) -> None:
        if not self._ended.done():
            with contextlib.suppress(RayError):
                self._actor.restart()
            self._end()

    async def close(self) -> None:
        """Stops following this incarnation; whether there is another one is the engine's to say."""
        self._end()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait({self._follower})

    async def _next_incarnation(self) -> Whereabouts:
        """Waits for an incarnation of the actor that no worker of the fleet has had yet."""
        while True:
            try:
                where = await asyncio.wrap_future(self._actor.handle.whereabouts.remote().future())
            except RayActorError:
                await asyncio.sleep(AGAIN_S)
                continue
            assert isinstance(where, Whereabouts)
            if where.incarnation not in self._actor.past_incarnations:
                self._actor.past_incarnations.add(where.incarnation)
                return where
            # It was out of reach only, and the state of the model that it has loaded is unknown.
            self._actor.restart()
            await asyncio.sleep(AGAIN_S)

    def _hand_ended(self, number: int, request: RenderRequest) -> None:
        """Sends a request to be prepared. Raises RenderError."""
        try:
            # The latent may still change, and goes with the order to render.
            self._actor.handle.prepare.remote(self._incarnation, number, replace(request, init_latent=None))
        except (RayError, pickle.PicklingError) as error:
            raise RenderError(f"the clip cannot be handed to worker {self.name}: {error}") from error
        self._handed.add(number)

    async def _call(self, timeout_s: float, doing: str, method: Any, *arguments: Any) -> Any:
        """Calls a method of the actor. Raises its failures, WorkerGoneError if it dies or exceeds ``timeout_s``."""
        if self._ended.done():
            raise WorkerGoneError(f"worker {self.name} is gone")
        answer: asyncio.Future[Any] = asyncio.wrap_future(method.remote(self._incarnation, *arguments).future())
        answer.add_done_callback(lambda late: late.cancelled() or late.exception())
        await asyncio.wait({answer, self._ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            if self._ended.done():
                raise WorkerGoneError(f"worker {self.name} died while {doing}")
            self.kill()
            raise WorkerGoneError(f"worker {self.name} was {doing} for more than {timeout_s:g} s and was ended")
        try:
            outcome = answer.result()
        except RayActorError as error:
            self._end()
            raise WorkerGoneError(f"worker {self.name} died while {doing}") from error
        except RayError as error:
            raise RenderError(f"worker {self.name} failed while {doing}: {first_line(error)}") from error
        if isinstance(outcome, OtherIncarnation):
            self._end()
            raise WorkerGoneError(f"worker {self.name} died while {doing}")
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    async def _follow(self) -> None:
        """Passes on what the actor says, until its death."""
        try:
            async for reference in self._actor.handle.messages.remote(self._incarnation):
                message = await reference
                if isinstance(message, str):
                    self._progress(f"worker {self.name}: {message}")
                elif (target := logging.getLogger(message.name)).isEnabledFor(message.levelno):
                    target.handle(message)
        except RayError as error:
            logger.debug("worker %s is gone: %s", self.name, error)
            self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
            self._on_gone()


def _copied(value: Any) -> Any:
    """A copy of what lies in Ray's shared memory, which is lent for as long as the connection lasts."""
    if isinstance(value, YuvFrames):
        return YuvFrames(value.y.copy(), value.u.copy(), value.v.copy())
    return None if value is None else value.copy()
