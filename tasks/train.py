"""Train: the target on `lm_weight * CLM + (1 - lm_weight) * divergence`, by transformers' Trainer in a child process.

Without teachers (or at `lm_weight` 1) the same step is plain causal language modelling on the same batches
in the same order, so that a comparison of the two differs in one field of the recipe.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from tasks.artifacts import FusedRef, ModelRef, Runtime, ShardRef, StoreError
from tasks.engines import pick_device
from tasks.step import Output, step
from tasks.stopping import check_stopped, when_stopped
from tasks.trainer import TrainingJob, TrainingSpec

_ERRORS = {"input": ValueError, "store": StoreError, "transient": OSError}


@step(version=1, on_device=True)
def train(
    model: ModelRef,
    shards: list[ShardRef],
    teachers: list[FusedRef],
    spec: TrainingSpec,
    *,
    runtime: Runtime,
    out: Output,
) -> ModelRef:
    """The trained model's folder. `teachers` is parallel to `shards`, or empty for plain language modelling."""
    if teachers and len(teachers) != len(shards):
        raise ValueError(
            f"training: expected one teacher per shard, found {len(teachers)} teachers and {len(shards)} shards"
        )
    if spec.lm_weight < 1 and not teachers:
        raise ValueError(
            f"training.lm_weight: expected 1 without a teacher, found {spec.lm_weight}; add sources or set it to 1"
        )
    device = pick_device(runtime.device)
    alone = runtime.model_copy(update={"device": device.type})  # the only device of its kind that the child sees
    job = TrainingJob(model=model, shards=shards, teachers=teachers, spec=spec, runtime=alone, output=out.dir)
    with contextlib.closing(_run_child(job, device)) as records:
        for record in records:
            if "facts" in record:
                out.facts |= record["facts"]
            elif "error" in record:
                raise _ERRORS[record["kind"]](record["error"])
            else:
                out.progress(record["done"], record["total"], record["unit"])
    return out.ref(ModelRef)


def _only(device: torch.device) -> dict[str, str]:
    """What shows the child the chosen CUDA device alone: the Trainer would take the first one, or all at once."""
    if device.type != "cuda":
        return {}
    index = device.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index] if visible else str(index)}


def _run_child(job: TrainingJob, device: torch.device) -> Generator[dict[str, Any], None, None]:  # Any: parsed JSON
    """The child's records. Raises `RuntimeError` with its last words when it dies without facts or an error."""
    threads = str(max(1, (os.cpu_count() or 1) // job.runtime.max_workers))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **_only(device)}
    with tempfile.TemporaryDirectory() as folder:
        description, words = Path(folder, "job.json"), Path(folder, "stderr")
        description.write_text(job.model_dump_json())
        command = [
            sys.executable,
            "-P",
            "-m",
            "tasks.trainer",
            str(description),
        ]  # -P: not the working directory's modules
        last: dict[str, Any] = {}
        with words.open("wb") as stderr:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment)
        with child:
            try:
                with when_stopped(child.kill):
                    for line in child.stdout or ():
                        last = json.loads(line)
                        yield last
                    code = child.wait()
            finally:
                child.kill()
        check_stopped()
        if not {"facts", "error"} & last.keys():
            why = "killed, probably for memory" if code == -9 else f"exit code {code}"
            tail = words.read_text(errors="replace").strip()[-2000:]
            raise RuntimeError(f"training: the child ended without a model ({why}); {tail or 'it said nothing'}")
