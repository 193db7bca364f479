"""Poses: files that can run no code, and drawings equal to the published ones."""

from __future__ import annotations

import colorsys
import io
import itertools
import os
import pickle
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from echo_rtc.clips import U8Array
from echo_rtc.errors import InputError
from echo_rtc.model import pose_drawing as pose_module
from echo_rtc.model.pose import Pose, Region
from echo_rtc.model.pose_drawing import HAND_EDGES, draw_pose
from echo_rtc.model.pose_files import load_pose, load_pose_sequence, save_pose

POSES = Path(__file__).parents[1] / "data" / "poses"
NAMES = ("0", "1", "2")


def some_pose(seed: int = 0, low: float = 0.2, high: float = 0.8, region: Region | None = None) -> Pose:
    random = np.random.default_rng(seed)
    corner = random.uniform(low, high - 0.15, (2, 1, 2))
    hands = corner + random.uniform(0, 0.15, (2, 21, 2))
    return Pose(hands, random.uniform(0.3, 1.2, (2, 21)), region or Region())


def content_of(pose: Pose) -> dict[str, Any]:
    region = pose.region
    sides = [region.height, region.width, region.row_begin, region.row_end, region.col_begin, region.col_end]
    return {
        "bodies": {"candidate": np.zeros((18, 2))},
        "hands": np.array(pose.hands),
        "hands_score": np.array(pose.hands_score),
        "faces": np.zeros((1, 68, 2)),
        "draw_pose_params": sides,
    }


def pose_file(content: object, protocol: int = 4) -> bytes:
    """The bytes of a .npy file with one object, pickled as asked."""
    holder = np.empty((), dtype=object)
    holder[()] = content
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + pickle.dumps(holder, protocol=protocol)


def with_pickle(stream: bytes) -> bytes:
    """A .npy file around a pickle written by hand."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue() + stream


def same(a: Pose, b: Pose) -> bool:
    return np.array_equal(a.hands, b.hands) and np.array_equal(a.hands_score, b.hands_score) and a.region == b.region


# ---------------------------------------------------------------------------------------------------- invariants


def test_a_pose_keeps_its_own_copy_and_cannot_be_written() -> None:
    hands = np.full((2, 21, 2), 0.5)
    pose = Pose(hands, np.ones((2, 21)))
    hands[:] = 0
    assert (pose.hands == 0.5).all()
    with pytest.raises(ValueError, match="read-only"):
        pose.hands[0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("hands", "score", "message"),
    [
        (np.zeros((1, 21, 2)), np.zeros((2, 21)), "hands has shape"),
        (np.zeros((2, 21, 2)), np.zeros((2, 20)), "hands_score has shape"),
        (np.full((2, 21, 2), np.nan), np.zeros((2, 21)), "not finite"),
        (np.zeros((2, 21, 2)), np.full((2, 21), 1e9), "beyond 100"),
    ],
)
def test_a_pose_that_cannot_be_is_refused(hands: Any, score: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pose(hands, score)


@pytest.mark.parametrize(
    "sides", [(0, 768, 0, 0, 0, 768), (768, 768, 0, 700, 0, 768), (768, 768, -1, 767, 0, 768), (9000, 9000), (16, 768)]
)
def test_a_region_that_cannot_be_is_refused(sides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="draw_pose_params"):
        Region(*sides)


# --------------------------------------------------------------------------------------------------------- files


def test_save_then_load(tmp_path: Path) -> None:
    pose = some_pose(region=Region(768, 432, 0, 768, 168, 600))
    save_pose(tmp_path / "0.npy", pose)
    assert same(load_pose(tmp_path / "0.npy"), pose)


def test_the_published_readers_find_their_keys(tmp_path: Path) -> None:
    pose = some_pose()
    save_pose(tmp_path / "0.npy", pose)
    content = np.load(tmp_path / "0.npy", allow_pickle=True).item()
    assert content["draw_pose_params"] == [768, 768, 0, 768, 0, 768]
    assert np.array_equal(content["hands"], pose.hands)
    assert np.array_equal(content["hands_score"], pose.hands_score)
    assert content["bodies"]["candidate"].shape == (18, 2)
    assert content["faces"].shape == (1, 68, 2)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    pose = some_pose()
    (tmp_path / "a.npy").write_bytes(pose_file(content_of(pose), protocol))
    assert same(load_pose(tmp_path / "a.npy"), pose)


def test_numpy_1_names_are_read(tmp_path: Path) -> None:
    pose = some_pose()
    data = pose_file(content_of(pose), 3)
    assert b"numpy._core" in data
    (tmp_path / "a.npy").write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    assert same(load_pose(tmp_path / "a.npy"), pose)


@pytest.mark.parametrize("protocol", [2, 4])
def test_other_number_types_orders_and_containers_are_read(tmp_path: Path, protocol: int) -> None:
    pose = some_pose()
    content = content_of(pose)
    content["hands"] = np.asfortranarray(pose.hands.astype(">f4"))
    content["draw_pose_params"] = tuple(np.int64(value) for value in content["draw_pose_params"])
    content["extra"] = [{1, 2}, frozenset({3}), OrderedDict(a=1), np.float32(1.5), np.array(["a"]), np.array([True])]
    (tmp_path / "a.npy").write_bytes(pose_file(content, protocol))
    loaded = load_pose(tmp_path / "a.npy")
    assert np.array_equal(loaded.hands, pose.hands.astype(np.float32))
    assert loaded.region == Region()


class Payload:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (__import__, "__import__"),
        (subprocess.Popen, "Popen"),
        (np.load, "load"),
        (np.fromfile, "fromfile"),
        (time.sleep, "time.sleep"),
        (bytearray, "bytearray"),
        (itertools.repeat, "itertools.repeat"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_calls_are_refused_by_name_and_not_run(
    tmp_path: Path, function: Callable[..., object], name: str, protocol: int
) -> None:
    mark = tmp_path / "ran"
    argument = {"system": f"touch {mark}", "Popen": ["touch", str(mark)]}.get(name, f"open({str(mark)!r}, 'w')")
    content = content_of(some_pose()) | {"faces": Payload(function, argument)}
    (tmp_path / "a.npy").write_bytes(pose_file(content, protocol))
    with pytest.raises(InputError, match=rf"a\.npy asks for .*{name}.*refused"):
        load_pose(tmp_path / "a.npy")
    assert not mark.exists()


@given(
    st.from_regex(r"[a-z_][a-z0-9_.]{0,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,20}", fullmatch=True),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_name_is_refused_before_it_is_imported(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(with_pickle(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b")R."))
    with pytest.raises(InputError, match="refused"):
        load_pose(path)


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",  # an array as large as the file says
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb.",
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo of 2 ** 31 places
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"",
        b"garbage",
    ],
    ids=["huge array", "type with flags", "huge memo", "deep nesting", "nothing", "garbage"],
)
def test_hostile_streams_are_one_sentence(tmp_path: Path, stream: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(with_pickle(stream))
    with pytest.raises(InputError, match=r"a\.npy") as caught:
        load_pose(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["V8", "M8[s]", [("a", "f8")], "O"])
def test_types_that_are_not_plain_numbers_are_refused(tmp_path: Path, spec: Any) -> None:
    content = content_of(some_pose()) | {"hands": np.zeros(3, dtype=spec)}
    (tmp_path / "a.npy").write_bytes(pose_file(content))
    with pytest.raises(InputError, match=r"a\.npy"):
        load_pose(tmp_path / "a.npy")


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_gives_a_pose_or_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((POSES / "0.npy").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # The header and the pickle's first opcodes are where a changed byte changes the meaning.
        position = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(content) - 1)))
        content[position] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    try:
        loaded = load_pose(path)
    except InputError as error:
        message = str(error)
    else:
        assert isinstance(loaded, Pose)
        return
    assert "a.npy" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hands": None}, "hands is not an array"),
        ({"hands": np.zeros((1, 21, 2))}, r"hands has shape \(1, 21, 2\)"),
        ({"hands": np.zeros((2, 21, 2), complex)}, "complex128"),
        ({"hands_score": np.full((2, 21), np.inf)}, "hands_score has values that are not finite"),
        ({"draw_pose_params": [768, 768]}, "six numbers"),
        ({"draw_pose_params": [768.5, 768, 0, 768, 0, 768]}, "whole numbers"),
        ({"draw_pose_params": [768, 768, 0, 700, 0, 768]}, "places 768 rows at 0..700"),
    ],
)
def test_what_is_wrong_in_a_pose_is_said(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "a.npy").write_bytes(pose_file(content_of(some_pose()) | change))
    with pytest.raises(InputError, match=rf"a\.npy is not a pose: .*{message}"):
        load_pose(tmp_path / "a.npy")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = content_of(some_pose())
    del content["hands_score"], content["draw_pose_params"]
    (tmp_path / "a.npy").write_bytes(pose_file(content))
    with pytest.raises(InputError, match="it lacks hands_score, draw_pose_params"):
        load_pose(tmp_path / "a.npy")


HEADER = pose_file(None)[: pose_file(None).index(b"\x80\x04")]


@pytest.mark.parametrize(
    "steps",
    [
        b"}" + b")" + b"\x85" * 1_000_000 + b"Ns",  # its hash would end the process
        b"(" + b"\x8f" * 3_000_000 + b"t",  # sets of 200 bytes each
        b"N0" * 1_500_000 + b"N",
    ],
    ids=["a tuple in tuples as a key", "sets", "nothing, again and again"],
)
def test_a_pickle_of_endless_steps_is_not_begun(tmp_path: Path, steps: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(HEADER + b"\x80\x04" + steps + b".")
    begun = time.process_time()
    with pytest.raises(InputError, match=r"a\.npy is not a pose: it is made in more than 10000 steps"):
        load_pose(tmp_path / "a.npy")
    assert time.process_time() - begun < 1.0


def test_a_tuple_as_deep_as_may_be_is_a_key_without_harm(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(HEADER + b"\x80\x04})" + b"\x85" * 9_900 + b"Ns.")
    refusals: list[str] = []

    def load() -> None:
        try:
            load_pose(tmp_path / "a.npy")
        except InputError as error:
            refusals.append(str(error))

    # On a thread, whose stack is the smaller one, as a server does it.
    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert len(refusals) == 1


DOUBLED = b")" + b"2\x86" * 60
"""A tuple that is twice in the next one, sixty times: to hash it or to write it out would take for ever."""
ENCODE, SET, ORDERED = b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    "steps",
    [
        b"}" + DOUBLED + b"Ns",
        b"}(" + DOUBLED + b"Nu",
        b"(" + DOUBLED + b"Nd",
        b"})" + b"\x94h\x00h\x00\x86" + b"".join(b"\x94h%ch%c\x86" % (n, n) for n in range(1, 60)) + b"Ns",
        b"\x8f(" + DOUBLED + b"\x90",
        b"(" + DOUBLED + b"\x91",
        SET + b"](" + DOUBLED + b"e\x85R",
        ORDERED + b"](" + DOUBLED + b"N\x86e\x85R",
        ENCODE + b"X\x01\x00\x00\x00a" + DOUBLED + b"\x86R",
        b"cnumpy\ndtype\n" + DOUBLED + b"\x85R",
        ENCODE + b"N}X\x0c\x00\x00\x00__defaults__)s\x86b",
    ],
    ids=["item", "items", "dict", "memo", "added", "frozen", "set", "ordered", "encoding", "type", "state"],
)
def test_objects_of_a_file_are_never_hashed_printed_or_changed(tmp_path: Path, steps: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(HEADER + b"\x80\x04" + steps + b".")
    with pytest.raises(InputError, match=r"a\.npy (is damaged: a (tuple|function) is|asks for the .* a tuple, which)"):
        load_pose(tmp_path / "a.npy")


def test_what_a_file_says_is_told_in_one_short_line(tmp_path: Path) -> None:
    name = b"x\n\x1b" * 1_000_000
    steps = b"\x8c\x02osX" + len(name).to_bytes(4, "little") + name + b"\x93."
    (tmp_path / "a.npy").write_bytes(HEADER + b"\x80\x04" + steps)
    with pytest.raises(InputError, match=r"asks for os\.x, which is refused") as refusal:
        load_pose(tmp_path / "a.npy")
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("array", [np.zeros(4), np.array([{}, {}], dtype=object), np.array([1, None], dtype=object)])
def test_other_arrays_are_not_poses(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match="not a pose"):
        load_pose(tmp_path / "a.npy")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        file.truncate(10_000_000_000)
    with pytest.raises(InputError, match="larger than 4 MB"):
        load_pose(tmp_path / "a.npy")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"7\.npy cannot be read: No such file"):
        load_pose(tmp_path / "7.npy")


def test_a_sequence_is_in_numeric_order(tmp_path: Path) -> None:
    poses = [some_pose(seed) for seed in range(12)]
    for number, pose in enumerate(poses):
        save_pose(tmp_path / f"{number}.npy", pose)
    (tmp_path / "._0.npy").write_bytes(b"what some systems leave")
    (tmp_path / "notes.txt").write_text("left alone")
    loaded = load_pose_sequence(tmp_path)
    assert len(loaded) == 12
    assert all(same(a, b) for a, b in zip(loaded, poses, strict=True))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no poses"),
        (["0", "1", "3"], r"lacks 2\.npy; its poses go on to 3\.npy"),
        (["1", "2"], r"lacks 0\.npy"),
        (["0", "pose"], r"pose\.npy is not named by its frame number"),
        (["0", "1", "01"], r"frame 1 twice"),
        (["0", "-1"], r"-1\.npy is not named"),
    ],
)
def test_a_sequence_that_is_not_one_is_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        save_pose(tmp_path / f"{name}.npy", some_pose())
    with pytest.raises(InputError, match=message):
        load_pose_sequence(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_pose_sequence(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------- drawing


def drawn_whole(pose: Pose, width: int, height: int) -> U8Array:
    """The drawing as the rules say it, over the whole canvas; away from the edges every OpenCV draws the same."""
    region = pose.region
    factor = 800 / min(region.height, region.width)
    canvas = np.zeros((int(region.height * factor), int(region.width * factor), 3), np.uint8)
    for hand, scores in zip(pose.hands, pose.hands_score, strict=True):
        points = [(int(x * canvas.shape[1]), int(y * canvas.shape[0])) for x, y in hand]
        for edge, (a, b) in enumerate(HAND_EDGES):
            if min(points[a] + points[b]) > 0.01:
                color = np.array(colorsys.hsv_to_rgb(edge / 20, 1, 1)) * int(scores[a] * scores[b] * 255)
                cv2.line(canvas, points[a], points[b], color.tolist(), 2)
        for point, score in zip(points, scores, strict=True):
            if min(point) > 0.01:
                cv2.circle(canvas, point, 4, (0, 0, int(score * 255)), -1)
    picture = np.zeros((max(768, region.row_end), max(768, region.col_end), 3), np.uint8)
    rows, columns = slice(region.row_begin, region.row_end), slice(region.col_begin, region.col_end)
    picture[rows, columns] = cv2.resize(canvas, (region.width, region.height))[:, :, ::-1]
    narrow = Image.fromarray(picture).resize((width, len(picture)), Image.Resampling.LANCZOS)
    return np.asarray(narrow.resize((width, height), Image.Resampling.LANCZOS))


def difference(a: U8Array, b: U8Array) -> int:
    """The largest difference in levels."""
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize(("size", "name"), [(512, "0"), (512, "1"), (512, "2"), (768, "1"), (768, "2")])
def test_the_published_drawings(size: int, name: str) -> None:
    published = np.asarray(Image.open(POSES / f"drawn_{size}" / f"{name}.png").convert("RGB"))
    ours = draw_pose(load_pose(POSES / f"{name}.npy"), size, size)
    assert published.max() > 200
    assert difference(ours, published) == 0


def test_the_published_folder_is_a_sequence() -> None:
    loaded = load_pose_sequence(POSES)
    assert len(loaded) == len(NAMES)
    assert same(loaded[2], load_pose(POSES / "2.npy"))


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (768, 768), (192, 320), (500, 300), (1024, 1024), (64, 64)])
@pytest.mark.parametrize("seed", range(4))
def test_the_part_drawn_is_as_the_whole(size: tuple[int, int], seed: int) -> None:
    pose = some_pose(seed, 0.05, 0.95)
    whole = drawn_whole(pose, *size)
    part = draw_pose(pose, *size)
    assert part.shape == (size[1], size[0], 3)
    assert part.dtype == np.uint8
    assert difference(part, whole) <= 1


@pytest.mark.parametrize(
    "region",
    [
        Region(768, 432, 0, 768, 168, 600),
        Region(500, 768, 100, 600, 0, 768),
        Region(900, 700, 10, 910, 3, 703),
        Region(801, 801, 0, 801, 0, 801),
        Region(64, 96, 600, 664, 672, 768),
    ],
)
def test_other_regions(region: Region) -> None:
    for seed in range(4):
        pose = some_pose(seed, 0.05, 0.95, region)
        assert difference(draw_pose(pose, 256, 192), drawn_whole(pose, 256, 192)) <= 2


def test_hands_that_lie_apart_and_hands_that_meet() -> None:
    still = np.random.default_rng(0).uniform(0, 0.1, (21, 2))
    scores = np.ones((2, 21))
    for shift in (0.0, 0.05, 0.13, 0.2, 0.5):
        pose = Pose(np.stack([still + 0.2, still + np.array([0.2 + shift, 0.25])]), scores)
        assert difference(draw_pose(pose, 256, 256), drawn_whole(pose, 256, 256)) <= 1


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.001, 1.5])
def test_joints_outside_leave_nothing(axis: int, value: float) -> None:
    hands = np.full((2, 21, 2), 0.5)
    hands[..., axis] = value
    assert not draw_pose(Pose(hands, np.ones((2, 21))), 128, 128).any()


def test_a_joint_that_was_not_found_takes_its_bones_with_it() -> None:
    hands = np.full((2, 21, 2), -1.0)
    hands[0, 0], hands[0, 1], hands[0, 2] = (0.25, 0.5), (0.5, 0.5), (0.75, 0.5)
    bones = draw_pose(Pose(hands, np.ones((2, 21))), 768, 768)
    assert bones[384, 288].any()
    assert bones[384, 480].any()
    hands[0, 1] = -1.0
    bones = draw_pose(Pose(hands, np.ones((2, 21))), 768, 768)
    assert not bones[384, 288].any()
    assert not bones[384, 480].any()
    assert bones[384, 192].tolist() == [255, 0, 0]
    assert bones[384, 576].tolist() == [255, 0, 0]


def test_scores_are_brightness() -> None:
    hands = np.full((2, 21, 2), -1.0)
    hands[0, 0], hands[1, 0] = (0.25, 0.5), (0.75, 0.5)
    scores = np.zeros((2, 21))
    scores[0, 0], scores[1, 0] = 0.5, 1.3
    drawing = draw_pose(Pose(hands, scores), 768, 768)
    assert drawing[384, 192].tolist() == [127, 0, 0]
    assert drawing[384, 576].tolist() == [255, 0, 0]


coordinate = st.integers(2, 97)


@given(coordinate, coordinate, coordinate, coordinate)
@settings(max_examples=200, deadline=None)
def test_a_line_taken_apart_is_the_line(x0: int, y0: int, x1: int, y1: int) -> None:
    """Where nothing is clipped, the line for the canvas's edge is OpenCV's own."""
    canvas = pose_module._Canvas((100, 100), slice(0, 100), slice(0, 100))
    canvas._line_at_edge((x0, y0), (x1, y1), (200, 100, 50))
    expected = np.zeros((100, 100, 3), np.uint8)
    cv2.line(expected, (x0, y0), (x1, y1), (200, 100, 50), 2)
    assert np.array_equal(canvas.pixels, expected)


outside = st.integers(1, 3000)


@given(outside, outside, outside, outside)
@settings(max_examples=200, deadline=None)
def test_a_line_across_the_edge_stays_near_the_line(x0: int, y0: int, x1: int, y1: int) -> None:
    """Clipped, it may leave the line that is not clipped by a pixel; both lie within two of the geometry."""
    canvas = pose_module._Canvas((100, 100), slice(0, 100), slice(0, 100))
    canvas._line_at_edge((x0, y0), (x1, y1), (255, 255, 255))
    y, x = np.nonzero(canvas.pixels[..., 0])
    length = max(float(np.hypot(x1 - x0, y1 - y0)), 1.0)
    if (x0, y0) != (x1, y1):
        assert (np.abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length <= 2.5).all()
    middle = (np.array([x0, y0]) + np.linspace(0, 1, 200)[:, None] * np.array([x1 - x0, y1 - y0])).round().astype(int)
    for column, row in middle[((middle >= 0) & (middle < 100)).all(axis=1)]:
        assert canvas.pixels[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].any()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.npy")
    with pytest.raises(InputError, match=r"0\.npy is not a file"):
        load_pose(tmp_path / "0.npy")
