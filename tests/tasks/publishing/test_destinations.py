"""Places of publication, each on a disk and in a bucket: whole or not loadable, once, and nobody else's files."""

from pathlib import Path

import pytest

from tasks.publishing.destinations import Folder, HubRepository, parse_destination
from tasks.storage.objects import Objects

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """What a small model with a chat template of its own consists of."""
    contents = {"config.json": "{}", "model.safetensors": "weights", "additional_chat_templates/tool.jinja": "{{ x }}"}
    return write(tmp_path / "files", {**contents, "SHA256SUMS": "sums"})


def write(folder: Path, contents: dict[str, str]) -> Files:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return {name: folder / name for name in contents}


def put(root: str, files: Files, *, replace: bool = False) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    assert Folder(url=root).put(files, "message", replace, lambda done, total: told.append((done, total))) == root
    return told


def test_all_files_arrive_and_config_comes_last(root: str, files: Files) -> None:
    place, seen = Objects(root), list[bool]()
    Folder(url=root).put(files, "message", False, lambda done, total: seen.append("config.json" in place.names()))
    assert seen == [False] * (len(files) - 1) + [True]
    assert {path: place.read(path) for path in place.listing()} == {n: p.read_bytes() for n, p in files.items()}
    assert put(root, files) == [], "the same again is nothing to do"


def test_what_is_half_there_is_completed(root: str, files: Files) -> None:
    place = Objects(root)
    place.write("model.safetensors", b"half")
    told = put(root, files)
    assert told[-1][0] == told[-1][1] == sum(path.stat().st_size for path in files.values())
    assert place.read("model.safetensors") == b"weights"


def test_another_model_is_replaced_only_when_asked_and_then_whole(root: str, files: Files, tmp_path: Path) -> None:
    put(root, files)
    shards = {"model-00001-of-00001.safetensors": "w", "model.safetensors.index.json": "{}"}
    other = write(tmp_path / "other", {"config.json": "{}", "SHA256SUMS": "others", **shards})
    with pytest.raises(ValueError, match="expected no model there, found another one"):
        put(root, other)
    put(root, other, replace=True)
    assert {"model.safetensors", "config.json"} & set(Objects(root).names()) == {"config.json"}


def test_nothing_of_the_replaced_model_stays_and_everything_else_does(root: str, files: Files, tmp_path: Path) -> None:
    place = Objects(root)
    own = ["config.json", "modeling_old.py", "chat_template.jinja", "additional_chat_templates/old.jinja"]
    listed = [*own, "../outside.txt", "/etc/passwd", "gone.json"]
    sums = "".join(f"{'0' * 64}  {name}\n" for name in listed)
    put(root, write(tmp_path / "old", {**dict.fromkeys(own, "old"), "SHA256SUMS": sums}))
    others = ["notes.txt", "photos/sea.jpg", "adapters/adapter.safetensors"]
    for name in others:
        place.write(name, b"mine")
    outside = Objects(root.rsplit("/", 1)[0])
    outside.write("outside.txt", b"not there")
    put(root, files, replace=True)
    assert sorted(place.listing()) == sorted([*files, *others])
    assert outside.read("outside.txt") == b"not there"


def test_what_a_replacement_that_broke_left_is_removed_by_the_next_try(root: str, files: Files, tmp_path: Path) -> None:
    place, sums = Objects(root), f"{'0' * 64}  config.json\n{'0' * 64}  chat_template.jinja\n"
    place.write("SHA256SUMS", sums.encode())
    place.write("chat_template.jinja", b"old")  # config.json is gone already
    put(root, files, replace=True)
    assert sorted(place.listing()) == sorted(files)


def test_foreign_files_are_left_alone(root: str, files: Files) -> None:
    place = Objects(root)
    place.write("notes.txt", b"mine")
    with pytest.raises(ValueError, match=r"expected an empty place, found notes\.txt"):
        put(root, files)
    put(root, files, replace=True)
    assert place.read("notes.txt") == b"mine"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("out/model", Folder(url="out/model")),
        ("s3://bucket/model", Folder(url="s3://bucket/model")),
        ("hf://owner/name", HubRepository(id="owner/name")),
        ("hf://owner/name@v2", HubRepository(id="owner/name", branch="v2")),
    ],
)
def test_a_place_is_written_as_people_write_it(text: str, meant: Folder | HubRepository) -> None:
    assert parse_destination(text) == meant


def test_only_who_asks_for_it_publishes_to_everybody() -> None:
    private, public = (parse_destination("hf://owner/name", public=each) for each in (False, True))
    assert isinstance(private, HubRepository)
    assert isinstance(public, HubRepository)
    assert (private.private, public.private) == (True, False)


@pytest.mark.parametrize("text", ["hf://a/b/c", "hf://", "hf://owner/name@../x", "s3://key:secret@bucket/x", ""])
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="place to publish to: ") as refused:
        parse_destination(text)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
