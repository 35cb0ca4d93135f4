"""The engine of models that `transformers` loads: one forward pass per batch, logits a few rows at a time."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fusion_core.distributions import NO_LABEL, ExtractionMode, concatenate, finite_rows, reduce_logits
from fusion_core.spec import Spec
from fusion_core.types import TokenDist, Tokens
from tasks.artifacts import Runtime
from tasks.engines.batches import pad_batch, plan_batches
from tasks.engines.devices import Dtype, memory_for_weights, pick_device, tokens_per_batch
from tasks.engines.heads import split_head
from tasks.engines.scoring import DocumentRows, Problem
from tasks.models.folders import load_model
from tasks.running.devices import visible_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_FINITE = Problem("NaN or infinite logits", "try engine.dtype float32")
_HEAD_ELEMENTS = 2**25  # logits that exist at a time, in the model's dtype ...
_HEAD_ROWS = 512  # ... and no fewer rows: each chunk reads the head's whole weight for them


class TransformersEngine(Spec):
    """Any causal language model that `transformers` loads."""

    kind: Literal["transformers"] = "transformers"
    dtype: Dtype = Field(
        "float32", title="Precision", description="Of weights and activations; normalisers are always fp32."
    )

    def devices_needed(self, runtime: Runtime) -> int | None:
        """One, or all that the runtime names (None) for a model that is spread over them."""
        return None if runtime.spread else 1

    def __call__(self, folder: Path, mode: ExtractionMode, vocab_size: int, runtime: Runtime) -> "ModelScorer":
        """The model of a Hugging Face folder, on the runtime's device, or spread over all of them and no other."""
        options: dict[str, Any] = {}  # Any: keyword arguments of transformers
        if runtime.attention != "auto":
            options["attn_implementation"] = runtime.attention
        if runtime.spread:
            options |= {"device_map": "auto", "max_memory": memory_for_weights(visible_devices(runtime.device))}
        model = load_model(folder, self.dtype, pick_device(runtime.device), **options)
        batch_tokens = tokens_per_batch(runtime.batch_tokens, model.device)
        return ModelScorer(model, mode, vocab_size, batch_tokens=batch_tokens, compile=runtime.compile)


class ModelScorer:
    """A model in memory as a `Scorer`.

    The hidden states of a batch are multiplied with the head a chunk of rows at a time, and each chunk is reduced to
    what is kept before the next one is made. A model without a head that can be split off gives all logits of a batch
    at once, in its own dtype; they are reduced in chunks too.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        mode: ExtractionMode,
        vocab_size: int,
        *,
        batch_tokens: int,
        compile: bool = False,
    ) -> None:
        """vocab_size: ids of the tokenizer; no id from there on becomes a candidate.

        batch_tokens: padded tokens per batch; halved for good whenever the device runs out of memory.
        compile: whether `torch.compile` is applied, which pays for long shards only.
        """
        self._model, self._mode, self._vocab_size = model, mode, vocab_size
        self.batch_tokens = batch_tokens
        self.head = split_head(model)
        forward = model if self.head is None else self.head.body
        self._forward = torch.compile(forward, dynamic=True) if compile else forward
        self._buffer = torch.empty(0)

    @property
    def facts(self) -> dict[str, object]:
        """Whether the head is split off, and the tokens per batch that the device had memory for."""
        return {"head": "all logits at once" if self.head is None else "in chunks", "batch_tokens": self.batch_tokens}

    def __call__(self, tokens: Tokens, row_keys: Tensor) -> Iterator[DocumentRows]:
        """The rows of every document that has tokens.

        Quarantined is a document with a NaN or an infinity among its logits.
        Raises `torch.OutOfMemoryError` when a single document is too much for the device.
        """
        starts, lengths = tokens.doc_offsets.tolist(), tokens.doc_offsets.diff().tolist()
        waiting = deque(plan_batches([d for d, n in enumerate(lengths) if n], lengths, self.batch_tokens))
        while waiting:
            batch = waiting[0]
            spans = [slice(starts[d], starts[d + 1]) for d in batch]
            try:
                rows = self._score([tokens.ids[span] for span in spans], torch.cat([row_keys[span] for span in spans]))
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                rows = None  # what the failed pass holds is freed once this block is left
            if rows is None:
                torch.cuda.empty_cache()
                self.batch_tokens = len(batch) * lengths[batch[-1]] // 2
                waiting = deque(plan_batches([d for b in waiting for d in b], lengths, self.batch_tokens))
                continue
            waiting.popleft()
            for document, (dist, nll) in zip(batch, rows, strict=True):
                yield DocumentRows(document, dist, nll, problem=None if dist is not None else NOT_FINITE)

    @torch.inference_mode()
    def _score(self, sequences: list[Tensor], row_keys: Tensor) -> list[tuple[TokenDist | None, Tensor]]:
        """Distribution (None if anything in it isn't finite) and nll of each sequence."""
        ids, mask = pad_batch(sequences, padding=0)
        labels = torch.full_like(ids, NO_LABEL)
        labels[:, :-1] = torch.where(mask[:, 1:] > 0, ids[:, 1:], NO_LABEL)
        kept, device = mask.bool(), self._model.device
        given = self._forward(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        states = given.logits if self.head is None else given.last_hidden_state
        dist, nll, finite = self._reduce(states[kept.to(states.device)], labels[kept], row_keys)
        results: list[tuple[TokenDist | None, Tensor]] = []
        start = 0
        for sequence in sequences:
            stop = start + len(sequence)
            whole = bool(finite[start:stop].all())
            results.append((dist.rows(start, stop) if whole else None, nll[start:stop]))
            start = stop
        return results

    def _reduce(self, states: Tensor, labels: Tensor, row_keys: Tensor) -> tuple[TokenDist, Tensor, Tensor]:
        """Distributions, nll and finiteness, on the CPU, of rows of hidden states (or logits, without a head)."""
        size = len(states) if self.head is None else max(_HEAD_ROWS, _HEAD_ELEMENTS // self.head.weight.shape[0])
        parts = []
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            logits = states[chunk] if self.head is None else self.head(states[chunk], out=self._room(states[chunk]))
            finite = finite_rows(self._mode.round_logits(logits), self._vocab_size)
            if not bool(finite.all()):
                logits[~finite] = 0.0  # their documents are quarantined
            target, keys = labels[chunk].to(logits.device), row_keys[chunk].to(logits.device)
            dist, nll = reduce_logits(logits, target, self._mode, self._vocab_size, row_keys=keys)
            parts.append((dist.to("cpu"), nll.cpu(), finite.cpu()))
        dists, nlls, finites = zip(*parts, strict=True)
        return concatenate(dists), torch.cat(nlls), torch.cat(finites)

    def _room(self, states: Tensor) -> Tensor:
        """Room for a chunk's logits, the same one for every chunk: new pages cost more than the head's own writes."""
        assert self.head is not None
        weight = self.head.weight
        if len(self._buffer) < len(states):
            self._buffer = weight.new_empty(len(states), weight.shape[0])
        return self._buffer[: len(states)]
