"""Extracting against the bare forward pass of the same model on the same batches: tokens per second, and memory.

MFU is the share of the device's arithmetic that extraction puts into the model's own: the forward pass's operations per
second, in those of one large product of matrices of the same dtype, run beside it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusion_core.distributions import TopK
from fusion_core.types import Tokens
from tasks.engines import ModelScorer, pad_batch, plan_batches, score_tokens
from tests.bench.rows import Action, Row, Skip, measure_peak, race, time_once

_HIDDEN, _LAYERS, _KEPT, _LENGTH = 512, 8, 10, 256

Act = Callable[[Any, torch.Tensor, torch.Tensor], object]
"""What a twin does with a model and a padded batch; ours is `None`."""


def rows() -> Iterator[Row | Skip]:
    """Per vocabulary against the model's own logits and against its hidden states alone; then the memory."""
    for vocab in (32_000, 152_000):
        yield _compare("cpu", torch.float32, vocab, 8, 1 / 0.9)
    yield _compare_memory(128_000, 8)
    if torch.cuda.is_available():
        yield _compare("cuda", torch.bfloat16, 152_000, 256, 1 / 0.95)
    else:
        yield Skip("extraction on a GPU, V 152000", "there is no CUDA device")


def _compare(device: str, dtype: torch.dtype, vocab: int, documents: int, limit: float) -> Row:
    ours, forward, body = (partial(_prepare, device, dtype, vocab, documents, act) for act in (None, _logits, _hidden))
    extract = ours()
    seconds, twin_seconds = race(extract, forward(), 2, device)
    again, body_seconds = race(extract, body(), 1, device)
    tokens = documents * _LENGTH
    mfu = _count_operations(forward()) / seconds / _multiply_matrices(device, dtype)
    twin = (
        f"forward alone; {tokens / seconds:,.0f} against {tokens / twin_seconds:,.0f} tokens/s, "
        f"{again / body_seconds:.2f} x of hidden states alone; MFU {mfu:.2f}"
    )
    name = f"extraction, {device}, H {_HIDDEN}, V {vocab}, k {_KEPT}"
    return Row(name, seconds, twin, twin_seconds, float("nan"), f"<= {limit:.3f} x")


def _compare_memory(vocab: int, documents: int) -> Row:
    ours, naive = (partial(_prepare, "cpu", torch.float32, vocab, documents, act) for act in (None, _log_softmax))
    peak, naive_peak = measure_peak(ours), measure_peak(naive)
    seconds, twin_seconds = race(ours(), naive(), 1)
    target = f"<= {naive_peak / 7:.0f} MiB (a seventh)"
    twin = f"fp32 log_softmax of all logits, {naive_peak:.0f} MiB"
    return Row(f"its memory, V {vocab}, T {documents * _LENGTH}", seconds, twin, twin_seconds, peak, target)


def _prepare(device: str, dtype: torch.dtype, vocab: int, documents: int, act: Act | None) -> Action:
    """The action on a random Llama and documents of equal length, so that both see the same batches."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=_HIDDEN,
        intermediate_size=4 * _HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=8,
    )
    model = LlamaForCausalLM(config).to(device, dtype).eval()
    ids = torch.randint(vocab, (documents * _LENGTH,))
    tokens = Tokens(ids, torch.arange(len(ids)), torch.arange(0, len(ids) + 1, _LENGTH))
    batch_tokens = 2048 if device == "cpu" else 16384
    if act is None:
        scorer = ModelScorer(model, TopK(k=_KEPT), vocab, batch_tokens=batch_tokens)
        return partial(score_tokens, scorer, tokens, vocab)
    return partial(_run_batches, model, tokens, batch_tokens, act)


def _count_operations(forward: Action) -> int:
    # Fused attention isn't counted on CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def _multiply_matrices(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a product of square matrices."""
    size = 8192 if device == "cuda" else 2048
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    seconds = min(time_once(lambda: matrix @ matrix, device) for _ in range(5))
    return 2 * size**3 / seconds


def _run_batches(model: Any, tokens: Tokens, batch_tokens: int, act: Act) -> None:
    lengths, starts = tokens.doc_offsets.diff().tolist(), tokens.doc_offsets.tolist()
    for batch in plan_batches(range(len(lengths)), lengths, batch_tokens):
        ids, mask = pad_batch([tokens.ids[starts[d] : starts[d + 1]] for d in batch], padding=0)
        with torch.inference_mode():
            act(model, ids.to(model.device), mask.to(model.device))


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> object:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def _hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> object:
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _log_softmax(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> object:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1).topk(_KEPT)
