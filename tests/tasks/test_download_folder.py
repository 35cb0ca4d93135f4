"""Model folders of this machine come into the store by content; which files of a model are taken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts import ModelRef, Runtime
from tasks.download import download, select_files
from tasks.models.folders import LocalModel
from tasks.storage.store import open_store

Make = Callable[..., Path]
WEIGHTS = "model.safetensors"
BASE = ["config.json", "tokenizer.json"]


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "store"), cache_dir=str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tiny_llama: Make) -> Path:
    return tiny_llama()


def files_of(ref: ModelRef, runtime: Runtime) -> dict[str, bytes]:
    home = open_store(runtime).fetch(ref)
    return {p.relative_to(home).as_posix(): p.read_bytes() for p in home.rglob("*") if p.is_file()}


# ---- from a folder -----------------------------------------------------------------------------------------


def test_a_folder_is_its_content_wherever_it_lies(folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("not part of the model")
    ref = download.fn(LocalModel(path=str(folder)), runtime=runtime)
    assert download.fn(LocalModel(path=str(tmp_path / "elsewhere")), runtime=runtime) == ref
    assert files_of(ref, runtime) == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_changed_folder_is_another_model(tiny_llama: Make, runtime: Runtime) -> None:
    folder = tiny_llama()
    spec = LocalModel(path=str(folder))
    before = download.fn(spec, runtime=runtime)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    after = download.fn(spec, runtime=runtime)
    assert after != before
    assert files_of(before, runtime) != files_of(after, runtime)


def test_the_licence_of_a_folder_is_read_from_its_card(tiny_neox: Make, runtime: Runtime) -> None:
    folder = tiny_neox()
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\nlicense: none of this\n")
    manifest = open_store(runtime).manifest(download.fn(LocalModel(path=str(folder)), runtime=runtime))
    assert manifest is not None
    assert manifest.facts == {"source": "local", "path": str(folder), "licence": "mit"}


def test_links_in_a_folder_are_followed(folder: Path, tmp_path: Path, runtime: Runtime) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    ref = download.fn(LocalModel(path=str(tmp_path)), runtime=runtime)
    assert not any(p.is_symlink() for p in open_store(runtime).fetch(ref).iterdir())


def test_a_missing_folder_is_named(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(ValueError, match=r"gone: expected a folder .* found nothing there"):
        download.fn(LocalModel(path=str(tmp_path / "gone")), runtime=runtime)


# ---- which files -------------------------------------------------------------------------------------------


def test_one_copy_of_the_weights_is_taken() -> None:
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    assert select_files([*BASE, index, *parts, "model.fp16.safetensors"], "x") == [*BASE, *parts, index]
    assert select_files([*BASE, index, *parts, WEIGHTS], "x") == [*BASE, WEIGHTS]


def test_chat_templates_come_along() -> None:
    templates = ["additional_chat_templates/tools.jinja", "chat_template.jinja"]
    assert set(templates) <= set(select_files([*BASE, *templates, WEIGHTS], "x"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"x: expected a config.json, found no files"),
        (["tokenizer.json", WEIGHTS], r"x: expected a config.json, found model.safetensors, tokenizer.json"),
        (["config.json", WEIGHTS], r"x: expected a tokenizer"),
        (BASE, r"x: expected model.safetensors"),
        ([*BASE, "model.safetensors.index.json"], r"x: expected model.safetensors"),
        ([*BASE, "pytorch_model.bin"], r"only pickles \(pytorch_model.bin\).*convert to safetensors first"),
        ([*BASE, "nested/model.safetensors"], r"x: expected model.safetensors"),
    ],
)
def test_what_is_missing_is_named(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_files(names, "x")
