"""One server at a time changes a folder of avatars: a lock on it, and the drafts that a killed server has left."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from echo_rtc.errors import FolderError, InputError
from echo_rtc.settings import AVATAR_NAME

LOCK = ".lock"
DRAFT = re.compile(rf"\.{AVATAR_NAME}-[0-9a-f]{{8}}")
"""The name of a folder while its avatar is being written."""

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this server's to change while inside; it is made if need be, and drafts in it are deleted.

    Raises InputError where another server has it, FolderError where it cannot be written. A file system without locks
    is used all the same, after one warning.
    """
    lock = FileLock(folder / LOCK, mode=0o600)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"avatar_dir is {folder}, where another server takes uploads; stop it, or name another with --avatar-dir"
        ) from None
    except NotImplementedError:
        logger.warning(
            "avatar_dir %s is on a file system without locks; no other server must take uploads there", folder
        )
    except OSError as error:
        mend = "name another with --avatar-dir, or take --allow-avatar-upload off"
        raise FolderError(
            f"avatar_dir is {folder}, which cannot be written: {error.strerror or error}; {mend}"
        ) from error
    try:
        for draft in folder.iterdir():
            if DRAFT.fullmatch(draft.name) and draft.is_dir():
                logger.info("an upload that was cut off is deleted: %s", draft)
                shutil.rmtree(draft, ignore_errors=True)
        yield
    finally:
        lock.release()
