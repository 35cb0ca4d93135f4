"""Engines: what turns a model and a shard's tokens into its distributions.

An engine is a callable `Spec`, so that another one (a server, another runtime) is another word in a recipe.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fusion_core.distributions import NO_LABEL, ExtractionMode, absent_rows, concatenate, finite_rows, reduce_logits
from fusion_core.spec import Spec
from fusion_core.types import NO_BOUNDARY, Scored, TokenDist, Tokens
from tasks.models import one_at_a_time

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16"]


class TransformersEngine(Spec):
    """Any causal language model that `transformers` loads."""

    kind: Literal["transformers"] = "transformers"
    dtype: Dtype = Field(
        "float32", title="Precision", description="Of weights and activations; normalisers are always fp32."
    )


@torch.inference_mode()
def score_tokens(
    model: "PreTrainedModel",
    tokens: Tokens,
    mode: ExtractionMode,
    vocab_size: int,
    *,
    batch_tokens: int,
    first_key: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> tuple[Scored, list[int]]:
    """The model's distributions over every document, and the numbers of quarantined documents.

    Documents are batched by length, `batch_tokens` padded tokens at a time (half of it after the device ran
    out of memory). The random draws of row `i` depend on the key `first_key + i` alone, so two shards of one model
    take keys that don't overlap. A document with a NaN or an infinity in its logits is quarantined: its rows are
    absent and stand at no boundary, and its nll is NaN.
    """
    lengths = tokens.doc_offsets.diff().tolist()
    starts = tokens.doc_offsets.tolist()
    order = sorted(range(tokens.num_docs), key=lambda d: (lengths[d], d))
    dists: dict[int, TokenDist] = {}
    nll = torch.full((tokens.ids.shape[0],), torch.nan)
    quarantined = []
    done = 0
    queue = list(_batches(order, lengths, batch_tokens))
    while queue:
        batch = queue.pop(0)
        ids = [tokens.ids[starts[d] : starts[d + 1]] for d in batch]
        keys = torch.cat([torch.arange(starts[d], starts[d + 1]) for d in batch]) + first_key
        try:
            scored = _score_batch(model, ids, keys, mode, vocab_size)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            queue[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            continue
        for document, (dist, costs) in zip(batch, scored, strict=True):
            if dist is None:
                quarantined.append(document)
                dist = absent_rows(lengths[document], vocab_size)
            else:
                nll[starts[document] : starts[document + 1]] = costs
            dists[document] = dist
            done += lengths[document]
        progress(done, starts[-1], "tokens")
    dist = concatenate([dists[d] for d in range(tokens.num_docs)])
    boundaries = tokens.boundaries.clone()
    for document in quarantined:
        boundaries[starts[document] : starts[document + 1]] = NO_BOUNDARY
    return Scored(replace(tokens, boundaries=boundaries), dist, nll), sorted(quarantined)


def pad_batch(sequences: list[Tensor], padding: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), [batch, longest]; padded on the right."""
    longest = max(len(ids) for ids in sequences)
    padded = torch.full((len(sequences), longest), padding, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, ids in enumerate(sequences):
        padded[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return padded, mask


def _batches(order: list[int], lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for document in order:  # rising lengths: the newest document is the longest
        if batch and (len(batch) + 1) * lengths[document] > batch_tokens:
            yield batch
            batch = []
        batch.append(document)
    if batch:
        yield batch


def _score_batch(
    model: "PreTrainedModel", sequences: list[Tensor], row_keys: Tensor, mode: ExtractionMode, vocab_size: int
) -> list[tuple[TokenDist | None, Tensor]]:
    ids, mask = pad_batch(sequences, padding=0)
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    labels = torch.full_like(ids, NO_LABEL)
    labels[:, :-1] = torch.where(mask[:, 1:] > 0, ids[:, 1:], NO_LABEL)
    kept = mask.bool()
    rows = logits[kept.to(logits.device)]
    finite = finite_rows(rows, vocab_size)
    rows[~finite] = 0.0  # of quarantined documents; dropped below
    labels, row_keys = labels[kept].to(rows.device), row_keys.to(rows.device)
    dist, nll = reduce_logits(rows, labels, mode, vocab_size, row_keys=row_keys)
    dist, nll, finite = dist.to("cpu"), nll.cpu(), finite.cpu()
    results: list[tuple[TokenDist | None, Tensor]] = []
    start = 0
    for sequence in sequences:
        stop = start + len(sequence)
        whole = bool(finite[start:stop].all())
        results.append((dist.rows(start, stop) if whole else None, nll[start:stop]))
        start = stop
    return results


@dataclass(frozen=True)
class Head:
    """A model taken apart: its body gives hidden states, `weight` [vocab, hidden] and `bias` turn them into logits."""

    body: Callable[..., Any]  # Any: transformers' output classes
    weight: Tensor
    bias: Tensor | None


def split_head(model: "PreTrainedModel") -> Head | None:
    """Body and head of a model whose logits are exactly `hidden @ weight.T + bias`; None where more happens to them."""
    head = model.get_output_embeddings()
    text_config = model.config.get_text_config()
    scaled = any(
        getattr(text_config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )
    if type(head) is not torch.nn.Linear or model.base_model is model or scaled:
        return None
    return Head(model.base_model, head.weight, head.bias)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first of CUDA, MPS and CPU. Raises `ValueError` for one not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected one of this machine's devices, found {name!r}; try cpu or auto") from error


def tokens_per_batch(asked: int | None, device: torch.device) -> int:
    """What was asked for, or what suits the device: caches make small batches the faster ones on a CPU."""
    return asked or (2048 if device.type == "cpu" else 16384)


def count_parameters(config: "PretrainedConfig", *, trusted: bool = False) -> int:
    """How many numbers the model has, weights that it repeats counted once; none of them is made.

    trusted: whether code that lies beside the config may run.
    """
    with one_at_a_time:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    return sum(parameter.numel() for parameter in network.parameters())


def check_window(window: int | None, tokens: Tokens, sizes: Sequence[int]) -> None:
    """Raises `ValueError` when a piece has more tokens than the model reads, naming the `max_bytes` that fits.

    sizes: bytes of each piece.
    """
    lengths = tokens.doc_offsets.diff().tolist()
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if window is None or longest is None or lengths[longest] <= window:
        return
    bytes_per_token = min(size / length for size, length in zip(sizes, lengths, strict=True) if length > window)
    fitting = int(bytes_per_token * window * 0.9)
    raise ValueError(
        f"corpus.max_bytes: expected pieces of at most {window} tokens, the model's window, "
        f"found one of {lengths[longest]} ({sizes[longest]} bytes); set corpus.max_bytes to {fitting} or less"
    )
