"""A folder of avatars belongs to one server, and what a killed one was writing there goes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from filelock import FileLock

from echo_rtc.avatars.lock import LOCK, locked
from echo_rtc.errors import InputError, StorageError


def test_a_second_server_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "avatars"
    with locked(folder):
        with pytest.raises(InputError, match=r"avatar_dir is .*, where another server takes uploads; stop it, or name"):
            locked(folder).__enter__()
        with locked(tmp_path / "other"):
            pass
    with locked(folder):
        assert (folder / LOCK).stat().st_mode & 0o077 == 0


def test_drafts_of_a_killed_server_are_deleted(tmp_path: Path) -> None:
    for name in (".anna-0123abcd", ".b-ffffffff", "anna", ".hidden", ".anna-0123abcg", "anna-0123abcd"):
        (tmp_path / name / "poses").mkdir(parents=True)
    (tmp_path / ".carl-00000000").write_text("a file")
    with locked(tmp_path):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {LOCK, "anna", ".hidden", ".anna-0123abcg", "anna-0123abcd", ".carl-00000000"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "it is not possible")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"cannot be written: it is not possible; name another with --avatar-dir"):
        locked(tmp_path / "a").__enter__()


def test_a_file_system_without_locks_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with locked(tmp_path):
        assert "without locks" in caplog.text
