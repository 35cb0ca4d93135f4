"""The fused head, CLM and divergence, forward and backward, against cross-entropy alone.

Time against the library's cross-entropy on full logits; memory against a chunked cross-entropy that keeps no more than
one chunk of logits, which its own gradient overwrites. The divergence comes on top in both comparisons.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

from fusion_core.losses import fusion_loss
from fusion_core.types import TokenDist
from tests.bench.rows import Action, Prepare, Row, Skip, measure_peak, race

_CHUNK_ROWS = 512
_KEPT = 10


@dataclass(frozen=True)
class Size:
    """How large a case is, and where it runs."""

    rows: int
    hidden: int
    vocab: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.device}, T {self.rows}, H {self.hidden}, V {self.vocab}"


Act = Callable[[Tensor, Tensor, Tensor, TokenDist], object]


def rows() -> Iterator[Row | Skip]:
    """Two rows per vocabulary on the CPU, and on a GPU one against Liger's fused cross-entropy where it is there."""
    for vocab in (32_000, 152_000):
        yield from _compare(Size(2048, 512, vocab))
    if torch.cuda.is_available():
        yield _compare_on_gpu(Size(8192, 4096, 128_256, torch.bfloat16, "cuda"))
    else:
        yield Skip("fusion loss on a GPU, V 128256", "there is no CUDA device")


def _compare(size: Size) -> Iterator[Row]:
    ours, full, chunked = (partial(_prepare, size, act) for act in (_fuse, _full_cross_entropy, _chunked_cross_entropy))
    peak, chunked_peak, full_peak = map(measure_peak, (ours, chunked, full))
    yield _row(f"fusion loss, {size}", ours, "cross_entropy of full logits", full, peak, "<= 1.15 x")
    room = 1.1 * chunked_peak
    twin = f"chunked cross_entropy, {chunked_peak:.0f} MiB; full logits, {full_peak:.0f} MiB"
    yield _row(f"its memory, {size}", ours, twin, chunked, peak, f"<= {room:.0f} MiB (+ 10 %)", repeats=1)


def _compare_on_gpu(size: Size) -> Row:
    name, act = _best_on_gpu()
    ours, other = partial(_prepare, size, _fuse), partial(_prepare, size, act)
    peak, other_peak = (measure_peak(prepare, size.device) for prepare in (ours, other))
    target = f"<= 1.1 x, <= {1.1 * other_peak:.0f} MiB (+ 10 %)"
    return _row(f"fusion loss, {size}", ours, f"{name}, {other_peak:.0f} MiB", other, peak, target, size.device)


def _best_on_gpu() -> tuple[str, Act]:
    """The best fused linear cross-entropy that is installed."""
    if find_spec("liger_kernel"):
        return "Liger's fused cross-entropy", _fuse_liger
    return "chunked cross_entropy", _chunked_cross_entropy


def _row(
    name: str,
    ours: Prepare,
    twin: str,
    other: Prepare,
    peak: float,
    target: str,
    device: str = "cpu",
    repeats: int = 3,
) -> Row:
    seconds, twin_seconds = race(ours(), other(), repeats, device)
    return Row(name, seconds, twin, twin_seconds, peak, target)


def _prepare(size: Size, act: Act) -> Action:
    """The action on random states, head, labels and a teacher of ten candidates per row."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(n, size.hidden, generator=generator).mul_(0.1).to(size.device, size.dtype).requires_grad_()
        for n in (size.rows, size.vocab)
    )
    labels = torch.randint(size.vocab, (size.rows,), generator=generator).to(size.device)
    teacher = _draw_teacher(size, generator).to(size.device)

    def action() -> None:
        hidden.grad = weight.grad = None
        act(hidden, weight, labels, teacher)

    return action


def _draw_teacher(size: Size, generator: torch.Generator) -> TokenDist:
    """Rows of ten different ids that hold 0.9 of the mass; the rest is tail."""
    first = torch.randint(size.vocab, (size.rows, 1), generator=generator)
    apart = torch.arange(_KEPT) * (size.vocab // _KEPT)
    probs = torch.rand(size.rows, _KEPT, generator=generator)
    return TokenDist(
        row_offsets=torch.arange(size.rows + 1) * _KEPT,
        ids=((first + apart) % size.vocab).flatten(),
        logprobs=(0.9 * probs / probs.sum(1, keepdim=True)).log().flatten(),
        tail_logprob=torch.full((size.rows,), 0.1).log(),
        unknown_logprob=torch.full((size.rows,), -torch.inf),
        vocab_size=size.vocab,
    )


def _fuse(hidden: Tensor, weight: Tensor, labels: Tensor, teacher: TokenDist) -> None:
    fusion_loss(hidden, weight, labels, teacher).loss.backward()


def _full_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, teacher: TokenDist) -> None:
    functional.cross_entropy(hidden @ weight.T, labels).backward()


def _fuse_liger(hidden: Tensor, weight: Tensor, labels: Tensor, teacher: TokenDist) -> None:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    liger_fused_linear_cross_entropy(hidden, weight, labels).backward()


@torch.no_grad()
def _chunked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, teacher: TokenDist) -> None:
    """The least memory that a chunked cross-entropy with fp32 gradients of the head can do with."""
    number = len(labels)
    weight.grad = torch.zeros_like(weight)
    hidden.grad = torch.empty_like(hidden)
    logits = hidden.new_empty(min(_CHUNK_ROWS, number), len(weight))
    for start in range(0, number, _CHUNK_ROWS):
        part = slice(start, min(start + _CHUNK_ROWS, number))
        chunk, label = logits[: part.stop - start], labels[part].unsqueeze(1)
        torch.mm(hidden[part], weight.T, out=chunk)
        chunk -= chunk.amax(1, keepdim=True)
        chunk.exp_()
        chunk /= chunk.sum(1, keepdim=True)
        chunk.scatter_add_(1, label, torch.full_like(label, -1, dtype=chunk.dtype))
        chunk /= number
        torch.mm(chunk, weight, out=hidden.grad[part])
        weight.grad.addmm_(chunk.T, hidden[part])
