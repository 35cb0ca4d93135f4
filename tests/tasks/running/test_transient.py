"""Retries are for the world: connections, time-outs, 5xx, a full device; never for bad input or bugs."""

import errno
import json

import botocore.exceptions
import httpx
import pytest
import torch
from aiohttp import ClientPayloadError, ServerDisconnectedError

from tasks.artifacts import StoreError
from tasks.running.transient import find_full_disk, is_transient


def s3_error(status: int, code: str = "") -> botocore.exceptions.ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "GetObject")


def http_error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status, request=request))


def caused_by(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


WORLD = [
    ConnectionResetError("reset"),
    TimeoutError("slow"),
    BrokenPipeError(errno.EPIPE, "pipe"),
    OSError("the disk hiccuped"),
    OSError(errno.EIO, "input/output error"),
    OSError(errno.ESTALE, "stale handle"),
    ServerDisconnectedError(),
    ClientPayloadError("cut"),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1"),
    botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    torch.OutOfMemoryError("CUDA out of memory"),
    *(s3_error(status) for status in (408, 429, 500, 502, 503, 504)),
    http_error(503),
    caused_by(OSError(errno.EBUSY, "slow down"), s3_error(503)),
    caused_by(OSError(errno.EINVAL, "the CRC32 did not match"), s3_error(400, "BadDigest")),
    botocore.exceptions.FlexibleChecksumError(error_msg="an answer changed on its way"),
    caused_by(FileNotFoundError("not in the cache"), httpx.ConnectError("refused")),
]
FINAL = [
    ValueError("bad recipe"),
    TypeError("a bug"),
    KeyError("a bug"),
    RuntimeError("shapes differ"),
    StoreError("damaged"),
    json.JSONDecodeError("bad", "", 0),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    FileNotFoundError("s3fs gives no errno"),
    FileNotFoundError(errno.ENOENT, "no such file"),
    PermissionError("access denied"),
    IsADirectoryError(errno.EISDIR, "a folder"),
    OSError(errno.ENOSPC, "no space left on device"),
    OSError(errno.EDQUOT, "quota exceeded"),
    OSError(errno.EROFS, "read-only"),
    *(s3_error(status) for status in (400, 403, 404, 412)),
    http_error(401),
    caused_by(PermissionError("denied"), s3_error(403)),
    caused_by(OSError("bad config.json"), json.JSONDecodeError("bad", "", 0)),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", WORLD, ids=repr)
def test_the_world_is_worth_another_try(error: BaseException) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_the_same_request_would_fail_again(error: BaseException) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "model.safetensors"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("the child ended: Traceback\n  File x\nRuntimeError: [enforce fail] unexpected pos 64 vs 0\n"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        caused_by(ValueError("could not save"), OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_is_found_whoever_tells_it_and_never_retried(error: Exception) -> None:
    line = find_full_disk(error)
    assert line is not None
    assert "\n" not in line
    assert not is_transient(error)


@pytest.mark.parametrize("error", [ValueError("no space between words"), OSError(errno.EIO, "input/output error")])
def test_another_error_is_no_full_disk(error: Exception) -> None:
    assert find_full_disk(error) is None
