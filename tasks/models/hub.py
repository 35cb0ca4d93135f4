"""The Hugging Face hub: which commit a revision is today, and the files of one commit.

Every failure that a user can do something about becomes a `ValueError` with the way out; a hub that can't be
reached becomes a `ConnectionError`, which is worth another try. The endpoint, the token and offline mode are
read from `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` at each call.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.running.transient import is_transient
from tasks.secrets import redact
from tasks.storage.store import Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoKind = Literal["model", "dataset"]
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[\w][\w./+-]*", re.ASCII)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it: its bytes, and its SHA-256 where the hub keeps one (large files)."""

    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit, by file name, and the licence that its card names."""

    files: dict[str, HubFile]
    licence: str | None


def check_repo_id(repo: str) -> str:
    """The id itself. Raises `ValueError` unless it is `name` or `owner/name` as the hub spells them."""
    if not _REPO_ID.fullmatch(repo) or ".." in repo or "--" in repo or len(repo) > 96:
        raise ValueError(
            f"expected a repository as the hub names it, like owner/name, found {repo!r}; for a folder use kind: local"
        )
    return repo


def check_revision(revision: str) -> str:
    """The revision itself. Raises `ValueError` unless it can name a branch, a tag or a commit."""
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"expected a branch, a tag or a commit of 40 hex digits, found {revision!r}")
    return revision


def resolve_commit(kind: RepoKind, repo: str, revision: str, store: Store) -> str:
    """The commit (40 hex digits) that a revision names: itself, or what the hub says.

    Offline, or when the hub can't be reached, it is the commit that `remember_commit` last noted in the store,
    with one warning per process.

    Raises:
        ValueError: no such repository or revision, no access, or offline with nothing remembered.
        ConnectionError: the hub can't be reached and nothing is remembered.
    """
    if COMMIT.fullmatch(revision):
        return revision
    try:
        return _ask_for_commit(kind, repo, revision)
    except ConnectionError as error:
        known = _remembered(kind, repo, store)
        if revision in known:
            _warn_remembered(repo, revision, known[revision], str(error))
            return known[revision]
        if known:
            commits = ", ".join(f"{name} = {commit}" for name, commit in known.items())
            raise ValueError(
                f"{kind} {repo}: expected the hub, or revision {revision!r} in the store, found only {commits}; "
                "name one of these as the revision, or go online"
            ) from error
        if is_offline():
            raise ValueError(
                f"{kind} {repo}: expected revision {revision!r} remembered in the store since HF_HUB_OFFLINE is set, "
                "found nothing; run once online, or use a local folder"
            ) from error
        raise


def remember_commit(kind: RepoKind, repo: str, revision: str, commit: str, store: Store) -> None:
    """Notes in the store what a revision was, for runs without the hub; call it once the files are there."""
    if not COMMIT.fullmatch(revision):
        record = {"kind": kind, "id": repo, "revision": revision, "commit": commit}
        store.write(
            f"{_pins_folder(kind, repo)}/{_short_digest(revision)}.json", json.dumps(record, sort_keys=True).encode()
        )


def list_files(repo: str, commit: str) -> Listing:
    """What a model repository holds at a commit. Raises as `resolve_commit` does."""
    with _explained("model", repo, commit):
        info = connect().model_info(repo, revision=commit, files_metadata=True)
    card = info.card_data.to_dict() if info.card_data else {}
    licence = card.get("license")
    files = {s.rfilename: HubFile(s.size or 0, s.lfs.sha256 if s.lfs else None) for s in info.siblings or ()}
    return Listing(files, licence if isinstance(licence, str) else None)


def read_dataset_licence(repo: str, revision: str) -> str | None:
    """The licence that a data set's card names; None where there is none, or nobody can be asked."""
    try:
        with _explained("dataset", repo, revision):
            info = connect().dataset_info(repo, revision=revision, timeout=10)
    except (ConnectionError, ValueError):
        return None
    licence = (info.card_data.to_dict() if info.card_data else {}).get("license")
    found = licence[0] if isinstance(licence, list) and licence else licence
    return found if isinstance(found, str) else None


def download_files(repo: str, commit: str, files: dict[str, HubFile], folder: Path, progress: Progress) -> None:
    """Brings files of a model repository into `folder`, under their names; those that are there already are kept.

    A connection that breaks is resumed where it broke. Safe to call again after an interruption, and from
    several processes on one folder.

    Raises:
        ValueError: no access, or a name that the repository doesn't have.
        OSError: the connection failed for good, the disk is full, or a file came with other content than listed.
    """
    from huggingface_hub import hf_hub_download

    total, done = sum(f.bytes for f in files.values()), 0
    for name, file in files.items():
        with _explained("model", repo, commit):
            bar = _bar_class(done, total, progress)
            path = hf_hub_download(repo, name, revision=commit, local_dir=folder, endpoint=_endpoint(), tqdm_class=bar)
        _check_content(Path(path), file)
        done += file.bytes
        progress(done, total)


def _check_content(path: Path, file: HubFile) -> None:
    if file.sha256 is None:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        path.unlink()  # or the next attempt would keep it
        raise OSError(
            f"{path.name}: expected sha256 {file.sha256[:12]}... as the hub lists it, found {found[:12]}...; "
            "run again to download it again"
        )


def connect() -> "HfApi":
    """The library's client for the endpoint and token of the environment."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _endpoint() -> str | None:
    # huggingface_hub reads the variable when it is imported, which may be before the user's code sets it
    return os.environ.get("HF_ENDPOINT")


def is_offline() -> bool:
    """Whether the user wants nothing asked of the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _ask_for_commit(kind: RepoKind, repo: str, revision: str) -> str:
    if is_offline():
        raise ConnectionError("HF_HUB_OFFLINE is set")
    with _explained(kind, repo, revision):
        info = connect().repo_info(repo, repo_type=kind, revision=revision, timeout=10)
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise ValueError(
            f"{kind} {repo}: expected a commit of 40 hex digits from the hub, found {info.sha!r}; check HF_ENDPOINT"
        )
    return str(info.sha)


@contextlib.contextmanager
def _explained(kind: RepoKind, repo: str, revision: str) -> Iterator[None]:
    """Turns the hub's errors within the block into sentences that say what to do."""
    from huggingface_hub import errors

    if is_offline():
        raise ValueError(f"{kind} {repo} at {revision}: not in the store, and HF_HUB_OFFLINE is set; run once online")
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{kind} {repo}: expected a branch, tag or commit, found no revision {revision!r}; see {page}"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(
            f"{kind} {repo}: a file that its listing names is missing at {revision}; see {page}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if isinstance(error, errors.GatedRepoError) or status == 403:
            raise ValueError(
                f"{kind} {repo}: its owner must grant access, found HTTP {status}; "
                f"accept the licence at {page} and set HF_TOKEN"
            ) from error
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            raise ValueError(
                f"{kind} {repo}: no such repository for this user, found HTTP {status}; check the id at {page}, "
                "and set HF_TOKEN if it is private"
            ) from error
        raise
    except Exception as error:
        if is_unreachable(error):
            raise ConnectionError(f"{kind} {repo}: the hub can't be reached: {_first_line(error)}") from error
        raise


def is_unreachable(error: BaseException) -> bool:
    """Whether the network failed, and not what was asked."""
    # The hub's HTTP client differs between its versions; in all of them what the network did is a TransportError.
    names = {parent.__name__ for parent in type(error).__mro__}
    return bool(names & {"TransportError", "OfflineModeIsEnabled"}) or is_transient(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__


# ---- revisions remembered in the store -------------------------------------------------------------------


def _remembered(kind: RepoKind, repo: str, store: Store) -> dict[str, str]:
    """Commit per revision of a repository, as noted in the store."""
    folder = _pins_folder(kind, repo)
    bodies = (store.read(f"{folder}/{name}") for name in store.names(folder))
    records = [json.loads(body) for body in bodies if body is not None]
    return {record["revision"]: record["commit"] for record in records if record["id"] == repo}


def _pins_folder(kind: RepoKind, repo: str) -> str:
    return f"pins/{kind}-{_short_digest(repo)}"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _warn_remembered(repo: str, revision: str, commit: str, reason: str) -> None:
    _log.warning(
        "%s: using commit %s, which %r was when it was last downloaded (%s)", repo, commit[:12], revision, reason
    )


def _bar_class(
    done: int, total: int, progress: Progress
) -> Any:  # Any: the library takes a class with tqdm's interface
    """A class in tqdm's place that draws nothing and tells the bytes of all files together."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.received = done + int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self.received += int(n or 0)
            progress(min(self.received, total), total)

    return Bar
