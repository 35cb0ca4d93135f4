"""The training itself, in a process of its own: `python -m tasks.trainer JOB`, JSON lines on standard output.

A child can be killed, owns the global random generators that transformers' Trainer seeds, and takes the
cores it was given, so several trainings run side by side and each gives the same bytes as alone.
"""

import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from fusion_core.distributions import absent_rows, concatenate, take_rows
from fusion_core.divergences import Divergence, SoftCrossEntropy
from fusion_core.losses import fusion_loss, fusion_loss_from_logits, raise_lm_weight
from fusion_core.objective import IGNORED_LABEL
from fusion_core.spec import Spec
from fusion_core.types import TokenDist, Tokens
from tasks.artifacts import FusedRef, ModelRef, Runtime, ShardRef, StoreError
from tasks.documents import read_documents
from tasks.engines import Dtype, check_window, pad_batch, pick_device, split_head
from tasks.models import (
    WEIGHTS_INDEX,
    context_window,
    encode_documents,
    load_config,
    load_model,
    load_tokenizer,
    vocabulary_of,
)
from tasks.shards import read_fused
from tasks.store import Store, open_store
from tasks.transient import is_transient

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

ReportProgress = Callable[[int, int, str], None]


class TrainingSpec(Spec):
    """The objective and its optimisation. Defaults are the paper's where it names them."""

    lm_weight: float = Field(0.9, ge=0, le=1, title="Weight of language modelling", description="1: no teacher at all.")
    lm_weight_schedule: Literal["fixed", "rising"] = Field(
        "fixed",
        title="Course of that weight",
        description="rising: linearly from lm_weight to 1 over all steps, so that the teacher fades out.",
    )
    divergence: Divergence = Field(
        SoftCrossEntropy(),
        title="Divergence from the teacher",
        description="How a distribution is compared with the teacher's.",
    )
    epochs: float = Field(1.0, gt=0, title="Epochs", description="How often the corpus is seen.")
    learning_rate: float = Field(1e-5, gt=0, title="Learning rate", description="Its highest value.")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", title="Schedule", description="How the learning rate falls after the warm-up."
    )
    warmup_share: float = Field(0.008, ge=0, lt=1, title="Warm-up", description="Share of all steps.")
    batch_sequences: int = Field(
        128, gt=0, title="Sequences per step", description="Documents in one step of the optimizer."
    )
    betas: tuple[float, float] = Field((0.9, 0.95), title="Adam betas", description="Decay of the running means.")
    weight_decay: float = Field(0.1, ge=0, title="Weight decay", description="As AdamW has it.")
    max_grad_norm: float = Field(1.0, gt=0, title="Gradient clip", description="Largest norm of a step's gradient.")
    dtype: Dtype = Field("float32", title="Precision", description="bfloat16 and float16 train in mixed precision.")
    seed: int = Field(0, ge=0, title="Seed", description="Of the data order.")

    def without_teacher(self) -> Self:
        """The same optimisation of language modelling alone; what concerned the teacher is back at its default."""
        defaults = type(self)()
        update = {"lm_weight_schedule": defaults.lm_weight_schedule, "divergence": defaults.divergence}
        return self.model_copy(update={"lm_weight": 1.0, **update})

    def lm_weight_at(self, step: int, max_steps: int) -> float:
        """The weight of language modelling at a step, the first being 0."""
        if self.lm_weight_schedule == "fixed":
            return self.lm_weight
        return raise_lm_weight(self.lm_weight, step, max_steps)


class TrainingJob(BaseModel):
    """What the child is told: addresses, the objective, and where to leave the model."""

    model: ModelRef
    shards: list[ShardRef]
    teachers: list[FusedRef]
    spec: TrainingSpec
    runtime: Runtime
    output: Path


@dataclass(frozen=True)
class _Example:
    """One sequence and, except for plain language modelling, its teacher: one row per token."""

    ids: Tensor
    teacher: TokenDist | None


@dataclass
class _Collator:
    """Pads sequences and joins their teachers; remembers a digest of all batches, the proof of equal data order."""

    digest: Any = field(default_factory=hashlib.sha256)  # Any: hashlib names no type for its objects

    def __call__(self, examples: list[_Example]) -> dict[str, Any]:
        ids, mask = pad_batch([e.ids for e in examples], padding=0)
        self.digest.update(ids.numpy().tobytes())
        labels = torch.where(mask.bool(), ids, IGNORED_LABEL)
        labels[:, 0] = IGNORED_LABEL  # nothing predicts the first token
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if examples[0].teacher is not None:
            batch["teacher"] = concatenate([e.teacher for e in examples if e.teacher is not None])
        return batch


def run_training(job: TrainingJob, progress: ReportProgress) -> dict[str, object]:
    """Trains, leaves a Hugging Face folder in `job.output`, and returns the facts for lineage."""
    store, spec = open_store(job.runtime), job.spec
    folder = store.fetch(job.model)
    examples = _read_examples(store, folder, job.shards, job.teachers if spec.lm_weight < 1 else [])
    collator = _Collator()
    trainer = _trainer(folder, examples, collator, job, progress)
    _copy_companions(folder, job.output)  # first: hours later a cache may have let go of them
    result = trainer.train()
    trainer.model.save_pretrained(job.output)  # type: ignore[union-attr, operator]
    shutil.rmtree(_work_folder(job.output), ignore_errors=True)
    tokens = sum(len(e.ids) for e in examples)
    losses = [{k: round(v, 6) for k, v in entry.items()} for entry in trainer.state.log_history if "loss" in entry]
    return {
        "steps": trainer.state.global_step,
        "sequences": len(examples),
        "tokens": tokens,
        "batches_sha256": collator.digest.hexdigest(),
        "train_loss": round(result.training_loss, 6),
        "losses": losses,
        "tokens_per_second": round(tokens * spec.epochs / result.metrics["train_runtime"]),
    }


def _read_examples(store: Store, folder: Path, shards: list[ShardRef], teachers: list[FusedRef]) -> list[_Example]:
    tokenizer = load_tokenizer(folder)
    vocabulary, window = vocabulary_of(tokenizer), context_window(load_config(folder))
    examples = []
    for number, shard in enumerate(shards):
        documents = read_documents(store, shard)
        tokens = encode_documents(tokenizer, vocabulary, [d.text for d in documents], [d.final for d in documents])
        check_window(window, tokens, [len(d.text.encode()) for d in documents])
        teacher = read_fused(store.fetch(teachers[number])).dist if teachers else None
        examples += list(_examples(tokens, teacher, shard.index, vocabulary.size))
    return examples


def _examples(tokens: Tokens, teacher: TokenDist | None, shard: int, vocab_size: int) -> list[_Example]:
    if teacher is not None and (teacher.num_rows, teacher.vocab_size) != (tokens.ids.shape[0], vocab_size):
        raise ValueError(
            f"shard {shard}: expected a teacher of {tokens.ids.shape[0]} rows over {vocab_size} tokens, "
            f"found {teacher.num_rows} over {teacher.vocab_size}; align and fuse for this target"
        )
    bounds = tokens.doc_offsets.tolist()
    return [
        _Example(tokens.ids[start:stop], None if teacher is None else teacher.rows(start, stop))
        for start, stop in itertools.pairwise(bounds)
        if stop - start > 1
    ]


def _trainer(
    folder: Path, examples: list[_Example], collator: _Collator, job: TrainingJob, progress: ReportProgress
) -> "Trainer":
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class FusionTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(  # type: ignore[override]
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | int | None = None,
        ) -> Tensor:
            lm_weight = spec.lm_weight_at(self.state.global_step, self.state.max_steps)
            return _loss(model, inputs, lm_weight, spec.divergence, num_items_in_batch)

    class Progress(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress(state.global_step, state.max_steps, "steps")

    spec, device = job.spec, pick_device(job.runtime.device)
    steps = -(-len(examples) // spec.batch_sequences) * spec.epochs
    arguments = TrainingArguments(
        output_dir=str(_work_folder(job.output)),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch_sequences,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=round(spec.warmup_share * steps),
        adam_beta1=spec.betas[0],
        adam_beta2=spec.betas[1],
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        bf16=spec.dtype == "bfloat16",
        fp16=spec.dtype == "float16",
        seed=spec.seed,
        data_seed=spec.seed,
        use_cpu=device.type == "cpu",
        logging_steps=max(1, round(steps / 100)),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    network = load_model(folder, "float32", device)
    network.train()
    trainer = FusionTrainer(
        model=network,
        args=arguments,
        train_dataset=examples,
        data_collator=collator,
        callbacks=[Progress()],  # type: ignore[arg-type]
    )
    trainer.model_accepts_loss_kwargs = True  # our loss takes num_items_in_batch, whatever the model's forward does
    return trainer


def _loss(
    model: "PreTrainedModel",
    inputs: dict[str, Any],
    lm_weight: float,
    divergence: Divergence,
    num_labels: Tensor | int | None,
) -> Tensor:
    mask = inputs["attention_mask"]
    labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)  # row i, label i + 1
    kept = mask.bool() if divergence.averaged_over == "tokens" else labels != IGNORED_LABEL
    row_labels = labels[kept]
    teacher = inputs.get("teacher")
    if teacher is None:
        teacher = absent_rows(row_labels.shape[0], model.get_input_embeddings().weight.shape[0], row_labels.device)
    else:
        teacher = take_rows(teacher, kept[mask.bool()].nonzero().squeeze(1))
    settings: dict[str, Any] = {"lm_weight": lm_weight, "divergence": divergence, "num_labels": num_labels}
    head = split_head(model)
    if head is None:
        logits = model(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).logits
        return fusion_loss_from_logits(logits[kept], row_labels, teacher, **settings).loss
    hidden = head.body(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False).last_hidden_state
    return fusion_loss(hidden[kept], head.weight, row_labels, teacher, head_bias=head.bias, **settings).loss


def _copy_companions(folder: Path, target: Path) -> None:
    """Copies what belongs to a model besides its weights and what the Trainer has just written."""
    for path in folder.iterdir():
        is_weights = path.suffix == ".safetensors" or path.name == WEIGHTS_INDEX
        if path.is_file() and not is_weights and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def _work_folder(output: Path) -> Path:
    return output.parent / f".{output.name}-trainer"


def _end_with_parent(parent: int) -> None:
    """Ends this process once whoever wanted the model is gone, killed even."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(path: str) -> int:
    """Runs the job in the file; progress, then facts or an error for users, as JSON lines."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    records = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no record

    def tell(**record: object) -> None:
        records.write(json.dumps(record) + "\n")

    def progress(done: int, total: int, unit: str) -> None:
        tell(done=done, total=total, unit=unit)

    job = TrainingJob.model_validate_json(Path(path).read_bytes())
    try:
        facts = run_training(job, progress)
    except Exception as error:
        if isinstance(error, ValueError):
            tell(error=str(error), kind="input")
        elif isinstance(error, StoreError):
            tell(error=str(error), kind="store")
        elif is_transient(error):
            tell(error=f"{type(error).__name__}: {error}", kind="transient")
        else:
            raise  # a bug: its traceback is the child's last words
        return 2
    tell(facts=facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
