"""The artifact store: results below one root that are published whole, only once, and checked when they are read.

    {root}/{step}/{fingerprint}/{attempt}/...      data files, written first, under a name of their own
    {root}/{step}/{fingerprint}/MANIFEST.json      written last, create-only: the commit mark

What the root must be able to do is in `tasks.storage.objects`.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.artifacts import FileFact, Manifest, Ref, Runtime, StoreError
from tasks.storage.objects import Objects

MANIFEST = "MANIFEST.json"
IN_USE_SECONDS = 600.0
"""What was fetched this recently is never evicted from the local cache: somebody may be about to open it."""
READS = 3
"""How often a remote store is asked for what isn't what it must be: bytes also change on their way."""
PART = ".part"
PART_SECONDS = 86400.0
"""A download in which nothing was written for so long belongs to a killed process."""
ABANDONED_SECONDS = 7 * 86400.0
"""An attempt's folder in the local cache in which nothing was written for so long belongs to a killed process."""


def open_store(runtime: Runtime) -> "Store":
    """The store of this runtime; one instance per root and process."""
    root = runtime.root if "://" in runtime.root else str(Path(runtime.root).expanduser().absolute())
    cache = None if runtime.cache_dir is None else str(Path(runtime.cache_dir).expanduser().absolute())
    return _open(root, cache, runtime.cache_bytes)


@functools.lru_cache(maxsize=8)
def _open(root: str, cache_dir: str | None, cache_bytes: int) -> "Store":
    return Store(root, cache_dir=cache_dir, cache_bytes=cache_bytes)


class Store(Objects):
    """Artifacts below one root. Methods raise `StoreError` with a sentence for users, or the client's error."""

    def __init__(self, root: str, *, cache_dir: str | None = None, cache_bytes: int = 50 * 10**9) -> None:
        super().__init__(root)
        default_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-fuse"
        namespace = hashlib.sha256(root.encode()).hexdigest()[:12]
        self.cache = Path(cache_dir or default_cache) / namespace
        self.cache_bytes = cache_bytes
        self._verified: dict[Path, tuple[int, int, str]] = {}

    # ---- reading -----------------------------------------------------------------------------------

    def manifest(self, ref: Ref) -> Manifest | None:
        """The commit mark, or None when the artifact isn't there."""
        for reads_left in reversed(range(1 if self.is_local else READS)):
            data = self.read(f"{ref.address}/{MANIFEST}")
            try:
                return None if data is None else Manifest.from_json(data, ref.address)
            except StoreError:
                if not reads_left:
                    raise
        raise AssertionError("unreachable")

    def fetch(self, ref: Ref, names: Iterable[str] | None = None) -> Path:
        """A local folder with the artifact's files (or the named ones), each checked against its size and SHA-256.

        On a local store it is the artifact's own folder; otherwise a bounded cache.
        Raises `StoreError` when the artifact or a file is missing or differs from its manifest.
        """
        manifest = self.manifest(ref)
        if manifest is None:
            raise StoreError(f"{ref}: no such artifact in {self.root}; run the step again to recompute it")
        wanted = manifest.files if names is None else {name: _file_of(manifest, name) for name in names}
        return self.bring(ref.address, wanted) / manifest.owner

    def bring(self, address: str, files: Mapping[str, FileFact]) -> Path:
        """The local folder of an address, in which these files lie, each checked against its size and SHA-256.

        All of them are in use when this returns, however long the first of them have been there.
        Raises `StoreError` when one is missing or differs.
        """
        home = Path(self.base) if self.is_local else self.cache / "files"
        brought: list[Path] = []
        grown, used = False, time.monotonic()
        for name, fact in files.items():
            file = home / address / fact.path
            problem = self._problem(file, fact)
            grown = grown or (problem is not None and not self.is_local)
            for _ in range(0 if self.is_local else READS):
                problem = problem and self._download(f"{address}/{fact.path}", file, fact)
            if problem is not None:
                raise StoreError(f"{address}/{name}: {problem}; delete the folder {address} to recompute it")
            brought.append(file)
            if not self.is_local and time.monotonic() - used > IN_USE_SECONDS / 10:
                _mark_used(brought)  # other processes evict meanwhile, too
                used = time.monotonic()
        if grown:
            _mark_used(brought)
            self._evict(frozenset(brought))
        return home / address

    def damage(self, manifest: Manifest) -> list[str]:
        """One sentence per file of the artifact that is missing or differs from its manifest; empty when whole."""
        found = []
        for name, fact in manifest.files.items():
            try:
                with self.fs.open(f"{self.base}/{manifest.ref.address}/{fact.path}", "rb") as stream:
                    problem = _difference(fact, *_digest(stream))
            except FileNotFoundError:
                problem = "missing"
            if problem is not None:
                found.append(f"{manifest.ref.address}/{name}: {problem}")
        return found

    # ---- writing -----------------------------------------------------------------------------------

    def scratch(self, address: str, owner: str) -> Path:
        """An empty private folder for one attempt's data files (on a local store: where they will stay)."""
        folder = Path(self.base) / address / owner if self.is_local else self.cache / "attempts" / owner
        if not self.is_local:
            self._clear_abandoned()
        folder.mkdir(parents=True)
        return folder

    def upload(self, folder: Path, address: str, owner: str) -> dict[str, FileFact]:
        """Facts of every file of an attempt's folder, in name order, after bringing them to the store for good."""
        facts = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as stream:
                size, digest = _digest(stream)
                if self.is_local:
                    os.fsync(stream.fileno())  # or a power cut could keep the manifest and lose the data
            facts[name] = FileFact(path=f"{owner}/{name}", bytes=size, sha256=digest)
            if not self.is_local:
                with self.allowed(f"write {address}/{owner}/{name}"):
                    self.fs.put_file(str(path), f"{self.base}/{address}/{owner}/{name}")
        return facts

    def commit(self, manifest: Manifest, folder: Path) -> bool:
        """Publishes an attempt's uploaded folder; False when another attempt was first, and then ours is gone.

        After an error the outcome is unknown, so everything stays where it is; garbage collection knows what to do.
        """
        address, owner = manifest.ref.address, manifest.owner
        won = self.create(f"{address}/{MANIFEST}", manifest.to_json())
        with contextlib.suppress(OSError):  # clearing up must not fail what is published
            if not won:
                self.discard(folder, address, owner)
            elif not self.is_local:  # what was made here need not be fetched
                home = self.cache / "files" / address / owner
                home.parent.mkdir(parents=True, exist_ok=True)
                folder.replace(home)
                self._evict()
        return won

    def withdraw(self, manifest: Manifest) -> None:
        """Removes an artifact: its commit mark first, so that a killed removal leaves garbage and never a false hit."""
        self.remove(f"{manifest.ref.address}/{MANIFEST}")
        self.delete(f"{manifest.ref.address}/{manifest.owner}")

    def discard(self, folder: Path, address: str, owner: str) -> None:
        """Removes what an attempt left; never for one that may have been committed."""
        shutil.rmtree(folder, ignore_errors=True)
        self.delete(f"{address}/{owner}")

    def probe(self, needed_bytes: int = 0) -> None:
        """Raises `StoreError` unless the store keeps and protects objects and (local) has `needed_bytes` free."""
        name = f"probe-{uuid.uuid4().hex}"
        try:
            created, replaced = self.create(name, b"first"), self.create(name, b"second")
            back = self.read(name)
            self.remove(name)
        except Exception as error:  # any client's error means the same here: this store can't be used
            raise StoreError(
                f"store {self.root}: expected a place that can be written and read, found {_one_line(error)}; "
                "check the address, its credentials and permissions"
            ) from error
        if not created or replaced or back != b"first":
            raise StoreError(
                f"store {self.root}: expected a second create of one object to be refused, found that it replaced "
                "the first (If-None-Match is ignored); use another server, or runs could overwrite each other"
            )
        if self.is_local and (free := shutil.disk_usage(self.base).free) < needed_bytes:
            raise StoreError(
                f"store {self.root}: the run needs about {needed_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "free some space or choose another root"
            )

    # ---- the local cache of a remote store ---------------------------------------------------------

    def _problem(self, file: Path, fact: FileFact) -> str | None:
        """What is wrong with a local file; contents are hashed once per process and file state."""
        try:
            status = file.stat()
            seen = (status.st_size, status.st_mtime_ns, fact.sha256)
            if self._verified.get(file) != seen:
                with file.open("rb") as stream:
                    if (problem := _difference(fact, *_digest(stream))) is not None:
                        return problem
                self._verified[file] = seen
            if not self.is_local:
                _mark_used([file])
        except FileNotFoundError:
            return "missing"
        return None

    def _download(self, path: str, file: Path, fact: FileFact) -> str | None:
        """What is wrong with the object; None once it lies in the cache, checked."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}{PART}")
        try:
            with self.allowed(f"read {path}"):
                self.fs.get_file(f"{self.base}/{path}", str(partial))
            problem = self._problem(partial, fact)
            if problem is None:
                partial.replace(file)
                self._verified[file] = self._verified.pop(partial)
            return problem
        except FileNotFoundError:
            return f"missing in {self.root}"
        finally:
            partial.unlink(missing_ok=True)

    def _evict(self, needed: frozenset[Path] = frozenset()) -> None:
        """Unlinks what was used longest ago until the cache fits `cache_bytes`, or all that is left is in use.

        Open and mapped files keep their contents. What is `needed`, what was fetched in the last `IN_USE_SECONDS` and
        what is being downloaded stays, even above the bound.
        """
        files, total, now = [], 0, time.time()
        for path in _files_below(self.cache / "files"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                total += status.st_size
                age = now - max(status.st_atime, status.st_mtime)  # writing moves only the latter
                if path not in needed and age >= (PART_SECONDS if path.suffix == PART else IN_USE_SECONDS):
                    files.append((age, status.st_size, path))
        excess = total - self.cache_bytes
        for _, size, path in sorted(files, reverse=True):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _clear_abandoned(self) -> None:
        for folder in (self.cache / "attempts").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                newest = max(p.stat().st_mtime for p in (folder, *folder.rglob("*")))
                if newest < time.time() - ABANDONED_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _mark_used(files: Iterable[Path]) -> None:
    """Their access time is now; that of writing stays, by which a checked file is known."""
    for file in files:
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def _file_of(manifest: Manifest, name: str) -> FileFact:
    if name not in manifest.files:
        raise StoreError(f"{manifest.ref}: expected a file {name!r}, found {', '.join(manifest.files) or 'none'}")
    return manifest.files[name]


def _digest(stream: Any) -> tuple[int, str]:  # Any: fsspec's open files share no type with io's
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def _difference(fact: FileFact, size: int, digest: str) -> str | None:
    if size != fact.bytes:
        return f"expected {fact.bytes} bytes, found {size}"
    if digest != fact.sha256:
        return f"expected sha256 {fact.sha256[:12]}..., found {digest[:12]}..."
    return None


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
