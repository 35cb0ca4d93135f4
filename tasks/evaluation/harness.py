"""lm-evaluation-harness on one entry, in a process of its own: `python -m tasks.evaluation.harness JOB`.

The one owner of `lm_eval`, which patches logging, seeds every global generator and reads the environment when it is
imported. Models are loaded by `tasks.models.folders`; the harness's own choices hold for everything else, so that
scores compare with published ones.
"""

import hashlib
import math
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.engines import Dtype, tokens_per_batch
from tasks.evaluation.benchmarks import LocalTask, NamedTask, TaskEntry, check_name
from tasks.evaluation.task_scores import TaskScore, TaskScores, write_scores_file
from tasks.models.folders import context_window, load_config, load_model, load_tokenizer
from tasks.models.trust import trusting_code
from tasks.running.child import ReportProgress, serve

_RESAMPLES = 1000
"""For standard errors of metrics that have no closed form."""
_USUAL_TOKENS = 512
"""Of a question, for the size of batches."""


class HarnessJob(BaseModel):
    """One entry for one model. folder: of a local task, where the child works; None for the harness's own."""

    model: Path
    task: TaskEntry
    folder: Path | None
    dtype: Dtype
    device: str
    batch_tokens: int | None
    model_code: bool = False
    output: Path


def run_harness(job: HarnessJob, progress: ReportProgress) -> dict[str, Any]:  # Any: plain JSON
    """Facts, after writing the scores. Raises `ValueError` for a task that the harness can't load."""
    from jinja2.exceptions import SecurityError
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    task = job.task
    if job.folder is not None:
        os.chdir(job.folder)  # data files are named relative to it
    if not getattr(task, "trust_code", True):
        _confine_templates()
    manager = TaskManager(include_path=job.folder, include_defaults=job.folder is None)
    check_name(task.name, manager.all_tasks, "lm-evaluation-harness" if job.folder is None else str(job.folder))
    try:
        with trusting_code(job.model_code):
            model = _load(job)
        found = simple_evaluate(
            model=model,
            tasks=[task.name],
            num_fewshot=task.shots,
            limit=task.limit,
            task_manager=manager,
            bootstrap_iters=_RESAMPLES,
        )
    except SecurityError as error:
        raise ValueError(
            f"task {task.name!r}: expected templates over its data alone, found one that reaches for Python ({error}); "
            "if you trust it, set trust_code: true for this task"
        ) from error
    assert found is not None  # the harness gives None to all but the first of several processes
    scores, questions = _scores_of(task, found), _questions_of(found["samples"])
    write_scores_file(job.output, scores, questions)
    progress(len(scores.scores), len(scores.scores), "scores")
    asked = sorted(str(q) for columns in questions.values() for q in columns["question"])
    return {
        "questions": len(asked),
        "questions_sha256": hashlib.sha256("\n".join(asked).encode()).hexdigest(),
        "task_versions": {name: str(version) for name, version in found["versions"].items()},
        "shots": dict(found["n-shot"]),
    }


def _load(job: HarnessJob) -> Any:  # Any: the harness's model class
    from lm_eval.models.huggingface import HFLM

    network = load_model(job.model, job.dtype, job.device)
    window = context_window(load_config(job.model)) or 2048
    batch = max(1, tokens_per_batch(job.batch_tokens, network.device) // min(window, _USUAL_TOKENS))
    return HFLM(pretrained=network, tokenizer=load_tokenizer(job.model), max_length=window, batch_size=batch)


def _confine_templates() -> None:
    """Templates of a task can no longer reach Python: the harness would render them with all of it in reach."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = lm_eval.utils.env
    confined = SandboxedEnvironment(loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=True)
    confined.filters.update(plain.filters)
    lm_eval.utils.env = confined


def _scores_of(task: NamedTask | LocalTask, found: dict[str, Any]) -> TaskScores:  # Any: the harness's results
    counts = {name: entry["effective"] for name, entry in found["n-samples"].items()}
    scores = []
    for name, results in found["results"].items():
        members = _tasks_below(name, found.get("group_subtasks", {}))
        better = found["higher_is_better"].get(name, {})
        for key, value in results.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_finite(value):
                continue
            error = results.get(f"{metric}_stderr,{filter_name}")
            scores.append(
                TaskScore(
                    task=name,
                    metric=metric,
                    filter="" if filter_name == "none" else filter_name,
                    value=float(value),
                    stderr=float(error) if _is_finite(error) else None,
                    higher_is_better=better.get(metric) is not False,
                    questions=sum(counts.get(member, 0) for member in members),
                )
            )
    if not scores:
        raise ValueError(f"task {task.name!r}: expected at least one score, found none; does it define a metric?")
    return TaskScores(name=task.name, scores=tuple(sorted(scores, key=lambda s: s.task != task.name)))


def _is_finite(value: object) -> bool:
    """Whether it is a number: the harness writes "N/A" and NaN where it knows none."""
    return isinstance(value, int | float) and math.isfinite(value)


def _tasks_below(name: str, groups: dict[str, list[str]]) -> list[str]:
    members = groups.get(name, [])
    return [leaf for member in members for leaf in _tasks_below(member, groups)] if members else [name]


def _questions_of(samples: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[object]]]:  # Any: its samples
    columns: dict[str, dict[str, list[object]]] = {}
    for task, entries in samples.items():
        filters = sorted({entry["filter"] for entry in entries})
        first = [entry for entry in entries if entry["filter"] == filters[0]] if filters else []
        columns[task] = {"question": [entry["doc_hash"] for entry in first]}
        for entry in entries:
            for metric in entry["metrics"]:
                if isinstance(entry.get(metric), int | float):
                    key = metric if entry["filter"] == "none" else f"{metric},{entry['filter']}"
                    columns[task].setdefault(key, []).append(float(entry[metric]))
    return columns


if __name__ == "__main__":
    sys.exit(serve(HarnessJob, run_harness))
