"""Files of arrays: what is kept is read, files that cannot be used, the limit, several that write at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echo_rtc.engine.kept_files import Arrays, KeptFiles, code_digest, digest_of

DIGEST, OTHER = digest_of({"steps": 1}), digest_of({"steps": 2})


def arrays(seed: int = 0) -> Arrays:
    drawn = np.random.default_rng(seed)
    return {"pictures": drawn.integers(0, 256, (30, 48, 32), np.uint8), "leaps": np.full((30, 2), -1, np.int32)}


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def get(files: KeptFiles, digest: str) -> Arrays | None:
    return files.get(digest, lambda found: found)


@pytest.fixture
def shelf(tmp_path: Path) -> KeptFiles:
    return KeptFiles(tmp_path / "cache" / "idle", "loops")


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "idle").iterdir())


def test_what_is_kept_is_read(shelf: KeptFiles) -> None:
    assert get(shelf, DIGEST) is None
    for content in (arrays(), arrays(1), {}):
        shelf.put(DIGEST, content)
        found = get(shelf, DIGEST)
        assert found is not None
        assert same(found, content)
        assert get(shelf, OTHER) is None


def damaged(path: Path, content: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What can be wrong with a file, by name."""
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    method = bytearray(whole)
    method[whole.index(b"PK\x01\x02") + 10] = 99

    def with_(**changes: Any) -> Callable[[], object]:
        return lambda: np.savez(path, **{**content, **changes})

    return {
        "truncated": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "a flipped byte": lambda: path.write_bytes(flipped),
        "of another compression": lambda: path.write_bytes(method),
        "of a shape that is no expression": lambda: path.write_bytes(whole.replace(b"(30, 48, 32)", b"(30, 48, 32 ")),
        "of a huge shape": lambda: path.write_bytes(whole.replace(b"(30, 48, 32), ", b"(30, 48, 9**9)")),
        "empty": lambda: path.write_bytes(b""),
        "foreign": lambda: path.write_bytes(b"\x80\x04 no archive"),
        "pickled": with_(leaps=np.array([print], object)),
        "of another digest": with_(digest=np.frombuffer(OTHER.encode(), np.uint8)),
        "without a digest": lambda: np.savez(path, leaps=content["leaps"]),
    }


def test_a_file_that_cannot_be_used_is_one_line(
    shelf: KeptFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.put(DIGEST, arrays())
    (path,) = kept_files(tmp_path)
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files}
    for what, damage in damaged(path, content).items():
        caplog.clear()
        damage()
        assert get(shelf, DIGEST) is None, what
        (record,) = caplog.records
        assert f"{path} cannot be used" in record.getMessage()
        assert "\n" not in record.getMessage()
        shelf.put(DIGEST, arrays())
        assert get(shelf, DIGEST) is not None


def test_a_huge_file_is_not_unpacked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    KeptFiles(tmp_path, "loops").put(DIGEST, arrays())
    assert get(KeptFiles(tmp_path, "loops", limit_bytes=20_000), DIGEST) is None
    assert "it is too large" in caplog.text


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "idle"
    one = KeptFiles(folder, "loops")
    digests = [digest_of({"number": number}) for number in range(4)]
    for age, digest in zip((400, 300, 200), digests, strict=False):
        one.put(digest, arrays())
        os.utime(folder / f"{digest}.npz", (1e9 - age, 1e9 - age))
    assert get(one, digests[0]) is not None, "now it is the one used last"
    size = kept_files(tmp_path)[0].stat().st_size
    KeptFiles(folder, "loops", limit_bytes=3 * size + 100).put(digests[3], arrays())
    assert [get(one, digest) is not None for digest in digests] == [True, False, True, True]


def test_what_is_beyond_the_limit_is_not_kept(tmp_path: Path) -> None:
    KeptFiles(tmp_path / "cache" / "idle", "loops", limit_bytes=1000).put(DIGEST, arrays())
    assert kept_files(tmp_path) == []


def test_what_a_killed_process_left_is_removed(shelf: KeptFiles, tmp_path: Path) -> None:
    shelf.put(DIGEST, arrays())
    for name, age in (("old.part", 7200.0), ("new.part", 0.0)):
        path = tmp_path / "cache" / "idle" / name
        path.write_bytes(b"half")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    shelf.put(OTHER, arrays())
    assert [path.name for path in kept_files(tmp_path)] == sorted([f"{DIGEST}.npz", f"{OTHER}.npz", "new.part"])


def test_several_may_write_at_once(tmp_path: Path) -> None:
    shelves = [KeptFiles(tmp_path / "cache" / "idle", "loops") for _ in range(4)]
    threads = [threading.Thread(target=shelf.put, args=(DIGEST, arrays())) for shelf in shelves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = get(shelves[0], DIGEST)
    assert found is not None
    assert same(found, arrays())
    assert len(kept_files(tmp_path)) == 1


def test_a_write_that_fails_leaves_nothing(
    shelf: KeptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(file: Any, **content: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    shelf.put(DIGEST, arrays())
    shelf.put(OTHER, arrays())
    assert kept_files(tmp_path) == []
    (record,) = caplog.records
    assert "cannot be kept" in record.getMessage()


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    shelf = KeptFiles(tmp_path / "file" / "idle", "loops")
    for digest in (DIGEST, OTHER):
        shelf.put(digest, arrays())
        assert get(shelf, digest) is None
    assert sum("cannot be kept" in record.getMessage() for record in caplog.records) == 1


def test_what_is_dropped_is_gone_half_written_or_whole(shelf: KeptFiles, tmp_path: Path) -> None:
    shelf.put(DIGEST, arrays())
    shelf.put(OTHER, arrays())
    (tmp_path / "cache" / "idle" / f"{DIGEST}-killed.part").write_bytes(b"half")
    shelf.drop(DIGEST[:8])
    assert [path.name for path in kept_files(tmp_path)] == [f"{OTHER}.npz"]


def test_what_is_dropped_while_it_is_written_is_gone(
    shelf: KeptFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    savez = np.savez

    def dropped(file: Any, **content: Any) -> None:
        savez(file, **content)
        shelf.drop(DIGEST)

    monkeypatch.setattr(np, "savez", dropped)
    shelf.put(DIGEST, arrays())
    assert kept_files(tmp_path) == []
    assert not caplog.records


def test_what_its_reader_refuses_is_one_line(shelf: KeptFiles, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(found: Arrays) -> object:
        raise ValueError("it has 0 pictures")

    shelf.put(DIGEST, arrays())
    assert shelf.get(DIGEST, refuse) is None
    (record,) = caplog.records
    assert "cannot be used (it has 0 pictures)" in record.getMessage()


def test_sources_are_known_by_name_and_content(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sources"):
        code_digest(tmp_path)
    seen = set()
    for name, content in (("a.py", "1"), ("a.py", "2"), ("kernels/a.py", "2"), ("kernels/a.cu", "2"), ("b.txt", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        seen.add(code_digest(tmp_path))
    assert len(seen) == 4
