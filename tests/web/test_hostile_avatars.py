"""A real server under hostile uploads of avatars, while a call goes on: each is refused in one sentence, and nothing is
left of it."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image

from echo_rtc.avatars.library import MAX_PICTURE_BYTES, MAX_POSES, MAX_POSES_BYTES
from echo_rtc.avatars.lock import LOCK
from echo_rtc.bench.hostile import Answer, send
from echo_rtc.bench.stream import babble
from echo_rtc.bench.support.calls import Caller
from echo_rtc.bench.support.real_server import ADMIN_HEADERS, ADMIN_TOKEN, ROOT, RealServer
from echo_rtc.web.avatars import MAX_AROUND_BYTES, MAX_WORD_BYTES
from tests.avatars.test_library import (
    GIF,
    archive,
    endless_tiff,
    evil_pose,
    image,
    large_tile,
    lying_archive,
    many_scans,
    pose_files,
)
from tests.avatars.test_library import spoilt as spoilt_archive
from tests.offline.test_hostile_files import png

BOUNDARY = "----a-boundary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MUTATIONS = 250
LARGEST = MAX_PICTURE_BYTES + MAX_POSES_BYTES + 2 * MAX_WORD_BYTES + MAX_AROUND_BYTES


def part(name: bytes, content: bytes, head: bytes = b"") -> bytes:
    disposition = b'Content-Disposition: form-data; name="' + name + b'"'
    return b"--" + BOUNDARY.encode() + b"\r\n" + disposition + head + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY.encode() + b"--\r\n"


def upload(picture: bytes = image(), poses: bytes | None = None, name: bytes = b"anna") -> bytes:
    more = () if poses is None else (part(b"poses", poses),)
    return form(part(b"name", name), part(b"image", picture, b'; filename="../../x.png"'), *more)


def npy(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    """A file whose header tells of an array that is not there."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def with_pose(content: bytes) -> bytes:
    return upload(poses=archive({**pose_files(), "0.npy": content}))


def picture_of(kind: str, **options: object) -> bytes:
    noise = np.random.default_rng(3).integers(0, 255, (80, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


AVIF = picture_of("AVIF")
AVIF_DATA = AVIF.index(b"mdat") + 4
OBJECT = npy((), "|O")
FORMS: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "does not begin with the boundary"),
    "another boundary": (upload().replace(BOUNDARY.encode(), b"--another"), 400, "does not begin with the boundary"),
    "line ends only": (b"\r\n" * 5_000_000, 400, "does not begin with the boundary"),
    "cut in the picture": (upload()[:300], 400, "cut off"),
    "cut before the end": (upload()[:-4], 400, "cut off"),
    "thousands of parts": (form(*(part(b"x%d" % n, b"") for n in range(5_000))), 400, "'x0' is not expected"),
    "a part in a part": (
        form(part(b"name", b"anna"), part(b"image", upload(), b"\r\nContent-Type: multipart/mixed; boundary=y")),
        400,
        "given twice",
    ),
    "another part in a part": (
        form(part(b"name", b"anna"), part(b"image", b"--y\r\n\r\n--y--", b"\r\nContent-Type: multipart/x; boundary=y")),
        422,
        "not an image",
    ),
    "a part without a name": (
        form(b"--" + BOUNDARY.encode() + b"\r\nContent-Type: image/png\r\n\r\n\r\n"),
        400,
        "without a name",
    ),
    "a name twice": (form(part(b"name", b"a"), part(b"name", b"b"), part(b"image", image())), 400, "given twice"),
    "a charset": (form(part(b"_charset_", b"\xff" * 31), part(b"name", b"a")), 400, "'_charset_' is not expected"),
    "a large header": (form(part(b"name", b"a", b"\r\nX: " + b"y" * 100_000)), 400, "cut off or badly encoded"),
    "many headers": (form(part(b"name", b"a", b"\r\nX: y" * 10_000)), 400, "cut off or badly encoded"),
    "base64": (form(part(b"name", b"a", b"\r\nContent-Transfer-Encoding: base64")), 400, "transfer encoding 'base64'"),
    "no picture": (form(part(b"name", b"anna")), 400, "Image is missing"),
    "an empty picture": (upload(b""), 400, "Image is missing"),
    "an empty pose file": (upload(poses=b""), 422, "no ZIP file"),
    "too much": (upload(bytes(MAX_PICTURE_BYTES + 1)), 413, "image is larger than 24 MiB"),
    "far too much": (bytes(LARGEST + 1), 413, "which is the most that is taken"),
    "poses of nobody": (
        form(part(b"name", b"anna"), part(b"image", image()), part(b"poses_of", b"../x")),
        422,
        "'../x'",
    ),
}
NAMES = (b"../../x", b"/etc/x", b"a\0b", b".", b"..", b"a" * 200, "\u00e4\u202e".encode(), b"a\r\nb", b"a/b", b"Anna")
PICTURES: dict[str, tuple[bytes, str]] = {
    "a hundred megapixels": (png(10_000, 10_000), "more than 32 megapixels"),
    "no pixels": (png(0, 0), "not an image"),
    "moving": (GIF, "moves: it has more than one frame"),
    "a moving WebP": (
        picture_of("WEBP", save_all=True, append_images=[Image.new("RGB", (80, 80))]),
        "moves: it has more than one frame",
    ),
    "text": (b"<script>alert(1)</script>", "not an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
    "a program": (Path("/proc/self/exe").read_bytes()[:100_000], "not an image"),
    "a cut JPEG": (picture_of("JPEG")[:900], "damaged or cannot be read"),
    "an AVIF without its picture": (AVIF.replace(b"av01", b"av00"), "damaged or cannot be read"),
    "an AVIF that does not decode": (AVIF[:AVIF_DATA] + b"\xff" * 200 + AVIF[AVIF_DATA + 200 :], "damaged"),
    "a JPEG of many scans": (many_scans(2_000), "more than 64 scans"),
    "a TIFF with a tile of 2 GB": (large_tile(), "not an image"),
    "a TIFF of many pages": (endless_tiff(100_000), "not an image"),
}
POSES: dict[str, tuple[bytes, str]] = {
    "a command": (with_pose(evil_pose()), "system, which is refused"),
    "numbers of 8 EB": (with_pose(npy((2**30, 2**30))), "instead of one dict"),
    "objects of 8 EB": (with_pose(npy((2**30, 2**30), "|O")), "instead of one dict"),
    "one object that is not there": (with_pose(OBJECT), "0.npy is damaged"),
    "a text of 4 GB that is not there": (with_pose(OBJECT + b"\x80\x04\x8e" + b"\xff" * 4 + bytes(4)), "is damaged"),
    "a byte array of 4 GB that is not there": (
        with_pose(OBJECT + b"\x80\x05\x96" + b"\xff" * 4 + bytes(4)),
        "is damaged",
    ),
    "a memo of 4 GB": (with_pose(OBJECT + b"\x80\x04Nr" + b"\xff" * 4 + b"."), "is damaged"),
    "tuples in tuples": (with_pose(OBJECT + b"\x80\x04})" + b"\x85" * 1_500_000 + b"Ns."), "more than 10000 steps"),
    "sets": (with_pose(OBJECT + b"\x80\x04(" + b"\x8f" * 3_000_000 + b"t."), "more than 10000 steps"),
    "a pickle by itself": (upload(poses=b"\x80\x04cos\nsystem\n."), "no ZIP file"),
    "a long name": (upload(poses=archive({"0" * 300 + ".npy": b""})), "not named by its frame number"),
    "a name with NUL": (upload(poses=archive({"a/b": b"", "x\x01.npy": b""})), "not named by its frame number"),
    "too many": (upload(poses=archive({f"{n}.npy": b"" for n in range(MAX_POSES + 1)})), "at most 2000"),
    "spoilt": (upload(poses=spoilt_archive()), "is damaged"),
    "a ZIP that lies about its size": (upload(poses=lying_archive(300 * 2**20)), "0.npy is damaged"),
    "a list of 300 000 files": (upload(poses=b"PK\x01\x02" + bytes(42) * 300_000), "no ZIP file"),
    "no poses": (upload(poses=archive({"a.txt": b""})), "holds no poses"),
}


def request(body: bytes, content_type: str = TYPE, head: str = "") -> bytes:
    lines = f"POST /avatars HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n{head}"
    lines += f"Authorization: Bearer {ADMIN_TOKEN}\r\n"
    if "Transfer-Encoding" not in head and "Content-Length" not in head:
        lines += f"Content-Length: {len(body)}\r\n"
    return f"{lines}\r\n".encode("utf-8", "surrogateescape") + body


def mutated(chance: random.Random) -> bytes:
    """A whole upload with something wrong in it, most often where it is read."""
    body = bytearray(upload(picture_of(chance.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP"))), archive(pose_files())))
    for _ in range(chance.choice((1, 1, 3, 10))):
        at = chance.randrange(min(len(body), chance.choice((400, 10_000))))
        match chance.randrange(5):
            case 0:
                body[at] = chance.choice((0, 10, 13, 45, 255, chance.randrange(256)))
            case 1:
                del body[at : at + chance.randrange(1, 60)]
            case 2:
                body[at:at] = chance.randbytes(chance.randrange(1, 60))
            case 3:
                begin = chance.randrange(len(body))
                body[at:at] = body[begin : begin + chance.randrange(400)]
            case _:
                del body[max(at, 40) :]
    return bytes(body)


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealServer]:
    """A server of test cards that takes uploads; its temporary files would be in ``temporary``."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    card = ("--config", str(ROOT / "configs" / "testcard.yaml"), "--width", "96", "--height", "96")
    folders = ("--avatar-dir", str(tmp_path / "avatars"), "--log-dir", str(tmp_path / "logs"))
    async with RealServer(*card, *folders, "--allow-avatar-upload") as running:
        yield running


def peak_mb(server: RealServer) -> float:
    """The most memory that a server's process has ever had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def check(answer: Answer, status: int, words: str, what: object) -> None:
    assert answer.status == status, (what, answer)
    problem = json.loads(answer.body)
    assert answer.headers["content-type"].startswith("application/problem+json")
    detail = problem["detail"]
    assert words in detail, what
    assert detail.endswith("."), what
    assert detail.isprintable(), what
    assert len(detail) < 400, what
    assert "/tmp" not in detail, what


def kept(avatars: Path) -> list[str]:
    """What lies in the folder of avatars, but for the server's lock."""
    return [path.name for path in avatars.iterdir() if path.name != LOCK]


async def test_hostile_uploads_are_refused_in_words_and_leave_nothing(server: RealServer, tmp_path: Path) -> None:
    streams: list[str] = []
    caller = Caller(babble)
    async with aiohttp.ClientSession(f"http://localhost:{server.port}") as session:

        async def exchange(offer: str) -> str:
            async with session.post("/offer", json={"sdp": offer, "type": "offer"}) as response:
                opened = await response.json()
            streams.append(opened["stream"])
            return str(opened["sdp"])

        async def ask(raw: bytes) -> Answer:
            return await send(server.port, raw)

        try:
            await caller.connect(exchange)
            before_mb = peak_mb(server)
            for what, (body, status, words) in FORMS.items():
                check(await ask(request(body)), status, words, what)
            for boundary in (
                "",
                "; boundary=",
                "; boundary=" + "x" * 71,
                "; boundary=\u00e4",
                "; boundary=b; boundary=c",
            ):
                check(await ask(request(upload(), f"multipart/form-data{boundary}")), 400, "boundary", boundary)
            for kind in (
                "multipart/mixed; boundary=x",
                "image/png",
                "a" * 300,
                "text/plain;;;",
                "multipart/form-data/x",
            ):
                check(await ask(request(upload(), kind)), 415, "send multipart/form-data", kind)
            for name in NAMES:
                answer = await ask(request(upload(name=name)))
                check(answer, 422, "it must have 1 to 40 small letters", name)
            for what, (picture, words) in PICTURES.items():
                check(await ask(request(upload(picture))), 422, words, what)
            for what, (body, words) in POSES.items():
                check(await ask(request(body)), 422, words, what)
            endless = b"%x\r\n" % 2**20 + bytes(2**20) + b"\r\n"
            head = "Transfer-Encoding: chunked\r\n"
            check(await ask(request(endless * 64, head=head)), 413, "which is the most that is taken", "endless")
            assert (await ask(request(b"5\r\nabcdeXX\r\n", head=head))).status == 400
            # Who announces more than comes, and hangs up, gets no answer.
            await send(server.port, request(upload()[:500], head="Content-Length: 90000\r\n"), 0.1)
            chance = random.Random(7)
            for _ in range(MUTATIONS):
                body = mutated(chance)
                answer = await ask(request(body))
                if answer.status == 201:
                    async with session.delete(answer.headers["location"], headers=ADMIN_HEADERS) as response:
                        assert response.status == 204
                else:
                    assert answer.status is not None
                    check(answer, answer.status, "", body[:300])
                    assert answer.status < 500, answer
            assert peak_mb(server) - before_mb < 250
            async with session.get(f"/streams/{streams[0]}") as response:
                statistics = await response.json()
            assert statistics["playout"]["underruns"] == 0
            assert statistics["state"] in ("idle", "speaking", "behind")
            headers = {"Content-Type": TYPE, "Authorization": f"Bearer {ADMIN_TOKEN}"}
            async with session.post("/avatars", data=upload(), headers=headers) as response:
                assert response.status == 201, await response.text()
            async with session.delete("/avatars/anna", headers=headers) as response:
                assert response.status == 204
        finally:
            await caller.close()
    assert await server.stop() == 0
    assert server.troubles == []
    # What is no line of the log was written past it: the address to open; no warning, no word of a library's.
    assert [line for line in server.lines if not line[:4].isdigit()] == [f"Open {server.url}"]
    assert kept(tmp_path / "avatars") == []
    assert list((tmp_path / "temporary").iterdir()) == []


async def test_an_upload_that_stalls_is_given_up_and_leaves_nothing(server: RealServer, tmp_path: Path) -> None:
    """Hung up on by the client; the time that is given to it is tested in ``test_avatars``."""
    for piece in (0, 60, 400):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request(upload())[: -len(upload())] + upload()[:piece])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""
    assert (await send(server.port, request(upload()))).status == 201
    assert kept(tmp_path / "avatars") == ["anna"]
    assert await server.stop() == 0
    assert server.troubles == []
