"""Train: the target on `lm_weight * CLM + (1 - lm_weight) * divergence`, by transformers' Trainer in a child process.

Without teachers (or at `lm_weight` 1) the same step is plain causal language modelling on the same batches
in the same order, so that a comparison of the two differs in one field of the recipe. A training that was killed
goes on from its newest complete checkpoint and ends in the same model, bit by bit on a CPU.
"""

import contextlib
import os
import shutil

from tasks.artifacts import FusedRef, ModelRef, Runtime, ShardRef, StoreError
from tasks.running.devices import visible_devices
from tasks.step import Output, step
from tasks.storage.store import open_store
from tasks.training.checkpoints import Checkpoints, layout_of
from tasks.training.failures import TrainingFailed
from tasks.training.launch import check_execution, run_child
from tasks.training.spec import TrainingJob, TrainingSpec

_ERRORS = {"input": ValueError, "store": StoreError, "transient": OSError, "failed": TrainingFailed}


def _devices_needed(*, runtime: Runtime, **arguments: object) -> int | None:
    """One for each process; all where a launcher's own configuration decides."""
    return runtime.training.processes if runtime.training.accelerate_config is None else None


@step(version=2, on_device=_devices_needed)
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
    check_execution(runtime.training, spec.adapter is not None)
    devices = visible_devices(runtime.device)
    checkpoints = Checkpoints(open_store(runtime), out.address, layout_of(runtime.training))
    job = TrainingJob(
        model=model,
        shards=shards,
        teachers=teachers,
        spec=spec,
        runtime=runtime.model_copy(update={"device": devices[0].split(":")[0]}),  # a child sees no others of that kind
        output=out.dir,
        address=out.address,
        resume=checkpoints.newest(),
        owner=os.getpid(),
    )
    try:
        with contextlib.closing(run_child(job, devices)) as records:
            for record in records:
                if "facts" in record:
                    out.facts |= record["facts"]
                elif "error" in record:
                    raise _ERRORS[record["kind"]](record["error"])
                else:
                    out.progress(record["done"], record["total"], "steps", record["message"])
    finally:
        shutil.rmtree(job.work, ignore_errors=True)  # a child that was killed left it
    out.afterwards.append(checkpoints.remove)
    return out.ref(ModelRef)
