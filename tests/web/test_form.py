"""Forms: what browsers and programs send is read byte for byte, and anything else is refused in one sentence."""

from __future__ import annotations

import contextlib
import time

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_rtc.web.form import read_form
from echo_rtc.web.problems import Problem

MOST = {"name": 200, "image": 5_000, "poses": 5_000}
TYPE = "multipart/form-data; boundary=x"
WORD = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nanna\r\n'
END = b"--x--\r\n"


def refusal(body: bytes, content_type: str = TYPE) -> tuple[int, str]:
    with pytest.raises(Problem) as caught:
        read_form(content_type, body, MOST)
    words = caught.value.detail
    assert words.endswith(".")
    assert words.isprintable()
    assert len(words) < 300
    return caught.value.status, words


@given(st.dictionaries(st.sampled_from(list(MOST)), st.binary(max_size=200), min_size=1))
@settings(max_examples=100, deadline=None)
def test_what_programs_send_is_read_byte_for_byte(parts: dict[str, bytes]) -> None:
    lines = [b'--bound-ary\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (n.encode(), c)
             for n, c in parts.items()]  # fmt: skip
    body = b"".join(lines) + b"--bound-ary--\r\n"
    for boundary in ("bound-ary", '"bound-ary"'):
        assert read_form(f"multipart/form-data; charset=utf-8; boundary={boundary}", body, MOST) == parts


@pytest.mark.parametrize(
    "name", ['a "quoted\\" name.png', "../../etc/passwd", "C:\\x.png", "\u00e4\u202e", "; name=name"]
)
async def test_the_name_of_a_file_is_nothing(name: str) -> None:
    form = aiohttp.FormData()
    form.add_field("image", b"\r\n--x\r\n\0", filename=name, content_type="image/png")
    payload = form()
    assert read_form(payload.headers["Content-Type"], await payload.as_bytes(), MOST) == {"image": b"\r\n--x\r\n\0"}


@pytest.mark.parametrize("boundary", ["", "; boundary=", f"; boundary={'x' * 71}", "; boundary=\u00e4"])
def test_a_boundary_must_be_one(boundary: str) -> None:
    assert refusal(WORD + END, f"multipart/form-data{boundary}")[1].startswith("The content type names no boundary")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "does not begin with the boundary"),
        (b"a preamble\r\n" + WORD + END, "does not begin with the boundary"),
        (b"--y" + WORD[3:] + b"--y--", "does not begin with the boundary"),
        (WORD, "cut off"),
        (WORD[:-7], "cut off"),
        (WORD[:20], "cut off"),
        (b"--x", "cut off"),
        (b"--xyz\r\n" + WORD + END, "cut off"),
        (WORD.replace(b"\r\n", b"\n") + END, "cut off"),
        (b"--x\r\n" + b"X-Y: z\r\n" * 1_000 + WORD[5:] + END, "cut off"),
        (b"--x\r\nX-Y: " + b"z" * 10_000 + b"\r\n" + WORD[5:] + END, "cut off"),
        (WORD * 2 + END, "Name is given twice"),
        (WORD * 5_000 + END, "Name is given twice"),
        (b"--x\r\n\r\nanna\r\n" + END, "'a part without a name' is not expected"),
        (WORD.replace(b'name="name"', b'filename="; name=name"') + END, "'a part without a name' is not expected"),
        (WORD.replace(b"form-data", b"attachment") + END, "'a part without a name' is not expected"),
        (WORD.replace(b'"name"', b'"../../x"') + END, "'../../x' is not expected; known are name, image, poses"),
        (WORD.replace(b'"name"', b'"a\0\x1b[2J"') + END, r"'a\\x00\\x1b[2J' is not expected"),
        (WORD.replace(b'"name"', b'"' + b"n" * 3_000 + b'"') + END, "n' is not expected"),
        (WORD.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + END, "encoding 'base64'"),
        (WORD.replace(b"Content-Disposition", b"Content-Type: multipart/mixed; boundary=y\r\nX") + END, "part without"),
    ],
)  # fmt: skip
def test_what_is_no_form_is_refused_in_words(body: bytes, words: str) -> None:
    status, said = refusal(body)
    assert status == 400
    assert words.replace("\\\\", "\\") in said


def test_a_part_that_is_too_large_is_named_with_its_limit() -> None:
    assert refusal(WORD.replace(b"anna", b"a" * 201) + END) == (413, "name is larger than 200 bytes; make it smaller.")


@given(
    st.lists(st.sampled_from([b"--x", b"--x--", b"\r\n", b"\r\n\r\n", WORD, b"\0", b"--", b'name="image"', b"--x\r\n"]))
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_form_or_refused_in_words(pieces: list[bytes]) -> None:
    with contextlib.suppress(Problem):
        assert set(read_form(TYPE, b"".join(pieces), MOST)) <= set(MOST)


def test_bodies_of_many_beginnings_take_no_time() -> None:
    begun = time.process_time()
    for piece in (b"\r\n", b"\r\n--", b"\r\n--\r\n\r\n", b"-", b"\0"):
        refusal(WORD.replace(b"anna", piece * (20_000_000 // len(piece))))
    assert time.process_time() - begun < 2.0
