"""The server as a whole: its phases with a scripted engine, and the real process with the test card."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack

from echo_rtc.cli import parts, serve
from echo_rtc.clips import ClipFormat
from echo_rtc.errors import InputError, RenderError, SettingsError
from echo_rtc.logs import LogFile
from echo_rtc.rendering import (
    Avatar,
    AvatarFiles,
    ClipPlan,
    Continuity,
    Progress,
    RenderRequest,
    RenderResult,
    TakeFrames,
    WorkerStatus,
)
from echo_rtc.settings import Settings

ROOT = Path(__file__).parents[1]
START_S = 60.0
STOP_S = 10.0


@dataclass
class ScriptedEngine:
    """Starts when told to, or fails to; counts how often it is closed."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    hangs_at_close: bool = False
    breaks: asyncio.Event = field(default_factory=asyncio.Event)
    closed: int = 0
    format: ClipFormat = field(default_factory=ClipFormat)
    avatars: dict[str, Avatar] = field(default_factory=dict)
    capacity: int = 1
    capacity_steps: int = 1
    expected_render_s: float = 0.0
    ready: bool = True
    trouble: str = ""
    continuity: Continuity = field(default_factory=lambda: Continuity(chained=True))
    workers: list[WorkerStatus] = field(default_factory=list)

    def plan(self, stream: str) -> ClipPlan:
        return ClipPlan(self.continuity, 1)

    async def start(self, progress: Progress) -> None:
        progress("half the weights are loaded")
        self.begun.set()
        await self.go.wait()
        if self.failure is not None:
            raise self.failure

    async def render(self, request: RenderRequest, on_frames: TakeFrames | None = None) -> RenderResult:
        raise RenderError("never")

    async def remove_avatar(self, name: str) -> None:
        raise AssertionError("not asked for here")

    async def prepare_avatar(self, files: AvatarFiles) -> Avatar:
        raise RenderError("never")

    async def failed(self) -> RenderError:
        await self.breaks.wait()
        return RenderError("the head of the cluster is gone")

    async def close(self) -> None:
        self.closed += 1
        if self.hangs_at_close:
            await asyncio.Event().wait()


@dataclass
class Life:
    """A server that runs in this process: its engine, its task, its URL."""

    engine: ScriptedEngine
    task: asyncio.Task[None]
    url: str


Begin = Callable[[ScriptedEngine], Awaitable[Life]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
async def begin(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Begin]:
    """Begins a server with the given engine; it has reached the engine's start on return."""
    tasks: list[asyncio.Task[None]] = []

    async def run(engine: ScriptedEngine) -> Life:
        monkeypatch.setattr(serve, "create_engine", lambda settings, specs: engine)
        settings = Settings(engine="testcard", port=free_port())
        task = asyncio.create_task(serve.serve(settings, LogFile(None, None)))
        tasks.append(task)
        begun = asyncio.create_task(engine.begun.wait())
        await asyncio.wait({begun, task}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        assert begun.done(), task
        return Life(engine, task, f"http://127.0.0.1:{settings.port}")

    yield run
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, InputError, RenderError):
            await task


async def fetch(url: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json(content_type=None)


async def test_the_port_answers_while_the_engine_starts(begin: Begin) -> None:
    life = await begin(ScriptedEngine())
    assert (await fetch(f"{life.url}/healthz"))[0] == 200
    status, problem = await fetch(f"{life.url}/readyz")
    assert status == 503
    assert "half the weights are loaded" in problem["detail"]
    assert (await fetch(f"{life.url}/config"))[1]["status"] == "starting"
    life.engine.go.set()
    async with asyncio.timeout(START_S):
        while (await fetch(f"{life.url}/readyz"))[0] != 200:
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(life.task, STOP_S)
    assert life.engine.closed == 1


async def test_it_can_be_stopped_while_the_engine_starts(begin: Begin) -> None:
    life = await begin(ScriptedEngine())
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(life.task, STOP_S)
    assert life.engine.closed == 1
    with pytest.raises(aiohttp.ClientConnectorError):
        await fetch(f"{life.url}/healthz")


async def test_a_stop_during_the_start_is_done_in_the_promised_time(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve.CANCEL_START_S + serve.CLOSE_ENGINE_S + 1.0 <= STOP_S, "with 1 s for connections"
    monkeypatch.setattr(serve, "CANCEL_START_S", 0.05)

    class Deaf(ScriptedEngine):
        async def start(self, progress: Progress) -> None:
            self.begun.set()
            while not self.go.is_set():
                with suppress(asyncio.CancelledError):
                    await self.go.wait()

    life = await begin(Deaf())
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(life.task, STOP_S)
    assert life.engine.closed == 1
    life.engine.go.set()
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "engine start"))


async def test_an_engine_that_cannot_go_on_ends_the_server(begin: Begin) -> None:
    life = await begin(ScriptedEngine())
    life.engine.go.set()
    life.engine.breaks.set()
    with pytest.raises(RenderError, match=r"^the head of the cluster is gone$"):
        await asyncio.wait_for(asyncio.shield(life.task), STOP_S)
    assert life.engine.closed == 1


async def test_an_engine_that_does_not_start_ends_the_server(begin: Begin) -> None:
    life = await begin(ScriptedEngine(failure=InputError("the weights are missing")))
    life.engine.go.set()
    with pytest.raises(InputError, match="the weights are missing"):
        await asyncio.wait_for(life.task, STOP_S)
    assert life.engine.closed == 1


async def test_an_engine_that_does_not_close_does_not_keep_the_server(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "CLOSE_ENGINE_S", 0.05)
    life = await begin(ScriptedEngine(hangs_at_close=True))
    life.engine.go.set()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(life.task, STOP_S)
    assert "closing the engine takes longer" in caplog.text


@dataclass
class Process:
    """A running ``python server.py`` and what it has said so far."""

    child: asyncio.subprocess.Process
    lines: list[str]

    async def line(self, pattern: str) -> re.Match[str]:
        """The next line in which ``pattern`` is found."""
        assert self.child.stderr is not None
        async with asyncio.timeout(START_S):
            while raw := await self.child.stderr.readline():
                self.lines.append(raw.decode())
                if match := re.search(pattern, self.lines[-1]):
                    return match
        raise AssertionError(f"{pattern!r} never came: {''.join(self.lines)}")

    async def end(self) -> int:
        """Waits for its end; the exit code."""
        _, rest = await asyncio.wait_for(self.child.communicate(), STOP_S)
        self.lines += rest.decode().splitlines(keepends=True)
        assert self.child.returncode is not None
        return self.child.returncode


@contextmanager
def hangup_not_ignored() -> Iterator[None]:
    """Children that are started while inside react to SIGHUP, though the tests may run under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGHUP, lambda *_: None)  # unlike SIG_IGN, a handler does not outlast exec
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


@asynccontextmanager
async def process(*argv: str, **environ: str) -> AsyncIterator[Process]:
    """Starts the server with these flags; it and its children are gone afterwards."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ECHO_RTC_")}
    with hangup_not_ignored():
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "server.py"),
            *argv,
            env={**clean, **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    try:
        yield Process(child, [])
    finally:
        if child.returncode is None:
            with suppress(psutil.NoSuchProcess):
                parent = psutil.Process(child.pid)
                for one in (*parent.children(recursive=True), parent):
                    one.kill()
            await child.wait()


def card(folder: Path) -> list[str]:
    return ["--config", str(ROOT / "configs" / "testcard.yaml"), "--port", "0", "--log-dir", str(folder / "logs")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=["TERM", "HUP", "INT"])
async def test_a_call_is_told_when_the_server_ends(tmp_path: Path, number: signal.Signals) -> None:
    async with process(*card(tmp_path)) as running:
        url = (await running.line(r"echo_rtc is ready: (http://localhost:\d+)$"))[1]
        status, config = await fetch(f"{url}/config")
        assert (status, config["engine"], config["status"]) == (200, "testcard", "ready")
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        opened = asyncio.Event()
        channel = peer.createDataChannel("events")

        def on_message(text: str) -> None:
            opened.set()
            event = json.loads(text)
            if event["type"] == "end" and not ended.done():
                ended.set_result(event)

        channel.on("message", on_message)
        try:
            peer.addTrack(AudioStreamTrack())
            peer.addTransceiver("video", direction="recvonly")
            await peer.setLocalDescription(await peer.createOffer())
            offer = {"sdp": peer.localDescription.sdp, "type": "offer"}
            async with aiohttp.ClientSession() as session, session.post(f"{url}/offer", json=offer) as response:
                assert response.status == 200, await response.text()
                answer = await response.json()
            await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
            await asyncio.wait_for(opened.wait(), START_S)
            assert (await fetch(f"{url}/streams/{answer['stream']}"))[0] == 200
            begun = time.monotonic()
            running.child.send_signal(number)
            event = await asyncio.wait_for(ended, STOP_S)
            assert event["reason"]
            # Who stops it by Ctrl-C does not say that it comes back.
            back = {"reconnect": True, "after_s": serve.BACK_AFTER_S}
            assert {key: event[key] for key in event if key not in ("type", "reason")} == (
                {} if number is signal.SIGINT else back
            )
            assert await running.end() == 0
            assert time.monotonic() - begun < STOP_S
        finally:
            await peer.close()
    said = "".join(running.lines)
    assert "Traceback" not in said
    assert "stopped" in said
    [log] = (tmp_path / "logs").glob("run_*.log")
    assert "echo_rtc is ready" in log.read_text()
    assert answer["stream"] not in log.read_text()


async def test_it_serves_https_and_logs_nothing_that_opens_streams(tmp_path: Path) -> None:
    token = "a-token-for-everything"
    environ = {"ECHO_RTC_AUTH_TOKEN": token, "XDG_STATE_HOME": str(tmp_path / "state")}
    flags = ("--host", "0.0.0.0", "--tls-self-signed", "--log-level", "debug")
    async with process(*card(tmp_path), *flags, **environ) as running:
        await running.line("calls need a token")
        fingerprint = (await running.line(r"SHA-256 fingerprint is ([0-9A-F:]{95})$"))[1]
        url = (await running.line(r"echo_rtc is ready: (https://localhost:\d+)$"))[1]
        pinned = aiohttp.Fingerprint(bytes.fromhex(fingerprint.replace(":", "")))
        connector = aiohttp.TCPConnector(ssl=pinned)
        async with aiohttp.ClientSession(connector=connector) as session:
            for headers, status in (({}, 401), ({"Authorization": f"Bearer {token}"}, 400)):
                async with session.post(f"{url}/offer", json={"sdp": "", "type": "offer"}, headers=headers) as response:
                    assert response.status == status
            async with session.delete(f"{url}/streams/an-id-to-be-kept") as response:
                assert response.status == 404
        running.child.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    [log] = (tmp_path / "logs").glob("run_*.log")
    for text in (log.read_text(), "".join(running.lines)):
        assert re.search(r"127\.0\.0\.1 DELETE /streams/\{id\}: 404 in \d+ ms", text)
        assert token not in text
        assert "an-id-to-be-kept" not in text
    assert (tmp_path / "state" / "echo_rtc" / "self-signed.pem").exists()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "only programs of this machine reach 127.0.0.1"),
        ("0.0.0.0", "every client that reaches 0.0.0.0 can"),
    ],
)
async def test_the_log_says_which_clients_need_no_token(tmp_path: Path, host: str, words: str) -> None:
    async with process(*card(tmp_path), "--host", host) as running:
        await running.line(words)
        if host == "0.0.0.0":
            await running.line("browsers on other machines give out no microphone to pages without HTTPS")
        running.child.send_signal(signal.SIGTERM)
        assert await running.end() == 0


async def test_an_uploaded_avatar_can_be_called_also_after_a_restart(tmp_path: Path) -> None:
    flags = [*card(tmp_path), "--avatar-dir", str(tmp_path / "avatars"), "--allow-avatar-upload"]
    face = (ROOT / "echo_rtc" / "assets" / "embedded" / "reference.png").read_bytes()
    async with process(*flags) as running, aiohttp.ClientSession() as http:
        token = (await running.line(r"administrator's token of this start \(.*\): (\S{32})$"))[1]
        url = (await running.line(r"echo_rtc is ready: (http://localhost:\d+)$"))[1]
        async with http.post(f"{url}/avatars", data=b"") as response:
            assert response.status == 401
        http.headers["Authorization"] = f"Bearer {token}"
        form = aiohttp.FormData()
        form.add_field("name", "anna")
        form.add_field("image", face, filename="anna.png")
        async with http.post(f"{url}/avatars", data=form) as response:
            assert response.status == 201, await response.text()
            entry = await response.json()
        async with http.get(f"{url}{entry['preview']}") as response:
            assert (await response.read()).startswith(b"\xff\xd8")
        assert (await fetch(f"{url}/config"))[1]["avatars"] == ["default", "anna"]
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            peer.addTrack(AudioStreamTrack())
            peer.addTransceiver("video", direction="recvonly")
            await peer.setLocalDescription(await peer.createOffer())
            offer = {"sdp": peer.localDescription.sdp, "type": "offer", "avatar": "anna"}
            async with http.post(f"{url}/offer", json=offer) as response:
                stream = (await response.json())["stream"]
            assert (await fetch(f"{url}/streams/{stream}"))[1]["avatar"] == "anna"
            async with http.delete(f"{url}/avatars/anna") as response:
                assert response.status == 409
            async with http.delete(f"{url}/streams/{stream}") as response:
                assert response.status == 204
        finally:
            await peer.close()
        running.child.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    assert all(token not in path.read_text() for path in (tmp_path / "logs").iterdir())
    lasting = {"ECHO_RTC_ADMIN_TOKEN": "the-token-of-administrators"}
    admin = {"Authorization": f"Bearer {lasting['ECHO_RTC_ADMIN_TOKEN']}"}
    async with process(*flags, **lasting) as running, aiohttp.ClientSession(headers=admin) as http:
        url = (await running.line(r"echo_rtc is ready: (http://localhost:\d+)$"))[1]
        assert [each["name"] for each in await listed(url)] == ["default", "anna"]
        async with http.delete(f"{url}/avatars/anna") as response:
            assert response.status == 204
        assert [each["name"] for each in await listed(url)] == ["default"]
        running.child.send_signal(signal.SIGTERM)
        assert await running.end() == 0
    assert not any("token of this start" in line for line in running.lines)
    assert os.listdir(tmp_path / "avatars") == [".lock"]


async def listed(url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/avatars") as response:
        entries: list[dict[str, Any]] = await response.json()
        return entries


async def test_a_token_that_is_required_and_missing_is_one_sentence(tmp_path: Path) -> None:
    async with process(*card(tmp_path), "--require-token", ECHO_RTC_AUTH_TOKEN="") as running:
        assert await running.end() == 2
    [line] = [line for line in running.lines if "ERROR" in line]
    assert "require_token is set and there is no token" in line
    with pytest.raises(SettingsError, match="no-require-token"):
        parts.access_of(Settings(engine="testcard", require_token=True, admin_token="an-administrators-token"))
    parts.access_of(Settings(engine="testcard", require_token=True, token_secret="x" * 32))


async def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serve._stop_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(stop.wait(), STOP_S)
            assert stop.back_after_s == serve.BACK_AFTER_S
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


async def test_interrupt_ends_it_with_0(tmp_path: Path) -> None:
    async with process(*card(tmp_path)) as running:
        await running.line("echo_rtc is ready")
        running.child.send_signal(signal.SIGINT)
        assert await running.end() == 0
    assert "Traceback" not in "".join(running.lines)


async def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        async with process(*card(tmp_path), "--port", str(port)) as running:
            assert await running.end() == 1
    errors = [line for line in running.lines if "ERROR" in line]
    assert len(errors) == 1
    assert f"port {port} on 127.0.0.1 is in use" in errors[0]
    assert "Traceback" not in "".join(running.lines)


async def test_a_host_elsewhere_is_one_sentence(tmp_path: Path) -> None:
    async with process(*card(tmp_path), "--host", "192.0.2.1") as running:
        assert await running.end() == 1
    assert "host 192.0.2.1 is not an address of this machine" in running.lines[-1]


async def test_a_wrong_setting_is_one_sentence_before_anything_else(tmp_path: Path) -> None:
    async with process(*card(tmp_path), "--widht", "64") as running:
        assert await running.end() == 2
    assert running.lines == ["server.py: --widht is not a flag; did you mean --width?\n"]
    assert os.listdir(tmp_path) == []
    async with process(*card(tmp_path), ECHO_RTC_FPS="fast") as running:
        assert await running.end() == 2
    assert running.lines == ["server.py: ECHO_RTC_FPS is 'fast'; it must be a whole number from 1 to 60\n"]


async def test_a_wrong_model_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("model:\n  weights: nowhere\n")
    async with process("--config", str(path), "--port", "0", "--log-dir", str(tmp_path)) as running:
        assert await asyncio.wait_for(running.end(), START_S) == 1
    errors = [line for line in running.lines if "ERROR" in line]
    assert len(errors) == 1
    assert str(tmp_path / "nowhere") in errors[0]
    assert "Traceback" not in "".join(running.lines)
    path.write_text("model:\n  wieghts: nowhere\n")
    async with process("--config", str(path), "--port", "0", "--log-dir", str(tmp_path)) as running:
        assert await asyncio.wait_for(running.end(), START_S) == 2
    assert "model.wieghts is unknown" in running.lines[-1]


async def test_a_worker_slower_than_real_time_says_so(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    """On the console and to the page, after what workers say of themselves; one that is quick enough is not named."""
    engine = ScriptedEngine(capacity_steps=4)
    for name, speed in (("cuda:0", 19.96), ("cuda:1", 24.0), ("cuda:2", None)):
        status = WorkerStatus(name, True, None, 0, 0, 0.0, 0, 0, None, None, frames_per_second=speed)
        engine.workers.append(replace(status, notice="" if speed == 24.0 else "Computed in 8-bit integers."))
    life = await begin(engine)
    engine.go.set()
    async with aiohttp.ClientSession() as session:

        async def told() -> dict[str, Any]:
            async with session.get(f"{life.url}/config") as response:
                return dict(await response.json())

        while (page := await told())["status"] != "ready":
            pass
    chosen, notice = page["notices"]
    assert chosen == "Computed in 8-bit integers.", "once for all that have chosen so"
    assert notice.startswith("Worker cuda:0 is slower than real time, 20.0 of 24 frames/s: clips get fewer")
    assert page["quality"] is None
    assert notice in caplog.text
