"""Inspecting a recipe: what it says of every source, what it runs, and what it leaves alone."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ModelFactory
from tests.flows.conftest import Bench, Cli

SMALL_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


def inspect(cli: Cli, bench: Bench, *words: object):
    called = cli("inspect", bench.recipe, "--root", bench.root, "--json", *words)
    return called, json.loads(called.out) if called.out else None


def change(bench: Bench, **fields: object) -> None:
    recipe = yaml.safe_load(bench.recipe.read_text(encoding="utf-8"))
    bench.recipe.write_text(yaml.safe_dump({**recipe, **fields}), encoding="utf-8")


def test_an_inspection_runs_small_models_and_judges_every_source(cli: Cli, bench: Bench) -> None:
    called, found = inspect(cli, bench, "--price-per-hour", 2)
    assert called.code == 0, called.err
    pair = found["pairs"]["teacher"]
    assert sum(pair["kinds"][kind]["common"] for kind in pair["kinds"]) > 20
    assert pair["source"]["embedding_rows"] == pair["source"]["tokens"]
    assert pair["target"]["roles"] == {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    assert set(found["scores"]["models"]) == {"student", "teacher"}
    assert 0 < found["scores"]["models"]["teacher"]["kept"] < 1
    assert found["verdicts"]["teacher"]["reasons"]
    assert set(found["needs"]) >= {"memory to train", "device-hours", "cost", "corpus", "distributions in the store"}
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert "teacher" in page
    assert not (bench.root / "train").exists()


def test_without_weights_the_tokenizers_are_compared_all_the_same(
    cli: Cli, bench: Bench, tmp_path: Path, tiny_neox: ModelFactory
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in SMALL_FILES:
        shutil.copy(tiny_neox() / name, bare / name)
    change(bench, sources=[{"name": "teacher", "model": {"kind": "local", "path": str(bare)}}])
    called, found = inspect(cli, bench)
    assert called.code == 0, called.err
    assert found["not_run"] == {"teacher": "no weights here; an inspection downloads none"}
    assert list(found["scores"]["models"]) == ["student"]
    assert found["pairs"]["teacher"]["source"]["parameters"] > 10_000


def test_no_forward_runs_nothing(cli: Cli, bench: Bench) -> None:
    called, found = inspect(cli, bench, "--no-forward")
    assert called.code == 0, called.err
    assert found["scores"] is None
    assert not (bench.root / "download").exists()
    assert not (bench.root / "extract").exists()


def test_a_second_inspection_computes_nothing(cli: Cli, bench: Bench) -> None:
    _, first = inspect(cli, bench, "--no-forward")
    before = sorted(bench.root.rglob("MANIFEST.json"))
    _, second = inspect(cli, bench, "--no-forward")
    assert second == first
    assert sorted(bench.root.rglob("MANIFEST.json")) == before


def test_strict_fails_on_warnings_and_a_licence_is_one(
    cli: Cli, bench: Bench, tmp_path: Path, tiny_neox: ModelFactory
) -> None:
    source = shutil.copytree(tiny_neox(), tmp_path / "licensed")
    (source / "README.md").write_text("---\nlicense: llama2\n---\n", encoding="utf-8")
    change(bench, sources=[{"name": "teacher", "model": {"kind": "local", "path": str(source)}}])
    called, found = inspect(cli, bench, "--no-forward")
    assert called.code == 0, called.err
    assert found["verdicts"]["teacher"]["choice"] == "fuse with a warning"
    assert any("licence: llama2 forbids" in reason for reason in found["verdicts"]["teacher"]["reasons"])
    assert inspect(cli, bench, "--no-forward", "--strict")[0].code == 1


def test_tokenizers_alone_need_neither_recipe_nor_config(
    cli: Cli, bench: Bench, tmp_path: Path, tiny_llama: ModelFactory, tiny_neox: ModelFactory
) -> None:
    folders = []
    for name, make in (("ours", tiny_llama), ("theirs", tiny_neox)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for file in SMALL_FILES[:2]:
            shutil.copy(make() / file, folders[-1] / file)
    text = bench.texts / "learn-0.txt"
    other = shutil.copytree(bench.texts, tmp_path / "fr") / text.name
    words = ("inspect", "--tokenizers", *folders, "--text", text, "--text", other, "--root", bench.root)
    called = cli(*words)
    assert called.code == 0, called.err
    assert "rows of ours met by" in called.out
    assert "theirs: " in called.out
    found = json.loads(cli(*words, "--json").out)
    assert set(found["pairs"]["theirs"]["domains"]) == {"learn-0", "learn-0-no2"}


@pytest.mark.parametrize("words", [("--tokenizers", "one"), ("a", "b"), ("a", "--text", "x.txt")])
def test_what_it_cannot_do_is_said_in_one_line(cli: Cli, words: tuple[str, ...]) -> None:
    called = cli("inspect", *words)
    assert called.code == 2
    assert called.err.startswith("error: inspect")
    assert called.err.count("\n") == 1
