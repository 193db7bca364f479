"""The few exception classes. Each message is one sentence for a user: the key, the value and the mend.

The edges turn them into what a user sees: ``server.py`` and the command line into an exit code, ``web`` into an HTTP
status. Nothing below the edges knows of either.
"""

from __future__ import annotations

import errno


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


class EchoRtcError(Exception):
    """Base of all errors whose message is meant for a user."""


class SettingsError(EchoRtcError):
    """A flag, environment variable or YAML key is unknown or has an impossible value."""


class InputError(EchoRtcError):
    """A file or folder given by a user is missing, unreadable or not what it should be."""


class OfferError(EchoRtcError):
    """A session description that cannot be read."""


class UnsupportedMediaError(OfferError):
    """A readable session description that offers nothing this server can use."""


class RetryableError(EchoRtcError):
    """Refused for now; the caller may try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CapacityError(RetryableError):
    """The server is full; the caller may try again after ``retry_after_s`` seconds."""


class TooManyError(CapacityError):
    """One client asks for more at once than it may; others are served."""


class StoppingError(CapacityError):
    """The server is stopping and takes nothing new."""


class BusyError(CapacityError):
    """One thing of the kind is done at a time, and one is being done now."""


class NameTakenError(RetryableError):
    """The name has a publisher; it may be free after ``retry_after_s`` seconds."""


class NotLiveError(RetryableError):
    """The name has no publisher now; it may have one after ``retry_after_s`` seconds."""


class UnknownStreamError(EchoRtcError):
    """There is no stream of this id."""


class UnknownAvatarError(EchoRtcError):
    """There is no avatar of this name."""


class AvatarConflictError(EchoRtcError):
    """An avatar cannot be added or deleted as things stand: its name or the last place is taken, or it is in use."""


class ConflictError(EchoRtcError):
    """The resource exists already, or its number is limited and the limit is reached."""


class OutputRefusedError(EchoRtcError):
    """An output that cannot be, or must not be."""


class StorageError(EchoRtcError):
    """The server cannot keep something: the disk is full."""


class FolderError(StorageError):
    """The server cannot keep something for another reason than a full disk, which its operator has to mend."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def storage_error(message: str, error: OSError) -> StorageError:
    """The error of a folder that could not be read or written, ``message`` saying which."""
    kind = StorageError if error.errno in _FULL else FolderError
    return kind(f"{message}: {error.strerror or error}")


class IceRestartError(EchoRtcError):
    """ICE candidates of another ICE session than the one that was agreed on, which goes on."""


class RenegotiationError(EchoRtcError):
    """A further offer of a connection that is up, which goes on as it is."""


class AddressError(EchoRtcError):
    """The address of another server that cannot be read, or that the operator does not allow."""


class TicketError(EchoRtcError):
    """An access token for another server that cannot be good for what is asked."""


class RoomError(EchoRtcError):
    """A room of another server cannot be joined."""


class RemoteError(EchoRtcError):
    """A server of this kind elsewhere refuses, or does not answer."""


class RenderError(EchoRtcError):
    """A clip could not be rendered: its worker failed, exited or took too long. The stream continues without it."""


class LateError(RenderError):
    """A clip was not begun, because it could not have been there in time."""
