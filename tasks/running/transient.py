"""Which failures are the world's, and so worth another try."""

import errno
import re

# Of OSError, these say something about the request itself: asking again gives the same answer.
_FINAL_ERRORS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_FINAL_ERRNOS = {errno.EDQUOT, errno.EFBIG, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS}
_RETRIED_STATUS = {408, 429, 500, 502, 503, 504}
# S3 answers 400 to these, which say that the request didn't arrive as it was sent.
_RETRIED_CODES = {
    "BadDigest",
    "IncompleteBody",
    "RequestTimeout",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
# A full disk in the words of the system, of Rust's libraries, and of torch.save, which gives no reason.
_FULL = re.compile(r".*(No space left on device|Disk quota exceeded|PytorchStreamWriter failed|unexpected pos \d+).*")
# The roots of each client's errors about connections, and of a device's about its memory.
_RETRIED_NAMES = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "ConnectionError",  # the built-in one and requests
    "FlexibleChecksumError",  # botocore: an answer's bytes changed on their way
    "HTTPClientError",  # botocore
    "IncompleteReadError",
    "OutOfMemoryError",  # torch
    "Timeout",  # requests
    "TimeoutError",
    "TransportError",  # httpx
}


def is_transient(error: BaseException) -> bool:
    """Whether the same call may go through later: connections, time-outs, 5xx, a device out of memory.

    Clients' errors are told by name and status, so that this module needs none of their packages. An
    `OSError` that was raised from another error counts as that error. Bad input (`ValueError`), missing
    files and full disks are never transient.
    """
    if isinstance(error, ValueError):
        return False
    status = _status_of(error)
    if status is not None:
        return status in _RETRIED_STATUS or _code_of(error) in _RETRIED_CODES
    if any(kind.__name__ in _RETRIED_NAMES for kind in type(error).__mro__):
        return True
    if not isinstance(error, OSError):
        return False
    if error.__cause__ is not None:
        return is_transient(error.__cause__)
    return not isinstance(error, _FINAL_ERRORS) and error.errno not in _FINAL_ERRNOS


def find_full_disk(error: BaseException) -> str | None:
    """The line of an error, or of what caused it, that says that a disk is full; None where nothing does."""
    cause: BaseException | None = error
    while cause is not None:
        if (line := _FULL.search(str(cause))) is not None:
            return line[0].strip()
        cause = cause.__cause__ or cause.__context__
    return None


def _status_of(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _code_of(error: BaseException) -> object:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
