"""A recipe over two tiny models and a few files, and the command line called as a person calls it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import yaml

from flows.cli import main
from tests.conftest import TEXTS, ModelFactory


@dataclass(frozen=True)
class Called:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Called]
"""`cli("plan", "recipe.yaml", "--root", "...")`."""


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Calls the command line in this process; what it sets in the environment is undone."""

    def call(*words: object) -> Called:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Called(code, out, err)

    with mock.patch.dict(os.environ):
        yield call


@dataclass(frozen=True)
class Bench:
    """A recipe file and what it names, all below one folder."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def root(self) -> Path:
        return self.folder / "store"

    @property
    def texts(self) -> Path:
        return self.folder / "texts"


def write_bench(folder: Path, target: Path, source: Path) -> Bench:
    """Writes the recipe and its texts: two shards to learn from, one to measure on."""
    bench = Bench(folder)
    bench.texts.mkdir(parents=True)
    for number, text in enumerate(TEXTS[:4]):
        (bench.texts / f"learn-{number}.txt").write_text(text, encoding="utf-8")
        (bench.texts / f"held-{number}.txt").write_text(text[::-1], encoding="utf-8")
    recipe = {
        "name": "bench",
        "target": {"name": "student", "model": {"kind": "local", "path": str(target)}},
        "sources": [{"name": "teacher", "model": {"kind": "local", "path": str(source)}}],
        "corpus": {
            "documents": [{"kind": "files", "paths": [f"{bench.texts}/learn-*.txt"]}],
            "max_bytes": 64,
            "shard_bytes": 200,
            "sharding": "by_size",
        },
        "training": {"lm_weight": 0.5, "learning_rate": 0.01, "batch_sequences": 4},
        "evaluation": {"corpus": {"documents": [{"kind": "files", "paths": [f"{bench.texts}/held-*.txt"]}]}},
    }
    bench.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return bench


@pytest.fixture
def bench(tmp_path: Path, tiny_llama: ModelFactory, tiny_neox: ModelFactory) -> Bench:
    """A recipe that nothing has been computed of."""
    return write_bench(tmp_path / "bench", tiny_llama(), tiny_neox())
