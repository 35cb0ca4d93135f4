"""Writing to the Hugging Face hub: one commit with all files of a model, or none."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.models.hub import connect, is_offline, is_unreachable


@dataclass(frozen=True)
class Upload:
    """Where a commit goes and what it says.

    find_stale: which of the branch's files it removes; asked when the branch is there.
    """

    repo: str
    branch: str
    private: bool
    message: str
    find_stale: Callable[[Iterable[str]], Iterable[str]]


def read_file(repo: str, branch: str, name: str) -> bytes | None:
    """A small file of a repository; None where the file, the branch or the repository isn't there."""
    from huggingface_hub import errors

    absent = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)
    with _explained(repo):
        try:
            return _read(repo, branch, name)
        except absent:
            return None


def commit_files(upload: Upload, files: Mapping[str, Path]) -> str:
    """Commits the files to the branch, which is made where there is none; the commit's page.

    Raises:
        ValueError: the hub doesn't let this user write there, or is not to be asked (HF_HUB_OFFLINE).
        OSError: the hub can't be reached, or an upload broke.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api = connect()
    with _explained(upload.repo):
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        if upload.branch != "main":
            api.create_branch(upload.repo, branch=upload.branch, exist_ok=True)
        there = [file.rfilename for file in api.model_info(upload.repo, revision=upload.branch).siblings or ()]
        stale = [CommitOperationDelete(name) for name in upload.find_stale(there)]
        added = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        commit = api.create_commit(upload.repo, [*added, *stale], commit_message=upload.message, revision=upload.branch)
    return str(commit.commit_url)


def _read(repo: str, branch: str, name: str) -> bytes:
    import tempfile

    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as folder:
        endpoint = os.environ.get("HF_ENDPOINT")
        return Path(hf_hub_download(repo, name, revision=branch, local_dir=folder, endpoint=endpoint)).read_bytes()


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the hub answers within the block into sentences that say what to do."""
    from huggingface_hub import errors

    if is_offline():
        raise ValueError(f"hf://{repo}: expected to reach the hub, found HF_HUB_OFFLINE set; unset it to publish there")
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403, 404):  # to who may not see it a private repository isn't there
            raise ValueError(
                f"hf://{repo}: expected a token that may write there, found HTTP {status}; set HF_TOKEN to one that may"
            ) from error
        if isinstance(cause, errors.HfHubHTTPError) or is_unreachable(cause):
            raise ConnectionError(
                f"hf://{repo}: the hub did not take everything: {_first_line(cause)}; publish again"
            ) from error
        raise


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
