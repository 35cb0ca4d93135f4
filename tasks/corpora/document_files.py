"""Files with documents, by path, glob or fsspec URL: which there are, what is in them today, and reading them.

Compressed ones (.gz, .bz2, .xz, .zst) are read as what is inside. Listings are never taken from a cache: a file that
was added or replaced since this process began is seen.
"""

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tasks.running.transient import is_transient
from tasks.storage.objects import S3_OPTIONS

FileFormat = Literal["text", "jsonl", "parquet"]
Row = dict[str, object]
_ROWS_AT_ONCE = 1024
_SETTLED_NS = 2_000_000_000  # file systems tell times no finer than this: a file touched later may change unseen
_remembered: dict[str, tuple[tuple[int, ...], str]] = {}


def expand_paths(paths: Iterable[str]) -> list[str]:
    """Every file that the paths and globs name, sorted within each; folders that a glob names are passed over.

    Raises `ValueError` when one of them names no file.
    """
    found = []
    for path in paths:
        with _explained(f"corpus.documents.paths: expected files at {path!r}, found", all_theirs=True):
            fs, plain = _open_filesystem(path)
            matches = fs.glob(plain, detail=True) if fsspec.core.has_magic(plain) else _listed(fs, plain)
            files = sorted(name for name, info in matches.items() if info["type"] == "file" or not fs.isdir(name))
        if not files:
            what = "folders alone; name the files in them, as in texts/*.txt" if matches else "none; check the path"
            raise ValueError(f"corpus.documents.paths: expected files at {path!r}, found {what}")
        found += [fs.unstrip_protocol(name) for name in files]
    return found


def content_mark(path: str, *, anew: bool = False) -> str:
    """What stands for the file's content: its ETag where the store keeps one, else its SHA-256.

    A local file is read once per process, until its size, times or inode change. anew: it is read in any case.
    Raises `ValueError` where it can't be read.
    """
    with _explained(f"{path}: expected a file that can be read, found"):
        fs, plain = _open_filesystem(path)
        if etag := fs.info(plain).get("ETag"):
            return f"etag:{etag}"
        return _mark_local(fs, plain, anew) if isinstance(fs, LocalFileSystem) else _digest(fs, plain)


def _mark_local(fs: LocalFileSystem, plain: str, anew: bool) -> str:
    found = Path(plain).stat()
    state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    known = _remembered.get(plain)
    if known is not None and known[0] == state and not anew:
        return known[1]
    is_settled = max(found.st_mtime_ns, found.st_ctime_ns) < time.time_ns() - _SETTLED_NS
    mark = _digest(fs, plain)
    _remembered.pop(plain, None)
    if is_settled:
        _remembered[plain] = state, mark
    return mark


def _digest(fs: Any, plain: str) -> str:  # Any: fsspec has no types
    with fs.open(plain, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _listed(fs: Any, plain: str) -> dict[str, Any]:  # Any: fsspec has no types
    with contextlib.suppress(FileNotFoundError):
        return {plain: fs.info(plain)}
    return {}


def read_text(path: str) -> str:
    """The whole file. Raises `ValueError` where it isn't UTF-8."""
    with _explained(f"{path}: expected a file of text, found none that can be read:"), _open(path) as stream:
        data = bytes(stream.read())
    return _decode(data, path)


def read_rows(path: str, kind: Literal["jsonl", "parquet"], columns: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a file, with these columns of them and perhaps others; a few at a time are in memory.

    Raises `ValueError` where the file isn't what it is said to be.
    """
    with _explained(f"{path}: expected {kind} with UTF-8 text, found none that can be read:"):
        yield from _read_jsonl(path) if kind == "jsonl" else _read_parquet(path, columns)


def _read_jsonl(path: str) -> Iterator[Row]:
    with _open(path) as stream:
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            place = f"{path}, line {number + 1}"
            try:
                row = json.loads(_decode(line, place))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{place}: expected a JSON object per line (jsonl), found {error.msg} at column {error.colno}"
                ) from error
            except RecursionError as error:
                raise ValueError(
                    f"{place}: expected a JSON object per line (jsonl), found one nested too deep to be read; mend or "
                    "remove it"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{place}: expected a JSON object per line (jsonl), found {type(row).__name__}")
            yield row


def _read_parquet(path: str, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with _open(path) as stream:
        file = pq.ParquetFile(stream)
        known = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=known if len(known) == len(columns) else None):
            yield from batch.to_pylist()


@contextlib.contextmanager
def _explained(expected: str, *, all_theirs: bool = False) -> Iterator[None]:
    """Turns what readers, addresses and compressions raise, each its own, into a sentence for users."""
    try:
        yield
    except Exception as error:
        is_ours = type(error) is ValueError and not all_theirs  # readers' are of derived types
        is_of_format = isinstance(error, OSError) and error.errno is None and error.__cause__ is None  # gzip, bz2
        if is_ours or (is_transient(error) and not is_of_format):
            raise
        raise ValueError(f"{expected} {' '.join(str(error).split())[:300]}") from error


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert the file first"
        ) from error


def _open(path: str) -> Any:  # Any: fsspec's open files share no type with io's
    fs, plain = _open_filesystem(path)
    if PurePosixPath(plain).suffix in (".zst", ".zstd"):
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(
                f"{path}: reading .zst files needs the package zstandard; pip install 'llm-fuse[corpora]'"
            ) from error
        reader = zstandard.ZstdDecompressor().stream_reader(fs.open(plain, "rb"), read_across_frames=True)
        return io.BufferedReader(reader)
    return fs.open(plain, "rb", compression="infer")


def _open_filesystem(path: str) -> tuple[Any, str]:  # Any: fsspec has no types
    fs, plain = fsspec.core.url_to_fs(path, **(S3_OPTIONS if path.startswith(("s3://", "s3a://")) else {}))
    fs.invalidate_cache()
    return fs, cast(str, plain)
