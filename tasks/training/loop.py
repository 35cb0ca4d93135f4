"""transformers' Trainer with our batches and loss: what happens in a step, on one process or on many."""

import itertools
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from tasks.training.batches import Collator, Passes, Plan
from tasks.training.checkpoints import Checkpoints
from tasks.training.course import Course
from tasks.training.examples import Examples
from tasks.training.failures import TrainingFailed
from tasks.training.loss import LossHead, training_loss
from tasks.training.spec import TrainingSpec

ReportProgress = Callable[[int, int, str], None]
"""Called after every step with its number, the number of all steps, and how it goes in words."""
_PASSES_AHEAD = 4
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_PICKLED_ARGUMENTS = "training_args.bin"  # written by the Trainer into every checkpoint, read by nobody


class FusionTrainer(Trainer):  # type: ignore[misc]
    """One pass over the whole plan of steps, as an epoch of the Trainer's."""

    def __init__(
        self,
        network: Any,  # Any: a PreTrainedModel, or peft's wrapper of one
        head: LossHead | None,
        arguments: TrainingArguments,
        examples: Examples,
        passes: Passes,
        collator: Collator,
        spec: TrainingSpec,
        course: Course,
    ) -> None:
        self.head, self.examples, self.passes, self.spec, self.course = head, examples, passes, spec, course
        self._collator = collator
        self._ahead: Iterator[dict[str, Any]] | None = None
        self._step_loss = torch.zeros(())
        self.last_checkpoint = course.steps
        super().__init__(model=network, args=arguments, train_dataset=examples)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the labels of a step, not by its passes

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All passes of this process. Its random draws are its own, or resuming would shift those of training."""
        return DataLoader(
            self.examples, batch_sampler=self.passes, collate_fn=self._collator, generator=torch.Generator()
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int]:
        """A step's passes, read ahead by a thread, and the step's labels on all processes."""
        if self._ahead is None:
            self._ahead = _read_ahead(epoch_iterator)
        began = time.perf_counter()
        batches = list(itertools.islice(self._ahead, num_batches))
        self.course.seconds_waited += time.perf_counter() - began
        self.numbers = [int(number) for batch in batches for number in batch["numbers"]]
        counts = torch.tensor(
            [
                sum(int((batch["labels"] >= 0).sum()) for batch in batches),
                sum(len(batch["labels"]) for batch in batches),
                sum(int(batch["marks"].sum()) for batch in batches) % 2**62,
                sum(batch["num_tokens"] for batch in batches),
            ]
        )
        self._labels, self._rows, self._marks, self._tokens = self._sum(counts).tolist()
        return batches, self._labels

    def compute_loss(  # type: ignore[override]
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """A pass's share of the step's loss, times the processes, over which gradients are averaged."""
        loss = training_loss(
            model,
            self.head,
            inputs,
            lm_weight=self.spec.lm_weight_at(self.state.global_step, self.state.max_steps),
            divergence=self.spec.divergence,
            num_labels=max(self._labels, 1),
            num_rows=max(self._rows, 1),
        )
        self._step_loss = self._step_loss.to(loss.device) + loss.detach()
        return loss * int(self.args.world_size)

    def finish_step(self) -> None:
        """Notes the step, before its gradients are applied. Raises `TrainingFailed` where the loss isn't a number."""
        loss = float(self._sum(self._step_loss.double().cpu()))
        self._step_loss = torch.zeros(())
        if loss - loss != 0:  # NaN or infinite
            raise TrainingFailed(self._explain(f"a finite loss, found {loss}", self.state.global_step + 1))
        self.course.add_step(loss, self._marks % 2**62, self._tokens)

    def check_weights(self) -> None:
        """Raises `TrainingFailed` rather than let weights that aren't numbers into a checkpoint or a model."""
        if not all(bool(p.detach().isfinite().all()) for p in self.model.parameters() if p.requires_grad):
            raise TrainingFailed(self._explain("finite weights, found nan or infinity", self.state.global_step))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hands curves on, with the loss of all steps of the window, those before a resumption included."""
        if "loss" in logs:
            logs["loss"] = self.course.close_window()
        super().log(logs, start_time)

    def is_agreed(self, wish: bool) -> bool:
        """The wish of the first process, to all of them."""
        mine = torch.tensor(int(wish and self.args.process_index == 0))
        return bool(self._sum(mine))

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        if self.args.world_size == 1:
            return values
        moved = values.to(self.args.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def _explain(self, wanted: str, step: int) -> str:
        names = sorted({self.examples.document(number) for number in self.numbers})
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        kept = f"of step {self.last_checkpoint}" if self.last_checkpoint else "none"
        return (
            f"training: expected {wanted} at step {step} of {self.state.max_steps}, learning from {shown} "
            f"(last good checkpoint: {kept}); lower training.learning_rate or look at these documents"
        )


class Bookkeeping(TrainerCallback):  # type: ignore[misc]
    """Progress, and a checkpoint whenever the last one is `every` seconds old."""

    def __init__(
        self, trainer: FusionTrainer, checkpoints: Checkpoints, every: float | None, progress: ReportProgress
    ) -> None:
        self.trainer, self.checkpoints, self.every, self.progress = trainer, checkpoints, every, progress
        self._clock = self._saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self._clock = self._saved = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        self.trainer.finish_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        now, course = time.monotonic(), self.trainer.course
        course.seconds += now - self._clock
        self._clock = now
        last = next((f"loss {e['loss']:.4f}, " for e in reversed(state.log_history) if "loss" in e), "")
        self.progress(state.global_step, state.max_steps, f"{last}{course.tokens_per_second:.0f} tokens/s")
        is_due = self.every is not None and now - self._saved >= self.every and state.global_step < state.max_steps
        control.should_save = self.trainer.is_agreed(is_due)
        if control.should_save:
            self.trainer.check_weights()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: D102
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if args.process_index == 0:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            (folder / _PICKLED_ARGUMENTS).unlink(missing_ok=True)
            self.trainer.course.write(folder)
            self.checkpoints.save(folder, state.global_step)
            shutil.rmtree(folder, ignore_errors=True)
        self.trainer.last_checkpoint = state.global_step
        self._saved = time.monotonic()


def arguments_for(
    spec: TrainingSpec, plan: Plan, micro_batch: int | None, device: torch.device, work: Path, trackers: list[str]
) -> tuple[TrainingArguments, Passes]:
    """The Trainer's arguments, and the passes of this process; joins the group of processes."""
    steps = plan.epoch_steps * spec.epochs
    # Of the recipe alone: where that says float32, the Trainer takes what accelerate's launcher has left here.
    os.environ["ACCELERATE_MIXED_PRECISION"] = _PRECISIONS[spec.dtype]
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=plan.num_steps,
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
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        logging_steps=max(1, round(steps / 100)),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=trackers,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    passes = Passes(plan, arguments.world_size, arguments.process_index, micro_batch)
    arguments.per_device_train_batch_size = passes.size
    arguments.gradient_accumulation_steps = passes.accumulation
    return arguments, passes


def _read_ahead(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same, made by a thread a few ahead of what is asked for."""
    ready: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(maxsize=_PASSES_AHEAD)

    def fill() -> None:
        try:
            for batch in batches:
                ready.put(batch)
            ready.put(None)
        except BaseException as error:  # it belongs to whoever waits for the batch
            ready.put(error)

    threading.Thread(target=fill, name="read-ahead", daemon=True).start()
    while (found := ready.get()) is not None:
        if isinstance(found, BaseException):
            raise found
        yield found
