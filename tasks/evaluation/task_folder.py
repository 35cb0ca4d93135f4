"""Tasks of one's own: a folder, here or behind a URL, with YAML as lm-evaluation-harness reads it, and its data."""

import hashlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import yaml

_DATA_FORMATS = {"json", "csv", "parquet", "text", "arrow"}  # dataset_path of files; all others name the hub
_MAX_BYTES = 2**30


@dataclass(frozen=True)
class TaskFolder:
    """What a folder of tasks holds.

    names: of its tasks, groups and tags. files: SHA-256 of everything below the folder and of the files
    elsewhere that its YAML names, by path. runs_code: a task that calls Python. needs_hub: one whose data aren't files.
    """

    names: tuple[str, ...]
    files: dict[str, str]
    runs_code: bool
    needs_hub: bool

    @property
    def digest(self) -> str:
        """SHA-256 over names and contents."""
        return hashlib.sha256("".join(f"{n}\0{d}\n" for n, d in sorted(self.files.items())).encode()).hexdigest()


def read_task_folder(url: str) -> TaskFolder:
    """What the folder holds. Raises `ValueError` for one that is missing, too large, without a task, or malformed."""
    contents = _read_all(url)
    sheets = {name: _parse(url, name, body) for name, body in contents.items() if _is_yaml(name)}
    names = [n for sheet in sheets.values() for key in ("task", "group", "tag") for n in _strings(sheet.get(key))]
    if not names:
        raise ValueError(f"tasks {url}: expected YAML files with a `task`, found none in {len(contents)} files")
    digests = {name: hashlib.sha256(body).hexdigest() for name, body in contents.items()}
    for name, sheet in sheets.items():
        for path in _files_named(sheet, name):
            if path not in digests:
                digests[path] = _digest_elsewhere(url, name, path)
    paths = {sheet.get("dataset_path", "json") for sheet in sheets.values()}
    return TaskFolder(
        names=tuple(dict.fromkeys(names)),
        files=digests,
        runs_code=any(isinstance(text, _Tagged) for sheet in sheets.values() for text in _strings(sheet)),
        needs_hub=not paths <= _DATA_FORMATS,
    )


def bring_task_folder(url: str, target: Path) -> Path:
    """A local folder with the tasks: the folder itself, or a copy of a remote one below `target`."""
    if "://" not in url:
        return Path(url).expanduser().resolve()
    for name, body in _read_all(url).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return target


def _read_all(url: str) -> dict[str, bytes]:
    """The contents of all files below the folder, hidden ones and bytecode left out, by relative path."""
    fs, base = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
    found = fs.find(base, detail=True)
    if not found or base in found:
        raise ValueError(f"tasks {url}: expected a folder, found {'a file' if found else 'nothing there'}")
    relative = {path: PurePosixPath(path).relative_to(base) for path in found}
    kept = {p: r for p, r in relative.items() if not any(part.startswith((".", "__pycache__")) for part in r.parts)}
    if (size := sum(found[path]["size"] for path in kept)) > _MAX_BYTES:
        raise ValueError(
            f"tasks {url}: expected at most {_MAX_BYTES:,} bytes, found {size:,}; give tasks their own folder"
        )
    return {str(kept[path]): fs.cat_file(path) for path in sorted(kept)}


def _is_yaml(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or PurePosixPath(name).suffix == ""  # harness templates have no ending


class _Tagged(str):
    """What stands behind a tag: the harness imports what `!function` names, here it is text."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    """Imports nothing to look at a task. A tag is told after it was resolved, however it was written."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: _Tagged(node.value))


def _parse(url: str, name: str, body: bytes) -> dict[str, Any]:  # Any: parsed YAML
    try:
        value = yaml.load(body, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if not name.endswith((".yaml", ".yml")):
            return {}
        raise ValueError(f"tasks {url}: {name} is not YAML: {' '.join(str(error).split())[:200]}") from None
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> list[str]:  # Any: parsed YAML
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _strings(item)]


def _files_named(sheet: dict[str, Any], name: str) -> Iterator[str]:  # Any: parsed YAML
    """Paths of data (relative to the folder, where the child works) and of included YAML (relative to its sheet)."""
    keywords = sheet.get("dataset_kwargs") or {}
    paths = _strings(keywords.get("data_files"))
    paths += [str(PurePosixPath(name).parent / text) for text in _strings(sheet.get("include"))]
    yield from (path if "://" in path else posixpath.normpath(path) for path in paths)


def _digest_elsewhere(url: str, name: str, path: str) -> str:
    """The digest of a file that doesn't lie below the folder."""
    if "*" in path:
        raise ValueError(f"tasks {url}: {name} names {path!r}; expected files one by one, so that each can be checked")
    place = path if "://" in path or path.startswith("/") else f"{url.rstrip('/')}/{path}"
    try:
        with fsspec.open(place, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError as error:
        raise ValueError(
            f"tasks {url}: {name} names the file {path!r}, found none that can be read ({type(error).__name__})"
        ) from None
