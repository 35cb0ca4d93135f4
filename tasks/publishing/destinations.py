"""Where a model is published: a folder or bucket, or a repository of the Hugging Face hub."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from fusion_core.spec import Spec
from tasks.models.folders import CONFIG
from tasks.models.hub import check_repo_id, check_revision
from tasks.models.hub_upload import Upload, commit_files, read_file
from tasks.models.weight_files import WEIGHTS_INDEX
from tasks.publishing.publication import SUMS, read_sums
from tasks.secrets import refuse_credentials
from tasks.storage.objects import Objects

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""
_HUB = "hf://"


class Folder(Spec):
    """A folder, or a prefix in a bucket."""

    kind: Literal["folder"] = "folder"
    url: Annotated[str, AfterValidator(refuse_credentials)] = Field(
        title="Place", min_length=1, description="A folder or an fsspec URL: s3://bucket/models/fused."
    )

    def put(self, files: Mapping[str, Path], message: str, replace: bool, progress: Progress) -> str:
        """Copies the files there, `config.json` last: what is half there can't be loaded. Returns the place."""
        return _copy(Objects(self.url), files, replace, progress)

    def __str__(self) -> str:
        return self.url


class HubRepository(Spec):
    """A repository of the Hugging Face hub; it is made where there is none."""

    kind: Literal["hub_repository"] = "hub_repository"
    id: Annotated[str, AfterValidator(check_repo_id)] = Field(title="Repository", description="owner/name on the hub.")
    branch: Annotated[str, AfterValidator(check_revision)] = Field(
        "main", title="Branch", description="Made from main where there is none."
    )
    private: bool = Field(
        True, title="Private", description="Of a repository that is made now; others stay as they are."
    )

    def put(self, files: Mapping[str, Path], message: str, replace: bool, progress: Progress) -> str:
        """Commits the files, all or none. Returns the commit's page, or where the very same files are already."""
        has_model = read_file(self.id, self.branch, CONFIG) is not None
        is_same = has_model and read_file(self.id, self.branch, SUMS) == files[SUMS].read_bytes()
        if _check_place(str(self), has_model, is_same, [], replace):
            return str(self)
        upload = Upload(
            self.id,
            self.branch,
            self.private,
            message,
            find_stale=lambda names: _find_stale(names, read_file(self.id, self.branch, SUMS), files),
        )
        return commit_files(upload, files)

    def __str__(self) -> str:
        return f"{_HUB}{self.id}@{self.branch}"


Destination = Annotated[Folder | HubRepository, Field(discriminator="kind")]


def parse_destination(text: str, *, public: bool = False) -> Folder | HubRepository:
    """A destination as people write it: a folder, a URL, or hf://owner/name[@branch].

    public: of a repository that is made now. Raises ValueError for what is none of these, or holds a password.
    """
    id, _, branch = text.removeprefix(_HUB).partition("@")
    try:
        if not text.startswith(_HUB):
            return Folder(url=text)
        return HubRepository(id=id, branch=branch or "main", private=not public)
    except ValidationError as error:  # its own text repeats what was given, passwords too
        raise ValueError(f"place to publish to: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _copy(place: Objects, files: Mapping[str, Path], replace: bool, progress: Progress) -> str:
    found = set(place.names())
    foreign = sorted(found - {name.split("/")[0] for name in files})
    same = CONFIG in found and place.read(SUMS) == files[SUMS].read_bytes()
    if _check_place(place.root, CONFIG in found, same, foreign, replace):
        return place.root
    place.remove(CONFIG)
    for name in _find_stale(place.listing(), place.read(SUMS), files):
        place.remove(name)
    total, done = sum(path.stat().st_size for path in files.values()), 0
    for name in sorted(files, key=lambda name: name == CONFIG):
        target = f"{place.base}/{name}"
        if place.is_local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        place.fs.put_file(str(files[name]), target)
        size = files[name].stat().st_size
        if (found_size := place.fs.info(target)["size"]) != size:
            raise OSError(
                f"{place.root}/{name}: expected {size} bytes, found {found_size} after writing; publish again"
            )
        done += size
        progress(done, total)
    return place.root


def _check_place(place: str, has_model: bool, is_same: bool, foreign: list[str], replace: bool) -> bool:
    """Whether this very publication is there already. Raises ValueError where something else is."""
    if has_model and is_same:
        return True
    if has_model and not replace:
        raise ValueError(f"{place}: expected no model there, found another one; choose another place or say --replace")
    if foreign and not replace:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise ValueError(f"{place}: expected an empty place, found {some}; choose another one or say --replace")
    return False


def _find_stale(names: Iterable[str], sums: bytes | None, files: Mapping[str, Path]) -> list[str]:
    """Which of the files there are another model's: transformers would take them for those of the model to come.

    They are what an earlier publication says are its own, and weights that nothing lists. The rest is somebody's.
    """
    listed = read_sums(sums)
    return [
        name
        for name in names
        if name not in files
        and (name in listed or ("/" not in name and (name.endswith(".safetensors") or name == WEIGHTS_INDEX)))
    ]
