"""Distributions on disk: bytes per token all in, and reading them into tensors, against torch's own casts."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from fusion_core.distributions import Sampled, TopK, reduce_logits
from fusion_core.types import Scored, TokenDist, Tokens
from tasks.formats.shards import SCORED, read_scored, write_scored
from tests.bench.rows import Row, race

_TOKENS, _DOCUMENT, _DRAWN, _VOCAB = 1_000_000, 500, 1000, 50_257
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
    yield _compressed()


def _compressed() -> Row:
    """A shard compressed, beside itself raw. No row repeats another; ids are ranks, as of byte pair codes."""
    scored = _varied()
    with tempfile.TemporaryDirectory() as raw, tempfile.TemporaryDirectory() as small:
        write_scored(Path(raw), scored)
        write_scored(Path(small), scored, compress=True)
        size, expanded = ((Path(folder) / SCORED).stat().st_size for folder in (small, raw))
        seconds, twin_seconds = race(partial(read_scored, Path(small)), partial(read_scored, Path(raw)), 12)
    name = f"read compressed, V {_VOCAB}, {expanded / seconds / 1e9:.2f} GB/s of raw, {size / _TOKENS:.1f} B/token"
    target = f"<= 36 B, <= {expanded / 2e5:.1f} ms (0.2 GB/s)"
    return Row(name, seconds, "raw", twin_seconds, float("nan"), target, bytes_per_token=size / _TOKENS)


def _varied() -> Scored:
    """A million rows of ten: the likeliest of 48 tokens drawn by Zipf's law, by that law and what a context adds."""
    draw = torch.Generator().manual_seed(0)
    ranks = (_VOCAB ** torch.rand(_TOKENS, 48, generator=draw)).long() - 1
    logits = -(ranks + 1).float().log() + 2 * torch.randn(ranks.shape, generator=draw)
    kept, places = logits.topk(10)
    logprobs = (kept - torch.logsumexp(logits, 1, keepdim=True)).flatten()
    tail = (1 - logprobs.view(-1, 10).double().exp().sum(1)).clamp(min=1e-6).log().float()
    offsets = 10 * torch.arange(_TOKENS + 1)
    unknown = torch.full((_TOKENS,), -torch.inf)
    dist = TokenDist(offsets, ranks.gather(1, places).flatten(), logprobs, tail, unknown, _VOCAB)
    ids = (_VOCAB ** torch.rand(_TOKENS, generator=draw)).long() - 1
    lengths = torch.randint(1, 9, (_TOKENS // _DOCUMENT, _DOCUMENT), generator=draw)
    tokens = Tokens(ids, lengths.cumsum(1).flatten(), torch.arange(0, _TOKENS + 1, _DOCUMENT))
    return Scored(tokens, dist, 3 * torch.rand(_TOKENS, generator=draw).log().neg())


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
