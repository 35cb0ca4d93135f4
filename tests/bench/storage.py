"""Distributions on disk: bytes per token all in, and reading them into tensors, against torch's own casts."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from fusion_core.distributions import Sampled, TopK, reduce_logits
from fusion_core.types import Scored, Tokens
from tasks.formats.shards import SCORED, read_scored, write_scored
from tests.bench.rows import Row, race

_TOKENS, _DOCUMENT, _DRAWN = 1_000_000, 500, 1000
_GB_PER_SECOND = 1.0


def rows() -> Iterator[Row]:
    """One row per mode and vocabulary; the same thousand rows repeated, since only their widths decide."""
    for mode, vocab, limit in ((TopK(k=10), 50_257, 48), (TopK(k=10), 151_936, 70), (Sampled(n=12), 50_257, 36)):
        with tempfile.TemporaryDirectory() as folder:
            write_scored(Path(folder), _scored(mode, vocab))
            size = (Path(folder) / SCORED).stat().st_size
            seconds, twin_seconds = race(partial(read_scored, Path(folder)), partial(_cast, Path(folder) / SCORED), 12)
        name = f"read {mode.kind}, V {vocab}, {size / seconds / 1e9:.2f} GB/s, {size / _TOKENS:.1f} B/token"
        milliseconds = size / _GB_PER_SECOND / 1e6
        target = f"<= {limit} B, <= {milliseconds:.1f} ms ({_GB_PER_SECOND:g} GB/s)"
        nowhere = float("nan")
        yield Row(name, seconds, "torch casts", twin_seconds, nowhere, target, bytes_per_token=size / _TOKENS)


def _cast(path: Path) -> None:
    for values in load_file(path).values():
        values.float() if values.is_floating_point() else values.long()


def _scored(mode: TopK | Sampled, vocab: int) -> Scored:
    generator = torch.Generator().manual_seed(0)
    # A model's logits fall by their rank: at this slope a row's entropy is about 3 nats, as of web text.
    ranked = -1.6 * torch.arange(1.0, vocab + 1).log()
    logits = torch.stack([ranked[torch.randperm(vocab, generator=generator)] for _ in range(_DRAWN)])
    logits += torch.randn(logits.shape, generator=generator) * 0.5
    ids = torch.randint(vocab, (_TOKENS,), generator=generator)
    dist, nll = reduce_logits(logits, ids[:_DRAWN], mode, vocab)
    times = _TOKENS // _DRAWN
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), dist.row_offsets.diff().repeat(times).cumsum(0)])
    columns = {
        name: getattr(dist, name).repeat(times) for name in ("ids", "logprobs", "tail_logprob", "unknown_logprob")
    }
    boundaries = 4 * (torch.arange(_TOKENS) % _DOCUMENT)
    tokens = Tokens(ids, boundaries, torch.arange(0, _TOKENS + 1, _DOCUMENT))
    return Scored(tokens, type(dist)(row_offsets=offsets, vocab_size=vocab, **columns), nll.repeat(times))
