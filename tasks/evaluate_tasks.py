"""Evaluate on tasks: what lm-evaluation-harness finds a model to know, one entry of a list of tasks at a time."""

import os
import tempfile
from pathlib import Path

from tasks.artifacts import ModelRef, Runtime, TaskScoresRef
from tasks.engines import Dtype, pick_device
from tasks.evaluation.benchmarks import LocalTask, NamedTask, pin_evaluation
from tasks.evaluation.harness import HarnessJob
from tasks.evaluation.task_folder import bring_task_folder, read_task_folder
from tasks.evaluation.task_scores import read_scores_file
from tasks.running.child import run_child
from tasks.running.devices import count_workers
from tasks.step import Output, step
from tasks.storage.store import open_store

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@step(version=1, on_device=True, pin=pin_evaluation)
def evaluate_tasks(
    model: ModelRef, task: NamedTask | LocalTask, dtype: Dtype = "float32", *, runtime: Runtime, out: Output
) -> TaskScoresRef:
    """Scores with standard errors (`scores.json`), and what each question earned (`questions.json`)."""
    folder = open_store(runtime).fetch(model)
    device = pick_device(runtime.device)
    with tempfile.TemporaryDirectory() as scratch:
        own = bring_task_folder(task.folder, Path(scratch, "tasks")) if isinstance(task, LocalTask) else None
        job = HarnessJob(
            model=folder,
            task=task,
            folder=own,
            dtype=dtype,
            device=str(device),
            batch_tokens=runtime.batch_tokens,
            model_code=runtime.model_code,
            output=out.dir,
        )
        environment = {"TOKENIZERS_PARALLELISM": "false", "DISABLE_MULTIPROC": "1"}
        workers = count_workers(runtime.max_workers, runtime.device)
        environment |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        if isinstance(task, LocalTask):
            environment |= {"HF_DATASETS_CACHE": str(Path(scratch, "datasets"))}
            if not read_task_folder(str(own)).needs_hub:
                environment |= dict.fromkeys(_OFFLINE, "1")
        out.facts |= run_child("tasks.evaluation.harness", job, out.progress, environment)
        if isinstance(task, LocalTask) and read_task_folder(task.folder).digest != out.pins["content"]:
            raise OSError(f"tasks {task.folder}: its files changed while they were in use; run again")
    out.facts |= {"scores": [score.model_dump(mode="json") for score in read_scores_file(out.dir).scores]}
    return out.ref(TaskScoresRef)
