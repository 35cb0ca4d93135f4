"""A tiny target, a corpus of several shards, and teachers that know something else than the target."""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from fusion_core.distributions import TopK
from fusion_core.fusion import MinCE
from tasks.artifacts import FusedRef, ModelRef, Ref, Runtime, ShardRef
from tasks.corpora.documents import shards_of
from tasks.corpus import CorpusSpec, Files, build_corpus
from tasks.download import download
from tasks.extract import ExtractionSpec, extract
from tasks.fuse import fuse
from tasks.models.folders import LocalModel
from tasks.runtime import TrainingRuntime
from tasks.storage.store import Store, open_store
from tasks.training.child import run_training
from tasks.training.spec import TrainingJob, TrainingSpec
from tests.conftest import TEXTS, ModelFactory


@dataclass(frozen=True)
class Lesson:
    """What a training takes."""

    runtime: Runtime
    target: ModelRef
    noisy: ModelRef  # with dropout
    shards: list[ShardRef]
    teachers: list[FusedRef]

    @property
    def store(self) -> Store:
        return open_store(self.runtime)

    def facts(self, ref: Ref) -> dict[str, Any]:
        manifest = self.store.manifest(ref)
        assert manifest is not None
        return manifest.facts

    def job(self, spec: TrainingSpec, output: Path, how: TrainingRuntime | None = None, **changes: Any) -> TrainingJob:
        """What the child is told."""
        output.mkdir()
        job = TrainingJob(
            model=self.target,
            shards=self.shards,
            teachers=self.teachers,
            spec=spec,
            runtime=self.runtime.model_copy(update={"training": how or QUIET}),
            output=output,
            address=f"train/{uuid.uuid4().hex}",
            owner=os.getpid(),
        )
        return job.model_copy(update=changes)


QUIET = TrainingRuntime(checkpoint_seconds=None)


def learn(
    job: TrainingJob, progress: Callable[[int, int, str], None] = lambda done, total, message: None
) -> dict[str, Any]:
    """The facts of a training in this process."""
    return run_training(job, progress)


def weights_of(job: TrainingJob) -> dict[str, Tensor]:
    return load_file(job.output / "model.safetensors")


def make_lesson(runtime: Runtime, folder: Path, tiny_llama: ModelFactory) -> Lesson:
    (folder / "texts").mkdir(parents=True)
    for i, text in enumerate(TEXTS[:12]):
        (folder / "texts" / f"{i:02}.txt").write_text(text + f" Number {i}.")
    target = download.fn(LocalModel(path=str(tiny_llama(seed=11))), runtime=runtime)
    noisy = download.fn(LocalModel(path=str(tiny_llama(seed=11, attention_dropout=0.2))), runtime=runtime)
    other = download.fn(LocalModel(path=str(tiny_llama(seed=12, initializer_range=0.4))), runtime=runtime)
    spec = CorpusSpec(
        documents=(Files(paths=(f"{folder}/texts/*.txt",)),), max_bytes=80, shard_bytes=600, sharding="by_size"
    )
    shards = shards_of(build_corpus.fn(spec, [], runtime=runtime), runtime)
    extraction = ExtractionSpec(mode=TopK(k=6))
    read = [extract.fn(other, shard, extraction, runtime=runtime) for shard in shards]
    teachers = [fuse.fn(scored, [], MinCE(), True, runtime=runtime) for scored in read]
    return Lesson(runtime, target, noisy, shards, teachers)


def assert_same_course(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Batches, and every step's loss and gradient norm: each depends on the gradients of all steps before."""
    assert found["batches_sha256"] == expected["batches_sha256"]
    assert len(found["losses"]) == len(expected["losses"]) == 4
    for entry, other in zip(found["losses"], expected["losses"], strict=True):
        assert entry == pytest.approx(other, abs=5e-6)


@pytest.fixture(scope="session")
def lesson(tmp_path_factory: pytest.TempPathFactory, tiny_llama: ModelFactory) -> Lesson:
    folder = tmp_path_factory.mktemp("training")
    return make_lesson(Runtime(root=str(folder / "store"), device="cpu"), folder, tiny_llama)
