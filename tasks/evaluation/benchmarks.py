"""Which tasks a model is asked: of lm-evaluation-harness by name, of one's own folder, or a suite of them.

An entry of a list of tasks is the unit of caching: one entry, one model, one artifact.
"""

import difflib
import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fusion_core.spec import PINNED, Spec
from tasks.artifacts import Runtime
from tasks.evaluation.task_folder import read_task_folder

HARNESS = "lm_eval"
_DEFINITION = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([^\s\"'#\[\]]+)", re.MULTILINE)

_Shots = Annotated[
    int | None, Field(ge=0, title="Examples before each question", description="Empty: as the task says.")
]
_Limit = Annotated[
    int | None, Field(gt=0, title="Questions at most", description="The first ones of each task; empty: all.")
]


class NamedTask(Spec):
    """A task that lm-evaluation-harness defines, on data of the hub."""

    kind: Literal["named"] = "named"
    name: str = Field(title="Task", min_length=1, description="A task, group or tag of the harness: arc_easy, bbh.")
    shots: _Shots = None
    limit: _Limit = None


class LocalTask(Spec):
    """A task of one's own, in the harness's YAML. Its identity is the content of its folder, wherever it lies."""

    kind: Literal["local"] = "local"
    name: str = Field(title="Task", min_length=1, description="A task, group or tag that the folder defines.")
    folder: Annotated[str, PINNED] = Field(
        title="Folder", min_length=1, description="YAML and data (JSONL); a path or URL. Data paths are relative to it."
    )
    shots: _Shots = None
    limit: _Limit = None
    trust_code: bool = Field(
        False,
        title="Trust its code",
        description="Let it run Python: functions of the folder (!function), and templates that reach for more.",
    )


class CodeProblems(Spec):
    """Functions to complete, with tests, as JSON lines in HumanEval's form. Their identity is the file's content."""

    kind: Literal["code"] = "code"
    name: str = Field("humaneval", title="Name", min_length=1, description="In tables.")
    file: Annotated[str, PINNED] = Field(
        title="File", min_length=1, description="Path or URL of JSON lines: task_id, prompt, test, entry_point."
    )
    limit: int | None = Field(None, gt=0, title="Problems at most", description="The first ones; empty: all.")
    max_tokens: int = Field(384, gt=0, title="Tokens to write", description="At most, per problem.")
    seconds: int = Field(5, gt=0, title="Seconds per program", description="Of CPU time; twice as many on the clock.")
    run_untrusted_code: bool = Field(
        False,
        title="Run untrusted code",
        description="Runs programs that a model wrote on this machine. They are confined (no network, no files of "
        "yours, bounded time and memory), but a hole in the kernel would be open to them.",
    )


_SUITES: dict[str, tuple[str, ...]] = {
    "bbh": ("bbh",),
    "common_sense": ("arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa"),
    "generative": ("triviaqa", "drop", "lambada_openai"),
}
SUITE_NAMES = (*_SUITES, "fusellm")


class Suite(Spec):
    """Several tasks of the harness under one name: those that FuseLLM (Wan et al. 2024) reports."""

    kind: Literal["suite"] = "suite"
    name: Literal["bbh", "common_sense", "generative", "fusellm"] = Field(
        title="Suite",
        description="bbh; common_sense: ARC-e, ARC-c, BoolQ, HellaSwag, OpenBookQA; generative: TriviaQA, DROP, "
        "LAMBADA; fusellm: all of these. Examples before questions are the harness's own choice.",
    )
    limit: _Limit = None

    @property
    def entries(self) -> tuple[NamedTask, ...]:
        """Its tasks, in the order of the paper's tables."""
        names = [n for tasks in _SUITES.values() for n in tasks] if self.name == "fusellm" else _SUITES[self.name]
        return tuple(NamedTask(name=name, limit=self.limit) for name in names)


TaskEntry = Annotated[NamedTask | LocalTask, Field(discriminator="kind")]
TaskChoice = Annotated[NamedTask | LocalTask | CodeProblems | Suite, Field(discriminator="kind")]


def expand_suites(choices: Iterable[TaskChoice]) -> list[NamedTask | LocalTask | CodeProblems]:
    """The entries, each once, in order, suites replaced by their tasks.

    Raises ValueError for two different entries of one name: a table couldn't tell them apart.
    """
    every = [entry for choice in choices for entry in (choice.entries if isinstance(choice, Suite) else (choice,))]
    kept = list(dict.fromkeys(every))
    names = [entry.name for entry in kept]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"tasks: expected each name once, found {', '.join(sorted(twice))} with different settings")
    return kept


def pin_task(task: NamedTask | LocalTask) -> dict[str, object]:
    """What the task is today: the harness's version, and the digest of a local task's folder.

    Raises ValueError for a task that doesn't exist (with the nearest names), code that isn't trusted, or no harness.
    """
    pins: dict[str, object] = {"harness": harness_version()}
    if isinstance(task, NamedTask):
        check_name(task.name, harness_names(), "lm-evaluation-harness")
        return pins
    folder = read_task_folder(task.folder)
    check_name(task.name, folder.names, f"the folder {task.folder}")
    if folder.runs_code and not task.trust_code:
        raise ValueError(
            f"tasks {task.folder}: expected YAML and data alone, found one that calls Python (!function); "
            "if you trust it, set trust_code: true for this task"
        )
    return {**pins, "content": folder.digest}


def check_name(name: str, known: Sequence[str], where: str) -> None:
    """Raises ValueError, naming the nearest names, unless the task is among those known."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"it has {len(known):,} others"
    raise ValueError(f"task {name!r}: expected a task, group or tag of {where}, found none of that name; {hint}")


def harness_version() -> str:
    """The installed harness's version. Raises ValueError where it isn't installed."""
    try:
        return importlib.metadata.version(HARNESS)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            "tasks: expected lm-evaluation-harness, found no package lm_eval; install llm-fuse[tasks]"
        ) from None


@functools.cache
def harness_names() -> tuple[str, ...]:
    """Tasks, groups and tags that the harness's files name: read without importing it, which takes half a minute."""
    spec = importlib.util.find_spec(HARNESS)
    places = (spec.submodule_search_locations if spec else None) or []
    sheets = sorted(sheet for place in places for sheet in Path(place, "tasks").rglob("*.yaml"))
    found = (name.decode() for sheet in sheets for name in _DEFINITION.findall(sheet.read_bytes()))
    return tuple(dict.fromkeys(found))


def pin_evaluation(model: object, task: NamedTask | LocalTask, dtype: str, *, runtime: Runtime) -> dict[str, object]:
    """`pin_task` with the arguments of the step."""
    return pin_task(task)
