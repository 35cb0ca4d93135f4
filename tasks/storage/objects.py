"""Objects below one root, a folder or a bucket: each is whole or absent, and a create has one winner.

Only two properties of the underlying store are relied on: a PUT is seen whole or not at all, and a small
PUT with `If-None-Match: *` has one winner (every S3 server tried enforces it; conditional multipart
uploads and conditional deletes aren't enforced everywhere and aren't used). On a local disk the same two
come from `rename` and `link`.
"""

import contextlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.artifacts import StoreError
from tasks.secrets import refuse_credentials

# Two layers retry (botocore's attempts times s3fs's own): with the defaults a server that swallows
# packets hangs a read for 413 s. These end it in under two minutes (90 to 113 s, by call), and resets for ever
# in 11 to 26 s. After a long outage botocore has used up its quota of retries and gives up within a second until
# requests succeed again: then a step's own retries carry on. `make drills` tries it.
S3_OPTIONS: dict[str, Any] = {  # Any: keyword arguments of s3fs
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 4},
        "connect_timeout": 3,
        "read_timeout": 10,
    },
    "use_listings_cache": False,
}
S3_RETRIES = 2
_OURS = re.compile(r"[a-z][a-z0-9_]*")
"""The folders directly below a root: steps, and what is kept beside them (runs, lineage)."""


@dataclass(frozen=True)
class Entry:
    """What a listing tells of one object: its size and when it was written, in POSIX seconds of the store's clock."""

    bytes: int
    modified: float


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was neither completed nor aborted: invisible in listings, paid for all the same."""

    path: str
    id: str
    started: float


class Objects:
    """Small objects below a root, and the listing of all. Paths are relative to the root, with forward slashes."""

    def __init__(self, root: str) -> None:
        """Raises `StoreError` when the root isn't a folder or an fsspec URL; nothing is contacted yet.

        Raises `ValueError` for one with credentials in it.
        """
        refuse_credentials(root)
        self.is_s3 = root.startswith(("s3://", "s3a://"))
        try:
            self.fs, base = fsspec.core.url_to_fs(root, **(S3_OPTIONS if self.is_s3 else {}))
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"store {root!r}: expected a folder or an fsspec URL like s3://bucket/prefix; {error}"
            ) from error
        if self.is_s3:
            self.fs.retries = S3_RETRIES
        self.root = root
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self.base = base.rstrip("/")
        if not self.base and not self.is_local:
            raise StoreError(f"store {root!r}: expected a URL like s3://bucket/prefix, found no bucket")
        if self.is_local:
            _check_place(self.base)

    def read(self, path: str) -> bytes | None:
        """The object's bytes, or None when there is none."""
        options = {"max_concurrency": 1} if self.is_s3 else {}  # spares the HEAD before the GET
        with contextlib.suppress(FileNotFoundError), self.allowed(f"read {path}"):
            return bytes(self.fs.cat_file(self._full(path), **options))
        return None

    def create(self, path: str, data: bytes) -> bool:
        """Writes the object unless one is there; whether ours is the one that stands. `data` must name its writer."""
        won = _create_local(Path(self._full(path)), data) if self.is_local else self._create_remote(path, data)
        # A create whose reply was lost is retried by the client and then refused by our own object.
        return won or self.read(path) == data

    def _create_remote(self, path: str, data: bytes) -> bool:
        for pause in (0.1, 0.4, 1.6, None):
            try:
                with self.allowed(f"write {path}"):
                    self.fs.pipe_file(self._full(path), data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                status = _http_status(error)
                if status == 412:
                    return False
                if status != 409 or pause is None:  # 409: another request for this key is under way, nobody has won yet
                    raise
            time.sleep(pause)
        raise AssertionError("unreachable")

    def write(self, path: str, data: bytes) -> None:
        """Writes or replaces a small object, whole."""
        if self.is_local:
            with _written_beside(Path(self._full(path)), data) as temporary:
                temporary.replace(self._full(path))
        else:
            with self.allowed(f"write {path}"):
                self.fs.pipe_file(self._full(path), data)

    def remove(self, path: str) -> None:
        """Removes one object; absent is fine. A local store keeps no folder that this leaves empty."""
        if self.is_local:
            Path(self._full(path)).unlink(missing_ok=True)
            self._remove_empty_parents(path)
            return
        with contextlib.suppress(FileNotFoundError), self.allowed(f"remove {path}"):
            self.fs.rm_file(self._full(path))

    def delete(self, path: str) -> None:
        """Removes an object or everything below a prefix; absent is fine. Raises `OSError` when something stays."""
        full = self._full(path)
        if self.is_local:
            _delete_local(Path(full))
            self._remove_empty_parents(path)
            left = [full] if os.path.lexists(full) else []
        else:
            with contextlib.suppress(FileNotFoundError), self.allowed(f"remove {path}"):
                self.fs.rm(full, recursive=True)
            left = self.fs.find(full)  # a bulk delete answers 200 even where single keys were refused
        if left:
            raise OSError(f"{self.root}: {left[0]} could not be removed")

    def names(self, prefix: str = "", start: str = "") -> list[str]:
        """Names directly below a prefix that begin with `start`, sorted; empty when there is nothing."""
        full = self._full(prefix)
        try:
            if self.is_local:
                return sorted(path.name for path in Path(full).iterdir() if path.name.startswith(start))
            # s3fs lists the parent folder too where a listing is empty, unless it was asked for a beginning
            narrow = {"maxdepth": 1, "prefix": start, "withdirs": True} if self.is_s3 and start else {}
            with self.allowed(f"list {prefix}/"):
                found = self.fs.find(full, **narrow) if narrow else self.fs.ls(full, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {str(name).rstrip("/").removeprefix(full).strip("/") for name in found}
        return sorted(name for name in names if name and name.startswith(start))

    def listing(self) -> dict[str, Entry]:
        """Every object below the root by its path, on a disk also every empty folder, with a slash at its end.

        On a disk, folders directly below the root whose names no store writes (`lost+found`) are passed over.
        What appears or goes meanwhile may be in it or not.
        """
        if self.is_local:
            return dict(_walk(Path(self.base), len(self.base) + 1))
        with self.allowed("list everything"):
            found = self.fs.find(self.base, detail=True)
        return {name.removeprefix(self.base).lstrip("/"): _entry(info) for name, info in found.items()}

    def clock(self) -> float:
        """The store's own time in POSIX seconds: what it stamps on a fresh object. Ages are measured against it."""
        name = f"probe-{uuid.uuid4().hex}"
        self.write(name, b"")
        try:
            if self.is_local:
                return Path(self._full(name)).stat().st_mtime
            if not self.is_s3:
                return _entry(self.fs.info(self._full(name))).modified
            # not a HEAD, which rounds otherwise than the listings that this will be compared to
            (info,) = self.fs.find(self.base, prefix=name, detail=True).values()
            return _entry(info).modified
        finally:
            self.remove(name)

    def unfinished_uploads(self) -> list[Upload]:
        """Multipart uploads below the root that a killed client left; empty for anything but S3."""
        found: list[Upload] = []
        if not self.is_s3:
            return found
        bucket, _, prefix = self.base.partition("/")
        marker: dict[str, str] = {}
        while True:
            where = f"{prefix}/" if prefix else ""
            page = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=where, **marker)
            for upload in page.get("Uploads", []):
                if upload["Key"].startswith(where):
                    path = upload["Key"].removeprefix(where)
                    found.append(Upload(path, upload["UploadId"], upload["Initiated"].timestamp()))
            if not page.get("IsTruncated"):
                return found
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, upload: Upload) -> None:
        """Frees what an unfinished upload holds; one that is gone is fine."""
        bucket, _, key = self._full(upload.path).partition("/")
        with contextlib.suppress(FileNotFoundError):
            self.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.id)

    @contextlib.contextmanager
    def allowed(self, what: str) -> Iterator[None]:
        """Says what was refused: a server's own words are `Access Denied`. Wrap what is asked of the store in it."""
        try:
            yield
        except PermissionError as error:
            if self.is_local:
                raise
            raise PermissionError(
                f"{self.root}: expected to be allowed to {what}, found {error}; check the keys and the bucket's policy"
            ) from error

    def _full(self, path: str) -> str:
        return f"{self.base}/{path}".rstrip("/")

    def _remove_empty_parents(self, path: str) -> None:
        for parent in list(Path(path).parents)[:-1]:
            try:
                Path(self.base, parent).rmdir()
            except OSError:  # not empty, or somebody else was faster
                return


def _check_place(path: str) -> None:
    """Raises `StoreError` unless a folder is there, or nothing yet."""
    try:
        problem = None if stat.S_ISDIR(Path(path).stat().st_mode) else "a file"
    except FileNotFoundError:
        problem = None
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        problem = getattr(error, "strerror", None) or str(error)
    if problem is not None:
        raise StoreError(f"store {path!r}: expected a folder, or a place for one, found {problem}; check the address")


def _delete_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # ignored: what another process removes at the same time
    else:
        path.unlink(missing_ok=True)


def _create_local(path: Path, data: bytes) -> bool:
    with _written_beside(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A file in the folder of `path` with `data` on disk, gone afterwards unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    stream = _open_new(temporary)
    try:
        with stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _open_new(path: Path) -> Any:  # Any: io's classes for binary files share no useful base
    for attempts_left in reversed(range(20)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except (FileNotFoundError, FileExistsError):  # another process finds the new folder empty and removes it
            if not attempts_left:
                raise
    raise AssertionError("unreachable")


def _walk(folder: Path, base_length: int) -> Iterator[tuple[str, Entry]]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    if not entries and len(str(folder)) > base_length:
        with contextlib.suppress(FileNotFoundError):
            yield f"{folder}/"[base_length:], Entry(0, folder.stat().st_mtime)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if len(str(folder)) < base_length and not _OURS.fullmatch(entry.name):
                continue
            yield from _walk(Path(entry.path), base_length)
            continue
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            yield entry.path[base_length:], Entry(status.st_size, status.st_mtime)


def _entry(info: dict[str, Any]) -> Entry:  # Any: what each filesystem tells differs
    modified = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    return Entry(int(info["size"]), float(modified or 0.0))


def _http_status(error: BaseException) -> int | None:
    response = getattr(error.__cause__, "response", None)
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
