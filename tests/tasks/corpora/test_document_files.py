"""Files with documents: what a glob names, and that what is read is what was pinned."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tasks.artifacts import Runtime
from tasks.corpora import document_files
from tasks.corpora.document_files import content_mark, expand_paths, read_rows
from tasks.corpora.document_sources import DocumentSource, Files, pin_sources, read_sources, unchanged_files
from tasks.corpora.overlap import Decontamination
from tasks.corpus import CorpusSpec, build_corpus, pin_documents
from tasks.running.transient import is_transient
from tasks.storage.store import Store, open_store


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "store"))


@pytest.fixture
def store(runtime: Runtime) -> Store:
    return open_store(runtime)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(f"text {name}")
    return folder


def test_a_glob_names_files_and_links_to_them_but_no_folders(texts: Path) -> None:
    (texts / "folder").mkdir()
    (texts / "linked folder").symlink_to(texts / "folder")
    (texts / "link").symlink_to(texts / "a")
    assert [Path(path).name for path in expand_paths([str(texts / "*")])] == ["a", "b", "link"]


@pytest.mark.parametrize("path", ["fold*", "folder"])
def test_a_folder_alone_is_refused_with_the_way_to_name_its_files(texts: Path, path: str) -> None:
    (texts / "folder").mkdir()
    with pytest.raises(ValueError, match=r"expected files at .*, found folders alone; name the files in them"):
        expand_paths([str(texts / path)])


def test_a_file_that_cannot_be_read_is_refused_by_name(texts: Path) -> None:
    (texts / "lost").symlink_to(texts / "nowhere")
    (found,) = expand_paths([str(texts / "lo*")])
    with pytest.raises(ValueError, match=r"texts/lost: expected a file that can be read, found .*No such file"):
        content_mark(found)


REWRITES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda folder: (folder / "a").write_text("TEXT a"),
    "not text by now": lambda folder: (folder / "a").write_bytes(b"\xff"),
    "added": lambda folder: (folder / "c").write_text("text c"),
    "removed": lambda folder: (folder / "b").unlink(),
    "all removed": shutil.rmtree,
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
@pytest.mark.parametrize("entry", ["documents", "against"])
def test_files_that_change_after_they_were_pinned_fail_the_step_for_another_try(
    texts: Path,
    tmp_path: Path,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    entry: str,
    rewrite: Callable[[Path], object],
) -> None:
    changing = Files(paths=(str(texts / "*"),))
    (tmp_path / "other").write_text("another text")
    other = Files(paths=(str(tmp_path / "other"),))
    documents, against = (changing, other) if entry == "documents" else (other, changing)
    spec = CorpusSpec(documents=(documents,), decontamination=Decontamination(against=(against,)))

    def pin_then_rewrite(*args: Any, **kwargs: Any) -> dict[str, object]:
        pins = pin_documents(*args, **kwargs)
        rewrite(texts)
        return pins

    monkeypatch.setattr(build_corpus, "pin", pin_then_rewrite)
    with pytest.raises(OSError, match="expected the files that were there when the step began") as caught:
        build_corpus.fn(spec, [], runtime=runtime)
    assert is_transient(caught.value)
    assert not list(Path(runtime.root).rglob("MANIFEST.json"))


def test_files_that_no_document_was_asked_of_are_held_to_their_pins_too(texts: Path, store: Store) -> None:
    sources: list[DocumentSource] = [Files(paths=(str(texts / "*"),))]
    pins = pin_sources(sources, store)

    def read_one_document() -> None:
        with unchanged_files(sources, pins):
            next(read_sources(sources, (), store, pins)[0])
            REWRITES["rewritten"](texts)

    with pytest.raises(OSError, match="run again"):
        read_one_document()


def test_bad_text_in_files_that_stay_is_no_matter_of_another_try(texts: Path, store: Store) -> None:
    sources: list[DocumentSource] = [Files(paths=(str(texts / "*"),))]
    with pytest.raises(ValueError, match="bad text"), unchanged_files(sources, pin_sources(sources, store)):
        raise ValueError("bad text")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were opened, so far."""
    names = []
    open_file = LocalFileSystem._open

    def count(self: LocalFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        names.append(Path(path).name)
        return open_file(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "_open", count)
    return names


def test_a_file_is_read_once_for_its_mark_until_it_changes(
    texts: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_files, "_SETTLED_NS", 0)
    path = texts / "a"
    first = content_mark(str(path))
    assert content_mark(str(path)) == first
    assert opened == ["a"]
    assert content_mark(str(path), anew=True) == first
    assert opened == ["a", "a"]
    path.write_text("TEXT a")
    changed = content_mark(str(path))
    assert content_mark(str(path)) == changed != first
    assert opened == ["a", "a", "a"]


def test_a_file_touched_a_moment_ago_is_read_again(texts: Path, opened: list[str]) -> None:
    assert content_mark(str(texts / "a")) == content_mark(str(texts / "a")) != content_mark(str(texts / "b"))
    assert opened == ["a", "a", "b"]


def test_a_line_nested_too_deep_to_be_read_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text('{"text": "fine"}\n{"text": ' + "[" * 10**5 + "]" * 10**5 + "}\n")
    with pytest.raises(ValueError, match=r"deep\.jsonl, line 2: expected .* found one nested too deep"):
        list(read_rows(str(tmp_path / "deep.jsonl"), "jsonl", ("text",)))
