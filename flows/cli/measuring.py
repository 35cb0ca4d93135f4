"""What `evaluate` is asked to measure: models and text, as people name them."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from flows.evaluation import Candidate
from flows.recipe import load_recipe
from flows.recipe_files import RECIPES
from flows.starter import distinct_names, documents_of, model_of
from tasks.artifacts import ModelRef, Runtime
from tasks.corpus import CorpusSpec
from tasks.evaluate import EvaluationSpec
from tasks.evaluation.benchmarks import SUITE_NAMES, CodeProblems, LocalTask, NamedTask, Suite, TaskChoice
from tasks.library.lineage import Library
from tasks.storage.store import open_store

_IN_STORE = re.compile(r"([a-z_]+/)?[0-9a-f]{6,32}")


def candidates_of(models: Sequence[str], runtime: Runtime) -> list[Candidate]:
    """The models by name: of the store where the text is an address or a fingerprint, folders, or hub ids."""
    found = [_from_store(text, runtime) if _IN_STORE.fullmatch(text) else model_of(text) for text in models]
    return [Candidate(name=name, model=model) for name, model in zip(distinct_names(models), found, strict=True)]


def held_out_of(corpus: Sequence[str]) -> tuple[CorpusSpec, EvaluationSpec]:
    """The held-out text of a recipe and how it is read, or files as they are."""
    first = corpus[0]
    if len(corpus) > 1 or not (first.endswith((".yaml", ".yml")) or (RECIPES / f"{first}.yaml").exists()):
        return CorpusSpec(documents=(documents_of(corpus),)), EvaluationSpec()
    evaluation = load_recipe(first).evaluation
    if evaluation is None:
        raise ValueError(f"--corpus {first}: expected a recipe with `evaluation`, found none in it; name files instead")
    return evaluation.corpus, evaluation.spec


def tasks_of(
    tasks: Sequence[str], limit: int | None = None, *, run_untrusted_code: bool = False
) -> tuple[TaskChoice, ...]:
    """Entries of a list of tasks, as people name them.

    A suite (`common_sense`), a task of the harness (`arc_easy`), one of a folder (`FOLDER#name`), or a file of code
    problems (`problems.jsonl`).
    """
    return tuple(_task_of(text, limit, run_untrusted_code) for text in tasks)


def _task_of(text: str, limit: int | None, run_untrusted_code: bool) -> TaskChoice:
    folder, mark, name = text.rpartition("#")
    if mark:
        return LocalTask(name=name, folder=folder, limit=limit)
    if text.endswith(".jsonl"):
        name = PurePosixPath(text).stem
        return CodeProblems(name=name, file=text, limit=limit, run_untrusted_code=run_untrusted_code)
    if text in SUITE_NAMES:
        return Suite.model_validate({"name": text, "limit": limit})
    return NamedTask(name=text, limit=limit)


def _from_store(text: str, runtime: Runtime) -> ModelRef:
    ref = Library.load(open_store(runtime)).find(text)
    if not isinstance(ref, ModelRef):
        raise ValueError(f"{text}: expected a model, found {ref.address}; see `llm-fuse lineage {text}`")
    return ref
