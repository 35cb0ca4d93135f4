"""The training itself, in a process of its own: `python -m tasks.training.child JOB`, JSON lines on standard output.

A child can be killed, owns the global random generators that transformers' Trainer seeds, and takes the
cores it was given, so several trainings run side by side and each gives the same bytes as alone. Of several
processes (started by torchrun or `accelerate launch`) the first one speaks, writes and keeps checkpoints.
"""

import json
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.artifacts import StoreError
from tasks.engines import pick_device
from tasks.models.trust import trusting_code
from tasks.running.child import end_with, kind_of, open_records
from tasks.storage.store import open_store
from tasks.training.batches import Collator, Plan
from tasks.training.checkpoints import Checkpoints, layout_of
from tasks.training.course import Course
from tasks.training.examples import Examples, write_sequences
from tasks.training.failures import MEMORY_WAYS, TrainingFailed
from tasks.training.network import check_packing, copy_companions, prepare_network, save_network
from tasks.training.spec import TrainingJob

if TYPE_CHECKING:
    from tasks.training.loop import FusionTrainer, ReportProgress

PATIENCE = timedelta(hours=12)
"""How long processes wait for the first one, which encodes the corpus and uploads checkpoints; else 10 minutes."""


def run_training(job: TrainingJob, progress: "ReportProgress") -> dict[str, object]:
    """Trains, leaves a Hugging Face folder in `job.output`, and returns the facts for lineage; on every process."""
    from accelerate import PartialState

    from tasks.training.loop import Bookkeeping, FusionTrainer, arguments_for

    store, spec, how = open_store(job.runtime), job.spec, job.runtime.training
    device = pick_device(job.runtime.device)
    group = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    checkpoints = Checkpoints(store, job.address, layout_of(how))
    with group.local_main_process_first():  # the others of a machine find in its cache what the first one fetched
        folder = store.fetch(job.model)
        resume = job.resume or checkpoints.newest()
        if group.is_local_main_process:
            job.work.mkdir(parents=True, exist_ok=True)
            write_sequences(store, job.model, job.shards, job.work)
    examples = Examples(store, job.work, job.shards, job.teachers if spec.lm_weight < 1 else [])
    collator = Collator(examples.vocab_size, spec.divergence.averaged_over == "tokens", how.packing)
    plan = Plan.of(spec, len(examples))
    with group.local_main_process_first():  # encoding the corpus took long enough for a cache to let go of the model
        folder = store.fetch(job.model)
    network, head = prepare_network(folder, spec, how)
    if group.is_main_process:
        job.output.mkdir(parents=True, exist_ok=True)
        copy_companions(folder, job.output)  # first: hours later a cache may have let go of them
        check_packing(network, examples, collator)
    trackers = ["tensorboard", *how.trackers]
    arguments, passes = arguments_for(spec, plan, how.micro_batch, device, job.work, trackers)
    course = Course.read(resume)
    trainer = FusionTrainer(network, head, arguments, examples, passes, collator, spec, course)
    trainer.add_callback(Bookkeeping(trainer, checkpoints, how.checkpoint_seconds, progress))
    resumed_at = course.steps
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.check_weights()
    _save(trainer, job)
    if group.is_local_main_process:
        shutil.rmtree(job.work, ignore_errors=True)
    return {
        **_facts(trainer, plan),
        "sequences": len(examples),
        **({"left_out": examples.left_out} if examples.left_out else {}),
        "tokens": examples.num_tokens,
        "processes": arguments.world_size,
        "passes_per_step": passes.accumulation,
        "resumed_at_step": resumed_at,
    }


def _save(trainer: "FusionTrainer", job: TrainingJob) -> None:
    """Writes the model; sharded weights are gathered by all processes first."""
    state = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.process_index == 0:
        save_network(trainer.accelerator.unwrap_model(trainer.model), state, job.spec, job.output)


def _facts(trainer: "FusionTrainer", plan: Plan) -> dict[str, object]:
    course = trainer.course
    losses = [
        {k: round(v, 6) for k, v in entry.items()} | {"epoch": round(entry["step"] / plan.epoch_steps, 6)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {
        "steps": course.steps,
        "batches_sha256": course.digest,
        "train_loss": round(course.loss_sum / max(course.steps, 1), 6),
        "losses": losses,
        "tokens_per_second": round(course.tokens_per_second),
        "share_of_time_waiting_for_data": round(course.seconds_waited / max(course.seconds, 1e-9), 4),
    }


def _kind_of(error: Exception) -> str | None:
    """How the parent shall raise an error; None for a bug."""
    if isinstance(error, TrainingFailed | torch.OutOfMemoryError):
        return "failed"
    return kind_of(error)


def _words_for(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"training: expected the device's memory to suffice, found {error}; {MEMORY_WAYS}"
    is_plain = isinstance(error, TrainingFailed | ValueError | StoreError)
    return str(error) if is_plain else f"{type(error).__name__}: {error}"


def main(path: str) -> int:
    """Runs the job in the file; progress, then facts or an error for users, as JSON lines."""
    job = TrainingJob.model_validate_json(Path(path).read_bytes())
    end_with(job.owner or os.getppid())
    records = open_records()

    def tell(**record: Any) -> None:  # Any: plain JSON
        if os.environ.get("RANK", "0") == "0":
            records.write(json.dumps(record) + "\n")

    def progress(done: int, total: int, message: str) -> None:
        tell(done=done, total=total, message=message)

    try:
        with trusting_code(job.runtime.model_code):
            facts = run_training(job, progress)
    except Exception as error:
        kind = _kind_of(error)
        if kind is None:
            raise  # a bug: its traceback is the child's last words
        tell(error=_words_for(error), kind=kind)
        return 2
    tell(facts=facts)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
